//! The operations in two halves: what would be done, with every error it can give, and doing it. A plan is the first
//! half alone.

use saasodoo_core::{
    BackendKind, Capability, CreateOptions, DataPolicy, DeleteOptions, Deleted, EnsureOutcome, Error, ErrorKind,
    FieldChange, Hold, Host, InstanceChange, InstanceId, InstanceSpec, ObjectIdentity, Operation, Plan, Power,
    PowerChange, PurgeToken, Result, Transition, UpdateOptions, decide_power,
};

use super::clock::Moment;
use super::volume::Volumes;
use super::world::{Data, World};

/// What a create would do.
pub(super) enum Creation {
    Nothing,
    Make {
        hosts: Vec<Host>,
        data: Data,
        outcome: EnsureOutcome,
    },
}

/// What an update would do.
pub(super) struct Revision {
    id: InstanceId,
    spec: InstanceSpec,
    hosts: Vec<Host>,
    changes: Vec<FieldChange>,
    restarts: bool,
}

/// What a power action would do.
pub(super) struct Switch {
    id: InstanceId,
    change: Option<PowerChange>,
    changes: Vec<FieldChange>,
}

/// What a deletion would do.
pub(super) enum Deletion {
    Nothing { retained: Option<Data> },
    Instance { id: InstanceId, purge: bool },
    Leftover { id: InstanceId, data: Data },
}

impl World {
    pub(super) fn decide_create(
        &self,
        spec: &InstanceSpec,
        options: &CreateOptions,
        volumes: &Volumes,
    ) -> Result<Creation> {
        let hosts = self.check(spec)?;
        let adopts = match &options.data {
            DataPolicy::AdoptDirectory(path) if self.supports(Capability::AdoptDirectory) => {
                Some(self.adopted_data(path))
            }
            DataPolicy::AdoptDirectory(_) => {
                return Err(Error::unsupported("data", "this backend cannot adopt directories"));
            }
            _ => None,
        };
        if let Some(tenant) = self.tenants.get(&spec.id) {
            self.resolve(spec.id)?;
            if tenant.deleting.is_some() {
                return Err(Error::conflict(["id"], "the instance is being deleted")
                    .with_advice("wait until the deletion is done"));
            }
            let mut fields: Vec<String> = tenant.spec.diff(spec).into_iter().map(|change| change.field).collect();
            if adopts.as_ref().is_some_and(|data| data.key != tenant.data.key) {
                fields.push("data".to_owned());
            }
            return if fields.is_empty() {
                Ok(Creation::Nothing)
            } else {
                Err(Error::conflict(fields, "the instance exists with another spec")
                    .with_advice("update it instead, or choose another id"))
            };
        }
        let name = spec.object_name();
        if self.name_taken(&name) {
            return Err(Error::conflict(["id"], format!("the name {name} is taken")).with_advice("choose another id"));
        }
        self.check_hosts(spec.id, &hosts)?;
        let retained = self.retained.get(&spec.id);
        let (data, outcome) = match (&options.data, adopts) {
            (_, Some(data)) => {
                if retained.is_some_and(|retained| retained.key != data.key) {
                    return Err(left_behind());
                }
                if !volumes.exists(&data.key) {
                    return Err(nothing_to_adopt(format!("there is no {}", data.location)));
                }
                if self.data_taken(&data.key) {
                    let message = format!("another instance runs on {}", data.location);
                    return Err(Error::conflict(["data"], message));
                }
                // What this instance itself left behind stays its own.
                (retained.cloned().unwrap_or(data), EnsureOutcome::Adopted)
            }
            (DataPolicy::AdoptRetained, None) => {
                let data = retained.cloned().ok_or_else(|| {
                    nothing_to_adopt("no earlier instance of this id has left data behind".to_owned())
                })?;
                if !volumes.exists(&data.key) {
                    return Err(nothing_to_adopt(format!("{} is not there any more", data.location)));
                }
                (data, EnsureOutcome::Adopted)
            }
            _ => {
                let data = self.new_data(spec, &name);
                if retained.is_some() || volumes.exists(&data.key) {
                    return Err(left_behind());
                }
                (data, EnsureOutcome::Created)
            }
        };
        // A directory that Kubernetes adopts has no size there; everywhere else its quota is kept.
        let sized = self.kind() != BackendKind::Kubernetes || !data.adopted;
        if sized && let Some(quota) = volumes.quota(&data.key).filter(|quota| *quota > spec.storage) {
            let message = format!("{} is less than the {quota} that {} has", spec.storage, data.location);
            return Err(Error::conflict(["storage"], message)
                .with_advice("ask for at least the size of the data: storage cannot shrink"));
        }
        Ok(Creation::Make { hosts, data, outcome })
    }

