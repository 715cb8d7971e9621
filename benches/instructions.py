#!/usr/bin/env python3
"""Instructions that parts of svidgate take, by callgrind: they do not wobble
with the machine's other work, as times do.

The parts of tests/micro run so often and twice as often, and the difference
counts. The whole program runs under callgrind between a load and a backend.
Valgrind knows no AVX-512, so cryptography takes more of them than it would.

usage: instructions.py [--write]
--write  write benches/INSTRUCTIONS.md
"""

import argparse
import pathlib
import re
import signal
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests/interop"))

import install  # noqa: E402

if __name__ == "__main__":
    install.enter_venv(install.VERSIONS["pypi"])
    install.from_distribution({"valgrind": "valgrind"})

import peers  # noqa: E402
from world import Processes, eventually, listens  # noqa: E402

MICRO = ROOT / "target/release/examples/micro"
CALLGRIND = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
REQUEST = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


def collected(text):
    return int(re.search(r"Collected : (\d+)", text).group(1))


def instructions_of(case, times):
    command = [*CALLGRIND, str(MICRO), case, str(times)]
    return collected(subprocess.run(command, capture_output=True, text=True, check=True).stderr)


def parts():
    cases = subprocess.run([MICRO], capture_output=True, text=True, check=True).stdout.splitlines()
    for case, unit in (line.split("\t") for line in cases):
        # What comes before varies, with the seeds of maps: often enough drowns it.
        times = 20 if case == "verifier" else 5000
        yield unit, (instructions_of(case, 2 * times) - instructions_of(case, times)) / times


def in_the_program(processes, scene, name, entry, work, units):
    """Instructions of `work(port)`, once it has been done before, for a unit."""
    log = processes.log_of(f"svidgate-{name}")
    start = processes.start

    def under_callgrind(given, command, port=None, seconds=90, **more):
        return start(f"svidgate-{name}", [*CALLGRIND, "--instr-atstart=no", *command], port, seconds, **more)

    processes.start = under_callgrind
    try:
        peer, process = peers.svidgate(scene, name=f"svidgate.{name}")
    finally:
        processes.start = start
    port = peer.ports[entry]
    # One entry point after the other listens, slowly.
    eventually(f"the entry point {entry}", lambda: listens(port))
    work(port)
    for switch in "on", "off":
        subprocess.run(["callgrind_control", "-i", switch, str(process.pid)], check=True, stdout=subprocess.DEVNULL)
        if switch == "on":
            work(port)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    return collected(log.read_text()) / units


def one_answer(stream):
    stream.sendall(REQUEST)
    answer = stream.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"hello\n"), answer


def requests(port):
    with socket.create_connection(("127.0.0.1", port), 30) as stream:
        for _ in range(500):
            one_answer(stream)


def sessions(port):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), 30) as stream:
            one_answer(stream)


def megabytes(port):
    with socket.create_connection(("127.0.0.1", port), 30) as stream:
        stream.sendall(b"GET /big/file HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        while stream.recv(1 << 20):
            pass


def program():
    with Processes() as processes:
        scene = peers.scene(processes, bytes(8 << 20))
        for unit, name, entry, work, units in (
            ("a small GET over kept connections, mutual TLS to the backend", "request", "http", requests, 500),
            ("a client connection with a request", "session", "http", sessions, 20),
            ("a request for which a mutual TLS connection is made", "handshake", "close", sessions, 20),
            ("a MiB of an HTTP body, out of TLS", "body", "http", megabytes, 8),
            ("a MiB through a TCP tunnel, out of TLS", "tunnel", "tcp", megabytes, 8),
            ("a MiB between plain sockets", "plain", "plain", megabytes, 8),
        ):
            yield unit, in_the_program(processes, scene, name, entry, work, units)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--write", action="store_true")
    options = arguments.parse_args()
    lines = ["| what | instructions |", "| --- | --- |"]
    for unit, count in (*parts(), *program()):
        lines.append(f"| {unit} | {count:,.0f} |")
        print(lines[-1], flush=True)
    if options.write:
        text = f"# Instructions\n\nWritten by `make bench-instructions`. In user space, by callgrind, of a release build.\n{__doc__.split('usage')[0].partition('.')[2].strip()}\n\n"
        (ROOT / "benches/INSTRUCTIONS.md").write_text(text.replace("\n\n\n", "\n\n") + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
