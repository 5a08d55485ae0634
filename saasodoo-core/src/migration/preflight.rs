//! Everything that would make a later step fail, looked for before anything is changed; and the plan.

use super::engine::Inner;
use super::forward::{adopt, creation, has_divergence};
use super::{Force, Inventory, Tenancy};
use crate::dual::Comparator;
use crate::{
    Capability, Error, Health, HealthCheck, HealthState, Hold, Instance, InstanceOrchestrator, InstanceStatus, Plan,
    Result,
};

fn found(name: &str, state: HealthState, detail: impl Into<String>) -> HealthCheck {
    HealthCheck {
        name: name.to_owned(),
        state,
        detail: detail.into(),
    }
}

/// Whether both platforms are well.
pub(super) async fn platforms(m: &Inner) -> Vec<HealthCheck> {
    let mut checks = Vec::new();
    let (source, target) = tokio::join!(
        tokio::time::timeout(m.config.call, m.source.health()),
        tokio::time::timeout(m.config.call, m.target.health())
    );
    health(&mut checks, "source", source.ok());
    health(&mut checks, "target", target.ok());
    checks
}

/// What was looked at, and what the target would make if it would.
pub(super) struct Findings {
    pub(super) checks: Vec<HealthCheck>,
    pub(super) creation: Option<Plan>,
}

/// Looks at everything about one instance, beside the platforms. Writes nothing.
pub(super) async fn checks(m: &Inner, inventory: &Inventory, force: Force) -> Findings {
    let mut checks = Vec::new();
    if !m.target.capabilities().supports(Capability::AdoptDirectory) {
        checks.push(found(
            "adoption",
            HealthState::Failed,
            "the target is not configured to take directories that exist",
        ));
    }
    checks.push(source_state(&inventory.observed, inventory.tenancy, force));
    if inventory.observed.facts.hold == Some(Hold::Maintenance) {
        checks.push(found(
            "source.hold",
            HealthState::Failed,
            "an operator holds the instance for maintenance: move it when the hold is taken away",
        ));
    }
    for part in &inventory.unparsed {
        let state = if force.unparsed {
            HealthState::Degraded
        } else {
            HealthState::Failed
        };
        checks.push(found(
            "unparsed",
            state,
            format!("{} ({}) would be lost: {}", part.field, part.raw, part.reason),
        ));
    }
    let (accepts, creation) = target_accepts(m, inventory).await;
    checks.push(accepts);
    for check in &m.checks {
        let answer = check.check(&inventory.observed, &inventory.spec);
        match tokio::time::timeout(m.config.call, answer).await {
            Ok(found) => checks.extend(found),
            Err(_) => checks.push(found(
                "check",
                HealthState::Failed,
                format!("{check:?} did not answer within {:?}", m.config.call),
            )),
        }
    }
    Findings { checks, creation }
}

fn health(checks: &mut Vec<HealthCheck>, side: &str, health: Option<Health>) {
    let Some(health) = health else {
        checks.push(found(side, HealthState::Failed, "its health check does not answer"));
        return;
    };
    let bad = health.checks.iter().filter(|check| check.state != HealthState::Ok);
    let before = checks.len();
    checks.extend(bad.map(|check| found(&format!("{side}.{}", check.name), check.state, check.detail.clone())));
    if checks.len() == before {
        let (state, detail) = if health.checks.is_empty() {
            (HealthState::Failed, "its health check looked at nothing")
        } else {
            (HealthState::Ok, "it is well")
        };
        checks.push(found(side, state, detail));
    }
}

fn source_state(instance: &Instance, tenancy: Tenancy, force: Force) -> HealthCheck {
    let well = match tenancy {
        Tenancy::Running => instance.status == InstanceStatus::Running,
        Tenancy::Stopped => instance.status == InstanceStatus::Stopped,
        Tenancy::Suspended => instance.status == InstanceStatus::Paused,
    };
    let cause = instance
        .cause
        .as_ref()
        .map_or_else(String::new, |cause| format!(": {cause}"));
    let detail = format!("the instance is {}{cause}", instance.status);
    let state = match (well, force.unhealthy_source) {
        (true, _) => HealthState::Ok,
        (false, true) => HealthState::Degraded,
        (false, false) => HealthState::Failed,
    };
    found("source.instance", state, detail)
}

