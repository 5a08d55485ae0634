//! Starting, stopping and holding an instance, and what keeps two processes from its data.
//!
//! Swarm looks only at the tasks that shall run: it starts a new one while an old one still drains. Between the tasks of
//! one slot it waits, but for a minute at most. So this library waits itself wherever Swarm would not.

use std::time::Duration;

use jiff::Timestamp;
use saasodoo_core::{
    BackendKind, Error, ErrorKind, Facts, Hold, Instance, InstanceId, Power, Result, Retry, decide_power,
};
use serde_json::Value;
use tokio::time::Instant;

use crate::backend::Inner;
use crate::change::{ATTEMPTS, contended, pause};
use crate::config::RegistryAuth;
use crate::convert::{self, label};
use crate::read::Seen;
use crate::{facts, fence};

/// Swarm starts the next task a minute after it has asked the last one to stop, ended or not. What is less by this much
/// has ended by then.
const LONGEST_GRACE: Duration = Duration::from_secs(50);
/// What the daemon takes beside the grace period.
const MARGIN: Duration = Duration::from_secs(30);
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(1);

impl Inner {
    pub(crate) async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        for attempt in 0..ATTEMPTS {
            let mut seen = self.existing(id).await?;
            let Some(mut body) = powered(&seen, power, self.clock.now())? else {
                return self.observe(&seen).await;
            };
            if starts(&seen, &body) {
                self.check_start(&seen).await?;
                if seen.any_live() {
                    let limit = self.config.common.deadlines.termination;
                    seen = self.until(id, limit, |seen| !seen.any_live() || !is_down(seen)).await?;
                    // Somebody may have decided otherwise in the meantime. Or started it, which is all that was asked:
                    // the restart of what was down for a moment is a start.
                    let power = if is_down(&seen) { power } else { Power::Start };
                    match powered(&seen, power, self.clock.now())? {
                        Some(again) => body = again,
                        None => return self.observe(&seen).await,
                    }
                }
            }
            if self.send(&seen, &body, None).await? {
                return self.get(id).await;
            }
            pause(attempt).await;
        }
        Err(contended())
    }

    /// An instance without its data would start on an empty directory, or not at all; one whose data another service
    /// uses must not start.
    pub(crate) async fn check_start(&self, seen: &Seen) -> Result<()> {
        let source = facts::data_source(&seen.service);
        let disk = self.storage.look(source, false).await?;
        if disk.exists == Some(false) {
            return Err(no_directory(source));
        }
        match source {
            Some(source) => self.unused(facts::id_of(&seen.service)?, source).await,
            None => Ok(()),
        }
    }

    /// Sends a body that was made from what was seen, so that no two processes of the instance run at once. `false`:
    /// somebody was faster.
    pub(crate) async fn send(&self, seen: &Seen, body: &Value, auth: Option<&RegistryAuth>) -> Result<bool> {
        if !replaces(seen, body) {
            return self.post_with(seen, body, auth).await;
        }
        let id = facts::id_of(&seen.service)?;
        if let Some(limit) = overlaps(seen.body(), body) {
            let mut down = body.clone();
            let replicas = convert::replicas(body).unwrap_or(1);
            convert::set_replicas(&mut down, 0);
            convert::set_label(&mut down, label::RESTARTING, Some(replicas.to_string()));
            if !self.post_with(seen, &down, auth).await? {
                return Ok(false);
            }
            self.start_again(id, limit).await?;
            return Ok(true);
        }
        // Swarm waits for the task that it replaces, and not for the one before that.
        if drains(seen) {
            let limit = self.config.common.deadlines.termination;
            self.until(id, limit, |seen| !drains(seen)).await?;
        }
        self.post_with(seen, body, auth).await
    }

    /// Starts an instance that was stopped for a moment, once its process has ended.
    pub(crate) async fn start_again(&self, id: InstanceId, limit: Duration) -> Result<()> {
        let limit = limit.max(self.config.common.deadlines.termination);
        for attempt in 0..ATTEMPTS {
            let decided = |seen: &Seen| !is_down(seen) || facts::restarting(&seen.service).is_none();
            let seen = self.until(id, limit, |seen| !seen.any_live() || decided(seen)).await?;
            // Stopped, held or started by somebody else in the meantime.
            if decided(&seen) || facts::hold_of(&seen.service).is_some() {
                return Ok(());
            }
            let Some(body) = powered(&seen, Power::Start, self.clock.now())? else {
                return Ok(());
            };
            if self.post(&seen, &body).await? {
                return Ok(());
            }
            pause(attempt).await;
        }
        Err(contended())
    }

    /// Looks until an instance is so.
    async fn until(&self, id: InstanceId, limit: Duration, is_so: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let deadline = Instant::now() + limit;
        let mut wait = FIRST_LOOK;
        loop {
            let late = Instant::now() + wait > deadline;
            match self.existing(id).await {
                Ok(seen) if is_so(&seen) => return Ok(seen),
                Ok(_) => {}
                // An instance that is down for a moment is not left so because a look at it fails.
                Err(error) if !late && matches!(error.retry(), Retry::After(_)) => {}
                Err(error) => return Err(error),
            }
            if late {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!("the process before has not ended within {} s", limit.as_secs()),
                )
                .with_backend(BackendKind::Swarm)
                .with_retry(Retry::After(None))
                .with_advice(
                    "try again; if its node is lost, make sure that the machine is off, and remove the node from the \
                     swarm",
                ));
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 3 / 2).min(LAST_LOOK);
        }
    }
}

