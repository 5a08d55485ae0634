//! Updates. Each reads first, writes only what differs, and reads again when somebody else was faster.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use saasodoo_core::{
    Bytes, EnsureOutcome, Ensured, Error, ErrorKind, Host, InstanceChange, InstanceId, InstanceSpec,
    RESERVED_ENVIRONMENT, Result, Retry, UpdateOptions,
};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use crate::backend::Inner;
use crate::convert::patch_of;
use crate::create::storage_missing;
use crate::delete::leads_to;
use crate::names::{CHANGE, CLAIM as CLAIM_ANNOTATION, CUSTOM_DOMAINS, HOST_PREFIX, HOSTS, SUBDOMAIN};
use crate::observe::{data_claim, revision_of};
use crate::occupied::host_conflict;
use crate::patch::{Changes, as_read, deployment_patch};
use crate::read::Live;
use crate::route::{kind as route_kind, object as route_object, spec as route_spec};
use crate::views::{ClaimView, DeploymentView, View};
use crate::wire::{CLAIM, DEPLOYMENT, INGRESS_ROUTE, Merge, bounded, detached, jittered, poll};

/// How often a change is made again after somebody else was faster.
const ATTEMPTS: u32 = 6;

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
    pub(crate) async fn patch_deployment(&self, deployment: &DeploymentView, patch: Value) -> Result<DeploymentView> {
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

    /// Tells the cache of a write of ours, so that it answers nothing older.
    pub(crate) fn wrote(&self, id: InstanceId, kind: crate::watch::Kind, version: &str) {
        self.cache.wrote(id, kind, version);
    }
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
