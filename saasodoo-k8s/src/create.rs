//! Creation: two rounds of concurrent requests, and the exact undoing of what this very call made.
//!
//! Data that is adopted costs a round before these two: the Deployment must name its claim, and nobody else may write to it.
//!
//! Round one makes the Deployment, which is the claim on the name, and looks at everything that may speak against the
//! instance. Round two makes the rest. No pod can start between the two: it mounts a Secret of round two. Whatever
//! fails, what was made is deleted again by its UID, on a deadline of its own and also when the caller has gone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::Timestamp;
use saasodoo_core::{
    CreateOptions, DataPath, DataPolicy, EnsureOutcome, Ensured, Error, ErrorKind, Host, Instance, InstanceId,
    InstanceSpec, Result, Retry,
};
use serde_json::Value;

use crate::adopt::{check_retained, in_use};
use crate::backend::Inner;
use crate::convert::{Blueprint, Owner, secrets};
use crate::error::unexpected;
use crate::ledger::{Ledger, Posted};
use crate::names::{DATA, FULL_ID, MANAGED_BY, claim_name, id_of};
use crate::observe::{data_claim, directory_of, identity};
use crate::occupied::host_conflict;
use crate::read::{Live, REPORT, of_instance};
use crate::route::kind as route_kind;
use crate::views::{ClaimView, DeploymentView, View};
use crate::wire::{
    CLAIM, DEPLOYMENT, Kind, NETWORK_POLICY, SECRET, SERVICE, STORAGE_CLASS, Stub, bounded, detached, poll,
};

/// How long a storage class that was seen is taken to be there.
const CLASS_SEEN: Duration = Duration::from_secs(300);
/// A Deployment this young that is not complete may be in the making by another call, in seconds.
const YOUNG: i64 = 30;

/// The policies that this backend knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    New,
    Retained,
    Directory(DataPath),
}

impl Inner {
    pub(crate) async fn create(self: &Arc<Self>, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        spec.validate()?;
        let hosts = spec.hosts(self.config.base_domain())?;
        let data = self.data_of(&options.data)?;
        let (inner, spec) = (Arc::clone(self), spec.clone());
        detached(async move {
            let ledger = Ledger::new(spec.id, options.token, spec.scheduling.stop_grace() + REPORT);
            let attempt = inner.attempt(&spec, &data, options.stopped, &hosts, &ledger);
            match bounded(inner.wire.deadlines.operation, attempt).await {
                Ok(ensured) => Ok(ensured),
                Err(error) => Err(inner.rolled_back(&ledger, error).await),
            }
        })
        .await
    }

    pub(crate) fn data_of(&self, policy: &DataPolicy) -> Result<Data> {
        match policy {
            DataPolicy::New => Ok(Data::New),
            DataPolicy::AdoptRetained => Ok(Data::Retained),
            DataPolicy::AdoptDirectory(path) if self.config.adoption.is_some() => Ok(Data::Directory(path.clone())),
            DataPolicy::AdoptDirectory(_) => Err(Error::unsupported(
                "data",
                "this backend is not configured to adopt directories",
            )
            .with_advice("set `adoption` in the configuration")),
            _ => Err(Error::unsupported("data", "this backend does not know the policy")),
        }
    }

