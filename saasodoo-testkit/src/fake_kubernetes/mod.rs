//! A Kubernetes API server in this process, with what runs behind one: for testing an adapter as it is, down to the
//! requests that it sends.
//!
//! [`FakeKubernetes::service`] answers HTTP requests as the real server does, so that any client can be made of it; with
//! kube:
//!
//! ```rust,ignore
//! let fake = FakeKubernetes::new();
//! let client = kube::Client::new(fake.service(), "saasodoo");
//! ```
//!
//! What is stored has one global version, selectors, pages that stay consistent, preconditions, conflicts, finalizers,
//! owner references, and watches with bookmarks that resume, expire and can be cut. Behind it work the controllers of
//! Deployments, of claims and volumes, and of owner references, a scheduler and a kubelet. Their processes are those of
//! the testbed's stand-in for Odoo: they have a log and a heartbeat in their data, and the variables `CRASH`, `EAT_MB`,
//! `SLOW` and `UNREADY` make them misbehave. An image of `localhost:1/…`, or of the tag `missing`, cannot be pulled.
//!
//! Everything happens on tokio's clock: paused, minutes take no time. There are no sockets and no real sleeps.
//!
//! # What it does not do
//!
//! Each of these is kinder or poorer than the real thing, and a test that depends on one belongs on a real cluster:
//!
//! - The times in objects are those of tokio's clock. An adapter that asks the wall clock finds them in the future while
//!   the clock is paused: what it decides by an age (a process that has *settled* after a crash, a pod that is *overdue*)
//!   is not decided here.
//! - There are no ReplicaSets, no Events and no node objects: pods belong to their Deployment directly, and why a
//!   mount fails is told by nothing but a container that is being created for ever.
//! - Server-side apply and JSON patches are answered with 415, deletions of collections with 405, and there are no
//!   managed fields. Of the defaults that a server fills in, those that an adapter may stumble over are.
//! - Validation covers names, labels, annotations, selectors, containers, requests above limits, and what is immutable;
//!   there are no schemas, and a priority class need not exist. Quantities stay as they were written.
//! - Subresources: the log of a pod, and no other. `status` cannot be written.
//! - An expansion of storage is carried out at once, a volume is provisioned at once, and nothing enforces a size.
//! - A liveness probe never fails once the process has answered; sidecars are shown as the first container is.
//! - While the server is stopped, controllers and kubelet go on working.
//! - Streaming lists are refused, as a server before 1.32 does.

mod api;
mod controllers;
mod merge;
mod pods;
mod refusal;
mod request;
mod rules;
mod selector;
mod state;
mod storage;
mod store;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use crate::contract::FaultGuard;
use state::{Fault, Planned, State};
use store::{CLAIMS, Key};

pub use wire::{FakeBody, FakeKubernetesService};

/// A Kubernetes API server in this process. Cheap to clone; clones are the same server.
#[derive(Clone)]
pub struct FakeKubernetes {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Wakes the streams.
    changed: watch::Sender<u64>,
    /// Wakes the controllers.
    wake: Arc<Notify>,
    controllers: Mutex<Option<JoinHandle<()>>>,
    latency: Duration,
}

/// Makes a [`FakeKubernetes`].
#[derive(Debug, Clone)]
#[must_use]
pub struct FakeKubernetesBuilder {
    namespaces: Vec<String>,
    storage_class: String,
    latency: Duration,
    boot: Duration,
    binding: Duration,
    late: Duration,
}

