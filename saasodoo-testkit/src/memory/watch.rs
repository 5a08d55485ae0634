//! Following the simulation: changes as they happen, also those that only time brings.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use saasodoo_core::{Instance, InstanceEvent, InstanceFilter, InstanceId, OperationKind, Staleness};
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use super::MemoryOrchestrator;
use super::clock::Moment;
use super::fault::{Call, Fault};
use super::world::News;

/// A watch that failed is taken up again after this.
const RECONNECT: Duration = Duration::from_secs(1);

struct Watch {
    memory: MemoryOrchestrator,
    filter: InstanceFilter,
    link: Link,
    ready: VecDeque<InstanceEvent>,
    /// What the receiver believes.
    known: BTreeMap<InstanceId, Instance>,
}

enum Link {
    New,
    Up(mpsc::UnboundedReceiver<News>),
    Down { until: Moment },
}

pub(super) fn watch(memory: MemoryOrchestrator, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
    let watch = Watch {
        memory,
        filter,
        link: Link::New,
        ready: VecDeque::new(),
        known: BTreeMap::new(),
    };
    stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await;
        Some((event, watch))
    })
    .boxed()
}

impl Watch {
    async fn next(&mut self) -> InstanceEvent {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            match &mut self.link {
                Link::New => self.begin().await,
                Link::Down { until } => {
                    let until = *until;
                    sleep_until(self.memory.instant(until)).await;
                    self.connect();
                }
                Link::Up(news) => match news.try_recv() {
                    Ok(news) => self.hear(news),
                    Err(_) => {
                        if let Some(news) = wait_for_news(&self.memory, news).await {
                            self.hear(news);
                        }
                    }
                },
            }
        }
    }

    async fn begin(&mut self) {
        let id = super::only_id(&self.filter);
        let fault = self.memory.arrive(Call::new(OperationKind::Watch, id)).await;
        match fault {
            // A watch has no error to answer with: it tells that it is out of touch and tries again.
            Some(Fault::Fail(kind)) => self.lose(RECONNECT, &format!("a planned fault: {kind}")),
            Some(Fault::LoseResponse) => self.lose(RECONNECT, "a planned fault: the answer was lost"),
            Some(Fault::HangAfter) => std::future::pending().await,
            Some(Fault::DelayResponse(by)) => {
                tokio::time::sleep(by).await;
                self.connect();
            }
            _ => self.connect(),
        }
    }

    fn lose(&mut self, after: Duration, reason: &str) {
        let (until, now) = self.memory.read(|world, _, at| (at + after, world.stamp(at)));
        self.link = Link::Down { until };
        self.ready.push_back(InstanceEvent::Stale(Staleness::new(now, reason)));
    }

    /// Takes everything in as it is now, and listens from here on.
    fn connect(&mut self) {
        let filter = &self.filter;
        let connected = self.memory.read(|world, volumes, at| {
            if world.watch_down_until > at {
                return Err(world.watch_down_until);
            }
            Ok((world.observe_all(filter, at, volumes), world.subscribe()))
        });
        let (instances, news) = match connected {
            Ok(connected) => connected,
            Err(until) => {
                if matches!(self.link, Link::New) {
                    let now = self.memory.read(|world, _, at| world.stamp(at));
                    let reason = "the simulation's watches are cut off";
                    self.ready.push_back(InstanceEvent::Stale(Staleness::new(now, reason)));
                }
                self.link = Link::Down { until };
                return;
            }
        };
        let mut gone = std::mem::take(&mut self.known);
        for instance in instances {
            if gone
                .remove(&instance.id)
                .is_none_or(|before| differs(&before, &instance))
            {
                self.ready.push_back(InstanceEvent::Applied(Box::new(instance.clone())));
            }
            self.known.insert(instance.id, instance);
        }
        self.ready
            .extend(gone.into_values().map(|last| InstanceEvent::Deleted(Box::new(last))));
        self.ready.push_back(InstanceEvent::Synced);
        self.link = Link::Up(news);
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Seen(instance) if self.filter.matches(&instance) => {
                let id = instance.id;
                if self.known.get(&id).is_none_or(|before| differs(before, &instance)) {
                    self.ready
                        .push_back(InstanceEvent::Applied(Box::new((*instance).clone())));
                    self.known.insert(id, (*instance).clone());
                }
            }
            News::Seen(instance) | News::Gone(instance) => {
                if self.known.remove(&instance.id).is_some() {
                    self.ready
                        .push_back(InstanceEvent::Deleted(Box::new((*instance).clone())));
                }
            }
            News::Lost { until, reason } => {
                let now = self.memory.read(|world, _, at| world.stamp(at));
                self.ready.push_back(InstanceEvent::Stale(Staleness::new(now, reason)));
                self.link = Link::Down { until };
            }
        }
    }
}

/// What is heard next; `None` when time itself may have brought a change, or when somebody changed the schedule.
async fn wait_for_news(memory: &MemoryOrchestrator, news: &mut mpsc::UnboundedReceiver<News>) -> Option<News> {
    let mut changes = memory.changes();
    let due = memory.due();
    tokio::select! {
        biased;
        heard = news.recv() => heard,
        () = memory.until_due(due) => None,
        _ = changes.changed() => None,
    }
}

/// Whether the receiver has to hear of it: time goes by and data grows without that being a change.
fn differs(before: &Instance, after: &Instance) -> bool {
    let still = |instance: &Instance| {
        let mut instance = instance.clone();
        instance.facts.observed_at = jiff::Timestamp::UNIX_EPOCH;
        instance.provenance.observed_at = jiff::Timestamp::UNIX_EPOCH;
        instance.storage.used = None;
        instance
    };
    still(before) != still(after)
}
