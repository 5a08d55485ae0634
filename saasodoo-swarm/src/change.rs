//! Changing the spec of an instance. A change is applied to the body that was just inspected, and applied
//! again to a newer one when somebody was faster.

use std::time::Duration;

use saasodoo_core::{
    BackendKind, Bytes, EnsureOutcome, Ensured, Error, ErrorKind, FieldChange, Host, Instance, InstanceChange,
    InstanceId, InstanceSpec, Result, UpdateOptions,
};
use serde_json::Value;

use crate::backend::Inner;
use crate::config::RegistryAuth;
use crate::convert::{self, label};
use crate::create::falls_short;
use crate::facts;
use crate::patch::{self, Patch};
use crate::power::no_directory;
use crate::read::Seen;
use crate::retained::Writer;
use crate::wire::segment;

/// How often a change is applied again to a service that others change at the same time.
pub(crate) const ATTEMPTS: u32 = 6;

/// What an update comes to.
pub(crate) struct Change {
    pub(crate) before: Instance,
    pub(crate) after: InstanceSpec,
    pub(crate) fields: Vec<FieldChange>,
    /// The body to send; equal to the inspected one when nothing of it changes.
    pub(crate) body: Value,
    /// The quota has to be raised first.
    pub(crate) grows: bool,
    /// The hosts change.
    pub(crate) routes: bool,
}