impl FakeKubernetesBuilder {
    /// One more namespace.
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.namespaces.push(name.into());
        self
    }

    /// The name of the storage class, in the place of `cephfs-saasodoo`. It provisions at once and retains, and lets
    /// storage grow.
    pub fn storage_class(mut self, name: impl Into<String>) -> Self {
        self.storage_class = name.into();
        self
    }

    /// How long an answer takes, in the place of 4 ms: half of it passes before the request has its effect.
    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// How long a process takes from its start until it listens, in the place of 200 ms.
    pub fn start_time(mut self, time: Duration) -> Self {
        self.boot = time;
        self
    }

    /// How long a new claim is without its volume, in the place of no time. A real one mostly takes none, too; when the
    /// controller loses a race with itself, it is as long as its `--pvclaimbinder-sync-period`, 15 s.
    pub fn bind_time(mut self, time: Duration) -> Self {
        self.binding = time;
        self
    }

    /// How late the collector of garbage is: an object that is deleted in the foreground goes at once, for it does not know
    /// yet what that owns, and what it owned goes after this time. A real one does so with new objects on a busy machine.
    pub fn collector_lag(mut self, time: Duration) -> Self {
        self.late = time;
        self
    }

    /// The server. Its controllers start with the first request.
    #[must_use]
    pub fn build(self) -> FakeKubernetes {
        let mut state = State::new(&self.namespaces, &self.storage_class);
        state.boot = self.boot;
        state.binding = self.binding;
        state.late = self.late;
        FakeKubernetes {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
                changed: watch::Sender::new(0),
                wake: Arc::default(),
                controllers: Mutex::new(None),
                latency: self.latency,
            }),
        }
    }
}

impl Default for FakeKubernetes {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FakeKubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.state();
        f.debug_struct("FakeKubernetes")
            .field("version", &state.store.version())
            .field("requests", &state.requests)
            .finish_non_exhaustive()
    }
}

impl FakeKubernetes {
    /// A server with the namespaces `default` and `saasodoo` and the storage class `cephfs-saasodoo`.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// One with other settings.
    pub fn builder() -> FakeKubernetesBuilder {
        FakeKubernetesBuilder {
            namespaces: vec!["default".to_owned(), "saasodoo".to_owned()],
            storage_class: "cephfs-saasodoo".to_owned(),
            latency: Duration::from_millis(4),
            boot: Duration::from_millis(200),
            binding: Duration::ZERO,
            late: Duration::ZERO,
        }
    }

    /// The way to it.
    #[must_use]
    pub fn service(&self) -> FakeKubernetesService {
        FakeKubernetesService(self.clone())
    }

    // Faults.

    /// The connection breaks before the n-th request from now (from 1) arrives. Watches and logs do not count: they run
    /// in the background.
    #[must_use]
    pub fn fail_nth_request(&self, n: u32) -> FaultGuard {
        self.plan(n, Fault::Before)
    }

    /// The n-th request from now (from 1) has its effect, and its answer is lost.
    #[must_use]
    pub fn lose_nth_response(&self, n: u32) -> FaultGuard {
        self.plan(n, Fault::After)
    }

    fn plan(&self, n: u32, fault: Fault) -> FaultGuard {
        let hit = Arc::new(AtomicBool::new(false));
        let mut state = self.inner.state();
        let id = state.next_number();
        state.fault = Some(Planned {
            id,
            left: n.max(1),
            fault,
            hit: Arc::clone(&hit),
        });
        let fake = self.clone();
        FaultGuard::new(hit, move || {
            let mut state = fake.inner.state();
            state.fault.take_if(|planned| planned.id == id);
        })
    }

    /// How many requests arrived, watches and logs not counted.
    #[must_use]
    pub fn count_requests(&self) -> u64 {
        self.inner.state().requests
    }

    /// Breaks all connections, and refuses new ones until [`start_server`](Self::start_server).
    pub fn stop_server(&self) {
        self.cut(true);
    }

    /// Takes connections again.
    pub fn start_server(&self) {
        self.inner.state().down = false;
    }

    /// Refuses watches and nothing else, and breaks those that there are; `false`: takes them again.
    pub fn fail_watches(&self, fail: bool) {
        self.inner.state().blind = fail;
        if fail {
            self.cut(false);
        }
    }

    /// Breaks all connections.
    pub fn cut_connections(&self) {
        self.cut(false);
    }

    fn cut(&self, down: bool) {
        let mut state = self.inner.state();
        state.down |= down;
        state.epoch += 1;
        state.touched += 1;
        drop(state);
        self.inner.publish();
    }

    /// Forgets all changes so far: watches that are behind, and lists that are read page by page, are answered with 410.
    pub fn compact(&self) {
        self.inner.state().store.compact();
    }

