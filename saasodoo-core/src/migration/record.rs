//! What is known about one migration: the record, and the entries it is folded from.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Home;
use super::table::{Signal, Step, transition};
use crate::dual::FieldVerdict;
use crate::{
    BackendKind, DataPath, Error, ErrorKind, Instance, InstanceId, InstanceSpec, OperationKind, Result, Unparsed,
};

/// One of the two sides of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Where the tenant lived before.
    Source,
    /// Where it shall live.
    Target,
}

impl Side {
    /// The other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }

    /// The side's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The power state that the tenant had, and has again at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tenancy {
    /// It runs.
    Running,
    /// It is stopped and may be started.
    Stopped,
    /// It is held by billing.
    Suspended,
}

/// Which obstacles of the preflight the operator accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Force {
    /// The instance is not well on the source.
    pub unhealthy_source: bool,
    /// Parts of the source's objects could not be read into the spec and will be lost.
    pub unparsed: bool,
    /// The source does not have the instance any more, and this migration has not deleted it there. Holds for the call
    /// that it is given to, and is not kept.
    pub absent_source: bool,
    /// The target does not have the instance any more, and this migration has not deleted it there. Holds for the call
    /// that it is given to, and is not kept.
    pub absent_target: bool,
    /// The source is the platform that it was when the migration began, under another name. Holds for the call that it
    /// is given to, and is not kept.
    pub renamed_source: bool,
    /// The target is the platform that it was when the migration began, under another name. Holds for the call that it
    /// is given to, and is not kept.
    pub renamed_target: bool,
    /// What was changed on the target since the commit is lost on the way back. Holds for the call that it is given to,
    /// and is not kept.
    pub lose_changes: bool,
}

impl Force {
    /// Accepts nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Accepts an instance that is not well.
    #[must_use]
    pub fn unhealthy_source(mut self) -> Self {
        self.unhealthy_source = true;
        self
    }

    /// Accepts that what could not be parsed is lost.
    #[must_use]
    pub fn unparsed(mut self) -> Self {
        self.unparsed = true;
        self
    }

    /// Accepts that an instance is gone from a side where it was, after the time that its process may take to end. Given
    /// before it was there it means nothing. Only for an operator who has seen, on that very platform, that nothing of
    /// it is left.
    #[must_use]
    pub fn accept_absent(mut self, side: Side) -> Self {
        match side {
            Side::Source => self.absent_source = true,
            Side::Target => self.absent_target = true,
        }
        self
    }

    pub(super) fn accepts_absent(self, side: Side) -> bool {
        match side {
            Side::Source => self.absent_source,
            Side::Target => self.absent_target,
        }
    }

    /// Accepts that a side has another [identity](super::MigratorBuilder::identities) than when the migration began. Only
    /// for an operator who knows that it is the same platform: another manager of the same swarm, another address of the
    /// same API server.
    #[must_use]
    pub fn accept_platform(mut self, side: Side) -> Self {
        match side {
            Side::Source => self.renamed_source = true,
            Side::Target => self.renamed_target = true,
        }
        self
    }

    pub(super) fn accepts_platform(self, side: Side) -> bool {
        match side {
            Side::Source => self.renamed_source,
            Side::Target => self.renamed_target,
        }
    }

    /// Accepts that changes made on the target since the commit are lost.
    #[must_use]
    pub fn lose_changes(mut self) -> Self {
        self.lose_changes = true;
        self
    }

    /// What is kept for later calls.
    pub(super) fn lasting(mut self) -> Self {
        self.absent_source = false;
        self.absent_target = false;
        self.renamed_source = false;
        self.renamed_target = false;
        self.lose_changes = false;
        self
    }
}

/// What was read from the source before anything was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
#[non_exhaustive]
pub struct Inventory {
    /// The spec; secrets are withheld.
    pub spec: InstanceSpec,
    /// The data's directory under the root that both sides share.
    pub data: DataPath,
    /// The power state.
    pub tenancy: Tenancy,
    /// What could not be read into the spec.
    pub unparsed: Vec<Unparsed>,
    /// The observation itself, for the parity table.
    pub observed: Box<Instance>,
    /// The [digest](Self::digest) of what was read at first, where a journal keeps no more than that and the rest was read
    /// again.
    pub(super) first: Option<String>,
}

