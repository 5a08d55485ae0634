//! What a backend saw of an instance, in neutral terms, and the one derivation of a status from it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Cause, InstanceStatus};

/// How long a process that has crashed before must run before it counts as running again, where the platform has no
/// readiness of its own. Ten seconds, as in the health rule of the system in production.
pub const SETTLED_AFTER_SECONDS: i64 = 10;

/// The longest pause between an end and the start that it explains: kubelet waits up to 300 s between two starts.
const LONGEST_BACK_OFF_SECONDS: i64 = 360;

/// A process that ran this long is forgiven its earlier ends, as kubelet does; without a process, an end this long ago
/// is history.
pub const FORGIVEN_AFTER_SECONDS: i64 = 600;

/// What a backend saw of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Facts {
    /// How many units shall run: 0 or 1.
    pub desired: u32,
    /// Whether the instance is held.
    pub hold: Option<Hold>,
    /// The instance's workload is marked for deletion.
    pub deleting: bool,
    /// The last thing that was asked of the instance, if the backend can tell.
    pub transition: Option<Transition>,
    /// The platform has not yet acted on the last change.
    pub lagging: bool,
    /// Why the platform makes no unit, or stopped a rollout.
    pub obstacle: Option<Cause>,
    /// Every unit the platform still remembers, in any order.
    pub units: Vec<Unit>,
    /// When this was seen.
    pub observed_at: Timestamp,
}

impl Facts {
    /// Facts about an instance without units.
    #[must_use]
    pub fn new(desired: u32, observed_at: Timestamp) -> Self {
        Self {
            desired,
            hold: None,
            deleting: false,
            transition: None,
            lagging: false,
            obstacle: None,
            units: Vec::new(),
            observed_at,
        }
    }

    /// The unit that counts: the newest of those that shall run.
    #[must_use]
    pub fn current(&self) -> Option<&Unit> {
        self.units
            .iter()
            .filter(|unit| unit.wanted)
            .max_by_key(|unit| unit.order)
    }

    /// True while any unit has a process, wanted or not. This is what a fence between two writers asks.
    #[must_use]
    pub fn any_live(&self) -> bool {
        self.units.iter().any(Unit::is_live)
    }
}

/// A hold on an instance: it stays down until the hold is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Hold {
    /// By billing.
    Suspended,
    /// By an operator.
    Maintenance,
}

impl Hold {
    /// The hold's name, as labels and annotations carry it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Suspended => "suspended",
            Self::Maintenance => "maintenance",
        }
    }

    /// The hold of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Suspended, Self::Maintenance]
            .into_iter()
            .find(|hold| hold.as_str() == name)
    }
}

/// The last thing that was asked of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Transition {
    /// It was created.
    Create,
    /// It was started.
    Start,
    /// It was restarted.
    Restart,
    /// It was changed.
    Update,
}

impl Transition {
    /// The transition's name, as labels and annotations carry it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Update => "update",
        }
    }

    /// The transition of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Create, Self::Start, Self::Restart, Self::Update]
            .into_iter()
            .find(|t| t.as_str() == name)
    }

    const fn status(self) -> InstanceStatus {
        match self {
            Self::Create => InstanceStatus::Creating,
            Self::Start => InstanceStatus::Starting,
            Self::Restart => InstanceStatus::Restarting,
            Self::Update => InstanceStatus::Updating,
        }
    }
}

/// One pod or one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Unit {
    /// The pod's name or the task's id.
    pub id: String,
    /// The node it was given to.
    pub node: Option<String>,
    /// Its address inside the platform's network.
    pub address: Option<String>,
    /// Higher is newer: by creation on Kubernetes, by version on Swarm.
    pub order: u64,
    /// It shall run: it is not being torn down and not replaced.
    pub wanted: bool,
    /// How far it has come.
    pub phase: UnitPhase,
    /// It answers its probe; where the platform has none, its process runs.
    pub ready: bool,
    /// Its process has answered before, so not being ready is a loss and not a start.
    pub was_ready: bool,
    /// When its present process was started.
    pub started_at: Option<Timestamp>,
    /// How often the platform started its process again within this unit.
    pub restarts: u32,
    /// How its last process ended, if one did.
    pub last_exit: Option<Exit>,
    /// What keeps it from running, as the backend understood it.
    pub problem: Option<Cause>,
}

impl Unit {
    /// A unit that shall run and has come this far.
    #[must_use]
    pub fn new(id: impl Into<String>, order: u64, phase: UnitPhase) -> Self {
        Self {
            id: id.into(),
            node: None,
            address: None,
            order,
            wanted: true,
            phase,
            ready: false,
            was_ready: false,
            started_at: None,
            restarts: 0,
            last_exit: None,
            problem: None,
        }
    }

