//! Which of many rules may admit a request, without looking at each: most name
//! a host or the beginning of a path, and need no look where that is another.

use std::borrow::Cow;
use std::collections::HashMap;

use super::{Matcher, Rule, Subject};

/// So many rules are asked sooner than looked up.
const FEW: usize = 8;

/// Rules by what they cannot do without.
#[derive(Debug, Default)]
pub struct Index {
    count: usize,
    by_host: HashMap<String, Paths>,
    /// Rules that do not name their hosts.
    any_host: Paths,
}

/// Rules of one host, by the beginning of the path. Each list is in order.
#[derive(Debug, Default)]
struct Paths {
    by_start: HashMap<String, Vec<usize>>,
    /// How long those beginnings are.
    lengths: Vec<usize>,
    /// Rules that do not name one.
    any: Vec<usize>,
}

impl Index {
    /// Of rules in the order in which they are asked.
    pub fn new<'r>(rules: impl IntoIterator<Item = &'r Rule>) -> Self {
        let mut index = Self::default();
        for (place, rule) in rules.into_iter().enumerate() {
            index.count += 1;
            let start = path_start(rule);
            match hosts(rule) {
                None => index.any_host.add(start, place),
                Some(mut names) => {
                    names.sort_unstable();
                    names.dedup();
                    for name in names {
                        index.by_host.entry(name).or_default().add(start, place);
                    }
                }
            }
        }
        index
    }

    /// The first rule that admits `subject`. `admits` asks the rule of a place.
    pub fn first(&self, subject: &impl Subject, admits: impl Fn(usize) -> bool) -> Option<usize> {
        if self.count <= FEW {
            return (0..self.count).find(|place| admits(*place));
        }
        let host = match subject.host() {
            host if host.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                Cow::Owned(host.to_ascii_lowercase())
            }
            host => Cow::Borrowed(host),
        };
        let mut best = None;
        let of_host = self.by_host.get(host.as_ref());
        for paths in of_host.into_iter().chain([&self.any_host]) {
            paths.first(subject.path(), &admits, &mut best);
        }
        best
    }
}

impl Paths {
    fn add(&mut self, start: Option<&str>, place: usize) {
        let Some(start) = start else {
            self.any.push(place);
            return;
        };
        self.by_start
            .entry(start.to_owned())
            .or_default()
            .push(place);
        if let Err(at) = self.lengths.binary_search(&start.len()) {
            self.lengths.insert(at, start.len());
        }
    }

    /// Lowers `best` to the first rule here that admits, if it comes before.
    fn first(&self, path: &str, admits: &impl Fn(usize) -> bool, best: &mut Option<usize>) {
        let starts = self.lengths.iter().filter_map(|length| path.get(..*length));
        let lists = starts.filter_map(|start| self.by_start.get(start));
        for list in lists.chain([&self.any]) {
            let limit = best.unwrap_or(usize::MAX);
            let mut earlier = list.iter().copied().take_while(|place| *place < limit);
            if let Some(found) = earlier.find(|place| admits(*place)) {
                *best = Some(found);
            }
        }
    }
}

/// The hosts, in lower case, of which a request must have one. `None`: the rule
/// does not say.
fn hosts(rule: &Rule) -> Option<Vec<String>> {
    match rule {
        Rule::Match(Matcher::Host(host)) if !host.starts_with('*') => {
            Some(vec![host.to_ascii_lowercase()])
        }
        Rule::And(a, b) => hosts(a).or_else(|| hosts(b)),
        Rule::Or(a, b) => {
            let mut both = hosts(a)?;
            both.append(&mut hosts(b)?);
            Some(both)
        }
        Rule::Not(_) | Rule::Match(_) => None,
    }
}

/// How the path of a request must begin. `None`: the rule does not say.
fn path_start(rule: &Rule) -> Option<&str> {
    match rule {
        Rule::Match(Matcher::Path(start) | Matcher::PathPrefix(start)) => Some(start),
        Rule::And(a, b) => match (path_start(a), path_start(b)) {
            (Some(a), Some(b)) => Some(if a.len() < b.len() { b } else { a }),
            (a, b) => a.or(b),
        },
        Rule::Or(..) | Rule::Not(_) | Rule::Match(_) => None,
    }
}
