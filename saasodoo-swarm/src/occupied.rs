//! What others have: hosts, directories, and tasks that have not ended yet.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use saasodoo_core::{BackendKind, Error, ErrorKind, Host, InstanceId, Result, Retry};
use serde_json::Value;

use crate::backend::Inner;
use crate::convert::label;
use crate::error::Answer;
use crate::facts;
use crate::read::selector;
use crate::task::Task;
use crate::wire::{each_element, filters};

impl Inner {
    /// The hosts that other instances have, with their services. Ours are found by a label for each host; today's by
    /// their names, which begin with the default host's first label.
    pub(crate) async fn taken(&self, id: InstanceId, hosts: &[Host]) -> Result<Vec<(Host, Value)>> {
        let base = &self.config.common.base_domain;
        let mut queries: Vec<(&str, String)> = Vec::new();
        for host in hosts {
            queries.push(("label", format!("{}{host}", label::HOST)));
            if host.is_under(base) {
                let first = host.as_str().split('.').next().unwrap_or_default();
                queries.push(("name", format!("odoo-{first}-")));
            }
        }
        let answers = join_all(queries.into_iter().map(|(kind, value)| async move {
            let filter = filters(&[(kind, &[value])]);
            self.wire.get("/services", &[("filters", &filter)]).await
        }))
        .await;
        let mut taken = Vec::new();
        for answer in answers {
            each_element(&answer?, |service| {
                // One whose id cannot be read is somebody else's, too.
                let other = !facts::id_of(&service).is_ok_and(|other| other == id);
                let name = service
                    .pointer("/Spec/Name")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                let rule = facts::label_of(&service, &format!("traefik.http.routers.{name}.rule"));
                let routed = crate::traefik::hosts(rule.unwrap_or_default());
                let clash = hosts
                    .iter()
                    .find(|host| routed.iter().any(|text| text.eq_ignore_ascii_case(host.as_str())));
                if let (true, Some(host)) = (other, clash) {
                    taken.push((host.clone(), service));
                }
            })
            .map_err(Error::from)?;
        }
        Ok(taken)
    }

    /// Refuses a directory that somebody else mounts, by itself or by one above or below: there is one writer only. A
    /// service's tasks write on for a while after it has been removed.
    pub(crate) async fn unused(&self, id: InstanceId, path: &str) -> Result<()> {
        // Services first: a task of one that is removed in between is still seen.
        let services = self.wire.get("/services", &[]).await?;
        let tasks = self.wire.get("/tasks", &[]).await?;
        let mut user = None;
        let (mut own, mut known) = (HashSet::new(), HashSet::new());
        each_element(&services, |service| {
            let swarm_id = service.get("ID").and_then(Value::as_str).unwrap_or_default().to_owned();
            if facts::id_of(&service).is_ok_and(|other| other == id) {
                own.insert(swarm_id);
                return;
            }
            known.insert(swarm_id);
            let container = service.pointer("/Spec/TaskTemplate/ContainerSpec");
            if mounts(container, path, self.storage.path()) {
                user = service.pointer("/Spec/Name").and_then(Value::as_str).map(str::to_owned);
            }
        })
        .map_err(Error::from)?;
        if let Some(user) = user {
            return Err(
                Error::conflict(["storage"], format!("the service {user} mounts {path}"))
                    .with_backend(BackendKind::Swarm)
                    .with_advice("delete that service first; two writers would destroy the data"),
            );
        }
        let mut writer = None;
        each_element(&tasks, |value| {
            if mounts(value.pointer("/Spec/ContainerSpec"), path, self.storage.path()) {
                let task = Task::read(&value, &self.config.network);
                if task.unit().is_live() && !own.contains(&task.service) {
                    writer = Some(task);
                }
            }
        })
        .map_err(Error::from)?;
        let Some(task) = writer else { return Ok(()) };
        let whose = if known.contains(&task.service) {
            format!("of the service {}", task.service)
        } else {
            "of a service that has been removed".to_owned()
        };
        Err(Error::conflict(
            ["storage"],
            format!("the task {} {whose} is {} and mounts {path}", task.id, task.state),
        )
        .with_backend(BackendKind::Swarm)
        .with_retry(Retry::After(None))
        .with_advice("try again when it has ended; two writers would destroy the data"))
    }

    /// The tasks of a service that can still write or may come to, by its id on Swarm: a task keeps the labels that its service had when
    /// it was made, so one of a service that got its id later is not found by that.
    pub(crate) async fn live_tasks(&self, service: &str) -> Answer<Vec<Task>> {
        let mut tasks = self.tasks_with("service", &[service.to_owned()]).await?;
        tasks.retain(|task| task.unit().is_live());
        Ok(tasks)
    }

    /// All tasks that a filter of the daemon lets through.
    async fn tasks_with(&self, kind: &str, values: &[String]) -> Answer<Vec<Task>> {
        let filter = filters(&[(kind, values)]);
        let body = self.wire.get("/tasks", &[("filters", &filter)]).await?;
        let mut tasks = Vec::new();
        each_element(&body, |task| tasks.push(Task::read(&task, &self.config.network)))?;
        Ok(tasks)
    }

    /// Waits until no task of a service that has been removed runs any more: those with the instance's label, and these.
    pub(crate) async fn until_gone(&self, id: InstanceId, known: &[String], limit: Duration) -> Result<()> {
        let selector = selector(id);
        let deadline = tokio::time::Instant::now() + limit;
        let mut pause = Duration::from_millis(100);
        loop {
            let mut tasks = self.tasks(&selector).await?;
            if !known.is_empty() {
                tasks.extend(self.tasks_with("id", known).await?);
            }
            let live = tasks.iter().find(|task| task.unit().is_live());
            let Some(first) = live else { return Ok(()) };
            if tokio::time::Instant::now() + pause > deadline {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!("the task {} is still {}", first.id, first.state),
                )
                .with_advice("look whether its node answers; nothing of its data was touched"));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_secs(1));
        }
    }
}

/// Whether a container binds a path, one above it or one below.
fn mounts(container: Option<&Value>, path: &str, root: &Path) -> bool {
    let mounts = container.and_then(|container| container.get("Mounts")?.as_array());
    mounts.into_iter().flatten().any(|mount| {
        let source = mount.get("Source").and_then(Value::as_str).unwrap_or_default();
        mount.get("Type").and_then(Value::as_str) == Some("bind") && overlaps(source, path, root)
    })
}

/// A mounted path is, contains or lies in a data directory. Mounts of the root and above it are the platform's own.
fn overlaps(mounted: &str, directory: &str, root: &Path) -> bool {
    let (mounted, directory) = (Path::new(mounted), Path::new(directory));
    let inside = mounted != root && mounted.starts_with(root);
    inside && (mounted.starts_with(directory) || directory.starts_with(mounted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_directories_are_seen() {
        let overlaps = |mounted, directory| overlaps(mounted, directory, Path::new("/r"));
        assert!(overlaps("/r/b", "/r/b") && overlaps("/r/b", "/r/b/c") && overlaps("/r/b/c", "/r/b"));
        assert!(
            !overlaps("/r/b", "/r/bc") && !overlaps("", "/r/a") && !overlaps("/r", "/r/a") && !overlaps("/", "/r/a")
        );
    }
}