impl Inner {
    pub(crate) async fn update(
        &self,
        id: InstanceId,
        change: &InstanceChange,
        options: &UpdateOptions,
    ) -> Result<Ensured> {
        self.check_change(id, change)?;
        // The new hosts of an instance are looked up once; those of others do not depend on its own state.
        let mut resolved = None;
        let mut done = false;
        for attempt in 0..ATTEMPTS {
            let seen = self.existing(id).await?;
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
            let change = self.prepare(&seen, change, resolved.as_deref()).await?;
            if attempt == 0 && change.routes {
                self.free(id, &change.after).await?;
            }
            if change.fields.is_empty() && !change.grows {
                // An update before this one was interrupted between stopping and starting the process.
                if facts::restarting(&seen.service).is_some() {
                    self.start_again(id, Duration::ZERO).await?;
                    return Ok(Ensured::new(EnsureOutcome::Updated, self.get(id).await?));
                }
                let outcome = if done {
                    EnsureOutcome::Updated
                } else {
                    EnsureOutcome::Unchanged
                };
                return Ok(Ensured::new(outcome, change.before));
            }
            if change.grows {
                let source = facts::data_source(&seen.service).unwrap_or_default();
                let size = change.after.storage;
                self.storage.set_quota(source, size, Writer::of(&seen)).await?;
                done = true;
            }
            // With the image goes what its registry asks for.
            let image = |body: &Value| body.pointer("/TaskTemplate/ContainerSpec/Image").cloned();
            let auth = self.config.registry.as_ref();
            let auth = auth.filter(|_| image(seen.body()) != image(&change.body));
            if change.body == *seen.body() {
                return Ok(Ensured::new(EnsureOutcome::Updated, self.get(id).await?));
            }
            if self.send(&seen, &change.body, auth).await? {
                if change.routes {
                    self.keep_or_give_back(&seen, &change).await?;
                }
                // Not after the two steps of this call itself, which were made from one that ran.
                if facts::restarting(&seen.service).is_some() {
                    self.start_again(id, Duration::ZERO).await?;
                }
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
    pub(crate) fn check_change(&self, id: InstanceId, change: &InstanceChange) -> Result<()> {
        let any = "odoo".parse().unwrap_or_else(|_| unreachable!("a valid name"));
        // A legacy id stands for an instance that exists; validation is about new ones.
        let full = if id.is_legacy() { InstanceId::random() } else { id };
        let mut spec = InstanceSpec::new(full, any, self.config.common.image.clone());
        spec.storage = Bytes::from_mib(1);
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
        Ok(())
    }

    /// The change applied to what was just seen.
    pub(crate) async fn prepare(&self, seen: &Seen, change: &InstanceChange, resolved: Option<&str>) -> Result<Change> {
        let before = match change.storage {
            // What cannot be measured must not be taken for small.
            Some(_) => {
                let disk = self.storage.look(facts::data_source(&seen.service), true).await?;
                self.observe_with(seen, disk)?
            }
            None => self.observe(seen).await?,
        };
        let unread = patch::unread(change, &before.unparsed, seen.body());
        let unsized_yet = unread.contains("storage");
        let after = match change.storage {
            Some(size) if unsized_yet => {
                let mut spec = before.spec.clone();
                spec.storage = size;
                change.apply_to(&spec)?
            }
            _ => change.apply_to(&before.spec)?,
        };
        let fields = patch::fields(change, &before.spec, &after, &unread, seen.body());
        let routes = before.spec.route != after.route || unread.contains("route");
        let hosts: Vec<Host> = if routes {
            after.hosts(&self.config.common.base_domain)?
        } else {
            Vec::new()
        };
        let mut body = seen.body().clone();
        Patch {
            asked: change,
            before: &before.spec,
            after: &after,
            hosts: &hosts,
            resolved,
            unread: &unread,
            config: &self.config,
        }
        .apply(&mut body)?;
        if body != *seen.body() && convert::replicas(&body) != Some(0) {
            convert::set_label(&mut body, label::RESTARTING, None);
        }
        let grows = match change.storage {
            Some(size) => self.grows(seen, &before, size, unsized_yet).await?,
            None => false,
        };
        Ok(Change {
            before,
            after,
            fields,
            body,
            grows,
            routes,
        })
    }

    /// Whether the quota has to be raised for this size. Somebody may have raised it already, or filled it: a size that
    /// would make it smaller, or stop the instance from writing, is refused.
    async fn grows(&self, seen: &Seen, before: &Instance, size: Bytes, unsized_yet: bool) -> Result<bool> {
        let (quota, used) = (before.storage.capacity, before.storage.used);
        let short = falls_short(quota.map(Bytes::get), size);
        let enforced = self.config.quota == crate::QuotaPolicy::Required;
        if size <= before.spec.storage && !(short && (enforced || unsized_yet)) {
            return Ok(false);
        }
        let Some(source) = facts::data_source(&seen.service) else {
            return Err(Error::unsupported(
                "storage",
                "no directory is mounted as the instance's data",
            ));
        };
        if self.storage.identify(source).await?.is_none() {
            return Err(no_directory(Some(source)));
        }
        for (present, what) in [(quota, "quota"), (used, "usage")] {
            if let Some(present) = present.filter(|present| *present > size) {
                return Err(Error::invalid(
                    "storage",
                    format!("{size} is less than the present {what} of {source}, {present}, and storage cannot shrink"),
                )
                .with_backend(BackendKind::Swarm)
                .with_advice(format!("ask for {present} at least")));
            }
        }
        Ok(true)
    }

    /// Refuses hosts that other instances have.
    pub(crate) async fn free(&self, id: InstanceId, spec: &InstanceSpec) -> Result<()> {
        let hosts = spec.hosts(&self.config.common.base_domain)?;
        match self.taken(id, &hosts).await?.into_iter().next() {
            Some((host, other)) => Err(crate::create::host_taken(&host, &other)),
            None => Ok(()),
        }
    }

    /// Two updates can both have found a host free; whoever then sees the other gives way.
    async fn keep_or_give_back(&self, seen: &Seen, change: &Change) -> Result<()> {
        let id = change.before.id;
        let error = match self.free(id, &change.after).await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Conflict => error,
            // Not to have seen is no clash: the change stays whole, and whoever is next sees it.
            Err(error) => return Err(error.with_retry(saasodoo_core::Retry::OutcomeUnknown)),
        };
        let none = serde_json::Map::new();
        let labels = |body: &Value| body.get("Labels").and_then(Value::as_object).unwrap_or(&none).clone();
        let (old, new) = (labels(seen.body()), labels(&change.body));
        for attempt in 0..ATTEMPTS {
            let now = self.existing(id).await?;
            let mut body = now.body().clone();
            for key in old.keys().chain(new.keys()) {
                let is_route = key.starts_with("traefik.") || key.starts_with(label::HOST) || key == label::SUBDOMAIN;
                if is_route
                    && old.get(key) != new.get(key)
                    && now.body().pointer("/Labels").and_then(|l| l.get(key)) == new.get(key)
                {
                    let before = old.get(key).and_then(Value::as_str).map(str::to_owned);
                    convert::set_label(&mut body, key, before);
                }
            }
            if body == *now.body() || self.post(&now, &body).await? {
                return Err(error);
            }
            pause(attempt).await;
        }
        tracing::error!(instance = %id, "hosts were not given back");
        Err(error)
    }

    /// Sends a body made from what was seen. `false`: somebody was faster.
    pub(crate) async fn post(&self, seen: &Seen, body: &Value) -> Result<bool> {
        self.post_with(seen, body, None).await
    }

    /// The same with credentials for the image's registry; without them Swarm keeps those that it has.
    pub(crate) async fn post_with(&self, seen: &Seen, body: &Value, auth: Option<&RegistryAuth>) -> Result<bool> {
        let version = seen.version().to_string();
        let query = [("version", version.as_str()), ("registryAuthFrom", "spec")];
        let path = format!("/services/{}/update", segment(seen.service_id()).map_err(Error::from)?);
        match self.wire.post(&path, &query, body, auth).await {
            Ok(_) => {
                self.hub.hint(seen.service_id());
                Ok(true)
            }
            Err(failure) if failure.is_out_of_sequence() => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }
}

fn stale() -> Error {
    Error::conflict(["revision"], "the instance has been changed since it was read").with_advice("read it again")
}

pub(crate) fn contended() -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("others changed the service {ATTEMPTS} times in a row"),
    )
    .with_retry(saasodoo_core::Retry::After(None))
    .with_advice("try again, and find out what keeps changing it")
}

/// Spread out, so that two who collided do not collide again.
pub(crate) async fn pause(attempt: u32) {
    let spread =
        u64::from(std::process::id()) % 7 * 5 + u64::from(InstanceId::random().short().to_string().as_bytes()[0]);
    tokio::time::sleep(Duration::from_millis(u64::from(attempt + 1) * 40 + spread)).await;
}
