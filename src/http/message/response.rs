//! A response head from an upstream: judged whole.

use std::ops::Range;

use super::head::{Connection, Declared, Head, Name, declared_framing, list};
use super::request::Method;
use super::{Framing, Refusal, Version};

/// What a response head says. Places are in the bytes of its [`Head`].
#[derive(Clone, Debug)]
pub struct Response {
    /// 100 to 599.
    pub status: u16,
    reason: Range<u32>,
    /// How the body ends.
    pub framing: Framing,
    /// The connection options.
    pub connection: Connection,
    /// The version that it came in.
    pub version: Version,
    /// Content was announced where none may be. It may come late, and would be
    /// taken for the next response.
    pub has_stray_length: bool,
}

impl Response {
    /// The reason phrase, as received.
    #[must_use]
    pub fn reason<'h>(&self, head: &'h Head) -> &'h [u8] {
        head.slice(&self.reason)
    }

    /// Whether another response follows for the same request.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// Whether the upstream will take another request on this connection,
    /// as far as its head says.
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        let by_version = self.version != Version::Http10 || self.connection.keep_alive;
        by_version
            && !self.has_stray_length
            && !self.connection.close
            && self.framing != Framing::UntilClose
    }
}

/// What the parts of a response head amount to. `to` is the request's method;
/// `ends`: nothing follows it, as HTTP/2 can tell.
pub(in crate::http) fn judge(
    head: &Head,
    status: u16,
    reason: Range<u32>,
    version: Version,
    to: Method,
    ends: bool,
) -> Result<Response, Refusal> {
    let connection = Connection::of(head).map_err(|refusal| Refusal::gateway(refusal.why))?;
    let declared = declared_framing(head, version).map_err(Refusal::gateway)?;
    let framing = match declared {
        Declared::UnknownCoding => {
            return Err(Refusal::gateway("the transfer coding is not known"));
        }
        // RFC 9112, section 6.3: these end with their head, whatever the
        // fields say.
        _ if to == Method::Head || status < 200 || status == 204 || status == 304 => Framing::Empty,
        Declared::Length(length) => Framing::Length(length),
        Declared::Chunked => Framing::Delimited,
        Declared::Nothing if version != Version::Http2 => Framing::UntilClose,
        Declared::Nothing if ends => Framing::Length(0),
        Declared::Nothing => Framing::Delimited,
    };
    Ok(Response {
        status,
        reason,
        framing,
        connection,
        version,
        has_stray_length: status == 204
            && !matches!(declared, Declared::Nothing | Declared::Length(0)),
    })
}

/// Whether a 101 names only protocols that were asked for.
#[must_use]
pub fn switches_to_what_was_asked(request: &Head, response: &Head) -> bool {
    let mut named = 0;
    for protocol in response.values(Name::Upgrade).flat_map(list) {
        named += 1;
        let asked = request
            .values(Name::Upgrade)
            .flat_map(list)
            .any(|asked| asked.eq_ignore_ascii_case(protocol));
        if !asked {
            return false;
        }
    }
    named > 0
}
