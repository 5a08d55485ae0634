//! Changes: update and power. Each reads first, writes only what differs, and reads again when somebody else was faster.
//!
//! A patch names exactly the fields that are meant, so that what others set stays, on our objects and on the guide's
//! alike. It carries the resource version that was read: a change is never made on top of something unseen.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use saasodoo_core::{
    Bytes, EnsureOutcome, Ensured, Error, ErrorKind, Facts, Hold, Host, Instance, InstanceChange, InstanceId,
    InstanceSpec, Power, RESERVED_ENVIRONMENT, Result, Retry, Transition, UpdateOptions, decide_power,
};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use crate::backend::Inner;
use crate::convert::{
    Rendered, addon_annotations, default_requests, patch_of, probe_annotations, progress_deadline, resources,
    route_annotations,
};
use crate::create::{host_conflict, storage_missing};
use crate::delete::leads_to;
use crate::facts::quiet;
use crate::names::{
    CHANGE, CLAIM as CLAIM_ANNOTATION, CUSTOM_DOMAINS, HOLD, HOST_PREFIX, HOSTS, ODOO_VERSION, QUIET, RESTARTED_AT,
    STORAGE, SUBDOMAIN, TRANSITION, VERSION, host_label,
};
use crate::observe::{data_claim, is_static, main_container, revision_of};
use crate::read::{Live, is_usable};
use crate::route::{kind as route_kind, object as route_object, spec as route_spec};
use crate::views::{ClaimView, DeploymentView, PodView, View};
use crate::wire::{CLAIM, DEPLOYMENT, INGRESS_ROUTE, Merge, bounded, detached, jittered, poll};

/// How often a change is made again after somebody else was faster.
const ATTEMPTS: u32 = 6;
/// What an update writes. An empty one has nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// For the Deployment: metadata and pod template.
    pub(crate) metadata: Map<String, Value>,
    pub(crate) container: Map<String, Value>,
    /// For its spec, beside the template.
    pub(crate) rollout: Map<String, Value>,
    /// For the claim.
    pub(crate) storage: Option<Bytes>,
    /// For the route: the hosts that it shall have.
    pub(crate) hosts: Option<Vec<Host>>,
    /// The spec before and after.
    pub(crate) before: Option<InstanceSpec>,
    pub(crate) after: Option<InstanceSpec>,
}

impl Changes {
    pub(crate) fn touches_deployment(&self) -> bool {
        !self.metadata.is_empty() || !self.container.is_empty()
    }

    pub(crate) fn restarts(&self) -> bool {
        !self.container.is_empty()
    }
}

/// What one update remembers over its passes: the answer to a write can be lost, and is a conflict with itself then.
#[derive(Debug)]
struct Pass {
    mark: String,
    wrote: AtomicBool,
}

impl Default for Pass {
    fn default() -> Self {
        Self {
            mark: uuid::Uuid::new_v4().to_string(),
            wrote: AtomicBool::new(false),
        }
    }
}

impl Inner {
    pub(crate) async fn update(
        self: &Arc<Self>,
        id: InstanceId,
        change: &InstanceChange,
        options: UpdateOptions,
    ) -> Result<Ensured> {
        checked(change)?;
        let (inner, change) = (Arc::clone(self), change.clone());
        detached(async move {
            let limit = inner.wire.deadlines.operation;
            let pass = Pass::default();
            bounded(limit, again(|| inner.update_once(id, &change, &options, &pass))).await
        })
        .await
    }

