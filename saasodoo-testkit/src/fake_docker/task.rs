//! A task: its states as the API names them, and how it is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::Process;

/// How far a task has come, in Swarm's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    New,
    Pending,
    Assigned,
    Accepted,
    Preparing,
    Ready,
    Starting,
    Running,
    Complete,
    Shutdown,
    Failed,
    Rejected,
    Orphaned,
}

impl State {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Orphaned => "orphaned",
        }
    }

    /// Nothing of it runs or will run.
    pub(super) fn ended(self) -> bool {
        self > Self::Running
    }

    const fn message(self) -> &'static str {
        match self {
            Self::New => "created",
            Self::Pending => "pending task scheduling",
            Self::Assigned => "scheduler assigned task to node",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "prepared",
            Self::Starting => "starting",
            Self::Running => "started",
            Self::Complete => "finished",
            Self::Shutdown => "shutdown",
            Self::Failed => "started",
            Self::Rejected => "preparing",
            Self::Orphaned => "orphaned",
        }
    }
}

/// What the manager wants of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Desired {
    /// Prepared, and not started yet.
    Ready,
    Running,
    Shutdown,
    /// Stopped, and then forgotten.
    Remove,
}

impl Desired {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Shutdown => "shutdown",
            Self::Remove => "remove",
        }
    }

    /// It shall run, now or soon.
    pub(super) fn wanted(self) -> bool {
        self <= Self::Running
    }
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: String,
    pub(super) version: u64,
    pub(super) created: Duration,
    pub(super) updated: Duration,
    pub(super) service: String,
    /// The name and the labels that its service had when the task was made.
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) slot: u64,
    pub(super) spec: Value,
    pub(super) networks: Value,
    pub(super) node: Option<String>,
    pub(super) desired: Desired,
    pub(super) state: State,
    pub(super) since: Duration,
    pub(super) error: String,
    pub(super) container: Option<String>,
    pub(super) exit: i32,
    pub(super) process: Option<Process>,
    pub(super) stopping: bool,
    /// It starts when this task has ended, and not before this moment.
    pub(super) after: Option<String>,
    pub(super) release: Duration,
}

impl Task {
    pub(super) fn container_spec(&self) -> &Value {
        self.spec.get("ContainerSpec").unwrap_or(&Value::Null)
    }

    pub(super) fn image(&self) -> &str {
        self.container_spec()
            .get("Image")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The host name in its container.
    pub(super) fn host(&self) -> &str {
        self.container
            .as_deref()
            .unwrap_or_default()
            .get(..12)
            .unwrap_or_default()
    }

    pub(super) fn grace(&self) -> Duration {
        let nanos = self.container_spec().get("StopGracePeriod").and_then(Value::as_u64);
        nanos.map_or(Duration::from_secs(10), Duration::from_nanos)
    }

    /// As the daemon shows it. `time` renders a moment.
    pub(super) fn render(&self, time: impl Fn(Duration) -> String) -> Value {
        let mut status = json!({
            "Timestamp": time(self.since),
            "State": self.state.as_str(),
            "Message": self.state.message(),
            "PortStatus": {},
        });
        if !self.error.is_empty() {
            status["Err"] = json!(self.error);
        }
        if let Some(container) = &self.container {
            let pid = if self.process.is_some() { 4711 } else { 0 };
            status["ContainerStatus"] = json!({"ContainerID": container, "PID": pid, "ExitCode": self.exit});
        }
        let mut task = json!({
            "ID": self.id,
            "Version": {"Index": self.version},
            "CreatedAt": time(self.created),
            "UpdatedAt": time(self.updated),
            "Labels": {},
            "Spec": self.spec,
            "ServiceID": self.service,
            "Slot": self.slot,
            "Status": status,
            "DesiredState": self.desired.as_str(),
            "NetworksAttachments": self.networks,
        });
        if let Some(node) = &self.node {
            task["NodeID"] = json!(node);
        }
        task
    }
}