    /// True while it has, or is about to have, a process that writes to the instance's data. A unit whose node is lost
    /// or whose phase is unknown counts: nobody knows.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        match self.phase {
            UnitPhase::Finished | UnitPhase::Failed => false,
            // A pending unit that is not wanted never gets a process.
            UnitPhase::Pending => self.wanted,
            UnitPhase::Preparing | UnitPhase::Running | UnitPhase::Lost | UnitPhase::Unknown => true,
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Exit {
    /// The exit code.
    pub code: Option<i32>,
    /// Killed for memory: `Some(true)` when the platform says so, `Some(false)` when only exit code 137 hints at it.
    pub out_of_memory: Option<bool>,
    /// When.
    pub at: Option<Timestamp>,
    /// When the process was started that ended so, where the platform says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
}

impl Exit {
    /// An exit with this code; 137 is taken as a hint at memory.
    #[must_use]
    pub fn with_code(code: i32, at: Option<Timestamp>) -> Self {
        Self {
            code: Some(code),
            out_of_memory: (code == 137).then_some(false),
            at,
            started_at: None,
        }
    }

    /// The process had run for long enough to be forgiven what came before it.
    fn after_a_long_run(&self) -> bool {
        self.started_at
            .zip(self.at)
            .is_some_and(|(started, at)| at.as_second() - started.as_second() >= FORGIVEN_AFTER_SECONDS)
    }
}

/// How far a unit has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UnitPhase {
    /// Not given to a node yet.
    Pending,
    /// On a node, without a process yet: pulling, mounting, or between two processes.
    Preparing,
    /// Its process runs.
    Running,
    /// Its process ended and nothing follows.
    Finished,
    /// Its process or its preparation failed and nothing follows within this unit.
    Failed,
    /// Its node does not answer: whether its process runs is not known.
    Lost,
    /// The platform names a state that this library does not know.
    Unknown,
}

/// Turns facts into a status and its cause. Pure, total, and the same for every backend.
///
/// In order: deletion, then holds, then what is desired. With nothing desired the instance is stopped as soon as
/// nothing of it lives, whatever failed before. With something desired, the newest unit that shall run decides; failures
/// of older units matter only while it is not ready.
///
/// ```
/// use saasodoo_core::{Facts, InstanceStatus, Unit, UnitPhase, derive};
///
/// let mut facts = Facts::new(1, jiff::Timestamp::UNIX_EPOCH);
/// let mut unit = Unit::new("pod", 1, UnitPhase::Running);
/// unit.ready = true;
/// facts.units.push(unit);
/// assert_eq!(derive(&facts), (InstanceStatus::Running, None));
/// facts.desired = 0;
/// assert_eq!(derive(&facts), (InstanceStatus::Stopping, None));
/// ```
#[must_use]
pub fn derive(facts: &Facts) -> (InstanceStatus, Option<Cause>) {
    if facts.deleting {
        return (InstanceStatus::Terminated, None);
    }
    let live = facts.any_live();
    match facts.hold {
        Some(Hold::Maintenance) => return (InstanceStatus::Maintenance, None),
        Some(Hold::Suspended) if facts.desired == 0 => {
            return (
                if live {
                    InstanceStatus::Stopping
                } else {
                    InstanceStatus::Paused
                },
                None,
            );
        }
        _ => {}
    }
    if facts.desired == 0 {
        return (
            if live {
                InstanceStatus::Stopping
            } else {
                InstanceStatus::Stopped
            },
            None,
        );
    }
    let on_the_way = on_the_way(facts);
    if facts.lagging {
        return (on_the_way, None);
    }
    let Some(unit) = facts.current() else {
        return with_cause(on_the_way, facts.obstacle.clone().or_else(|| loop_of(facts, None)));
    };
    match unit.phase {
        UnitPhase::Lost => {
            return (
                InstanceStatus::Error,
                Some(Cause::NodeLost {
                    node: unit.node.clone(),
                }),
            );
        }
        UnitPhase::Unknown => return (InstanceStatus::Unknown, unit.problem.clone()),
        UnitPhase::Running if unit.ready && settled(facts, unit) => {
            // A healthy unit beside a stopped rollout: it runs, and the operator should know.
            return (InstanceStatus::Running, facts.obstacle.clone());
        }
        _ => {}
    }
    if let Some(cause) = loop_of(facts, Some(unit)) {
        return with_cause(on_the_way, Some(cause));
    }
    if let Some(problem) = &unit.problem {
        return with_cause(on_the_way, Some(problem.clone()));
    }
    match unit.phase {
        UnitPhase::Finished | UnitPhase::Failed => (
            on_the_way,
            Some(Cause::Exited {
                code: unit.last_exit.as_ref().and_then(|exit| exit.code),
            }),
        ),
        UnitPhase::Running if unit.was_ready && !unit.ready => {
            let message = "it answered before and does not now".to_owned();
            (InstanceStatus::Error, Some(Cause::ProbeFailing { message }))
        }
        _ => with_cause(on_the_way, facts.obstacle.clone()),
    }
}

