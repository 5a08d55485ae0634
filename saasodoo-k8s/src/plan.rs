//! Plans: what an operation would do. Reads, and asks the server by a dry run whether it would take the Deployment.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use saasodoo_core::{
    BackendKind, CreateOptions, Error, FieldChange, InstanceId, InstanceSpec, ObjectIdentity, Operation, Plan, Power,
    PurgeToken, Result,
};
use serde_json::Value;

use crate::adopt::{check_retained, in_use};
use crate::backend::Inner;
use crate::change::{checked, refuse_deleting};
use crate::convert::Blueprint;
use crate::create::{Data, check_owner, data_conflict, no_data, remade, storage_missing};
use crate::delete::data_is_kept;
use crate::names::claim_name;
use crate::observe::{data_claim, identity};
use crate::occupied::host_conflict;
use crate::read::{Found, Live, still_runs};
use crate::route::kind as route_kind;
use crate::views::{ClaimView, DeploymentView, View};
use crate::wire::{CLAIM, DEPLOYMENT, NETWORK_POLICY, SECRET, SERVICE, Stub, VOLUME, poll};

/// A claim this young may be about to get its volume, in seconds.
const NEW_CLAIM: i64 = 30;
/// How long that is waited for.
const VOLUME_COMES: Duration = Duration::from_secs(5);

impl Inner {
    pub(crate) async fn plan(self: &Arc<Self>, operation: &Operation) -> Result<Plan> {
        match operation {
            Operation::Create(spec, options) => self.plan_create(spec, options).await,
            Operation::Update(id, change) => {
                checked(change)?;
                let live = self.live(*id).await?;
                refuse_deleting(&live)?;
                let changes = self.changes(&live, change)?;
                let route = self.route_state(&live, &changes).await?;
                let mut plan = Plan::nothing(*id);
                if let (Some(before), Some(after)) = (&changes.before, &changes.after) {
                    plan.changes = before.diff(after);
                }
                if plan.changes.is_empty() && (changes.touches_deployment() || route.stale) {
                    // An update that was interrupted: the spec says it already, an object does not.
                    plan.changes
                        .push(FieldChange::new("objects", None, Some("completed".to_owned())));
                }
                if let Some(hosts) = &changes.hosts {
                    let own = live.is_legacy().then(|| live.deployment.name());
                    if let Some((host, owner)) = self.host_taken(hosts, self.instance(&live).id, own).await? {
                        return Err(host_conflict(&host, &owner));
                    }
                }
                if changes.touches_deployment() {
                    self.would_change(&live, &changes).await?;
                }
                plan.restarts = changes.restarts() && self.instance(&live).facts.desired > 0;
                Ok(plan)
            }
            Operation::SetPower(id, power) => {
                let live = self.live(*id).await?;
                let instance = self.instance(&live);
                let mut plan = Plan::nothing(*id);
                if self.power_change(&live, *power, "")?.is_some() {
                    let to = match power {
                        Power::Start | Power::Restart => "running",
                        Power::Stop | Power::Resume => "stopped",
                        Power::Suspend => "paused",
                    };
                    let from = Some(instance.status.to_string());
                    plan.changes.push(FieldChange::new("status", from, Some(to.to_owned())));
                    plan.restarts = match power {
                        Power::Start | Power::Resume => false,
                        Power::Stop | Power::Suspend | Power::Restart => instance.facts.any_live(),
                    };
                }
                Ok(plan)
            }
            Operation::Delete(id) => {
                // Deleting what is not there is not an error.
                match self.find(*id).await? {
                    Some(live) => self.plan_delete(*id, &live).await,
                    None => Ok(Plan::nothing(*id)),
                }
            }
            Operation::Purge(id) => self.plan_purge(*id).await,
            _ => Err(Error::unsupported(
                "operation",
                "this backend does not know the operation",
            )),
        }
    }