pub(crate) fn no_directory(source: Option<&str>) -> Error {
    Error::new(
        ErrorKind::StorageMissing,
        format!("its directory {} is not there", source.unwrap_or_default()),
    )
    .with_advice("mount CephFS, or find out who moved the directory")
}

/// Nothing shall run now.
fn is_down(seen: &Seen) -> bool {
    convert::replicas(seen.body()) == Some(0)
}

/// Nothing can run now, and something shall with this body.
pub(crate) fn starts(seen: &Seen, body: &Value) -> bool {
    // A suspended service that somebody has scaled up waits behind its constraint.
    let is_off = |body: &Value| convert::replicas(body) == Some(0) || fence::is_raised(body);
    is_off(seen.body()) && !is_off(body)
}

/// With this body Swarm replaces the running task.
pub(crate) fn replaces(seen: &Seen, body: &Value) -> bool {
    let template = |body: &Value| body.get("TaskTemplate").cloned();
    convert::replicas(seen.body()) != Some(0)
        && convert::replicas(body) != Some(0)
        && template(seen.body()) != template(body)
}

/// An old task still ends, and the one that replaces it does not run yet.
fn drains(seen: &Seen) -> bool {
    let units: Vec<_> = seen.tasks.iter().map(crate::task::Task::unit).collect();
    let runs = |unit: &saasodoo_core::Unit| unit.wanted && unit.phase == saasodoo_core::UnitPhase::Running;
    units.iter().any(|unit| unit.is_live() && !unit.wanted) && !units.iter().any(runs)
}

/// How long the old task may take to end, if Swarm would not wait for it: it has a long grace period, or the service
/// starts the new one first.
fn overlaps(before: &Value, after: &Value) -> Option<Duration> {
    let grace = before
        .pointer("/TaskTemplate/ContainerSpec/StopGracePeriod")
        .and_then(Value::as_u64)
        .map_or(convert::DOCKER_GRACE, Duration::from_nanos);
    let text = |path: &str| after.pointer(path).and_then(Value::as_str);
    let start_first = text("/UpdateConfig/Order") == Some("start-first")
        || (text("/UpdateConfig/FailureAction") == Some("rollback")
            && text("/RollbackConfig/Order") == Some("start-first"));
    (grace > LONGEST_GRACE || start_first).then_some(grace + MARGIN)
}

/// The body after a change of power. `None`: it is so already.
///
/// A suspension is taken away by a resume only, and any other hold by the operator who made it: neither is gone around
/// by a start or a restart.
pub(crate) fn powered(seen: &Seen, power: Power, now: Timestamp) -> Result<Option<Value>> {
    let replicas = convert::replicas(seen.body())
        .ok_or_else(|| Error::unsupported("mode", "the service is not replicated, so it cannot be stopped"))?;
    let hold = facts::hold_of(&seen.service);
    let interrupted = facts::restarting(&seen.service);
    // A restart that was interrupted half way goes on.
    let desired = if power == Power::Restart {
        interrupted.map_or(replicas, |before| before.max(1))
    } else {
        replicas
    };
    let mut asked = Facts::new(u32::try_from(desired).unwrap_or(u32::MAX), Timestamp::UNIX_EPOCH);
    asked.hold = hold;
    decide_power(&asked, power)?;
    let mut body = seen.body().clone();
    if matches!(power, Power::Start | Power::Stop | Power::Suspend) {
        // Whatever its creation was about to do, this is later.
        convert::set_label(&mut body, label::UNFINISHED, None);
    }
    match power {
        Power::Restart if replicas > 0 => {
            convert::force_update(&mut body);
            convert::set_label(&mut body, label::RESTARTING, None);
        }
        // A restart that was interrupted half way is a start by now.
        Power::Start | Power::Restart => {
            if replicas == 0 {
                convert::set_replicas(&mut body, interrupted.unwrap_or(1).max(1));
            }
            convert::set_label(&mut body, label::RESTARTING, None);
            fence::lower(&mut body);
        }
        Power::Stop => {
            convert::set_replicas(&mut body, 0);
            convert::set_label(&mut body, label::RESTARTING, None);
        }
        Power::Suspend => {
            convert::set_replicas(&mut body, 0);
            convert::set_label(&mut body, label::RESTARTING, None);
            convert::set_label(&mut body, label::HOLD, Some(Hold::Suspended.as_str().to_owned()));
            fence::raise(&mut body, now);
        }
        Power::Resume => {
            if hold == Some(Hold::Suspended) {
                convert::set_label(&mut body, label::HOLD, None);
                convert::set_label(&mut body, label::RESTARTING, None);
            }
            if hold.is_none_or(|hold| hold == Hold::Suspended) && fence::is_raised(&body) {
                // Whoever scaled it up in the meantime would have it run now.
                convert::set_replicas(&mut body, 0);
                fence::lower(&mut body);
            }
        }
    }
    Ok((body != *seen.body()).then_some(body))
}
