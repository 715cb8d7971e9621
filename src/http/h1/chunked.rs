//! The chunked transfer coding (RFC 9112, section 7.1), decoded a piece at a
//! time. Extensions are checked and dropped; trailers are checked and kept.

use super::parse::Scanner;
use crate::http::message::head::{Head, Limits, is_tchar};

/// Hex digits of a chunk size, leading zeros included.
const SIZE_DIGITS_MAX: u8 = 16;
/// Bytes of all chunk extensions of one message: a chunk of one byte must not
/// cost kilobytes to carry.
const EXTENSION_BYTES_MAX: u32 = 4096;
/// The trailer section.
const TRAILERS: Limits = Limits {
    line_max: 8 << 10,
    bytes_max: 8 << 10,
    fields_max: 64,
};

/// What a decoder has made of its input.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// So many bytes of the input were framing. They come first.
    pub framing: usize,
    /// So many bytes after them are content.
    pub data: usize,
    /// The body has ended, after the framing bytes; nothing follows in it.
    pub done: bool,
}

/// Decodes one chunked body.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    extension_bytes: u32,
    /// The trailer section, as far as it has come.
    section: Vec<u8>,
    scanner: Scanner,
    trailers: Option<Box<Head>>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    SizeStart,
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
        part: Part,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    Trailers,
    Done,
}

/// Where in `*( BWS ";" BWS name [ BWS "=" BWS value ] )` we are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    /// White space before a semicolon.
    Before,
    NameStart,
    Name,
    AfterName,
    ValueStart,
    Token,
    Quoted,
    Escaped,
    AfterQuoted,
}

impl Decoder {
    /// Whether the last chunk and the trailers have been seen.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The trailers, if there were any.
    #[must_use]
    pub fn trailers(&self) -> Option<&Head> {
        self.trailers.as_deref()
    }

    /// Looks at `input`, up to the end of the first run of content in it.
    ///
    /// # Errors
    /// What is wrong with the coding; the message cannot be trusted then.
    pub fn advance(&mut self, input: &[u8]) -> Result<Progress, &'static str> {
        let mut at = 0;
        loop {
            if self.state == State::Trailers {
                return self.take_trailers(at, input.get(at..).unwrap_or_default());
            }
            if let State::Data { left } = self.state {
                let available = input.len() - at;
                let take = usize::try_from(left).map_or(available, |left| left.min(available));
                let left = left - u64::try_from(take).unwrap_or(left);
                self.state = if left == 0 {
                    State::DataCr
                } else {
                    State::Data { left }
                };
                return Ok(Progress {
                    framing: at,
                    data: take,
                    done: false,
                });
            }
            let byte = match input.get(at) {
                Some(byte) if self.state != State::Done => *byte,
                _ => {
                    return Ok(Progress {
                        framing: at,
                        data: 0,
                        done: self.is_done(),
                    });
                }
            };
            at += 1;
            self.state = self.step(byte)?;
        }
    }

    fn step(&mut self, byte: u8) -> Result<State, &'static str> {
        Ok(match (self.state, byte) {
            (State::SizeStart, _) => match hex(byte) {
                Some(digit) => State::Size {
                    size: digit,
                    digits: 1,
                },
                None => return Err("a chunk has no size"),
            },
            (State::Size { size, .. }, b'\r') => State::SizeLf { size },
            (State::Size { size, .. }, b';' | b' ' | b'\t') => {
                self.extension(size, Part::Before, byte)?
            }
            (State::Size { size, digits }, _) => match hex(byte) {
                Some(digit) if digits < SIZE_DIGITS_MAX && size >> 59 == 0 => State::Size {
                    size: (size << 4) | digit,
                    digits: digits + 1,
                },
                Some(_) => return Err("a chunk size is too long"),
                None => return Err("a chunk size is not hexadecimal"),
            },
            (State::Extension { size, part }, _) => self.extension(size, part, byte)?,
            (State::SizeLf { size: 0 }, b'\n') => State::Trailers,
            (State::SizeLf { size }, b'\n') => State::Data { left: size },
            (State::SizeLf { .. }, _) => return Err("a chunk size line does not end in CRLF"),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeStart,
            (State::DataCr | State::DataLf, _) => {
                return Err("chunk data is not followed by CRLF");
            }
            (state @ (State::Data { .. } | State::Trailers | State::Done), _) => state,
        })
    }

    fn extension(&mut self, size: u64, part: Part, byte: u8) -> Result<State, &'static str> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err("the chunk extensions are too long");
        }
        let ends_well = matches!(
            part,
            Part::Name | Part::Token | Part::AfterQuoted | Part::AfterName
        );
        let part = match (part, byte) {
            (_, b'\r') if ends_well => return Ok(State::SizeLf { size }),
            (Part::Before, b' ' | b'\t') => Part::Before,
            (Part::Before, b';') => Part::NameStart,
            (Part::NameStart, b' ' | b'\t') => Part::NameStart,
            (Part::NameStart | Part::Name, _) if is_tchar(byte) => Part::Name,
            (Part::Name | Part::AfterName, b'=') => Part::ValueStart,
            (Part::Name | Part::AfterName, b';') => Part::NameStart,
            (Part::Name | Part::AfterName, b' ' | b'\t') => Part::AfterName,
            (Part::ValueStart, b' ' | b'\t') => Part::ValueStart,
            (Part::ValueStart, b'"') => Part::Quoted,
            (Part::ValueStart | Part::Token, _) if is_tchar(byte) => Part::Token,
            (Part::Token | Part::AfterQuoted, b';') => Part::NameStart,
            (Part::Token | Part::AfterQuoted, b' ' | b'\t') => Part::AfterQuoted,
            (Part::Quoted, b'"') => Part::AfterQuoted,
            (Part::Quoted, b'\\') => Part::Escaped,
            (Part::Quoted | Part::Escaped, b'\t' | b' '..=b'~' | 0x80..) => Part::Quoted,
            _ => return Err("a chunk extension is malformed"),
        };
        Ok(State::Extension { size, part })
    }

    /// Collects the trailer section, and checks it.
    fn take_trailers(&mut self, framing: usize, input: &[u8]) -> Result<Progress, &'static str> {
        let before = self.section.len();
        // One byte over the limit is enough to know that it is exceeded.
        let take = input
            .len()
            .min(TRAILERS.bytes_max + 1 - before.min(TRAILERS.bytes_max));
        self.section
            .extend_from_slice(input.get(..take).unwrap_or_default());
        let found = self
            .scanner
            .find(&self.section, &TRAILERS)
            .map_err(|_| "the trailers are too large or end a line in a bare LF")?;
        let Some(len) = found else {
            return Ok(Progress {
                framing: framing + take,
                data: 0,
                done: false,
            });
        };
        let mut section = std::mem::take(&mut self.section);
        section.truncate(len);
        if section != b"\r\n" {
            self.trailers = Some(Box::new(parse_trailers(&section)?));
        }
        self.state = State::Done;
        Ok(Progress {
            framing: framing + len - before,
            data: 0,
            done: true,
        })
    }
}

fn parse_trailers(section: &[u8]) -> Result<Head, &'static str> {
    let mut table = [httparse::EMPTY_HEADER; TRAILERS.fields_max];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(section, &mut table)
    else {
        return Err("the trailers are malformed");
    };
    let mut trailers = Head::default();
    for field in fields {
        trailers.add(field.name.as_bytes(), field.value)?;
    }
    trailers.check_trailers()?;
    Ok(trailers)
}

fn hex(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}
