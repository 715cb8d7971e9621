//! svidgate: a small TCP and HTTP reverse proxy that proves who it is to every
//! backend, and makes every backend prove who it is, with SPIFFE identities.
//!
//! # Embedding
//! A [`Proxy`] is built from a [`Config`] and runs where its host wants it to:
//! on threads of its own ([`Proxy::run`]), or on executors that the host
//! brings, as here.
//!
//! ```no_run
//! use std::rc::Rc;
//! use futures_lite::FutureExt;
//! use svidgate::runtime::async_io::AsyncIo;
//! use svidgate::{Config, Overrides, Proxy};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::load("svidgate.toml".as_ref(), &Overrides::default())?;
//! let proxy = Proxy::bind(config, 1)?;
//! let handle = proxy.handle(); // .stop() and .reload() from anywhere
//!
//! let executor = Rc::new(async_executor::LocalExecutor::new());
//! let weak = Rc::downgrade(&executor);
//! let runtime = AsyncIo::new(move |task| {
//!     if let Some(executor) = weak.upgrade() {
//!         executor.spawn(task).detach();
//!     }
//! });
//! let control = async { match proxy.control().await? {} };
//! let drained = async_io::block_on(executor.run(proxy.worker(runtime).or(control)))?;
//! # let _ = (handle, drained);
//! # Ok(())
//! # }
//! ```
//!
//! # Implementation
//! A process has one thread per worker, one named `spiffe` for the Workload
//! API, and the one that called [`Proxy::run`]. See `ARCHITECTURE.md`.

mod admin;
mod balance;
mod bell;
pub mod config;
pub mod dial;
mod drain;
mod error;
pub mod http;
pub mod identity;
mod listener;
mod metrics;
pub mod net;
mod proxy;
mod reload;
pub mod rule;
pub mod runtime;
mod spare;
mod state;
mod tcp;
pub mod tls;
pub mod transport;
mod trust;
mod worker;

pub use config::{Config, ConfigError, Overrides};
pub use error::Error;
pub use proxy::{Proxy, Urgency};
pub use reload::{Handle, ReloadError};