    /// Whether the spec can be had here, as far as that can be told without looking at what exists; answers its hosts.
    pub(super) fn check(&self, spec: &InstanceSpec) -> Result<Vec<Host>> {
        spec.validate()?;
        let hosts = spec.hosts(&self.settings.config.base_domain)?;
        if !spec.scheduling.tolerations.is_empty() && !self.supports(Capability::Tolerations) {
            return Err(Error::unsupported(
                "scheduling.tolerations",
                "this backend knows no tolerations",
            ));
        }
        if spec.scheduling.priority_class.is_some() && !self.supports(Capability::PriorityClass) {
            return Err(Error::unsupported(
                "scheduling.priority_class",
                "this backend knows no priority classes",
            ));
        }
        Ok(hosts)
    }

    fn check_hosts(&self, id: InstanceId, hosts: &[Host]) -> Result<()> {
        for (index, host) in hosts.iter().enumerate() {
            if self.host_taken(host, id) {
                let field = if index == 0 {
                    "route.subdomain"
                } else {
                    "route.custom_domains"
                };
                return Err(
                    Error::conflict([field], format!("the host {host} belongs to another instance"))
                        .with_advice("choose another subdomain or domain"),
                );
            }
        }
        Ok(())
    }

    pub(super) fn create(
        &mut self,
        spec: &InstanceSpec,
        options: &CreateOptions,
        at: Moment,
        volumes: &mut Volumes,
    ) -> Result<EnsureOutcome> {
        match self.decide_create(spec, options, volumes)? {
            Creation::Nothing => Ok(EnsureOutcome::Unchanged),
            Creation::Make { hosts, data, outcome } => {
                volumes.make(&data.key);
                volumes.set_quota(&data.key, spec.storage);
                volumes.use_by_instance(&data.key);
                self.retained.remove(&spec.id);
                self.insert(spec.clone(), hosts, data, !options.stopped, options.token, at);
                self.touch(spec.id, at, volumes);
                Ok(outcome)
            }
        }
    }

    pub(super) fn decide_update(
        &self,
        id: InstanceId,
        change: &InstanceChange,
        options: &UpdateOptions,
    ) -> Result<Revision> {
        let id = self.resolve(id)?;
        let tenant = self.tenant(id)?;
        if tenant.deleting.is_some() {
            return Err(being_deleted());
        }
        if let Some(revision) = &options.if_revision
            && *revision != tenant.revision.to_string()
        {
            return Err(
                Error::conflict(["revision"], "the instance has been changed since it was read")
                    .with_advice("read it again and decide anew"),
            );
        }
        let spec = change.apply_to(&tenant.spec)?;
        let hosts = self.check(&spec)?;
        self.check_hosts(id, &hosts)?;
        if spec.storage > tenant.spec.storage && !self.supports(Capability::StorageGrowth) {
            return Err(Error::unsupported("storage", "this backend cannot grow storage"));
        }
        let changes = tenant.spec.diff(&spec);
        let quiet = |field: &str| {
            field == "storage" || field == "odoo_version" || field.starts_with("route.") || field.starts_with("addons.")
        };
        let in_place = self.supports(Capability::RouteChangeWithoutRestart);
        let replaces = changes
            .iter()
            .any(|change| !(change.field.starts_with("labels.") || in_place && quiet(&change.field)));
        Ok(Revision {
            id,
            spec,
            hosts,
            restarts: replaces && tenant.desired,
            changes,
        })
    }

    pub(super) fn update(
        &mut self,
        id: InstanceId,
        change: &InstanceChange,
        options: &UpdateOptions,
        at: Moment,
        volumes: &mut Volumes,
    ) -> Result<(InstanceId, EnsureOutcome)> {
        let Revision {
            id,
            spec,
            hosts,
            changes,
            restarts,
        } = self.decide_update(id, change, options)?;
        if changes.is_empty() {
            return Ok((id, EnsureOutcome::Unchanged));
        }
        self.set_hosts(id, hosts);
        volumes.set_quota(&self.tenant(id)?.data.key, spec.storage);
        if restarts {
            self.stop_units(id, at, volumes);
        }
        self.change(id, at, volumes, |tenant| {
            tenant.spec = spec;
            if restarts {
                tenant.transition = Some(Transition::Update);
            }
        });
        Ok((id, EnsureOutcome::Updated))
    }

