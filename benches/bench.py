#!/usr/bin/env python3
"""svidgate beside HAProxy, nginx, Envoy, Traefik and Caddy: what each costs.

All in one run, one after the other in each round, in front of the same nginx
over mutual TLS, under the same load. CPU is what the kernel's scheduler counts
for the proxy's own threads; load, proxy and backend share the machine's cores.
Everything is on loopback and ends with this script.

usage: bench.py [--rounds N] [--seconds S] [--only measure,...] [--peers name,...] [--smoke | --write]
--smoke  one short round of everything: that it runs, nothing more
--write  write benches/RESULTS.md and benches/results.svg
--own NAME=FILE  another build of svidgate, measured beside this one under that name

Installs what is missing: Python packages by exact version outside the tree, the
rest from the distribution. For `calls` it compiles the gRPC peer of `make interop`.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import resource
import socket
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests/interop"))

import install  # noqa: E402

if __name__ == "__main__":
    install.enter_venv({**install.VERSIONS["pypi"], **install.VERSIONS["bench"]})
    install.from_distribution({"haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client"})

import loads  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
from world import BIN, Processes  # noqa: E402

BIG_BYTES = 64 << 20
IDLE = 4000
FEW, MANY = 64, 4096
ROUTES = 1000


class Measure:
    """What is measured, in what unit, and on which entry point."""

    def __init__(self, title, unit, entry, take):
        self.title, self.unit, self.entry, self.take = title, unit, entry, take


def per_unit(entry, load):
    """CPU of a load, for each unit of it."""

    def take(peer, options):
        before = loads.cpu_of(peer.pid)
        units = load(peer.ports[entry], options)
        return (loads.cpu_of(peer.pid) - before) / units

    return take


def microseconds(take):
    return lambda peer, options: take(peer, options) * 1e6


def requests(connections):
    return lambda port, options: loads.wrk(port, "/", connections, options.seconds).requests


def crowd(peer, options):
    """Many connections, once each has one to the backend."""
    count, warm = (FEW, 1) if options.smoke else (MANY, 6)
    return loads.crowd(peer, peer.ports["http"], count, warm, options.seconds) * 1e6


def gigabytes(port, options):
    return loads.wrk(port, "/big/file", 4, options.seconds).bytes / 1e9


def calls(port, options):
    return loads.calls(port, options.call, options.seconds)


def latency(peer, options):
    return loads.latency(peer.ports["http"], options.rate, options.seconds) * 1e3


MEASURES = {
    "request": Measure("small GET, 64 connections", "µs CPU", "http", microseconds(per_unit("http", requests(FEW)))),
    "many": Measure("the same, 4096 connections", "µs CPU", "http", crowd),
    "p99": Measure("p99 at half load", "ms", "http", latency),
    "handshake": Measure("new mutual TLS connection", "µs CPU", "close", microseconds(per_unit("close", requests(16)))),
    "tunnel": Measure("TCP tunnel to mutual TLS", "CPU s/GB", "tcp", per_unit("tcp", gigabytes)),
    "body": Measure("HTTP body", "CPU s/GB", "http", per_unit("http", gigabytes)),
    "plain": Measure("TCP to TCP", "CPU s/GB", "plain", per_unit("plain", gigabytes)),
    "calls": Measure("gRPC unary call", "µs CPU", "grpc", microseconds(per_unit("grpc", calls))),
}
# Each on a process of its own.
MEMORY = {
    "start": Measure("at start", "MB", "http", None),
    "idle": Measure(f"idle connection, of {IDLE}", "KB", "http", None),
}
OWN = {
    "workers": Measure("small GET, two workers", "times one", "http", None),
    "routes": Measure(f"small GET, the last of {ROUTES} routers", "times one", "http", None),
}
TITLES = {**MEASURES, **MEMORY, **OWN}


def build(text):
    """A name and a program."""
    name, _, file = text.partition("=")
    file = pathlib.Path(file).resolve()
    if not name.isidentifier() or name in peers.ALL or not (file.is_file() and os.access(file, os.X_OK)):
        raise argparse.ArgumentTypeError(f"{text}: a new name, and a program, as in NAME=FILE")
    return name, file


def builds(options):
    """The names of svidgate."""
    return ["svidgate", *dict(options.own)]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=2)
    arguments.add_argument("--only", type=lambda it: it.split(","), default=list(TITLES))
    arguments.add_argument("--peers", type=lambda it: it.split(","), default=list(peers.ALL))
    arguments.add_argument("--own", type=build, action="append", default=[])
    arguments.add_argument("--smoke", action="store_true")
    arguments.add_argument("--write", action="store_true")
    options = arguments.parse_args()
    for name in options.only:
        if name not in TITLES:
            arguments.error(f"{name} is not one of {', '.join(TITLES)}")
    for name in options.peers:
        if name not in peers.ALL:
            arguments.error(f"{name} is not one of {', '.join(peers.ALL)}")
    if options.own and "svidgate" not in options.peers or len(dict(options.own)) < len(options.own):
        arguments.error("--own stands beside svidgate, and each has a name of its own")
    if options.smoke:
        options.rounds = options.seconds = 1
    # Both ends of every connection are here, in a proxy or in the backend.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with Processes() as processes:
        results = run(processes, options)
    ours = builds(options)
    print(report.table(results, TITLES))
    print(report.ratios(results, TITLES, ours))
    if options.write:
        report.write(results, TITLES, ours, options)


def run(processes, options):
    scene = peers.scene(processes, os.urandom(1 << 20) * (BIG_BYTES >> 20))
    backend = scene.backends["grpc"]
    options.call = loads.call_of(processes.directory)
    if "calls" in options.only:
        install.go_programs(["go-peers"])
        command = [BIN / "peers", "-socket", f"unix://{processes.directory}/agent.sock", "-listen"]
        command += [f"127.0.0.1:{backend}", "-allow", "spiffe://bench.test/svidgate", "grpc"]
        processes.start("calls", command, backend)
    results = {}

    def note(what, name, value):
        results.setdefault(name, {}).setdefault(what, []).append(value)

    starters = {}
    for name in options.peers:
        starters[name] = peers.ALL[name]
        if name == "svidgate":
            starters |= {name: functools.partial(peers.svidgate, binary=file, name=name) for name, file in options.own}
    memory(scene, starters, options, note)
    running = {}
    for name, start in starters.items():
        running[name], _ = start(scene)
        results.setdefault(name, {})["version"] = running[name].version
    if "p99" in options.only:
        # Half of what the fastest can: the same for all.
        rates = [loads.wrk(it.ports["http"], "/", FEW, options.seconds).requests / options.seconds for it in running.values()]
        options.rate = round(max(rates) / 2)
    for turn in range(options.rounds + (not options.smoke)):
        for what, measure in MEASURES.items():
            if what not in options.only:
                continue
            # Whoever comes first finds the machine otherwise: by turns.
            first = turn % len(running)
            for name, peer in [*running.items()][first:] + [*running.items()][:first]:
                if measure.entry not in peer.ports:
                    continue
                value = measure.take(peer, options)
                # The first round warms up.
                if turn or options.smoke:
                    note(what, name, value)
                    say(turn, what, name, value)
    own(scene, running, starters, options, note)
    return results


def say(turn, what, name, value):
    print(f"round {turn}: {what:<10} {name:<9} {value:8.2f} {TITLES[what].unit}", file=sys.stderr, flush=True)


def memory(scene, starters, options, note):
    """At start, and for each connection that has had an answer and waits."""
    if not {"start", "idle"} & set(options.only):
        return
    count = 200 if options.smoke else IDLE
    for name, start in starters.items():
        peer, process = start(scene)
        time.sleep(0.5)
        before = loads.resident(peer.pid)
        if "start" in options.only:
            note("start", name, before / 1e6)
            say(0, "start", name, before / 1e6)
        if "idle" in options.only:
            with contextlib.ExitStack() as waiting:
                for _ in range(count):
                    stream = waiting.enter_context(socket.create_connection(("127.0.0.1", peer.ports["http"]), 10))
                    stream.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
                    assert stream.recv(65536).startswith(b"HTTP/1.1 200")
                time.sleep(0.5)
                value = (loads.resident(peer.pid) - before) / count / 1e3
                note("idle", name, value)
                say(0, "idle", name, value)
        process.terminate()
        process.wait()


def own(scene, running, starters, options, note):
    """More workers, more routes: beside the one process of before, alternating."""
    for what, changed in {"workers": {"workers": 2}, "routes": {"routes": ROUTES}}.items():
        if what not in options.only:
            continue
        names = [name for name in running if what == "workers" or name in builds(options)]
        changed = peers.Scene(scene.processes, scene.backends, **changed)
        others = {name: starters[name](changed)[0] for name in names}
        take = MEASURES["request"].take
        for turn in range(options.rounds + (not options.smoke)):
            for name in names:
                ratio = take(others[name], options) / take(running[name], options)
                if turn or options.smoke:
                    note(what, name, ratio)
                    say(turn, what, name, ratio)


if __name__ == "__main__":
    main()
