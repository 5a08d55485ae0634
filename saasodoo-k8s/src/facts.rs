//! From objects to neutral facts. Pure: no requests, no clock.

use jiff::Timestamp;
use saasodoo_core::{Cause, Exit, Facts, Hold, Transition, Unit, UnitPhase};

use crate::names::{CONTAINER, HOLD, QUIET, TRANSITION};
use crate::views::{ContainerStatusView, DeploymentView, PodView, TerminatedView, View};

/// How long a pod may take to go beyond its grace period before its node counts as lost, in seconds. The server sets
/// the deletion time to the end of the grace period; the node needs a little longer to report.
const OVERDUE_SECONDS: i64 = 60;

/// The reason of the events that tell why a volume is not mounted.
pub(crate) const MOUNT_FAILED: &str = "FailedMount";

/// What is known about an instance from its Deployment and its pods, whatever their order.
pub(crate) fn facts(deployment: &DeploymentView, pods: &[&PodView], now: Timestamp) -> Facts {
    let desired = deployment.spec.replicas.unwrap_or(1).max(0);
    let mut facts = Facts::new(u32::try_from(desired).unwrap_or(0), now);
    facts.hold = hold(deployment);
    facts.deleting = deployment.is_deleting();
    facts.transition = deployment.annotation(TRANSITION).and_then(Transition::from_name);
    facts.lagging = lags(deployment);
    facts.obstacle = obstacle(deployment);
    let image = deployment
        .spec
        .template
        .spec
        .containers
        .iter()
        .find(|container| container.name == CONTAINER)
        .or_else(|| deployment.spec.template.spec.containers.first())
        .map_or("", |container| container.image.as_str());
    facts.units = pods.iter().map(|pod| unit(pod, image, now)).collect();
    facts
}

/// What holds the instance down. One of a name that this version does not know is somebody's all the same.
fn hold(deployment: &DeploymentView) -> Option<Hold> {
    let name = deployment.annotation(HOLD).filter(|name| !name.is_empty())?;
    Some(Hold::from_name(name).unwrap_or(Hold::Maintenance))
}

/// Whether the pod has, or is about to have, a process.
pub(crate) fn is_live(pod: &PodView, now: Timestamp) -> bool {
    unit(pod, "", now).is_live()
}

/// The controller has not acted on the last change of the Deployment, or pods of an older template still count.
fn lags(deployment: &DeploymentView) -> bool {
    let status = &deployment.status;
    let generation = deployment.metadata.generation.unwrap_or_default();
    let needed = match quiet(deployment) {
        Some((from, to)) if to == generation => from,
        _ => generation,
    };
    let unseen = status.observed_generation.unwrap_or_default() < needed;
    unseen || (deployment.spec.replicas != Some(0) && status.replicas > status.updated_replicas)
}

/// The generations between which only metadata changed.
pub(crate) fn quiet(deployment: &DeploymentView) -> Option<(i64, i64)> {
    let (from, to) = deployment.annotation(QUIET)?.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?))
}

/// Why the platform makes no pod, or gave up on a rollout.
fn obstacle(deployment: &DeploymentView) -> Option<Cause> {
    let failure = deployment.status.condition("ReplicaFailure").filter(|c| c.is_true());
    if let Some(failure) = failure {
        let message = failure.message.clone();
        return Some(if message.contains("exceeded quota") {
            Cause::QuotaExceeded { message }
        } else {
            Cause::Rejected { message }
        });
    }
    let progressing = deployment.status.condition("Progressing")?;
    (progressing.status == "False").then(|| Cause::RolloutFailed {
        message: format!("{}: {}", progressing.reason, progressing.message),
    })
}

fn unit(pod: &PodView, image: &str, now: Timestamp) -> Unit {
    let status = &pod.status;
    let container = status
        .container(CONTAINER)
        .or_else(|| status.container_statuses.first());
    let order = pod
        .created_at()
        .map_or(0, |at| u64::try_from(at.as_second()).unwrap_or(0));
    let mut unit = Unit::new(pod.name(), order, phase(pod, container, now));
    unit.node = pod.spec.node_name.clone();
    unit.address = status.pod_ip.clone();
    unit.wanted = !pod.is_deleting();
    unit.ready = unit.phase == UnitPhase::Running && status.condition("Ready").is_some_and(|c| c.is_true());
    if let Some(container) = container {
        let running = container.state.running.as_ref();
        unit.started_at = running.and_then(|running| running.started_at);
        unit.restarts = u32::try_from(container.restart_count).unwrap_or(0);
        let ended = container
            .state
            .terminated
            .as_ref()
            .or(container.last_state.terminated.as_ref());
        unit.last_exit = ended.map(exit);
        unit.was_ready = unit.ready || answered_before(pod, unit.started_at);
    }
    unit.problem = problem(pod, image, unit.restarts, unit.last_exit.as_ref());
    unit
}

/// The present process has answered before: the pod turned unready *after* it was started.
fn answered_before(pod: &PodView, started_at: Option<Timestamp>) -> bool {
    let (Some(started), Some(ready)) = (started_at, pod.status.condition("Ready")) else {
        return false;
    };
    // Within the first seconds a transition still belongs to the start itself.
    let changed = ready.last_transition_time;
    !ready.is_true() && changed.is_some_and(|changed| changed.as_second() - started.as_second() > 3)
}