    async fn attempt(
        &self,
        spec: &InstanceSpec,
        data: &Data,
        stopped: bool,
        hosts: &[Host],
        ledger: &Ledger,
    ) -> Result<Ensured> {
        let name = spec.object_name();
        let mut blueprint = Blueprint {
            config: &self.config,
            spec,
            claim: claim_name(&name),
            name,
            hosts,
            creation: &ledger.creation,
            token: ledger.token,
            data: "new".to_owned(),
            stopped,
        };
        let mut retained = None;
        let mut writers = Vec::new();
        if *data != Data::New {
            let found = self.adoptable(spec, data, &blueprint.claim).await?;
            blueprint.data = found.record(data);
            writers = found.writers;
            match found.claim {
                Some(claim) => {
                    claim.name().clone_into(&mut blueprint.claim);
                    retained = Some(claim);
                }
                // A repeated call finds the instance that an earlier one made.
                None if *data == Data::Retained => {
                    return self.existing_or(spec, hosts, ledger, no_data(spec.id)).await;
                }
                None => {}
            }
        }

        // Round one.
        let deployment = self.amended(blueprint.deployment());
        let (posted, claims, named, class, taken) = futures::join!(
            self.post::<DeploymentView>(ledger, DEPLOYMENT, blueprint.name.as_str(), &deployment),
            self.claims_of(spec.id),
            async {
                match data {
                    // Its creation in round two says whether the name is free.
                    Data::New => Ok(None),
                    _ => self.wire.get::<ClaimView>(&CLAIM, &blueprint.claim).await,
                }
            },
            self.storage_class(data),
            self.host_taken(hosts, spec.id, None),
        );
        let deployment = match posted? {
            Posted::Made(deployment) => deployment,
            Posted::Exists => return self.existing(spec, hosts, ledger).await,
        };
        self.wrote(spec.id, crate::watch::Kind::Deployment, deployment.version());
        // Read before the Deployment was made, so none of these pods is its own.
        if !writers.is_empty() {
            return Err(in_use(&writers));
        }
        if *data != Data::New {
            // Its name is only its own: another call may have adopted the same data under another name since the look.
            // No pod of either starts before its Secret is there.
            self.only_one(spec.id, &deployment).await?;
        }
        class?;
        if let Some((host, owner)) = taken? {
            return Err(host_conflict(&host, &owner));
        }
        let mut claims = claims?;
        if let Some(named) = named?
            && !claims.iter().any(|claim| claim.uid() == named.uid())
        {
            claims.push(named);
        }
        match data {
            Data::New => {
                if let Some(claim) = claims.first() {
                    return Err(data_conflict(claim));
                }
            }
            Data::Retained => check_retained(spec, retained.as_ref(), &claims)?,
            Data::Directory(_) => {
                if let Some(claim) = claims
                    .iter()
                    .find(|claim| claim.annotation(DATA) != Some(&blueprint.data))
                {
                    return Err(data_conflict(claim));
                }
                match (&retained, claims.first()) {
                    (Some(_), _) => check_retained(spec, retained.as_ref(), &claims)?,
                    // Somebody made it a moment ago.
                    (None, Some(claim)) => return Err(data_conflict(claim).with_retry(Retry::After(None))),
                    (None, None) => {}
                }
            }
        }

        // Round two.
        let owner = Owner {
            name: blueprint.name.to_string(),
            uid: deployment.uid().to_owned(),
        };
        let claim = async {
            match &retained {
                Some(claim) => Ok(claim.clone()),
                None => self.data(&blueprint, data, &deployment, ledger).await,
            }
        };
        let (claim, rest, taken) = futures::join!(
            claim,
            self.owned(&blueprint, &owner, ledger, None),
            self.host_claimed(hosts, spec.id, None, deployment.version()),
        );
        let mut claim = claim?;
        rest?;
        // Another creation may have claimed the host since round one. Whoever sees the other one withdraws: both may,
        // never none.
        if let Some((host, owner)) = taken? {
            return Err(host_conflict(&host, &owner).with_retry(Retry::After(None)));
        }
        if retained.is_some() {
            // Last, for it cannot be undone exactly.
            claim = self.take(&blueprint, &claim).await?;
        }
        self.wrote(spec.id, crate::watch::Kind::Claim, claim.version());
        let outcome = match data {
            Data::New => EnsureOutcome::Created,
            Data::Retained | Data::Directory(_) => EnsureOutcome::Adopted,
        };
        let live = Live {
            deployment,
            pods: Vec::new(),
            claim: Some(claim),
            hosts: None,
        };
        Ok(Ensured::new(outcome, self.instance(&live)))
    }

    /// Makes the claim.
    async fn data(
        &self,
        blueprint: &Blueprint<'_>,
        data: &Data,
        deployment: &DeploymentView,
        ledger: &Ledger,
    ) -> Result<ClaimView> {
        let name = blueprint.claim.as_str();
        let claim = match data {
            Data::New => self.amended(blueprint.claim()),
            Data::Retained => return Err(no_data(blueprint.spec.id)),
            Data::Directory(path) => {
                let volume = self.adopt_volume(blueprint, path, ledger).await?;
                self.amended(blueprint.adopting_claim(&volume))
            }
        };
        match self.post::<ClaimView>(ledger, CLAIM, name, &claim).await? {
            Posted::Made(claim) => Ok(claim),
            Posted::Exists => match self.wire.get::<ClaimView>(&CLAIM, name).await? {
                // A concurrent call that completes the same instance.
                Some(claim)
                    if id_of(&claim) == Some(blueprint.spec.id) && claim.created_at() >= deployment.created_at() =>
                {
                    Ok(claim)
                }
                Some(claim) => Err(data_conflict(&claim)),
                None => {
                    Err(unexpected(format!("the claim {name} was there and is gone")).with_retry(Retry::After(None)))
                }
            },
        }
    }

