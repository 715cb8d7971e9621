//! What is wrong with a file, all of it, for a person.

use std::fmt;
use std::ops::Range;

use super::source::Stamps;

/// One thing that is wrong, or odd.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The key, dotted. Empty: the file as a whole.
    pub key: String,
    /// Counted from 1. `None`: not in the file at all.
    pub line: Option<usize>,
    /// What is wrong, and what to write instead.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// Why there is no configuration: every problem of the file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigError {
    /// In the order of the file.
    pub problems: Vec<Problem>,
    /// The certificate and key files that were read, or could not be.
    pub files: Stamps,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Collects problems while a file is read.
#[derive(Debug)]
pub(super) struct Problems<'t> {
    text: &'t str,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'t> Problems<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn error(
        &mut self,
        key: impl Into<String>,
        at: impl Into<Option<Range<usize>>>,
        what: impl Into<String>,
    ) {
        let problem = self.problem(key, at, what);
        self.errors.push(problem);
    }

    pub(super) fn warning(
        &mut self,
        key: impl Into<String>,
        at: impl Into<Option<Range<usize>>>,
        what: impl Into<String>,
    ) {
        let problem = self.problem(key, at, what);
        self.warnings.push(problem);
    }

    fn problem(
        &self,
        key: impl Into<String>,
        at: impl Into<Option<Range<usize>>>,
        what: impl Into<String>,
    ) -> Problem {
        let before = at
            .into()
            .and_then(|span| self.text.as_bytes().get(..span.start));
        Problem {
            key: key.into(),
            line: before.map(|before| 1 + before.iter().filter(|byte| **byte == b'\n').count()),
            what: what.into(),
        }
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// The value if nothing was wrong, with the warnings.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<(T, Vec<Problem>), ConfigError> {
        match value {
            Some(value) if self.errors.is_empty() => Ok((value, self.warnings)),
            _ => {
                self.errors.sort_by_key(|problem| problem.line);
                Err(ConfigError {
                    problems: self.errors,
                    files: Stamps::new(),
                })
            }
        }
    }
}
