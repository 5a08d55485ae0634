//! Deletion: the workload first and seen to end; the data only with a token, and only what the token lists.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::PropagationPolicy;
use saasodoo_core::{
    BackendKind, DeleteOptions, Deleted, Error, ErrorKind, InstanceId, ObjectIdentity, PurgeToken, Result, Retry,
    StorageLocation,
};
use serde_json::{Value, json};

use crate::backend::Inner;
use crate::change::again;
use crate::names::{DATA, FULL_ID, RETAINED_AT, SHORT_ID, selector_of};
use crate::observe::directory_of;
use crate::read::{Found, Live, still_runs};
use crate::route::kind as route_kind;
use crate::until::Turns;
use crate::views::{ClaimView, DeploymentView, PodView, View};
use crate::wire::{CLAIM, DEPLOYMENT, Fresh, Kind, Merge, POD, SERVICE, STORAGE_CLASS, Stub, VOLUME, detached, poll};

impl Inner {
    pub(crate) async fn delete(self: &Arc<Self>, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        if let Some(token) = &options.purge {
            self.check_token(id, token)?;
        }
        let inner = Arc::clone(self);
        detached(async move { inner.delete_now(id, options).await }).await
    }

    /// What can be said about a token without asking the server.
    fn check_token(&self, id: InstanceId, token: &PurgeToken) -> Result<()> {
        if token.backend() != BackendKind::Kubernetes || !token.instance().matches(id) {
            return Err(Error::conflict(
                ["purge"],
                "the token is for another instance or backend",
            ));
        }
        if self.config.common.retain_storage {
            return Err(data_is_kept());
        }
        Ok(())
    }