impl Inventory {
    /// What was read.
    #[must_use]
    pub fn new(observed: Instance, spec: InstanceSpec, data: DataPath, tenancy: Tenancy) -> Self {
        Self {
            spec,
            data,
            tenancy,
            unparsed: observed.unparsed.clone(),
            observed: Box::new(observed),
            first: None,
        }
    }

    /// Short, and another one when the spec, the data's place or a hold is not what it was at the inventory.
    pub(super) fn digest(&self) -> String {
        self.first
            .clone()
            .unwrap_or_else(|| digest(&(&self.spec, &self.data, self.observed.facts.hold)))
    }
}

/// Short, and another one for another value.
pub(super) fn digest(of: &impl Serialize) -> String {
    super::journal_file::checksum(&serde_json::to_string(of).unwrap_or_default())
}

/// The inventory as it is written down: what the tenant set as environment stands there once.
#[derive(Serialize, Deserialize)]
struct Stored {
    spec: InstanceSpec,
    data: DataPath,
    tenancy: Tenancy,
    unparsed: Vec<Unparsed>,
    observed: Box<Instance>,
    /// The observation has the environment of the spec.
    #[serde(default)]
    same_environment: bool,
}

impl From<Inventory> for Stored {
    fn from(inventory: Inventory) -> Self {
        let mut observed = inventory.observed;
        let same_environment = observed.spec.environment == inventory.spec.environment;
        if same_environment {
            observed.spec.environment.clear();
        }
        Self {
            spec: inventory.spec,
            data: inventory.data,
            tenancy: inventory.tenancy,
            unparsed: inventory.unparsed,
            observed,
            same_environment,
        }
    }
}

impl From<Stored> for Inventory {
    fn from(stored: Stored) -> Self {
        let mut observed = stored.observed;
        if stored.same_environment {
            observed.spec.environment.clone_from(&stored.spec.environment);
        }
        Self {
            spec: stored.spec,
            data: stored.data,
            tenancy: stored.tenancy,
            unparsed: stored.unparsed,
            observed,
            first: None,
        }
    }
}

/// A change that a migration makes on one side. Each is written down before it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Mutation {
    /// Create, stopped.
    Create,
    /// Suspend.
    Suspend,
    /// Resume.
    Resume,
    /// Start.
    Start,
    /// Delete, keeping the data.
    Delete,
}

/// Proof that one side could not write at an instant: read live, at nothing desired, held, nothing alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FenceProof {
    /// The side that cannot write.
    pub side: Side,
    /// Whether its objects exist.
    pub present: bool,
    /// The desired units: 0.
    pub desired: u32,
    /// The revision of the main object that was read.
    pub revision: Option<String>,
    /// When the server said so.
    pub at: Timestamp,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Failure {
    /// The step.
    pub step: Step,
    /// The kind of the error.
    pub kind: ErrorKind,
    /// The error, for people.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// One run of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepRun {
    /// The step.
    pub step: Step,
    /// When it began.
    pub began: Timestamp,
    /// When it ended; `None` while it runs or when the process died in it.
    pub ended: Option<Timestamp>,
    /// How it ended.
    pub signal: Option<Signal>,
    /// What there is to say about it.
    pub note: String,
}

/// A time in which the tenant was down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Outage {
    /// From.
    pub from: Timestamp,
    /// To; `None` while it lasts.
    pub to: Option<Timestamp>,
}

/// A mutation whose outcome is not known, and which may still happen until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Doubt {
    /// The side.
    pub side: Side,
    /// What.
    pub mutation: Mutation,
    /// Until when.
    pub until: Timestamp,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// The instance.
    pub instance: InstanceId,
    /// The migration it belongs to.
    pub run: Uuid,
    /// Counts up from 0 within the migration; an entry that does not follow is refused.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
