//! Saying what an operation would do, by the same steps that it would take.

use saasodoo_core::{
    BackendKind, CreateOptions, DataPolicy, Error, ErrorKind, FieldChange, InstanceChange, InstanceId, InstanceSpec,
    ObjectIdentity, Operation, Plan, Power, PurgeToken, Result,
};
use serde_json::Value;

use crate::backend::Inner;
use crate::config::Credentials;
use crate::convert;
use crate::create::equal_or_conflict;
use crate::facts;
use crate::fence;
use crate::power::{powered, starts};
use crate::read::Seen;
use crate::retained::Writer;

impl Inner {
    pub(crate) async fn plan(&self, operation: &Operation) -> Result<Plan> {
        match operation {
            Operation::Create(spec, options) => self.plan_create(spec, options).await,
            Operation::Update(id, change) => self.plan_update(*id, change).await,
            Operation::SetPower(id, power) => self.plan_power(*id, *power).await,
            Operation::Delete(id) => self.plan_delete(*id).await,
            Operation::Purge(id) => self.plan_purge(*id).await,
            other => Err(Error::unsupported(
                "operation",
                format!("{other:?} is not known to this backend"),
            )),
        }
    }

    async fn plan_create(&self, spec: &InstanceSpec, options: &CreateOptions) -> Result<Plan> {
        let checked = self.check(spec)?;
        let mut plan = Plan::nothing(spec.id);
        if let Some(existing) = self.look(spec, &checked).await? {
            equal_or_conflict(spec, &self.observe(&existing).await?)?;
            return Ok(plan);
        }
        let name = convert::directory_name(spec);
        match &options.data {
            DataPolicy::New => {
                let path = self.storage.absolute(&name);
                self.storage.free(name, spec.id).await?;
                plan.creates.push(format!("Directory {}", path.display()));
            }
            DataPolicy::AdoptRetained => {
                if self.storage.find_left(spec.id, Some(name)).await?.is_none() {
                    return Err(nothing_left(spec.id));
                }
            }
            DataPolicy::AdoptDirectory(path) => {
                let path = self.storage.absolute(path.as_str());
                let path = path.to_string_lossy();
                if self.storage.identify(&path).await?.is_none() {
                    return Err(nothing_left(spec.id));
                }
                self.unused(spec.id, &path).await?;
            }
            other => {
                return Err(Error::unsupported(
                    "data",
                    format!("{other:?} is not known to this backend"),
                ));
            }
        }
        if self.config.credentials == Credentials::Secrets {
            let secrets = convert::passwords(spec);
            plan.creates
                .extend(secrets.iter().map(|(variable, _)| format!("Secret for {variable}")));
        }
        plan.creates.push(format!("Service {}", checked.name));
        plan.changes = improvements(spec);
        Ok(plan)
    }

    async fn plan_update(&self, id: InstanceId, change: &InstanceChange) -> Result<Plan> {
        self.check_change(id, change)?;
        let seen = self.existing(id).await?;
        let change = self.prepare(&seen, change, None).await?;
        if change.routes {
            self.free(id, &change.after).await?;
        }
        let mut plan = Plan::nothing(id);
        plan.restarts = runs(&seen) && template(&change.body) != template(seen.body());
        plan.changes = change.fields;
        if change.grows && plan.changes.is_empty() {
            let enforced = change.before.storage.capacity.map(|size| size.to_string());
            plan.changes.push(FieldChange::new(
                "storage",
                enforced,
                Some(change.after.storage.to_string()),
            ));
        }
        Ok(plan)
    }

