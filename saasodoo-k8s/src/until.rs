//! Waiting for pods to end, with looks that cost the server little.
//!
//! A list that must be as of now makes a server before Kubernetes 1.31 read all pods of the namespace. So in between its
//! cache is asked. What the cache says is a hint only: an old one may show a pod that has ended, or not yet show one that
//! was made. That nothing runs any more is believed only of a list as of now.

use std::time::Duration;

use saasodoo_core::Result;

use crate::backend::Inner;
use crate::views::{DeploymentView, PodView};
use crate::wire::{Fresh, POD, poll};

/// Every so many looks one is as of now, whatever the cache says: one that has lost touch would never say the end.
const EXACT_EVERY: u32 = 8;

/// Whose turn it is, the cache's or the storage's.
#[derive(Debug)]
pub(crate) struct Turns(u32);

impl Turns {
    /// `hint`: the cache may be asked first.
    pub(crate) const fn new(hint: bool) -> Self {
        Self(if hint { 1 } else { 0 })
    }

    /// True when the cache is to be asked before anything else.
    pub(crate) const fn next_is_hint(&mut self) -> bool {
        let hint = !self.0.is_multiple_of(EXACT_EVERY);
        self.0 = self.0.wrapping_add(1);
        hint
    }
}

impl Inner {
    /// Looks at the pods of a Deployment until `ended` is true of them as of now, and gives those; `None`: the time is
    /// up. `running`: some did not look ended when they were last seen.
    pub(crate) async fn until_pods(
        &self,
        deployment: &DeploymentView,
        running: bool,
        limit: Duration,
        ended: impl Fn(&[PodView]) -> bool + Send + Sync,
    ) -> Result<Option<Vec<PodView>>> {
        let selector = selector_text(deployment);
        let mut turns = Turns::new(running);
        poll(limit, || {
            let (hint, selector, ended) = (turns.next_is_hint(), &selector, &ended);
            async move {
                if hint {
                    let pods = self.wire.few::<PodView>(&POD, selector, Fresh::Cached).await?;
                    if !ended(&pods) {
                        return Ok(None);
                    }
                }
                let pods = self.wire.few::<PodView>(&POD, selector, Fresh::Now).await?;
                Ok(ended(&pods).then_some(pods))
            }
        })
        .await
    }
}

/// The selector of a Deployment's pods, as a list takes it.
pub(crate) fn selector_text(deployment: &DeploymentView) -> String {
    let labels = deployment.spec.selector.match_labels.iter();
    labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}
