//! Writing heads. Every byte of a head that leaves the proxy goes through
//! here, and this cannot emit a line end inside a line.

use crate::http::message::head::{Field, Head};

/// Appends a head to a buffer.
#[derive(Debug)]
pub struct HeadWriter<'o> {
    out: &'o mut Vec<u8>,
}

impl<'o> HeadWriter<'o> {
    /// Begins with `METHOD target HTTP/1.1`. Both parts come from a parsed
    /// request.
    pub fn request(out: &'o mut Vec<u8>, method: &[u8], target: &[u8]) -> Self {
        let mut writer = Self { out };
        writer.text(method);
        writer.out.push(b' ');
        writer.text(target);
        writer.out.extend_from_slice(b" HTTP/1.1\r\n");
        writer
    }

    /// Begins with `HTTP/1.1 status reason`.
    pub fn response(out: &'o mut Vec<u8>, status: u16, reason: &[u8]) -> Self {
        let mut writer = Self { out };
        writer.out.extend_from_slice(b"HTTP/1.1 ");
        digits(writer.out, u64::from(status));
        writer.out.push(b' ');
        writer.text(reason);
        writer.out.extend_from_slice(b"\r\n");
        writer
    }

    /// Copies a field of a parsed head: its parser has seen to it that there
    /// is no line end in it.
    pub fn copy(&mut self, head: &Head, field: &Field) {
        write_field(self.out, head, field);
    }

    /// Writes a field of our own. Control characters in the value become
    /// spaces (RFC 9110, section 5.5).
    pub fn field(&mut self, name: &'static str, value: &[u8]) {
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b": ");
        self.text(value);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Writes a field with a number.
    pub fn number(&mut self, name: &'static str, value: u64) {
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b": ");
        digits(self.out, value);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Appends whole lines that a writer made before.
    pub fn lines(&mut self, lines: &Lines) {
        self.out.extend_from_slice(&lines.text);
    }

    /// Ends the head.
    pub fn end(self) {
        self.out.extend_from_slice(b"\r\n");
    }

    fn text(&mut self, text: &[u8]) {
        let start = self.out.len();
        self.out.extend_from_slice(text);
        // Without an early end: the texts are short, and none has one.
        let is_end = |byte: u8| matches!(byte, b'\r' | b'\n' | 0);
        if text.iter().fold(false, |any, byte| any | is_end(*byte)) {
            for byte in self
                .out
                .iter_mut()
                .skip(start)
                .filter(|byte| is_end(**byte))
            {
                *byte = b' ';
            }
        }
    }
}

/// A number as text, without the machinery of `fmt`.
fn digits(out: &mut Vec<u8>, number: u64) {
    let mut text = [b'0'; 20];
    let mut left = number;
    let mut length = 0;
    for place in text.iter_mut().rev() {
        *place = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
        length += 1;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(text.get(20 - length..).unwrap_or_default());
}

pub(super) fn write_field(out: &mut Vec<u8>, head: &Head, field: &Field) {
    out.extend_from_slice(head.name(field));
    out.extend_from_slice(b": ");
    out.extend_from_slice(head.value(field));
    out.extend_from_slice(b"\r\n");
}

/// Fields made once and written often.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// As HTTP/1 has them.
    text: Box<[u8]>,
}

impl Lines {
    /// Of names and values.
    #[must_use]
    pub fn of(fields: &[(&'static str, &[u8])]) -> Self {
        let mut out = Vec::new();
        let mut writer = HeadWriter { out: &mut out };
        for (name, value) in fields {
            writer.field(name, value);
        }
        Self { text: out.into() }
    }

    /// The fields one by one: name and value.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let lines = self.text.split(|byte| *byte == b'\n');
        lines.filter_map(|line| {
            let line = line.strip_suffix(b"\r")?;
            let colon = memchr::memchr(b':', line)?;
            Some((line.get(..colon)?, line.get(colon + 2..)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn numbers_are_written_as_fmt_writes_them() {
        for number in [0, 7, 10, 99, 100, 65_535, 1 << 40, u64::MAX] {
            let mut out = b"x".to_vec();
            digits(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), format!("x{number}"));
        }
    }
}
