"""The proxies that `bench.py` compares, in the same roles, one process each.

Every proxy has the entry points of `ENTRIES`, as far as it can:

http    HTTP/1.1 to a mutual TLS backend over kept connections, with the fields
        that svidgate adds, and timeouts on
close   the same, to a backend that closes each connection: a handshake a request
tcp     a TCP tunnel, plaintext to mutual TLS
plain   a TCP tunnel, plaintext on both sides
grpc    HTTP/2 in plaintext to HTTP/2 over mutual TLS
"""

import dataclasses
import pathlib
import re
import subprocess
import sys

from world import ROOT, SVIDGATE, VERSIONS, eventually, find_nginx, free_port, which

ENTRIES = ("http", "close", "tcp", "plain", "grpc")
CADDY = VERSIONS["bench"]["caddyserver"]


@dataclasses.dataclass
class Peer:
    name: str
    version: str
    pid: int
    ports: dict


@dataclasses.dataclass
class Scene:
    """What all have in common: a directory with certificates, the addresses of
    the backends, and how many workers."""

    processes: object
    backends: dict
    workers: int = 1
    # Routers before the one that matches; of svidgate alone.
    routes: int = 1

    @property
    def directory(self):
        return self.processes.directory

    def start(self, name, version, command, conf, suffix, without=()):
        """Writes `conf` with all that is known, and starts `command` on it."""
        ports = {entry: free_port() for entry in ENTRIES if entry not in without}
        known = {f"{entry}_port": port for entry, port in ports.items()}
        known |= {f"{which}_backend": port for which, port in self.backends.items()}
        name = f"{name}-{self.workers}" + (f"-{self.routes}" if self.routes > 1 else "")
        for key, value in {**known, "dir": self.directory, "workers": self.workers, "name": name}.items():
            conf = conf.replace(f"@{key}@", str(value))
        file = self.processes.write(f"{name}.{suffix}", conf)
        command = [str(part).replace("CONF", str(file)) for part in command]
        process = self.processes.start(name, command, ports["http"])
        return Peer(name.split("-")[0], version, process.pid, ports), process


