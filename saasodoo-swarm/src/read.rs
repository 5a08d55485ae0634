//! Observing one instance and all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt as _};
use saasodoo_core::{
    BackendKind, Error, ErrorKind, Instance, InstanceFilter, InstanceId, OperationKind, Result, Unparsed,
};
use serde_json::Value;

use crate::backend::Inner;
use crate::convert::label;
use crate::error::Answer;
use crate::facts::{self, Disk};
use crate::task::Task;
use crate::wire::{each_element, filters};

/// A service with its tasks, as the daemon has them.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) service: Value,
    pub(crate) tasks: Vec<Task>,
}

impl Seen {
    /// The service's id on Swarm.
    pub(crate) fn service_id(&self) -> &str {
        self.service.get("ID").and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn body(&self) -> &Value {
        self.service.get("Spec").unwrap_or(&Value::Null)
    }

    pub(crate) fn version(&self) -> u64 {
        self.service
            .pointer("/Version/Index")
            .and_then(Value::as_u64)
            .unwrap_or(0)
    }
}

impl Inner {
    pub(crate) async fn get(&self, id: InstanceId) -> Result<Instance> {
        let seen = self.see(id).await?.ok_or_else(|| Error::not_found(id))?;
        self.observe(&seen).await
    }

    /// The instance that a service and its tasks make, with its directory.
    pub(crate) async fn observe(&self, seen: &Seen) -> Result<Instance> {
        let disk = self.storage.look(facts::data_source(&seen.service), true).await;
        let disk = disk.unwrap_or_else(|error| {
            tracing::warn!(%error, "a data directory cannot be looked at");
            Disk::default()
        });
        facts::instance(&seen.service, &seen.tasks, disk, &self.config, self.clock.now())
    }

    /// The service of an instance and its tasks. `None`: the daemon says that there is none.
    pub(crate) async fn see(&self, id: InstanceId) -> Result<Option<Seen>> {
        let selector = selector(id);
        let (services, tasks) = futures::join!(self.services(&selector), self.tasks(&selector));
        let mut services = services?;
        let tasks = tasks?;
        services.retain(|service| facts::id_of(service).is_ok_and(|seen| seen.matches(id)));
        match services.len() {
            0 => Ok(None),
            1 => {
                let service = services.remove(0);
                let seen_id = service.get("ID").and_then(Value::as_str).unwrap_or_default();
                let tasks = tasks.into_iter().filter(|task| task.service == seen_id).collect();
                Ok(Some(Seen { service, tasks }))
            }
            _ => Err(ambiguous(id, &services)),
        }
    }

    /// All services with a label.
    pub(crate) async fn services(&self, label: &str) -> Answer<Vec<Value>> {
        let filter = filters(&[("label", &[label.to_owned()])]);
        let body = self.wire.get("/services", &[("filters", &filter)]).await?;
        let mut services = Vec::new();
        each_element(&body, |service| services.push(service))?;
        Ok(services)
    }

    /// All tasks whose service has, or had when it was deleted, a label.
    pub(crate) async fn tasks(&self, label: &str) -> Answer<Vec<Task>> {
        let filter = filters(&[("label", &[label.to_owned()])]);
        let body = self.wire.get("/tasks", &[("filters", &filter)]).await?;
        let mut tasks = Vec::new();
        each_element(&body, |task| tasks.push(Task::read(&task, &self.config.network)))?;
        Ok(tasks)
    }

