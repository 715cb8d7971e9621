"""Python: a backend on spiffe and spiffe-tls, grpcio on both sides."""

import sys

import grpc

import world
from world import DOMAIN, PYPI, Lazy, Proxy, check, free_port, get, output

site = Lazy()
close = site.close
registered = []


def backend(name, kind, allowed):
    if not registered:
        # All of it runs in one interpreter, so it has one ID.
        registered.append(site().spire.entry("/python", sys.executable))
    port = free_port()
    site().processes.start(name, peer(port, allowed, kind), port, 60)
    return port


def peer(port, allowed, kind):
    return [sys.executable, world.ROOT / "tests/interop/python_peers.py", site().spire.address, port, allowed, kind]


def spiffe_tls():
    port = backend("py-good", "spiffe", f"spiffe://{DOMAIN}/svidgate")
    web, proxy = site().gate("gate-py", port, "/python")
    for _ in range(3):
        status, fields, body = get(web, "/a", "POST", b"x" * 100_000)
        check((status, body) == (200, b"POST /a HTTP/1.1 100000\n"), f"{status} {fields} {body!r}")
    proxy.stop()
    port = backend("py-picky", "spiffe", f"spiffe://{DOMAIN}/somebody-else")
    web, proxy = site().gate("gate-py-picky", port, "/python")
    status, fields, _ = get(web)
    check(status == 502, f"{status} {fields}")
    proxy.stop()
    return f"a backend on spiffe-tls admits our ID, and refuses it when it wants another (502, {fields['proxy-status'].split(';')[1].strip()})"


def spiffe_tls_through_tcp():
    """TLS from end to end: svidgate passes it on untouched."""
    port = backend("py-end", "spiffe", f"spiffe://{DOMAIN}/python")
    tcp = free_port()
    text = f"""
[entryPoints.tcp]
address = "127.0.0.1:{tcp}"
[tcp.routers.r]
rule = "HostSNI(`*`)"
entryPoints = ["tcp"]
service = "s"
[tcp.services.s.loadBalancer]
servers = [{{ address = "127.0.0.1:{port}" }}]
"""
    proxy = Proxy(site().processes, text, "gate-py-tcp")
    said = output(*peer(tcp, f"spiffe://{DOMAIN}/python", "dial"))
    check(said.endswith("POST /dialled HTTP/1.1 100000\n"), said)
    proxy.stop()
    return "a client on spiffe-tls and a backend on it, TLS from end to end through a TCP router"


def grpcio():
    port = backend("py-grpc", "grpc", f"spiffe://{DOMAIN}/svidgate")
    web, proxy = site().gate("gate-py-grpc", port, "/python")
    with grpc.insecure_channel(f"127.0.0.1:{web}") as channel:
        answer, call = channel.unary_unary("/interop.Echo/Unary").with_call(b"abc" * 50_000, timeout=20)
        check(answer == b"cba" * 50_000, "the answer")
        check(("x-served", "python") in [tuple(it) for it in call.trailing_metadata()], call.trailing_metadata())
        import queue

        asked = queue.Queue()
        answers = channel.stream_stream("/interop.Echo/Both")(iter(asked.get, None), timeout=20)
        # Message by message: each answer before the next question.
        for number in range(5):
            asked.put(b"ask %d" % number)
            check(next(answers) == (b"ask %d" % number)[::-1], f"message {number}")
        asked.put(None)
        check(list(answers) == [], "nothing more")
        try:
            channel.unary_unary("/interop.Echo/None")(b"", timeout=10)
            code = None
        except grpc.RpcError as error:
            code = error.code()
        check(code == grpc.StatusCode.UNIMPLEMENTED, code)
    proxy.stop()
    return "grpcio on both sides: 150 kB unary, trailing metadata, a conversation message by message, a status"


def scenarios():
    return [
        (f"Python spiffe {PYPI['spiffe']}, spiffe-tls {PYPI['spiffe-tls']}", spiffe_tls),
        (f"Python spiffe {PYPI['spiffe']}, spiffe-tls {PYPI['spiffe-tls']}", spiffe_tls_through_tcp),
        (f"grpcio {PYPI['grpcio']}", grpcio),
    ]
