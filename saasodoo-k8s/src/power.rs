//! Starting, stopping, restarting and holding an instance.

use std::sync::Arc;

use jiff::Timestamp;
use saasodoo_core::{Error, ErrorKind, Facts, Hold, Instance, InstanceId, Power, Result, Retry, decide_power};
use serde_json::{Map, Value, json};

use crate::backend::Inner;
use crate::change::{again, refuse_deleting};
use crate::names::{HOLD, RESTARTED_AT, TRANSITION};
use crate::patch::one_after_the_other;
use crate::read::Live;
use crate::views::{PodView, View};
use crate::wire::{bounded, detached};

impl Inner {
    pub(crate) async fn set_power(self: &Arc<Self>, id: InstanceId, power: Power) -> Result<Instance> {
        let inner = Arc::clone(self);
        detached(async move {
            let deadlines = inner.wire.deadlines;
            let live = bounded(deadlines.operation, inner.live(id)).await?;
            let limit = deadlines.operation.max(deadlines.termination).max(live.ending());
            let mut first = Some(live);
            // One stamp for the whole call: an answer that was lost must not become a second restart.
            let stamp = Timestamp::now().to_string();
            let (inner, stamp) = (&inner, &stamp);
            bounded(limit, again(|| inner.set_power_once(id, power, stamp, first.take()))).await
        })
        .await
    }

    async fn set_power_once(&self, id: InstanceId, power: Power, stamp: &str, known: Option<Live>) -> Result<Instance> {
        let mut live = match known {
            Some(live) => live,
            None => self.live(id).await?,
        };
        let Some(patch) = self.power_change(&live, power, stamp)? else {
            return Ok(self.instance(&live));
        };
        if power == Power::Start {
            // The old process writes to the data until it has ended.
            live.pods = self.until_ended(&live).await?;
        }
        live.deployment = self.patch_deployment(&live.deployment, patch).await?;
        let instance = self.instance(&live);
        self.wrote(instance.id, crate::watch::Kind::Deployment, live.deployment.version());
        Ok(instance)
    }

    /// What a change of power writes, and what speaks against it; `None` when the instance is like that already.
    pub(crate) fn power_change(&self, live: &Live, power: Power, stamp: &str) -> Result<Option<Value>> {
        refuse_deleting(live)?;
        let done = live.deployment.spec.template.metadata.annotations.get(RESTARTED_AT);
        if power == Power::Restart && done.is_some_and(|done| done == stamp) {
            return Ok(None);
        }
        let mut patch = power_patch(&self.instance(live).facts, power, stamp)?;
        if let (Power::Restart, Some(patch)) = (power, &mut patch)
            && let Some(strategy) = one_after_the_other(&live.deployment)
        {
            patch["spec"]["strategy"] = strategy;
        }
        if patch.is_some() && matches!(power, Power::Start | Power::Restart) {
            self.needs_claim(live)?;
        }
        Ok(patch)
    }

    /// Waits until no pod of the instance has a process any more; gives the pods that are left.
    async fn until_ended(&self, live: &Live) -> Result<Vec<PodView>> {
        let limit = self.wire.deadlines.termination.max(live.ending());
        let deployment = &live.deployment;
        let has_ended = |pods: &[PodView]| {
            let pods: Vec<&PodView> = pods.iter().collect();
            !crate::facts::facts(deployment, &pods, Timestamp::now()).any_live()
        };
        if has_ended(&live.pods) {
            return Ok(live.pods.clone());
        }
        let ended = self.until_pods(deployment, true, limit, has_ended).await?;
        ended.ok_or_else(|| {
            Error::new(
                ErrorKind::Timeout,
                format!("the process before has not ended within {} s", limit.as_secs()),
            )
            .with_retry(Retry::After(None))
            .with_advice("if its node is lost, make sure that the machine is off, and delete the pod by force")
        })
    }
}

/// What a change of power writes; `None` when the instance is like that already.
fn power_patch(facts: &Facts, power: Power, stamp: &str) -> Result<Option<Value>> {
    let Some(change) = decide_power(facts, power)? else {
        return Ok(None);
    };
    let mut annotations = Map::new();
    if let Some(transition) = change.transition {
        annotations.insert(TRANSITION.to_owned(), json!(transition.as_str()));
    }
    if change.hold != facts.hold {
        annotations.insert(HOLD.to_owned(), json!(change.hold.map(Hold::as_str)));
    }
    let mut patch = json!({"metadata": {}});
    if !annotations.is_empty() {
        patch["metadata"]["annotations"] = Value::Object(annotations);
    }
    if change.desired != facts.desired {
        patch["spec"]["replicas"] = json!(change.desired);
    }
    if power == Power::Restart {
        patch["spec"]["template"]["metadata"]["annotations"][RESTARTED_AT] = json!(stamp);
    }
    Ok(Some(patch))
}
