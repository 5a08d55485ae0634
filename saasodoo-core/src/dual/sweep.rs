//! Comparing two whole fleets at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::compare::{Comparator, FieldVerdict, Verdict};
use super::shadow::{diverging, mark_unsettled};
use crate::{Instance, InstanceFilter, InstanceId, InstanceOrchestrator, Result};

/// Two fleets compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FleetComparison {
    /// The verdicts on each instance. A difference that was there in the last sample and not all along is
    /// [`Unsettled`](Verdict::Unsettled).
    pub instances: BTreeMap<InstanceId, Vec<FieldVerdict>>,
}

impl FleetComparison {
    /// The differences that came or changed within the settle window and are still there: compare again later.
    pub fn unsettled(&self) -> impl Iterator<Item = (InstanceId, &FieldVerdict)> {
        self.instances.iter().flat_map(|(id, fields)| {
            fields
                .iter()
                .filter(|field| field.verdict == Verdict::Unsettled)
                .map(|field| (*id, field))
        })
    }

    /// The differences that no rule explains.
    pub fn divergences(&self) -> impl Iterator<Item = (InstanceId, &FieldVerdict)> {
        self.instances.iter().flat_map(|(id, fields)| {
            fields
                .iter()
                .filter(|field| field.is_divergence())
                .map(|field| (*id, field))
        })
    }
}

/// Compares all instances that match on two orchestrators, with one listing of each side per sample. A difference
/// counts when it is the same in `samples` samples spread over the settle window.
///
/// # Errors
/// Those of the listings.
pub async fn compare_fleets(
    primary: &dyn InstanceOrchestrator,
    secondary: &dyn InstanceOrchestrator,
    filter: InstanceFilter,
    comparator: &Comparator,
    settle: Duration,
    samples: u32,
) -> Result<FleetComparison> {
    let rounds = samples.max(2) - 1;
    let mut result = sample(primary, secondary, &filter, comparator).await?;
    let mut open: BTreeMap<InstanceId, _> = result.iter().map(|(id, fields)| (*id, diverging(fields))).collect();
    for _ in 0..rounds {
        if open.values().all(BTreeMap::is_empty) {
            break;
        }
        tokio::time::sleep(settle / rounds).await;
        result = sample(primary, secondary, &filter, comparator).await?;
        for (id, fields) in &mut open {
            let now = result.get(id).map(|fields| diverging(fields)).unwrap_or_default();
            fields.retain(|field, values| now.get(field) == Some(values));
        }
    }
    for (id, fields) in &mut result {
        let kept = open.remove(id).unwrap_or_default();
        mark_unsettled(fields, &kept);
    }
    Ok(FleetComparison { instances: result })
}

async fn sample(
    primary: &dyn InstanceOrchestrator,
    secondary: &dyn InstanceOrchestrator,
    filter: &InstanceFilter,
    comparator: &Comparator,
) -> Result<BTreeMap<InstanceId, Vec<FieldVerdict>>> {
    let all = |orchestrator: &dyn InstanceOrchestrator| orchestrator.list(filter.clone()).try_collect::<Vec<_>>();
    let (here, there): (Vec<Instance>, Vec<Instance>) = tokio::try_join!(all(primary), all(secondary))?;
    let by_id = |instances: Vec<Instance>| -> BTreeMap<InstanceId, Instance> {
        instances.into_iter().map(|instance| (instance.id, instance)).collect()
    };
    let (here, there) = (by_id(here), by_id(there));
    let ids: BTreeSet<InstanceId> = here.keys().chain(there.keys()).copied().collect();
    Ok(ids
        .into_iter()
        .map(|id| (id, comparator.verdicts(here.get(&id), there.get(&id))))
        .collect())
}
