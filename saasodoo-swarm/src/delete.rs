//! Deleting an instance; its data only with a token for exactly this directory.

use std::time::Duration;

use saasodoo_core::{
    BackendKind, DeleteOptions, Deleted, Error, ErrorKind, InstanceId, ObjectIdentity, PurgeToken, Result,
    StorageLocation,
};
use serde_json::Value;

use crate::backend::Inner;
use crate::convert::label;
use crate::facts;
use crate::read::{Seen, selector};
use crate::retained::{Left, Writer, grace_seconds, writes};
use crate::wire::{each_element, filters, segment};

/// Deleting many small files takes its time.
const PURGE_DEADLINE: Duration = Duration::from_secs(900);
/// What a task takes to end beside its grace period.
const ENDING_SECONDS: u64 = 10;

impl Inner {
    pub(crate) async fn delete(&self, id: InstanceId, options: &DeleteOptions) -> Result<Deleted> {
        let seen = self.see(id).await?;
        // By the full id, also when the caller gave eight digits.
        let id = match &seen {
            Some(seen) => facts::id_of(&seen.service)?,
            None => id,
        };
        let target = match &options.purge {
            Some(token) => {
                if seen.is_none() {
                    self.until_ended(id).await?;
                }
                Some(self.check_token(id, token, seen.as_ref()).await?)
            }
            None => None,
        };
        let Some(seen) = seen else {
            return self.finish(id, target).await;
        };
        let tasks = match self.live_tasks(seen.service_id()).await {
            Err(failure) if failure.is_missing() => Vec::new(),
            tasks => tasks?,
        };
        let writer = if tasks.iter().any(writes) {
            Writer::Runs
        } else {
            Writer::of(&seen)
        };
        let tasks: Vec<String> = tasks.into_iter().map(|task| task.id).collect();
        let grace = u64::try_from(grace_seconds(&seen)).unwrap_or_default();
        let ending = Duration::from_secs(grace.saturating_add(ENDING_SECONDS));
        let limit = self.config.common.deadlines.termination.max(ending);
        let source = facts::data_source(&seen.service).map(str::to_owned);
        let adopted = facts::label_of(&seen.service, label::ADOPTED).is_some();
        // Also before a purge, which can be interrupted between here and there.
        if let Some(source) = &source {
            let ending = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX / 2);
            self.storage.retain(source, id, adopted, writer, ending).await;
        }
        self.remove_service(seen.service_id()).await?;
        self.hub.hint(seen.service_id());
        self.until_gone(id, &tasks, limit).await?;
        if let (Some(source), Writer::Runs) = (&source, writer) {
            self.storage.retain(source, id, adopted, writer, 0).await;
        }
        self.remove_secrets(id).await?;
        match target {
            Some(target) => {
                self.purge(id, &target).await?;
                Ok(Deleted::done(None, vec![target]))
            }
            None => Ok(Deleted::done(
                source.map(|path| StorageLocation::Directory { path }),
                Vec::new(),
            )),
        }
    }

    /// Waits for the tasks of a service that is gone.
    async fn until_ended(&self, id: InstanceId) -> Result<()> {
        if id.is_legacy() {
            return Ok(());
        }
        self.until_gone(id, &[], self.config.common.deadlines.termination).await
    }

    /// Deletes the data, after a last look that nobody has begun to use it. Answers whether it was there.
    async fn purge(&self, id: InstanceId, target: &ObjectIdentity) -> Result<bool> {
        self.unused(id, &target.name).await?;
        self.storage.purge(target.clone(), Writer::Gone, PURGE_DEADLINE).await
    }

    /// There is no service any more: what an interrupted deletion, or an earlier one that kept the data, left to do.
    async fn finish(&self, id: InstanceId, target: Option<ObjectIdentity>) -> Result<Deleted> {
        self.until_ended(id).await?;
        if !id.is_legacy() {
            self.remove_secrets(id).await?;
        }
        let Some(target) = target else {
            return Ok(Deleted::already_gone());
        };
        if self.purge(id, &target).await? {
            Ok(Deleted::done(None, vec![target]))
        } else {
            Ok(Deleted::already_gone())
        }
    }

    /// The one directory that a token allows to delete, if it still fits.
    async fn check_token(&self, id: InstanceId, token: &PurgeToken, seen: Option<&Seen>) -> Result<ObjectIdentity> {
        let refuse = |why: &str| {
            Err(Error::conflict(["purge"], why)
                .with_backend(BackendKind::Swarm)
                .with_advice("plan the purge again and look at what it lists"))
        };
        if self.config.common.retain_storage {
            return Err(
                Error::new(ErrorKind::NotAllowed, "this configuration never deletes data")
                    .with_field("RETAIN_STORAGE")
                    .with_backend(BackendKind::Swarm),
            );
        }
        if token.backend() != BackendKind::Swarm || token.instance() != id {
            return refuse("the token is for another instance or backend");
        }
        let [target] = token.objects() else {
            return refuse("the token does not list one directory");
        };
        if target.kind != "Directory" {
            return refuse("the token does not list a directory");
        }
        let present = self.storage.identify(&target.name).await?;
        match seen {
            Some(seen) => {
                if facts::data_source(&seen.service) != Some(target.name.as_str()) {
                    return refuse("the instance uses another directory by now");
                }
                self.check_adopted(seen, present.as_ref())?;
                match present {
                    Some(left) if left.identity == *target => {
                        left.check(id, Writer::of(seen))?;
                    }
                    _ => return refuse("the directory has been replaced since the plan"),
                }
            }
            None => match present {
                // A purge that was interrupted after its last step.
                None => {}
                Some(left) if left.adopted => return Err(not_ours(&left.path.to_string_lossy())),
                Some(left) if left.identity != *target => {
                    return refuse("the directory has been replaced since the plan");
                }
                Some(left) => {
                    left.check(id, Writer::Gone)?;
                }
            },
        }
        self.unused(id, &target.name).await?;
        Ok(target.clone())
    }

    /// Refuses the purge of data that was there before the instance.
    pub(crate) fn check_adopted(&self, seen: &Seen, present: Option<&Left>) -> Result<()> {
        let adopted =
            facts::label_of(&seen.service, label::ADOPTED).is_some() || present.is_some_and(|left| left.adopted);
        if adopted {
            return Err(not_ours(facts::data_source(&seen.service).unwrap_or_default()));
        }
        Ok(())
    }

    /// Removes the instance's secrets. Docker refuses those that a service still uses.
    async fn remove_secrets(&self, id: InstanceId) -> Result<()> {
        let filter = filters(&[("label", &[selector(id)])]);
        let body = self.wire.get("/secrets", &[("filters", &filter)]).await?;
        let mut names = Vec::new();
        each_element(&body, |secret| {
            if let Some(id) = secret.get("ID").and_then(Value::as_str) {
                names.push(id.to_owned());
            }
        })
        .map_err(Error::from)?;
        for name in names {
            let removed = match segment(&name) {
                Ok(name) => self.wire.delete(&format!("/secrets/{name}")).await,
                Err(failure) => Err(failure),
            };
            match removed {
                Err(failure) if !failure.is_missing() => return Err(failure.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

fn not_ours(path: &str) -> Error {
    Error::new(
        ErrorKind::NotAllowed,
        format!("{path} was there before the instance and was only adopted"),
    )
    .with_backend(BackendKind::Swarm)
    .with_advice("delete the instance without a purge, and its data by hand")
}