    /// Everything with a label in two requests, in the order of the ids. What has no readable id comes as errors.
    pub(crate) async fn see_all(&self, label: &str) -> Result<(Vec<Instance>, Vec<Error>)> {
        let filter = filters(&[("label", &[label.to_owned()])]);
        let query = [("filters", filter.as_str())];
        let services = self.wire.get("/services", &query);
        let (services, tasks) = futures::join!(services, self.tasks(label));
        let services = services?;
        let mut by_service: HashMap<String, Vec<Task>> = HashMap::new();
        for task in tasks? {
            by_service.entry(task.service.clone()).or_default().push(task);
        }
        let now = self.clock.now();
        let mut read = Vec::new();
        let mut errors = Vec::new();
        let mut unmeasured = Vec::new();
        each_element(&services, |service| {
            let tasks = service
                .get("ID")
                .and_then(Value::as_str)
                .and_then(|id| by_service.remove(id))
                .unwrap_or_default();
            match facts::instance(&service, &tasks, Disk::default(), &self.config, now) {
                // Today's services do not say how large their storage is; their directories do.
                Ok(_) if facts::label_of(&service, label::STORAGE).is_none() => unmeasured.push((service, tasks)),
                Ok(instance) => read.push(instance),
                Err(error) => errors.push(error),
            }
        })
        .map_err(Error::from)?;
        let source = |service: &Value| facts::data_source(service).unwrap_or_default().to_owned();
        let paths = unmeasured.iter().map(|(service, _)| source(service)).collect();
        let disks = self.storage.quotas(paths).await;
        for ((service, tasks), disk) in unmeasured.iter().zip(disks) {
            match facts::instance(service, tasks, disk, &self.config, now) {
                Ok(instance) => read.push(instance),
                Err(error) => errors.push(error),
            }
        }
        Ok((each_once(read), errors))
    }
}

/// The label by which the services of an instance are found.
pub(crate) fn selector(id: InstanceId) -> String {
    if id.is_legacy() {
        label::ID.to_owned()
    } else {
        format!("{}={id}", label::ID)
    }
}

fn ambiguous(id: InstanceId, services: &[Value]) -> Error {
    let names: Vec<&str> = services
        .iter()
        .filter_map(|service| service.pointer("/Spec/Name")?.as_str())
        .collect();
    Error::conflict(
        ["id"],
        format!("several services are this instance: {}", names.join(", ")),
    )
    .with_instance(id)
    .with_backend(BackendKind::Swarm)
    .with_advice("remove the ones that are left over by hand, after looking at their data")
}

/// Two services can carry the same id when somebody copied one; the instance is listed once and says so.
fn each_once(instances: Vec<Instance>) -> Vec<Instance> {
    let mut once: BTreeMap<InstanceId, Instance> = BTreeMap::new();
    for mut instance in instances {
        let other = match once.remove(&instance.id) {
            None => {
                once.insert(instance.id, instance);
                continue;
            }
            Some(other) if other.provenance.created_at > instance.provenance.created_at => {
                std::mem::replace(&mut instance, other)
            }
            Some(other) => other,
        };
        instance.unparsed.push(Unparsed::new(
            "id",
            other.name.as_str(),
            "another service carries the same id",
        ));
        once.insert(instance.id, instance);
    }
    once.into_values().collect()
}

pub(crate) fn list(inner: Arc<Inner>, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
    let page = async move {
        let label = match (filter.ids.as_slice(), filter.customer) {
            ([id], _) => selector(*id),
            (_, Some(customer)) => format!("{}={customer}", label::CUSTOMER),
            _ => label::ID.to_owned(),
        };
        let context = |error: Error| {
            error
                .with_operation(OperationKind::List)
                .with_backend(BackendKind::Swarm)
        };
        match inner.see_all(&label).await {
            Ok((instances, errors)) => {
                let found = instances
                    .into_iter()
                    .filter(move |instance| filter.matches(instance))
                    .map(Ok);
                // After everything that could be read: the stream ends with the first of them.
                let unread = match errors.len() {
                    0 => None,
                    count => errors.into_iter().next().map(|first| {
                        let message = format!("{count} services cannot be read, the first because {}", first.message());
                        Err(context(Error::new(ErrorKind::Unexpected, message).with_source(first)))
                    }),
                };
                found.chain(unread).collect()
            }
            Err(error) => vec![Err(context(error))],
        }
    };
    stream::once(page).map(stream::iter).flatten().boxed()
}
