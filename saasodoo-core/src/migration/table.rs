//! The steps of a migration and the transitions between them, as data.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Record;

/// A step of a migration, or a place where it rests.
///
/// Forward steps come in the order in which they are listed; from [`StopSource`](Self::StopSource) to
/// [`SwitchRoute`](Self::SwitchRoute) the tenant is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// Reads the spec, the data's place and the power state back from the source.
    Inventory,
    /// Looks for everything that would make a later step fail. Writes nothing.
    Preflight,
    /// Asks the target what it would make. Writes nothing.
    Plan,
    /// Creates the instance on the target, stopped, on the same data.
    CreateTarget,
    /// Suspends it there, so that nobody starts it by accident, and sees its storage ready.
    HoldTarget,
    /// Suspends the source and sees its last unit end.
    StopSource,
    /// Reads the source once more, live, and records that nothing of it can write.
    Fence,
    /// Takes the hold off the target and starts it, if the source ran.
    StartTarget,
    /// Sees the target ready.
    AwaitTarget,
    /// Asks the probe whether the tenant's Odoo answers.
    ProbeTarget,
    /// Calls the hook that sends visitors to the target.
    SwitchRoute,
    /// Watches both sides for the configured time.
    Bake,
    /// Looks a last time and compares both sides.
    Commit,
    /// Suspends the target and sees its last unit end.
    StopTarget,
    /// Reads the target once more, live, and records that nothing of it can write.
    FenceTarget,
    /// Gives the source back the power state it had; makes its objects again when somebody deleted them.
    StartSource,
    /// Sees the source ready, if it ran before.
    AwaitSource,
    /// Calls the hook that sends visitors back to the source.
    RestoreRoute,
    /// Removes the objects that this migration made on the target. The data stays.
    RemoveTarget,
    /// Removes the source's objects after the rollback window. The data stays.
    RemoveSource,
    /// Rests: the tenant lives on the target, and the source is kept stopped for the rollback window.
    Committed,
    /// Over: the tenant lives on the target, and the source is gone.
    Finished,
    /// Over: the tenant lives on the source as before.
    RolledBack,
}

/// What makes a migration leave a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Signal {
    /// The step is done.
    Done,
    /// The step failed for good.
    Failed,
    /// The operator gave up before the commit.
    Abort,
    /// The operator wants a committed migration back.
    Rollback,
    /// The rollback window is over, or the operator closes it.
    Finish,
}

