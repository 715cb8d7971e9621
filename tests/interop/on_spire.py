"""SPIRE itself: registration, rotation, loss and return of an entry, restart
of the agent, change of authority, federation."""

import json
import socket
import ssl

from cryptography import x509

import world
from world import BIN, DOMAIN, Load, Processes, Proxy, Spire, check, eventually, free_port, get, output

SPIRE_VERSION = output(BIN / "spire-server", "--version").strip() or "1.13.3"
PEER = f"SPIRE {SPIRE_VERSION}"

ROUTES = """
[entryPoints.web]
address = "127.0.0.1:{web}"
[entryPoints.tcp]
address = "127.0.0.1:{tcp}"
[http.routers.api]
rule = "PathPrefix(`/`)"
entryPoints = ["web"]
service = "api"
[http.services.api.loadBalancer]
serversTransport = "t"
servers = [{{ url = "https://127.0.0.1:{http_backend}" }}]
[http.serversTransports.t.spiffe]
ids = ["spiffe://{domain}/backend"]
[tcp.routers.echo]
rule = "HostSNI(`*`)"
entryPoints = ["tcp"]
service = "echo"
[tcp.services.echo.loadBalancer]
serversTransport = "t"
servers = [{{ address = "127.0.0.1:{tcp_backend}", tls = true }}]
[tcp.serversTransports.t.tls.spiffe]
ids = ["spiffe://{domain}/backend"]
"""


class World:
    """One SPIRE, two backends on go-spiffe and a svidgate, for all scenarios here."""

    def __init__(self):
        self.processes = Processes()
        self.spire = Spire(self.processes)
        self.ports = {name: free_port() for name in ("web", "tcp", "http_backend", "tcp_backend")}
        self.entry = None

    def backends(self):
        peers = self.spire.own_copy(BIN / "peers", "backend")
        self.spire.entry("/backend", peers, "-x509SVIDTTL", "40")
        for kind in "http", "tcp":
            port = self.ports[f"{kind}_backend"]
            command = [peers, "-socket", self.spire.address, "-listen", f"127.0.0.1:{port}"]
            command += ["-allow", f"spiffe://{DOMAIN}/svidgate", kind]
            self.processes.start(f"backend-{kind}", command, port, 60)

    def register(self):
        self.entry = self.spire.entry("/svidgate", self.binary, "-x509SVIDTTL", "20")

    @property
    def binary(self):
        return self.spire.own_copy(world.SVIDGATE, "svidgate")


here = None
proxy = None


def close():
    if here:
        here.processes.close()


def seen(port, path="/"):
    status, _, body = get(port, path)
    check(status == 200, f"{status} {body[:200]!r}")
    return json.loads(body)


def first_svid():
    global here, proxy
    here = World()
    here.backends()
    text = ROUTES.format(domain=DOMAIN, **here.ports)
    proxy = Proxy(here.processes, text, binary=here.binary, address=here.spire.address, waits=False)
    hint = eventually("a hint at the registration", lambda: "PermissionDenied" in proxy.log() and proxy.log(), 30)
    line = next(line for line in hint.splitlines() if "PermissionDenied" in line)
    check("regist" in line, f"no hint in {line}")
    check(proxy.ask("/readyz")[0] == 503, "not ready before the first SVID")
    check(not world.listens(here.ports["web"]), "no client is taken before the first SVID")
    here.register()
    # The agent asks its server every few seconds; the hint waits a minute between tries.
    proxy.wait_ready(90)
    return "503 and a hint at the registration before it, ready after it"


def traffic():
    answer = seen(here.ports["web"])
    check(answer["Peer"] == f"spiffe://{DOMAIN}/svidgate", answer)
    check(answer["Protocol"] == "HTTP/2.0", answer)
    with socket.create_connection(("127.0.0.1", here.ports["tcp"]), 10) as stream:
        stream.sendall(b"x" * 100_000)
        stream.shutdown(socket.SHUT_WR)
        count = 0
        while piece := stream.recv(1 << 16):
            count += len(piece)
    check(count == 100_000, f"{count} bytes came back")
    return f"HTTP/2 and TCP through mutual TLS, the backend sees {answer['Peer']}"


def issued():
    return proxy.metric('svidgate_identity_updates_total{kind="issued"}')


def rotations():
    before = issued()
    with Load(here.ports["web"]) as load:
        eventually("three rotations", lambda: issued() >= before + 3, 90)
    check(not load.failed, f"{len(load.failed)} of {load.done} failed: {load.failed[:3]}")
    return f"{issued() - before:.0f} rotations (TTL 20 s) under {load.done} requests, none failed"


