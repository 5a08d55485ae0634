//! A platform in memory: a faithful simulation on tokio's clock.
//!
//! Instances take their time to start and to stop, crash and come back, lose their node and run out of memory; their
//! data outlives them; whoever watches sees each change. With a paused clock (`start_paused`) all of that is instant
//! and the same in every run; on a running clock it behaves like a small, quick platform.
//!
//! A [`MemoryOrchestrator`] is a handle: its clones are the same platform, so a test keeps one and gives another to what
//! it tests.
//!
//! ```
//! use std::time::Duration;
//! use saasodoo_core::{InstanceOrchestrator, InstanceOrchestratorExt, InstanceStatus};
//! use saasodoo_testkit::fixtures;
//! use saasodoo_testkit::memory::{MemoryOrchestrator, Trouble};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> saasodoo_core::Result<()> {
//! let memory = MemoryOrchestrator::new();
//! let spec = fixtures::spec("acme");
//! let instance = memory.create_and_wait(&spec, Duration::from_secs(60)).await?;
//! assert_eq!(instance.status, InstanceStatus::Running);
//!
//! memory.cause(spec.id, Trouble::OutOfMemory);
//! tokio::time::sleep(Duration::from_secs(5)).await;
//! let instance = memory.get(spec.id).await?;
//! assert_eq!(instance.cause.map(|cause| cause.code()), Some("out_of_memory"));
//! # Ok(())
//! # }
//! ```
//!
//! # What the image does
//!
//! The simulated image reads the environment that the testbed's stand-in for Odoo reads: `CRASH=n` ends with code n at
//! once, `EAT_MB=n` is killed for memory when n MiB are more than the limit, `SLOW=n` waits n seconds before it listens,
//! `UNREADY=1` never answers its probe. An image whose tag is `missing` cannot be pulled.
//!
//! # What is simplified
//!
//! Growth of storage is instant, an unready instance is not restarted by its liveness probe, and a unit on a lost node
//! stays there until the node comes back: the platform makes no second one beside it.

mod clock;
mod fault;
mod logs;
mod operations;
mod orchestrator;
mod subject;
#[cfg(test)]
mod tests;
mod unit;
mod volume;
mod watch;
mod world;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use saasodoo_core::{
    BackendKind, Capabilities, Capability, Config, DataPath, Error, Hold, Host, InstanceFilter, InstanceId,
    InstanceSpec, OperationKind, Result, StorageLocation, Unparsed,
};
use tokio::sync::watch as signal;
use tokio::time::Instant;

use crate::contract::FaultGuard;

pub use fault::{Call, Fault, FaultPlan, PlannedFault};
pub use subject::MemorySubject;
pub use unit::Trouble;
pub use volume::{HEARTBEAT_FILE, Heartbeat, Violation, Writer};

use clock::{Clock, Moment};
use fault::Faults;
use volume::Volumes;
use world::{Universe, World};

/// How a simulated platform is set up.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    kind: BackendKind,
    config: Config,
    capabilities: Capabilities,
    pull_time: Duration,
    start_time: Duration,
    stop_time: Duration,
    crash_back_off: Duration,
    latency: Duration,
    data_root: String,
}

/// Sets up a [`MemoryOrchestrator`].
///
/// ```
/// use std::time::Duration;
/// use saasodoo_core::BackendKind;
/// use saasodoo_testkit::memory::MemoryOrchestrator;
///
/// let swarm = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
/// let kubernetes = MemoryOrchestrator::builder()
///     .posing_as(BackendKind::Kubernetes)
///     .sharing_data_with(&swarm)
///     .start_time(Duration::from_secs(20))
///     .build();
/// assert_eq!(kubernetes.to_string(), "kubernetes (in memory)");
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct MemoryBuilder {
    settings: Settings,
    seed: u64,
    epoch: Option<Timestamp>,
    faults: FaultPlan,
    shared: Option<Arc<Shared>>,
}

