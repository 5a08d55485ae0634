//! From a service and its tasks to an instance. Pure.

use jiff::Timestamp;
use saasodoo_core::{
    BackendKind, Cause, Endpoints, Error, ErrorKind, Facts, Hold, Instance, InstanceId, ObjectName, Origin, Provenance,
    Result, Source, Storage, StorageLocation, StorageState, Transition, Unit, UnitPhase,
};
use serde_json::Value;

use crate::config::SwarmConfig;
use crate::convert::{self, label};
use crate::observe;
use crate::task::{Generation, Task, timestamp};
use crate::traefik::HTTP_PORT;

/// What the file system says about an instance's directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Whether the directory is there. `None`: it was not looked at.
    pub(crate) exists: Option<bool>,
    /// The quota that is enforced.
    pub(crate) quota: Option<u64>,
    /// The size of what is in it.
    pub(crate) used: Option<u64>,
}

/// A label of a service.
pub(crate) fn label_of<'a>(service: &'a Value, key: &str) -> Option<&'a str> {
    service.pointer("/Spec/Labels")?.get(key)?.as_str()
}

/// The id in a service's label.
pub(crate) fn id_of(service: &Value) -> Result<InstanceId> {
    let text = label_of(service, label::ID).unwrap_or_default();
    text.parse().map_err(|_| {
        Error::new(
            ErrorKind::Unexpected,
            format!(
                "the service {:?} has the label {} with {text:?}, which is no UUID",
                service
                    .pointer("/Spec/Name")
                    .and_then(Value::as_str)
                    .unwrap_or_default(),
                label::ID,
            ),
        )
        .with_backend(BackendKind::Swarm)
        .with_advice("correct the label, or remove the service")
    })
}

/// The absolute path of the directory that is mounted as the instance's data.
pub(crate) fn data_source(service: &Value) -> Option<&str> {
    let mounts = service.pointer("/Spec/TaskTemplate/ContainerSpec/Mounts")?.as_array()?;
    let data = mounts.iter().find(|mount| {
        mount.get("Target").and_then(Value::as_str) == Some(convert::DATA_TARGET)
            && mount.get("Type").and_then(Value::as_str) == Some("bind")
    })?;
    data.get("Source")?.as_str()
}

/// The hold that a service's label names. A name that this library does not know is some operator's hold.
pub(crate) fn hold_of(service: &Value) -> Option<Hold> {
    let name = label_of(service, label::HOLD)?;
    Some(Hold::from_name(name).unwrap_or(Hold::Maintenance))
}

/// The replicas that a service gets back once the process before has ended. `None` where the label that says so is only
/// left over: somebody who does not know it has started the service since, or a hold has come in between, against which
/// nobody starts it again.
pub(crate) fn restarting(service: &Value) -> Option<u64> {
    let body = service.get("Spec").filter(|_| hold_of(service).is_none())?;
    let of = |body: &Value| -> Option<u64> { body.pointer("/Labels")?.get(label::RESTARTING)?.as_str()?.parse().ok() };
    let before = of(body).filter(|_| convert::replicas(body) == Some(0))?;
    let left_over = service.get("PreviousSpec").is_some_and(|previous| {
        // Going down for a restart changes the template as well.
        of(previous).is_some()
            && convert::replicas(previous) != Some(0)
            && previous.get("TaskTemplate") == body.get("TaskTemplate")
    });
    (!left_over).then_some(before)
}

/// Its creation shall start it and has not come to it. Who starts, stops or suspends it by this library takes the label
/// away; whoever does not know the label shows in what the service was before.
pub(crate) fn is_unfinished(service: &Value) -> bool {
    let replicas = |body: &str| service.get(body).and_then(convert::replicas);
    label_of(service, label::UNFINISHED).is_some()
        && replicas("Spec") == Some(0)
        && replicas("PreviousSpec").is_none_or(|before| before == 0)
        && hold_of(service).is_none()
}