#[non_exhaustive]
pub enum Event {
    /// The migration began.
    Began {
        /// The kind of the source.
        source: BackendKind,
        /// The kind of the target.
        target: BackendKind,
        /// Which platform of that kind the source is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_identity: Option<String>,
        /// Which platform of that kind the target is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_identity: Option<String>,
        /// What the operator accepts.
        force: Force,
    },
    /// The tenant goes back in the power state that it has now on the target.
    TakenBack {
        /// That power state.
        tenancy: Tenancy,
    },
    /// A step began.
    StepBegan {
        /// The step.
        step: Step,
    },
    /// A step was left.
    StepEnded {
        /// The step.
        step: Step,
        /// How.
        signal: Signal,
        /// What there is to say about it.
        note: String,
        /// Why, when it failed.
        failure: Option<Failure>,
    },
    /// The source was read.
    Inventoried(Box<Inventory>),
    /// The plan was made.
    Planned {
        /// Line by line.
        plan: Vec<String>,
    },
    /// A change is about to be made. Until it is [`Settled`](Self::Settled) its outcome is in doubt.
    Intends {
        /// Where.
        side: Side,
        /// What.
        mutation: Mutation,
        /// When it has happened or never will.
        until: Timestamp,
    },
    /// The platform has answered.
    Settled {
        /// Where.
        side: Side,
        /// What.
        mutation: Mutation,
    },
    /// The target's objects are there, and whether this migration made them.
    TargetCreated {
        /// True when it did.
        ours: bool,
    },
    /// A side was seen unable to write.
    Fenced(FenceProof),
    /// The tenant's process has started on the target, or may have.
    TargetStarted,
    /// The route hook is about to be called.
    Routing {
        /// The side that visitors are sent to.
        to: Side,
    },
    /// The tenant is down.
    Down,
    /// The tenant is up.
    Up,
    /// The bake lasts until then.
    Baking {
        /// Until when.
        until: Timestamp,
    },
    /// Both sides were compared.
    Compared {
        /// Field by field.
        parity: Vec<FieldVerdict>,
        /// A digest of the target's spec.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// The tenant can be taken back until then.
    Window {
        /// Until when.
        until: Timestamp,
    },
    /// The process that ran the migration gave up: it can go neither forward nor back before somebody has looked.
    Halted(Failure),
    /// Something worth knowing that changes no step.
    Noted {
        /// What.
        note: String,
    },
}

/// Everything that is known about the migration of one instance: the fold of its [`Entry`]s.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// The instance.
    pub instance: InstanceId,
    /// This migration.
    pub run: Uuid,
    /// The kind of the source.
    pub source: BackendKind,
    /// The kind of the target.
    pub target: BackendKind,
    /// Which platform of that kind the source is; `None` when the journal does not keep it.
    #[serde(default)]
    pub source_identity: Option<String>,
    /// Which platform of that kind the target is; `None` when the journal does not keep it.
    #[serde(default)]
    pub target_identity: Option<String>,
    /// Where the migration before this one has left the tenant.
    #[serde(default)]
    pub lived_on: Option<Home>,
    /// What the operator accepts.
    pub force: Force,
    /// The number the next entry must have.
    pub next_seq: u64,
    /// Where it is.
    pub step: Step,
    /// When it began.
    pub began: Timestamp,
    /// When the last entry was written.
    pub updated: Timestamp,
    /// What was read from the source.
    pub inventory: Option<Inventory>,
    /// The plan.
    pub plan: Vec<String>,
    /// A creation on the target was tried, so an instance found there may be ours.
    pub create_tried: bool,
    /// Whether the objects on the target were made by this migration; `None` while that is not known.
    pub target_ours: Option<bool>,
    /// The source was, or may have been, stopped.
    pub source_touched: bool,
    /// The target was, or may have been, started.
    pub target_started: bool,
    /// The route hook was, or may have been, called for the target.
    pub routed: bool,
    /// This migration has deleted, or may have deleted, the source's objects.
    #[serde(default)]
    pub source_deleted: bool,
    /// This migration has deleted, or may have deleted, the target's objects.
    #[serde(default)]
    pub target_deleted: bool,
    /// The target was, or may have been, suspended on the way back: its power state is not the tenant's any more.
    #[serde(default)]
    pub target_closed: bool,
    /// Until when the bake lasts.
    pub bake_until: Option<Timestamp>,
    /// When it was committed.
    pub committed_at: Option<Timestamp>,
    /// Until when it can be taken back, written down at the commit.
    #[serde(default)]
    pub window_until: Option<Timestamp>,
    /// Why the last process gave up, as long as no other one has gone on.
    #[serde(default)]
    pub halted: Option<Failure>,
    /// Why it went back.
    pub failure: Option<Failure>,
    /// Changes whose outcome is not known.
    pub doubts: Vec<Doubt>,
    /// Each time a side was seen unable to write.
    pub fences: Vec<FenceProof>,
    /// Each run of each step.
    pub history: Vec<StepRun>,
    /// The times in which the tenant was down.
    pub outages: Vec<Outage>,
    /// Both sides compared, field by field.
    pub parity: Vec<FieldVerdict>,
    /// A digest of the target's spec at the commit, for journals that do not keep the parity.
    #[serde(default)]
    pub target_digest: Option<String>,
    /// Things worth knowing.
    pub notes: Vec<String>,
}

