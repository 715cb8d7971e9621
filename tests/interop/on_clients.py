"""Real clients in front: curl, a browser, psql. Behind: backends on go-spiffe."""

import json
import os
import pathlib
import pwd
import re
import shutil
import subprocess

import world
from world import DOMAIN, Lazy, Proxy, check, eventually, free_port, output

site = Lazy()
close = site.close
gates = {}


def version(program, pattern=r"(\d+\.\d+[.\d]*)"):
    path = shutil.which(program)
    return re.search(pattern, output(path, "--version")).group(1) if path else "?"


def web():
    """The port of a svidgate in front of the site."""
    if "site" not in gates:
        gates["site"] = site().gate("gate-site", site().peer("site", "site"), "/site")[0]
    return gates["site"]


def curl():
    port = web()
    base = ["curl", "--silent", "--show-error", "--max-time", "20"]
    url = f"http://127.0.0.1:{port}"
    large = site().processes.directory / "large"
    large.write_bytes(bytes(3_000_000))
    told = output(*base, "--upload-file", large, "--header", "Expect: 100-continue", f"{url}/upload")
    check(told == "HTTP/2.0 3000000", told)
    told = output(*base, "--http2-prior-knowledge", "--upload-file", large, f"{url}/upload")
    check(told == "HTTP/2.0 3000000", told)
    told = output(*base, "--http1.0", "--upload-file", large, f"{url}/upload")
    check(told == "HTTP/2.0 3000000", told)
    told = output(*base, "--form", f"file=@{large}", "--form", "name=v", f"{url}/upload")
    check(told == "v 3000000", told)
    for version_flag in "--http1.1", "--http2-prior-knowledge":
        told = output(*base, version_flag, "--head", "--write-out", "%{http_version} %{response_code}", "--output", "/dev/null", f"{url}/")
        check(told.split()[1] == "200", told)
        told = output(*base, version_flag, "--write-out", "%{http_version} %{response_code}", "--output", "/dev/null", f"{url}/none")
        check(told in ("1.1 404", "2 404"), told)
    asks = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Origin: http://a"]
    command = [*base[:-1], "2", "--include", "--http1.1", "--no-buffer"]
    for field in asks:
        command += ["--header", field]
    done = subprocess.run([*command, f"{url}/socket"], capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
    check(done.stdout.startswith(b"HTTP/1.1 101 "), done.stdout[:200])
    check(b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in done.stdout.lower(), done.stdout)
    return "uploads of 3 MB over HTTP/1.0, 1.1 (Expect) and 2, a form, HEAD, 404, a 101 for a WebSocket"


def browser():
    port = web()
    log = site().processes.log_of("site")
    profile = site().processes.directory / "chromium"
    command = [shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", f"http://127.0.0.1:{port}/"]
    process = site().processes.start("chromium", command, start_new_session=True)
    try:
        told = eventually("the browser tells", lambda: re.search(r"told (\{.*\})", log.read_text()), 60)
    finally:
        world.end(process)
    seen = json.loads(told.group(1))
    check(seen == {"upload": "value 200000", "events": "1,2,3", "socket": "one,70000"}, seen)
    eventually("the stream of events has ended upstream", lambda: "events: context canceled" in log.read_text(), 20)
    return "a page, a form with a file, server-sent events and a WebSocket"


def psql():
    postgres = pwd.getpwnam("postgres")
    directory = site().processes.directory / "postgres"
    directory.mkdir()
    os.chown(directory, postgres.pw_uid, postgres.pw_gid)
    binaries = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    port, tcp = free_port(), free_port()
    who = {"user": postgres.pw_uid, "group": postgres.pw_gid, "cwd": "/"}
    output(binaries / "initdb", "--pgdata", directory / "data", "--auth", "trust", "--no-sync", **who)
    command = [binaries / "postgres", "-D", directory / "data", "-p", port, "-h", "127.0.0.1", "-k", directory]
    site().processes.start("postgres", command, port, **who)
    backend = site().peer("database", "tcp", "/svidgate", "-tunnel-to", f"127.0.0.1:{port}")
    Proxy(
        site().processes,
        f"""
[entryPoints.db]
address = "127.0.0.1:{tcp}"
[tcp.routers.db]
rule = "HostSNI(`*`)"
entryPoints = ["db"]
service = "db"
[tcp.services.db.loadBalancer]
serversTransport = "t"
servers = [{{ address = "127.0.0.1:{backend}", tls = true }}]
[tcp.serversTransports.t.tls.spiffe]
ids = ["spiffe://{DOMAIN}/database"]
""",
        "gate-db",
        site().binary,
        site().spire.address,
    )
    ask = ["psql", "--host", "127.0.0.1", "--port", tcp, "--username", "postgres", "--no-psqlrc", "--tuples-only", "--no-align"]
    told = output(*ask, "--command", "select count(*), sum(length(repeat('x', 1000))) from generate_series(1, 20000)")
    check(told == "20000|20000000\n", told)
    told = output(*ask, "--command", "create table t as select g from generate_series(1, 100000) g", "--command", "copy t to stdout")
    check(told.split("\n")[1:100001] == [str(g) for g in range(1, 100001)], f"{len(told)} bytes")
    return "queries and a COPY of 100000 rows through the TCP tunnel"


def scenarios():
    return [
        (f"curl {version('curl')}", curl),
        (f"Chromium {version('chromium')}", browser),
        (f"psql {version('psql')}", psql),
    ]
