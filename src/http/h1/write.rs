//! Writing heads. Every byte of a head that leaves the proxy goes through
//! here, and this cannot emit a line end inside a line.

use std::io::Write;

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
        // Writing to a Vec cannot fail.
        drop(write!(writer.out, "HTTP/1.1 {status} "));
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
        drop(write!(self.out, "{name}: {value}\r\n"));
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
        if memchr::memchr3(b'\r', b'\n', 0, text).is_none() {
            self.out.extend_from_slice(text);
            return;
        }
        self.out.extend(text.iter().map(|byte| match byte {
            b'\r' | b'\n' | 0 => b' ',
            other => *other,
        }));
    }
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
    text: Vec<u8>,
    fields: Vec<(&'static str, Vec<u8>)>,
}

impl Lines {
    /// Appends a field.
    pub fn field(&mut self, name: &'static str, value: &[u8]) {
        HeadWriter {
            out: &mut self.text,
        }
        .field(name, value);
        self.fields.push((name, value.to_vec()));
    }

    /// The fields one by one.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.fields
            .iter()
            .map(|(name, value)| (*name, value.as_slice()))
    }
}
