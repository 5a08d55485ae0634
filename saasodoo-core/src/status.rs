//! The statuses of an instance, why it has one, and what may be done in it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::quoted;
use crate::{Error, Result};

/// The state of an instance: the twelve statuses of the system in production, and `Unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InstanceStatus {
    /// Its objects exist or are being made; it has not run yet.
    Creating,
    /// It was started and does not answer yet.
    Starting,
    /// It answers.
    Running,
    /// It was told to stop and something of it still runs.
    Stopping,
    /// Nothing of it runs, and nothing shall.
    Stopped,
    /// It was told to restart and does not answer yet.
    Restarting,
    /// A change is being rolled out.
    Updating,
    /// Held for maintenance by an operator.
    Maintenance,
    /// It shall run and does not, and will not by itself: see the [`Cause`].
    Error,
    /// It is being deleted.
    Terminated,
    /// It is known to the caller but has no objects on the platform.
    ContainerMissing,
    /// Held stopped for billing: it refuses to start until it is resumed.
    Paused,
    /// The platform reports something this library does not know.
    Unknown,
}

/// What a user may do with an instance, by the names of the system in production.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InstanceAction {
    /// Run it.
    Start,
    /// Do not run it.
    Stop,
    /// Run it with a new process.
    Restart,
    /// Move it to another version of Odoo.
    Update,
    /// Save its database and its data.
    Backup,
    /// Put a backup in their place.
    Restore,
    /// Stop it for billing.
    Suspend,
    /// End that, as billing calls it.
    Unsuspend,
    /// End that, as users call it.
    Unpause,
    /// Delete it.
    Terminate,
}

impl InstanceAction {
    /// The action's name as APIs of the system in production write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Update => "update",
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Suspend => "suspend",
            Self::Unsuspend => "unsuspend",
            Self::Unpause => "unpause",
            Self::Terminate => "terminate",
        }
    }
}

impl fmt::Display for InstanceAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl InstanceStatus {
    /// All statuses.
    pub const ALL: [Self; 13] = [
        Self::Creating,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Stopped,
        Self::Restarting,
        Self::Updating,
        Self::Maintenance,
        Self::Error,
        Self::Terminated,
        Self::ContainerMissing,
        Self::Paused,
        Self::Unknown,
    ];

    /// The status' name as databases and APIs of the system in production write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Restarting => "restarting",
            Self::Updating => "updating",
            Self::Maintenance => "maintenance",
            Self::Error => "error",
            Self::Terminated => "terminated",
            Self::ContainerMissing => "container_missing",
            Self::Paused => "paused",
            Self::Unknown => "unknown",
        }
    }

    /// True while the platform is on its way to another status by itself.
    #[must_use]
    pub const fn is_transitional(self) -> bool {
        matches!(
            self,
            Self::Creating | Self::Starting | Self::Stopping | Self::Restarting | Self::Updating
        )
    }

    /// What a user may do, exactly as the system in production has it, but for one addition: a paused instance can be
    /// unsuspended, without which a customer who has paid stays off.
    #[must_use]
    pub const fn allowed_actions(self) -> &'static [InstanceAction] {
        use InstanceAction::{Backup, Restart, Restore, Start, Stop, Suspend, Terminate, Unpause, Unsuspend, Update};
        match self {
            Self::Creating | Self::Stopping | Self::Restarting | Self::Updating | Self::Maintenance => &[Terminate],
            Self::Starting => &[Stop, Suspend, Terminate],
            Self::Running => &[Stop, Restart, Update, Backup, Suspend, Terminate],
            Self::Stopped | Self::ContainerMissing => &[Start, Backup, Restore, Suspend, Terminate],
            Self::Error => &[Start, Stop, Restart, Restore, Suspend, Terminate],
            Self::Paused => &[Unpause, Unsuspend, Terminate],
            Self::Terminated | Self::Unknown => &[],
        }
    }
}

impl fmt::Display for InstanceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for InstanceStatus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| Error::invalid("status", format!("{} is not a status", quoted(text))))
    }
}