impl Record {
    /// The record after its first entry, which must be [`Event::Began`] with number 0.
    ///
    /// # Errors
    /// `Unexpected` for another entry.
    pub fn begin(entry: &Entry) -> Result<Self> {
        let (
            Event::Began {
                source,
                target,
                source_identity,
                target_identity,
                force,
            },
            0,
        ) = (&entry.event, entry.seq)
        else {
            return Err(broken(
                entry,
                "the journal of a migration does not begin at its beginning",
            ));
        };
        Ok(Self {
            instance: entry.instance,
            run: entry.run,
            source: *source,
            target: *target,
            source_identity: source_identity.clone(),
            target_identity: target_identity.clone(),
            lived_on: None,
            force: *force,
            next_seq: 1,
            step: Step::Inventory,
            began: entry.at,
            updated: entry.at,
            inventory: None,
            plan: Vec::new(),
            create_tried: false,
            target_ours: None,
            source_touched: false,
            target_started: false,
            routed: false,
            source_deleted: false,
            target_deleted: false,
            target_closed: false,
            bake_until: None,
            committed_at: None,
            window_until: None,
            halted: None,
            failure: None,
            doubts: Vec::new(),
            fences: Vec::new(),
            history: Vec::new(),
            outages: Vec::new(),
            parity: Vec::new(),
            target_digest: None,
            notes: Vec::new(),
        })
    }

    /// Folds one more entry in.
    ///
    /// # Errors
    /// `Conflict` when the entry does not follow: another process works on the same migration. `Unexpected` when it
    /// contradicts the table.
    pub fn apply(&mut self, entry: &Entry) -> Result<()> {
        if entry.run != self.run || entry.instance != self.instance || entry.seq != self.next_seq {
            return Err(Error::conflict(
                ["journal"],
                format!(
                    "entry {} of migration {} does not follow entry {} of migration {}",
                    entry.seq,
                    entry.run,
                    self.next_seq.saturating_sub(1),
                    self.run
                ),
            )
            .with_instance(self.instance)
            .with_operation(OperationKind::Migrate)
            .with_advice("another process works on this instance: end it, then resume"));
        }
        match &entry.event {
            Event::Began { .. } => return Err(broken(entry, "a migration cannot begin twice")),
            Event::TakenBack { tenancy } => {
                if let Some(inventory) = &mut self.inventory {
                    inventory.tenancy = *tenancy;
                }
            }
            Event::StepBegan { step } => {
                self.halted = None;
                self.history.push(StepRun {
                    step: *step,
                    began: entry.at,
                    ended: None,
                    signal: None,
                    note: String::new(),
                });
            }
            Event::StepEnded {
                step,
                signal,
                note,
                failure,
            } => self.leave(entry, *step, *signal, note, failure.as_ref())?,
            Event::Inventoried(inventory) => self.inventory = Some((**inventory).clone()),
            Event::Planned { plan } => self.plan.clone_from(plan),
            Event::Intends { side, mutation, until } => self.intend(*side, *mutation, *until),
            // Only the last attempt: one before it whose answer was lost may still happen.
            Event::Settled { side, mutation } => {
                let same = |doubt: &Doubt| (doubt.side, doubt.mutation) == (*side, *mutation);
                if let Some(last) = self.doubts.iter().rposition(same) {
                    self.doubts.remove(last);
                }
            }
            Event::TargetCreated { ours } => self.target_ours = Some(*ours),
            Event::Fenced(proof) => self.fences.push(proof.clone()),
            Event::TargetStarted => self.target_started = true,
            Event::Routing { to } => self.routed = *to == Side::Target,
            Event::Down => {
                if self.outages.last().is_none_or(|outage| outage.to.is_some()) {
                    self.outages.push(Outage {
                        from: entry.at,
                        to: None,
                    });
                }
            }
            Event::Up => self.end_outage(entry.at),
            Event::Baking { until } => self.bake_until = Some(*until),
            Event::Compared { parity, target } => {
                self.parity.clone_from(parity);
                self.target_digest.clone_from(target);
            }
            Event::Window { until } => self.window_until = Some(*until),
            Event::Halted(why) => self.halted = Some(why.clone()),
            Event::Noted { note } => self.notes.push(note.clone()),
        }
        self.next_seq += 1;
        self.updated = entry.at;
        Ok(())
    }

