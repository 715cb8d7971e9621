"""The rows of the README's "Differences from Traefik" that one request does not
show: time, connections, reload, and the life of an identity. Each is tried on
both, and fails if it is no longer true of either."""

import concurrent.futures
import datetime
import ipaddress
import os
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import world
from traefik import OK, TRAEFIK, Backend, Pair, answers, ask, get, requests, start_with
from world import BIN, DOMAIN, Processes, Proxy, Spire, check, eventually, free_port

HTTP = """
[http.routers.r]
rule = "Host(`a.test`)"
entryPoints = ["web"]
service = "s"
[http.services.s.loadBalancer]
serversTransport = "t"
servers = [{{ url = "{url}" }}]
[http.serversTransports.t]
{transport}
"""

TCP = """
[tcp.routers.r]
rule = "HostSNI(`*`)"
entryPoints = ["tcp"]
service = "s"
[tcp.services.s.loadBalancer]
servers = [{{ address = "127.0.0.1:{port}" {tls} }}]
{more}
"""

SPIFFE_TCP = """
serversTransport = "t"
[tcp.serversTransports.t.tls.spiffe]
ids = ["spiffe://{domain}/{id}"]
"""


def plain(processes, name, backend, static="", transport="maxIdleConnsPerHost = 2"):
    """A pair in front of a backend in plaintext, HTTP."""
    return Pair(processes, name, HTTP.format(url=f"http://127.0.0.1:{backend.port}", transport=transport), static)


def status(port):
    return ask(port, get())[0]


def told(row, seen, wanted):
    check(seen == wanted, f"{row}: Traefik and svidgate {seen}, not {wanted}")


def log_level(processes):
    backend = Backend(answers)
    dynamic = HTTP.format(url=f"http://127.0.0.1:{backend.port}", transport="")
    pair = Pair(processes, "level", dynamic)
    # The pair's svidgate is told a level; this one is not.
    port = free_port()
    file = processes.write("default.toml", f'[entryPoints.web]\naddress = "127.0.0.1:{port}"\n{dynamic.replace("entryPoints = [", "# [")}')
    other = processes.start("default", [world.SVIDGATE, "--config", file], port)
    told("served", (status(pair.web[0]), status(port)), (200, 200))
    text = processes.log_of("default").read_text()
    check(processes.log_of(pair.log).read_text() == "" and " INFO " in text, f"log level: svidgate said {text!r}")
    world.end(other)
    pair.close()


def inherits(processes):
    def late(connection):
        for _ in requests(connection):
            time.sleep(2.5)
            connection.sendall(OK)

    pair = plain(processes, "inherits", Backend(late), '[serversTransport.forwardingTimeouts]\nresponseHeaderTimeout = "1s"\n')
    told("a named transport", pair.each(status), (200, 504))
    pair.close()