    pub(super) fn decide_power(&self, id: InstanceId, power: Power, at: Moment, volumes: &Volumes) -> Result<Switch> {
        let id = self.resolve(id)?;
        let tenant = self.tenant(id)?;
        let change = decide_power(&tenant.facts(self.stamp(at)), power)?;
        let runs = matches!(power, Power::Start | Power::Restart);
        if runs && !volumes.exists(&tenant.data.key) {
            let message = format!("{} is not there", tenant.data.location);
            return Err(Error::new(ErrorKind::StorageMissing, message)
                .with_advice("find out where the data went before anything is started"));
        }
        let mut changes = Vec::new();
        if let Some(change) = change {
            let desired = u32::from(tenant.desired);
            if change.desired != desired {
                let shown = |count: u32| Some(count.to_string());
                changes.push(FieldChange::new("replicas", shown(desired), shown(change.desired)));
            }
            if change.hold != tenant.hold {
                let shown = |hold: Option<Hold>| hold.map(|hold| hold.as_str().to_owned());
                changes.push(FieldChange::new("hold", shown(tenant.hold), shown(change.hold)));
            }
        }
        Ok(Switch { id, change, changes })
    }

    pub(super) fn set_power(
        &mut self,
        id: InstanceId,
        power: Power,
        at: Moment,
        volumes: &mut Volumes,
    ) -> Result<InstanceId> {
        let Switch { id, change, .. } = self.decide_power(id, power, at, volumes)?;
        let Some(change) = change else {
            return Ok(id);
        };
        if change.ends_process {
            self.stop_units(id, at, volumes);
        }
        self.change(id, at, volumes, |tenant| {
            tenant.desired = change.desired > 0;
            tenant.hold = change.hold;
            tenant.transition = change.transition.or(tenant.transition);
        });
        Ok(id)
    }

