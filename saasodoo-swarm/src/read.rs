//! Observing one instance and all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use saasodoo_core::{
    BackendKind, Error, ErrorKind, Instance, InstanceFilter, InstanceId, OperationKind, Result, Retry, Unparsed,
};
use serde_json::Value;

use crate::backend::Inner;
use crate::convert::label;
use crate::error::Answer;
use crate::facts::{self, Disk};
use crate::task::Task;
use crate::wire::{each_element, filters};

/// How many services are asked about by their ids; more are cheaper to ask about all at once.
const FEW: usize = 16;

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

    /// Any of its tasks has a process, or is about to have one.
    pub(crate) fn any_live(&self) -> bool {
        self.tasks.iter().any(|task| task.unit().is_live())
    }

    pub(crate) fn version(&self) -> u64 {
        self.service
            .pointer("/Version/Index")
            .and_then(Value::as_u64)
            .unwrap_or(0)
    }
}

/// Everything with a label.
pub(crate) struct All {
    /// In the order of their ids.
    pub(crate) instances: Vec<Instance>,
    /// About services that have no readable id or name.
    pub(crate) errors: Vec<Error>,
    /// Instances by the id of their service.
    pub(crate) services: HashMap<String, InstanceId>,
}

impl Inner {
    pub(crate) async fn get(&self, id: InstanceId) -> Result<Instance> {
        self.observe(&self.existing(id).await?).await
    }

    /// The service of an instance that shall exist.
    pub(crate) async fn existing(&self, id: InstanceId) -> Result<Seen> {
        match self.see(id).await? {
            Some(seen) => Ok(seen),
            None => Err(self.absent(id).await),
        }
    }

    /// What a missing service means: the instance is absent, unless a task that the service left behind still writes.
    async fn absent(&self, id: InstanceId) -> Error {
        // A task says whose it is only when asked for the whole id.
        if id.is_legacy() {
            return Error::not_found(id);
        }
        match self.tasks(&selector(id)).await {
            Ok(tasks) => match tasks.iter().find(|task| task.unit().is_live()) {
                None => Error::not_found(id),
                Some(task) => Error::conflict(
                    ["status"],
                    format!("its service is gone, and its task {} is still {}", task.id, task.state),
                )
                .with_instance(id)
                .with_backend(BackendKind::Swarm)
                .with_retry(Retry::After(Some(Duration::from_secs(1))))
                .with_advice(
                    "wait until the task has ended; if its node is lost, make sure that the machine is off, and remove \
                     the node from the swarm",
                ),
            },
            Err(failure) => failure.into(),
        }
    }

    /// The instance that a service and its tasks make, with its directory.
    pub(crate) async fn observe(&self, seen: &Seen) -> Result<Instance> {
        let disk = self.storage.look(facts::data_source(&seen.service), true).await;
        let disk = disk.unwrap_or_else(|error| {
            tracing::warn!(%error, "a data directory cannot be looked at");
            Disk::default()
        });
        self.observe_with(seen, disk)
    }

    /// The instance that a service, its tasks and what was seen of its directory make.
    pub(crate) fn observe_with(&self, seen: &Seen, disk: Disk) -> Result<Instance> {
        facts::instance(&seen.service, &seen.tasks, disk, &self.config, self.clock.now())
    }

    /// The service of an instance and its tasks. `None`: the daemon says that there is none.
    pub(crate) async fn see(&self, id: InstanceId) -> Result<Option<Seen>> {
        let mut services = self.services_of(id).await?;
        if services.len() > 1 {
            return Err(ambiguous(id, &services));
        }
        match services.pop() {
            Some(service) => Ok(self.with_tasks(service).await?),
            None => Ok(None),
        }
    }

    /// The services that carry an instance's id; more than one is somebody's mistake.
    pub(crate) async fn services_of(&self, id: InstanceId) -> Answer<Vec<Value>> {
        let mut services = self.services(&selector(id)).await?;
        services.retain(|service| facts::id_of(service).is_ok_and(|seen| seen.matches(id)));
        Ok(services)
    }

    /// A service with its tasks. `None`: it has been removed in the meantime.
    pub(crate) async fn with_tasks(&self, service: Value) -> Answer<Option<Seen>> {
        let own = service.get("ID").and_then(Value::as_str).unwrap_or_default().to_owned();
        match self.tasks_of(std::slice::from_ref(&own)).await {
            Ok(mut tasks) => {
                tasks.retain(|task| task.service == own);
                Ok(Some(Seen { service, tasks }))
            }
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(failure),
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

    /// All tasks whose service had a label when it made them. This finds what a removed service left behind, and not
    /// the tasks of a service that was given the label later.
    pub(crate) async fn tasks(&self, label: &str) -> Answer<Vec<Task>> {
        self.tasks_by(&[("label", &[label.to_owned()])]).await
    }

    /// All tasks of these services, by Swarm's ids. A service that is gone makes this fail as missing.
    async fn tasks_of(&self, services: &[String]) -> Answer<Vec<Task>> {
        self.tasks_by(&[("service", services)]).await
    }

    async fn tasks_by(&self, by: &[(&str, &[String])]) -> Answer<Vec<Task>> {
        let filter = filters(by);
        let query = [("filters", filter.as_str())];
        let body = self
            .wire
            .get("/tasks", if by.is_empty() { &[] } else { &query })
            .await?;
        let mut tasks = Vec::new();
        each_element(&body, |task| tasks.push(Task::read(&task, &self.config.network)))?;
        Ok(tasks)
    }

    /// The services with a label and the tasks of at least those, in two requests. Tasks do not get the labels that a
    /// service is given later, so they are joined by the service's id.
    async fn joined(&self, label: &str) -> Answer<(Bytes, Vec<Task>)> {
        let filter = filters(&[("label", &[label.to_owned()])]);
        let query = [("filters", filter.as_str())];
        let services = self.wire.get("/services", &query);
        if label == label::ID {
            let (services, tasks) = futures::join!(services, self.tasks_by(&[]));
            return Ok((services?, tasks?));
        }
        let services = services.await?;
        let mut ids = Vec::new();
        each_element(&services, |service| {
            ids.extend(service.get("ID").and_then(Value::as_str).map(str::to_owned));
        })?;
        let tasks = match ids.len() {
            0 => Ok(Vec::new()),
            1..=FEW => self.tasks_of(&ids).await,
            _ => self.tasks_by(&[]).await,
        };
        match tasks {
            // One of them has just been removed.
            Err(failure) if failure.is_missing() => Ok((services, self.tasks_by(&[]).await?)),
            tasks => Ok((services, tasks?)),
        }
    }

    /// Everything with a label in two requests.
    pub(crate) async fn see_all(&self, label: &str) -> Result<All> {
        let (services, tasks) = self.joined(label).await?;
        let mut by_service: HashMap<String, Vec<Task>> = HashMap::new();
        for task in tasks {
            by_service.entry(task.service.clone()).or_default().push(task);
        }
        let now = self.clock.now();
        let mut read = Vec::new();
        let mut errors = Vec::new();
        let mut unmeasured = Vec::new();
        let mut ids = HashMap::new();
        each_element(&services, |service| {
            let own = service.get("ID").and_then(Value::as_str).unwrap_or_default();
            let tasks = by_service.remove(own).unwrap_or_default();
            if let Ok(id) = facts::id_of(&service) {
                ids.insert(own.to_owned(), id);
            }
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
        Ok(All {
            instances: each_once(read),
            errors,
            services: ids,
        })
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

pub(crate) fn ambiguous(id: InstanceId, services: &[Value]) -> Error {
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
            Ok(All { instances, errors, .. }) => {
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
