//! Creating an instance, and undoing exactly what a failed creation made.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use saasodoo_core::{
    BackendKind, Bytes, CreateOptions, DataPolicy, EnsureOutcome, Ensured, Error, ErrorKind, Host, ImageRef, Instance,
    InstanceId, InstanceSpec, ObjectName, Result, Retry,
};
use serde_json::{Value, json};

use crate::backend::Inner;
use crate::config::{Credentials, ImageResolution};
use crate::convert::{self, Creation, SecretFile, label};
use crate::error::{Answer, Failure};
use crate::facts;
use crate::read::Seen;
use crate::storage::Prepared;
use crate::wire::{json as parse, segment};

/// A label with a random value, by which a call knows the service that it made itself.
const CREATION: &str = "saasodoo.creation";
/// How often a creation tries to start a service that others change at the same time.
const ATTEMPTS: u32 = 6;
/// How long a creation leaves another one of the same instance the time to finish, before it does so itself.
const HANDOVER: Duration = Duration::from_secs(20);

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
            return self.already(spec, options, checked, existing).await;
        }
        let termination = self.config.common.deadlines.termination;
        self.until_gone(spec.id, &[], termination).await?;
        let prepared = match self.directory(spec, options).await {
            Ok(prepared) => prepared,
            // Somebody else may be creating the same instance right now.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                return match self.see(spec.id).await? {
                    Some(existing) => self.already(spec, options, checked, existing).await,
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
        // Nothing of it runs before everything is checked: until then it can be taken back without a trace.
        let mut body = convert::service(
            &Creation {
                spec,
                name: &checked.name,
                hosts: &checked.hosts,
                directory: &prepared.path,
                adopted: prepared.adopted,
                stopped: true,
                secrets: &secrets,
                resolved: resolved.as_deref(),
            },
            &self.config,
        )?;
        let nonce = InstanceId::random().to_string();
        convert::set_label(&mut body, CREATION, Some(nonce.clone()));
        convert::set_label(&mut body, label::TOKEN, options.token.map(|token| token.to_string()));
        if !options.stopped {
            convert::set_label(&mut body, label::UNFINISHED, Some("true".to_owned()));
        }
        match self.post_service(&body).await {
            Ok(id) => made.service = Some(id),
            Err(failure) if failure.is_taken() => {
                return match self.see(spec.id).await? {
                    Some(existing) => self.give_way(spec, options, checked, existing, made).await,
                    None => Err(Error::conflict(
                        ["name"],
                        format!("a service of somebody else has the name {}", checked.name),
                    )
                    .with_advice("look at that service; it does not carry this instance's id")),
                };
            }
            Err(failure) if failure.is_unknown() => match self.see(spec.id).await {
                Ok(Some(existing)) if facts::label_of(&existing.service, CREATION) == Some(nonce.as_str()) => {
                    made.service = Some(existing.service_id().to_owned());
                }
                Ok(Some(existing)) => return self.give_way(spec, options, checked, existing, made).await,
                Ok(None) => return Err(failure.into()),
                Err(_) => {
                    // It may be there: taking its directory away would be worse than leaving an empty one.
                    *made = Made::default();
                    return Err(failure.into());
                }
            },
            Err(failure) => return Err(failure.into()),
        }
        made.directory = Some(self.storage.hold(prepared.clone()).await?);
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
        let seen = if options.stopped {
            seen
        } else {
            self.launch(spec.id, seen, made).await?
        };
        *made = Made::default();
        self.storage.settled(&prepared).await;
        let instance = self.observe(&seen).await?;
        Ok(Ensured::new(outcome, instance))
    }

    /// Makes the service and answers its id on Swarm.
    async fn post_service(&self, body: &Value) -> Answer<String> {
        let auth = self.config.registry.as_ref();
        let answer = self.wire.post("/services/create", &[], body, auth).await?;
        let id = parse(&answer).ok().and_then(|answer| {
            let id = answer.get("ID")?.as_str()?;
            Some(id.to_owned())
        });
        id.ok_or_else(|| {
            let mut failure = Failure::unexpected("the new service has no id");
            failure.write = true;
            failure
        })
    }

    /// Starts a new service. Once that may have happened it is not taken back any more: there is data then.
    async fn launch(&self, id: InstanceId, mut seen: Seen, made: &mut Made) -> Result<Seen> {
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            // Started or stopped by somebody else in the meantime.
            let started = convert::replicas(seen.body()) != Some(0);
            if started || facts::label_of(&seen.service, label::UNFINISHED).is_none() {
                *made = Made::default();
                return Ok(seen);
            }
            let mut body = seen.body().clone();
            // Nothing runs against a hold. It is there as it is, and whoever ends the hold decides.
            if facts::hold_of(&seen.service).is_none() {
                convert::set_replicas(&mut body, 1);
            }
            convert::set_label(&mut body, label::UNFINISHED, None);
            match self.post(&seen, &body).await {
                Ok(true) => {
                    *made = Made::default();
                    return self.launched(id).await;
                }
                Ok(false) => {}
                Err(error) if error.retry() == Retry::OutcomeUnknown => last = Some(error),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(Duration::from_millis(50 * u64::from(attempt))).await;
            seen = match (self.see(id).await, last.take()) {
                (Ok(Some(again)), kept) => {
                    last = kept;
                    again
                }
                (Ok(None), _) => return Err(Error::not_found(id)),
                (Err(_), Some(error)) => {
                    // It may run. A repeated creation goes on from here.
                    *made = Made::default();
                    return Err(error);
                }
                (Err(error), None) => return Err(error),
            };
        }
        Err(last.unwrap_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                format!("others changed the new service {ATTEMPTS} times in a row"),
            )
            .with_retry(Retry::After(None))
        }))
    }

    /// What has just been started. Everything is there, so one failed look is no reason to fail.
    async fn launched(&self, id: InstanceId) -> Result<Seen> {
        let mut tries = 0_u32;
        loop {
            match self.see(id).await {
                Ok(Some(seen)) => return Ok(seen),
                Ok(None) => return Err(Error::not_found(id)),
                Err(error) if tries >= 2 => return Err(error.with_retry(Retry::OutcomeUnknown)),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
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

    /// Another call was faster, and uses the same directory.
    async fn give_way(
        &self,
        spec: &InstanceSpec,
        options: &CreateOptions,
        checked: &Checked,
        existing: Seen,
        made: &mut Made,
    ) -> Result<Ensured> {
        let secrets = std::mem::take(&mut made.secrets);
        *made = Made::default();
        let own = Made {
            secrets,
            ..Made::default()
        };
        self.undo(spec.id, own).await;
        self.already(spec, options, checked, existing).await
    }

    /// The instance that is there. One whose creation is still under way is waited for, and one whose creation was
    /// interrupted is started.
    async fn already(
        &self,
        spec: &InstanceSpec,
        options: &CreateOptions,
        checked: &Checked,
        mut existing: Seen,
    ) -> Result<Ensured> {
        equal_or_conflict(spec, &self.observe(&existing).await?)?;
        let begun = tokio::time::Instant::now();
        while facts::is_unfinished(&existing.service) && !options.stopped {
            if begun.elapsed() >= HANDOVER {
                self.check_launch(spec, checked, &existing).await?;
                existing = self.launch(spec.id, existing, &mut Made::default()).await?;
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            existing = self.see(spec.id).await?.ok_or_else(|| {
                Error::conflict(["id"], "another creation of this instance has just failed")
                    .with_retry(Retry::After(None))
            })?;
        }
        let instance = self.observe(&existing).await?;
        equal_or_conflict(spec, &instance)?;
        Ok(Ensured::new(EnsureOutcome::Unchanged, instance))
    }

    /// What an interrupted creation may not have come to check.
    async fn check_launch(&self, spec: &InstanceSpec, checked: &Checked, existing: &Seen) -> Result<()> {
        if let Some((host, other)) = self.taken(spec.id, &checked.hosts).await?.into_iter().next() {
            return Err(host_taken(&host, &other));
        }
        let source = facts::data_source(&existing.service);
        if self.storage.look(source, false).await?.exists == Some(false) {
            return Err(Error::new(
                ErrorKind::StorageMissing,
                format!("its directory {} is not there", source.unwrap_or_default()),
            )
            .with_advice("delete the instance, which never ran, and create it again"));
        }
        Ok(())
    }

    async fn directory(&self, spec: &InstanceSpec, options: &CreateOptions) -> Result<Prepared> {
        let name = convert::directory_name(spec);
        match &options.data {
            DataPolicy::New => self.storage.make(name, spec.id, spec.storage).await,
            DataPolicy::AdoptRetained => {
                let left = self
                    .storage
                    .find_left(spec.id, Some(name.clone()))
                    .await?
                    .ok_or_else(|| {
                        Error::new(
                            ErrorKind::StorageMissing,
                            format!(
                                "no data of this instance is at {}",
                                self.storage.absolute(&name).display()
                            ),
                        )
                        .with_advice("create it with new data, or name the directory that holds its data")
                    })?;
                self.unused(spec.id, &left.path.to_string_lossy()).await?;
                self.storage.adopt(left.path, spec.id, spec.storage, true).await
            }
            DataPolicy::AdoptDirectory(path) => {
                let path = self.storage.absolute(path.as_str());
                self.unused(spec.id, &path.to_string_lossy()).await?;
                self.storage.adopt(path, spec.id, spec.storage, false).await
            }
            other => Err(Error::unsupported(
                "data",
                format!("{other:?} is not known to this backend"),
            )),
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
            // Somebody else can have started it, and then there is data. Not to have seen it is no answer: stopped as
            // it was made, it is finished by the next creation.
            let services = match self.services_of(id).await {
                Ok(services) => services,
                Err(failure) => {
                    tracing::warn!(instance = %id, error = %Error::from(failure), "the service of a failed creation stays");
                    return;
                }
            };
            let is_it = |seen: &&Value| seen.get("ID").and_then(Value::as_str) == Some(service.as_str());
            let replicas = |seen: &Value| convert::replicas(seen.get("Spec").unwrap_or(&Value::Null));
            if services
                .iter()
                .find(is_it)
                .is_some_and(|seen| replicas(seen) != Some(0))
            {
                tracing::warn!(instance = %id, "the service of a failed creation runs, and stays");
                return;
            }
            if let Err(failure) = self.remove_service(&service).await {
                tracing::error!(instance = %id, error = %Error::from(failure), "a service could not be taken back");
                return;
            }
            if let Err(error) = self.until_gone(id, &[], self.config.common.deadlines.cleanup).await {
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
            self.undo_directory(id, directory).await;
        }
    }

    /// Another creation of the same instance can have taken the directory over, before or while it is removed.
    async fn undo_directory(&self, id: InstanceId, directory: Prepared) {
        match self.see(id).await {
            Ok(None) => {}
            Ok(Some(_)) => return,
            Err(error) => {
                tracing::warn!(instance = %id, %error, "a new directory stays, and is empty");
                return;
            }
        }
        self.storage.undo(directory.clone()).await;
        let again = self.see(id).await;
        let mounted =
            |seen: &Seen| facts::data_source(&seen.service).map(std::path::Path::new) == Some(&directory.path);
        if matches!(&again, Ok(Some(seen)) if mounted(seen))
            && let Err(error) = self.storage.hold(directory).await
        {
            tracing::error!(instance = %id, %error, "a directory that another creation mounts could not be made again");
        }
    }

    /// Removes a service; one that is gone already is fine.
    pub(crate) async fn remove_service(&self, id: &str) -> Answer<()> {
        match self.wire.delete(&format!("/services/{}", segment(id)?)).await {
            Err(failure) if failure.is_missing() => Ok(()),
            other => other,
        }
    }
}

/// Answers Conflict with the fields in which an existing instance differs from what is asked.
pub(crate) fn equal_or_conflict(spec: &InstanceSpec, existing: &Instance) -> Result<()> {
    let differing: Vec<String> = existing
        .spec
        .diff(spec)
        .into_iter()
        .map(|change| change.field)
        .collect();
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

/// How much of the storage there is, when it is a reason to act.
pub(crate) fn falls_short(quota: Option<u64>, size: Bytes) -> bool {
    quota.is_none_or(|quota| quota < size.get())
}
