//! Changing an instance: its spec and its power. A change is applied to the body that was just inspected, and applied
//! again to a newer one when somebody was faster.

use std::time::Duration;

use saasodoo_core::{
    EnsureOutcome, Ensured, Error, ErrorKind, FieldChange, Host, Instance, InstanceChange, InstanceId, InstanceSpec,
    Power, Result, UpdateOptions,
};
use serde_json::Value;

use crate::backend::Inner;
use crate::convert::{self, label};
use crate::create::falls_short;
use crate::facts;
use crate::read::Seen;
use crate::wire::segment;

/// How often a change is applied again to a service that others change at the same time.
const ATTEMPTS: u32 = 6;

/// What an update comes to.
pub(crate) struct Change {
    pub(crate) before: Instance,
    pub(crate) after: InstanceSpec,
    pub(crate) fields: Vec<FieldChange>,
    /// The body to send; equal to the inspected one when nothing of it changes.
    pub(crate) body: Value,
    /// The quota has to be raised first.
    pub(crate) grows: bool,
}

impl Inner {
    pub(crate) async fn update(
        &self,
        id: InstanceId,
        change: &InstanceChange,
        options: &UpdateOptions,
    ) -> Result<Ensured> {
        let checked = self.check_change(id, change)?;
        // The new hosts of an instance are looked up once; those of others do not depend on its own state.
        let mut resolved = None;
        let mut done = false;
        for attempt in 0..ATTEMPTS {
            let seen = self.see(id).await?.ok_or_else(|| Error::not_found(id))?;
            if let Some(revision) = &options.if_revision
                && *revision != seen.version().to_string()
            {
                return Err(stale());
            }
            if attempt == 0
                && let Some(image) = &change.image
                && seen
                    .body()
                    .pointer("/TaskTemplate/ContainerSpec/Image")
                    .and_then(Value::as_str)
                    != Some(image.as_str())
            {
                resolved = self.resolve(image).await?;
            }
            let change = self.prepare(&seen, change, &checked, resolved.as_deref()).await?;
            if attempt == 0 && change.fields.iter().any(|field| field.field.starts_with("route.")) {
                self.free(id, &change.after).await?;
            }
            if change.fields.is_empty() && !change.grows {
                let outcome = if done {
                    EnsureOutcome::Updated
                } else {
                    EnsureOutcome::Unchanged
                };
                return Ok(Ensured::new(outcome, change.before));
            }
            if change.grows {
                let source = facts::data_source(&seen.service).unwrap_or_default();
                self.storage.set_quota(source, change.after.storage).await?;
                done = true;
            }
            if change.body == *seen.body() || self.post(&seen, &change.body).await? {
                return Ok(Ensured::new(EnsureOutcome::Updated, self.get(id).await?));
            }
            if options.if_revision.is_some() {
                return Err(stale());
            }
            pause(attempt).await;
        }
        Err(contended())
    }

    /// Checks what a change asks for, and not what the instance has: a service of today can have what a new one cannot.
    pub(crate) fn check_change(&self, id: InstanceId, change: &InstanceChange) -> Result<InstanceSpec> {
        let any = "odoo".parse().unwrap_or_else(|_| unreachable!("a valid name"));
        // A legacy id stands for an instance that exists; validation is about new ones.
        let full = if id.is_legacy() { InstanceId::random() } else { id };
        let mut spec = InstanceSpec::new(full, any, self.config.common.image.clone());
        spec.storage = saasodoo_core::Bytes::from_mib(1);
        if change.storage.is_some_and(|storage| storage < spec.storage) {
            return Err(Error::invalid("storage", "is less than a mebibyte"));
        }
        let mut asked = change.clone();
        // A shrink is judged against the instance; here only the value itself is.
        asked.labels.retain(|_, value| value.is_some());
        let asked = asked.apply_to(&spec)?;
        asked.validate()?;
        convert::check_supported(&asked)?;
        if change.route.is_some() {
            asked.hosts(&self.config.common.base_domain)?;
        }
        Ok(asked)
    }

    /// The change applied to what was just seen.
    pub(crate) async fn prepare(
        &self,
        seen: &Seen,
        change: &InstanceChange,
        _checked: &InstanceSpec,
        resolved: Option<&str>,
    ) -> Result<Change> {
        let before = self.observe(seen).await?;
        let after = change.apply_to(&before.spec)?;
        let fields = before.spec.diff(&after);
        let hosts: Vec<Host> = if before.spec.route == after.route {
            Vec::new()
        } else {
            after.hosts(&self.config.common.base_domain)?
        };
        let mut body = seen.body().clone();
        convert::patch(&mut body, &before.spec, &after, &hosts, resolved)?;
        let grows = change.storage.is_some_and(|size| {
            let enforced = before.storage.capacity.map(saasodoo_core::Bytes::get);
            size > before.spec.storage
                || (self.config.quota == crate::QuotaPolicy::Required && falls_short(enforced, size))
        });
        Ok(Change {
            before,
            after,
            fields,
            body,
            grows,
        })
    }

