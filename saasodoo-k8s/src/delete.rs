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
use crate::change::selector_text;
use crate::names::{DATA, FULL_ID, RETAINED_AT, SHORT_ID};
use crate::read::Live;
use crate::route::kind as route_kind;
use crate::views::{ClaimView, DeploymentView, PodView, View};
use crate::wire::{CLAIM, DEPLOYMENT, Kind, Merge, POD, SERVICE, VOLUME, detached, poll};

/// How long the provisioner may take to delete a volume with its data.
const PROVISIONER: Duration = Duration::from_secs(30);

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
            return Err(Error::unsupported(
                "purge",
                "the configuration keeps all data (RETAIN_STORAGE)",
            ));
        }
        Ok(())
    }

    async fn delete_now(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        let found = self.find(id).await?;
        // The token is checked before anything is deleted.
        let doomed = match &options.purge {
            Some(token) => Some(self.doomed_now(id, found.as_ref(), token).await?),
            None => None,
        };
        let existed = found.is_some();
        let mut retained = None;
        if let Some(live) = found {
            if let Some(claim) = &live.claim {
                retained = self.keep(&live, claim, id).await?;
            }
            self.delete_workload(&live).await?;
            self.cache.deleted(self.instance(&live).id);
        } else if doomed.is_none() {
            let mut gone = Deleted::already_gone();
            gone.retained = self.claims_of(id).await?.first().map(|claim| self.location(claim));
            return Ok(gone);
        }
        let Some(doomed) = doomed else {
            return Ok(Deleted::done(retained, Vec::new()));
        };
        let purged = self.purge(&doomed).await?;
        if purged.is_empty() && !existed {
            return Ok(Deleted::already_gone());
        }
        // The data of an adopted directory stays where it is, only its claim goes.
        let adopted = doomed.iter().any(|object| object.adopted);
        Ok(Deleted::done(retained.filter(|_| purged.is_empty() || adopted), purged))
    }

    fn location(&self, claim: &ClaimView) -> StorageLocation {
        StorageLocation::Claim {
            namespace: self.wire.namespace().to_owned(),
            name: claim.name().to_owned(),
            volume: claim.spec.volume_name.clone().filter(|volume| !volume.is_empty()),
            directory: None,
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
    async fn delete_workload(&self, live: &Live) -> Result<()> {
        let deployment = &live.deployment;
        let (name, uid) = (deployment.name(), deployment.uid());
        self.wire
            .delete(&DEPLOYMENT, name, uid, PropagationPolicy::Foreground)
            .await?;
        let limit = self.wire.deadlines.termination;
        let selector = selector_text(deployment);
        let pods = async {
            let ended = poll(limit, || async {
                let pods: Vec<PodView> = self.wire.list(&POD, &selector).await?;
                Ok(pods.iter().all(|pod| !is_of(deployment, pod)).then_some(()))
            })
            .await?;
            ended.ok_or_else(|| {
                Error::new(
                    ErrorKind::Timeout,
                    format!("a process of the instance has not ended within {} s", limit.as_secs()),
                )
                .with_retry(Retry::OutcomeUnknown)
                .with_advice("if its node is lost, make sure that the machine is off, and delete the pod by force")
            })
        };
        let others = async {
            if live.is_legacy() {
                self.delete_unowned(deployment, &SERVICE, limit).await?;
                if let Some(kind) = route_kind(&self.config) {
                    self.delete_unowned(deployment, &kind, limit).await?;
                }
            }
            Ok(())
        };
        let gone = self.until_gone(&DEPLOYMENT, name, uid, limit);
        futures::try_join!(pods, others, gone)?;
        Ok(())
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
        if let Some(claim) = live.and_then(|live| live.claim.clone())
            && !claims.iter().any(|other| other.uid() == claim.uid())
        {
            claims.push(claim);
        }
        let mut doomed = Vec::new();
        for claim in claims {
            let adopted = claim
                .annotation(DATA)
                .is_some_and(|data| data.starts_with("directory:"));
            let identity = ObjectIdentity::new(CLAIM.kind, claim.name(), claim.uid());
            doomed.push(Doomed {
                kind: CLAIM,
                identity,
                adopted,
            });
            let volume = claim.spec.volume_name.as_deref().unwrap_or_default();
            if volume.is_empty() || adopted {
                continue;
            }
            let volume: Option<Value> = match self.wire.get(&VOLUME, volume).await {
                // Without the permission, the volume and the data stay for the administrator.
                Err(error) if error.kind() == ErrorKind::Forbidden => None,
                other => other?,
            };
            let Some(volume) = volume else { continue };
            let metadata = &volume["metadata"];
            let bound = volume["spec"]["claimRef"]["uid"] == *claim.uid();
            let provisioned = metadata["annotations"]["pv.kubernetes.io/provisioned-by"].is_string();
            if bound && provisioned {
                let text = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
                let identity = ObjectIdentity::new(VOLUME.kind, text("name"), text("uid"));
                doomed.push(Doomed {
                    kind: VOLUME,
                    identity,
                    adopted,
                });
            }
        }
        Ok(doomed)
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
            let volume: Option<Value> = match self.wire.get(&VOLUME, &object.name).await {
                Err(error) if error.kind() == ErrorKind::Forbidden => None,
                other => other?,
            };
            let Some(volume) = volume.filter(|volume| volume["metadata"]["uid"] == *object.uid) else {
                continue;
            };
            // A retained volume can be given to another claim by hand, and keeps its UID: it is that claim's data now.
            let listed = |uid: &Value| token.objects().iter().any(|o| o.kind == CLAIM.kind && *uid == *o.uid);
            if !listed(&volume["spec"]["claimRef"]["uid"]) {
                return Err(Error::conflict(
                    ["purge"],
                    format!("{object} belongs to another claim than the token lists"),
                )
                .with_advice("look at the volume; nothing was deleted"));
            }
            left.push(Doomed {
                kind: VOLUME,
                identity: object.clone(),
                adopted: false,
            });
        }
        Ok(left)
    }

    /// Deletes exactly these objects, claims before volumes, and waits until they are gone.
    async fn purge(&self, doomed: &[Doomed]) -> Result<Vec<ObjectIdentity>> {
        let limit = self.wire.deadlines.termination;
        let mut purged = Vec::new();
        for kind in [CLAIM, VOLUME] {
            for object in doomed.iter().filter(|object| object.kind == kind) {
                let ObjectIdentity { name, uid, .. } = &object.identity;
                if kind == VOLUME {
                    self.release(name, uid).await?;
                }
                self.wire
                    .delete(&kind, name, uid, PropagationPolicy::Background)
                    .await?;
                self.until_gone(&kind, name, uid, limit).await?;
                purged.push(object.identity.clone());
            }
        }
        Ok(purged)
    }

    /// Lets the provisioner delete the data together with the volume: the object of a volume with policy `Retain` can
    /// be deleted, and leaves the data behind.
    async fn release(&self, name: &str, uid: &str) -> Result<()> {
        let patch = json!({
            "metadata": {"uid": uid},
            "spec": {"persistentVolumeReclaimPolicy": "Delete"},
        });
        match self.wire.patch::<Value>(&VOLUME, name, Merge::Json, &patch).await {
            Ok(_) => {}
            // Gone, or another volume of that name: the deletion that follows finds out by the UID.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::InvalidInput
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let gone = poll(PROVISIONER, || async {
            let volume: Option<Value> = self.wire.get(&VOLUME, name).await?;
            let there = volume.filter(|volume| volume["metadata"]["uid"] == *uid);
            // Failed: the provisioner cannot, and will not.
            Ok(there
                .is_none_or(|volume| volume["status"]["phase"] == "Failed")
                .then_some(()))
        })
        .await?;
        if gone.is_none() {
            tracing::warn!(
                name,
                "the provisioner has not deleted the volume; its object is deleted without it"
            );
        }
        Ok(())
    }
}

/// An object that a purge deletes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Doomed {
    pub(crate) kind: Kind,
    pub(crate) identity: ObjectIdentity,
    /// It leads to a directory that was there before.
    pub(crate) adopted: bool,
}

/// True for a pod that belongs to the Deployment and may still have a process.
fn is_of(deployment: &DeploymentView, pod: &PodView) -> bool {
    crate::observe::belongs(deployment, pod)
        && (pod.is_deleting() || !matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"))
}

/// True for a Service that selects the Deployment's pods, and for a route to the Service of that name.
fn leads_to(object: &Value, deployment: &DeploymentView) -> bool {
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