/// Why an instance has its status, with the same variants from both platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "cause")]
#[non_exhaustive]
pub enum Cause {
    /// The image cannot be pulled, or its name is not valid.
    ImagePull {
        /// The image.
        image: String,
        /// What the platform said.
        message: String,
    },
    /// The process ends again and again.
    CrashLoop {
        /// How often it was started again, as far as the platform remembers.
        restarts: u32,
        /// The last exit code.
        last_exit: Option<i32>,
    },
    /// The process was killed for using more memory than its limit.
    OutOfMemory {
        /// True when only the exit code 137 says so.
        inferred: bool,
        /// How often it was started again.
        restarts: u32,
    },
    /// The process ended once; the platform starts it again.
    Exited {
        /// The exit code.
        code: Option<i32>,
    },
    /// No node can take it.
    Unschedulable {
        /// What the scheduler said.
        message: String,
    },
    /// A quota of the platform refuses it.
    QuotaExceeded {
        /// What the platform said.
        message: String,
    },
    /// Its data or another volume cannot be mounted.
    MountFailed {
        /// What the platform said.
        message: String,
    },
    /// Its storage is not there yet.
    StoragePending {
        /// What the platform said.
        message: String,
    },
    /// It runs and does not answer its probe.
    ProbeFailing {
        /// What the platform said.
        message: String,
    },
    /// The node refused to run it.
    Rejected {
        /// What the node said.
        message: String,
    },
    /// The platform removed it from its node.
    Evicted {
        /// What the platform said.
        message: String,
    },
    /// The node it ran on does not answer.
    NodeLost {
        /// The node.
        node: Option<String>,
    },
    /// The last change was stopped or taken back by the platform.
    RolloutFailed {
        /// What the platform said.
        message: String,
    },
    /// A reason this library does not know.
    Other {
        /// The platform's name of the reason.
        reason: String,
        /// What the platform said.
        message: String,
    },
}

impl Cause {
    /// The cause's name in `snake_case`, for metrics and comparison.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ImagePull { .. } => "image_pull",
            Self::CrashLoop { .. } => "crash_loop",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Exited { .. } => "exited",
            Self::Unschedulable { .. } => "unschedulable",
            Self::QuotaExceeded { .. } => "quota_exceeded",
            Self::MountFailed { .. } => "mount_failed",
            Self::StoragePending { .. } => "storage_pending",
            Self::ProbeFailing { .. } => "probe_failing",
            Self::Rejected { .. } => "rejected",
            Self::Evicted { .. } => "evicted",
            Self::NodeLost { .. } => "node_lost",
            Self::RolloutFailed { .. } => "rollout_failed",
            Self::Other { .. } => "other",
        }
    }

    /// True when waiting will not help and the status is an error; false when the platform is still at work.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        match self {
            Self::ImagePull { .. }
            | Self::CrashLoop { .. }
            | Self::OutOfMemory { .. }
            | Self::QuotaExceeded { .. }
            | Self::MountFailed { .. }
            | Self::Rejected { .. }
            | Self::NodeLost { .. }
            | Self::Unschedulable { .. } => true,
            Self::Exited { .. }
            | Self::StoragePending { .. }
            | Self::ProbeFailing { .. }
            | Self::Evicted { .. }
            | Self::RolloutFailed { .. }
            | Self::Other { .. } => false,
        }
    }

    /// A sentence that a tenant may see: no names of nodes, images, paths or tools.
    #[must_use]
    pub const fn tenant_message(&self) -> &'static str {
        match self {
            Self::ImagePull { .. } => "The requested Odoo version could not be fetched. Our team needs to look at it.",
            Self::CrashLoop { .. } | Self::Exited { .. } => "Odoo stops right after it starts. Look at its log.",
            Self::OutOfMemory { .. } => "Odoo needs more memory than its plan allows.",
            Self::Unschedulable { .. } | Self::QuotaExceeded { .. } | Self::Evicted { .. } => {
                "There is no capacity at the moment. Our team has to add some."
            }
            Self::MountFailed { .. } | Self::StoragePending { .. } => "The storage of your instance is not ready.",
            Self::ProbeFailing { .. } => "Odoo runs but does not answer yet.",
            Self::NodeLost { .. } => "The machine your instance runs on does not answer.",
            Self::Rejected { .. } | Self::RolloutFailed { .. } | Self::Other { .. } => {
                "Your instance could not be started as requested. Our team needs to look at it."
            }
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ImagePull { image, message } => write!(f, "the image {image} cannot be pulled: {message}"),
            Self::CrashLoop { restarts, last_exit } => {
                write!(f, "it crashes again and again ({restarts} restarts")?;
                if let Some(code) = last_exit {
                    write!(f, ", last exit code {code}")?;
                }
                f.write_str(")")
            }
            Self::OutOfMemory { inferred, restarts } => {
                let how = if *inferred {
                    " (inferred from exit code 137)"
                } else {
                    ""
                };
                write!(
                    f,
                    "it was killed for using more memory than its limit, {restarts} restarts{how}"
                )
            }
            Self::Exited { code: Some(code) } => write!(f, "it ended with exit code {code}"),
            Self::Exited { code: None } => f.write_str("it ended"),
            Self::Unschedulable { message } => write!(f, "no node can take it: {message}"),
            Self::QuotaExceeded { message } => write!(f, "a quota refuses it: {message}"),
            Self::MountFailed { message } => write!(f, "a volume cannot be mounted: {message}"),
            Self::StoragePending { message } => write!(f, "its storage is not ready: {message}"),
            Self::ProbeFailing { message } => write!(f, "it does not answer its probe: {message}"),
            Self::Rejected { message } => write!(f, "the node refused it: {message}"),
            Self::Evicted { message } => write!(f, "it was evicted: {message}"),
            Self::NodeLost { node: Some(node) } => write!(f, "its node {node} does not answer"),
            Self::NodeLost { node: None } => f.write_str("its node does not answer"),
            Self::RolloutFailed { message } => write!(f, "the last change was not rolled out: {message}"),
            Self::Other { reason, message } => write!(f, "{reason}: {message}"),
        }
    }
}