impl MemoryBuilder {
    /// The settings that all backends share. Of these the simulation uses the base domain, the namespace, the deadline
    /// of termination and `retain_storage`.
    pub fn config(mut self, config: Config) -> Self {
        self.settings.config = config;
        self
    }

    /// The domain under which every instance has its default host.
    pub fn base_domain(mut self, domain: Host) -> Self {
        self.settings.config.base_domain = domain;
        self
    }

    /// From the start of a process until it answers. Default: 2 s.
    pub fn start_time(mut self, time: Duration) -> Self {
        self.settings.start_time = time;
        self
    }

    /// From the order to stop until the process has ended, at most the spec's grace period. Default: 1 s.
    pub fn stop_time(mut self, time: Duration) -> Self {
        self.settings.stop_time = time;
        self
    }

    /// How long a node needs to get the image. Default: 1 s.
    pub fn pull_time(mut self, time: Duration) -> Self {
        self.settings.pull_time = time;
        self
    }

    /// The pause between the first end of a process and its next start, doubled each time up to five minutes.
    /// Default: 1 s.
    pub fn crash_back_off(mut self, pause: Duration) -> Self {
        self.settings.crash_back_off = pause;
        self
    }

    /// How long each call takes to arrive. Default: nothing.
    pub fn latency(mut self, latency: Duration) -> Self {
        self.settings.latency = latency;
        self
    }

    /// What the backend can do. Default: everything but cached reads. With those, a `get` after the first watch is no
    /// call any more: it is not recorded and meets no fault.
    pub fn capabilities(mut self, capabilities: Capabilities) -> Self {
        self.settings.capabilities = capabilities;
        self
    }

    /// The kind that the backend says it is, and how it tells where data is: a claim on Kubernetes, whose lists know only
    /// what was asked for, a directory on Swarm. Default: [`BackendKind::Memory`].
    pub fn posing_as(mut self, kind: BackendKind) -> Self {
        self.settings.kind = kind;
        self
    }

    /// The directory under which all data lies. Default: `/mnt/cephfs/odoo_instances`.
    pub fn data_root(mut self, root: impl Into<String>) -> Self {
        self.settings.data_root = root.into();
        self
    }

    /// Sees the same directories as that one, as two platforms with the same CephFS do, and the same clock.
    pub fn sharing_data_with(mut self, other: &MemoryOrchestrator) -> Self {
        self.shared = Some(Arc::clone(&other.shared));
        self
    }

    /// Where the names of units come from. Default: 0. Without effect when the data is that of another.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The time of day at which the simulation starts, cut to whole seconds. Default: the present one. Without effect
    /// when the clock is that of another.
    pub fn starting_at(mut self, time: Timestamp) -> Self {
        self.epoch = Some(time);
        self
    }

    /// What goes wrong.
    pub fn faults(mut self, plan: FaultPlan) -> Self {
        self.faults = plan;
        self
    }

    /// The platform.
    #[must_use]
    pub fn build(self) -> MemoryOrchestrator {
        let shared = self.shared.unwrap_or_else(|| {
            let clock = Clock::starting_at(self.epoch.unwrap_or_else(Timestamp::now));
            Arc::new(Shared {
                universe: Mutex::new(Universe::new(clock.base(), self.seed)),
                clock,
                changed: signal::Sender::new(0),
            })
        });
        let kind = self.settings.kind;
        let mut world = World::new(self.settings, shared.clock.base());
        world.faults = Faults::new(self.faults);
        let index = {
            let mut universe = shared.lock();
            universe.worlds.push(world);
            universe.worlds.len() - 1
        };
        MemoryOrchestrator { shared, index, kind }
    }
}