def deleted_and_restored():
    here.spire.delete(here.entry)
    eventually("not ready", lambda: not proxy.is_ready(), 60)
    status, fields, _ = get(here.ports["web"])
    check(status == 503, f"{status} {fields}")
    here.register()
    proxy.wait_ready(120)
    eventually("serving", lambda: get(here.ports["web"])[0] == 200, 60)
    return f"entry deleted: 503 ({fields.get('proxy-status', '')}) and not ready; restored: serving"


def agent_restarted():
    before = issued()
    with Load(here.ports["web"]) as load:
        here.spire.stop_agent()
        eventually("some requests without an agent", lambda: load.done > 500, 60)
        here.spire.start_agent()
        eventually("news from the agent", lambda: issued() > before, 60)
        # With TTL 20 s, another one is due soon.
        eventually("a rotation by the new agent", lambda: issued() > before + 1, 60)
    check(not load.failed, f"{len(load.failed)} of {load.done} failed: {load.failed[:3]}")
    return f"agent restarted under {load.done} requests, none failed"


def authorities():
    return proxy.metric(f'svidgate_bundle_authorities{{trust_domain="{DOMAIN}"}}')


def authority_rotated():
    state = here.spire.authority("show")
    old = state["active"]["authority_id"]
    old_count = authorities()
    with Load(here.ports["web"]) as load:
        prepared = here.spire.authority("prepare")["prepared_authority"]["authority_id"]
        eventually("two authorities", lambda: authorities() == old_count + 1, 60)
        here.spire.authority("activate", "-authorityID", prepared)
        before = issued()
        here.spire.authority("taint", "-authorityID", old)
        # Whoever has an SVID of the old one gets another.
        eventually("new SVIDs", lambda: issued() > before, 60)
        eventually("the backend has a new SVID", lambda: new_backend_svid(old), 90)
    check(not load.failed, f"{len(load.failed)} of {load.done} failed before the revoke: {load.failed[:3]}")
    here.spire.authority("revoke", "-authorityID", old)
    eventually("one authority again", lambda: authorities() == old_count, 60)
    eventually("serving", lambda: get(here.ports["web"])[0] == 200, 60)
    return f"prepare, activate, taint under {load.done} requests, none failed; serving after the revoke"


def new_backend_svid(old):
    """The authority key ID of what the backend presents is not the old one's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", here.ports["http_backend"]), 5) as plain:
        with context.wrap_socket(plain) as tls:
            leaf = x509.load_der_x509_certificate(tls.getpeercert(True))
    key = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    return key.hex() != old.replace(":", "").lower()


def federation():
    other = Spire(here.processes, "other.test")
    for one, two in ((here.spire, other), (other, here.spire)):
        bundle = here.processes.write("bundle.json", one.server("bundle", "show", "-format", "spiffe"))
        two.server("bundle", "set", "-format", "spiffe", "-id", f"spiffe://{one.domain}", "-path", bundle)
    peers = other.own_copy(BIN / "peers", "foreign")
    other.entry("/backend", peers, "-federatesWith", f"spiffe://{DOMAIN}")
    port, web = free_port(), free_port()
    command = [peers, "-socket", other.address, "-listen", f"127.0.0.1:{port}", "-allow", f"spiffe://{DOMAIN}/federated", "http"]
    here.processes.start("foreign", command, port, 60)
    binary = here.spire.own_copy(world.SVIDGATE, "svidgate-federated")
    here.spire.entry("/federated", binary, "-federatesWith", "spiffe://other.test")
    text = """
[entryPoints.web]
address = "127.0.0.1:{web}"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.routers.own]
rule = "PathPrefix(`/own`)"
service = "own"
[http.services.api.loadBalancer]
serversTransport = "foreign"
servers = [{{ url = "https://127.0.0.1:{port}" }}]
[http.serversTransports.foreign.spiffe]
trustDomain = "other.test"
[http.services.own.loadBalancer]
serversTransport = "own"
servers = [{{ url = "https://127.0.0.1:{port}" }}]
[http.serversTransports.own.spiffe]
""".format(web=web, port=port)
    proxy = Proxy(here.processes, text, "federated", binary, here.spire.address)
    answer = eventually("the backend has our bundle", lambda: get(web)[0] == 200 and seen(web), 60)
    check(answer["Peer"] == f"spiffe://{DOMAIN}/federated", answer)
    status, fields, _ = get(web, "/own")
    check(status == 502 and "tls_certificate_error" in fields["proxy-status"], f"{status} {fields}")
    proxy.stop()
    return "a backend of a federated trust domain is reached where trustDomain names it, and 502 where not"


def scenarios():
    names = [first_svid, traffic, rotations, deleted_and_restored, agent_restarted, authority_rotated, federation]
    return [(PEER, it) for it in names]