/// A condition on a transition: a pure function of the record, with a name.
#[derive(Clone, Copy)]
pub struct Guard {
    /// What holds when the transition may be taken.
    pub name: &'static str,
    /// Whether it holds.
    pub holds: fn(&Record) -> bool,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Transition {
    /// The step that is left.
    pub from: Step,
    /// Why.
    pub on: Signal,
    /// Under which condition.
    pub guard: Guard,
    /// The step that follows.
    pub to: Step,
}

const ALWAYS: Guard = Guard {
    name: "always",
    holds: |_| true,
};
const SOURCE_TOUCHED: Guard = Guard {
    name: "the source was, or may have been, stopped",
    holds: |record| record.source_touched,
};
const SOURCE_UNTOUCHED: Guard = Guard {
    name: "the source was never stopped",
    holds: |record| !record.source_touched,
};

const SOURCE_KEPT: Guard = Guard {
    name: "the source was not deleted",
    holds: |record| !record.source_deleted,
};

const fn row(from: Step, on: Signal, guard: Guard, to: Step) -> Transition {
    Transition { from, on, guard, to }
}

/// Every transition there is. The first row that fits counts.
pub const TRANSITIONS: &[Transition] = {
    use Signal::{Abort, Done, Failed, Finish, Rollback};
    use Step::{
        AwaitSource, AwaitTarget, Bake, Commit, Committed, CreateTarget, Fence, FenceTarget, Finished, HoldTarget,
        Inventory, Plan, Preflight, ProbeTarget, RemoveSource, RemoveTarget, RestoreRoute, RolledBack, StartSource,
        StartTarget, StopSource, StopTarget, SwitchRoute,
    };
    &[
        row(Inventory, Done, ALWAYS, Preflight),
        row(Preflight, Done, ALWAYS, Plan),
        row(Plan, Done, ALWAYS, CreateTarget),
        row(CreateTarget, Done, ALWAYS, HoldTarget),
        row(HoldTarget, Done, ALWAYS, StopSource),
        row(StopSource, Done, ALWAYS, Fence),
        row(Fence, Done, ALWAYS, StartTarget),
        row(StartTarget, Done, ALWAYS, AwaitTarget),
        row(AwaitTarget, Done, ALWAYS, ProbeTarget),
        row(ProbeTarget, Done, ALWAYS, SwitchRoute),
        row(SwitchRoute, Done, ALWAYS, Bake),
        row(Bake, Done, ALWAYS, Commit),
        row(Commit, Done, ALWAYS, Committed),
        row(Committed, Finish, ALWAYS, RemoveSource),
        row(RemoveSource, Done, ALWAYS, Finished),
        // Nothing was written yet.
        row(Inventory, Failed, ALWAYS, RolledBack),
        row(Inventory, Abort, ALWAYS, RolledBack),
        row(Preflight, Failed, ALWAYS, RolledBack),
        row(Preflight, Abort, ALWAYS, RolledBack),
        row(Plan, Failed, ALWAYS, RolledBack),
        row(Plan, Abort, ALWAYS, RolledBack),
        // The target may exist; the source still runs.
        row(CreateTarget, Failed, ALWAYS, RemoveTarget),
        row(CreateTarget, Abort, ALWAYS, RemoveTarget),
        row(HoldTarget, Failed, ALWAYS, RemoveTarget),
        row(HoldTarget, Abort, ALWAYS, RemoveTarget),
        row(StopSource, Failed, SOURCE_UNTOUCHED, RemoveTarget),
        row(StopSource, Abort, SOURCE_UNTOUCHED, RemoveTarget),
        // The source may be stopped: the whole way back.
        row(StopSource, Failed, SOURCE_TOUCHED, StopTarget),
        row(StopSource, Abort, SOURCE_TOUCHED, StopTarget),
        row(Fence, Failed, ALWAYS, StopTarget),
        row(Fence, Abort, ALWAYS, StopTarget),
        row(StartTarget, Failed, ALWAYS, StopTarget),
        row(StartTarget, Abort, ALWAYS, StopTarget),
        row(AwaitTarget, Failed, ALWAYS, StopTarget),
        row(AwaitTarget, Abort, ALWAYS, StopTarget),
        row(ProbeTarget, Failed, ALWAYS, StopTarget),
        row(ProbeTarget, Abort, ALWAYS, StopTarget),
        row(SwitchRoute, Failed, ALWAYS, StopTarget),
        row(SwitchRoute, Abort, ALWAYS, StopTarget),
        row(Bake, Failed, ALWAYS, StopTarget),
        row(Bake, Abort, ALWAYS, StopTarget),
        row(Commit, Failed, ALWAYS, StopTarget),
        row(Commit, Abort, ALWAYS, StopTarget),
        row(Committed, Rollback, ALWAYS, StopTarget),
        row(RemoveSource, Rollback, SOURCE_KEPT, StopTarget),
        // The way back has no way back: a step that fails is tried again by the next run.
        row(StopTarget, Done, ALWAYS, FenceTarget),
        row(FenceTarget, Done, ALWAYS, StartSource),
        row(StartSource, Done, ALWAYS, AwaitSource),
        row(AwaitSource, Done, ALWAYS, RestoreRoute),
        row(RestoreRoute, Done, ALWAYS, RemoveTarget),
        row(RemoveTarget, Done, ALWAYS, RolledBack),
    ]
};

/// The row that a signal takes, if there is one.
#[must_use]
pub fn transition(record: &Record, on: Signal) -> Option<&'static Transition> {
    TRANSITIONS
        .iter()
        .find(|row| row.from == record.step && row.on == on && (row.guard.holds)(record))
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::Inventory,
        Self::Preflight,
        Self::Plan,
        Self::CreateTarget,
        Self::HoldTarget,
        Self::StopSource,
        Self::Fence,
        Self::StartTarget,
        Self::AwaitTarget,
        Self::ProbeTarget,
        Self::SwitchRoute,
        Self::Bake,
        Self::Commit,
        Self::StopTarget,
        Self::FenceTarget,
        Self::StartSource,
        Self::AwaitSource,
        Self::RestoreRoute,
        Self::RemoveTarget,
        Self::RemoveSource,
        Self::Committed,
        Self::Finished,
        Self::RolledBack,
    ];

    /// The step's name in `snake_case`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inventory => "inventory",
            Self::Preflight => "preflight",
            Self::Plan => "plan",
            Self::CreateTarget => "create_target",
            Self::HoldTarget => "hold_target",
            Self::StopSource => "stop_source",
            Self::Fence => "fence",
            Self::StartTarget => "start_target",
            Self::AwaitTarget => "await_target",
            Self::ProbeTarget => "probe_target",
            Self::SwitchRoute => "switch_route",
            Self::Bake => "bake",
            Self::Commit => "commit",
            Self::StopTarget => "stop_target",
            Self::FenceTarget => "fence_target",
            Self::StartSource => "start_source",
            Self::AwaitSource => "await_source",
            Self::RestoreRoute => "restore_route",
            Self::RemoveTarget => "remove_target",
            Self::RemoveSource => "remove_source",
            Self::Committed => "committed",
            Self::Finished => "finished",
            Self::RolledBack => "rolled_back",
        }
    }

    /// The step of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == name)
    }

    /// True when nothing is left to do.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::RolledBack)
    }

    /// True when the migration has come to rest: over, or committed.
    #[must_use]
    pub const fn is_rest(self) -> bool {
        self.is_over() || matches!(self, Self::Committed)
    }

    /// True on the way back to the source.
    #[must_use]
    pub const fn is_back(self) -> bool {
        matches!(
            self,
            Self::StopTarget
                | Self::FenceTarget
                | Self::StartSource
                | Self::AwaitSource
                | Self::RestoreRoute
                | Self::RemoveTarget
                | Self::RolledBack
        )
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Signal {
    /// The signal's name in `snake_case`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Abort => "abort",
            Self::Rollback => "rollback",
            Self::Finish => "finish",
        }
    }
}

/// The table as a [Mermaid](https://mermaid.js.org/syntax/stateDiagram.html) state diagram.
#[must_use]
pub fn mermaid() -> String {
    let mut out = String::from("stateDiagram-v2\n    [*] --> inventory\n");
    for Transition { from, on, guard, to } in TRANSITIONS {
        let condition = if guard.name == ALWAYS.name {
            String::new()
        } else {
            format!(" [{}]", guard.name)
        };
        out.push_str(&format!("    {from} --> {to}: {}{condition}\n", on.as_str()));
    }
    for step in Step::ALL.into_iter().filter(|step| step.is_over()) {
        out.push_str(&format!("    {step} --> [*]\n"));
    }
    out
}
