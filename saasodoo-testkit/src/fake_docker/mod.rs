//! A Docker Engine API with a swarm of one manager behind it, on the wire: the real adapter, or any other client, talks
//! HTTP to it, over a socket or over a connection within the process.
//!
//! It keeps services, secrets, networks and their versions as the daemon does, and runs tasks as Swarm does: each goes
//! from `new` to `running`, is replaced when it ends, and drains when it is stopped. Whatever the image, a container is
//! the testbed's stand-in for Odoo and does what its environment says (`CRASH=n`, `EAT_MB=n`, `SLOW=n`, `UNREADY=1`).
//! Time is tokio's: with a paused clock and connections from [`FakeDocker::connect`] minutes take no time and every run
//! is the same. (Over real sockets a paused clock does not work: it runs on while a request is under way.)
//!
//! ```
//! use saasodoo_testkit::fake_docker::FakeDocker;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let docker = FakeDocker::builder().image("saasodoo/odoo-stub:17").build();
//! let mut connection = docker.connect()?;
//! connection.write_all(b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n").await?;
//! let mut answer = String::new();
//! connection.read_to_string(&mut answer).await?;
//! assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("OK"));
//! # Ok(())
//! # }
//! ```
//!
//! # What it answers
//!
//! `/_ping`, `/version`, `/info`, `/services`, `/tasks`, `/secrets`, `/networks`, `/nodes` (read only), `/images`
//! (inspection and pull), `/distribution`, `/events` and the logs of services and tasks, each with or without an API
//! version before it. Anything else is a 404, and an unknown filter is a 400.
//!
//! # What it does not do
//!
//! - containers, volumes, configs, plugins, stacks, `/swarm` itself, joining and leaving, TLS and authorisation;
//! - more than one node; global services and jobs run nothing; updates are stop-first whatever their `Order`, one slot
//!   at a time, and `MaxFailureRatio` and the `Window` of a restart policy are taken as 0;
//! - CPU and memory reservations never run out, ports are not published, credentials of registries are not checked;
//! - Go templates in a spec stay as they are; secrets are kept and not mounted;
//! - containers survive a restart of the daemon, as nothing but its connections is cut;
//! - a healthcheck's command is not run: it fails while the stand-in does not listen, or when it is told to be unready,
//!   and never again once it has succeeded;
//! - a spec's fields that Docker does not know are kept as they were sent, where the daemon drops them, and few of the
//!   others are checked;
//! - events are about services only, and the last 256 can be asked for.

mod agent;
mod api;
mod filters;
mod objects;
mod process;
mod streams;
mod swarm;
mod task;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::contract::FaultGuard;
use world::World;

/// How the swarm behind the API is made up, and how long things take in it.
#[derive(Debug, Clone)]
struct Settings {
    /// From a request to its answer.
    latency: Duration,
    /// Between two states of a task in which nothing is done.
    step: Duration,
    /// Making a container, with the image there.
    prepare: Duration,
    /// Starting the process until it listens.
    start: Duration,
    /// Ending a process that listens to SIGTERM.
    stop: Duration,
    images: Vec<String>,
    networks: Vec<String>,
    labels: BTreeMap<String, String>,
}

/// Builds a [`FakeDocker`].
#[derive(Debug, Clone)]
pub struct FakeDockerBuilder {
    settings: Settings,
}

impl FakeDockerBuilder {
    /// An image that the node and its registry have. All others are missing.
    #[must_use]
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.settings.images.push(image.into());
        self
    }

    /// An overlay network.
    #[must_use]
    pub fn network(mut self, name: impl Into<String>) -> Self {
        self.settings.networks.push(name.into());
        self
    }

    /// A label of the node, for placement constraints.
    #[must_use]
    pub fn node_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.labels.insert(key.into(), value.into());
        self
    }

    /// How long each request takes. Default: 2 ms.
    #[must_use]
    pub fn latency(mut self, latency: Duration) -> Self {
        self.settings.latency = latency;
        self
    }

    /// How long a container takes to be made, and its process to listen. Default: 200 ms and 300 ms.
    #[must_use]
    pub fn start_time(mut self, prepare: Duration, start: Duration) -> Self {
        self.settings.prepare = prepare;
        self.settings.start = start;
        self
    }

    /// How long a process takes to end after SIGTERM, at most its grace period. Default: 200 ms.
    #[must_use]
    pub fn stop_time(mut self, stop: Duration) -> Self {
        self.settings.stop = stop;
        self
    }

    /// The daemon.
    #[must_use]
    pub fn build(self) -> FakeDocker {
        let base = Timestamp::now();
        let base = Timestamp::from_second(base.as_second()).unwrap_or(base);
        FakeDocker {
            inner: Arc::new(Inner {
                latency: self.settings.latency,
                world: Mutex::new(World::new(self.settings, base)),
                base,
                start: OnceLock::new(),
                changed: watch::channel(()).0,
                cut: watch::channel(()).0,
                down: AtomicBool::new(false),
                fault: Mutex::new(None),
                requests: AtomicU64::new(0),
            }),
        }
    }
}

/// A daemon. Clones are the same one.
#[derive(Clone)]
pub struct FakeDocker {
    inner: Arc<Inner>,
}

struct Inner {
    latency: Duration,
    world: Mutex<World>,
    base: Timestamp,
    /// From the first question on, so that a daemon can be made outside of a runtime.
    start: OnceLock<Instant>,
    /// Something has happened: whoever follows looks again.
    changed: watch::Sender<()>,
    /// All connections end.
    cut: watch::Sender<()>,
    down: AtomicBool,
    fault: Mutex<Option<Pending>>,
    requests: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The request is not looked at.
    Fail,
    /// It is done, and the answer does not go out.
    Lose,
}

