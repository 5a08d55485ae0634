//! Whether both sides of a dual run write to one tenant's data.

use super::compare::{FieldVerdict, Verdict};
use super::{Policy, Sides};
use crate::migration::DataLocator;
use crate::{Instance, Result, StorageLocation};

/// The field's name.
const WRITERS: &str = "writers";

/// How the instance writes, or shall; `None` when it is stopped, with nothing alive.
fn writing(instance: &Instance) -> Option<String> {
    match instance.facts.desired {
        0 if instance.facts.any_live() => Some("alive, though none are desired".to_owned()),
        0 => None,
        // Whether a process is alive just now changes from sample to sample where it crashes and is started again.
        desired => Some(format!("{desired} desired")),
    }
}

/// The directory that the data is in, as far as the platform says so. A volume in memory is in one process only, and a
/// claim in one cluster.
fn directory(instance: &Instance, locator: Option<&dyn DataLocator>) -> Option<String> {
    let location = match &instance.storage.location {
        Some(StorageLocation::Memory { .. }) | None => return None,
        Some(location) => location,
    };
    if let Some(found) = locator.and_then(|locator| locator.locate(instance).ok()) {
        return Some(found.to_string());
    }
    match location {
        StorageLocation::Directory { path }
        | StorageLocation::Claim {
            directory: Some(path), ..
        } if path.starts_with('/') => Some(path.clone()),
        _ => None,
    }
}

impl Sides {
    /// What the comparator says, and whether both write.
    pub(super) async fn verdicts(
        &self,
        here: Option<&Instance>,
        there: Option<&Instance>,
    ) -> Result<Vec<FieldVerdict>> {
        let mut verdicts = self.settings.comparator.verdicts(here, there);
        verdicts.extend(self.writers(here, there).await?);
        Ok(verdicts)
    }

    /// The verdict on whether at most one of the two writes, where that must be so: on the same data always, and on
    /// others when the dual run keeps a stopped copy, or when it is recorded that the tenant lives on one side. Two
    /// fleets that are merely observed may both run. No rule ignores it.
    async fn writers(&self, here: Option<&Instance>, there: Option<&Instance>) -> Result<Option<FieldVerdict>> {
        let (Some(here), Some(there)) = (here, there) else {
            return Ok(None);
        };
        let settings = &self.settings;
        let locator = settings.locator.as_deref();
        let same_data = || {
            let data = directory(here, locator);
            data.is_some() && data == directory(there, locator)
        };
        let one = settings.policy == Policy::Mirror || same_data() || settings.placement.get(here.id).await?.is_some();
        if !one {
            return Ok(None);
        }
        let (primary, secondary) = (writing(here), writing(there));
        let verdict = if primary.is_some() && secondary.is_some() {
            Verdict::Diverged
        } else {
            Verdict::Matched
        };
        Ok(Some(FieldVerdict {
            field: WRITERS.to_owned(),
            primary,
            secondary,
            verdict,
        }))
    }
}
