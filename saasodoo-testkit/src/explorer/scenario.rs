//! Two platforms with a fleet, for users' own tests of what they do around a migration.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use saasodoo_core::migration::{
    Clock, Control, Force, Journal, KnownSecrets, MemoryJournal, MigrationConfig, Migrator, MigratorBuilder, Wave,
    WaveOptions, WaveSummary,
};
use saasodoo_core::{
    BackendKind, DynOrchestrator, InstanceId, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, Result,
};

use crate::fixtures;
use crate::memory::{MemoryOrchestrator, Violation};

/// An old and a new platform in memory that share their data, a fleet on the old one, and a migrator between them.
///
/// ```
/// use saasodoo_core::migration::WaveOptions;
/// use saasodoo_testkit::explorer::Scenario;
/// use saasodoo_testkit::memory::Trouble;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> saasodoo_core::Result<()> {
/// let scenario = Scenario::with_fleet(5).await?;
/// scenario.new.cause(scenario.ids()[2], Trouble::Unready);
/// let report = scenario.migrate(WaveOptions::default()).await?;
/// assert_eq!(report.summary.committed.len(), 4);
/// assert_eq!(report.summary.rolled_back.len(), 1);
/// report.assert_nobody_was_hurt();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Scenario {
    /// Where the fleet is: it poses as a Swarm.
    pub old: MemoryOrchestrator,
    /// Where it goes: it poses as Kubernetes.
    pub new: MemoryOrchestrator,
    /// The fleet.
    pub specs: Vec<InstanceSpec>,
    /// The journal of its migration.
    pub journal: Arc<dyn Journal>,
    clock: Clock,
}

/// What became of a scenario.
#[derive(Debug)]
#[non_exhaustive]
pub struct ScenarioReport {
    /// The wave's own summary.
    pub summary: WaveSummary,
    /// Tenants that do not run on exactly one side, with what is wrong.
    pub hurt: Vec<(InstanceId, String)>,
    /// What must never happen to data and did.
    pub violations: Vec<Violation>,
}

impl Scenario {
    /// So many running tenants on the old platform.
    ///
    /// # Errors
    /// Those of the creations.
    pub async fn with_fleet(size: u32) -> Result<Self> {
        Self::with_specs(fixtures::fleet(size)).await
    }

    /// These tenants on the old platform, running.
    ///
    /// # Errors
    /// Those of the creations.
    pub async fn with_specs(specs: Vec<InstanceSpec>) -> Result<Self> {
        let old = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
        let new = MemoryOrchestrator::builder()
            .posing_as(BackendKind::Kubernetes)
            .sharing_data_with(&old)
            .build();
        for spec in &specs {
            old.create_and_wait(spec, Duration::from_secs(60)).await?;
        }
        Ok(Self {
            old,
            new,
            specs,
            journal: Arc::new(MemoryJournal::new()),
            clock: Clock::tokio(Timestamp::now()),
        })
    }

    /// The ids of the fleet.
    #[must_use]
    pub fn ids(&self) -> Vec<InstanceId> {
        self.specs.iter().map(|spec| spec.id).collect()
    }

    /// A migrator from the old to the new platform, to be completed with hooks of the test's own.
    #[must_use]
    pub fn migrator(&self) -> MigratorBuilder {
        let (old, new): (DynOrchestrator, DynOrchestrator) = (Arc::new(self.old.clone()), Arc::new(self.new.clone()));
        Migrator::builder(old, new)
            .journal(Arc::clone(&self.journal))
            .data_root("/mnt/cephfs/odoo_instances")
            .secrets(Arc::new(KnownSecrets::of(self.specs.clone())))
            .clock(self.clock.clone())
            .config(MigrationConfig::default())
    }

    /// Moves the whole fleet in one wave.
    ///
    /// # Errors
    /// Those of the wave.
    pub async fn migrate(&self, options: WaveOptions) -> Result<ScenarioReport> {
        self.migrate_with(&self.migrator().build(), options, &Control::new(), Force::none())
            .await
    }

    /// Moves the whole fleet in one wave with this migrator.
    ///
    /// # Errors
    /// Those of the wave.
    pub async fn migrate_with(
        &self,
        migrator: &Migrator,
        mut options: WaveOptions,
        control: &Control,
        force: Force,
    ) -> Result<ScenarioReport> {
        options.force = force;
        let summary = Wave::new(migrator, options).run(&self.ids(), control).await?;
        let mut hurt = Vec::new();
        for id in self.ids() {
            let (old, new) = (self.old.status(id).await?, self.new.status(id).await?);
            let up = |status| status == InstanceStatus::Running;
            if up(old) == up(new) {
                hurt.push((id, format!("{old} on the old platform and {new} on the new one")));
            }
        }
        Ok(ScenarioReport {
            summary,
            hurt,
            violations: self.old.violations(),
        })
    }
}

impl ScenarioReport {
    /// Fails unless every tenant runs on exactly one side and no data had two writers or was lost.
    ///
    /// # Panics
    /// Then.
    pub fn assert_nobody_was_hurt(&self) {
        assert!(self.hurt.is_empty(), "{:#?}", self.hurt);
        assert!(self.violations.is_empty(), "{:#?}", self.violations);
    }
}
