"""go-spiffe v2: servers that authorise svidgate, refusals seen from both
sides, gRPC, and its client against the project's own Workload API."""

import json
import subprocess

import world
from world import BIN, DOMAIN, Lazy, check, eventually, get, output

VERSION = world.VERSIONS["go"]["github.com/spiffe/go-spiffe/v2"]
PEER = f"go-spiffe {VERSION}"
site = Lazy()
close = site.close


def both_versions():
    backend = site().peer("both", "http")
    for more, protocol in ("", "HTTP/2.0"), ("disableHTTP2 = true", "HTTP/1.1"):
        web, proxy = site().gate(f"gate-{protocol[5]}", backend, "/both", more)
        status, _, body = get(web, "/a", "POST", b"x" * 300_000)
        answer = json.loads(body)
        check(status == 200 and answer["Protocol"] == protocol, answer)
        check(answer["Peer"] == f"spiffe://{DOMAIN}/svidgate" and answer["Bytes"] == 300_000, answer)
        proxy.stop()
    return "HTTP/2 by ALPN and, with disableHTTP2, HTTP/1.1; an upload of 300 kB; it sees our ID"


def refused_by_us():
    backend = site().peer("other", "http")
    web, proxy = site().gate("gate-wrong", backend, "/expected")
    status, fields, _ = get(web)
    check(status == 502 and "tls_certificate_error" in fields["proxy-status"], f"{status} {fields}")
    eventually("it says that we refused", lambda: "remote error: tls: " in site().processes.log_of("other").read_text(), 10)
    proxy.stop()
    return f"an ID that is not allowed: 502, {fields['proxy-status'].split(';')[1].strip()}; the server sees our alert"


def refused_by_it():
    backend = site().peer("picky", "http", "/somebody-else")
    web, proxy = site().gate("gate-picky", backend, "/picky")
    status, fields, _ = get(web)
    check(status == 502 and "tls_alert_received" in fields["proxy-status"], f"{status} {fields}")
    eventually("it says why", lambda: "unexpected ID" in site().processes.log_of("picky").read_text(), 10)
    proxy.stop()
    return f"its authorizer refuses our ID: 502, {fields['proxy-status'].split(';')[1].strip()}"


def grpc():
    import grpc

    backend = site().peer("calls", "grpc")
    web, proxy = site().gate("gate-grpc", backend, "/calls")
    with grpc.insecure_channel(f"127.0.0.1:{web}") as channel:
        # health.v1: HealthCheckRequest { service = 1 }, HealthCheckResponse { status = 1 }
        ask = b"\n\x07interop"
        check_call = channel.unary_unary("/grpc.health.v1.Health/Check")
        check(check_call(ask, timeout=10) == b"\x08\x01", "SERVING")
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(ask, timeout=10)
        check(next(watch) == b"\x08\x01", "the first message of the stream")
        watch.cancel()
        try:
            check_call(b"\n\x04none", timeout=10)
            code = None
        except grpc.RpcError as error:
            code = error.code()
        check(code == grpc.StatusCode.NOT_FOUND, code)
        try:
            channel.unary_stream("/grpc.health.v1.Health/Watch")(ask, timeout=1).__next__()
            list(channel.unary_stream("/grpc.health.v1.Health/Watch")(ask, timeout=1))
            code = None
        except grpc.RpcError as error:
            code = error.code()
        check(code == grpc.StatusCode.DEADLINE_EXCEEDED, code)
    check(f"call from spiffe://{DOMAIN}/svidgate" in site().processes.log_of("calls").read_text(), "it knows who calls")
    proxy.stop()
    return "grpc-go behind us, grpcio in front: unary, stream, status, cancel and deadline"


def example_agent(processes):
    """The Workload API of tests/support, as the examples run it; its address."""
    directory = processes.directory / "ours"
    directory.mkdir()
    example = world.ROOT / "target/release/examples/world"
    agent = subprocess.Popen([example, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    processes.callback(world.end, agent)
    check(agent.stdout.readline() == b"ready\n", "it starts")
    return f"unix://{directory}/agent.sock"


def our_workload_api():
    told = output(BIN / "peers", "-socket", example_agent(site().processes), "fetch")
    check(told == "svid spiffe://bench.test/svidgate\nbundle bench.test 1\n", told)
    return "its client takes the SVID and the bundle of our Workload API, and its verifier agrees"


def scenarios():
    names = [both_versions, refused_by_us, refused_by_it, grpc, our_workload_api]
    return [(PEER, it) for it in names]