def said(*command):
    """What a program says of its version."""
    done = subprocess.run([str(it) for it in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr).group(0)


NGINX_PATHS = """
  client_body_temp_path @dir@/@name@-1; proxy_temp_path @dir@/@name@-2; fastcgi_temp_path @dir@/@name@-3;
  uwsgi_temp_path @dir@/@name@-4; scgi_temp_path @dir@/@name@-5;
"""

BACKEND_CONF = (
    """
worker_processes 1; daemon off; pid @dir@/@name@.pid; error_log @dir@/@name@.err;
events { worker_connections 16384; }
http {
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;
"""
    + NGINX_PATHS
    + """
  ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_certificate @dir@/backend.pem; ssl_certificate_key @dir@/backend.key;
  ssl_client_certificate @dir@/ca.pem; ssl_verify_client on;
  server {
    listen 127.0.0.1:@kept@ ssl backlog=16384;
    location / { return 200 "hello\\n"; }
    location /big { root @dir@/files; }
  }
  server {
    listen 127.0.0.1:@closing@ ssl backlog=16384; keepalive_timeout 0;
    location / { return 200 "hello\\n"; }
  }
  server {
    listen 127.0.0.1:@open@ backlog=16384;
    location /big { root @dir@/files; sendfile on; }
  }
}
"""
)


def start_backend(processes):
    """nginx as the backend of all: ports of what keeps, closes, and is in plaintext."""
    ports = {"kept": free_port(), "closing": free_port(), "open": free_port()}
    conf = BACKEND_CONF
    for key, value in {**ports, "dir": processes.directory, "name": "backend"}.items():
        conf = conf.replace(f"@{key}@", str(value))
    file = processes.write("backend.conf", conf)
    processes.start("backend", [find_nginx(), "-c", file, "-e", processes.directory / "backend.err"], ports["open"])
    return ports


def scene(processes, content):
    """A Workload API with certificates for all, and the backend with `content`
    at /big/file."""
    processes.start("world", [ROOT / "target/release/examples/world", processes.directory])
    eventually("the Workload API", lambda: (processes.directory / "agent.sock").exists())
    big = processes.directory / "files/big/file"
    big.parent.mkdir(parents=True)
    big.write_bytes(content)
    return Scene(processes, {**start_backend(processes), "grpc": free_port()})


SVIDGATE_CONF = """
[log]
level = "WARN"
[spiffe]
workloadAPIAddr = "unix://@dir@/agent.sock"
[entryPoints]
http.address = "127.0.0.1:@http_port@"
close.address = "127.0.0.1:@close_port@"
tcp.address = "127.0.0.1:@tcp_port@"
plain.address = "127.0.0.1:@plain_port@"
grpc.address = "127.0.0.1:@grpc_port@"
@more@
[http.routers]
http = { rule = "PathPrefix(`/`)", entryPoints = ["http"], service = "http" }
close = { rule = "PathPrefix(`/`)", entryPoints = ["close"], service = "close" }
grpc = { rule = "PathPrefix(`/`)", entryPoints = ["grpc"], service = "grpc" }
[http.services]
http.loadBalancer = { serversTransport = "h1", servers = [{ url = "https://127.0.0.1:@kept_backend@" }] }
close.loadBalancer = { serversTransport = "h1", servers = [{ url = "https://127.0.0.1:@closing_backend@" }] }
grpc.loadBalancer = { serversTransport = "h2", servers = [{ url = "https://127.0.0.1:@grpc_backend@" }] }
[http.serversTransports.h1]
disableHTTP2 = true
maxIdleConnsPerHost = 4096
[http.serversTransports.h1.spiffe]
ids = ["spiffe://bench.test/backend"]
[http.serversTransports.h2.spiffe]
ids = ["spiffe://bench.test/svidgate"]
[tcp.routers]
tcp = { rule = "HostSNI(`*`)", entryPoints = ["tcp"], service = "tcp" }
plain = { rule = "HostSNI(`*`)", entryPoints = ["plain"], service = "plain" }
[tcp.services]
tcp.loadBalancer = { serversTransport = "t", servers = [{ address = "127.0.0.1:@kept_backend@", tls = true }] }
plain.loadBalancer.servers = [{ address = "127.0.0.1:@open_backend@" }]
[tcp.serversTransports.t.tls.spiffe]
ids = ["spiffe://bench.test/backend"]
"""


def svidgate(scene, binary=SVIDGATE, name="svidgate"):
    more = [
        f'[http.routers.r{n}]\nrule = "Host(`{n}.test`) && PathPrefix(`/{n}/`)"\nentryPoints = ["http"]\nservice = "http"\n'
        for n in range(1, scene.routes)
    ]
    conf = SVIDGATE_CONF.replace("@more@", "".join(more))
    command = [binary, "--config", "CONF", "--workers", scene.workers]
    return scene.start(name, said(binary, "--version"), command, conf, "toml")


NGINX_CONF = (
    """
worker_processes @workers@; daemon off; pid @dir@/@name@.pid; error_log @dir@/@name@.err;
events { worker_connections 16384; }
http {
  access_log off; keepalive_requests 1000000000; keepalive_timeout 180s;
"""
    + NGINX_PATHS
    + """
  proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Proto http; proxy_set_header X-Forwarded-Host $http_host;
  proxy_set_header X-Real-Ip $remote_addr; proxy_set_header Via "1.1 nginx";
  proxy_ssl_certificate @dir@/proxy.pem; proxy_ssl_certificate_key @dir@/proxy.key;
  proxy_ssl_trusted_certificate @dir@/ca.pem; proxy_ssl_verify off; proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse off;
  grpc_ssl_certificate @dir@/proxy.pem; grpc_ssl_certificate_key @dir@/proxy.key;
  grpc_ssl_verify off; grpc_ssl_protocols TLSv1.3; grpc_ssl_session_reuse off;
  upstream kept { server 127.0.0.1:@kept_backend@; keepalive 4096; keepalive_requests 1000000000; }
  upstream calls { server 127.0.0.1:@grpc_backend@; keepalive 256; keepalive_requests 1000000000; }
  server { listen 127.0.0.1:@http_port@ reuseport backlog=16384; location / { proxy_pass https://kept; } }
  server { listen 127.0.0.1:@close_port@ reuseport backlog=16384; location / { proxy_pass https://127.0.0.1:@closing_backend@; } }
  server { listen 127.0.0.1:@grpc_port@ reuseport; http2 on; location / { grpc_pass grpcs://calls; } }
}
stream {
  server {
    listen 127.0.0.1:@tcp_port@ reuseport; proxy_pass 127.0.0.1:@kept_backend@; proxy_ssl on;
    proxy_ssl_certificate @dir@/proxy.pem; proxy_ssl_certificate_key @dir@/proxy.key; proxy_ssl_protocols TLSv1.3;
    proxy_ssl_session_reuse off;
  }
  server { listen 127.0.0.1:@plain_port@ reuseport; proxy_pass 127.0.0.1:@open_backend@; }
}
"""
)


def nginx(scene):
    program = find_nginx()
    return scene.start("nginx", said(program, "-v"), [program, "-c", "CONF", "-e", scene.directory / "nginx.err"], NGINX_CONF, "conf")


HAPROXY_CONF = """
global
  nbthread @workers@
  maxconn 7400
  # Or it closes idle connections to backends above a quarter of its descriptors,
  # and at 4096 clients makes a TLS connection for most requests.
  tune.pool-low-fd-ratio 90
  tune.pool-high-fd-ratio 95
defaults
  timeout client 60s
  timeout server 60s
  timeout connect 30s
  timeout http-request 60s
  timeout http-keep-alive 180s
  mode http
  http-reuse always
frontend kept
  bind 127.0.0.1:@http_port@ backlog 16384
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Real-Ip %[src]
  http-request set-header Via "1.1 haproxy"
  default_backend kept
frontend closing
  bind 127.0.0.1:@close_port@
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Real-Ip %[src]
  http-request set-header Via "1.1 haproxy"
  default_backend closing
frontend calls
  bind 127.0.0.1:@grpc_port@ proto h2
  default_backend calls
backend kept
  server s 127.0.0.1:@kept_backend@ ssl verify required ca-file @dir@/ca.pem crt @dir@/proxy.both.pem ssl-min-ver TLSv1.3 no-ssl-reuse pool-max-conn 4096 pool-purge-delay 180s
backend closing
  server s 127.0.0.1:@closing_backend@ ssl verify required ca-file @dir@/ca.pem crt @dir@/proxy.both.pem ssl-min-ver TLSv1.3 no-ssl-reuse
backend calls
  server s 127.0.0.1:@grpc_backend@ ssl verify required ca-file @dir@/ca.pem crt @dir@/proxy.both.pem ssl-min-ver TLSv1.3 no-ssl-reuse alpn h2
listen tunnel
  mode tcp
  bind 127.0.0.1:@tcp_port@
  server s 127.0.0.1:@kept_backend@ ssl verify required ca-file @dir@/ca.pem crt @dir@/proxy.both.pem ssl-min-ver TLSv1.3 no-ssl-reuse
listen plain
  mode tcp
  bind 127.0.0.1:@plain_port@
  option splice-auto
  server s 127.0.0.1:@open_backend@
"""


def haproxy(scene):
    program = which("haproxy")
    return scene.start("haproxy", said(program, "-v"), [program, "-f", "CONF"], HAPROXY_CONF, "cfg")


ENVOY_CONF = """
admin: {}
static_resources:
  listeners:
@listeners@
  clusters:
@clusters@
"""

ENVOY_HTTP = """
  - name: @entry@
    address: {socket_address: {address: 127.0.0.1, port_value: @@entry@_port@}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: @entry@
          codec_type: AUTO
          use_remote_address: true
          via: "1.1 envoy"
          request_timeout: 60s
          common_http_protocol_options: {idle_timeout: 180s}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              request_headers_to_add:
              - {header: {key: X-Real-Ip, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}
              - {header: {key: X-Forwarded-Host, value: "%REQ(:authority)%"}}
              routes:
              - {match: {prefix: /}, route: {cluster: @entry@, timeout: 60s}}
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"""

ENVOY_TCP = """
  - name: @entry@
    address: {socket_address: {address: 127.0.0.1, port_value: @@entry@_port@}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: @entry@
          cluster: @entry@
"""

ENVOY_CLUSTER = """
  - name: @entry@
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {thresholds: [{max_connections: 16384, max_pending_requests: 16384, max_requests: 16384}]}
    load_assignment:
      cluster_name: @entry@
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: @@backend@_backend@}}}}]}]
"""

ENVOY_TLS = """
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        max_session_keys: 0
        common_tls_context:
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
          tls_certificates: [{certificate_chain: {filename: @dir@/proxy.pem}, private_key: {filename: @dir@/proxy.key}}]
          validation_context:
            trusted_ca: {filename: @dir@/ca.pem}
            match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: "spiffe://bench.test/"}}]
"""

ENVOY_HTTP2 = """
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
"""


def envoy(scene):
    program = next(pathlib.Path(sys.prefix).glob("lib/python*/site-packages/envoy/_bin/envoy"))
    listeners = [ENVOY_HTTP.replace("@entry@", it) for it in ("http", "close", "grpc")]
    listeners += [ENVOY_TCP.replace("@entry@", it) for it in ("tcp", "plain")]
    clusters = []
    for entry, backend in {"http": "kept", "close": "closing", "tcp": "kept", "plain": "open", "grpc": "grpc"}.items():
        cluster = ENVOY_CLUSTER + (ENVOY_HTTP2 if entry == "grpc" else "") + ("" if entry == "plain" else ENVOY_TLS)
        clusters.append(cluster.replace("@entry@", entry).replace("@backend@", backend))
    conf = ENVOY_CONF.replace("@listeners@", "".join(listeners)).replace("@clusters@", "".join(clusters))
    command = [program, "-c", "CONF", "--concurrency", scene.workers, "-l", "warning", "--base-id", 3000 + scene.workers]
    return scene.start("envoy", said(program, "--version"), command, conf, "yaml")


TRAEFIK_STATIC = """
[log]
level = "ERROR"
[spiffe]
workloadAPIAddr = "unix://@dir@/agent.sock"
[entryPoints]
http.address = "127.0.0.1:@http_port@"
close.address = "127.0.0.1:@close_port@"
tcp.address = "127.0.0.1:@tcp_port@"
plain.address = "127.0.0.1:@plain_port@"
grpc.address = "127.0.0.1:@grpc_port@"
[providers.file]
filename = "@dir@/traefik-dynamic.toml"
"""


def traefik(scene):
    program = pathlib.Path(sys.prefix, "bin/traefik")
    # What svidgate takes from one file stands in two of Traefik's.
    dynamic = "[http.routers]" + SVIDGATE_CONF.split("[http.routers]")[1]
    for which, port in scene.backends.items():
        dynamic = dynamic.replace(f"@{which}_backend@", str(port))
    scene.processes.write("traefik-dynamic.toml", dynamic)
    command = ["env", f"GOMAXPROCS={scene.workers}", program, "--configFile", "CONF"]
    return scene.start("traefik", said(program, "version"), command, TRAEFIK_STATIC, "toml")


CADDY_CONF = """
{
  admin off
  auto_https off
  persist_config off
  log default {
    level ERROR
  }
  servers {
    protocols h1 h2c
  }
}
(tls) {
  tls
  tls_client_auth @dir@/proxy.pem @dir@/proxy.key
  tls_insecure_skip_verify
  keepalive_idle_conns 4096
  keepalive_idle_conns_per_host 4096
}
http://127.0.0.1:@http_port@, http://localhost:@http_port@ {
  reverse_proxy https://127.0.0.1:@kept_backend@ {
    transport http {
      import tls
      versions 1.1
    }
  }
}
http://127.0.0.1:@close_port@ {
  reverse_proxy https://127.0.0.1:@closing_backend@ {
    transport http {
      import tls
      versions 1.1
    }
  }
}
http://127.0.0.1:@grpc_port@ {
  reverse_proxy https://127.0.0.1:@grpc_backend@ {
    transport http {
      import tls
      versions 2
    }
  }
}
"""


def caddy(scene):
    program = next(it for it in pathlib.Path(sys.prefix).glob("bin/caddy*") if it.is_file())
    command = ["env", f"GOMAXPROCS={scene.workers}", f"HOME={scene.directory}", program, "run", "--adapter", "caddyfile", "--config", "CONF"]
    return scene.start("caddy", CADDY, command, CADDY_CONF, "caddyfile", without=("tcp", "plain"))


ALL = {it.__name__: it for it in (svidgate, haproxy, nginx, envoy, traefik, caddy)}