def idle_connections(processes):
    """Two waves of eight requests at once: how many connections they take."""
    seen = []
    for which in 0, 1:
        together = threading.Barrier(8)

        def serve(connection, together=together):
            for _ in requests(connection):
                together.wait(10)
                connection.sendall(OK)

        backend = Backend(serve)
        pair = plain(processes, f"idle-{which}", backend, "", "")
        for _ in range(2):
            clients = [threading.Thread(target=status, args=(pair.web[which],)) for _ in range(8)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        seen.append(backend.connections)
        pair.close()
    told("idle connections", tuple(seen), (14, 8))


def upload(port, count, pause):
    """What an upload of `count` bytes comes to, one byte each `pause`."""
    with socket.create_connection(("127.0.0.1", port), 10) as stream:
        stream.settimeout(10)
        try:
            stream.sendall(get(method="POST", more=f"Content-Length: {count}\r\n"))
            for _ in range(count):
                stream.sendall(b"x")
                # An answer ends the wait.
                stream.settimeout(pause)
                try:
                    return stream.recv(65536)[9:12]
                except TimeoutError:
                    pass
            stream.settimeout(10)
            return stream.recv(65536)[9:12]
        except OSError:
            return b"reset"


def read_timeout(processes):
    pair = plain(processes, "read", Backend(answers), '[entryPoints.web.transport.respondingTimeouts]\nreadTimeout = "2s"\n')
    theirs, ours = pair.each(lambda port: upload(port, 8, 0.5))
    check(theirs != b"200" and ours == b"200", f"readTimeout: {theirs} and {ours}")
    pair.close()


def trickles(processes):
    pair = plain(processes, "trickle", Backend(answers))
    told("an upload that trickles", pair.each(lambda port: upload(port, 30, 0.5)), (b"200", b"408"))
    pair.close()


def tunnel(processes, name, backend):
    return Pair(processes, name, TCP.format(port=backend.port, tls="", more=""))


def connected(port):
    """A tunnel, when the proxy is there for it."""
    return eventually("the entry point", lambda: world.listens(port) and socket.create_connection(("127.0.0.1", port), 10))


def termination(processes):
    def late(connection):
        while connection.recv(65536):
            pass
        time.sleep(1)
        connection.sendall(b"late")

    def half_closed(port):
        with connected(port) as stream:
            stream.sendall(b"x")
            stream.shutdown(socket.SHUT_WR)
            return stream.recv(100)

    pair = tunnel(processes, "termination", Backend(late))
    told("`terminationDelay`", pair.each(half_closed, pair.tcp), (b"", b"late"))
    pair.close()


def broken(processes):
    def reset(connection):
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def end(port):
        with connected(port) as stream:
            stream.sendall(b"x")
            try:
                return stream.recv(100)
            except ConnectionResetError:
                return "reset"

    pair = tunnel(processes, "broken", Backend(reset))
    told("a broken tunnel", pair.each(end, pair.tcp), (b"", "reset"))
    pair.close()


def covers(processes):
    pair = plain(processes, "covers", Backend(answers))
    told("served", pair.each(status), (200, 200))
    ports = free_port(), free_port()
    more = '[entryPoints.more]\naddress = "127.0.0.1:{}"\n'
    pair.static.write_text(more.format(ports[0]) + pair.static.read_text())
    pair.proxy.file.write_text(pair.proxy.file.read_text() + more.format(ports[1]))
    eventually("svidgate's new entry point", lambda: world.listens(ports[1]))
    # Traefik reads its dynamic file when that changes, and this with it.
    pair.dynamic.write_text(pair.dynamic.read_text().replace("a.test", "b.test"))
    eventually("Traefik's reload", lambda: ask(pair.web[0], get("b.test"))[0] == 200)
    check(not world.listens(ports[0]), "what a reload covers: Traefik has the entry point")
    pair.close()


def bad_file(processes):
    pair = plain(processes, "bad-file", Backend(answers))
    told("served", pair.each(status), (200, 200))
    more = """
[http.routers.two]
rule = "Host(`two.test`)"
service = "s"
[http.routers.three]
rule = "Host(`three.test`)"
service = "none"
[http.serversTransports.bad]
rootCAs = ["/does/not/exist.pem"]
"""
    for path in pair.dynamic, pair.proxy.file:
        path.write_text(path.read_text() + more)
    eventually("Traefik's reload", lambda: ask(pair.web[0], get("two.test"))[0] == 200)
    eventually("both problems in the log", lambda: all(it in pair.proxy.log() for it in ("rootCAs", "http.routers.three.service")))
    told("a bad file at a reload", pair.each(lambda port: (ask(port, get("two.test"))[0], status(port))), ((200, 200), (404, 200)))
    pair.close()


def changed_certificates(processes):
    old, _ = certificates(processes, "old")
    new, context = certificates(processes, "new")

    def serve(connection):
        with context.wrap_socket(connection, server_side=True) as tls:
            answers(tls)

    file = processes.write("roots.pem", old)
    url = f"https://127.0.0.1:{Backend(serve).port}"
    pair = Pair(processes, "changed", HTTP.format(url=url, transport=f'rootCAs = ["{file}"]'))
    told("before", pair.each(status), (500, 502))
    file.write_text(new)
    eventually("svidgate's reload", lambda: status(pair.web[1]) == 200)
    told("changed certificate files", pair.each(status), (500, 200))
    pair.close()


def certificates(processes, name):
    """The PEM of an authority, and a server's context with a leaf of it for 127.0.0.1."""
    now = datetime.datetime.now(datetime.timezone.utc)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, it)]) for it in (f"{name} authority", f"{name} leaf")]

    def sign(which, extension, critical):
        builder = x509.CertificateBuilder().subject_name(names[which]).issuer_name(names[0]).public_key(keys[which].public_key())
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical)
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
        return builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    authority = sign(0, x509.BasicConstraints(True, None), True)
    leaf = sign(1, x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
    plain = serialization.NoEncryption()
    key = keys[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(processes.write(f"{name}.pem", leaf + key))
    return authority, context


def own_answer(processes):
    pair = plain(processes, "grpc", Backend(answers))
    told("served", pair.each(status), (200, 200))

    def call(port):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                channel.unary_unary("/no.Such/Method")(b"", timeout=10)
            except grpc.RpcError as error:
                return error.code(), error.details()

    # Of Traefik's 404, grpcio makes a status of its own.
    unimplemented = grpc.StatusCode.UNIMPLEMENTED
    wanted = (unimplemented, "Received http2 header with status: 404"), (unimplemented, "404 Not Found")
    told("an answer of the proxy's own to a gRPC call", pair.each(call), wanted)
    pair.close()


def refused_stream(processes):
    refuse = threading.Event()

    def serve(connection):
        """HTTP/2 that refuses one stream when it is asked to."""

        def exactly(count):
            data = b""
            while len(data) < count:
                piece = connection.recv(count - len(data))
                if not piece:
                    raise OSError("ended")
                data += piece
            return data

        def frame(kind, flags, stream, content=b""):
            connection.sendall(struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content)

        exactly(24)
        frame(4, 0, 0)
        refused = 0
        while True:
            head = exactly(9)
            kind, flags, stream = head[3], head[4], struct.unpack(">I", head[5:])[0]
            content = exactly(struct.unpack(">I", b"\0" + head[:3])[0])
            if kind == 4 and not flags & 1:
                frame(4, 1, 0)
            elif kind == 6 and not flags & 1:
                frame(6, 1, 0, content)
            elif kind == 1:
                if refuse.is_set():
                    # Not before its body is on its way.
                    refused = stream
                else:
                    frame(1, 5, stream, b"\x88")
            elif kind == 0 and stream == refused:
                refuse.clear()
                frame(3, 0, stream, struct.pack(">I", 7))

    url = f"h2c://127.0.0.1:{Backend(serve).port}"
    pair = Pair(processes, "refused", HTTP.format(url=url, transport=""))
    request = get(method="POST", more="Content-Length: 5\r\n", body="hello")
    seen = []
    for port in pair.web:
        refuse.set()
        seen.append(ask(port, request)[0])
    told("a refused HTTP/2 stream", tuple(seen), (500, 200))
    pair.close()


PLAIN = {
    "log level": log_level,
    "a named transport": inherits,
    "idle connections per server": idle_connections,
    "`readTimeout`": read_timeout,
    "an upload that trickles": trickles,
    "`terminationDelay`": termination,
    "a broken tunnel": broken,
    "what a reload covers": covers,
    "a bad file at a reload": bad_file,
    "changed certificate files": changed_certificates,
    "an answer of the proxy's own to a gRPC call": own_answer,
    "a refused HTTP/2 stream": refused_stream,
}


class Identity:
    """A SPIRE that these may stop and rotate, and a second one in another domain."""

    def __init__(self, processes):
        self.processes = processes
        self.spire = Spire(processes)
        self.programs = tuple(self.spire.own_copy(it, name) for it, name in ((TRAEFIK, "traefik"), (world.SVIDGATE, "svidgate")))

    def register(self, *more):
        return [self.spire.entry("/svidgate", it, *more) for it in self.programs]

    def pair(self, name, dynamic):
        return Pair(self.processes, name, dynamic, "", self.spire.address, self.programs)

    def peer(self, spire, name, kind, *more):
        program = spire.own_copy(BIN / "peers", name)
        spire.entry(f"/{name}", program, *more)
        port = free_port()
        command = [program, "-socket", spire.address, "-listen", f"127.0.0.1:{port}", "-allow", f"spiffe://{DOMAIN}/svidgate", kind]
        self.processes.start(name, command, port, 60)
        return port


def first_svid(of):
    """Before anything is registered."""
    dynamic = HTTP.format(url="https://127.0.0.1:1", transport="[http.serversTransports.t.spiffe]")
    port = free_port()
    static = f'[entryPoints.web]\naddress = "127.0.0.1:{port}"\n'
    waiting = start_with(of.processes, "waiting-traefik", of.programs[0], static, dynamic, of.spire.address, port)
    own = free_port()
    text = f'[entryPoints.web]\naddress = "127.0.0.1:{own}"\n{dynamic}'
    proxy = Proxy(of.processes, text, "waiting-svidgate", of.programs[1], of.spire.address, waits=False)
    eventually("a warning", lambda: " WARN " in proxy.log())
    told("clients", (ask(port, get())[0], ask(own, get())[0]), ("closed", "gone"))
    log = of.processes.log_of("waiting-traefik").read_text()
    check(log == "", f"Traefik is not silent: {log[:300]}")
    for process in waiting, proxy.process:
        process.send_signal(signal.SIGTERM)
    code = proxy.process.wait(5)
    try:
        waiting.wait(3)
        raise world.Short("Traefik ends by SIGTERM while it waits for an SVID")
    except subprocess.TimeoutExpired:
        waiting.kill()
    check(code == 0, f"svidgate ended with {code}")


def no_ids(of):
    other = Spire(of.processes, "other.test")
    for one, two in ((of.spire, other), (other, of.spire)):
        bundle = of.processes.write("bundle.json", one.server("bundle", "show", "-format", "spiffe"))
        two.server("bundle", "set", "-format", "spiffe", "-id", f"spiffe://{one.domain}", "-path", bundle)
    of.register("-x509SVIDTTL", "30", "-federatesWith", "spiffe://other.test")
    port = of.peer(other, "foreign", "http", "-federatesWith", f"spiffe://{DOMAIN}")
    pair = of.pair("no-ids", HTTP.format(url=f"https://127.0.0.1:{port}", transport="[http.serversTransports.t.spiffe]"))
    eventually("Traefik reaches another trust domain", lambda: status(pair.web[0]) == 200, 60)
    told("neither `ids` nor `trustDomain`", pair.each(status), (200, 502))
    pair.close()


def handshake(of):
    def silent(connection):
        connection.recv(65536)
        time.sleep(60)

    more = SPIFFE_TCP.format(domain=DOMAIN, id="anybody")
    pair = of.pair("handshake", TCP.format(port=Backend(silent).port, tls=", tls = true", more=more))

    def waits(port):
        with connected(port) as stream:
            stream.settimeout(13)
            try:
                stream.sendall(b"x")
                return stream.recv(10) and "data"
            except TimeoutError:
                return "waits"
            except OSError:
                return b""

    told("a TLS handshake timeout for TCP", pair.each(waits, pair.tcp), ("waits", b""))
    pair.close()


def change_of_trust(of):
    """The authority of a backend's certificate is revoked, and it has another since."""
    port = of.peer(of.spire, "echo", "tcp", "-x509SVIDTTL", "30")
    pair = of.pair("trust", TCP.format(port=port, tls=", tls = true", more=SPIFFE_TCP.format(domain=DOMAIN, id="echo")))
    tunnels = [connected(it) for it in pair.tcp]

    def echoes(stream):
        try:
            stream.sendall(b"x")
            return stream.recv(1)
        except OSError:
            return b""

    told("tunnels", tuple(map(echoes, tunnels)), (b"x", b"x"))
    proxy = pair.proxy

    def authorities():
        return proxy.metric(f'svidgate_bundle_authorities{{trust_domain="{DOMAIN}"}}')

    count = authorities()
    old = of.spire.authority("show")["active"]["authority_id"]
    prepared = of.spire.authority("prepare")["prepared_authority"]["authority_id"]
    eventually("two authorities", lambda: authorities() == count + 1, 60)
    of.spire.authority("activate", "-authorityID", prepared)
    of.spire.authority("taint", "-authorityID", old)
    of.spire.authority("revoke", "-authorityID", old)
    eventually("one authority", lambda: authorities() == count, 60)
    eventually("svidgate's tunnel ends", lambda: not echoes(tunnels[1]), 30)
    told("open connections after a change of trust", tuple(map(echoes, tunnels)), (b"x", b""))
    for stream in tunnels:
        stream.close()
    pair.close()


def expired(of):
    """A TCP connection is a handshake each: what the backend makes of it."""
    port = of.peer(of.spire, "backend", "tcp")
    pair = of.pair("expired", TCP.format(port=port, tls=", tls = true", more=SPIFFE_TCP.format(domain=DOMAIN, id="backend")))

    def echo(port):
        try:
            # A proxy that resets what it accepts may do so before connect(2) is back.
            with connected(port) as stream:
                stream.settimeout(10)
                stream.sendall(b"x")
                return stream.recv(1)
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            return b""

    eventually("both serve", lambda: pair.each(echo, pair.tcp) == (b"x", b"x"), 60)
    of.spire.stop_agent()
    eventually("the SVID has expired", lambda: not pair.proxy.is_ready(), 60)
    log = of.processes.log_of("backend")
    before = log.read_text()
    told("svidgate with an expired SVID", (echo(pair.tcp[1]), log.read_text()), (b"", before))
    # Its own was issued at another time.
    eventually("Traefik's SVID has expired", lambda: not echo(pair.tcp[0]), 60)
    check("expired" in log.read_text(), f"Traefik did not present it: {log.read_text()[-300:]}")
    pair.close()


# In this order: the first needs nothing registered, the last stops the agent.
IDENTITY = {
    "waiting for the first SVID": first_svid,
    "neither `ids` nor `trustDomain`": no_ids,
    "a TLS handshake timeout for TCP": handshake,
    "open connections after a change of trust": change_of_trust,
    "an expired SVID": expired,
}

ROWS = {**PLAIN, **IDENTITY}


def tried(row, look, given):
    """What falls short, if anything does."""
    begin = time.monotonic()
    try:
        look(given)
        return None
    except (world.Short, OSError, threading.BrokenBarrierError) as error:
        return f"{row}: {error!r}"
    finally:
        if os.environ.get("INTEROP_TRACE"):
            print(f"  {row}: {time.monotonic() - begin:.1f} s", flush=True)


def running():
    """All wait more than they work: those with an identity of their own one
    after the other, the rest beside them."""
    with Processes() as processes, concurrent.futures.ThreadPoolExecutor(4) as threads:
        others = [threads.submit(tried, row, look, processes) for row, look in PLAIN.items()]
        identity = Identity(processes)
        faults = [tried(row, look, identity) for row, look in IDENTITY.items()]
        faults += [it.result() for it in others]
    faults = [it for it in faults if it]
    check(not faults, "; ".join(faults))
    return f"{len(ROWS)} more rows hold, of running proxies: timeouts, broken connections, pools, reloads, the life of an identity"
