//! What the proxy changes in heads.

use super::*;

crate::on_both!(
    a_request_reaches_a_spiffe_backend_with_the_proxys_fields,
    hop_by_hop_fields_and_what_connection_names_are_removed,
    forwarding_claims_of_strangers_are_replaced,
    forwarding_claims_of_trusted_peers_are_kept_and_extended,
    h2c_is_not_offered_to_a_backend,
    a_204_has_no_length_even_to_head,
);

fn forwarded(host: &str, port: &str) -> String {
    format!(
        "Via: 1.1 svidgate\r\nX-Forwarded-For: 127.0.0.1\r\nX-Real-Ip: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Server: {}\r\nX-Forwarded-Host: {host}\r\nX-Forwarded-Port: {port}\r\n\r\n",
        host_name()
    )
}

fn a_request_reaches_a_spiffe_backend_with_the_proxys_fields(on: On) {
    let world = World::new();
    let backend = world.backend("spiffe://example.org/api", echo_heads);
    let proxy = world.http(on, &backend, IDS);
    let answer = proxy.talk(
        "web",
        "GET /v1/a%2Fb?q=1&r HTTP/1.1\r\nhOST: api.test:8080\r\nX-Odd: \u{e9}\tb\r\nConnection: close\r\n\r\n",
    );
    let (line, _, body) = split(&answer);
    assert_eq!(line, "HTTP/1.1 200 OK");
    let expected = format!(
        "GET /v1/a%2Fb?q=1&r HTTP/1.1\r\nHost: api.test:8080\r\nX-Odd: \u{e9}\tb\r\n{}",
        forwarded("api.test:8080", "8080")
    );
    assert_eq!(body, expected);
}

fn hop_by_hop_fields_and_what_connection_names_are_removed(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Private, X-Forwarded-Host\r\nX-Private: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\nProxy-Authorization: secret\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nContent_Length: 9\r\nX_Forwarded_For: 6.6.6.6\r\nX-Public: 2\r\n\r\n",
    );
    let (_, _, body) = split(&answer);
    assert_eq!(
        body,
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Public: 2\r\n{}",
            forwarded("a", "80")
        )
    );
}

fn forwarding_claims_of_strangers_are_replaced(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let answer = proxy.talk(
        "web",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /admin\r\n\r\n",
    );
    let (_, _, body) = split(&answer);
    assert_eq!(
        body,
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}", forwarded("a", "80"))
    );
}

fn forwarding_claims_of_trusted_peers_are_kept_and_extended(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(
        on,
        &backend,
        "forwardedHeaders.trustedIPs = [\"127.0.0.0/8\"]",
    );
    let answer = proxy.talk(
        "web",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\nX-Real-Ip: 192.0.2.1\r\nX-Forwarded-Host: b\r\n\r\n",
    );
    let (_, _, body) = split(&answer);
    assert_eq!(
        body,
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\nX-Real-Ip: 192.0.2.1\r\nX-Forwarded-Host: b\r\nVia: 1.1 svidgate\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\nX-Forwarded-Server: {}\r\n\r\n",
            host_name()
        )
    );
}

fn h2c_is_not_offered_to_a_backend(on: On) {
    let backend = Backend::plain(echo_heads);
    let proxy = plain_http(on, &backend, "");
    let mut client = proxy.connect("web");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\nGET / HTTP/1.0\r\nHost: a\r\n\r\n")
        .unwrap();
    let answers = read_to_end(&mut client);
    assert!(
        !answers.to_ascii_lowercase().contains("upgrade"),
        "{answers}"
    );
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
}

fn a_204_has_no_length_even_to_head(on: On) {
    let backend = answering("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n");
    let proxy = plain_http(on, &backend, "");
    assert_eq!(
        proxy.talk(
            "web",
            "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        ),
        "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    );
}
