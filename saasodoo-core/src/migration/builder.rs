//! What a migrator is made of.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use super::Journal;
use super::downtimes::Downtimes;
use super::engine::{Inner, Migrator};
use super::hooks::{
    Clock, DataLocator, NoProbe, NoRoute, NoSecrets, PreflightCheck, Probe, RootedData, RouteSwitch, SecretSource,
};
use crate::DynOrchestrator;

/// How long a migration waits for what.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MigrationConfig {
    /// One call to a platform. Not less than the backends' own deadline for an operation. Default: 130 s.
    pub call: Duration,
    /// How long after a change was asked for it may still happen when its answer was lost. Not less than
    /// [`call`](Self::call) and the backends' own deadline for undoing; for an instance that may take longer to stop it is
    /// its grace and 60 s. Default: 200 s.
    pub doubt: Duration,
    /// How long a call that fails for a reason that may pass is repeated. Default: 60 s.
    pub retry: Duration,
    /// The pause between two looks. Default: 500 ms.
    pub poll: Duration,
    /// The same while the tenant is down: each look that comes late is downtime. While a target starts it grows to
    /// [`poll`](Self::poll), a twentieth of the time that the start has taken: looks are work for those who start it.
    /// Default: 200 ms.
    pub poll_down: Duration,
    /// Seeing the last unit of a side end; an instance that may take longer to stop has its grace and 30 s. Default: 180 s.
    pub stop: Duration,
    /// Seeing the target's storage ready, while the tenant is still up. Kubernetes tries a binding that failed again after
    /// 15 s. Default: 120 s.
    pub storage: Duration,
    /// Seeing a side ready. Default: 420 s, as the system in production allows.
    pub ready: Duration,
    /// The probe, all attempts together. Default: 60 s.
    pub probe: Duration,
    /// One attempt of it: one that hangs leaves time for the next. Default: 10 s.
    pub probe_attempt: Duration,
    /// How long both sides are watched before the commit. Default: 120 s.
    pub bake: Duration,
    /// The pause between two looks while baking. Default: 2 s.
    pub bake_poll: Duration,
    /// How long after the commit the source is kept. Default: 72 h.
    pub rollback_window: Duration,
    /// What a plan says about the tenant's downtime before any was measured. Default: 45 s.
    pub expected_downtime: Duration,
    /// Takes an instance that is on the target already, when it is stopped, has the same spec and stands on the same
    /// data: what a mirroring [`DualRun`](crate::dual::DualRun) leaves there. Default: refuse.
    pub use_mirrored_copy: bool,
}

impl Default for MigrationConfig {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(130),
            doubt: Duration::from_secs(200),
            retry: Duration::from_secs(60),
            poll: Duration::from_millis(500),
            poll_down: Duration::from_millis(200),
            stop: Duration::from_secs(180),
            storage: Duration::from_secs(120),
            ready: Duration::from_secs(420),
            probe: Duration::from_secs(60),
            probe_attempt: Duration::from_secs(10),
            bake: Duration::from_secs(120),
            bake_poll: Duration::from_secs(2),
            rollback_window: Duration::from_secs(72 * 3600),
            expected_downtime: Duration::from_secs(45),
            use_mirrored_copy: false,
        }
    }
}

/// Builds a [`Migrator`].
#[derive(Debug)]
pub struct MigratorBuilder {
    source: DynOrchestrator,
    target: DynOrchestrator,
    identities: Option<(String, String)>,
    journal: Arc<dyn Journal>,
    locator: Arc<dyn DataLocator>,
    secrets: Arc<dyn SecretSource>,
    probe: Arc<dyn Probe>,
    route: Arc<dyn RouteSwitch>,
    checks: Vec<Arc<dyn PreflightCheck>>,
    config: MigrationConfig,
    clock: Clock,
    #[cfg(debug_assertions)]
    fence_is_broken: bool,
}

impl MigratorBuilder {
    pub(super) fn new(source: DynOrchestrator, target: DynOrchestrator) -> Self {
        Self {
            source,
            target,
            identities: None,
            journal: Arc::new(super::MemoryJournal::new()),
            locator: Arc::new(RootedData::under("")),
            secrets: Arc::new(NoSecrets),
            probe: Arc::new(NoProbe),
            route: Arc::new(NoRoute),
            checks: Vec::new(),
            config: MigrationConfig::default(),
            clock: Clock::system(),
            #[cfg(debug_assertions)]
            fence_is_broken: false,
        }
    }

    /// Keeps the journal there. Without one it is in memory, which is good for nothing but tests and dry runs.
    #[must_use]
    pub fn journal(mut self, journal: Arc<dyn Journal>) -> Self {
        self.journal = journal;
        self
    }

    /// Says which platforms these are, such as the API server with the namespace and the daemon's address. They are
    /// written down with each migration, and one that was begun between others does not go on here: an instance that
    /// is not found on another platform is not gone. Default: what the orchestrators display.
    #[must_use]
    pub fn identities(mut self, source: impl Into<String>, target: impl Into<String>) -> Self {
        self.identities = Some((source.into(), target.into()));
        self
    }

    /// The directory under which both platforms see the tenants' data.
    #[must_use]
    pub fn data_root(self, root: impl Into<String>) -> Self {
        self.data_locator(Arc::new(RootedData::under(root)))
    }

    /// Finds data in another way.
    #[must_use]
    pub fn data_locator(mut self, locator: Arc<dyn DataLocator>) -> Self {
        self.locator = locator;
        self
    }

    /// Completes specs with secrets from here.
    #[must_use]
    pub fn secrets(mut self, secrets: Arc<dyn SecretSource>) -> Self {
        self.secrets = secrets;
        self
    }

    /// Probes the tenant's Odoo before visitors are sent there.
    #[must_use]
    pub fn probe(mut self, probe: Arc<dyn Probe>) -> Self {
        self.probe = probe;
        self
    }

    /// Switches routes that lie outside the platforms.
    #[must_use]
    pub fn route(mut self, route: Arc<dyn RouteSwitch>) -> Self {
        self.route = route;
        self
    }

    /// Adds a check to the preflight.
    #[must_use]
    pub fn preflight_check(mut self, check: Arc<dyn PreflightCheck>) -> Self {
        self.checks.push(check);
        self
    }

    /// Waits as long as this says.
    #[must_use]
    pub fn config(mut self, config: MigrationConfig) -> Self {
        self.config = config;
        self
    }

    /// Takes the time from here.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Leaves the fence out, so that the crash explorer can show that it would notice. Only in builds with debug
    /// assertions.
    #[doc(hidden)]
    #[cfg(debug_assertions)]
    #[must_use]
    pub fn with_a_broken_fence(mut self) -> Self {
        self.fence_is_broken = true;
        self
    }

    /// The migrator.
    #[must_use]
    pub fn build(self) -> Migrator {
        let (source_identity, target_identity) = self
            .identities
            .unwrap_or_else(|| (self.source.to_string(), self.target.to_string()));
        Migrator {
            inner: Arc::new(Inner {
                source: self.source,
                target: self.target,
                source_identity,
                target_identity,
                journal: self.journal,
                locator: self.locator,
                secrets: self.secrets,
                probe: self.probe,
                route: self.route,
                checks: self.checks,
                config: self.config,
                clock: self.clock,
                downtimes: Downtimes::default(),
                progress: broadcast::Sender::new(1024),
                #[cfg(debug_assertions)]
                fence_is_broken: self.fence_is_broken,
            }),
        }
    }
}
