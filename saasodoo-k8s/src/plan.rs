//! Plans: what an operation would do. Reads only.

use std::sync::Arc;

use saasodoo_core::{
    BackendKind, CreateOptions, DataPolicy, Error, FieldChange, InstanceId, InstanceSpec, ObjectIdentity, Operation,
    Plan, Power, PurgeToken, Result,
};

use crate::backend::Inner;
use crate::change::{checked, power_patch};
use crate::create::{data_conflict, host_conflict, no_data};
use crate::names::claim_name;
use crate::read::Live;
use crate::route::kind as route_kind;
use crate::views::View;
use crate::wire::{CLAIM, DEPLOYMENT, NETWORK_POLICY, SECRET, SERVICE, Stub, VOLUME};

impl Inner {
    pub(crate) async fn plan(self: &Arc<Self>, operation: &Operation) -> Result<Plan> {
        match operation {
            Operation::Create(spec, options) => self.plan_create(spec, options).await,
            Operation::Update(id, change) => {
                checked(change)?;
                let live = self.live(*id).await?;
                let changes = self.changes(&live, change)?;
                let mut plan = Plan::nothing(*id);
                if let (Some(before), Some(after)) = (&changes.before, &changes.after) {
                    plan.changes = before.diff(after);
                }
                if plan.changes.is_empty()
                    && (changes.touches_deployment() || self.stale_route(&live, &changes).await?)
                {
                    // An update that was interrupted: the spec says it already, an object does not.
                    plan.changes
                        .push(FieldChange::new("objects", None, Some("completed".to_owned())));
                }
                if let Some(hosts) = &changes.hosts {
                    let own = live.is_legacy().then(|| live.deployment.name());
                    if let Some((host, owner)) = self.host_taken(hosts, *id, own).await? {
                        return Err(host_conflict(&host, &owner));
                    }
                }
                plan.restarts = changes.restarts() && self.instance(&live).facts.desired > 0;
                Ok(plan)
            }
            Operation::SetPower(id, power) => {
                let live = self.live(*id).await?;
                let instance = self.instance(&live);
                let mut plan = Plan::nothing(*id);
                if power_patch(&instance.facts, *power)?.is_some() {
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
        let name = spec.object_name();
        let mut plan = Plan::nothing(spec.id);
        if let Some(live) = self.find(spec.id).await? {
            let fields: Vec<String> = self
                .instance(&live)
                .spec
                .diff(spec)
                .into_iter()
                .map(|c| c.field)
                .collect();
            if !fields.is_empty() {
                return Err(Error::conflict(fields, "the instance exists with another spec"));
            }
            return Ok(plan);
        }
        if let Some((host, owner)) = self.host_taken(&hosts, spec.id, None).await? {
            return Err(host_conflict(&host, &owner));
        }
        let claim = claim_name(&name);
        let present = self.data_in_the_way(spec.id, &claim).await?;
        let mut creates = vec![(DEPLOYMENT.kind, name.to_string())];
        match (&options.data, present) {
            (DataPolicy::New, Some(present)) => return Err(data_conflict(&present)),
            (DataPolicy::New, None) => creates.push((CLAIM.kind, claim)),
            (DataPolicy::AdoptRetained, Some(_)) => {}
            (DataPolicy::AdoptRetained, None) => return Err(no_data(spec.id)),
            (DataPolicy::AdoptDirectory(path), present) => {
                let volume = self
                    .volume_of(path)
                    .ok_or_else(|| Error::unsupported("data", "this backend is not configured to adopt directories"))?;
                if present.is_none() {
                    creates.push((VOLUME.kind, volume));
                    creates.push((CLAIM.kind, claim));
                }
            }
            _ => return Err(Error::unsupported("data", "this backend does not know the policy")),
        }
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
            return Err(Error::unsupported(
                "purge",
                "the configuration keeps all data (RETAIN_STORAGE)",
            ));
        }
        let live = self.find(id).await?;
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
}
