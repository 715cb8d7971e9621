//! Router rules: Traefik's expressions, parsed once, matched against a
//! request.
//!
//! `Name(args)` combined by `&&`, `||`, `!` and parentheses; strings in
//! backticks or double quotes. `Host`, `Path`, `PathPrefix`, `Method`,
//! `Header`, `Query` and `ClientIP` for HTTP, `HostSNI` for TCP.

pub mod index;

use std::borrow::Cow;
use std::net::IpAddr;

use crate::http::message::head::is_token;
use crate::http::message::request::check_path;
use crate::net::IpRange;

/// How deep parentheses and negations may nest.
const DEPTH_MAX: usize = 32;
/// Matchers in one rule. Rules are walked recursively, on a worker's stack.
const MATCHERS_MAX: usize = 1000;

/// A parsed rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rule {
    /// Both sides.
    And(Box<Self>, Box<Self>),
    /// Either side.
    Or(Box<Self>, Box<Self>),
    /// Not this.
    Not(Box<Self>),
    /// One matcher.
    Match(Matcher),
}

/// A matcher with its arguments.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Matcher {
    /// The host of the request, case ignored, without port and trailing dot.
    /// `*`: any; `*.x`: one label, then `x`.
    Host(String),
    /// The whole path.
    Path(String),
    /// The beginning of the path; a plain string prefix, as in Traefik.
    PathPrefix(String),
    /// The method, upper case.
    Method(String),
    /// A field of this name has exactly this value.
    Header(String, String),
    /// A query parameter of this name, with this value if there is one.
    Query(String, Option<String>),
    /// The address of the socket's other end.
    ClientIp(IpRange),
    /// ``HostSNI(`*`)``: every TCP connection.
    AnySni,
}

/// Which matchers a rule may use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layer {
    /// Of `http.routers`.
    Http,
    /// Of `tcp.routers`.
    Tcp,
}

/// What a rule looks at.
pub trait Subject {
    /// The host, without port and trailing dot.
    fn host(&self) -> &str;
    /// The path in the form that [`match_form`] gives.
    fn path(&self) -> &str;
    /// The method.
    fn method(&self) -> &[u8];
    /// The query, raw.
    fn query(&self) -> Option<&[u8]>;
    /// Whether a field of this name has this value.
    fn has_field(&self, name: &str, value: &str) -> bool;
    /// The socket's other end.
    fn client_ip(&self) -> IpAddr;
}

impl Rule {
    /// Parses a rule.
    ///
    /// # Errors
    /// What is wrong, and what to write instead.
    pub fn parse(text: &str, layer: Layer) -> Result<Self, String> {
        let mut parser = Parser {
            text,
            at: 0,
            layer,
            depth: 0,
            matchers: 0,
        };
        let rule = parser.any()?;
        match parser.token()? {
            None => Ok(rule),
            Some(token) => Err(format!(
                "{} is not expected after a complete rule",
                token.show()
            )),
        }
    }

    /// Whether the rule admits a request.
    pub fn matches(&self, subject: &impl Subject) -> bool {
        match self {
            Self::And(a, b) => a.matches(subject) && b.matches(subject),
            Self::Or(a, b) => a.matches(subject) || b.matches(subject),
            Self::Not(a) => !a.matches(subject),
            Self::Match(matcher) => matcher.matches(subject),
        }
    }

    /// Whether it tells paths apart, so that an ambiguous one must be refused.
    #[must_use]
    pub fn looks_at_path(&self) -> bool {
        match self {
            Self::And(a, b) | Self::Or(a, b) => a.looks_at_path() || b.looks_at_path(),
            Self::Not(a) => a.looks_at_path(),
            Self::Match(Matcher::PathPrefix(prefix)) => prefix != "/",
            Self::Match(Matcher::Path(_)) => true,
            Self::Match(_) => false,
        }
    }
}

impl Matcher {
    fn matches(&self, subject: &impl Subject) -> bool {
        match self {
            Self::Host(wanted) => host_matches(wanted, subject.host()),
            Self::Path(path) => subject.path() == path,
            Self::PathPrefix(prefix) => subject.path().starts_with(prefix.as_str()),
            Self::Method(method) => subject.method() == method.as_bytes(),
            Self::Header(name, value) => subject.has_field(name, value),
            Self::Query(name, value) => subject
                .query()
                .is_some_and(|query| query_matches(query, name, value.as_deref())),
            Self::ClientIp(range) => range.contains(subject.client_ip()),
            Self::AnySni => true,
        }
    }
}

fn host_matches(wanted: &str, host: &str) -> bool {
    if wanted == "*" {
        return true;
    }
    match wanted.strip_prefix("*.") {
        None => host.eq_ignore_ascii_case(wanted),
        Some(parent) => host
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent)),
    }
}