    async fn update_once(
        &self,
        id: InstanceId,
        change: &InstanceChange,
        options: &UpdateOptions,
        pass: &Pass,
    ) -> Result<Ensured> {
        let mut live = self.live(id).await?;
        // An earlier pass of this very call, whose answer was lost: what it changed is no change of somebody else.
        let landed = live.deployment.annotation(CHANGE) == Some(&pass.mark);
        if let Some(revision) = &options.if_revision
            && !landed
            && revision_of(&live.deployment) != *revision
        {
            return Err(Error::conflict(
                ["revision"],
                "the instance has been changed since it was read",
            ));
        }
        refuse_deleting(&live)?;
        let changes = self.changes(&live, change)?;
        let route = self.route_state(&live, &changes).await?;
        let idle = !changes.touches_deployment() && changes.storage.is_none() && !route.stale;
        if idle {
            let outcome = match pass.wrote.load(Ordering::Relaxed) {
                true => EnsureOutcome::Updated,
                false => EnsureOutcome::Unchanged,
            };
            return Ok(Ensured::new(outcome, self.instance(&live)));
        }
        pass.wrote.store(true, Ordering::Relaxed);
        // The caller may know the instance by its digits only, and its own hosts are under its whole id.
        let id = self.instance(&live).id;
        let own = live.is_legacy().then(|| live.deployment.name().to_owned());
        if let Some(hosts) = &changes.hosts
            && let Some((host, owner)) = self.host_taken(hosts, id, own.as_deref()).await?
        {
            return Err(host_conflict(&host, &owner));
        }
        // The growth first: it is what a server refuses.
        if let Some(size) = changes.storage {
            live.claim = Some(self.grow(&live, size).await?);
        }
        let before = live.deployment.clone();
        if changes.touches_deployment() {
            let patch = deployment_patch(&live, &changes, &pass.mark);
            live.deployment = self.patch_deployment(&live.deployment, patch).await?;
        }
        if let Some(hosts) = &changes.hosts {
            let version = live.deployment.version();
            if let Some((host, owner)) = self.host_claimed(hosts, id, own.as_deref(), version).await? {
                self.give_back(&before, &live.deployment, &pass.mark).await;
                let error = host_conflict(&host, &owner).with_retry(Retry::After(None));
                return Err(if changes.restarts() || changes.storage.is_some() {
                    error.with_advice("what else was asked has been changed; choose another subdomain or custom domain")
                } else {
                    error
                });
            }
            if route.stale {
                self.write_route(&live, hosts, route.present.as_ref()).await?;
            }
            if live.is_legacy() {
                live.hosts = Some(hosts.clone());
            }
        }
        self.wrote(id, crate::watch::Kind::Deployment, live.deployment.version());
        Ok(Ensured::new(EnsureOutcome::Updated, self.instance(&live)))
    }