/// What was asked last. What ran before is not being created any more, however often the platform repeats that it was.
fn on_the_way(facts: &Facts) -> InstanceStatus {
    let ran = |unit: &Unit| unit.was_ready || unit.restarts > 0 || unit.last_exit.is_some();
    match facts.transition {
        Some(Transition::Create) if facts.units.iter().any(ran) => Transition::Start,
        Some(transition) => transition,
        None => Transition::Start,
    }
    .status()
}

fn with_cause(on_the_way: InstanceStatus, cause: Option<Cause>) -> (InstanceStatus, Option<Cause>) {
    let terminal = cause.as_ref().is_some_and(Cause::is_terminal);
    (if terminal { InstanceStatus::Error } else { on_the_way }, cause)
}

/// A process that crashed before counts as running only after a while, so that a crash loop does not flicker.
fn settled(facts: &Facts, unit: &Unit) -> bool {
    match unit.started_at {
        Some(started) if failures(facts, Some(unit)) > 0 => {
            // An end long before this start says nothing about it.
            let explained = facts
                .units
                .iter()
                .filter_map(|other| other.last_exit.as_ref()?.at)
                .any(|at| started.as_second() - at.as_second() <= LONGEST_BACK_OFF_SECONDS);
            !explained || facts.observed_at.as_second() - started.as_second() >= SETTLED_AFTER_SECONDS
        }
        _ => true,
    }
}

/// How often the instance failed lately: restarts within the current unit, and failed units before it. Of restarts
/// within a unit only the last one's time is known: with it they all count, or none does, or only the last one when it
/// ended a long run.
fn failures(facts: &Facts, current: Option<&Unit>) -> u32 {
    let now = facts.observed_at.as_second();
    let process = current
        .filter(|unit| unit.phase == UnitPhase::Running)
        .and_then(|unit| unit.started_at)
        .map(jiff::Timestamp::as_second);
    if process.is_some_and(|started| now - started >= FORGIVEN_AFTER_SECONDS) {
        return 0;
    }
    // Seen from the start of the present process, so that a slow start does not let them expire one by one.
    let from = process.unwrap_or(now);
    let recent = |exit: &Exit| exit.at.is_none_or(|at| from - at.as_second() < FORGIVEN_AFTER_SECONDS);
    let within = current
        .filter(|unit| unit.last_exit.as_ref().is_none_or(recent))
        .map_or(0, |unit| {
            let fresh = unit.last_exit.as_ref().is_some_and(Exit::after_a_long_run);
            if fresh { unit.restarts.min(1) } else { unit.restarts }
        });
    let ended = facts
        .units
        .iter()
        .filter(|unit| unit.phase == UnitPhase::Failed && unit.last_exit.as_ref().is_some_and(recent))
        .count();
    within.saturating_add(u32::try_from(ended).unwrap_or(u32::MAX))
}

/// A crash loop: at least two failures lately, or the platform's word, and the unit that shall run is not well.
fn loop_of(facts: &Facts, current: Option<&Unit>) -> Option<Cause> {
    // What keeps the unit from running at all (no image, no mount) explains more than an older exit.
    if current.is_some_and(|unit| {
        unit.problem
            .as_ref()
            .is_some_and(|p| p.is_terminal() && !matches!(p, Cause::CrashLoop { .. }))
    }) {
        return None;
    }
    let restarts = failures(facts, current);
    let looping = current.is_some_and(|unit| matches!(unit.problem, Some(Cause::CrashLoop { .. })));
    if restarts < 2 && !looping {
        // One end is no loop, not even a kill for memory: the platform starts the process again.
        return None;
    }
    let last = facts
        .units
        .iter()
        .filter_map(|unit| unit.last_exit.as_ref().map(|exit| (unit.order, exit)))
        .max_by_key(|(order, _)| *order)
        .map(|(_, exit)| exit)?;
    Some(match last.out_of_memory {
        Some(certain) => Cause::OutOfMemory {
            inferred: !certain,
            restarts,
        },
        None => Cause::CrashLoop {
            restarts,
            last_exit: last.code,
        },
    })
}
