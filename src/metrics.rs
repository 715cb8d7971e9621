//! What is counted, and how it is shown (Prometheus text format 0.0.4).
//!
//! # Implementation
//! A count must cost the hot path next to nothing. So each worker has cells of
//! its own for the series that it counts, written by it alone: an increment is
//! a load and a store, without a locked instruction and without a cache line
//! that travels between cores. Who asks gets the sum over the workers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a series measures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Only grows.
    Counter,
    /// Comes and goes.
    Gauge,
    /// Seconds, in the buckets of [`BOUNDS`].
    Histogram,
}

/// Series of one name.
#[derive(Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) labels: &'static [&'static str],
}

macro_rules! families {
    ($($constant:ident = $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(pub(crate) static $constant: Family = Family {
            name: $name,
            help: $help,
            labels: &[$($label),*],
        };)+
        /// Every family that workers count.
        #[cfg(test)]
        static ALL: &[&Family] = &[$(&$constant),+];
    };
}

families! {
    REQUESTS = "svidgate_requests_total" ["entrypoint", "service", "class"]
        "HTTP requests by the class of their response; cut: it was not delivered whole; gone: the client went away before it.";
    REQUEST_SECONDS = "svidgate_request_duration_seconds" ["entrypoint", "service"]
        "From a request's head to the last byte of its response; upgrades are not in it.";
    CONNECTIONS = "svidgate_connections_accepted_total" ["entrypoint"]
        "Client connections accepted.";
    OPEN = "svidgate_connections_open" ["entrypoint"]
        "Client connections open.";
    PANICS = "svidgate_panics_total" ["entrypoint"]
        "Client connections that ended by a fault of ours.";
    TCP_SESSIONS = "svidgate_tcp_sessions_total" ["entrypoint", "service", "end"]
        "TCP sessions that ended; whole: both sides said so; cut: one failed, fell silent or lost its trust; refused: no server could be had.";
    TCP_BYTES = "svidgate_tcp_bytes_total" ["entrypoint", "service", "direction"]
        "Bytes through TCP sessions; up: to the server.";
    HANDSHAKES = "svidgate_handshakes_total" ["transport", "outcome"]
        "Connections to servers by outcome: ok, or why there was none.";
    TRUST_LOST = "svidgate_trust_loss_closed_total" ["transport", "use"]
        "Connections closed because their peer would not be admitted any more.";
    EXPIRED = "svidgate_expiry_closed_total" ["transport", "use"]
        "Connections closed because a certificate of their handshake has expired.";
    POOL_IDLE = "svidgate_pool_idle_connections" ["transport", "server"]
        "Idle connections to servers.";
    POOL_SHARED = "svidgate_pool_shared_connections" ["transport", "server"]
        "Connections to servers that requests share (HTTP/2).";
    POOL_REUSED = "svidgate_pool_reused_total" ["transport", "server"]
        "Requests that were given a connection that was there.";
}

/// Upper bounds of a histogram's buckets, in seconds. The last is infinite.
const BOUNDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// The buckets, the infinite one, and the sum in nanoseconds.
const HISTOGRAM_CELLS: usize = BOUNDS.len() + 2;

/// All series of a proxy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics(Arc<Mutex<BTreeMap<Key, Series>>>);

/// The name and the values of the labels.
type Key = (&'static str, Vec<String>);

#[derive(Debug)]
struct Series {
    family: &'static Family,
    kind: Kind,
    /// One group per worker.
    cells: Vec<Arc<[AtomicU64]>>,
}

impl Metrics {
    /// For one worker.
    pub(crate) fn recorder(&self) -> Recorder {
        Recorder {
            metrics: self.clone(),
            mine: RefCell::default(),
        }
    }

    fn add(&self, family: &'static Family, labels: Vec<String>, kind: Kind) -> Arc<[AtomicU64]> {
        let size = match kind {
            Kind::Counter | Kind::Gauge => 1,
            Kind::Histogram => HISTOGRAM_CELLS,
        };
        let cells: Arc<[AtomicU64]> = (0..size).map(|_| AtomicU64::new(0)).collect();
        let all = self.0.lock();
        let mut all = all.unwrap_or_else(PoisonError::into_inner);
        let series = all.entry((family.name, labels)).or_insert_with(|| Series {
            family,
            kind,
            cells: Vec::new(),
        });
        series.cells.push(Arc::clone(&cells));
        cells
    }

    /// Writes every series.
    pub(crate) fn write(&self, out: &mut Text) {
        let all = self.0.lock();
        let all = all.unwrap_or_else(PoisonError::into_inner);
        for ((_, labels), series) in all.iter() {
            let family = series.family;
            out.family(family.name, family.help, series.kind);
            let sum = |index: usize| {
                let cells = series.cells.iter().filter_map(|cells| cells.get(index));
                // Wraps, as a gauge may be above zero on one worker only by
                // what it is below on another.
                cells.fold(0u64, |sum, cell| {
                    sum.wrapping_add(cell.load(Ordering::Relaxed))
                })
            };
            let labels: Vec<(&str, &str)> = family
                .labels
                .iter()
                .copied()
                .zip(labels.iter().map(String::as_str))
                .collect();
            match series.kind {
                Kind::Counter | Kind::Gauge => out.sample(family.name, &labels, sum(0)),
                Kind::Histogram => {
                    let bucket = format!("{}_bucket", family.name);
                    let mut below = 0;
                    for index in 0..=BOUNDS.len() {
                        below += sum(index);
                        let bound = BOUNDS.get(index).map(f64::to_string);
                        let bound = ("le", bound.as_deref().unwrap_or("+Inf"));
                        let labels: Vec<_> = labels.iter().copied().chain([bound]).collect();
                        out.sample(&bucket, &labels, below);
                    }
                    let seconds = Duration::from_nanos(sum(BOUNDS.len() + 1)).as_secs_f64();
                    out.sample(&format!("{}_sum", family.name), &labels, seconds);
                    out.sample(&format!("{}_count", family.name), &labels, below);
                }
            }
        }
    }
}

/// Gives a worker its cells; the same series the same cells, however often it
/// asks, so that reloads leave nothing behind.
#[derive(Debug)]
pub(crate) struct Recorder {
    metrics: Metrics,
    mine: RefCell<HashMap<Key, Cells>>,
}

/// Written by one thread, read by any.
#[derive(Clone, Debug)]
struct Cells {
    cells: Arc<[AtomicU64]>,
    /// Not to be sent: two writers would lose counts.
    here: PhantomData<Rc<()>>,
}

impl Cells {
    fn change(&self, index: usize, by: impl FnOnce(u64) -> u64) {
        if let Some(cell) = self.cells.get(index) {
            cell.store(by(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }
}

impl Recorder {
    fn cells(&self, family: &'static Family, labels: &[&str], kind: Kind) -> Cells {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let labels: Vec<String> = labels.iter().map(|&label| label.to_owned()).collect();
        let mut mine = self.mine.borrow_mut();
        let cells = mine
            .entry((family.name, labels.clone()))
            .or_insert_with(|| Cells {
                cells: self.metrics.add(family, labels, kind),
                here: PhantomData,
            });
        cells.clone()
    }

    pub(crate) fn counter(&self, family: &'static Family, labels: &[&str]) -> Counter {
        Counter(self.cells(family, labels, Kind::Counter))
    }

    pub(crate) fn gauge(&self, family: &'static Family, labels: &[&str]) -> Gauge {
        Gauge(self.cells(family, labels, Kind::Gauge))
    }

    pub(crate) fn histogram(&self, family: &'static Family, labels: &[&str]) -> Histogram {
        Histogram(self.cells(family, labels, Kind::Histogram))
    }
}

/// Only grows.
#[derive(Clone, Debug)]
pub(crate) struct Counter(Cells);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.change(0, |count| count.wrapping_add(n));
    }
}

/// Comes and goes.
#[derive(Clone, Debug)]
pub(crate) struct Gauge(Cells);

impl Gauge {
    pub(crate) fn set(&self, value: usize) {
        self.0
            .change(0, |_| u64::try_from(value).unwrap_or(u64::MAX));
    }

    /// One more, until the guard is dropped.
    pub(crate) fn one_more(&self) -> OneMore {
        self.0.change(0, |value| value.wrapping_add(1));
        OneMore(self.0.clone())
    }
}

/// One of a [`Gauge`].
#[derive(Debug)]
pub(crate) struct OneMore(Cells);

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.change(0, |value| value.wrapping_sub(1));
    }
}

/// How long things take.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(Cells);

impl Histogram {
    pub(crate) fn record(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let index = BOUNDS.iter().position(|bound| seconds <= *bound);
        self.0
            .change(index.unwrap_or(BOUNDS.len()), |n| n.wrapping_add(1));
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0
            .change(BOUNDS.len() + 1, |sum| sum.wrapping_add(nanos));
    }
}

/// A page of metrics as it is written.
#[derive(Debug, Default)]
pub(crate) struct Text {
    out: String,
    /// The last family that was announced.
    family: Cell<&'static str>,
}

impl Text {
    pub(crate) fn into_string(self) -> String {
        self.out
    }

    /// Announces a family, unless the one before was the same.
    pub(crate) fn family(&mut self, name: &'static str, help: &str, kind: Kind) {
        if self.family.replace(name) == name {
            return;
        }
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.out.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            self.out.push(if index == 0 { '{' } else { ',' });
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = write!(self.out, "{label}=\"{}\"", value.replace('\n', "\\n"));
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }

    /// A family of one series without labels.
    pub(crate) fn single(
        &mut self,
        name: &'static str,
        help: &str,
        kind: Kind,
        value: impl fmt::Display,
    ) {
        self.family(name, help, kind);
        self.sample(name, &[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(metrics: &Metrics) -> String {
        let mut text = Text::default();
        metrics.write(&mut text);
        text.into_string()
    }

    #[test]
    fn a_series_is_the_sum_over_the_workers() {
        let metrics = Metrics::default();
        let (a, b) = (metrics.recorder(), metrics.recorder());
        a.counter(&CONNECTIONS, &["web"]).add(2);
        b.counter(&CONNECTIONS, &["web"]).add(3);
        b.counter(&CONNECTIONS, &["d\"b\\\n"]).add(1);
        // The same cell again, as after a reload.
        a.counter(&CONNECTIONS, &["web"]).add(1);
        let open = a.gauge(&OPEN, &["web"]);
        let first = open.one_more();
        let second = open.one_more();
        drop(first);
        assert_eq!(
            page(&metrics),
            "# HELP svidgate_connections_accepted_total Client connections accepted.\n\
             # TYPE svidgate_connections_accepted_total counter\n\
             svidgate_connections_accepted_total{entrypoint=\"d\\\"b\\\\\\n\"} 1\n\
             svidgate_connections_accepted_total{entrypoint=\"web\"} 6\n\
             # HELP svidgate_connections_open Client connections open.\n\
             # TYPE svidgate_connections_open gauge\n\
             svidgate_connections_open{entrypoint=\"web\"} 1\n"
        );
        drop(second);
        assert!(page(&metrics).ends_with("{entrypoint=\"web\"} 0\n"));
    }

    #[test]
    fn a_histogram_counts_what_is_at_or_below_each_bound() {
        let metrics = Metrics::default();
        let recorder = metrics.recorder();
        let seconds = recorder.histogram(&REQUEST_SECONDS, &["web", "api"]);
        for micros in [500, 501, 2_000_000, 11_000_000] {
            seconds.record(Duration::from_micros(micros));
        }
        let page = page(&metrics);
        let value = |line: &str| {
            let found = page.lines().find_map(|it| it.strip_prefix(line));
            found.unwrap_or_else(|| panic!("{line} in {page}"))
        };
        let labels = "entrypoint=\"web\",service=\"api\"";
        let name = "svidgate_request_duration_seconds";
        for (bound, count) in [("0.0005", "1"), ("0.001", "2"), ("1", "2"), ("2.5", "3")] {
            let bucket = format!("{name}_bucket{{{labels},le=\"{bound}\"}} ");
            assert_eq!(value(&bucket), count, "{bound}");
        }
        assert_eq!(
            value(&format!("{name}_bucket{{{labels},le=\"+Inf\"}} ")),
            "4"
        );
        assert_eq!(value(&format!("{name}_count{{{labels}}} ")), "4");
        assert_eq!(value(&format!("{name}_sum{{{labels}}} ")), "13.001001");
    }

    #[test]
    fn names_are_those_that_prometheus_takes() {
        for family in ALL {
            let good = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            assert!(good(family.name) && family.name.starts_with("svidgate_"));
            assert!(family.labels.iter().all(|label| good(label)));
            assert!(family.help.ends_with('.') && !family.help.contains('\n'));
        }
    }
}
