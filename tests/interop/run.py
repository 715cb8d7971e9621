#!/usr/bin/env python3
"""svidgate with real peers: SPIRE, go-spiffe, Python, nginx, HAProxy, Envoy,
Traefik and real clients. Prints a line per scenario and a count; exits 1 if
one fell short.

usage: run.py [--readme] [part ...]
--readme writes the table of peers and versions into README.md.

Installs what is missing (install.py), by the versions in versions.toml.
"""

import argparse
import importlib
import os
import pathlib
import sys
import time
import traceback

import install
from world import VERSIONS

HERE = pathlib.Path(__file__).resolve().parent


def main():
    parts = ["spire", "gospiffe", "python", "proxies", "traefik", "clients"]
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--readme", action="store_true", help="write the table into README.md")
    arguments.add_argument("parts", nargs="*", metavar="part", help=", ".join(parts))
    options = arguments.parse_args()
    for part in options.parts:
        if part not in parts:
            arguments.error(f"{part} is not one of {', '.join(parts)}")
    install.go_programs(install.GO_TARGETS)
    install.from_distribution(VERSIONS["debian"])
    install.enter_venv(VERSIONS["pypi"])
    results = []
    for part in options.parts or parts:
        module = importlib.import_module(f"on_{part}")
        try:
            results += [tried(peer, scenario) for peer, scenario in module.scenarios()]
        finally:
            module.close()
    failed = sum(not good for _, good, _ in results)
    print(f"{len(results) - failed} of {len(results)} scenarios hold")
    if options.readme and not options.parts and not failed:
        write_readme(results)
    sys.exit(1 if failed else 0)


def tried(peer, scenario):
    begin = time.monotonic()
    try:
        seen, good = scenario(), True
    except Exception as error:
        seen, good = f"{type(error).__name__}: {error}", False
        if os.environ.get("INTEROP_TRACE"):
            traceback.print_exc()
    took = time.monotonic() - begin
    print(f"{'ok  ' if good else 'FAIL'} {peer}: {seen} ({took:.0f} s)", flush=True)
    return peer, good, seen


def write_readme(results):
    rows = ["| peer | what was seen |", "| --- | --- |"]
    rows += [f"| {peer} | {seen} |".replace("\n", " ") for peer, _, seen in results]
    path = HERE.parents[1] / "README.md"
    begin, end = "<!-- interop: written by `make interop README=1` -->", "<!-- interop: end -->"
    text = path.read_text()
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    path.write_text("\n".join([f"{head}{begin}", "", *rows, "", f"{end}{tail}"]))


if __name__ == "__main__":
    main()