    async fn plan_power(&self, id: InstanceId, power: Power) -> Result<Plan> {
        let seen = self.existing(id).await?;
        let mut plan = Plan::nothing(id);
        let Some(body) = powered(&seen, power, self.clock.now())? else {
            return Ok(plan);
        };
        if starts(&seen, &body) {
            self.check_start(&seen).await?;
        }
        let replicas = |body: &Value| convert::replicas(body).map(|replicas| replicas.to_string());
        if replicas(seen.body()) != replicas(&body) {
            plan.changes
                .push(FieldChange::new("replicas", replicas(seen.body()), replicas(&body)));
        }
        let hold = |body: &Value| {
            let hold = body.pointer("/Labels")?.get(convert::label::HOLD)?;
            hold.as_str().map(str::to_owned)
        };
        if hold(seen.body()) != hold(&body) {
            plan.changes
                .push(FieldChange::new("hold", hold(seen.body()), hold(&body)));
        }
        let fence = |body: &Value| fence::is_raised(body).then(|| "no node fits".to_owned());
        if fence(seen.body()) != fence(&body) {
            plan.changes
                .push(FieldChange::new("placement", fence(seen.body()), fence(&body)));
        }
        plan.restarts = runs(&seen) && matches!(power, Power::Stop | Power::Restart | Power::Suspend);
        Ok(plan)
    }

    async fn plan_delete(&self, id: InstanceId) -> Result<Plan> {
        let mut plan = Plan::nothing(id);
        if let Some(seen) = self.see(id).await? {
            plan.restarts = runs(&seen);
            plan.deletes = objects(&seen);
        }
        Ok(plan)
    }

    async fn plan_purge(&self, id: InstanceId) -> Result<Plan> {
        if self.config.common.retain_storage {
            return Err(
                Error::new(ErrorKind::NotAllowed, "this configuration never deletes data").with_field("RETAIN_STORAGE"),
            );
        }
        let mut plan = self.plan_delete(id).await?;
        // Data that was there before the instance gets no token.
        let (left, writer) = match self.see(id).await? {
            Some(seen) if self.check_adopted(&seen, None).is_err() => (None, Writer::Gone),
            Some(seen) => match facts::data_source(&seen.service) {
                Some(source) => (self.storage.identify(source).await?, Writer::of(&seen)),
                None => (None, Writer::Gone),
            },
            None => (self.storage.find_left(id, None).await?, Writer::Gone),
        };
        let left = left.filter(|left| !left.adopted);
        if let Some(left) = left {
            let left = left.check(id, writer)?;
            plan.deletes.push(left.identity.clone());
            plan.purge_token = Some(PurgeToken::new(BackendKind::Swarm, id, vec![left.identity]));
        }
        Ok(plan)
    }
}

fn runs(seen: &Seen) -> bool {
    convert::replicas(seen.body()) != Some(0)
}

fn template(body: &Value) -> Option<&Value> {
    body.get("TaskTemplate")
}

fn objects(seen: &Seen) -> Vec<ObjectIdentity> {
    let name = seen.body().get("Name").and_then(Value::as_str).unwrap_or_default();
    let mut objects = vec![ObjectIdentity::new("Service", name, seen.service_id())];
    let secrets = seen
        .body()
        .pointer("/TaskTemplate/ContainerSpec/Secrets")
        .and_then(Value::as_array);
    for secret in secrets.into_iter().flatten() {
        let text = |name: &str| secret.get(name).and_then(Value::as_str).unwrap_or_default();
        objects.push(ObjectIdentity::new("Secret", text("SecretName"), text("SecretID")));
    }
    objects
}

fn nothing_left(id: InstanceId) -> Error {
    Error::new(ErrorKind::StorageMissing, "there is no data to adopt").with_instance(id)
}

/// In what a new service is better than one that the system in production would make of the same spec.
fn improvements(spec: &InstanceSpec) -> Vec<FieldChange> {
    let change =
        |field: &str, from: Option<&str>, to: String| FieldChange::new(field, from.map(str::to_owned), Some(to));
    vec![
        change(
            "service.healthcheck",
            None,
            format!("{} every {} s", spec.probes.path, spec.probes.period_seconds),
        ),
        change("service.update_order", None, "stop-first, paused on failure".to_owned()),
        change("service.restart_delay", Some("0 s"), "5 s".to_owned()),
        change(
            "service.stop_grace",
            Some("10 s"),
            format!("{} s", spec.scheduling.stop_grace_seconds),
        ),
        change("service.websocket_route", None, "port 8072".to_owned()),
    ]
}
