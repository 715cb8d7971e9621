"""What real peers need, by exact version, outside the tree:
$XDG_CACHE_HOME/svidgate-interop. From the distribution it installs as root."""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from world import CACHE, VERSIONS, which

HERE = pathlib.Path(__file__).resolve().parent
GO_TARGETS = {
    "go-spire": ["github.com/spiffe/spire/cmd/spire-agent", "github.com/spiffe/spire/cmd/spire-server"],
    "go-peers": ["."],
}


def venv(packages):
    """The directory of an environment with exactly these packages."""
    pins = [f"{name}=={version}" for name, version in packages.items()]
    key = hashlib.sha256(f"{sys.version}{pins}".encode()).hexdigest()[:12]
    place = CACHE / f"venv-{key}"
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [place / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *pins], check=True)
        (place / "complete").touch()
    return place


def enter_venv(packages):
    """Runs the program anew with these packages, unless it has them."""
    place = venv(packages)
    if pathlib.Path(sys.prefix).resolve() != place.resolve():
        os.execv(place / "bin/python", [str(place / "bin/python"), *sys.argv])


def go_programs(names):
    """SPIRE's programs or our peers, compiled once for each set of versions."""
    go = shutil.which("go") or "/usr/local/go/bin/go"
    if not pathlib.Path(go).exists():
        sys.exit("Go is needed for SPIRE and go-spiffe: https://go.dev/dl")
    for name, version in VERSIONS["go"].items():
        pinned = [(HERE / f"{it}/go.mod").read_text() for it in GO_TARGETS]
        if not any(re.search(rf"{re.escape(name)} {re.escape(version)}\b", text) for text in pinned):
            sys.exit(f"versions.toml has {name} {version}, and no go.mod has it")
    binaries = CACHE / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(binaries)}
    for name in names:
        # The sums are part of the key: what is cached is what is pinned.
        sources = b"".join(path.read_bytes() for path in sorted((HERE / name).iterdir()))
        stamp = CACHE / f"{name}-{hashlib.sha256(sources).hexdigest()[:12]}"
        if not stamp.exists():
            begin = time.monotonic()
            subprocess.run([go, "install", "-trimpath", *GO_TARGETS[name]], cwd=HERE / name, env=environment, check=True)
            stamp.touch()
            print(f"compiled {name} in {time.monotonic() - begin:.0f} s", flush=True)


def from_distribution(packages):
    """Packages by the program that each is wanted for."""
    missing = [package for program, package in packages.items() if not which(program)]
    if missing:
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
        if os.getuid() != 0 or not shutil.which("apt-get"):
            sys.exit(f"these are needed: {' '.join(missing)}; as root this installs them (Debian)")
        subprocess.run(["apt-get", "update"], stdout=subprocess.DEVNULL)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