    /// What differs between what is asked and what is there. Nothing is read or written.
    pub(crate) fn changes(&self, live: &Live, change: &InstanceChange) -> Result<Changes> {
        let instance = self.instance(live);
        let before = instance.spec;
        let after = change.apply_to(&before)?;
        let mut changes = Changes::default();
        let mut annotations: Vec<(String, Option<String>)> = Vec::new();
        let mut labels: Vec<(String, Option<String>)> = Vec::new();
        let deployment = &live.deployment;

        if change.image.is_some() || change.odoo_version.is_some() {
            if after.image != before.image {
                changes.container.insert("image".to_owned(), json!(after.image));
            }
            annotations.push((
                ODOO_VERSION.to_owned(),
                after.odoo_version.map(|version| version.to_string()),
            ));
            labels.push((
                VERSION.to_owned(),
                after.effective_version().map(|version| version.to_string()),
            ));
        }
        if (change.cpu.is_some() || change.memory.is_some()) && after.resources != before.resources {
            changes
                .container
                .insert("resources".to_owned(), resources(&self.config, &after));
            let (key, value) = default_requests(&self.config, &after);
            annotations.push((key.to_owned(), value));
        }
        let env = env_patch(deployment, change);
        if !env.is_empty() {
            changes.container.insert("env".to_owned(), Value::Array(env));
        }
        if change.probes.is_some() && after.probes != before.probes {
            let rendered = Rendered::of(&after.probes);
            changes
                .container
                .insert("startupProbe".to_owned(), replaced(rendered.startup));
            changes
                .container
                .insert("readinessProbe".to_owned(), replaced(rendered.readiness));
            let liveness = rendered.liveness.map_or(Value::Null, replaced);
            changes.container.insert("livenessProbe".to_owned(), liveness);
            changes.rollout.insert(
                "progressDeadlineSeconds".to_owned(),
                json!(progress_deadline(&after.probes)),
            );
            let recorded = probe_annotations(&after.probes);
            annotations.extend(recorded.into_iter().map(|(key, value)| (key.to_owned(), value)));
        }
        if change.addons.is_some() {
            let recorded = addon_annotations(&after);
            annotations.extend(recorded.into_iter().map(|(key, value)| (key.to_owned(), value)));
        }
        if let Some(size) = change.storage {
            let Some(claim) = &live.claim else {
                return Err(storage_missing(
                    data_claim(deployment, &self.config.data_path).unwrap_or("(unknown)"),
                ));
            };
            if Some(size) != requested(claim) {
                if is_static(claim) {
                    return Err(cannot_grow());
                }
                if !is_usable(claim) {
                    return Err(storage_missing(claim.name()));
                }
                changes.storage = Some(size);
            }
            annotations.push((STORAGE.to_owned(), Some(size.to_string())));
        }
        if change.route.is_some() {
            let hosts = after.hosts(self.config.base_domain())?;
            let recorded = route_annotations(&after, &hosts);
            annotations.extend(recorded.into_iter().map(|(key, value)| (key.to_owned(), value)));
            let present = deployment.metadata.labels.iter().flatten();
            let old = present
                .filter(|(key, _)| key.starts_with(HOST_PREFIX))
                .map(|(key, _)| (key.clone(), None));
            labels.extend(old);
            for host in &hosts {
                let key = host_label(host.as_str());
                labels.retain(|(other, _)| *other != key);
                labels.push((key, Some("true".to_owned())));
            }
            changes.hosts = Some(hosts);
        }

        // On the Deployment alone: in the pods' template they would restart the tenant. A key that is not the spec's own
        // is nobody's to take away here.
        for (key, value) in &change.labels {
            if value.is_some() || before.labels.contains_key(key) {
                labels.push((key.to_string(), value.as_ref().map(ToString::to_string)));
            }
        }

        annotations.retain(|(key, value)| deployment.annotation(key) != value.as_deref());
        labels.retain(|(key, value)| deployment.label(key) != value.as_deref());
        if changes.restarts()
            && let Some(strategy) = one_after_the_other(deployment)
        {
            changes.rollout.insert("strategy".to_owned(), strategy);
        }
        if changes.restarts() && deployment.spec.replicas != Some(0) {
            self.needs_claim(live)?;
            annotations.push((TRANSITION.to_owned(), Some(Transition::Update.as_str().to_owned())));
        }
        if !annotations.is_empty() {
            changes
                .metadata
                .insert("annotations".to_owned(), Value::Object(patch_of(annotations)));
        }
        if !labels.is_empty() {
            changes
                .metadata
                .insert("labels".to_owned(), Value::Object(patch_of(labels)));
        }
        changes.before = Some(before);
        changes.after = Some(after);
        Ok(changes)
    }

    /// What there is of the route, and whether it is not yet as asked: an update that was interrupted leaves it behind
    /// the Deployment. A route of somebody else is a conflict.
    pub(crate) async fn route_state(&self, live: &Live, changes: &Changes) -> Result<RouteState> {
        let (Some(hosts), Some(kind)) = (&changes.hosts, route_kind(&self.config)) else {
            return Ok(RouteState::default());
        };
        let name = live.deployment.name();
        let present: Option<Value> = self.wire.get(&kind, name).await?;
        if let Some(route) = present.as_ref().filter(|route| !is_own(route, live)) {
            let uid = route["metadata"]["uid"].as_str().unwrap_or_default();
            return Err(Error::conflict(
                ["route"],
                format!("the {} {name} ({uid}) exists and is not of this instance", kind.kind),
            )
            .with_advice("remove or rename it"));
        }
        let wanted = route_spec(&self.config, name, hosts, !live.is_legacy());
        let stale = present
            .as_ref()
            .is_none_or(|route| !wanted.is_some_and(|wanted| contains(&route["spec"], &wanted)));
        Ok(RouteState { stale, present })
    }

