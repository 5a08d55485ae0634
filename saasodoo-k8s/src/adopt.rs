//! Adoption: data that is there already becomes the data of an instance. What is there is read before anything is made,
//! and whoever still writes to it is in the way.

use jiff::Timestamp;
use saasodoo_core::{DataPath, Error, ErrorKind, InstanceId, InstanceSpec, Result, Retry};
use serde_json::{Value, json};

use crate::backend::Inner;
use crate::config::AdoptionSource;
use crate::convert::{Blueprint, adopted_volume_name, directory_record};
use crate::create::{Data, no_data};
use crate::error::unexpected;
use crate::ledger::{Ledger, Posted};
use crate::names::{DATA, FULL_ID, MANAGED_BY, id_of, selector_of, the_one};
use crate::observe::{directory_of, is_static};
use crate::patch::requested;
use crate::read::is_usable;
use crate::views::{ClaimView, DeploymentView, PodView, View};
use crate::wire::{CLAIM, DEPLOYMENT, Fresh, Merge, POD, Stub, VOLUME};

impl Inner {
    /// What an earlier instance of this id has left behind to be adopted, and who still writes to it. Data is adopted by
    /// one Deployment only, so another one of this id is a conflict.
    pub(crate) async fn adoptable(&self, spec: &InstanceSpec, data: &Data, named: &str) -> Result<Adoptable> {
        let id = spec.id;
        let selector = selector_of(id);
        let directory = async {
            match data {
                Data::Directory(path) => self.check_directory(path).await,
                Data::New | Data::Retained => Ok(()),
            }
        };
        let (deployments, pods, claims, by_name, ()) = futures::try_join!(
            self.wire.few::<DeploymentView>(&DEPLOYMENT, &selector, Fresh::Now),
            self.wire.few::<Value>(&POD, &selector, Fresh::Now),
            self.claims_of(id),
            self.wire.get::<ClaimView>(&CLAIM, named),
            directory,
        )?;
        let name = spec.object_name();
        if let Some(other) = the_one(id, deployments)?.filter(|other| other.name() != name.as_str()) {
            return Err(Error::conflict(
                ["id"],
                format!("the instance exists as {}, with its data", other.name()),
            )
            .with_advice("delete that one first, or create an instance with another id"));
        }
        let mut claims = claims;
        match data {
            Data::Directory(path) => {
                let record = directory_record(path);
                let known = |named: &ClaimView| claims.iter().any(|claim| claim.uid() == named.uid());
                let by_name = by_name.filter(|named| id_of(named) == Some(id) && !known(named));
                claims.extend(by_name);
                claims.retain(|claim| claim.annotation(DATA) == Some(&record));
            }
            // The guide's claims carry no id; the name, which holds it, must do.
            _ => claims.extend(by_name.filter(|by_name| {
                claims.is_empty() && by_name.label(MANAGED_BY) == Some("saasodoo") && id_of(by_name).is_none()
            })),
        }
        if claims.len() > 1 {
            let names: Vec<&str> = claims.iter().map(View::name).collect();
            return Err(Error::conflict(
                ["data"],
                format!("several claims hold data of this instance: {}", names.join(", ")),
            )
            .with_advice("decide which one is right, and take the labels off the others"));
        }
        let claim = claims.pop();
        if let Some(claim) = claim
            .as_ref()
            .filter(|claim| claim.label(FULL_ID).is_none() && claim.name() != named)
        {
            return Err(Error::conflict(
                ["data"],
                format!(
                    "the claim {} has the same eight digits, and may be of another instance",
                    claim.name()
                ),
            )
            .with_advice(format!("if it is this one's, label it {FULL_ID}={id}")));
        }
        let mut writers = Vec::new();
        for pod in pods {
            let view: PodView = serde_json::from_value(pod.clone())
                .map_err(|error| unexpected(format!("a pod is not understood: {error}")))?;
            let own = id_of(&view).is_some_and(|other| other.matches(id));
            let mounts = claim.as_ref().is_some_and(|claim| mounts(&pod, claim.name()));
            if (own || mounts) && crate::facts::is_live(&view, Timestamp::now()) {
                writers.push(view.name().to_owned());
            }
        }
        Ok(Adoptable { claim, writers })
    }

    /// Refuses what was just made when the instance has another Deployment too: whoever sees the other one withdraws.
    pub(crate) async fn only_one(&self, id: InstanceId, made: &DeploymentView) -> Result<()> {
        let all: Vec<DeploymentView> = self.wire.few(&DEPLOYMENT, &selector_of(id), Fresh::Now).await?;
        match all
            .iter()
            .find(|other| id_of(*other) == Some(id) && other.uid() != made.uid())
        {
            Some(other) => Err(Error::conflict(
                ["id"],
                format!("another call is making the instance as {}", other.name()),
            )
            .with_retry(Retry::After(None))),
            None => Ok(()),
        }
    }

    /// Looks for a directory on a root that is mounted here too. Where it is not, the pod's mount will tell.
    async fn check_directory(&self, path: &DataPath) -> Result<()> {
        let Some(AdoptionSource::HostPath { root }) = self.config.adoption.clone() else {
            return Ok(());
        };
        let full = std::path::Path::new(&root).join(path.as_str());
        let look = tokio::task::spawn_blocking(move || std::path::Path::new(&root).is_dir() && !full.is_dir());
        // A file system that hangs is no answer.
        match tokio::time::timeout(self.wire.deadlines.read, look).await {
            Ok(Ok(true)) => Err(Error::new(
                ErrorKind::StorageMissing,
                format!("there is no directory {path} to adopt"),
            )
            .with_field("data")),
            _ => Ok(()),
        }
    }