    pub(super) fn decide_delete(&self, id: InstanceId, options: &DeleteOptions, volumes: &Volumes) -> Result<Deletion> {
        let found = match self.resolve(id) {
            Ok(id) => Some(id),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        let data = match found {
            Some(id) => Some(self.tenant(id)?.data.clone()),
            None => self.retained.get(&id).cloned(),
        };
        if let Some(token) = &options.purge {
            self.check_token(found.unwrap_or(id), token, data.as_ref(), volumes)?;
        }
        let purge = options.purge.is_some();
        Ok(match (found, data) {
            (Some(id), _) => Deletion::Instance { id, purge },
            (None, Some(data)) if purge => Deletion::Leftover { id, data },
            (None, retained) => Deletion::Nothing { retained },
        })
    }

    fn check_token(&self, id: InstanceId, token: &PurgeToken, data: Option<&Data>, volumes: &Volumes) -> Result<()> {
        if self.settings.config.retain_storage {
            return Err(retained_always());
        }
        let again = |message: &str| Err(Error::conflict(["purge"], message).with_advice("make a new plan and read it"));
        if token.backend() != self.settings.kind {
            return again("the purge token comes from another backend");
        }
        if token.instance() != id {
            return again("the purge token is for another instance");
        }
        match data {
            // The data is gone already: what the token allows has happened.
            None => Ok(()),
            Some(data) if token.objects() == self.doomed(data, volumes) => Ok(()),
            Some(_) => again("the data has been replaced since the purge was planned"),
        }
    }

    /// What a purge deletes.
    fn doomed(&self, data: &Data, volumes: &Volumes) -> Vec<ObjectIdentity> {
        if data.adopted {
            Vec::new()
        } else {
            volumes.identity(&data.key).into_iter().collect()
        }
    }

    /// Starts a deletion: the answer, and the instance to wait for until it is gone.
    pub(super) fn delete(
        &mut self,
        id: InstanceId,
        options: &DeleteOptions,
        at: Moment,
        volumes: &mut Volumes,
    ) -> Result<(Deleted, Option<InstanceId>)> {
        match self.decide_delete(id, options, volumes)? {
            Deletion::Nothing { retained } => {
                let mut answer = Deleted::already_gone();
                answer.retained = retained.map(|data| data.location);
                Ok((answer, None))
            }
            Deletion::Leftover { id, data } => {
                let doomed = self.doomed(&data, volumes);
                self.retained.remove(&id);
                if data.adopted {
                    return Ok((Deleted::done(Some(data.location), doomed), None));
                }
                volumes.delete(&data.key, at);
                Ok((Deleted::done(None, doomed), None))
            }
            Deletion::Instance { id, purge } => {
                let data = self.tenant(id)?.data.clone();
                let answer = if purge && !data.adopted {
                    Deleted::done(None, self.doomed(&data, volumes))
                } else {
                    Deleted::done(Some(data.location), Vec::new())
                };
                self.stop_units(id, at, volumes);
                self.change(id, at, volumes, |tenant| {
                    tenant.desired = false;
                    tenant.deleting = Some(purge || tenant.deleting == Some(true));
                });
                Ok((answer, Some(id)))
            }
        }
    }

    pub(super) fn plan(&self, operation: &Operation, at: Moment, volumes: &Volumes) -> Result<Plan> {
        let mut plan = Plan::nothing(operation.instance());
        match operation {
            Operation::Create(spec, options) => {
                if let Creation::Make { hosts, data, outcome } = self.decide_create(spec, options, volumes)? {
                    plan.creates.push(format!("instance {}", spec.object_name()));
                    if outcome == EnsureOutcome::Created {
                        plan.creates.push(data.location.to_string());
                    }
                    plan.creates.extend(hosts.iter().map(|host| format!("host {host}")));
                }
            }
            Operation::Update(id, change) => {
                let revision = self.decide_update(*id, change, &UpdateOptions::new())?;
                plan.instance = revision.id;
                plan.restarts = revision.restarts;
                plan.changes = revision.changes;
            }
            Operation::SetPower(id, power) => {
                let switch = self.decide_power(*id, *power, at, volumes)?;
                plan.instance = switch.id;
                plan.restarts = switch.change.is_some_and(|change| change.ends_process);
                plan.changes = switch.changes;
            }
            Operation::Delete(id) => {
                if let Deletion::Instance { id, .. } = self.decide_delete(*id, &DeleteOptions::retain(), volumes)? {
                    self.plan_delete(id, &mut plan)?;
                }
            }
            Operation::Purge(id) => self.plan_purge(*id, &mut plan, volumes)?,
            other => {
                return Err(Error::unsupported("operation", format!("{other:?} is not known here")));
            }
        }
        Ok(plan)
    }

    fn plan_delete(&self, id: InstanceId, plan: &mut Plan) -> Result<()> {
        let tenant = self.tenant(id)?;
        plan.instance = id;
        plan.deletes
            .push(ObjectIdentity::new("Instance", tenant.name.as_str(), &tenant.uid));
        plan.restarts = tenant.is_live();
        Ok(())
    }

    fn plan_purge(&self, id: InstanceId, plan: &mut Plan, volumes: &Volumes) -> Result<()> {
        if self.settings.config.retain_storage {
            return Err(retained_always());
        }
        let (id, data) = match self.decide_delete(id, &DeleteOptions::retain(), volumes)? {
            Deletion::Instance { id, .. } => {
                self.plan_delete(id, plan)?;
                (id, self.tenant(id)?.data.clone())
            }
            Deletion::Nothing { retained: Some(data) } | Deletion::Leftover { data, .. } => (id, data),
            Deletion::Nothing { retained: None } => return Ok(()),
        };
        let doomed = self.doomed(&data, volumes);
        plan.deletes.extend(doomed.iter().cloned());
        plan.purge_token = Some(PurgeToken::new(self.kind(), id, doomed));
        Ok(())
    }

    fn kind(&self) -> BackendKind {
        self.settings.kind
    }
}

fn left_behind() -> Error {
    Error::conflict(["data"], "an earlier instance has left data behind")
        .with_advice("adopt it, or purge it after reading the plan")
}

fn nothing_to_adopt(message: String) -> Error {
    Error::new(ErrorKind::StorageMissing, message)
        .with_field("data")
        .with_advice("create the instance with new data, or find out where the data went")
}

fn being_deleted() -> Error {
    Error::new(ErrorKind::NotAllowed, "the instance is being deleted")
}

fn retained_always() -> Error {
    Error::new(
        ErrorKind::NotAllowed,
        "the configuration forbids every deletion of data",
    )
    .with_advice("delete without a purge token; the data is kept")
}
