#!/usr/bin/env python3
"""svidgate with real peers: SPIRE, go-spiffe, Python, nginx, HAProxy, Envoy,
Traefik and real clients. Prints a line per scenario and a count; exits 1 if
one fell short.

usage: run.py [--readme] [part ...]
--readme writes the table of peers and versions into README.md.

Installs what is missing, by the versions in versions.toml, outside the tree:
$XDG_CACHE_HOME/svidgate-interop. From the distribution it installs as root.
"""

import argparse
import hashlib
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import traceback

from world import CACHE, VERSIONS, which

HERE = pathlib.Path(__file__).resolve().parent


def venv():
    """The directory of an environment with exactly the pinned packages."""
    pins = [f"{name}=={version}" for name, version in VERSIONS["pypi"].items()]
    key = hashlib.sha256(f"{sys.version}{pins}".encode()).hexdigest()[:12]
    place = CACHE / f"venv-{key}"
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [place / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *pins], check=True)
        (place / "complete").touch()
    return place


def go_programs():
    """SPIRE's programs and our peers, compiled once for each set of versions."""
    go = shutil.which("go") or "/usr/local/go/bin/go"
    if not pathlib.Path(go).exists():
        sys.exit("Go is needed for SPIRE and go-spiffe: https://go.dev/dl")
    for name, version in VERSIONS["go"].items():
        pinned = [(HERE / f"{it}/go.mod").read_text() for it in ("go-spire", "go-peers")]
        if not any(re.search(rf"{re.escape(name)} {re.escape(version)}\b", text) for text in pinned):
            sys.exit(f"versions.toml has {name} {version}, and no go.mod has it")
    binaries = CACHE / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(binaries)}
    # The sums are part of the key: what is cached is what is pinned.
    for name, targets in {
        "go-spire": ["github.com/spiffe/spire/cmd/spire-agent", "github.com/spiffe/spire/cmd/spire-server"],
        "go-peers": ["."],
    }.items():
        sources = b"".join(path.read_bytes() for path in sorted((HERE / name).iterdir()))
        stamp = CACHE / f"{name}-{hashlib.sha256(sources).hexdigest()[:12]}"
        if not stamp.exists():
            begin = time.monotonic()
            subprocess.run([go, "install", "-trimpath", *targets], cwd=HERE / name, env=environment, check=True)
            stamp.touch()
            print(f"compiled {name} in {time.monotonic() - begin:.0f} s", flush=True)


def from_distribution():
    missing = [package for program, package in VERSIONS["debian"].items() if not which(program)]
    if missing:
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
        if os.getuid() != 0 or not shutil.which("apt-get"):
            sys.exit(f"these are needed: {' '.join(missing)}; as root this installs them (Debian)")
        subprocess.run(["apt-get", "update"], stdout=subprocess.DEVNULL)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main():
    parts = ["spire", "gospiffe", "python", "proxies", "traefik", "clients"]
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--readme", action="store_true", help="write the table into README.md")
    arguments.add_argument("parts", nargs="*", metavar="part", help=", ".join(parts))
    options = arguments.parse_args()
    for part in options.parts:
        if part not in parts:
            arguments.error(f"{part} is not one of {', '.join(parts)}")
    place = venv()
    if pathlib.Path(sys.prefix).resolve() != place.resolve():
        go_programs()
        from_distribution()
        os.execv(place / "bin/python", [str(place / "bin/python"), __file__, *sys.argv[1:]])
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