/// What all handles of all platforms with the same data have in common.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    universe: Mutex<Universe>,
    /// Counts what was done from outside, for those who wait for the next thing that time brings.
    changed: signal::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Universe> {
        // No user code runs under the lock, so a panic cannot leave it half-way.
        self.universe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An [`InstanceOrchestrator`](saasodoo_core::InstanceOrchestrator) in memory. A cheap handle: clones are the same
/// platform. See the [module](self).
#[derive(Clone)]
pub struct MemoryOrchestrator {
    shared: Arc<Shared>,
    index: usize,
    kind: BackendKind,
}

impl Default for MemoryOrchestrator {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for MemoryOrchestrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            BackendKind::Memory => f.write_str("memory"),
            kind => write!(f, "{kind} (in memory)"),
        }
    }
}

impl fmt::Debug for MemoryOrchestrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryOrchestrator")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl MemoryOrchestrator {
    /// A platform with the default settings and nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Starts from the default settings.
    pub fn builder() -> MemoryBuilder {
        MemoryBuilder {
            settings: Settings {
                kind: BackendKind::Memory,
                config: Config::default(),
                capabilities: Capabilities::all().without(Capability::CachedGet),
                pull_time: Duration::from_secs(1),
                start_time: Duration::from_secs(2),
                stop_time: Duration::from_secs(1),
                crash_back_off: Duration::from_secs(1),
                latency: Duration::ZERO,
                data_root: "/mnt/cephfs/odoo_instances".to_owned(),
            },
            seed: 0,
            epoch: None,
            faults: FaultPlan::new(),
            shared: None,
        }
    }

    // --- what a test does to an instance ----------------------------------------------------------------------------

    /// Causes trouble for an instance until it is [cleared](Self::clear); also before the instance exists. Trouble of
    /// several kinds can be caused at once.
    pub fn cause(&self, id: InstanceId, trouble: Trouble) {
        self.write(|world, volumes, at| world.cause(id, trouble, at, volumes));
    }

    /// Ends all trouble of an instance: what was given up is tried again, and the process of an
    /// [orphan](Self::orphan) ends.
    pub fn clear(&self, id: InstanceId) {
        self.write(|world, volumes, at| world.clear(id, at, volumes));
    }

    /// Ends the instance's process once, with this code; the platform starts it again after a pause.
    ///
    /// # Errors
    /// `NotFound`; `NotAllowed` when it has no process.
    pub fn crash(&self, id: InstanceId, exit_code: i32) -> Result<()> {
        self.write(|world, volumes, at| world.crash(id, exit_code, at, volumes))
    }

    /// Changes what the platform has of the spec behind everybody's back, as a person with a console does. The running
    /// process is left alone, and so are the hosts that are routed to it. When somebody else changes the instance
    /// meanwhile, the edit is made again on what is there then.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn edit_by_hand(&self, id: InstanceId, mut edit: impl FnMut(&mut InstanceSpec)) -> Result<()> {
        loop {
            let (id, mut spec, revision) = self.read(|world, _, _| {
                let id = world.resolve(id)?;
                let tenant = world.tenant(id)?;
                Ok((id, tenant.spec.clone(), tenant.revision))
            })?;
            // Not under the lock: the edit is the caller's code.
            edit(&mut spec);
            spec.id = id;
            let done = self.write(|world, volumes, at| {
                let unchanged = world.tenant(world.resolve(id)?)?.revision == revision;
                if unchanged {
                    world.change(id, at, volumes, |tenant| tenant.spec = spec);
                }
                Ok(unchanged)
            })?;
            if done {
                return Ok(());
            }
        }
    }

    /// Removes the instance's main object by hand and leaves its process alone, as `kubectl delete --cascade=orphan`
    /// does; where the platform poses as Swarm the task drains, as after `docker service rm`. For as long as a process
    /// of it lives, every question about the instance is answered with an error that is not `NotFound`, its data cannot be
    /// had by another, and lists and watches do not know it. [`clear`](Self::clear) ends the process.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it is an orphan already.
    pub fn orphan(&self, id: InstanceId) -> Result<()> {
        self.write(|world, volumes, at| world.orphan(id, at, volumes))
    }

    /// Makes a part of the instance's objects one that cannot be understood.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn garble(&self, id: InstanceId, unparsed: Unparsed) -> Result<()> {
        self.write(|world, volumes, at| {
            let id = world.resolve(id)?;
            world.change(id, at, volumes, |tenant| tenant.unparsed.push(unparsed));
            Ok(())
        })
    }

    /// Holds an instance for maintenance, or ends that. Its process is left alone.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn hold_for_maintenance(&self, id: InstanceId, held: bool) -> Result<()> {
        self.write(|world, volumes, at| {
            let id = world.resolve(id)?;
            world.change(id, at, volumes, |tenant| {
                tenant.hold = held.then_some(Hold::Maintenance)
            });
            Ok(())
        })
    }

    // --- faults and calls -------------------------------------------------------------------------------------------

    /// Replaces the planned faults; counting starts anew.
    pub fn plan_faults(&self, plan: FaultPlan) {
        self.write(|world, _, _| world.faults = Faults::new(plan));
    }

    /// Adds a fault to what is planned, counting from now on. Dropping the guard takes it away.
    pub fn add_fault(&self, fault: PlannedFault) -> FaultGuard {
        let (number, struck) = self.write(|world, _, _| world.faults.add(fault));
        let memory = self.clone();
        FaultGuard::new(struck, move || memory.write(|world, _, _| world.faults.remove(number)))
    }

    /// Cuts off everybody who watches for so long: they hear that they are out of touch, and afterwards what they
    /// missed.
    pub fn cut_watches(&self, duration: Duration) {
        self.write(|world, _, at| world.cut_watches(at + duration, "the connection was cut"));
    }

    /// Every call so far, in the order of arrival.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.peek(|world| world.calls.clone())
    }

    /// How many calls of an operation there were.
    #[must_use]
    pub fn count_calls(&self, operation: OperationKind) -> usize {
        self.peek(|world| world.calls.iter().filter(|call| call.operation == operation).count())
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.write(|world, _, _| world.calls.clear());
    }

    // --- data -------------------------------------------------------------------------------------------------------

    /// Makes an empty directory that can be adopted, and answers where it is.
    pub fn make_directory(&self, path: &DataPath) -> StorageLocation {
        self.write(|world, volumes, _| {
            volumes.make(path.as_str());
            world.adopted_data(path).location
        })
    }

    /// Writes a file of an instance's data, as the tenant would.
    ///
    /// # Errors
    /// `StorageMissing` when there is no such data; `QuotaExceeded` when it is full; `InvalidInput` for the
    /// [heartbeat](HEARTBEAT_FILE).
    pub fn write_file(&self, location: &StorageLocation, name: &str, content: impl Into<Vec<u8>>) -> Result<()> {
        let content = content.into();
        self.write(|world, volumes, at| {
            let enforced = world.supports(Capability::StorageQuota);
            volumes.write(&world.key_of(location)?, name, content, enforced, at)
        })
    }

    /// Reads a file of an instance's data; `None` when it does not exist.
    ///
    /// # Errors
    /// `StorageMissing` when there is no such data.
    pub fn read_file(&self, location: &StorageLocation, name: &str) -> Result<Option<Vec<u8>>> {
        self.read(|world, volumes, at| volumes.read(&world.key_of(location)?, name, at))
    }

    /// What processes have written to the data, a line for each second in which they ran.
    ///
    /// # Errors
    /// `StorageMissing` when there is no such data.
    pub fn heartbeats(&self, location: &StorageLocation) -> Result<Vec<Heartbeat>> {
        self.read(|world, volumes, at| volumes.heartbeats(&world.key_of(location)?, at))
    }

    /// The units that have the data open now, of all backends that share it.
    ///
    /// # Errors
    /// `StorageMissing` when the location is none of this backend's.
    pub fn writers(&self, location: &StorageLocation) -> Result<Vec<Writer>> {
        self.read(|world, volumes, _| Ok(volumes.writers(&world.key_of(location)?)))
    }

    /// Deletes data behind everybody's back, as a person with a console does.
    ///
    /// # Errors
    /// `StorageMissing` when the location is none of this backend's.
    pub fn destroy_data(&self, location: &StorageLocation) -> Result<()> {
        self.write(|world, volumes, at| {
            volumes.delete(&world.key_of(location)?, at);
            Ok(())
        })
    }

    /// The names of all directories with data, of all backends that share it.
    #[must_use]
    pub fn volumes(&self) -> Vec<String> {
        self.read(|_, volumes, _| volumes.names())
    }

    /// Everything that must never happen to a tenant's data and did, on any backend that shares it.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.read(|_, volumes, _| volumes.violations())
    }

    /// How long the simulation has been going on.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.shared.clock.now()
    }

    // --- for the parts of this module -------------------------------------------------------------------------------

    /// Looks at the world as it is now.
    fn read<T>(&self, look: impl FnOnce(&mut World, &mut Volumes, Moment) -> T) -> T {
        let now = self.shared.clock.now();
        let mut universe = self.shared.lock();
        let at = universe.advance(now);
        let Universe { worlds, volumes, .. } = &mut *universe;
        look(&mut worlds[self.index], volumes, at)
    }

    /// Changes the world, at one point, and tells those who wait.
    fn write<T>(&self, change: impl FnOnce(&mut World, &mut Volumes, Moment) -> T) -> T {
        let answer = self.read(change);
        self.shared.changed.send_modify(|count| *count = count.wrapping_add(1));
        answer
    }

    /// Looks at what time does not change.
    fn peek<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.shared.lock().worlds[self.index])
    }

    fn changes(&self) -> signal::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// When something happens next by itself, after everything that is due has happened.
    fn due(&self) -> Option<Moment> {
        let now = self.shared.clock.now();
        let mut universe = self.shared.lock();
        universe.advance(now);
        universe.due()
    }

    fn instant(&self, at: Moment) -> Instant {
        self.shared.clock.instant(at)
    }

    async fn until_due(&self, due: Option<Moment>) {
        match due {
            Some(at) => tokio::time::sleep_until(self.instant(at)).await,
            None => std::future::pending().await,
        }
    }

    /// A call arrives: it is recorded, takes its time, and meets its fault, as far as that comes before the answer.
    async fn arrive(&self, mut call: Call) -> Option<Fault> {
        let (fault, latency) = self.read(|world, _, at| {
            call.at = at;
            call.fault = world.faults.meet(&call);
            world.calls.push(call.clone());
            (call.fault.clone(), world.settings.latency)
        });
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        match &fault {
            Some(Fault::Delay(by)) => tokio::time::sleep(*by).await,
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Panic) => panic!("a planned fault: {} panics", call.operation),
            _ => {}
        }
        fault
    }

    async fn arrive_or_fail(&self, call: Call) -> Result<Option<Fault>> {
        match self.arrive(call).await {
            Some(Fault::Fail(kind)) => Err(fault::failed(kind)),
            fault => Ok(fault),
        }
    }

    /// The answer goes back, and meets what is left of the fault.
    async fn depart<T>(&self, fault: Option<Fault>, answer: Result<T>) -> Result<T> {
        match fault {
            Some(Fault::LoseResponse) => Err(fault::lost()),
            Some(Fault::HangAfter) => std::future::pending().await,
            Some(Fault::DelayResponse(by)) => {
                tokio::time::sleep(by).await;
                answer
            }
            _ => answer,
        }
    }

    async fn around<T: Send>(&self, call: Call, apply: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let fault = self.arrive_or_fail(call).await?;
        let answer = apply();
        self.depart(fault, answer).await
    }

    fn context(&self, error: Error, operation: OperationKind, id: Option<InstanceId>) -> Error {
        let error = error.with_operation(operation).with_backend(self.kind);
        match id {
            Some(id) => error.with_instance(id),
            None => error,
        }
    }
}

/// The instance that a filter is about, when it is about one.
fn only_id(filter: &InstanceFilter) -> Option<InstanceId> {
    match filter.ids[..] {
        [id] => Some(id),
        _ => None,
    }
}