struct Pending {
    left: u32,
    fault: Fault,
    hit: Arc<AtomicBool>,
}

impl fmt::Debug for FakeDocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeDocker")
            .field("requests", &self.requests())
            .finish_non_exhaustive()
    }
}

impl Default for FakeDocker {
    fn default() -> Self {
        Self::builder().build()
    }
}

impl FakeDocker {
    /// A manager without images; it has the network `saasodoo-network`.
    #[must_use]
    pub fn builder() -> FakeDockerBuilder {
        FakeDockerBuilder {
            settings: Settings {
                latency: Duration::from_millis(2),
                step: Duration::from_millis(20),
                prepare: Duration::from_millis(200),
                start: Duration::from_millis(300),
                stop: Duration::from_millis(200),
                images: Vec::new(),
                networks: vec!["saasodoo-network".to_owned()],
                labels: BTreeMap::new(),
            },
        }
    }

    /// A connection within the process: the client's end.
    ///
    /// # Errors
    /// `ConnectionRefused` while the daemon is down.
    pub fn connect(&self) -> io::Result<DuplexStream> {
        if self.inner.down.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (client, server) = tokio::io::duplex(64 * 1024);
        tokio::spawn(wire::serve(self.clone(), server));
        Ok(client)
    }

    /// Listens on a Unix socket in a directory of its own, until the answer is dropped.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn serve_unix(&self) -> io::Result<Socket> {
        wire::listen_unix(self)
    }

    /// Listens on a free port of 127.0.0.1, until the runtime ends.
    ///
    /// # Errors
    /// When there is none.
    pub async fn serve_tcp(&self) -> io::Result<SocketAddr> {
        wire::listen_tcp(self).await
    }

    /// The daemon's time: the system's when it was made, and tokio's since. A client on a paused clock needs it, too.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        world::stamp(self.inner.base, self.moment())
    }

    /// How many requests have arrived.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.inner.requests.load(Ordering::SeqCst)
    }

    /// The n-th request from now (from 1) breaks its connection and has no effect.
    #[must_use = "dropping it takes the fault away"]
    pub fn fail_nth_request(&self, n: u32) -> FaultGuard {
        self.plan(n, Fault::Fail)
    }

    /// The n-th request from now (from 1) has its effect, and its connection breaks before the answer.
    #[must_use = "dropping it takes the fault away"]
    pub fn lose_nth_response(&self, n: u32) -> FaultGuard {
        self.plan(n, Fault::Lose)
    }

    fn plan(&self, n: u32, fault: Fault) -> FaultGuard {
        let hit = Arc::new(AtomicBool::new(false));
        *lock(&self.inner.fault) = Some(Pending {
            left: n.max(1),
            fault,
            hit: Arc::clone(&hit),
        });
        let inner = Arc::clone(&self.inner);
        FaultGuard::new(hit, move || *lock(&inner.fault) = None)
    }

    fn strike(&self) -> Option<Fault> {
        let mut pending = lock(&self.inner.fault);
        let next = pending.as_mut()?;
        next.left -= 1;
        if next.left > 0 {
            return None;
        }
        next.hit.store(true, Ordering::SeqCst);
        let fault = next.fault;
        *pending = None;
        Some(fault)
    }

    /// Cuts all connections and refuses new ones for so long.
    pub async fn restart(&self, downtime: Duration) {
        self.inner.down.store(true, Ordering::SeqCst);
        self.inner.cut.send_replace(());
        tokio::time::sleep(downtime).await;
        self.inner.down.store(false, Ordering::SeqCst);
    }

    /// Whether the node is a manager; it is one at first. Another answers 503 to everything about the swarm.
    pub fn set_manager(&self, manager: bool) {
        self.with(|world| world.manager = manager);
    }

    /// The node that runs the tasks does not answer the manager any more. Their processes go on.
    pub fn node_down(&self) {
        self.with(|world| world.set_node(false));
    }

    /// The node is back.
    pub fn node_up(&self) {
        self.with(|world| world.set_node(true));
    }

    /// The process of a service's task ends by itself with this code. Answers whether there was one.
    pub fn exit(&self, service: &str, code: i32) -> bool {
        self.with(|world| world.exit(service, code))
    }

    /// The processes that run now, by their service's name; those of services that were removed, too.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        self.with(|world| world.processes())
    }

    /// What no swarm may be made to do: two processes in one directory, a directory taken away under a process.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.with(|world| world.violations.clone())
    }

    fn moment(&self) -> Duration {
        let start = *self.inner.start.get_or_init(Instant::now);
        Instant::now().saturating_duration_since(start)
    }

    /// tokio's time of a moment.
    fn instant(&self, at: Duration) -> Instant {
        *self.inner.start.get_or_init(Instant::now) + at
    }

    /// Lets everything happen that is due, then does this.
    fn with<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        let now = self.moment();
        let (answer, changed) = {
            let mut world = lock(&self.inner.world);
            world.advance(now);
            let answer = work(&mut world);
            (answer, world.take_changed())
        };
        if changed {
            self.inner.changed.send_replace(());
        }
        answer
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A Unix socket that a daemon listens on.
#[derive(Debug)]
pub struct Socket {
    directory: tempfile::TempDir,
    listener: tokio::task::AbortHandle,
    path: PathBuf,
}

impl Socket {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that it is in, and that goes with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.listener.abort();
    }
}