    /// A pod that starts now needs the data of the one before.
    pub(crate) fn needs_claim(&self, live: &Live) -> Result<()> {
        if live.usable_claim().is_some() {
            return Ok(());
        }
        let claim = data_claim(&live.deployment, &self.config.data_path);
        let claim = claim
            .or_else(|| live.deployment.annotation(CLAIM_ANNOTATION))
            .unwrap_or("(unknown)");
        Err(storage_missing(claim))
    }

    async fn grow(&self, live: &Live, size: Bytes) -> Result<ClaimView> {
        let Some(claim) = &live.claim else {
            return Err(storage_missing("(unknown)"));
        };
        let claim = self.bound(claim).await?;
        let patch = json!({
            "metadata": {"uid": claim.uid(), "resourceVersion": claim.version()},
            "spec": {"resources": {"requests": {"storage": size.to_string()}}},
        });
        let grown: ClaimView = self.wire.patch(&CLAIM, claim.name(), Merge::Json, &patch).await?;
        self.wrote(self.instance(live).id, crate::watch::Kind::Claim, grown.version());
        Ok(grown)
    }

    /// The claim once it has a volume: until then the server takes no change of its size. A volume comes soon after its
    /// claim, or, where the class says `WaitForFirstConsumer`, with the first pod.
    pub(crate) async fn bound(&self, claim: &ClaimView) -> Result<ClaimView> {
        let mut first = Some(claim.clone());
        // Of the whole operation the rest must be left for what comes after.
        let bound = poll(self.wire.deadlines.operation / 4, || {
            let known = first.take();
            async move {
                let claim = match known {
                    Some(claim) => claim,
                    None => self
                        .wire
                        .get::<ClaimView>(&CLAIM, claim.name())
                        .await?
                        .filter(|now| now.uid() == claim.uid())
                        .ok_or_else(|| storage_missing(claim.name()))?,
                };
                Ok((claim.status.phase == "Bound").then_some(claim))
            }
        });
        bound.await?.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("claim {} has no volume yet, so its size cannot change", claim.name()),
            )
            .with_advice("start the instance if its storage class waits for a first pod, or look at the claim's events")
        })
    }

    /// Writes the route of these hosts over the one that was read; makes it when there is none.
    async fn write_route(&self, live: &Live, hosts: &[Host], present: Option<&Value>) -> Result<()> {
        let Some(kind) = route_kind(&self.config) else {
            return Ok(());
        };
        let (name, websocket) = (live.deployment.name(), !live.is_legacy());
        let Some(spec) = route_spec(&self.config, name, hosts, websocket) else {
            return Ok(());
        };
        if let Some(present) = present {
            let metadata = &present["metadata"];
            let mut patch = json!({
                "metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
                "spec": spec,
            });
            if kind == INGRESS_ROUTE && patch["spec"].get("tls").is_none() {
                patch["spec"]["tls"] = Value::Null;
            }
            return self
                .wire
                .patch::<Value>(&kind, name, Merge::Json, &patch)
                .await
                .map(drop);
        }
        let labels = live.deployment.metadata.labels.clone().unwrap_or_default();
        let labels: Map<String, Value> = labels
            .into_iter()
            .filter(|(key, _)| !key.starts_with(HOST_PREFIX))
            .map(|(key, value)| (key, Value::String(value)))
            .collect();
        let metadata = json!({
            "name": name,
            "labels": labels,
            "annotations": {},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": live.deployment.uid(),
                "controller": true, "blockOwnerDeletion": true,
            }],
        });
        let Some((kind, object)) = route_object(&self.config, metadata, name, hosts, websocket) else {
            return Ok(());
        };
        self.wire.create::<Value>(&kind, &object).await.map(drop)
    }

    /// Takes hosts off the Deployment again that another instance turned out to have, and nothing else: what was changed
    /// along with them stays changed, in the pods and in what is recorded of them.
    async fn give_back(&self, before: &DeploymentView, after: &DeploymentView, mark: &str) {
        let given_back = again(|| async {
            // The controller writes to it at the same time, so it is read again.
            let now: Option<DeploymentView> = self.wire.get(&DEPLOYMENT, after.name()).await?;
            let ours = |now: &DeploymentView| now.uid() == after.uid() && now.annotation(CHANGE) == Some(mark);
            let Some(now) = now.filter(ours) else {
                return Ok(());
            };
            let labels = before.metadata.labels.iter().chain(&now.metadata.labels).flatten();
            let labels = labels.filter(|(key, _)| key.starts_with(HOST_PREFIX));
            let labels = labels.map(|(key, _)| (key.clone(), before.label(key).map(str::to_owned)));
            let annotations = [HOSTS, SUBDOMAIN, CUSTOM_DOMAINS];
            let annotations = annotations.map(|key| (key.to_owned(), before.annotation(key).map(str::to_owned)));
            let patch = json!({"metadata": {"labels": patch_of(labels), "annotations": patch_of(annotations)}});
            self.patch_deployment(&now, patch).await.map(drop)
        });
        if let Err(error) = given_back.await {
            tracing::error!(name = after.name(), %error, "hosts were not given back");
        }
    }

    /// Patches a Deployment as it was read, and no other one.
    async fn patch_deployment(&self, deployment: &DeploymentView, patch: Value) -> Result<DeploymentView> {
        let patch = as_read(deployment, patch);
        self.wire
            .patch(&DEPLOYMENT, deployment.name(), Merge::Strategic, &patch)
            .await
    }

    /// Asks whether the server would take what an update writes to the Deployment.
    pub(crate) async fn would_change(&self, live: &Live, changes: &Changes) -> Result<()> {
        let patch = as_read(&live.deployment, deployment_patch(live, changes, "plan"));
        self.wire
            .would_patch(&DEPLOYMENT, live.deployment.name(), Merge::Strategic, &patch)
            .await
    }

    pub(crate) async fn set_power(self: &Arc<Self>, id: InstanceId, power: Power) -> Result<Instance> {
        let inner = Arc::clone(self);
        detached(async move {
            let deadlines = inner.wire.deadlines;
            let live = bounded(deadlines.operation, inner.live(id)).await?;
            let limit = deadlines.operation.max(deadlines.termination).max(live.ending());
            let mut first = Some(live);
            // One stamp for the whole call: an answer that was lost must not become a second restart.
            let stamp = Timestamp::now().to_string();
            let (inner, stamp) = (&inner, &stamp);
            bounded(limit, again(|| inner.set_power_once(id, power, stamp, first.take()))).await
        })
        .await
    }

    async fn set_power_once(&self, id: InstanceId, power: Power, stamp: &str, known: Option<Live>) -> Result<Instance> {
        let mut live = match known {
            Some(live) => live,
            None => self.live(id).await?,
        };
        let Some(patch) = self.power_change(&live, power, stamp)? else {
            return Ok(self.instance(&live));
        };
        if power == Power::Start {
            // The old process writes to the data until it has ended.
            live.pods = self.until_ended(&live).await?;
        }
        live.deployment = self.patch_deployment(&live.deployment, patch).await?;
        let instance = self.instance(&live);
        self.wrote(instance.id, crate::watch::Kind::Deployment, live.deployment.version());
        Ok(instance)
    }

    /// What a change of power writes, and what speaks against it; `None` when the instance is like that already.
    pub(crate) fn power_change(&self, live: &Live, power: Power, stamp: &str) -> Result<Option<Value>> {
        refuse_deleting(live)?;
        let done = live.deployment.spec.template.metadata.annotations.get(RESTARTED_AT);
        if power == Power::Restart && done.is_some_and(|done| done == stamp) {
            return Ok(None);
        }
        let mut patch = power_patch(&self.instance(live).facts, power, stamp)?;
        if let (Power::Restart, Some(patch)) = (power, &mut patch)
            && let Some(strategy) = one_after_the_other(&live.deployment)
        {
            patch["spec"]["strategy"] = strategy;
        }
        if patch.is_some() && matches!(power, Power::Start | Power::Restart) {
            self.needs_claim(live)?;
        }
        Ok(patch)
    }

    /// Waits until no pod of the instance has a process any more; gives the pods that are left.
    async fn until_ended(&self, live: &Live) -> Result<Vec<PodView>> {
        let limit = self.wire.deadlines.termination.max(live.ending());
        let deployment = &live.deployment;
        let has_ended = |pods: &[PodView]| {
            let pods: Vec<&PodView> = pods.iter().collect();
            !crate::facts::facts(deployment, &pods, Timestamp::now()).any_live()
        };
        if has_ended(&live.pods) {
            return Ok(live.pods.clone());
        }
        let ended = self.until_pods(deployment, true, limit, has_ended).await?;
        ended.ok_or_else(|| {
            Error::new(
                ErrorKind::Timeout,
                format!("the process before has not ended within {} s", limit.as_secs()),
            )
            .with_retry(Retry::After(None))
            .with_advice("if its node is lost, make sure that the machine is off, and delete the pod by force")
        })
    }

    /// Tells the cache of a write of ours, so that it answers nothing older.
    pub(crate) fn wrote(&self, id: InstanceId, kind: crate::watch::Kind, version: &str) {
        self.cache.wrote(id, kind, version);
    }
}

