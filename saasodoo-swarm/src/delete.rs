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
use crate::storage::Left;
use crate::wire::{each_element, filters, segment};

/// Deleting many small files takes its time.
const PURGE_DEADLINE: Duration = Duration::from_secs(900);

impl Inner {
    pub(crate) async fn delete(&self, id: InstanceId, options: &DeleteOptions) -> Result<Deleted> {
        let seen = self.see(id).await?;
        // By the full id, also when the caller gave eight digits.
        let id = match &seen {
            Some(seen) => facts::id_of(&seen.service)?,
            None => id,
        };
        let target = match &options.purge {
            Some(token) => Some(self.check_token(id, token, seen.as_ref()).await?),
            None => None,
        };
        let Some(seen) = seen else {
            return self.finish(id, target).await;
        };
        let source = facts::data_source(&seen.service).map(str::to_owned);
        if let (Some(source), None) = (&source, &target) {
            let adopted = facts::label_of(&seen.service, label::ADOPTED).is_some();
            self.storage.retain(source, id, adopted).await;
        }
        self.remove_service(seen.service_id()).await?;
        self.hub.hint(seen.service_id());
        self.until_gone(id).await?;
        self.remove_secrets(id).await?;
        match target {
            Some(target) => {
                self.storage.purge(target.clone(), PURGE_DEADLINE).await?;
                Ok(Deleted::done(None, vec![target]))
            }
            None => Ok(Deleted::done(
                source.map(|path| StorageLocation::Directory { path }),
                Vec::new(),
            )),
        }
    }

    /// There is no service any more: what an interrupted deletion, or an earlier one that kept the data, left to do.
    async fn finish(&self, id: InstanceId, target: Option<ObjectIdentity>) -> Result<Deleted> {
        if !id.is_legacy() {
            self.until_gone(id).await?;
            self.remove_secrets(id).await?;
        }
        let Some(target) = target else { return Ok(Deleted::already_gone()) };
        if self.storage.purge(target.clone(), PURGE_DEADLINE).await? {
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
            return Err(Error::new(ErrorKind::NotAllowed, "this configuration never deletes data")
                .with_field("RETAIN_STORAGE")
                .with_backend(BackendKind::Swarm));
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
                if present.map(|left| left.identity).as_ref() != Some(target) {
                    return refuse("the directory has been replaced since the plan");
                }
            }
            None => match present {
                // A purge that was interrupted after its last step.
                None => {}
                Some(left) if left.adopted => return Err(not_ours(&left.path.to_string_lossy())),
                Some(left) if left.identity != *target => {
                    return refuse("the directory has been replaced since the plan");
                }
                Some(_) => {}
            },
        }
        self.unused(id, &target.name).await?;
        Ok(target.clone())
    }

    /// Refuses the purge of data that was there before the instance.
    pub(crate) fn check_adopted(&self, seen: &Seen, present: Option<&Left>) -> Result<()> {
        let adopted = facts::label_of(&seen.service, label::ADOPTED).is_some()
            || present.is_some_and(|left| left.adopted);
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
