//! Comparing two whole fleets at once.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::Sides;
use super::compare::{Comparator, FieldVerdict, Verdict};
use super::shadow::{diverging, mark_unsettled};
use crate::{Instance, InstanceFilter, InstanceId, InstanceOrchestrator, Result, ShortId};

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
/// counts when it is the same in `samples` samples spread over the settle window. An instance that has its whole id on
/// one side and eight digits of it on the other is one, under the whole id.
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
    let sweep = Sweep {
        primary,
        secondary,
        filter,
        comparator,
        sides: None,
    };
    sweep.settled(settle, samples).await
}

/// The two sides of a dual run, and whether both write.
pub(super) async fn of_dual_run(sides: &Sides, filter: InstanceFilter) -> Result<FleetComparison> {
    let settings = &sides.settings;
    let sweep = Sweep {
        primary: &sides.primary,
        secondary: &sides.secondary,
        filter,
        comparator: &settings.comparator,
        sides: Some(sides),
    };
    sweep.settled(settings.settle, settings.samples).await
}

struct Sweep<'a> {
    primary: &'a dyn InstanceOrchestrator,
    secondary: &'a dyn InstanceOrchestrator,
    filter: InstanceFilter,
    comparator: &'a Comparator,
    sides: Option<&'a Sides>,
}

impl Sweep<'_> {
    async fn settled(&self, settle: Duration, samples: u32) -> Result<FleetComparison> {
        let rounds = samples.max(2) - 1;
        let mut result = self.sample().await?;
        let mut open: BTreeMap<InstanceId, _> = result.iter().map(|(id, fields)| (*id, diverging(fields))).collect();
        for _ in 0..rounds {
            if open.values().all(BTreeMap::is_empty) {
                break;
            }
            tokio::time::sleep(settle / rounds).await;
            result = self.sample().await?;
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

    async fn sample(&self) -> Result<BTreeMap<InstanceId, Vec<FieldVerdict>>> {
        let all = |side: &dyn InstanceOrchestrator| side.list(self.filter.clone()).try_collect::<Vec<_>>();
        let (here, there): (Vec<Instance>, Vec<Instance>) = tokio::try_join!(all(self.primary), all(self.secondary))?;
        let mut result = BTreeMap::new();
        for (id, here, there) in pairs(here, there) {
            let (here, there) = (here.as_ref(), there.as_ref());
            let verdicts = match self.sides {
                Some(sides) => sides.verdicts(here, there).await?,
                None => self.comparator.verdicts(here, there),
            };
            result.insert(id, verdicts);
        }
        Ok(result)
    }
}

/// Each instance with itself on the other side. Eight digits that could be several there are none of them.
fn pairs(here: Vec<Instance>, there: Vec<Instance>) -> Vec<(InstanceId, Option<Instance>, Option<Instance>)> {
    type ById = BTreeMap<InstanceId, Instance>;
    let mut alike: BTreeMap<ShortId, (ById, ById)> = BTreeMap::new();
    for instance in here {
        let (here, _) = alike.entry(instance.id.short()).or_default();
        here.insert(instance.id, instance);
    }
    for instance in there {
        let (_, there) = alike.entry(instance.id.short()).or_default();
        there.insert(instance.id, instance);
    }
    let mut pairs = Vec::new();
    for (here, mut there) in alike.into_values() {
        let mut alone = Vec::new();
        for (id, instance) in here {
            match there.remove(&id) {
                Some(same) => pairs.push((id, Some(instance), Some(same))),
                None => alone.push((id, Some(instance), None)),
            }
        }
        let mut there: Vec<_> = there.into_iter().collect();
        if let ([(id, _, same)], [(other, _)]) = (&mut alone[..], &there[..])
            && id.matches(*other)
        {
            *id = if id.is_legacy() { *other } else { *id };
            *same = there.pop().map(|(_, instance)| instance);
        }
        pairs.extend(alone);
        pairs.extend(there.into_iter().map(|(id, instance)| (id, None, Some(instance))));
    }
    pairs
}