/// Whether the target would take the instance: names, hosts, quota, storage, secrets, and what it does not support.
async fn target_accepts(m: &Inner, inventory: &Inventory) -> (HealthCheck, Option<Plan>) {
    let say = |state, detail: String| found("target.accepts", state, detail);
    let refuse = |error: &Error| say(HealthState::Failed, error.to_string());
    let id = inventory.spec.id;
    match super::forward::bounded(m.config.call, m.target.get(id)).await {
        Ok(_) if !m.config.use_mirrored_copy => {
            let what = "an instance of this id is on the target already";
            (say(HealthState::Failed, what.to_owned()), None)
        }
        Ok(there) => (
            match unlike(m, inventory, &there) {
                Some(why) => say(HealthState::Failed, format!("the copy on the target {why}")),
                None => say(HealthState::Ok, "a stopped copy on the same data is there".to_owned()),
            },
            None,
        ),
        Err(error) if error.is_not_found() => match creation_plan(m, inventory).await {
            Ok(plan) => (
                say(HealthState::Ok, "it would create the instance".to_owned()),
                Some(plan),
            ),
            Err(error) => (refuse(&error), None),
        },
        Err(error) => (refuse(&error), None),
    }
}

/// Why a copy is none that the migration could use.
fn unlike(m: &Inner, inventory: &Inventory, there: &Instance) -> Option<&'static str> {
    let same_data = m.locator.locate(there).is_ok_and(|found| found == inventory.data);
    if there.facts.desired > 0 || there.facts.any_live() {
        Some("is not stopped")
    } else if !same_data {
        Some("does not stand on the same data")
    } else if has_divergence(&Comparator::mirrored().verdicts(Some(&inventory.observed), Some(there))) {
        Some("has another spec")
    } else {
        None
    }
}

/// The spec with its secrets: from the hook, and what that leaves open from the source, which shows those that it
/// keeps in plain view. A journal never has them.
pub(super) async fn complete(m: &Inner, inventory: &Inventory) -> Result<crate::InstanceSpec> {
    let mut spec = super::forward::bounded(m.config.call, m.secrets.complete(inventory.spec.clone())).await?;
    let open = spec
        .database
        .as_ref()
        .is_some_and(|database| database.password.is_withheld())
        || spec.admin.as_ref().is_some_and(|admin| admin.password.is_withheld());
    if open {
        match super::forward::bounded(m.config.call, m.source.get(spec.id)).await {
            Ok(source) => super::hooks::fill_in(&mut spec, &source.spec),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(spec)
}

async fn creation_plan(m: &Inner, inventory: &Inventory) -> Result<Plan> {
    let spec = complete(m, inventory).await?;
    let operation = creation(inventory, spec);
    super::forward::bounded(m.config.call, m.target.plan(&operation)).await
}

/// Every change of the migration, line by line, for people. `creation`: what the target would make, if that is known.
pub(super) async fn plan(m: &Inner, inventory: &Inventory, creation: Option<Plan>) -> Result<Vec<String>> {
    let (source, target) = (m.source.backend(), m.target.backend());
    let observed = &inventory.observed;
    let mut lines = vec![format!(
        "{} ({}) moves from {source} to {target} and keeps its data in {}",
        observed.name, inventory.spec.id, inventory.data
    )];
    let plan = match creation {
        Some(plan) => Ok(plan),
        None => creation_plan(m, inventory).await,
    };
    match plan {
        Ok(plan) => {
            lines.extend(plan.creates.iter().map(|object| format!("{target}: + {object}")));
            lines.push(format!(
                "{target}: created stopped with {:?}, then suspended",
                adopt(inventory).data
            ));
        }
        Err(_) if m.config.use_mirrored_copy => lines.push(format!("{target}: uses the stopped copy that is there")),
        Err(error) => return Err(error),
    }
    lines.push(format!("{source}: suspended; its last process is seen to end"));
    match inventory.tenancy {
        Tenancy::Running => {
            let probed = if m.probe.asks() { "; probed" } else { "" };
            lines.push(format!("{target}: resumed and started; seen ready{probed}"));
            lines.push(format!("the tenant stops for about {:.0?}", expected_downtime(m).await));
        }
        Tenancy::Stopped => lines.push(format!("{target}: resumed, and left stopped as it is now; no downtime")),
        Tenancy::Suspended => lines.push(format!("{target}: left suspended as it is now; no downtime")),
    }
    let hosts: Vec<String> = observed.endpoints.hosts.iter().map(ToString::to_string).collect();
    let hosts = hosts.join(", ");
    lines.push(if m.route.sends() {
        format!("visitors of {hosts} are sent to {target}")
    } else {
        format!("visitors of {hosts} go where the router sends them: no hook switches them")
    });
    lines.push(format!(
        "{source}: kept suspended for {} h after the commit; then it can be finished: removed without its data",
        m.config.rollback_window.as_secs() / 3600
    ));
    for part in &inventory.unparsed {
        lines.push(format!("lost: {} ({}): {}", part.field, part.raw, part.reason));
    }
    Ok(lines)
}

/// How long a tenant will be down, by what was measured or else by the configuration.
async fn expected_downtime(m: &Inner) -> std::time::Duration {
    let median = m.downtimes.median(&*m.journal, m.clock.now()).await;
    median.unwrap_or(m.config.expected_downtime)
}