    /// Makes what belongs to the Deployment: all of it, or only the kinds given.
    async fn owned(
        &self,
        blueprint: &Blueprint<'_>,
        owner: &Owner,
        ledger: &Ledger,
        only: Option<&[Kind]>,
    ) -> Result<()> {
        let mut objects = vec![(SECRET, blueprint.secret(owner)), (SERVICE, blueprint.service(owner))];
        objects.extend(blueprint.route(owner));
        objects.extend(blueprint.network_policy(owner).map(|policy| (NETWORK_POLICY, policy)));
        objects.retain(|(kind, _)| only.is_none_or(|only| only.contains(kind)));
        let name = blueprint.name.as_str();
        let posts = objects.into_iter().map(|(kind, object)| async move {
            let object = self.amended(object);
            // What an earlier Deployment of this name owned goes soon after it.
            let made = poll(self.wire.deadlines.operation / 4, || async {
                match self.post::<Stub>(ledger, kind, name, &object).await? {
                    Posted::Made(_) => Ok(Some(())),
                    Posted::Exists => Ok(self
                        .is_owned(&kind, name, owner, blueprint.spec.id)
                        .await?
                        .then_some(())),
                }
            });
            made.await?.ok_or_else(|| {
                Error::conflict(
                    ["name"],
                    format!(
                        "the {} {name} of an earlier instance of this id is not gone yet",
                        kind.kind
                    ),
                )
                .with_retry(Retry::After(None))
                .with_advice("wait until the garbage collector has removed it")
            })
        });
        join_all(posts).await.into_iter().collect()
    }