    fn leave(
        &mut self,
        entry: &Entry,
        step: Step,
        signal: Signal,
        note: &str,
        failure: Option<&Failure>,
    ) -> Result<()> {
        if step != self.step {
            return Err(broken(entry, "a step is left that the migration is not in"));
        }
        let Some(row) = transition(self, signal) else {
            return Err(broken(entry, "the table has no such transition"));
        };
        if let Some(run) = self.history.iter_mut().rev().find(|run| run.step == step) {
            run.ended = Some(entry.at);
            run.signal = Some(signal);
            note.clone_into(&mut run.note);
        }
        if let Some(failure) = failure {
            self.failure.get_or_insert_with(|| failure.clone());
        }
        self.step = row.to;
        self.halted = None;
        if self.step == Step::RemoveTarget && !self.source_touched {
            // Announced, and the process died before the source was asked to stop.
            self.end_outage(entry.at);
        }
        if self.step == Step::Committed {
            self.committed_at = Some(entry.at);
        }
        Ok(())
    }

    fn end_outage(&mut self, at: Timestamp) {
        if let Some(outage) = self.outages.last_mut() {
            outage.to.get_or_insert(at);
        }
    }

    fn intend(&mut self, side: Side, mutation: Mutation, until: Timestamp) {
        match (side, mutation) {
            (Side::Target, Mutation::Create) => self.create_tried = true,
            (Side::Source, Mutation::Suspend) => self.source_touched = true,
            (Side::Target, Mutation::Suspend) if self.step.is_back() => self.target_closed = true,
            (Side::Target, Mutation::Start) => self.target_started = true,
            (Side::Source, Mutation::Delete) => self.source_deleted = true,
            (Side::Target, Mutation::Delete) => self.target_deleted = true,
            // Made again by us.
            (Side::Source, Mutation::Create) => self.source_deleted = false,
            _ => {}
        }
        self.doubts.push(Doubt { side, mutation, until });
    }

    /// How long the tenant was down in all; an outage that lasts is counted until `now`.
    #[must_use]
    pub fn downtime(&self, now: Timestamp) -> Duration {
        self.outages
            .iter()
            .map(|outage| Duration::try_from(outage.to.unwrap_or(now).duration_since(outage.from)).unwrap_or_default())
            .sum()
    }

    /// True while an outage lasts.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.outages.last().is_some_and(|outage| outage.to.is_none())
    }

    /// True where a pause costs the tenant nothing: it is up on one side, and visitors reach it.
    #[must_use]
    pub fn can_pause(&self) -> bool {
        match self.step {
            Step::Inventory
            | Step::Preflight
            | Step::Plan
            | Step::CreateTarget
            | Step::HoldTarget
            | Step::Bake
            | Step::Commit
            | Step::RemoveTarget
            | Step::RemoveSource => true,
            Step::StopSource => !self.source_touched,
            _ => false,
        }
    }

    /// Whether the instance was on that side, as far as this migration knows, and was not deleted there by it.
    pub(super) fn must_have(&self, side: Side) -> bool {
        match side {
            Side::Source => self.inventory.is_some() && !self.source_deleted,
            Side::Target => self.target_ours.is_some() && !self.target_deleted,
        }
    }

    /// True when the tenant has its home on the target now.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        matches!(self.step, Step::Committed | Step::RemoveSource | Step::Finished)
    }

    /// The latest instant until which one of these changes may still happen.
    #[must_use]
    pub fn in_doubt(&self, of: &[(Side, Mutation)]) -> Option<Timestamp> {
        self.doubts
            .iter()
            .filter(|doubt| of.contains(&(doubt.side, doubt.mutation)))
            .map(|doubt| doubt.until)
            .max()
    }
}

fn broken(entry: &Entry, why: &str) -> Error {
    Error::new(ErrorKind::Unexpected, format!("{why} (entry {})", entry.seq))
        .with_instance(entry.instance)
        .with_operation(OperationKind::Migrate)
        .with_advice("keep the journal and report this; the platforms were not changed")
}