fn phase(pod: &PodView, container: Option<&ContainerStatusView>, now: Timestamp) -> UnitPhase {
    let status = &pod.status;
    let overdue = pod
        .metadata
        .deletion_timestamp
        .as_ref()
        .is_some_and(|at| now.as_second() - at.0.as_second() > OVERDUE_SECONDS);
    let on_a_node = pod.spec.node_name.is_some();
    match status.phase.as_str() {
        "Succeeded" => UnitPhase::Finished,
        "Failed" => UnitPhase::Failed,
        _ if status.reason == "NodeLost" || (overdue && on_a_node) => UnitPhase::Lost,
        "Pending" | "" if !on_a_node => UnitPhase::Pending,
        "Pending" | "" => UnitPhase::Preparing,
        "Running" => match container {
            Some(container) if container.state.running.is_none() => UnitPhase::Preparing,
            _ => UnitPhase::Running,
        },
        "Unknown" => UnitPhase::Lost,
        _ => UnitPhase::Unknown,
    }
}

fn exit(terminated: &TerminatedView) -> Exit {
    // Kubernetes says when it was memory: an exit code of 137 without that is another kill, such as a failed probe's.
    let mut exit = Exit::with_code(terminated.exit_code.unwrap_or_default(), terminated.finished_at);
    exit.code = terminated.exit_code;
    exit.started_at = terminated.started_at;
    exit.out_of_memory = (terminated.reason == "OOMKilled").then_some(true);
    exit
}

/// What keeps a pod from running, most telling first.
fn problem(pod: &PodView, image: &str, restarts: u32, last_exit: Option<&Exit>) -> Option<Cause> {
    let status = &pod.status;
    if let Some(cause) = pod_reason(&status.reason, &status.message) {
        return Some(cause);
    }
    if let Some(target) = status.condition("DisruptionTarget").filter(|c| c.is_true()) {
        return Some(Cause::Evicted {
            message: format!("{}: {}", target.reason, target.message),
        });
    }
    if status.phase == "Pending"
        && let Some(scheduled) = status.condition("PodScheduled").filter(|c| c.status == "False")
    {
        return Some(unscheduled(&scheduled.reason, &scheduled.message));
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses);
    containers
        .filter_map(|container| {
            let waiting = container.state.waiting.as_ref();
            let ended = container.state.terminated.as_ref();
            waiting
                .and_then(|waiting| waiting_reason(&waiting.reason, &waiting.message, image, restarts, last_exit))
                .or_else(|| ended.and_then(|ended| terminated_reason(&ended.reason, &ended.message)))
        })
        .next()
}

fn unscheduled(reason: &str, message: &str) -> Cause {
    let message = message.to_owned();
    let storage = ["persistentvolumeclaim", "PersistentVolumeClaim", "volume node affinity"];
    match reason {
        "Unschedulable" if storage.iter().any(|word| message.contains(word)) => Cause::StoragePending { message },
        "Unschedulable" => Cause::Unschedulable { message },
        // A gate of somebody else, or an error of the scheduler that it retries.
        _ => Cause::Other {
            reason: reason.to_owned(),
            message,
        },
    }
}

/// The reason of a pod as a whole. An empty one says nothing.
fn pod_reason(reason: &str, message: &str) -> Option<Cause> {
    let message = message.to_owned();
    Some(match reason {
        "" => return None,
        // The phase says it, and the derivation knows the node.
        "NodeLost" => return None,
        "Evicted" | "Preempting" | "Preempted" | "NodeShutdown" | "Shutdown" | "Terminated" => {
            Cause::Evicted { message }
        }
        "OutOfcpu"
        | "OutOfmemory"
        | "OutOfpods"
        | "OutOfephemeral-storage"
        | "NodeAffinity"
        | "NodeName"
        | "NodePorts"
        | "NodePort"
        | "MatchNodeSelector"
        | "HostPortConflict"
        | "HostNetworkNotSupported"
        | "UnexpectedAdmissionError"
        | "UnsupportedPodSpec"
        | "AppArmor"
        | "SysctlForbidden"
        | "TopologyAffinityError"
        | "InvalidNodeInfo"
        | "UnknownReason" => Cause::Rejected {
            message: format!("{reason}: {message}"),
        },
        _ => Cause::Other {
            reason: reason.to_owned(),
            message,
        },
    })
}

/// The reason why a container waits. The usual steps of a start are no problem.
fn waiting_reason(reason: &str, message: &str, image: &str, restarts: u32, last_exit: Option<&Exit>) -> Option<Cause> {
    let text = message.to_owned();
    Some(match reason {
        "" | "ContainerCreating" | "PodInitializing" => return None,
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => Cause::ImagePull {
            image: image.to_owned(),
            message: if text.is_empty() { reason.to_owned() } else { text },
        },
        // Not the server's word: what the pod's events say, put here by a read that looked at them.
        MOUNT_FAILED => Cause::MountFailed { message: text },
        "CrashLoopBackOff" => Cause::CrashLoop {
            restarts,
            last_exit: last_exit.and_then(|exit| exit.code),
        },
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PreStartHookError"
        | "PostStartHookError"
        | "KillContainerError"
        | "VerifyNonRootError"
        | "ConfigPodSandboxError"
        | "CreatePodSandboxError"
        | "KillPodSandboxError" => Cause::Rejected {
            message: format!("{reason}: {text}"),
        },
        _ => Cause::Other {
            reason: reason.to_owned(),
            message: text,
        },
    })
}

/// The reason of an ended process, where it says more than its exit code.
fn terminated_reason(reason: &str, message: &str) -> Option<Cause> {
    let message = message.to_owned();
    match reason {
        // The exit says it.
        "" | "Completed" | "Error" | "OOMKilled" => None,
        "ContainerCannotRun" | "StartError" => Some(Cause::Rejected {
            message: format!("{reason}: {message}"),
        }),
        "Evicted" | "ContainerStatusUnknown" => Some(Cause::Evicted {
            message: format!("{reason}: {message}"),
        }),
        _ => Some(Cause::Other {
            reason: reason.to_owned(),
            message,
        }),
    }
}