/// The migration guide's table from a pod's phase to a status. [`derive`](crate::derive) refines it; this function is
/// for those who have nothing but the phase.
///
/// ```
/// use saasodoo_core::{InstanceStatus, pod_phase_status};
///
/// assert_eq!(pod_phase_status("Pending"), InstanceStatus::Creating);
/// assert_eq!(pod_phase_status("Evaporated"), InstanceStatus::Unknown);
/// ```
#[must_use]
pub fn pod_phase_status(phase: &str) -> InstanceStatus {
    match phase.to_ascii_lowercase().as_str() {
        "pending" => InstanceStatus::Creating,
        "running" => InstanceStatus::Running,
        "succeeded" => InstanceStatus::Stopped,
        "failed" | "unknown" => InstanceStatus::Error,
        _ => InstanceStatus::Unknown,
    }
}

/// The migration guide's table from a Swarm task's state to a status (`new`, `running`, `shutdown`, `failed`), with the
/// other [task states](https://docs.docker.com/engine/swarm/how-swarm-mode-works/swarm-task-states/) filled in.
///
/// ```
/// use saasodoo_core::{InstanceStatus, task_state_status};
///
/// assert_eq!(task_state_status("new"), InstanceStatus::Creating);
/// assert_eq!(task_state_status("rejected"), InstanceStatus::Error);
/// ```
#[must_use]
pub fn task_state_status(state: &str) -> InstanceStatus {
    match state.to_ascii_lowercase().as_str() {
        "new" | "allocated" | "pending" => InstanceStatus::Creating,
        "assigned" | "accepted" | "preparing" | "ready" | "starting" => InstanceStatus::Starting,
        "running" => InstanceStatus::Running,
        "complete" | "shutdown" | "remove" => InstanceStatus::Stopped,
        "failed" | "rejected" | "orphaned" => InstanceStatus::Error,
        _ => InstanceStatus::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_survive_their_text() {
        for status in InstanceStatus::ALL {
            assert_eq!(status, status.as_str().parse().expect("its own text"));
            assert_eq!(serde_json::to_string(&status).expect("json"), format!("\"{status}\""));
        }
        assert!(
            "suspended".parse::<InstanceStatus>().is_err(),
            "of the other, conflicting set"
        );
    }

    #[test]
    fn actions_are_written_as_they_are_stored() {
        for action in InstanceStatus::ALL.iter().flat_map(|status| status.allowed_actions()) {
            assert_eq!(serde_json::to_string(action).expect("json"), format!("\"{action}\""));
        }
    }

    #[test]
    fn the_guides_tables_keep_their_values() {
        use InstanceStatus::{Creating, Error, Running, Stopped};
        for (phase, status) in [
            ("Pending", Creating),
            ("Running", Running),
            ("Succeeded", Stopped),
            ("Failed", Error),
            ("Unknown", Error),
        ] {
            assert_eq!(pod_phase_status(phase), status);
        }
        for (state, status) in [
            ("new", Creating),
            ("running", Running),
            ("shutdown", Stopped),
            ("failed", Error),
        ] {
            assert_eq!(task_state_status(state), status);
        }
    }

    #[test]
    fn a_transitional_instance_can_always_be_left() {
        for status in InstanceStatus::ALL {
            let terminal = matches!(status, InstanceStatus::Terminated | InstanceStatus::Unknown);
            assert_eq!(
                status.allowed_actions().contains(&InstanceAction::Terminate),
                !terminal,
                "{status}"
            );
        }
    }
}