    async fn plan_create(&self, spec: &InstanceSpec, options: &CreateOptions) -> Result<Plan> {
        spec.validate()?;
        let hosts = spec.hosts(self.config.base_domain())?;
        let data = self.data_of(&options.data)?;
        let name = spec.object_name();
        let mut plan = Plan::nothing(spec.id);
        let found = match self.look(spec.id).await? {
            Found::Instance(live) => Some(*live),
            Found::Orphans(pods) if data != Data::New => return Err(still_runs(spec.id, &pods)),
            Found::Orphans(_) | Found::Nothing => None,
        };
        // One that has the same digits only is another instance, unless it has the name too.
        if let Some(live) = found.filter(|live| identity(&live.deployment) == Some(spec.id)) {
            self.compared(spec, &live).await?;
            let missing = self.missing(&live, Duration::ZERO).await?;
            if missing.contains(&CLAIM) && remade(&live.deployment).is_none() {
                return Err(storage_missing(
                    data_claim(&live.deployment, &self.config.data_path).unwrap_or("(unknown)"),
                ));
            }
            // What an interrupted creation has left out.
            plan.creates = missing
                .into_iter()
                .map(|kind| format!("{} {name}", kind.kind))
                .collect();
            return Ok(plan);
        }
        let named = self.wire.get::<DeploymentView>(&DEPLOYMENT, name.as_str()).await?;
        if let Some(other) = named {
            check_owner(spec, &other)?;
        }
        self.storage_class(&data).await?;
        if let Some((host, owner)) = self.host_taken(&hosts, spec.id, None).await? {
            return Err(host_conflict(&host, &owner));
        }
        let claim = claim_name(&name);
        let mut mounted = claim.clone();
        let mut record = "new".to_owned();
        let mut creates = vec![(DEPLOYMENT.kind, name.to_string())];
        let present = self.data_in_the_way(spec.id, &claim).await?;
        let adopted = match data {
            Data::New => None,
            Data::Retained | Data::Directory(_) => {
                let found = self.adoptable(spec, &data, &claim).await?;
                if !found.writers.is_empty() {
                    return Err(in_use(&found.writers));
                }
                record = found.record(&data);
                found.claim
            }
        };
        if let Some(claim) = &adopted {
            check_retained(spec, Some(claim), std::slice::from_ref(claim))?;
            claim.name().clone_into(&mut mounted);
        }
        match (&data, present, adopted) {
            (Data::New, Some(present), _) => return Err(data_conflict(&present)),
            (Data::New, None, _) => creates.push((CLAIM.kind, claim)),
            (Data::Retained, _, Some(_)) | (Data::Directory(_), _, Some(_)) => {}
            (Data::Retained, _, None) => return Err(no_data(spec.id)),
            (Data::Directory(_), Some(present), None) => return Err(data_conflict(&present)),
            (Data::Directory(path), None, None) => {
                let volume = self
                    .volume_of(path)
                    .ok_or_else(|| Error::unsupported("data", "this backend is not configured to adopt directories"))?;
                match self.wire.get::<Value>(&VOLUME, &volume).await? {
                    Some(existing) => self.check_volume(&existing, path, &claim, spec.id)?,
                    None => creates.push((VOLUME.kind, volume)),
                }
                creates.push((CLAIM.kind, claim));
            }
        }
        let blueprint = Blueprint {
            config: &self.config,
            spec,
            name: name.clone(),
            claim: mounted,
            hosts: &hosts,
            creation: "plan",
            token: options.token,
            data: record,
            stopped: options.stopped,
        };
        let deployment = self.amended(blueprint.deployment());
        self.wire.would_create(&DEPLOYMENT, &deployment).await?;
        creates.push((SECRET.kind, name.to_string()));
        creates.push((SERVICE.kind, name.to_string()));
        creates.extend(route_kind(&self.config).map(|kind| (kind.kind, name.to_string())));
        creates.extend(
            self.config
                .network_policy
                .as_ref()
                .map(|_| (NETWORK_POLICY.kind, name.to_string())),
        );
        plan.creates = creates
            .into_iter()
            .map(|(kind, name)| format!("{kind} {name}"))
            .collect();
        Ok(plan)
    }

    async fn plan_delete(&self, id: InstanceId, live: &Live) -> Result<Plan> {
        let mut plan = Plan::nothing(id);
        let deployment = &live.deployment;
        plan.deletes.push(ObjectIdentity::new(
            DEPLOYMENT.kind,
            deployment.name(),
            deployment.uid(),
        ));
        let mut kinds = vec![SERVICE];
        if !live.is_legacy() {
            kinds.push(SECRET);
            kinds.extend(self.config.network_policy.as_ref().map(|_| NETWORK_POLICY));
        }
        kinds.extend(route_kind(&self.config));
        let reads = kinds.iter().map(|kind| self.wire.get::<Stub>(kind, deployment.name()));
        for (kind, object) in kinds.iter().zip(futures::future::join_all(reads).await) {
            if let Some(object) = object? {
                let Stub { metadata } = object;
                plan.deletes
                    .push(ObjectIdentity::new(kind.kind, metadata.name, metadata.uid));
            }
        }
        plan.restarts = self.instance(live).facts.any_live();
        Ok(plan)
    }

    async fn plan_purge(&self, id: InstanceId) -> Result<Plan> {
        if self.config.common.retain_storage {
            return Err(data_is_kept());
        }
        let live = self.find(id).await?;
        if let Some(claim) = live.as_ref().and_then(|live| live.claim.as_ref()) {
            self.settled(claim).await?;
        }
        let doomed = self.doomed(id, live.as_ref()).await?;
        let mut plan = match &live {
            Some(live) => self.plan_delete(id, live).await?,
            None if doomed.is_empty() => return Ok(Plan::nothing(id)),
            None => Plan::nothing(id),
        };
        let objects: Vec<ObjectIdentity> = doomed.into_iter().map(|object| object.identity).collect();
        plan.deletes.extend(objects.iter().cloned());
        plan.purge_token = Some(PurgeToken::new(BackendKind::Kubernetes, id, objects));
        Ok(plan)
    }
    /// Gives a claim that was made a moment ago the time to get its volume: a token without it would be refused as soon
    /// as the volume is there. Where volumes wait for a first pod, none comes.
    async fn settled(&self, claim: &ClaimView) -> Result<()> {
        let age = claim
            .created_at()
            .map(|born| Timestamp::now().as_second() - born.as_second());
        if claim.status.phase != "Pending" || age.is_none_or(|age| age > NEW_CLAIM) {
            return Ok(());
        }
        poll(VOLUME_COMES, || async {
            let now: Option<ClaimView> = self.wire.get(&CLAIM, claim.name()).await?;
            let pending = now.is_some_and(|now| now.uid() == claim.uid() && now.status.phase == "Pending");
            Ok((!pending).then_some(()))
        })
        .await
        .map(drop)
    }
}