fn query_matches(query: &[u8], name: &str, value: Option<&str>) -> bool {
    query.split(|byte| *byte == b'&').any(|pair| {
        let mut parts = pair.splitn(2, |byte| *byte == b'=');
        let key = form_decode(parts.next().unwrap_or_default());
        key == name.as_bytes()
            && value.is_none_or(|value| {
                form_decode(parts.next().unwrap_or_default()) == value.as_bytes()
            })
    })
}

/// Undoes `application/x-www-form-urlencoded`.
fn form_decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return Cow::Owned(out),
            [b'%', high, low, after @ ..] if hex(*high).is_some() && hex(*low).is_some() => {
                out.push((hex(*high).unwrap_or(0) << 4) | hex(*low).unwrap_or(0));
                after
            }
            [b'+', after @ ..] => {
                out.push(b' ');
                after
            }
            [byte, after @ ..] => {
                out.push(*byte);
                after
            }
        };
    }
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// The form of a path that rules are matched against: escapes of unreserved
/// characters undone, those of all others with upper-case digits. The path
/// that is forwarded stays as it came.
#[must_use]
pub fn match_form(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let digits = escape.get(1..3).unwrap_or_default();
        match u8::from_str_radix(digits, 16) {
            Ok(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                out.push(char::from(byte));
            }
            _ => {
                out.push('%');
                out.push_str(&digits.to_ascii_uppercase());
            }
        }
        rest = escape.get(1 + digits.len()..).unwrap_or_default();
    }
    out.push_str(rest);
    Cow::Owned(out)
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    layer: Layer,
    depth: usize,
    matchers: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Token<'t> {
    And,
    Or,
    Not,
    Open,
    Close,
    Comma,
    Word(&'t str),
    Text(&'t str),
}

impl Token<'_> {
    fn show(&self) -> String {
        match self {
            Self::And => "`&&`".to_owned(),
            Self::Or => "`||`".to_owned(),
            Self::Not => "`!`".to_owned(),
            Self::Open => "`(`".to_owned(),
            Self::Close => "`)`".to_owned(),
            Self::Comma => "`,`".to_owned(),
            Self::Word(word) => format!("`{word}`"),
            Self::Text(text) => format!("the string \"{text}\""),
        }
    }
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn token(&mut self) -> Result<Option<Token<'t>>, String> {
        let trimmed = self.rest().trim_start();
        self.at = self.text.len() - trimmed.len();
        let Some(first) = trimmed.chars().next() else {
            return Ok(None);
        };
        let (token, len) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '!' => (Token::Not, 1),
            '&' if trimmed.starts_with("&&") => (Token::And, 2),
            '|' if trimmed.starts_with("||") => (Token::Or, 2),
            '`' | '"' => {
                let body = trimmed.get(1..).unwrap_or_default();
                let Some(end) = body.find(first) else {
                    return Err(format!("a string that begins with {first} does not end"));
                };
                let text = body.get(..end).unwrap_or_default();
                if first == '"' && text.contains('\\') {
                    return Err("a backslash in double quotes; use backticks".to_owned());
                }
                (Token::Text(text), end + 2)
            }
            _ if first.is_ascii_alphanumeric() => {
                let end = trimmed.find(|c: char| !c.is_ascii_alphanumeric());
                let end = end.unwrap_or(trimmed.len());
                (Token::Word(trimmed.get(..end).unwrap_or_default()), end)
            }
            _ => return Err(format!("`{first}` is not part of a rule")),
        };
        self.at += len;
        Ok(Some(token))
    }

    fn peek(&mut self) -> Result<Option<Token<'t>>, String> {
        let at = self.at;
        let token = self.token()?;
        self.at = at;
        Ok(token)
    }

    fn any(&mut self) -> Result<Rule, String> {
        let mut rule = self.all()?;
        while self.peek()? == Some(Token::Or) {
            self.token()?;
            rule = Rule::Or(Box::new(rule), Box::new(self.all()?));
        }
        Ok(rule)
    }

    fn all(&mut self) -> Result<Rule, String> {
        let mut rule = self.one()?;
        while self.peek()? == Some(Token::And) {
            self.token()?;
            rule = Rule::And(Box::new(rule), Box::new(self.one()?));
        }
        Ok(rule)
    }

    fn one(&mut self) -> Result<Rule, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("it nests deeper than {DEPTH_MAX}"));
        }
        let rule = match self.token()? {
            Some(Token::Not) => Ok(Rule::Not(Box::new(self.one()?))),
            Some(Token::Open) => {
                let rule = self.any()?;
                match self.token()? {
                    Some(Token::Close) => Ok(rule),
                    _ => Err("a `)` is missing".to_owned()),
                }
            }
            Some(Token::Word(name)) => {
                self.matchers += 1;
                if self.matchers > MATCHERS_MAX {
                    return Err(format!(
                        "it has more than {MATCHERS_MAX} matchers; write several routers"
                    ));
                }
                let arguments = self.arguments(name)?;
                matcher(name, &arguments, self.layer).map(Rule::Match)
            }
            Some(token) => Err(format!("{} where a matcher is expected", token.show())),
            None => Err("it ends where a matcher is expected".to_owned()),
        };
        self.depth -= 1;
        rule
    }

    fn arguments(&mut self, name: &str) -> Result<Vec<&'t str>, String> {
        if self.token()? != Some(Token::Open) {
            return Err(format!("write {name}(`…`)"));
        }
        let mut arguments = Vec::new();
        loop {
            match self.token()? {
                Some(Token::Text(text)) => arguments.push(text),
                Some(Token::Close) if arguments.is_empty() => return Ok(arguments),
                _ => return Err(format!("the arguments of {name} are strings in backticks")),
            }
            match self.token()? {
                Some(Token::Comma) => {}
                Some(Token::Close) => return Ok(arguments),
                _ => return Err(format!("a `)` is missing after the arguments of {name}")),
            }
        }
    }
}