/// What a change of power writes; `None` when the instance is like that already.
fn power_patch(facts: &Facts, power: Power, stamp: &str) -> Result<Option<Value>> {
    let Some(change) = decide_power(facts, power)? else {
        return Ok(None);
    };
    let mut annotations = Map::new();
    if let Some(transition) = change.transition {
        annotations.insert(TRANSITION.to_owned(), json!(transition.as_str()));
    }
    if change.hold != facts.hold {
        annotations.insert(HOLD.to_owned(), json!(change.hold.map(Hold::as_str)));
    }
    let mut patch = json!({"metadata": {}});
    if !annotations.is_empty() {
        patch["metadata"]["annotations"] = Value::Object(annotations);
    }
    if change.desired != facts.desired {
        patch["spec"]["replicas"] = json!(change.desired);
    }
    if power == Power::Restart {
        patch["spec"]["template"]["metadata"]["annotations"][RESTARTED_AT] = json!(stamp);
    }
    Ok(Some(patch))
}

/// The strategy to write beside a new template when somebody has changed it: the new pod would start beside the old one.
fn one_after_the_other(deployment: &DeploymentView) -> Option<Value> {
    let changed = deployment.spec.strategy.type_.as_deref() != Some("Recreate");
    changed.then(|| json!({"type": "Recreate", "rollingUpdate": null}))
}

