"""Traefik beside svidgate: how to start one, to ask both the same, and to look
at the README's rows of how they differ. Backends in plaintext for them, too."""

import concurrent.futures
import contextlib
import pathlib
import re
import socket
import sys
import threading

import world
from world import Proxy, eventually, free_port

TRAEFIK = pathlib.Path(sys.prefix, "bin/traefik")


ENTRY_POINTS = """
[entryPoints.web]
address = "127.0.0.1:{web}"
[entryPoints.tcp]
address = "127.0.0.1:{tcp}"
"""


def start(processes, name, program, dynamic, address, static='[log]\nlevel = "DEBUG"\n'):
    """The port of its entry point `web`."""
    port = free_port()
    start_with(processes, name, program, static + ENTRY_POINTS.format(web=port, tcp=free_port()), dynamic, address, port)
    return port


def start_with(processes, name, program, static, dynamic, address, port):
    spiffe = f'[spiffe]\nworkloadAPIAddr = "{address}"\n' if address else ""
    file = processes.write(f"{name}-dynamic.toml", dynamic)
    static = processes.write(f"{name}.toml", f'{static}{spiffe}[providers.file]\nfilename = "{file}"\n')
    return processes.start(name, [program, "--configFile", static], port, 60)


def ask(port, request):
    """Sends bytes; returns the status, or what came in its place, the fields
    and the content of the first final response."""
    try:
        stream = socket.create_connection(("127.0.0.1", port), 10)
    except ConnectionRefusedError:
        return "gone", {}, b""
    except ConnectionResetError:
        return "reset", {}, b""
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


def get(host="a.test", path="/", more="", method="GET", body=""):
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n{body}".encode("latin-1")


def rows():
    text = (world.ROOT / "README.md").read_text()
    table = text.split("## Differences from Traefik")[1].split("\n## ")[0]
    return {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")} - {"subject", "---"}

class Pair:
    """The same tables on both, each with entry points of its own: `web` and
    `tcp` are (Traefik's port, svidgate's)."""

    def __init__(self, processes, name, dynamic, static="", address=None, programs=(TRAEFIK, world.SVIDGATE), waits=True):
        self.web, self.tcp = (free_port(), free_port()), (free_port(), free_port())
        static = [static + ENTRY_POINTS.format(web=web, tcp=tcp) for web, tcp in zip(self.web, self.tcp)]
        self.log = f"{name}-traefik"
        api = free_port()
        static[0] += f'[api]\ninsecure = true\n[entryPoints.traefik]\naddress = "127.0.0.1:{api}"\n'
        self.traefik = start_with(processes, self.log, programs[0], static[0], dynamic, address, self.web[0])
        # It listens before it has read its routers.
        eventually("Traefik's routers", lambda: world.listens(api) and b"r@file" in world.get(api, "/api/rawdata")[2])
        self.static = processes.directory / f"{self.log}.toml"
        self.dynamic = processes.directory / f"{self.log}-dynamic.toml"
        self.proxy = Proxy(processes, static[1] + dynamic, f"{name}-svidgate", programs[1], address, waits)

    def each(self, look, ports=None):
        """What `look(port)` says of Traefik and of svidgate, both at once."""
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            return tuple(threads.map(look, ports or self.web))

    def close(self):
        # Asked to, it waits ten seconds for its connections.
        self.traefik.kill()
        self.proxy.stop()


class Backend:
    """A server in plaintext of this process: `serve(connection)` in a thread
    for each connection, which it closes."""

    def __init__(self, serve):
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.serve = serve
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            connection, _ = self.listener.accept()
            self.connections += 1
            threading.Thread(target=self.one, args=(connection,), daemon=True).start()

    def one(self, connection):
        with connection, contextlib.suppress(OSError):
            self.serve(connection)


def requests(connection):
    """The heads of the requests of a connection, their bodies read."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return
            data += piece
        head, _, data = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        length = int(length.group(1)) if length else 0
        while len(data) < length:
            data += connection.recv(65536)
        data = data[length:]
        yield head


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answers(connection):
    for _ in requests(connection):
        connection.sendall(OK)
