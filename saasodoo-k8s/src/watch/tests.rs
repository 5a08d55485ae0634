//! The cache against an API server in the same process, under a clock that the tests move.

mod cached;
mod contact;
mod events;
mod fake;
mod life;
mod random;
mod time;

use std::sync::Arc;

use futures::FutureExt as _;
use saasodoo_core::{
    BackendKind, Exit, Facts, InstanceSpec, InstanceStatus, ObjectName, Provenance, Staleness, Unit, UnitPhase,
};
use serde_json::json;
use tokio::time::{advance, timeout};

use super::*;
use crate::views::View as _;
use fake::{FakeApi, now};

fn id(n: u32) -> InstanceId {
    format!("{n:08x}-0000-4000-8000-000000000000").parse().expect("a UUID")
}

/// A small observation, so that these tests are about the cache only.
fn observe(
    deployment: &DeploymentView,
    pods: &[&PodView],
    claim: Option<&ClaimView>,
    at: Timestamp,
) -> Option<Instance> {
    let id = crate::names::id_of(deployment)?;
    let mut spec = InstanceSpec::new(id, "acme".parse().ok()?, "odoo:17".parse().ok()?);
    spec.display_name = deployment.annotation("title").unwrap_or_default().to_owned();
    let mut facts = Facts::new(u32::try_from(deployment.spec.replicas?).ok()?, at);
    for pod in pods {
        let mut unit = Unit::new(
            pod.name(),
            1,
            match pod.status.phase.as_str() {
                "Running" => UnitPhase::Running,
                "Pending" => UnitPhase::Pending,
                _ => UnitPhase::Unknown,
            },
        );
        if let Some(status) = pod.status.container("odoo") {
            unit.ready = status.ready;
            unit.restarts = u32::try_from(status.restart_count).ok()?;
            unit.started_at = status.state.running.as_ref().and_then(|running| running.started_at);
            unit.last_exit = status
                .last_state
                .terminated
                .as_ref()
                .map(|end| Exit::with_code(1, end.finished_at));
        }
        facts.units.push(unit);
    }
    let name = ObjectName::existing(deployment.name()).ok()?;
    let provenance = Provenance::live(deployment.version(), at);
    let mut instance = Instance::observed(BackendKind::Kubernetes, name, spec, facts, provenance);
    instance.storage.requested = claim.and_then(|c| c.spec.resources.requests.get("storage")?.parse().ok());
    Some(instance)
}

struct Small;

impl Observe for Small {
    fn observe(
        &self,
        d: &DeploymentView,
        pods: &[&PodView],
        claim: Option<&ClaimView>,
        at: Timestamp,
    ) -> Option<Instance> {
        observe(d, pods, claim, at)
    }

    fn claim_of<'a>(&self, deployment: &'a DeploymentView) -> Option<&'a str> {
        let volume = deployment.spec.template.spec.volumes.first()?;
        Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str())
    }
}

fn tuning() -> Tuning {
    Tuning {
        page_size: 2,
        now,
        ..Tuning::default()
    }
}

fn cache(api: &FakeApi) -> Cache {
    Cache::with(api.client(), "ns", Small, tuning())
}

type Events = BoxStream<'static, InstanceEvent>;

async fn next(events: &mut Events) -> InstanceEvent {
    timeout(Duration::from_secs(300), events.next())
        .await
        .expect("an event within five minutes")
        .expect("the stream never ends")
}

/// What there is to deliver now.
fn drain(events: &mut Events) -> Vec<InstanceEvent> {
    let mut drained = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        drained.push(event);
    }
    drained
}

async fn settle() {
    for _ in 0..60 {
        tokio::task::yield_now().await;
    }
}

/// Lets time pass in steps: a jump would be a machine that was suspended.
async fn pass(seconds: u32) {
    for _ in 0..seconds {
        advance(Duration::from_secs(1)).await;
        settle().await;
    }
}

async fn until_synced(events: &mut Events) -> Vec<InstanceEvent> {
    let mut seen = Vec::new();
    loop {
        match next(events).await {
            InstanceEvent::Synced => return seen,
            event => seen.push(event),
        }
    }
}

fn applied(event: InstanceEvent) -> Instance {
    match event {
        InstanceEvent::Applied(instance) => *instance,
        other => panic!("not applied: {other:?}"),
    }
}

fn stale(event: InstanceEvent) -> Staleness {
    match event {
        InstanceEvent::Stale(stale) => stale,
        other => panic!("not stale: {other:?}"),
    }
}
