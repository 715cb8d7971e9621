//! What a configuration makes of an HTTP entry point: routes to services on
//! this worker, and what is counted of each. A reload makes another.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::pool::{Pool, Slot};
use crate::balance::Balancer;
use crate::config::{HttpEntry, HttpService, Route};
use crate::metrics::{Counter, Histogram, REQUEST_SECONDS, REQUESTS, Recorder};
use crate::rule::Subject;
use crate::rule::index::Index;
use crate::runtime::Runtime;

/// What a configuration makes of an entry point.
#[derive(Debug)]
pub(crate) struct Plan<R: Runtime> {
    pub(super) entry: Arc<HttpEntry>,
    /// One per route, in the same order; routes may share a service.
    pub(super) services: Vec<(Rc<Service<R>>, Rc<Counts>)>,
    /// Of what no router took.
    pub(super) unrouted: Rc<Counts>,
    pub(super) looks_at_path: bool,
    /// Of the routes' rules.
    index: Index,
}

impl<R: Runtime> Plan<R> {
    /// `services` has the service of each route.
    pub(crate) fn new(
        name: &str,
        entry: &Arc<HttpEntry>,
        mut services: impl FnMut(&Arc<HttpService>) -> Rc<Service<R>>,
        recorder: &Recorder,
    ) -> Self {
        let of_route = |route: &Route| {
            let counts = Counts::new(recorder, name, &route.service.name);
            (services(&route.service), Rc::new(counts))
        };
        Self {
            looks_at_path: entry.routes.iter().any(|route| route.rule.looks_at_path()),
            services: entry.routes.iter().map(of_route).collect(),
            unrouted: Rc::new(Counts::new(recorder, name, "")),
            index: Index::new(entry.routes.iter().map(|route| &route.rule)),
            entry: Arc::clone(entry),
        }
    }

    /// The first route that takes a request.
    pub(super) fn route(&self, subject: &impl Subject) -> Option<usize> {
        let routes = &self.entry.routes;
        self.index.first(subject, |place| {
            let route = routes.get(place);
            route.is_some_and(|route| route.rule.matches(subject))
        })
    }
}

/// What is counted of requests.
#[derive(Debug)]
pub(super) struct Counts {
    /// By the hundreds of the status, from 1.
    classes: [Counter; 5],
    cut: Counter,
    gone: Counter,
    pub(super) seconds: Histogram,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// Its response was delivered.
    With(u16),
    /// Its response was not delivered whole.
    Cut,
    /// The client went away before it.
    Gone,
}

impl Counts {
    fn new(recorder: &Recorder, entry: &str, service: &str) -> Self {
        let of = |class| recorder.counter(&REQUESTS, &[entry, service, class]);
        Self {
            classes: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(of),
            cut: of("cut"),
            gone: of("gone"),
            seconds: recorder.histogram(&REQUEST_SECONDS, &[entry, service]),
        }
    }

    pub(super) fn count(&self, ended: Ended) {
        let counter = match ended {
            Ended::With(status) => {
                let class = usize::from(status / 100).saturating_sub(1);
                self.classes.get(class)
            }
            Ended::Cut => Some(&self.cut),
            Ended::Gone => Some(&self.gone),
        };
        if let Some(counter) = counter {
            counter.add(1);
        }
    }
}

/// A service on one worker.
#[derive(Debug)]
pub(crate) struct Service<R: Runtime> {
    pub(super) of: Arc<HttpService>,
    pub(super) balancer: RefCell<Balancer>,
    /// One per server, in the same order.
    pub(super) slots: Vec<Rc<Slot<R>>>,
}

impl<R: Runtime> Service<R> {
    pub(crate) fn new(of: &Arc<HttpService>, pool: &Pool<R>) -> Self {
        let weights = of.servers.iter().map(|server| server.weight);
        Self {
            balancer: RefCell::new(Balancer::new(weights)),
            slots: of
                .servers
                .iter()
                .map(|server| pool.slot(&of.transport, &server.address, server.scheme))
                .collect(),
            of: Arc::clone(of),
        }
    }

    pub(crate) fn is_for(&self, of: &Arc<HttpService>) -> bool {
        Arc::ptr_eq(&self.of, of)
    }

    pub(crate) fn slots(&self) -> &[Rc<Slot<R>>] {
        &self.slots
    }
}