const NAMES: [(&str, Layer); 8] = [
    ("Host", Layer::Http),
    ("Path", Layer::Http),
    ("PathPrefix", Layer::Http),
    ("Method", Layer::Http),
    ("Header", Layer::Http),
    ("Query", Layer::Http),
    ("ClientIP", Layer::Http),
    ("HostSNI", Layer::Tcp),
];

fn matcher(name: &str, arguments: &[&str], layer: Layer) -> Result<Matcher, String> {
    let known = NAMES.iter().find(|(known, _)| {
        // Traefik takes these spellings and no others.
        let lower = known.to_ascii_lowercase();
        name == *known
            || name == lower
            || name == known.to_ascii_uppercase()
            || name.strip_prefix(|c: char| c.is_ascii_uppercase()) == lower.get(1..)
                && name.to_ascii_lowercase() == lower
    });
    let Some((known, of)) = known else {
        let ours: Vec<&str> = NAMES
            .iter()
            .filter(|(_, of)| *of == layer)
            .map(|(name, _)| *name)
            .collect();
        return Err(format!(
            "the matcher {name} is not known; there are {}",
            ours.join(", ")
        ));
    };
    if *of != layer {
        return Err(match layer {
            Layer::Http => format!("{known} is for tcp.routers"),
            Layer::Tcp => format!("{known} is for http.routers; without TLS write HostSNI(`*`)"),
        });
    }
    if arguments.iter().any(|argument| argument.is_empty()) {
        return Err(format!("an argument of {known} is empty"));
    }
    match (*known, arguments) {
        ("Host", [host]) => host_argument(host),
        ("Path", [path]) => path_argument(path).map(Matcher::Path),
        ("PathPrefix", [path]) => path_argument(path).map(Matcher::PathPrefix),
        ("Method", [name]) | ("Header", [name, _]) if !is_token(name.as_bytes()) => Err(format!(
            "\"{name}\" is not a name that a request could have"
        )),
        ("Method", [method]) => Ok(Matcher::Method(method.to_ascii_uppercase())),
        ("Header", [name, value]) => Ok(Matcher::Header((*name).to_owned(), (*value).to_owned())),
        ("Query", [name]) => Ok(Matcher::Query((*name).to_owned(), None)),
        ("Query", [name, value]) => Ok(Matcher::Query(
            (*name).to_owned(),
            Some((*value).to_owned()),
        )),
        ("ClientIP", [range]) => IpRange::parse(range).map(Matcher::ClientIp),
        ("HostSNI", ["*"]) => Ok(Matcher::AnySni),
        ("HostSNI", [_]) => {
            Err("an entry point without TLS sees no server name; write HostSNI(`*`)".to_owned())
        }
        _ => Err(format!(
            "{known} takes {}, not {}; join several with ||",
            match *known {
                "Header" => "two arguments",
                "Query" => "one or two arguments",
                _ => "one argument",
            },
            arguments.len()
        )),
    }
}

fn host_argument(host: &str) -> Result<Matcher, String> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_host = host == "*"
        || (!name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte)));
    if !is_host {
        return Err(format!(
            "\"{host}\" is not a host; write a name, *.name or *, and non-ASCII names in their xn-- form"
        ));
    }
    if !host.starts_with('[') && name.contains(':') {
        return Err(format!(
            "\"{host}\" has a port; a Host matcher takes the name alone"
        ));
    }
    Ok(Matcher::Host(
        host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
    ))
}

fn path_argument(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err(format!("the path \"{path}\" does not begin with a slash"));
    }
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "the path \"{path}\" has a space or a non-ASCII character; write it percent-encoded"
        ));
    }
    if let Err(refusal) = check_path(path.as_bytes()) {
        return Err(format!(
            "no request with the path \"{path}\" is let in: {}",
            refusal.why
        ));
    }
    Ok(match_form(path).into_owned())
}

#[cfg(test)]
mod tests;