/// A patch that is refused when the Deployment is not the one that was read, or not as it was.
fn as_read(deployment: &DeploymentView, mut patch: Value) -> Value {
    patch["metadata"]["uid"] = json!(deployment.uid());
    patch["metadata"]["resourceVersion"] = json!(deployment.version());
    patch
}

fn deployment_patch(live: &Live, changes: &Changes, mark: &str) -> Value {
    let mut patch = json!({ "metadata": changes.metadata });
    patch["metadata"]["annotations"][CHANGE] = json!(mark);
    if !changes.restarts() {
        // The server raises the generation for annotations too; the controller has nothing to do then.
        let generation = live.deployment.metadata.generation.unwrap_or_default();
        let from = match quiet(&live.deployment) {
            Some((from, to)) if to == generation => from,
            _ => generation,
        };
        patch["metadata"]["annotations"][QUIET] = json!(format!("{from}-{}", generation + 1));
    }
    if changes.restarts() {
        let mut container = changes.container.clone();
        let name = main_container(&live.deployment).map_or("", |container| container.name.as_str());
        container.insert("name".to_owned(), json!(name));
        patch["spec"] = Value::Object(changes.rollout.clone());
        patch["spec"]["template"] = json!({"spec": {"containers": [container]}});
    }
    patch
}