    /// Refuses hosts that other instances have.
    pub(crate) async fn free(&self, id: InstanceId, spec: &InstanceSpec) -> Result<()> {
        let hosts = spec.hosts(&self.config.common.base_domain)?;
        match self.taken(id, &hosts).await?.into_iter().next() {
            Some((host, other)) => Err(crate::create::host_taken(&host, &other)),
            None => Ok(()),
        }
    }

    /// Sends a body made from what was seen. `false`: somebody was faster.
    pub(crate) async fn post(&self, seen: &Seen, body: &Value) -> Result<bool> {
        let version = seen.version().to_string();
        let query = [("version", version.as_str()), ("registryAuthFrom", "spec")];
        let path = format!("/services/{}/update", segment(seen.service_id()).map_err(Error::from)?);
        match self.wire.post(&path, &query, body, None).await {
            Ok(_) => {
                self.hub.hint(seen.service_id());
                Ok(true)
            }
            Err(failure) if failure.is_out_of_sequence() => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }

    pub(crate) async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        for attempt in 0..ATTEMPTS {
            let seen = self.see(id).await?.ok_or_else(|| Error::not_found(id))?;
            let Some(body) = powered(&seen, power)? else {
                return self.observe(&seen).await;
            };
            if power == Power::Start {
                self.check_start(&seen).await?;
            }
            if self.post(&seen, &body).await? {
                return self.get(id).await;
            }
            pause(attempt).await;
        }
        Err(contended())
    }

    /// An instance without its data would start on an empty directory, or not at all.
    async fn check_start(&self, seen: &Seen) -> Result<()> {
        let source = facts::data_source(&seen.service);
        let disk = self.storage.look(source, false).await?;
        if disk.exists == Some(false) {
            return Err(Error::new(
                ErrorKind::StorageMissing,
                format!("its directory {} is not there", source.unwrap_or_default()),
            )
            .with_advice("mount CephFS, or find out who moved the directory"));
        }
        Ok(())
    }
}

/// The body after a change of power. `None`: it is so already.
pub(crate) fn powered(seen: &Seen, power: Power) -> Result<Option<Value>> {
    let replicas = convert::replicas(seen.body())
        .ok_or_else(|| Error::unsupported("mode", "the service is not replicated, so it cannot be stopped"))?;
    let hold = facts::hold_of(&seen.service);
    let mut body = seen.body().clone();
    match power {
        Power::Start => {
            if let Some(hold) = hold {
                return Err(
                    Error::new(ErrorKind::NotAllowed, format!("it is held: {}", hold.as_str()))
                        .with_advice("resume it first"),
                );
            }
            if replicas > 0 {
                return Ok(None);
            }
            convert::set_replicas(&mut body, 1);
        }
        Power::Stop => {
            if replicas == 0 {
                return Ok(None);
            }
            convert::set_replicas(&mut body, 0);
        }
        Power::Restart => {
            if replicas == 0 {
                return Err(Error::new(ErrorKind::NotAllowed, "it is stopped").with_advice("start it instead"));
            }
            convert::force_update(&mut body);
        }
        Power::Suspend => {
            convert::set_replicas(&mut body, 0);
            convert::set_label(
                &mut body,
                label::HOLD,
                Some(saasodoo_core::Hold::Suspended.as_str().to_owned()),
            );
        }
        Power::Resume => convert::set_label(&mut body, label::HOLD, None),
    }
    Ok((body != *seen.body()).then_some(body))
}

fn stale() -> Error {
    Error::conflict(["revision"], "the instance has been changed since it was read").with_advice("read it again")
}

fn contended() -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("others changed the service {ATTEMPTS} times in a row"),
    )
    .with_retry(saasodoo_core::Retry::After(None))
    .with_advice("try again, and find out what keeps changing it")
}

/// Spread out, so that two who collided do not collide again.
async fn pause(attempt: u32) {
    let spread =
        u64::from(std::process::id()) % 7 * 5 + u64::from(InstanceId::random().short().to_string().as_bytes()[0]);
    tokio::time::sleep(Duration::from_millis(u64::from(attempt + 1) * 40 + spread)).await;
}
