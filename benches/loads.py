"""What is put on a proxy, and what it costs: loads by wrk and h2load, CPU and
memory from the kernel."""

import collections
import pathlib
import re
import struct
import subprocess
import tempfile
import time

Load = collections.namedtuple("Load", "requests bytes")
SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def pids_of(parent):
    """A process and its children."""
    found = [parent]
    for task in pathlib.Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += pids_of(int(child))
    return found


def cpu_of(parent):
    """Seconds that a process, its threads and its children have run."""
    nanoseconds = 0
    for pid in pids_of(parent):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            try:
                nanoseconds += int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                # A thread that has ended meanwhile.
                pass
    return nanoseconds / 1e9


def resident(parent):
    """Bytes of memory that a process and its children have resident."""
    total = 0
    for pid in pids_of(parent):
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
        total += int(re.search(r"^VmRSS:\s+(\d+)", text, re.MULTILINE).group(1)) * 1024
    return total


def output_of(*command):
    done = subprocess.run([str(it) for it in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


def wrk(port, path, connections, seconds):
    """As much as goes."""
    out = output_of("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", f"http://127.0.0.1:{port}{path}")
    requests = int(re.search(r"(\d+) requests in", out).group(1))
    size, suffix = re.search(r"requests in [^,]+, ([\d.]+)([KMGT]?)B read", out).groups()
    if "Non-2xx" in out or "Socket errors" in out or not float(size):
        raise SystemExit(f"{port}{path}: {out}")
    return Load(requests, float(size) * SUFFIXES[suffix])


def crowd(peer, port, connections, warm, seconds):
    """CPU for each request of so many connections. It counts when all have had
    `warm` seconds: who ends a request early takes the proxy's connection to the
    backend with it, so one load has to do for both."""
    command = ["h2load", "--h1", "-t1", f"-c{connections}", f"-D{seconds}", f"--warm-up-time={warm}", f"http://127.0.0.1:{port}/"]
    load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)
    time.sleep(warm)
    before = cpu_of(peer.pid)
    time.sleep(seconds)
    used = cpu_of(peer.pid) - before
    out = load.communicate()[0]
    done, failed = map(int, re.search(r"(\d+) succeeded, (\d+) failed", out).groups())
    if failed or not done:
        raise SystemExit(f"{port}: {out}")
    return used / done


def latency(port, rate, seconds):
    """The 99th of 100 answers, in seconds, at `rate` requests a second."""
    clients = 32
    with tempfile.NamedTemporaryFile("r") as log:
        each = rate / clients
        command = ["h2load", "--h1", "-t1", f"-c{clients}", f"--rps={each:.3f}", f"-D{seconds}", f"--log-file={log.name}"]
        output_of(*command, f"http://127.0.0.1:{port}/")
        lines = [line.split() for line in log.read().splitlines()]
    if not lines or any(status != "200" for _, status, _ in lines):
        raise SystemExit(f"{port}: not all answers are 200")
    times = sorted(int(microseconds) for _, _, microseconds in lines)
    return times[len(times) * 99 // 100] / 1e6


def call_of(directory):
    """A file with the request of a gRPC health check."""
    message = b"\n\x07interop"
    path = pathlib.Path(directory, "call")
    path.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    return path


def calls(port, call, seconds):
    """gRPC unary calls that were answered."""
    fields = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    url = f"http://127.0.0.1:{port}/grpc.health.v1.Health/Check"
    out = output_of("h2load", "-t1", "-c8", "-m16", f"-D{seconds}", "-d", call, *fields, url)
    done, failed = map(int, re.search(r"(\d+) succeeded, (\d+) failed", out).groups())
    good = int(re.search(r"status codes: (\d+) 2xx", out).group(1))
    if failed or not done or good < done:
        raise SystemExit(f"{port}: {out}")
    return done