/// Puts an observation together.
///
/// # Errors
/// `Unexpected` for a service whose id or name cannot be read: nothing could be done with it.
pub(crate) fn instance(
    service: &Value,
    tasks: &[Task],
    disk: Disk,
    config: &SwarmConfig,
    now: Timestamp,
) -> Result<Instance> {
    let id = id_of(service)?;
    let name_text = service
        .pointer("/Spec/Name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let name = ObjectName::existing(name_text).map_err(|error| error.with_instance(id))?;
    let read = observe::spec(service, id, &name, disk, config);
    let revision = service.pointer("/Version/Index").and_then(Value::as_u64).unwrap_or(0);
    let mut provenance = Provenance::live(revision.to_string(), now);
    provenance.source = Source::Live;
    provenance.origin = if label_of(service, label::MANAGED_BY).is_some() {
        Origin::Saasodoo
    } else {
        Origin::Legacy
    };
    // A mark that cannot be read is nobody's.
    provenance.token = label_of(service, label::TOKEN).and_then(|token| token.parse().ok());
    provenance.created_at = service.get("CreatedAt").and_then(Value::as_str).and_then(timestamp);
    let mut storage = Storage::default();
    storage.location = data_source(service).map(|path| StorageLocation::Directory { path: path.to_owned() });
    storage.state = match disk.exists {
        Some(true) => StorageState::Ready,
        Some(false) => StorageState::Missing,
        None => StorageState::NotObserved,
    };
    storage.requested = Some(read.spec.storage);
    storage.capacity = disk.quota.map(saasodoo_core::Bytes::new);
    storage.used = disk.used.map(saasodoo_core::Bytes::new);
    let endpoints = Endpoints::new(Some(format!("http://{name}:{HTTP_PORT}")), read.hosts, read.tls);
    Ok(Instance::observed(
        BackendKind::Swarm,
        name,
        read.spec,
        facts(service, tasks, now),
        provenance,
    )
    .with_endpoints(endpoints)
    .with_storage(storage)
    .with_unparsed(read.unparsed))
}

/// What the tasks and the service say, in neutral terms.
pub(crate) fn facts(service: &Value, tasks: &[Task], now: Timestamp) -> Facts {
    let body = service.get("Spec").unwrap_or(&Value::Null);
    let desired = convert::replicas(body).unwrap_or(1);
    let mut facts = Facts::new(u32::try_from(desired).unwrap_or(u32::MAX), now);
    facts.hold = hold_of(service);

    let mut tasks: Vec<&Task> = tasks.iter().collect();
    tasks.sort_by(|a, b| a.age().cmp(&b.age()));
    let update = Update::of(service);
    let template = Generation::of(body.get("TaskTemplate").unwrap_or(&Value::Null));
    let newest = tasks.last().map(|task| task.generation);
    let current = tasks.iter().rev().find(|task| task.wanted()).copied();
    // History of another state of the service: its failures say nothing about the present one.
    let superseded = |task: &Task| {
        Some(task.generation) != newest
            || (update.transition == Some(Transition::Start)
                && update.state.is_empty()
                && task.created < update.updated_at)
    };
    let mut ran_before = false;
    for task in &tasks {
        let mut unit = task.unit();
        let is_current = current.is_some_and(|current| current.id == task.id);
        if !is_current && superseded(task) && unit.phase == UnitPhase::Failed {
            unit.phase = UnitPhase::Finished;
            unit.problem = None;
        }
        if !is_current && !superseded(task) && (unit.last_exit.is_some() || unit.phase == UnitPhase::Finished) {
            ran_before = true;
        }
        if is_current && task.unanswering(now) {
            let message = "its process runs and has not answered its probe yet".to_owned();
            unit.problem = Some(Cause::ProbeFailing { message });
        }
        facts.units.push(unit);
    }
    explain_current(&mut facts, &tasks, current, superseded);

    facts.transition = update.transition.filter(|_| !ran_before);
    facts.lagging = desired > 0
        && update.state.is_empty()
        && matches!(update.transition, Some(Transition::Restart | Transition::Update))
        && current.is_some_and(|task| task.generation != template);
    facts.obstacle = update.obstacle();
    // Down for a moment, until the process before has ended: it will be started again.
    if let (0, Some(replicas)) = (desired, restarting(service)) {
        facts.desired = u32::try_from(replicas).unwrap_or(u32::MAX);
        facts.transition = Some(Transition::Restart);
    }
    // Made, and not started yet.
    if is_unfinished(service) {
        facts.desired = 1;
        facts.transition = Some(Transition::Create);
    }
    facts
}

/// What keeps the unit that shall run from running is often known only from the one before it.
fn explain_current(facts: &mut Facts, tasks: &[&Task], current: Option<&Task>, superseded: impl Fn(&Task) -> bool) {
    let Some(current) = current else { return };
    // Its node went down: Swarm gives up on the task there, whose state stays what it was, and has no other node.
    let lost = current
        .error
        .contains("not available for new tasks")
        .then(|| {
            tasks
                .iter()
                .rev()
                .find(|task| !task.wanted() && matches!(task.state.as_str(), "running" | "starting"))
        })
        .flatten();
    let before = tasks
        .iter()
        .rev()
        .skip_while(|task| task.id != current.id)
        .nth(1)
        .filter(|task| !superseded(task))
        .and_then(|task| task.unit().problem)
        .filter(|problem| !matches!(problem, Cause::Unschedulable { .. } | Cause::Other { .. }));
    let lost_node = lost.map(|task| task.node.clone());
    let is_new = |unit: &Unit| matches!(unit.phase, UnitPhase::Pending | UnitPhase::Preparing);
    for unit in &mut facts.units {
        if unit.id != current.id || !is_new(unit) {
            continue;
        }
        if let Some(node) = &lost_node {
            unit.problem = Some(Cause::NodeLost { node: node.clone() });
        } else if unit.problem.is_none() {
            // Between two refusals there is always a task that has not been refused yet.
            unit.problem.clone_from(&before);
        }
    }
}

/// The last change of a service, from what the daemon keeps about it.
struct Update {
    transition: Option<Transition>,
    /// Of the rolling update; empty when there is none.
    state: String,
    message: String,
    updated_at: Option<Timestamp>,
}

impl Update {
    fn of(service: &Value) -> Self {
        let text = |path: &str| service.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let body = service.get("Spec").unwrap_or(&Value::Null);
        let transition = match service.get("PreviousSpec").filter(|previous| previous.is_object()) {
            None => Some(Transition::Create),
            Some(previous) => {
                let counter = |body: &Value| body.pointer("/TaskTemplate/ForceUpdate").and_then(Value::as_u64);
                let template = |body: &Value| body.get("TaskTemplate").map(Generation::of);
                if convert::replicas(previous) == Some(0) && convert::replicas(body) != Some(0) {
                    let first = previous
                        .pointer("/Labels")
                        .and_then(|labels| labels.get(label::UNFINISHED));
                    Some(first.map_or(Transition::Start, |_| Transition::Create))
                } else if counter(previous) != counter(body) {
                    Some(Transition::Restart)
                } else if template(previous) != template(body) {
                    Some(Transition::Update)
                } else {
                    None
                }
            }
        };
        Self {
            transition,
            state: text("/UpdateStatus/State").to_owned(),
            message: text("/UpdateStatus/Message").to_owned(),
            updated_at: timestamp(text("/UpdatedAt")),
        }
    }

    fn obstacle(&self) -> Option<Cause> {
        matches!(
            self.state.as_str(),
            "paused" | "rollback_started" | "rollback_paused" | "rollback_completed"
        )
        .then(|| Cause::RolloutFailed {
            message: format!("{}: {}", self.state, self.message),
        })
    }
}