    /// An object of that name is fine when it belongs to our Deployment: a concurrent call has made it. False for one
    /// that is on its way out.
    async fn is_owned(&self, kind: &Kind, name: &str, owner: &Owner, id: InstanceId) -> Result<bool> {
        let object: Option<Value> = self.wire.get(kind, name).await?;
        let Some(object) = object else { return Ok(false) };
        let metadata = &object["metadata"];
        let owners = metadata["ownerReferences"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if owners.iter().any(|other| other["uid"] == *owner.uid) {
            return Ok(true);
        }
        let left_over = !owners.is_empty() && metadata["labels"][FULL_ID] == *id.to_string();
        if left_over || metadata["deletionTimestamp"].is_string() {
            return Ok(false);
        }
        Err(Error::conflict(
            ["name"],
            format!("a {} called {name} exists and is not of this instance", kind.kind),
        )
        .with_advice("remove or rename it"))
    }

    /// Compares with what is there under the name, and completes what an interrupted creation has left.
    async fn existing(&self, spec: &InstanceSpec, hosts: &[Host], ledger: &Ledger) -> Result<Ensured> {
        let gone = unexpected("a Deployment of that name was there and is gone").with_retry(Retry::After(None));
        self.existing_or(spec, hosts, ledger, gone).await
    }

    async fn existing_or(
        &self,
        spec: &InstanceSpec,
        hosts: &[Host],
        ledger: &Ledger,
        absent: Error,
    ) -> Result<Ensured> {
        let name = spec.object_name();
        let Some(deployment) = self.wire.get::<DeploymentView>(&DEPLOYMENT, name.as_str()).await? else {
            return Err(absent);
        };
        check_owner(spec, &deployment)?;
        // Gone since: deleted, or undone by the call that made it.
        let live = self.find(spec.id).await?.ok_or_else(withdrawn)?;
        let observed = self.compared(spec, &live).await?;
        let born = live.deployment.created_at().unwrap_or_default();
        let young = Timestamp::now().as_second() - born.as_second() < YOUNG;
        let limit = if young { Duration::from_secs(5) } else { Duration::ZERO };
        let missing = self.missing(&live, limit).await?;
        if missing.is_empty() {
            return Ok(Ensured::new(EnsureOutcome::Unchanged, observed));
        }
        let live = self.completed(spec, hosts, ledger, live, &missing).await?;
        let deployment = self.wire.get::<Stub>(&DEPLOYMENT, name.as_str()).await?;
        if !is_the_same(deployment.as_ref(), live.deployment.uid()) {
            return Err(withdrawn());
        }
        Ok(Ensured::new(EnsureOutcome::Created, self.instance(&live)))
    }

    /// What is there of an instance must be what the spec asks for; gives the observation.
    pub(crate) async fn compared(&self, spec: &InstanceSpec, live: &Live) -> Result<Instance> {
        if live.deployment.is_deleting() {
            return Err(Error::conflict(["status"], "the instance is being deleted")
                .with_retry(Retry::After(None))
                .with_advice("wait until it is gone, and create it again"));
        }
        let observed = self.instance(live);
        let changes = observed.spec.diff(spec).into_iter();
        let mut fields: Vec<String> = changes.map(|change| change.field).collect();
        // A claim that is not there says nothing about its size.
        if live.claim.is_none() {
            fields.retain(|field| field != "storage");
        }
        fields.extend(self.different_secrets(spec, live.deployment.name()).await?);
        if fields.is_empty() {
            return Ok(observed);
        }
        Err(Error::conflict(fields, "the instance exists with another spec")
            .with_advice("update it, or create another instance"))
    }

    /// The kinds of objects that an instance should have and has not, looked for until they are there or the time is up.
    /// The Deployment is looked at each time: the call that made it may be undoing it.
    pub(crate) async fn missing(&self, live: &Live, limit: Duration) -> Result<Vec<Kind>> {
        let (name, uid) = (live.deployment.name(), live.deployment.uid());
        let mut kinds = vec![SECRET, SERVICE];
        kinds.extend(route_kind(&self.config));
        kinds.extend(self.config.network_policy.as_ref().map(|_| NETWORK_POLICY));
        let claim = data_claim(&live.deployment, &self.config.data_path).unwrap_or_default();
        let last = Mutex::new(Vec::new());
        poll(limit, || async {
            let reads = kinds
                .iter()
                .map(|kind| async move { self.wire.get::<Stub>(kind, name).await });
            let (objects, claim, deployment) = futures::join!(
                join_all(reads),
                self.wire.get::<Stub>(&CLAIM, claim),
                self.wire.get::<Stub>(&DEPLOYMENT, name),
            );
            if !is_the_same(deployment?.as_ref(), uid) {
                return Err(withdrawn());
            }
            let mut missing = Vec::new();
            for (kind, object) in kinds.iter().zip(objects) {
                if object?.is_none() {
                    missing.push(*kind);
                }
            }
            if claim?.is_none() {
                missing.push(CLAIM);
            }
            let done = missing.is_empty();
            *last.lock().unwrap_or_else(PoisonError::into_inner) = missing;
            Ok(done.then_some(()))
        })
        .await?;
        Ok(last.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes what an interrupted creation has left out. A claim is made again only for an instance that cannot have run.
    async fn completed(
        &self,
        spec: &InstanceSpec,
        hosts: &[Host],
        ledger: &Ledger,
        mut live: Live,
        missing: &[Kind],
    ) -> Result<Live> {
        let deployment = &live.deployment;
        let recorded = deployment.annotation(DATA).unwrap_or_default().to_owned();
        let blueprint = Blueprint {
            config: &self.config,
            spec,
            name: spec.object_name(),
            hosts,
            claim: data_claim(deployment, &self.config.data_path)
                .unwrap_or_default()
                .to_owned(),
            creation: &ledger.creation,
            token: ledger.token,
            data: recorded,
            stopped: false,
        };
        let owner = Owner {
            name: deployment.name().to_owned(),
            uid: deployment.uid().to_owned(),
        };
        let (taken, claimed) = futures::try_join!(
            self.host_taken(hosts, spec.id, None),
            self.host_claimed(hosts, spec.id, None, deployment.version()),
        )?;
        if let Some((host, owner)) = taken.or(claimed) {
            return Err(host_conflict(&host, &owner));
        }
        if missing.contains(&CLAIM) {
            let data = remade(deployment).ok_or_else(|| storage_missing(&blueprint.claim))?;
            live.claim = Some(self.data(&blueprint, &data, deployment, ledger).await?);
        }
        self.owned(&blueprint, &owner, ledger, Some(missing)).await?;
        Ok(live)
    }

    /// The secrets in which the spec differs from what is stored.
    async fn different_secrets(&self, spec: &InstanceSpec, name: &str) -> Result<Vec<String>> {
        let wanted = secrets(spec);
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let stored: Option<Value> = self.wire.get(&SECRET, name).await?;
        // A Secret that is not there is completed.
        let Some(stored) = stored else { return Ok(Vec::new()) };
        let differs = |key: &str| {
            let wanted = wanted.get(key).and_then(|value| serde_json::to_value(value).ok());
            wanted.is_some_and(|wanted| stored["data"][key] != wanted)
        };
        let fields = [
            (crate::names::DATABASE_PASSWORD_KEY, "database.password"),
            (crate::names::ADMIN_PASSWORD_KEY, "admin.password"),
        ];
        Ok(fields
            .into_iter()
            .filter(|(key, _)| differs(key))
            .map(|(_, field)| field.to_owned())
            .collect())
    }

    /// Whether new claims can be made at all. A class that may not be read is taken to be there.
    pub(crate) async fn storage_class(&self, data: &Data) -> Result<()> {
        if *data != Data::New {
            return Ok(());
        }
        let seen = *self.class_seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_some_and(|at: Instant| at.elapsed() < CLASS_SEEN) {
            return Ok(());
        }
        let class = &self.config.common.storage_class;
        match self.wire.get::<Stub>(&STORAGE_CLASS, class).await {
            Ok(Some(_)) => {
                *self.class_seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                Ok(())
            }
            Ok(None) => Err(Error::new(
                ErrorKind::MissingPrerequisite,
                format!("there is no storage class {class}"),
            )
            .with_advice("create it, or configure another one")),
            Err(error) if error.kind() == ErrorKind::Forbidden => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The object after the configuration's hook.
    pub(crate) fn amended(&self, mut object: Value) -> Value {
        if let Some(hook) = &self.config.object_hook {
            hook.call(&mut object);
        }
        object
    }

    /// What speaks against new data for this instance: claims of an earlier one.
    pub(crate) async fn data_in_the_way(&self, id: InstanceId, named: &str) -> Result<Option<ClaimView>> {
        let (mut claims, named) = futures::try_join!(self.claims_of(id), self.wire.get::<ClaimView>(&CLAIM, named))?;
        claims.extend(named);
        Ok(of_instance(id, claims.clone()).pop().or_else(|| claims.pop()))
    }
}

/// A Deployment of the name must be of this instance.
pub(crate) fn check_owner(spec: &InstanceSpec, deployment: &DeploymentView) -> Result<()> {
    let managed = deployment.label(MANAGED_BY) == Some("saasodoo");
    let other = identity(deployment);
    if managed && other == Some(spec.id) {
        return Ok(());
    }
    let whose = other.filter(|_| managed);
    let whose = whose.map_or_else(|| "somebody else".to_owned(), |id| format!("instance {id}"));
    Err(Error::conflict(
        ["id"],
        format!(
            "a Deployment called {} exists and belongs to {whose}",
            deployment.name()
        ),
    ))
}

/// True for the Deployment of this UID that nobody deletes.
fn is_the_same(deployment: Option<&Stub>, uid: &str) -> bool {
    deployment.is_some_and(|stub| stub.metadata.uid == uid && stub.metadata.deletion_timestamp.is_none())
}

fn withdrawn() -> Error {
    Error::conflict(
        ["status"],
        "the Deployment of the instance has been deleted, or its creation was undone",
    )
    .with_retry(Retry::After(None))
    .with_advice("create it again")
}

/// With which data a claim is made again that is missing; `None`: it held data that is not there.
pub(crate) fn remade(deployment: &DeploymentView) -> Option<Data> {
    let recorded = deployment.annotation(DATA).unwrap_or_default();
    match directory_of(recorded).and_then(|path| path.parse().ok()) {
        // The directory is where it was: a new claim leads to the same data.
        Some(path) => Some(Data::Directory(path)),
        None if recorded == "new" && never_ran(deployment) => Some(Data::New),
        None => None,
    }
}

/// True for a Deployment whose spec nobody has changed since it was made and whose pod has never been ready.
fn never_ran(deployment: &DeploymentView) -> bool {
    let untouched = deployment.metadata.generation == Some(1);
    let stopped = deployment.spec.replicas == Some(0);
    let progressing = deployment.status.condition("Progressing");
    let available = progressing.is_some_and(|condition| condition.reason == "NewReplicaSetAvailable");
    untouched && (stopped || !available)
}

pub(crate) fn storage_missing(claim: &str) -> Error {
    Error::new(
        ErrorKind::StorageMissing,
        format!("the claim {claim} with the instance's data is not there"),
    )
    .with_advice("find the volume and make the claim again by hand; nothing was changed")
}

pub(crate) fn no_data(id: InstanceId) -> Error {
    Error::new(ErrorKind::StorageMissing, "there is no retained data to adopt")
        .with_instance(id)
        .with_advice("create the instance with new data, or look for the claim")
}

pub(crate) fn data_conflict(claim: &ClaimView) -> Error {
    Error::conflict(
        ["data"],
        format!("the claim {} holds data of an earlier instance", claim.name()),
    )
    .with_advice("adopt it with DataPolicy::AdoptRetained, or purge it")
}