/// The variables to set and to remove, without those that are as asked.
fn env_patch(deployment: &DeploymentView, change: &InstanceChange) -> Vec<Value> {
    let present = main_container(deployment)
        .map(|container| container.env.as_slice())
        .unwrap_or_default();
    let mut patch = Vec::new();
    for (name, value) in &change.environment {
        let old = present.iter().find(|variable| variable.name == name.as_str());
        match (value, old) {
            (None, None) => {}
            (None, Some(_)) => patch.push(json!({"name": name, "$patch": "delete"})),
            (Some(value), Some(old))
                if old.value.as_deref().unwrap_or_default() == value && old.value_from.is_none() => {}
            (Some(value), Some(old)) if old.value_from.is_some() => {
                patch.push(json!({"name": name, "value": value, "valueFrom": null}));
            }
            (Some(value), _) => patch.push(json!({"name": name, "value": value})),
        }
    }
    patch
}

/// A value that replaces the old one as a whole instead of being merged into it.
fn replaced(mut value: Value) -> Value {
    value["$patch"] = json!("replace");
    value
}

/// True when everything in `wanted` is in `present`; what the server has added does not count.
pub(crate) fn contains(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| present.get(key).is_some_and(|present| contains(present, value))),
        (Value::Array(present), Value::Array(wanted)) => {
            present.len() == wanted.len()
                && present
                    .iter()
                    .zip(wanted)
                    .all(|(present, wanted)| contains(present, wanted))
        }
        _ => present == wanted,
    }
}

/// What there is of a route.
#[derive(Debug, Default)]
pub(crate) struct RouteState {
    pub(crate) stale: bool,
    present: Option<Value>,
}

/// A route is the instance's when its Deployment owns it. That of the guide's client has no owner.
fn is_own(route: &Value, live: &Live) -> bool {
    match route["metadata"]["ownerReferences"].as_array() {
        Some(owners) if !owners.is_empty() => owners.iter().any(|owner| owner["uid"] == *live.deployment.uid()),
        _ => live.is_legacy() && leads_to(route, &live.deployment),
    }
}

pub(crate) fn cannot_grow() -> Error {
    Error::unsupported("storage", "the volume of an adopted directory cannot grow")
        .with_advice("change the quota of the directory itself")
}

pub(crate) fn requested(claim: &ClaimView) -> Option<Bytes> {
    let size = claim.spec.resources.requests.get("storage")?;
    Bytes::from_kubernetes(size).ok()
}

pub(crate) fn refuse_deleting(live: &Live) -> Result<()> {
    if live.deployment.is_deleting() {
        return Err(Error::new(ErrorKind::NotAllowed, "the instance is being deleted"));
    }
    Ok(())
}

/// Checks the values of a change by themselves: the instance may be one that was never checked, or whose secrets were
/// not read.
pub(crate) fn checked(change: &InstanceChange) -> Result<()> {
    let mut plain = InstanceSpec::new(
        InstanceId::random(),
        "checked".parse()?,
        change.image.clone().map_or_else(|| "odoo".parse(), Ok)?,
    );
    plain.storage = change.storage.unwrap_or(plain.storage);
    // Taking one of the platform's variables away is as harmful as setting it.
    for name in change.environment.keys() {
        let bare = name.as_str().strip_suffix("_FILE").unwrap_or(name.as_str());
        if RESERVED_ENVIRONMENT.contains(&bare) {
            return Err(Error::invalid("environment", format!("{name} is set by the platform")));
        }
    }
    change.apply_to(&plain)?.validate()
}

/// Does something again after somebody else was faster.
pub(crate) async fn again<T, F, Fut>(mut work: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut attempt = 1;
    loop {
        match work().await {
            Err(error)
                if attempt < ATTEMPTS
                    && error.kind() == ErrorKind::Conflict
                    && error.conflicts().is_empty()
                    && matches!(error.retry(), Retry::After(_)) =>
            {
                sleep(jittered(Duration::from_millis(50) * 2u32.pow(attempt))).await;
                attempt += 1;
            }
            other => return other,
        }
    }
}