    /// Refuses a verb on a resource, such as `list` on `deployments` or `get` on `pods/log`, and says so when it is asked
    /// (SelfSubjectAccessReview).
    pub fn deny(&self, verb: impl Into<String>, resource: impl Into<String>) {
        self.inner.state().denied.insert((verb.into(), resource.into()));
    }

    /// Serves a kind such as `IngressRoute` no more, as when its definition was never installed.
    pub fn remove_kind(&self, kind: impl Into<String>) {
        self.inner.state().absent.push(kind.into());
    }

    /// Admits no new pods, and says so: `exceeded quota: …` is what a quota says. `None`: admits them again.
    pub fn refuse_pods(&self, why: Option<&str>) {
        let mut state = self.inner.state();
        state.no_pods = why.map(str::to_owned);
        state.retry_deployments();
        drop(state);
        self.inner.publish();
    }

    // Data.

    /// Makes a directory on the node, such as one that is to be adopted by a hostPath volume.
    pub fn make_directory(&self, path: impl Into<String>) {
        self.inner.state().directories.entry(path.into()).or_default();
    }

    /// Removes a directory with what is in it.
    pub fn remove_directory(&self, path: &str) {
        self.inner.state().directories.remove(path);
    }

    /// The directory behind a claim; `None` while it has no volume.
    #[must_use]
    pub fn directory_of_claim(&self, namespace: &str, name: &str) -> Option<String> {
        self.inner
            .state()
            .directory_of_claim(&Key::new(CLAIMS, namespace, name))
    }

    /// The directory behind a volume; `None` when there is no such volume.
    #[must_use]
    pub fn directory_of_volume(&self, name: &str) -> Option<String> {
        pods::directory_of_volume(&self.inner.state(), name)
    }

    /// Writes a file. False when there is no such directory.
    pub fn write_file(&self, directory: &str, name: &str, content: &str) -> bool {
        let mut state = self.inner.state();
        let Some(files) = state.directories.get_mut(directory) else {
            return false;
        };
        files.insert(name.to_owned(), content.to_owned());
        true
    }

    /// Reads a file. `None`: it, or the directory, is not there.
    #[must_use]
    pub fn read_file(&self, directory: &str, name: &str) -> Option<String> {
        let mut state = self.inner.state();
        state.beat_on(directory);
        state
            .directories
            .get(directory)
            .and_then(|files| files.get(name).cloned())
    }

    /// All directories, with the number of files in each.
    #[must_use]
    pub fn directories(&self) -> BTreeMap<String, usize> {
        let state = self.inner.state();
        state
            .directories
            .iter()
            .map(|(path, files)| (path.clone(), files.len()))
            .collect()
    }

    /// What must never happen to a tenant's data, and did: two processes on one directory, or one that was deleted while
    /// it was in use.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.inner.state().violations.clone()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whom the latest changes concern.
    fn publish(&self) {
        let touched = self.state().touched;
        self.changed
            .send_if_modified(|seen| std::mem::replace(seen, touched) != touched);
        self.wake.notify_one();
    }

    /// Starts the controllers, unless they run. They end with the server, or with the runtime that they run in.
    fn keep_running(self: &Arc<Self>) {
        let mut controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        if controllers.as_ref().is_none_or(JoinHandle::is_finished) {
            *controllers = Some(tokio::spawn(control(Arc::downgrade(self), Arc::clone(&self.wake))));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(controllers) = controllers.take() {
            controllers.abort();
        }
    }
}

/// Does what is due, when it is due.
async fn control(inner: Weak<Inner>, wake: Arc<Notify>) {
    loop {
        let due = {
            let Some(inner) = inner.upgrade() else { return };
            let mut state = inner.state();
            state.run();
            let (due, touched) = (state.next_due(), state.touched);
            drop(state);
            inner
                .changed
                .send_if_modified(|seen| std::mem::replace(seen, touched) != touched);
            due
        };
        match due {
            Some(due) => tokio::select! {
                () = sleep_until(due) => {}
                () = wake.notified() => {}
            },
            None => wake.notified().await,
        }
    }
}
