//! Tasks as the API shows them: decoded leniently, and turned into units.

use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use saasodoo_core::{Cause, Exit, Unit, UnitPhase};
use serde_json::Value;

/// How long a container may start before it is worth saying that it does not answer its probe.
const UNANSWERING_AFTER_SECONDS: i64 = 15;

/// What observation uses of a task. A field that is missing or of another type is empty, never an error: one odd task
/// must not hide an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) service: String,
    pub(crate) version: u64,
    pub(crate) created: Option<Timestamp>,
    pub(crate) state: String,
    pub(crate) desired: String,
    /// When it came into its state.
    pub(crate) since: Option<Timestamp>,
    pub(crate) error: String,
    pub(crate) exit_code: Option<i32>,
    pub(crate) has_container: bool,
    pub(crate) node: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) image: String,
    pub(crate) generation: Generation,
}

/// What a task was made from: equal for tasks of the same state of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u64);

impl Generation {
    /// Of a task's spec or of a service's task template, which the daemon renders alike.
    pub(crate) fn of(spec: &Value) -> Self {
        let mut hasher = DefaultHasher::new();
        for part in ["ContainerSpec", "Resources"] {
            spec.get(part).map(ToString::to_string).hash(&mut hasher);
        }
        spec.get("ForceUpdate").and_then(Value::as_u64).unwrap_or(0).hash(&mut hasher);
        Self(hasher.finish())
    }
}

impl Task {
    pub(crate) fn read(value: &Value, network: &str) -> Self {
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let container = value.pointer("/Status/ContainerStatus");
        let exit_code = container
            .and_then(|status| status.get("ExitCode"))
            .and_then(Value::as_i64)
            .and_then(|code| i32::try_from(code).ok());
        let attachments = value.get("NetworksAttachments").and_then(Value::as_array);
        let address = attachments.and_then(|attachments| {
            let named = |attachment: &&Value| {
                attachment.pointer("/Network/Spec/Name").and_then(Value::as_str) == Some(network)
            };
            let attachment = attachments.iter().find(named).or(attachments.first())?;
            let address = attachment.pointer("/Addresses/0")?.as_str()?;
            Some(address.split('/').next().unwrap_or(address).to_owned())
        });
        let spec = value.get("Spec").unwrap_or(&Value::Null);
        Self {
            id: text("/ID").to_owned(),
            service: text("/ServiceID").to_owned(),
            version: value.pointer("/Version/Index").and_then(Value::as_u64).unwrap_or(0),
            created: timestamp(text("/CreatedAt")),
            state: text("/Status/State").to_owned(),
            desired: text("/DesiredState").to_owned(),
            since: timestamp(text("/Status/Timestamp")),
            error: text("/Status/Err").to_owned(),
            exit_code,
            has_container: !text("/Status/ContainerStatus/ContainerID").is_empty(),
            node: (!text("/NodeID").is_empty()).then(|| text("/NodeID").to_owned()),
            address,
            image: text("/Spec/ContainerSpec/Image").to_owned(),
            generation: Generation::of(spec),
        }
    }

    /// The order among the tasks of one service. By creation: the version index moves with every write, also with one
    /// to an old task, and several tasks written at once share it.
    pub(crate) fn age(&self) -> (Option<Timestamp>, u64, &str) {
        (self.created, self.version, &self.id)
    }

    /// Swarm wants it to run.
    pub(crate) fn wanted(&self) -> bool {
        !matches!(self.desired.as_str(), "shutdown" | "remove")
    }

    /// Its container has run for a while and does not answer its probe.
    pub(crate) fn unanswering(&self, now: Timestamp) -> bool {
        self.state == "starting"
            && self.has_container
            && self.since.is_some_and(|since| now.as_second() - since.as_second() >= UNANSWERING_AFTER_SECONDS)
    }

    /// The unit of its own, without what its neighbours say about it.
    pub(crate) fn unit(&self) -> Unit {
        let order = self.created.map_or(0, |created| {
            u64::try_from(created.as_nanosecond()).unwrap_or_default()
        });
        let mut unit = Unit::new(self.id.clone(), order, self.phase());
        unit.node.clone_from(&self.node);
        unit.address.clone_from(&self.address);
        unit.wanted = self.wanted();
        // With a healthcheck a task is `starting` until its container is healthy, so running is ready.
        unit.ready = self.state == "running";
        unit.started_at = if unit.phase == UnitPhase::Running { self.since } else { None };
        unit.problem = self.problem();
        unit.last_exit = self.exit();
        unit
    }

    fn phase(&self) -> UnitPhase {
        match self.state.as_str() {
            "new" | "allocated" | "pending" => UnitPhase::Pending,
            // The container runs, and its healthcheck has not succeeded yet.
            "starting" if self.has_container => UnitPhase::Running,
            "assigned" | "accepted" | "preparing" | "ready" | "starting" => UnitPhase::Preparing,
            "running" => UnitPhase::Running,
            "shutdown" | "remove" => UnitPhase::Finished,
            // A service's process never ends by itself with success: `complete` is an exit with code 0.
            "complete" | "failed" | "rejected" => UnitPhase::Failed,
            // Its node has not answered for so long that Swarm gave up.
            "orphaned" => UnitPhase::Lost,
            _ => UnitPhase::Unknown,
        }
    }

    fn exit(&self) -> Option<Exit> {
        let code = self.exit_code.filter(|_| self.has_container)?;
        match self.state.as_str() {
            // Docker kills a container whose probe fails: that is neither a crash of its own nor memory.
            "failed" if self.unhealthy() => {
                let mut exit = Exit::with_code(code, self.since);
                exit.code = None;
                exit.out_of_memory = None;
                Some(exit)
            }
            "failed" | "complete" => Some(Exit::with_code(code, self.since)),
            _ => None,
        }
    }

    fn unhealthy(&self) -> bool {
        self.error.contains("unhealthy")
    }

    fn problem(&self) -> Option<Cause> {
        let message = self.error.clone();
        match self.state.as_str() {
            "pending" if !message.is_empty() => Some(Cause::Unschedulable { message }),
            "rejected" => Some(refusal(&self.image, message)),
            "failed" if self.unhealthy() => Some(Cause::ProbeFailing { message }),
            // Docker could not start the container: no process of it ever ran.
            "failed" if self.error.contains("starting container failed") || !self.has_container => {
                Some(refusal(&self.image, message))
            }
            _ if self.phase() == UnitPhase::Unknown => Some(Cause::Other {
                reason: self.state.clone(),
                message: format!("the task is in a state that this library does not know: {message}"),
            }),
            _ => None,
        }
    }
}

/// Why a node did not run a task, by the engine's words.
fn refusal(image: &str, message: String) -> Cause {
    let text = message.to_ascii_lowercase();
    let says = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    if says(&[
        "no such image",
        "pull access denied",
        "manifest unknown",
        "manifest for",
        "pulling image",
        "repository does not exist",
        "invalid reference format",
        "toomanyrequests",
        "no matching manifest",
        "image operating system",
    ]) {
        Cause::ImagePull {
            image: image.to_owned(),
            message,
        }
    } else if says(&["bind source path", "mount", "no such volume", "volume driver"]) {
        Cause::MountFailed { message }
    } else {
        Cause::Rejected { message }
    }
}

/// A time of the API. Go writes the year 1 for "never".
pub(crate) fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().ok().filter(|time: &Timestamp| time.as_second() > 0)
}
