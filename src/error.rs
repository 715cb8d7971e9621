//! Why a proxy could not start or go on.

use std::fmt;
use std::io;

/// Why a proxy could not start or go on.
#[derive(Debug)]
pub enum Error {
    /// An address cannot be had.
    Bind {
        /// The key in the file.
        what: String,
        /// The address.
        address: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A socket that was handed over is of no use.
    Inherited(String),
    /// No SVID within `spiffe.startupTimeout`.
    NoIdentity(String),
    /// A part that never ends has ended.
    Ended(String),
    /// The operating system's, elsewhere.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind {
                what,
                address,
                source,
            } => write!(f, "{what}: cannot listen on {address}: {source}"),
            Self::Inherited(what) => f.write_str(what),
            Self::NoIdentity(why) => {
                write!(f, "no SVID within spiffe.startupTimeout: {why}")
            }
            Self::Ended(what) => write!(f, "{what} has ended unexpectedly"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