    /// What there is of an instance to delete. Pods without a Deployment are waited for: as long as one of them runs the
    /// instance is not gone, and its data is in use.
    async fn found(&self, id: InstanceId) -> Result<Option<Live>> {
        let limit = self.wire.deadlines.termination;
        let left = std::sync::Mutex::new(Vec::new());
        let (mut turns, selector) = (Turns::new(false), selector_of(id));
        let found = poll(limit, || {
            let (hint, left, selector) = (turns.next_is_hint(), &left, &selector);
            let lock = || left.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            async move {
                if hint {
                    let pods: Vec<PodView> = self.wire.few(&POD, selector, Fresh::Cached).await?;
                    let now = Timestamp::now();
                    let runs = |left: &PodView| {
                        let same = pods.iter().find(|pod| pod.uid() == left.uid());
                        same.is_some_and(|pod| crate::facts::is_live(pod, now))
                    };
                    if lock().iter().any(runs) {
                        return Ok(None);
                    }
                }
                Ok(match self.look(id).await? {
                    Found::Instance(live) => Some(Some(*live)),
                    Found::Nothing => Some(None),
                    Found::Orphans(pods) => {
                        *lock() = pods;
                        None
                    }
                })
            }
        });
        let found = found.await?;
        found.ok_or_else(|| still_runs(id, &left.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    async fn delete_now(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        let found = self.found(id).await?;
        // The token is checked before anything is deleted.
        let doomed = match &options.purge {
            Some(token) => Some(self.doomed_now(id, found.as_ref(), token).await?),
            None => None,
        };
        let existed = found.is_some();
        let limit = self.wire.deadlines.termination;
        let limit = found.as_ref().map_or(limit, |live| limit.max(live.ending()));
        let mut retained = None;
        if let Some(live) = found {
            if let Some(claim) = &live.claim {
                retained = self.keep(&live, claim, id).await?;
            }
            self.delete_workload(&live, limit).await?;
            self.cache.deleted(self.instance(&live).id);
        } else if doomed.is_none() {
            let mut gone = Deleted::already_gone();
            gone.retained = self.claims_of(id).await?.first().map(|claim| self.location(claim));
            return Ok(gone);
        }
        let (Some(doomed), Some(token)) = (doomed, &options.purge) else {
            return Ok(Deleted::done(retained, Vec::new()));
        };
        let purged = self.purge(&doomed, &claims_in(token), limit).await?;
        if purged.is_empty() && !existed {
            return Ok(Deleted::already_gone());
        }
        // The data of an adopted directory, or of a volume that somebody else made, stays where it is.
        let stays = doomed.iter().any(|object| object.stays);
        Ok(Deleted::done(retained.filter(|_| purged.is_empty() || stays), purged))
    }

    fn location(&self, claim: &ClaimView) -> StorageLocation {
        StorageLocation::Claim {
            namespace: self.wire.namespace().to_owned(),
            name: claim.name().to_owned(),
            volume: claim.spec.volume_name.clone().filter(|volume| !volume.is_empty()),
            directory: claim.annotation(DATA).and_then(directory_of).map(str::to_owned),
        }
    }

    /// Marks a claim that outlives its instance, so that it is found again without one.
    async fn keep(&self, live: &Live, claim: &ClaimView, id: InstanceId) -> Result<Option<StorageLocation>> {
        let mut labels = json!({});
        if claim.label(SHORT_ID).is_none() {
            // The guide's claims say nothing about whose they are.
            labels[SHORT_ID] = json!(id.short().to_string());
            if let (Some(uuid), true) = (id.uuid(), live.is_legacy()) {
                labels[FULL_ID] = json!(uuid.to_string());
            }
        }
        let patch = json!({"metadata": {
            "uid": claim.uid(),
            "labels": labels,
            "annotations": {RETAINED_AT: Timestamp::now().to_string()},
        }});
        match self
            .wire
            .patch::<ClaimView>(&CLAIM, claim.name(), Merge::Json, &patch)
            .await
        {
            Ok(kept) => Ok(Some(self.location(&kept))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes the Deployment and what belongs to it, and waits until no process and no object of it is left.
    async fn delete_workload(&self, live: &Live, limit: Duration) -> Result<()> {
        let deployment = &live.deployment;
        let (name, uid) = (deployment.name(), deployment.uid());
        self.wire
            .delete(&DEPLOYMENT, name, uid, PropagationPolicy::Foreground)
            .await?;
        let others = async {
            if live.is_legacy() {
                self.delete_unowned(deployment, &SERVICE, limit).await?;
                if let Some(kind) = route_kind(&self.config) {
                    self.delete_unowned(deployment, &kind, limit).await?;
                }
            }
            Ok(())
        };
        let (others, gone) = futures::join!(others, self.until_gone(&DEPLOYMENT, name, uid, limit));
        // It goes after its pods; but a collector that is late does not know of them yet, and lets it go before. So they
        // are looked at last, and also when it does not go: then they are why.
        let has_ended = |pods: &[PodView]| pods.iter().all(|pod| !is_of(deployment, pod));
        let left = match &gone {
            Ok(()) => limit,
            Err(_) => Duration::ZERO,
        };
        if self.until_pods(deployment, false, left, has_ended).await?.is_none() {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("a process of the instance has not ended within {} s", limit.as_secs()),
            )
            .with_retry(Retry::OutcomeUnknown)
            .with_advice("if its node is lost, make sure that the machine is off, and delete the pod by force"));
        }
        gone?;
        others
    }

    /// Deletes an object of the guide's client, which nothing owns, after a look at whether it is this instance's.
    async fn delete_unowned(&self, deployment: &DeploymentView, kind: &Kind, limit: Duration) -> Result<()> {
        let name = deployment.name();
        let object: Option<Value> = match self.wire.get(kind, name).await {
            Err(error) if error.kind() == ErrorKind::MissingPrerequisite => return Ok(()),
            other => other?,
        };
        let Some(object) = object else { return Ok(()) };
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        if !leads_to(&object, deployment) {
            tracing::warn!(
                kind = kind.kind,
                name,
                "left alone: it has the instance's name and is not its own"
            );
            return Ok(());
        }
        self.wire.delete(kind, name, uid, PropagationPolicy::Background).await?;
        self.until_gone(kind, name, uid, limit).await
    }

    /// The claims and volumes with the data of an instance, also of one that is deleted already: what a purge deletes.
    /// The data of an adopted directory is nobody's to delete here, and neither is a volume that others provisioned.
    pub(crate) async fn doomed(&self, id: InstanceId, live: Option<&Live>) -> Result<Vec<Doomed>> {
        let mut claims = self.claims_of(id).await?;
        let mounted = live.and_then(|live| live.claim.as_ref());
        if let Some(live) = live.filter(|live| !live.is_legacy()) {
            // Ours says whose it is. One that has only the digits may be the data of another tenant.
            let own = live.deployment.label(FULL_ID);
            claims.retain(|claim| claim.label(FULL_ID) == own);
        }
        if let Some(claim) = mounted
            && !claims.iter().any(|other| other.uid() == claim.uid())
        {
            claims.push(claim.clone());
        }
        let owner = match (id.uuid(), live) {
            (Some(uuid), _) => Some(uuid.to_string()),
            (None, Some(live)) => Some(live.deployment.label(FULL_ID).unwrap_or_default().to_owned()),
            // Nothing but claims, and they agree about whose they are.
            (None, None) => None,
        };
        for claim in &claims {
            let whose = claim.label(FULL_ID);
            if let (Some(whose), Some(owner)) = (whose, &owner)
                && whose != owner
            {
                return Err(
                    Error::conflict(["id"], format!("the claim {} is of the instance {whose}", claim.name()))
                        .with_advice("use the whole UUID; nothing was deleted"),
                );
            }
        }
        let mut doomed = Vec::new();
        for claim in claims {
            let adopted = claim.annotation(DATA).and_then(directory_of).is_some();
            let claimed = doomed.len();
            doomed.push(Doomed {
                kind: CLAIM,
                identity: ObjectIdentity::new(CLAIM.kind, claim.name(), claim.uid()),
                stays: adopted,
            });
            let volume = claim.spec.volume_name.as_deref().unwrap_or_default();
            if volume.is_empty() || adopted {
                continue;
            }
            let volume: Option<Value> = match self.wire.get(&VOLUME, volume).await {
                Err(error) if error.kind() == ErrorKind::Forbidden => {
                    self.goes_with_its_claim(&claim, error).await?;
                    None
                }
                other => other?,
            };
            let Some(volume) = volume else { continue };
            let metadata = &volume["metadata"];
            let bound = volume["spec"]["claimRef"]["uid"] == *claim.uid();
            let provisioned = metadata["annotations"]["pv.kubernetes.io/provisioned-by"].is_string();
            if bound && provisioned {
                let text = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
                doomed.push(Doomed {
                    kind: VOLUME,
                    identity: ObjectIdentity::new(VOLUME.kind, text("name"), text("uid")),
                    stays: false,
                });
            } else {
                doomed[claimed].stays = true;
            }
        }
        Ok(doomed)
    }

    /// For a volume that may not be read: its class must say that the data is deleted with the claim. Under a class that
    /// retains it, a purge would report as gone what is still there.
    async fn goes_with_its_claim(&self, claim: &ClaimView, error: Error) -> Result<()> {
        let class = claim.spec.storage_class_name.as_deref().unwrap_or_default();
        let class: Option<Value> = match class {
            "" => None,
            class => self.wire.get(&STORAGE_CLASS, class).await.unwrap_or_default(),
        };
        if class.is_some_and(|class| class["reclaimPolicy"] == "Delete") {
            return Ok(());
        }
        Err(error.with_advice(format!(
            "grant get and patch on persistentvolumes: whether the data behind {} goes with it cannot be seen",
            claim.name()
        )))
    }

    /// What is there of a token's list. Something else than the list is a conflict; less is a purge that was
    /// interrupted.
    async fn doomed_now(&self, id: InstanceId, live: Option<&Live>, token: &PurgeToken) -> Result<Vec<Doomed>> {
        let doomed = self.doomed(id, live).await?;
        if let Some(new) = doomed.iter().find(|object| !token.objects().contains(&object.identity)) {
            return Err(Error::conflict(
                ["purge"],
                format!(
                    "{} is not in the token: the data has been replaced since the plan",
                    new.identity
                ),
            )
            .with_advice("make a new plan, and look at it"));
        }
        let mut left = doomed;
        // A volume whose claim an interrupted purge has deleted already.
        for object in token.objects().iter().filter(|object| object.kind == VOLUME.kind) {
            if left.iter().any(|other| other.identity == *object) {
                continue;
            }
            let volume: Option<Value> = self.wire.get(&VOLUME, &object.name).await?;
            let Some(volume) = volume.filter(|volume| volume["metadata"]["uid"] == *object.uid) else {
                continue;
            };
            is_of_claims(&volume, &claims_in(token))?;
            left.push(Doomed {
                kind: VOLUME,
                identity: object.clone(),
                stays: false,
            });
        }
        Ok(left)
    }

    /// Deletes exactly these objects, claims before volumes, and waits until they are gone.
    async fn purge(&self, doomed: &[Doomed], claims: &[&str], limit: Duration) -> Result<Vec<ObjectIdentity>> {
        let mut purged = Vec::new();
        for object in doomed.iter().filter(|object| object.kind == CLAIM) {
            let ObjectIdentity { name, uid, .. } = &object.identity;
            self.wire
                .delete(&CLAIM, name, uid, PropagationPolicy::Background)
                .await?;
            self.until_gone(&CLAIM, name, uid, limit).await?;
            purged.push(object.identity.clone());
        }
        for object in doomed.iter().filter(|object| object.kind == VOLUME) {
            let ObjectIdentity { name, uid, .. } = &object.identity;
            again(|| self.release(name, uid, claims)).await?;
            self.until_provisioner_deleted(name, uid, limit).await?;
            purged.push(object.identity.clone());
        }
        Ok(purged)
    }

    /// Lets the provisioner delete the data together with the volume. The object of a volume with policy `Retain` could
    /// be deleted here, and would leave the data behind with nothing that leads to it.
    ///
    /// Its claim is gone by now. Looked at once more: a volume that was given to another claim is that one's data.
    async fn release(&self, name: &str, uid: &str, claims: &[&str]) -> Result<()> {
        let volume: Option<Value> = self.wire.get(&VOLUME, name).await?;
        let Some(volume) = volume.filter(|volume| volume["metadata"]["uid"] == *uid) else {
            return Ok(());
        };
        is_of_claims(&volume, claims)?;
        let reference = &volume["spec"]["claimRef"];
        let claim = reference["name"].as_str().unwrap_or_default();
        if reference["namespace"] != *self.wire.namespace() {
            return Err(not_listed(name));
        }
        let holder: Option<Stub> = self.wire.get(&CLAIM, claim).await?;
        if holder.is_some_and(|holder| reference["uid"] == *holder.metadata.uid) {
            return Err(Error::conflict(
                ["purge"],
                format!("the claim {claim} is still there, so volume {name} is kept"),
            )
            .with_retry(Retry::After(None))
            .with_advice("look at what keeps the claim"));
        }
        if volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete" {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": uid, "resourceVersion": volume["metadata"]["resourceVersion"]},
            "spec": {"persistentVolumeReclaimPolicy": "Delete"},
        });
        match self.wire.patch::<Stub>(&VOLUME, name, Merge::Json, &patch).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Waits until the provisioner has deleted the volume with its data. One that fails is tried again by the
    /// provisioner; what is not gone in time is not reported as gone, and a repeated call goes on here.
    async fn until_provisioner_deleted(&self, name: &str, uid: &str, limit: Duration) -> Result<()> {
        let last = std::sync::Mutex::new(String::new());
        let gone = poll(limit, || async {
            let volume: Option<Value> = self.wire.get(&VOLUME, name).await?;
            let Some(volume) = volume.filter(|volume| volume["metadata"]["uid"] == *uid) else {
                return Ok(Some(()));
            };
            let text = |key: &str| volume["status"][key].as_str().unwrap_or_default().to_owned();
            *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                format!("{} {}", text("phase"), text("message")).trim().to_owned();
            Ok(None)
        });
        gone.await?.ok_or_else(|| {
            let state = last.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            Error::new(
                ErrorKind::Timeout,
                format!(
                    "the provisioner has not deleted volume {name} within {} s ({state})",
                    limit.as_secs()
                ),
            )
            .with_retry(Retry::OutcomeUnknown)
            .with_advice(
                "the claim is gone and the data is not: look at the provisioner, and purge again with the same token",
            )
        })
    }
}

/// The UIDs of the claims that a token lists.
fn claims_in(token: &PurgeToken) -> Vec<&str> {
    let claims = token.objects().iter().filter(|object| object.kind == CLAIM.kind);
    claims.map(|claim| claim.uid.as_str()).collect()
}

/// A retained volume can be given to another claim by hand, and keeps its UID: it is that claim's data then.
fn is_of_claims(volume: &Value, claims: &[&str]) -> Result<()> {
    let uid = volume["spec"]["claimRef"]["uid"].as_str().unwrap_or_default();
    if claims.contains(&uid) {
        return Ok(());
    }
    Err(not_listed(volume["metadata"]["name"].as_str().unwrap_or_default()))
}

fn not_listed(volume: &str) -> Error {
    Error::conflict(
        ["purge"],
        format!("volume {volume} belongs to another claim than the token lists"),
    )
    .with_advice("look at the volume; it was not deleted")
}

/// The configuration forbids every purge.
pub(crate) fn data_is_kept() -> Error {
    Error::new(
        ErrorKind::NotAllowed,
        "the configuration keeps all data (RETAIN_STORAGE)",
    )
    .with_field("purge")
}

/// An object that a purge deletes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Doomed {
    pub(crate) kind: Kind,
    pub(crate) identity: ObjectIdentity,
    /// Its data stays where it is: it leads to a directory that was there before, or to a volume that others made.
    pub(crate) stays: bool,
}

/// True for a pod that belongs to the Deployment and may still have a process.
fn is_of(deployment: &DeploymentView, pod: &PodView) -> bool {
    crate::observe::belongs(deployment, pod)
        && (pod.is_deleting() || !matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"))
}

/// True for a Service that selects the Deployment's pods, and for a route to the Service of that name.
pub(crate) fn leads_to(object: &Value, deployment: &DeploymentView) -> bool {
    let labels = &deployment.spec.template.metadata.labels;
    if let Some(selector) = object["spec"]["selector"].as_object() {
        return !selector.is_empty()
            && selector
                .iter()
                .all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str());
    }
    let text = object["spec"].to_string();
    text.contains(&format!("\"name\":\"{}\"", deployment.name()))
}
