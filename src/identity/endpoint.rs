//! Where the Workload API is: the address forms of the SPIFFE Workload
//! Endpoint standard, section 4.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use spiffe::transport::Endpoint;

/// The environment variable that the standard names.
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Parses `unix:///absolute/path`, `unix:/absolute/path` or `tcp://IP:port`.
///
/// Unix paths are taken as they are: no percent-decoding, no normalisation.
///
/// # Errors
/// What is wrong, and what to write instead.
pub fn parse(text: &str) -> Result<Endpoint, String> {
    let expected = "write \"unix:///absolute/path\" or \"tcp://IP:port\"";
    let Some((scheme, rest)) = text.split_once(':') else {
        let hint = if text.starts_with('/') {
            format!("write \"unix://{text}\"")
        } else if text == "localhost" {
            format!(
                "Traefik's documentation shows \"localhost\", which Traefik does not take either; {expected}"
            )
        } else {
            expected.to_owned()
        };
        return Err(format!("\"{text}\" has no scheme; {hint}"));
    };
    if scheme.eq_ignore_ascii_case("unix") {
        let path = match rest.strip_prefix("//") {
            Some(path) if path.starts_with('/') => path,
            Some(other) => {
                return Err(format!(
                    "\"{text}\" names a host where a unix address has none; write \"unix:///{other}\""
                ));
            }
            None => rest,
        };
        if !path.starts_with('/') {
            return Err(format!(
                "the path of \"{text}\" is not absolute; write \"unix:///absolute/path\""
            ));
        }
        if path.len() == 1 {
            return Err(format!(
                "\"{text}\" names no socket; write \"unix:///absolute/path\""
            ));
        }
        if path.contains(['?', '#', '\0']) {
            return Err(format!(
                "\"{text}\" has a query, a fragment or a NUL, which a unix address must not have"
            ));
        }
        return Ok(Endpoint::Unix(PathBuf::from(path)));
    }
    if scheme.eq_ignore_ascii_case("tcp") {
        let address = rest.strip_prefix("//").unwrap_or(rest);
        let address = address.strip_suffix('/').unwrap_or(address);
        return match address.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Endpoint::Tcp {
                host: address.ip(),
                port: address.port(),
            }),
            Ok(_) => Err(format!("the port of \"{text}\" is 0; write the agent's")),
            Err(_) if address.parse::<IpAddr>().is_ok() => {
                Err(format!("\"{text}\" has no port; write \"tcp://IP:port\""))
            }
            Err(_) => Err(format!(
                "\"{text}\" must give an IP address and a port, nothing else; write \"tcp://127.0.0.1:8081\", say"
            )),
        };
    }
    Err(format!("the scheme \"{scheme}\" is not known; {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<Endpoint, &str>) {
        assert_eq!(parse(text), expected.map_err(str::to_owned));
    }

    #[test]
    fn takes_the_forms_of_the_standard() {
        let unix = |path: &str| Ok(Endpoint::Unix(path.into()));
        check("unix:///run/a.sock", unix("/run/a.sock"));
        check("unix:/run/a.sock", unix("/run/a.sock"));
        check("UNIX:/run/a.sock", unix("/run/a.sock"));
        check(
            "unix:///run/my dir/ü%20.sock",
            unix("/run/my dir/ü%20.sock"),
        );
        let tcp = |host: &str| {
            Ok(Endpoint::Tcp {
                host: host.parse().unwrap(),
                port: 8081,
            })
        };
        check("tcp://127.0.0.1:8081", tcp("127.0.0.1"));
        check("tcp:127.0.0.1:8081", tcp("127.0.0.1"));
        check("tcp://[::1]:8081/", tcp("::1"));
    }

    #[test]
    fn explains_the_forms_it_refuses() {
        check(
            "localhost",
            Err(
                "\"localhost\" has no scheme; Traefik's documentation shows \"localhost\", which Traefik does not take either; write \"unix:///absolute/path\" or \"tcp://IP:port\"",
            ),
        );
        check(
            "/run/a.sock",
            Err("\"/run/a.sock\" has no scheme; write \"unix:///run/a.sock\""),
        );
        check(
            "unix://run/a.sock",
            Err(
                "\"unix://run/a.sock\" names a host where a unix address has none; write \"unix:///run/a.sock\"",
            ),
        );
        check(
            "unix:@abstract",
            Err("the path of \"unix:@abstract\" is not absolute; write \"unix:///absolute/path\""),
        );
        check(
            "tcp://127.0.0.1",
            Err("\"tcp://127.0.0.1\" has no port; write \"tcp://IP:port\""),
        );
        check(
            "tcp://localhost:8081",
            Err(
                "\"tcp://localhost:8081\" must give an IP address and a port, nothing else; write \"tcp://127.0.0.1:8081\", say",
            ),
        );
        check(
            "http://127.0.0.1:8081",
            Err(
                "the scheme \"http\" is not known; write \"unix:///absolute/path\" or \"tcp://IP:port\"",
            ),
        );
        check(
            "",
            Err("\"\" has no scheme; write \"unix:///absolute/path\" or \"tcp://IP:port\""),
        );
    }
}
