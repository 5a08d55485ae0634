//! Creating an instance, and undoing exactly what a failed creation made.

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use saasodoo_core::{
    BackendKind, Bytes, CreateOptions, DataPolicy, EnsureOutcome, Ensured, Error, ErrorKind, Host, ImageRef, Instance,
    InstanceId, InstanceSpec, ObjectName, Result,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::backend::Inner;
use crate::config::{Credentials, ImageResolution};
use crate::convert::{self, Creation, SecretFile, label};
use crate::error::{Answer, Failure};
use crate::facts;
use crate::read::{Seen, selector};
use crate::storage::Prepared;
use crate::task::Task;
use crate::wire::{each_element, filters, json as parse, segment};

/// A spec that was checked, with what follows from it.
pub(crate) struct Checked {
    pub(crate) name: ObjectName,
    pub(crate) hosts: Vec<Host>,
}

/// What this very call has made so far.
#[derive(Default)]
struct Made {
    directory: Option<Prepared>,
    /// Names that contain a random part, so that no other call can have made them.
    secrets: Vec<String>,
    service: Option<String>,
}

impl Inner {
    pub(crate) async fn create(&self, spec: &InstanceSpec, options: &CreateOptions) -> Result<Ensured> {
        let checked = self.check(spec)?;
        let mut made = Made::default();
        let deadline = self.config.common.deadlines.operation;
        let attempt = tokio::time::timeout(deadline, self.attempt(spec, options, &checked, &mut made)).await;
        let error = match attempt {
            Ok(Ok(ensured)) => return Ok(ensured),
            Ok(Err(error)) => error,
            Err(_) => Failure::timeout(true, deadline).into(),
        };
        let cleanup = self.config.common.deadlines.cleanup;
        if tokio::time::timeout(cleanup, self.undo(spec.id, made)).await.is_err() {
            tracing::error!(instance = %spec.id, "a failed creation could not be undone in time");
        }
        Err(error)
    }

    /// Everything that can be refused without a request.
    pub(crate) fn check(&self, spec: &InstanceSpec) -> Result<Checked> {
        spec.validate()?;
        convert::check_supported(spec)?;
        Ok(Checked {
            name: convert::service_name(&spec.database_name, spec.id)?,
            hosts: spec.hosts(&self.config.common.base_domain)?,
        })
    }

    async fn attempt(
        &self,
        spec: &InstanceSpec,
        options: &CreateOptions,
        checked: &Checked,
        made: &mut Made,
    ) -> Result<Ensured> {
        if let Some(existing) = self.look(spec, checked).await? {
            return self.already(spec, &existing).await;
        }
        self.until_gone(spec.id).await?;
        let prepared = match self.directory(spec, options).await {
            Ok(prepared) => prepared,
            // Somebody else may be creating the same instance right now.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                return match self.see(spec.id).await? {
                    Some(existing) => self.already(spec, &existing).await,
                    None => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        let outcome = if prepared.adopted || prepared.retained {
            EnsureOutcome::Adopted
        } else {
            EnsureOutcome::Created
        };
        made.directory = Some(prepared.clone());
        let resolved = self.resolve(&spec.image).await?;
        let secrets = self.make_secrets(spec, made).await?;
        let body = convert::service(
            &Creation {
                spec,
                name: &checked.name,
                hosts: &checked.hosts,
                directory: &prepared.path,
                adopted: prepared.adopted,
                stopped: options.stopped,
                secrets: &secrets,
                resolved: resolved.as_deref(),
            },
            &self.config,
        )?;
        let posted = self
            .wire
            .post("/services/create", &[], &body, self.config.registry.as_ref())
            .await
            .and_then(|answer| parse(&answer));
        match posted {
            Ok(answer) => made.service = answer.get("ID").and_then(Value::as_str).map(str::to_owned),
            Err(failure) if failure.is_taken() => {
                return match self.see(spec.id).await? {
                    // Faster by somebody else, who uses the same directory.
                    Some(existing) => {
                        self.undo(spec.id, Made { directory: None, ..std::mem::take(made) }).await;
                        self.already(spec, &existing).await
                    }
                    None => Err(Error::conflict(
                        ["name"],
                        format!("a service of somebody else has the name {}", checked.name),
                    )
                    .with_advice("look at that service; it does not carry this instance's id")),
                };
            }
            Err(failure) if failure.is_unknown() => match self.see(spec.id).await {
                Ok(Some(existing)) if uses_secrets(&existing, &secrets) => {
                    made.service = Some(existing.service_id().to_owned());
                }
                Ok(_) => return Err(failure.into()),
                Err(_) => {
                    // It may be there: taking its directory away would be worse than leaving an empty one.
                    *made = Made::default();
                    return Err(failure.into());
                }
            },
            Err(failure) => return Err(failure.into()),
        }
        // Two creations can both have found a host free; the service that was made later gives way.
        let (taken, seen) = futures::join!(self.taken(spec.id, &checked.hosts), self.see(spec.id));
        let seen = seen?.ok_or_else(|| Error::not_found(spec.id))?;
        let age = |service: &Value| {
            let text = |name: &str| service.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            (text("CreatedAt"), text("ID"))
        };
        if let Some((host, other)) = taken?.into_iter().find(|(_, other)| age(other) < age(&seen.service)) {
            return Err(host_taken(&host, &other));
        }
        self.storage.settled(&prepared).await;
        let instance = self.observe(&seen).await?;
        Ok(Ensured::new(outcome, instance))
    }

    /// What is there already: the instance itself, or a reason to refuse it.
    pub(crate) async fn look(&self, spec: &InstanceSpec, checked: &Checked) -> Result<Option<Seen>> {
        let (existing, taken) = futures::join!(self.see(spec.id), self.taken(spec.id, &checked.hosts));
        if let Some(existing) = existing? {
            return Ok(Some(existing));
        }
        match taken?.into_iter().next() {
            Some((host, other)) => Err(host_taken(&host, &other)),
            None => Ok(None),
        }
    }

    async fn already(&self, spec: &InstanceSpec, existing: &Seen) -> Result<Ensured> {
        let instance = self.observe(existing).await?;
        equal_or_conflict(spec, &instance)?;
        Ok(Ensured::new(EnsureOutcome::Unchanged, instance))
    }

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
                let other = facts::id_of(&service).is_ok_and(|other| other != id);
                let name = service.pointer("/Spec/Name").and_then(Value::as_str).unwrap_or_default();
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

    async fn directory(&self, spec: &InstanceSpec, options: &CreateOptions) -> Result<Prepared> {
        let name = convert::directory_name(spec);
        match &options.data {
            DataPolicy::New => self.storage.make(name, spec.id, spec.storage).await,
            DataPolicy::AdoptRetained => {
                let left = self.storage.find_left(spec.id, Some(name.clone())).await?.ok_or_else(|| {
                    Error::new(
                        ErrorKind::StorageMissing,
                        format!("no data of this instance is at {}", self.storage.absolute(&name).display()),
                    )
                    .with_advice("create it with new data, or name the directory that holds its data")
                })?;
                self.unused(spec.id, &left.path.to_string_lossy()).await?;
                self.storage.adopt(left.path, spec.storage, true).await
            }
            DataPolicy::AdoptDirectory(path) => {
                let path = self.storage.absolute(path.as_str());
                self.unused(spec.id, &path.to_string_lossy()).await?;
                self.storage.adopt(path, spec.storage, false).await
            }
            other => Err(Error::unsupported("data", format!("{other:?} is not known to this backend"))),
        }
    }

    /// Refuses a directory that a service mounts, by itself or by one above or below: there is one writer only.
    pub(crate) async fn unused(&self, id: InstanceId, path: &str) -> Result<()> {
        let body = self.wire.get("/services", &[]).await?;
        let mut user = None;
        each_element(&body, |service| {
            let mounts = service.pointer("/Spec/TaskTemplate/ContainerSpec/Mounts").and_then(Value::as_array);
            let shared = mounts.into_iter().flatten().any(|mount| {
                let source = mount.get("Source").and_then(Value::as_str).unwrap_or_default();
                mount.get("Type").and_then(Value::as_str) == Some("bind")
                    && overlaps(source, path, self.storage.path())
            });
            let own = facts::id_of(&service).is_ok_and(|other| other == id);
            if shared && !own {
                user = service.pointer("/Spec/Name").and_then(Value::as_str).map(str::to_owned);
            }
        })
        .map_err(Error::from)?;
        match user {
            Some(user) => Err(
                Error::conflict(["storage"], format!("the service {user} mounts {path}"))
                    .with_backend(BackendKind::Swarm)
                    .with_advice("delete that service first; two writers would destroy the data"),
            ),
            None => Ok(()),
        }
    }

    /// The image by its digest in the registry, when the configuration asks for it.
    pub(crate) async fn resolve(&self, image: &ImageRef) -> Result<Option<String>> {
        if self.config.image_resolution == ImageResolution::Tag || image.digest().is_some() {
            return Ok(None);
        }
        let path = format!("/distribution/{image}/json");
        let answer = self
            .wire
            .get_with_auth(&path, self.config.registry.as_ref())
            .await
            .map_err(|failure| {
                Error::from(failure)
                    .with_field("image")
                    .with_advice("check the image's name, the registry and its credentials")
            })?;
        let digest = answer.pointer("/Descriptor/digest").and_then(Value::as_str);
        let pinned = digest.map(|digest| format!("{image}@{digest}"));
        match pinned.as_deref().map(str::parse::<ImageRef>) {
            Some(Ok(_)) => Ok(pinned),
            _ => Err(Failure::unexpected("the registry's answer has no digest").into()),
        }
    }

    async fn make_secrets(&self, spec: &InstanceSpec, made: &mut Made) -> Result<Vec<SecretFile>> {
        let mut secrets = Vec::new();
        if self.config.credentials == Credentials::Environment {
            return Ok(secrets);
        }
        for (variable, secret) in convert::passwords(spec) {
            let random = InstanceId::random().to_string();
            let name = format!("saasodoo-{}-{}", spec.id.short(), random.replace('-', ""));
            made.secrets.push(name.clone());
            let body = json!({
                "Name": name,
                "Labels": { label::ID: spec.id.to_string() },
                "Data": STANDARD.encode(secret.expose().unwrap_or_default()),
            });
            let posted = self.wire.post("/secrets/create", &[], &body, None).await;
            let id = match posted.and_then(|answer| parse(&answer)) {
                Ok(answer) => answer,
                Err(failure) if failure.is_unknown() => {
                    let found = self.wire.get_json(&format!("/secrets/{name}"), &[]).await;
                    found.map_err(|_| Error::from(failure))?
                }
                Err(failure) => return Err(failure.into()),
            };
            let id = id.get("ID").and_then(Value::as_str).map(str::to_owned);
            secrets.push(SecretFile {
                variable,
                id: id.ok_or_else(|| Failure::unexpected("the new secret has no id"))?,
                name,
            });
        }
        Ok(secrets)
    }

    /// Takes back what a failed creation made: its service by Swarm's id, its secrets by their random names, and its
    /// directory if that is still empty.
    async fn undo(&self, id: InstanceId, made: Made) {
        let Made {
            directory,
            secrets,
            service,
        } = made;
        if let Some(service) = service {
            if let Err(failure) = self.remove_service(&service).await {
                tracing::error!(instance = %id, error = %Error::from(failure), "a service could not be taken back");
                return;
            }
            if let Err(error) = self.until_gone(id).await {
                tracing::error!(instance = %id, %error, "a task did not end, its directory stays");
                return;
            }
        }
        for name in secrets {
            if let Err(failure) = self.wire.delete(&format!("/secrets/{name}")).await
                && !failure.is_missing()
            {
                tracing::warn!(instance = %id, error = %Error::from(failure), "a secret could not be taken back");
            }
        }
        if let Some(directory) = directory {
            // Another creation of the same instance can have taken the directory over.
            match self.see(id).await {
                Ok(None) => self.storage.undo(directory).await,
                Ok(Some(_)) => {}
                Err(error) => tracing::warn!(instance = %id, %error, "a new directory stays, and is empty"),
            }
        }
    }

    /// Removes a service; one that is gone already is fine.
    pub(crate) async fn remove_service(&self, id: &str) -> Answer<()> {
        match self.wire.delete(&format!("/services/{}", segment(id)?)).await {
            Err(failure) if failure.is_missing() => Ok(()),
            other => other,
        }
    }

    /// Waits until no task of a service that has been removed runs any more.
    pub(crate) async fn until_gone(&self, id: InstanceId) -> Result<()> {
        let selector = selector(id);
        let deadline = tokio::time::Instant::now() + self.config.common.deadlines.termination;
        let mut pause = Duration::from_millis(100);
        loop {
            let tasks = self.tasks(&selector).await?;
            let live: Vec<&Task> = tasks.iter().filter(|task| task.unit().is_live()).collect();
            let Some(first) = live.first() else { return Ok(()) };
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

/// Answers Conflict with the fields in which an existing instance differs from what is asked.
pub(crate) fn equal_or_conflict(spec: &InstanceSpec, existing: &Instance) -> Result<()> {
    let differing: Vec<String> = existing.spec.diff(spec).into_iter().map(|change| change.field).collect();
    if differing.is_empty() {
        return Ok(());
    }
    Err(Error::conflict(differing, "the instance exists with another spec")
        .with_backend(BackendKind::Swarm)
        .with_advice("update it instead"))
}

pub(crate) fn host_taken(host: &Host, other: &Value) -> Error {
    let name = other.pointer("/Spec/Name").and_then(Value::as_str).unwrap_or_default();
    Error::conflict(["route"], format!("{host} is routed to {name}"))
        .with_backend(BackendKind::Swarm)
        .with_advice("choose another subdomain or domain")
}

fn uses_secrets(existing: &Seen, secrets: &[SecretFile]) -> bool {
    let used = existing.body().pointer("/TaskTemplate/ContainerSpec/Secrets").and_then(Value::as_array);
    let used: Vec<&str> = used
        .into_iter()
        .flatten()
        .filter_map(|secret| secret.get("SecretID")?.as_str())
        .collect();
    secrets.iter().all(|secret| used.contains(&secret.id.as_str()))
}

/// A mounted path is, contains or lies in a data directory. Mounts of the root and above it are the platform's own.
fn overlaps(mounted: &str, directory: &str, root: &Path) -> bool {
    let (mounted, directory) = (Path::new(mounted), Path::new(directory));
    let inside = mounted != root && mounted.starts_with(root);
    inside && (mounted.starts_with(directory) || directory.starts_with(mounted))
}

/// How much of the storage there is, when it is a reason to act.
pub(crate) fn falls_short(quota: Option<u64>, size: Bytes) -> bool {
    quota.is_none_or(|quota| quota < size.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_directories_are_seen() {
        let overlaps = |mounted, directory| overlaps(mounted, directory, Path::new("/r"));
        assert!(overlaps("/r/b", "/r/b") && overlaps("/r/b", "/r/b/c") && overlaps("/r/b/c", "/r/b"));
        assert!(!overlaps("/r/b", "/r/bc") && !overlaps("", "/r/a") && !overlaps("/r", "/r/a") && !overlaps("/", "/r/a"));
    }
}