    /// Puts our labels on a claim that is adopted, also if the guide's client made it, and grows it to the size of the
    /// spec.
    pub(crate) async fn take(&self, blueprint: &Blueprint<'_>, claim: &ClaimView) -> Result<ClaimView> {
        let wanted = blueprint.claim();
        let mut patch = json!({
            "metadata": {
                "uid": claim.uid(),
                "labels": wanted["metadata"]["labels"],
                "annotations": {crate::names::RETAINED_AT: null, DATA: blueprint.data},
            },
        });
        if requested(claim).is_some_and(|size| size < blueprint.spec.storage) {
            self.bound(claim).await?;
            patch["spec"] = json!({"resources": wanted["spec"]["resources"]});
        }
        self.wire.patch(&CLAIM, claim.name(), Merge::Json, &patch).await
    }

    /// Makes the volume of a directory, or takes the one that an earlier instance of this id left behind.
    pub(crate) async fn adopt_volume(
        &self,
        blueprint: &Blueprint<'_>,
        path: &DataPath,
        ledger: &Ledger,
    ) -> Result<String> {
        let Some(source) = &self.config.adoption else {
            return Err(Error::unsupported(
                "data",
                "this backend is not configured to adopt directories",
            ));
        };
        let (name, volume) = blueprint.adopted_volume(source, path);
        let volume = self.amended(volume);
        if let Posted::Made(_) = self.post::<Stub>(ledger, VOLUME, &name, &volume).await? {
            return Ok(name);
        }
        let existing: Value = self
            .wire
            .get(&VOLUME, &name)
            .await?
            .ok_or_else(|| unexpected("the volume was there and is gone").with_retry(Retry::After(None)))?;
        self.check_volume(&existing, path, &blueprint.claim, blueprint.spec.id)?;
        // Its claim is gone: without the old claim's UID it binds to the new one, with the data as it is.
        let patch = json!({
            "metadata": {"resourceVersion": existing["metadata"]["resourceVersion"]},
            "spec": {"claimRef": {"uid": null, "resourceVersion": null}},
        });
        self.wire.patch::<Stub>(&VOLUME, &name, Merge::Json, &patch).await?;
        Ok(name)
    }

    /// A volume of the directory that is there already must be the one of this very claim.
    pub(crate) fn check_volume(&self, existing: &Value, path: &DataPath, claim: &str, id: InstanceId) -> Result<()> {
        let bound = &existing["spec"]["claimRef"];
        let ours = bound["namespace"] == *self.wire.namespace()
            && bound["name"] == *claim
            && existing["metadata"]["labels"][FULL_ID] == *id.to_string();
        if ours {
            return Ok(());
        }
        Err(Error::conflict(
            ["data"],
            format!("the directory {path} belongs to the claim {} already", bound["name"]),
        )
        .with_advice("two instances on one directory damage it"))
    }

    /// The name of the volume that would be made for a directory, for a plan.
    pub(crate) fn volume_of(&self, path: &DataPath) -> Option<String> {
        let source = self.config.adoption.as_ref()?;
        Some(adopted_volume_name(source, path))
    }
}

/// What there is to adopt.
#[derive(Debug)]
pub(crate) struct Adoptable {
    pub(crate) claim: Option<ClaimView>,
    /// Pods of an earlier Deployment that may have a process.
    pub(crate) writers: Vec<String>,
}

impl Adoptable {
    /// What a Deployment on this data says about it. A claim that leads to a directory goes on saying so: it is nobody's
    /// to delete.
    pub(crate) fn record(&self, data: &Data) -> String {
        if let Data::Directory(path) = data {
            return directory_record(path);
        }
        let claimed = self.claim.as_ref().and_then(|claim| claim.annotation(DATA));
        let directory = claimed.filter(|record| directory_of(record).is_some());
        directory.unwrap_or("retained").to_owned()
    }
}

/// Whether a pod has this claim among its volumes.
fn mounts(pod: &Value, claim: &str) -> bool {
    let volumes = pod["spec"]["volumes"].as_array();
    volumes
        .into_iter()
        .flatten()
        .any(|volume| volume["persistentVolumeClaim"]["claimName"] == claim)
}

/// The data that is left must be what was found, still be there, and fit.
pub(crate) fn check_retained(spec: &InstanceSpec, retained: Option<&ClaimView>, now: &[ClaimView]) -> Result<()> {
    let seen = retained.and_then(|claim| now.iter().find(|other| other.uid() == claim.uid()));
    let Some(claim) = seen else {
        return Err(no_data(spec.id));
    };
    if !is_usable(claim) {
        return Err(Error::new(
            ErrorKind::StorageMissing,
            format!("the claim {} is being deleted or has lost its volume", claim.name()),
        ));
    }
    match requested(claim) {
        Some(size) if size > spec.storage => Err(Error::conflict(
            ["storage"],
            format!(
                "the retained data has {size}, which is more than the {} asked for",
                spec.storage
            ),
        )
        .with_advice("ask for at least the size of the retained data: storage cannot shrink")),
        Some(size) if size < spec.storage && is_static(claim) => Err(Error::conflict(
            ["storage"],
            format!(
                "the claim {} of an adopted directory has {size} and cannot grow",
                claim.name()
            ),
        )
        .with_advice("ask for that size, or purge the claim: the directory stays")),
        _ => Ok(()),
    }
}

/// Somebody still writes to the data that shall be adopted.
pub(crate) fn in_use(pods: &[String]) -> Error {
    Error::conflict(
        ["data"],
        format!("pods of an earlier instance still use the data: {}", pods.join(", ")),
    )
    .with_retry(Retry::After(None))
    .with_advice("wait until they have ended; delete their ReplicaSet if nobody else will")
}
