//! What was read from the source.

use serde::{Deserialize, Serialize};

use super::Tenancy;
use crate::{DataPath, Instance, InstanceSpec, Unparsed};

/// What was read from the source before anything was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
#[non_exhaustive]
pub struct Inventory {
    /// The spec; secrets are withheld.
    pub spec: InstanceSpec,
    /// The data's directory under the root that both sides share.
    pub data: DataPath,
    /// The power state.
    pub tenancy: Tenancy,
    /// What could not be read into the spec.
    pub unparsed: Vec<Unparsed>,
    /// The observation itself, for the parity table.
    pub observed: Box<Instance>,
    /// The [digest](Self::digest) of what was read at first, where a journal keeps no more than that and the rest was read
    /// again.
    pub(super) first: Option<String>,
}

impl Inventory {
    /// What was read.
    #[must_use]
    pub fn new(observed: Instance, spec: InstanceSpec, data: DataPath, tenancy: Tenancy) -> Self {
        Self {
            spec,
            data,
            tenancy,
            unparsed: observed.unparsed.clone(),
            observed: Box::new(observed),
            first: None,
        }
    }

    /// Short, and another one when the spec, the data's place or a hold is not what it was at the inventory.
    pub(super) fn digest(&self) -> String {
        self.first
            .clone()
            .unwrap_or_else(|| digest(&(&self.spec, &self.data, self.observed.facts.hold)))
    }
}

/// Short, and another one for another value. What cannot be written down is equal to nothing: it counts as changed.
pub(super) fn digest(of: &impl Serialize) -> String {
    let text = serde_json::to_string(of).unwrap_or_else(|_| uuid::Uuid::new_v4().to_string());
    super::journal_file::checksum(&text)
}

/// The inventory as it is written down: what the tenant set as environment stands there once.
#[derive(Serialize, Deserialize)]
struct Stored {
    spec: InstanceSpec,
    data: DataPath,
    tenancy: Tenancy,
    unparsed: Vec<Unparsed>,
    observed: Box<Instance>,
    /// The observation has the environment of the spec.
    #[serde(default)]
    same_environment: bool,
}

impl From<Inventory> for Stored {
    fn from(inventory: Inventory) -> Self {
        let mut observed = inventory.observed;
        let same_environment = observed.spec.environment == inventory.spec.environment;
        if same_environment {
            observed.spec.environment.clear();
        }
        Self {
            spec: inventory.spec,
            data: inventory.data,
            tenancy: inventory.tenancy,
            unparsed: inventory.unparsed,
            observed,
            same_environment,
        }
    }
}

impl From<Stored> for Inventory {
    fn from(stored: Stored) -> Self {
        let mut observed = stored.observed;
        if stored.same_environment {
            observed.spec.environment.clone_from(&stored.spec.environment);
        }
        Self {
            spec: stored.spec,
            data: stored.data,
            tenancy: stored.tenancy,
            unparsed: stored.unparsed,
            observed,
            first: None,
        }
    }
}
