"""Peers in Python for `make interop`: python_peers.py SOCKET PORT ID KIND

spiffe   HTTP/1.1 through spiffe-tls, which admits the one ID
dial     a client on spiffe-tls, which wants that ID: prints the answer and ends
grpc     a gRPC server of grpcio with an SVID from the Workload API
Servers end with their stdin.
"""

import os
import sys
import threading

from spiffe import SpiffeId, X509Source

socket_path, port, allowed, kind = sys.argv[1:]


def ends_with_stdin():
    sys.stdin.buffer.read()
    os._exit(0)


def serve_spiffe():
    from OpenSSL import SSL
    from spiffetls import ListenOptions, ServerTlsMode, listen
    from spiffetls.tlsconfig.authorize import authorize_id

    options = ListenOptions(ServerTlsMode.MTLS, authorize_id(SpiffeId(allowed)), backlog=64)
    listener = listen(f"127.0.0.1:{port}", X509Source(socket_path=socket_path), options)

    def serve(connection):
        data = b""
        try:
            connection.do_handshake()
            while True:
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                head, _, data = data.partition(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
                length = int(fields.get("content-length", 0))
                while len(data) < length:
                    data += connection.recv(65536)
                data = data[length:]
                text = f"{lines[0]} {length}\n".encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        except SSL.Error as error:
            print("tls:", error, flush=True)
        except OSError as error:
            print("connection:", error, flush=True)

    while True:
        try:
            connection, _ = listener.accept()
        except SSL.Error as error:
            print("tls:", error, flush=True)
            continue
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def dial_spiffe():
    from spiffetls import ClientTlsMode, dial
    from spiffetls.tlsconfig.authorize import authorize_id

    source = X509Source(socket_path=socket_path)
    connection = dial(f"127.0.0.1:{port}", source, ClientTlsMode.TLS, authorize_id(SpiffeId(allowed)))
    connection.sendall(b"POST /dialled HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
    data = b""
    while not data.endswith(b"\n"):
        data += connection.recv(65536)
    print(data.decode(), end="", flush=True)
    # Its threads do not end with it.
    os._exit(0)


def serve_grpc():
    from concurrent import futures

    import grpc
    from cryptography.hazmat.primitives import serialization

    source = X509Source(socket_path=socket_path)
    pem = serialization.Encoding.PEM
    chain = b"".join(it.public_bytes(pem) for it in source.svid.cert_chain)
    plain = serialization.NoEncryption()
    key = source.svid.private_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    bundle = source.get_bundle_for_trust_domain(SpiffeId(allowed).trust_domain)
    roots = b"".join(it.public_bytes(pem) for it in bundle.x509_authorities)

    def peer(context):
        return context.auth_context()["x509_subject_alternative_name"][0].decode()

    def unary(request, context):
        if peer(context) != allowed:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, peer(context))
        context.set_trailing_metadata((("x-served", "python"),))
        return request[::-1]

    def both(requests, context):
        for request in requests:
            yield request[::-1]

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            return {
                "/interop.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
                "/interop.Echo/Both": grpc.stream_stream_rpc_method_handler(both),
            }.get(details.method)

    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Handler()])
    credentials = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    server.wait_for_termination()


if kind != "dial":
    threading.Thread(target=ends_with_stdin, daemon=True).start()
{"spiffe": serve_spiffe, "dial": dial_spiffe, "grpc": serve_grpc}[kind]()
