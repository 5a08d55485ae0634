//! Where each tenant lives now, by what the migrations wrote down.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::placement::{MemoryPlacement, Place, Placement, PlacementStore};
use crate::migration::{Entry, Journal, Record, Side, Step};
use crate::{BackendKind, Error, ErrorKind, InstanceId, OperationKind, Result};

/// Placements by the journal of the migrations: as durable as it is, and no second truth beside it.
///
/// It is a [`Journal`] itself: give it to the [`Migrator`](crate::migration::Migrator) in place of the one it reads,
/// and each placement changes in the moment in which the journal holds the reason. No route hook is needed for it.
/// What another process appends to the same journal is not seen: migrate in the process that serves, or keep the
/// placements in a database that both share.
///
/// The journal must keep the records of migrations that are over, as
/// [`FileJournal`](crate::migration::FileJournal) does. An
/// [`ObjectJournal`](crate::migration::ObjectJournal) does not.
///
/// ```
/// use std::sync::Arc;
/// use saasodoo_core::dual::{DualRun, JournalPlacement};
/// use saasodoo_core::migration::{FileJournal, Migrator};
/// use saasodoo_core::{BackendKind, DynOrchestrator, Result};
///
/// async fn start(swarm: DynOrchestrator, kubernetes: DynOrchestrator) -> Result<(DualRun, Migrator)> {
///     let journal = Arc::new(FileJournal::open("state/journal.jsonl")?);
///     let placement = Arc::new(JournalPlacement::open(journal, BackendKind::Swarm).await?);
///     let dual = DualRun::builder(swarm.clone(), kubernetes.clone())
///         .placement(placement.clone())
///         .build();
///     let migrator = Migrator::builder(swarm, kubernetes).journal(placement).build();
///     Ok((dual, migrator))
/// }
/// ```
#[derive(Debug)]
pub struct JournalPlacement {
    journal: Arc<dyn Journal>,
    primary: BackendKind,
    known: MemoryPlacement,
}

impl JournalPlacement {
    /// Reads the whole journal. `primary` is the kind of the dual run's primary, by which the direction of a migration
    /// is known; between two platforms of one kind the source is taken for the primary.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn open(journal: Arc<dyn Journal>, primary: BackendKind) -> Result<Self> {
        let new = Self {
            journal,
            primary,
            known: MemoryPlacement::new(),
        };
        for record in new.journal.load_all().await? {
            new.learn(&record);
        }
        Ok(new)
    }

    fn learn(&self, record: &Record) {
        let Some(placement) = placement_of(record, self.primary) else {
            return;
        };
        if self.known.find(record.instance) != Some(placement) {
            self.known.put(record.instance, placement);
        }
    }

    /// The journal says it; who says something else has another journal.
    fn is_recorded(&self, id: InstanceId) -> Result<()> {
        match self.known.find(id) {
            Some(_) => Ok(()),
            None => Err(Error::new(
                ErrorKind::NotAllowed,
                "the journal that the placements are read from knows of no migration of it",
            )
            .with_operation(OperationKind::Migrate)
            .with_instance(id)
            .with_advice("give the migrator this placement as its journal")),
        }
    }
}

/// Where a record says that the tenant lives. Begun, and not even found on the source, it says nothing. Until the
/// preflight has seen it on the source only, it lives where the migration before has left it.
fn placement_of(record: &Record, primary: BackendKind) -> Option<Placement> {
    if record.passed_preflight() {
        return Some(placement_by_step(record, primary));
    }
    if let Some(home) = record.lived_on {
        let on_primary = match record.source == record.target {
            true => home.side == Side::Source,
            false => home.backend == primary,
        };
        let place = if on_primary { Place::Primary } else { Place::Secondary };
        return Some(Placement::At(place));
    }
    record.inventory.as_ref().map(|_| placement_by_step(record, primary))
}

fn placement_by_step(record: &Record, primary: BackendKind) -> Placement {
    let source = if record.source == primary {
        Place::Primary
    } else {
        Place::Secondary
    };
    let routed = if record.routed { source.other() } else { source };
    match record.step {
        Step::Inventory | Step::Preflight | Step::Plan | Step::CreateTarget | Step::HoldTarget => Placement::At(source),
        // Paused before it, the tenant leads its daily life on the source.
        Step::StopSource if !record.source_touched && !is_under_way(record) => Placement::At(source),
        // The route is written down before it is switched: until the step is over it may still fail, and the tenant goes
        // back as it was read on the source.
        Step::StopSource
        | Step::Fence
        | Step::StartTarget
        | Step::AwaitTarget
        | Step::ProbeTarget
        | Step::SwitchRoute => Placement::Moving { from: source },
        Step::Bake | Step::Commit | Step::Committed | Step::RemoveSource | Step::Finished => {
            Placement::At(source.other())
        }
        Step::StopTarget | Step::FenceTarget | Step::StartSource | Step::AwaitSource | Step::RestoreRoute => {
            Placement::Moving { from: routed }
        }
        Step::RemoveTarget | Step::RolledBack => Placement::At(source),
    }
}

fn is_under_way(record: &Record) -> bool {
    let last = record.history.last();
    last.is_some_and(|run| run.step == record.step && run.ended.is_none())
}

#[async_trait]
impl Journal for JournalPlacement {
    async fn load(&self, instance: InstanceId) -> Result<Option<Record>> {
        self.journal.load(instance).await
    }

    async fn load_all(&self) -> Result<Vec<Record>> {
        self.journal.load_all().await
    }

    async fn append(&self, entry: &Entry, after: &Record) -> Result<()> {
        self.journal.append(entry, after).await?;
        self.learn(after);
        Ok(())
    }
}

#[async_trait]
impl PlacementStore for JournalPlacement {
    async fn get(&self, id: InstanceId) -> Result<Option<Placement>> {
        Ok(self.known.find(id))
    }

    /// Changes nothing: the migration has written it down already, or is about to.
    async fn set(&self, id: InstanceId, _place: Place) -> Result<()> {
        self.is_recorded(id)
    }

    /// As [`set`](Self::set).
    async fn begin_move(&self, id: InstanceId, _from: Place) -> Result<()> {
        self.is_recorded(id)
    }

    async fn secondary_is_used(&self) -> Result<bool> {
        self.known.secondary_is_used().await
    }

    fn changes(&self) -> BoxStream<'static, (InstanceId, Placement)> {
        self.known.changes()
    }
}
