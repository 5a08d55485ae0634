//! The journal and the hooks as the migration sees them.

use std::sync::Arc;

use async_trait::async_trait;
use saasodoo_core::migration::{Entry, Event, Journal, Probe, Record, RouteSwitch, Side, Signal, Step};
use saasodoo_core::{Error, ErrorKind, Instance, InstanceId, OperationKind, Result, Retry};

use super::intercept::{Stage, State, die};
use super::schedule::Mishap;

/// The journal as the migration sees it: its entries are points too.
#[derive(Debug)]
pub(super) struct SeenJournal {
    pub(super) stage: Arc<Stage>,
    pub(super) inner: Arc<dyn Journal>,
}

impl SeenJournal {
    async fn write(&self, entry: &Entry, after: &Record) -> Result<()> {
        self.inner.append(entry, after).await?;
        self.stage.state().orders.written(entry, after);
        if let Event::StepBegan { step: Step::StopSource } = entry.event {
            self.stage.comes_to_stop(after.source_touched).await;
        }
        let commits = matches!(
            entry.event,
            Event::StepEnded {
                step: Step::Commit,
                signal: Signal::Done,
                ..
            }
        );
        if commits && let Some(target) = self.stage.observe(Side::Target).await {
            let mut state = self.stage.state();
            if let Some(wanted) = state.orders.lost_by_commit(&target) {
                let what = format!("{wanted:?} was ordered on the source before it was stopped, and is lost");
                state.broken.push(what);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Journal for SeenJournal {
    async fn load(&self, instance: InstanceId) -> Result<Option<Record>> {
        self.inner.load(instance).await
    }

    async fn load_all(&self) -> Result<Vec<Record>> {
        self.inner.load_all().await
    }

    async fn append(&self, entry: &Entry, after: &Record) -> Result<()> {
        if let Event::StepEnded {
            step: Step::Committed,
            signal: Signal::Rollback,
            ..
        } = &entry.event
        {
            let unseen = self.stage.unseen_deed(Side::Target).is_some();
            let image = |instance: Option<Instance>| instance.map(|instance| instance.spec.image);
            let on_source = image(self.stage.observe(Side::Source).await);
            // What was changed on a target that is deleted went with it, as the operator who accepts that knows.
            let on_target = image(self.stage.observe(Side::Target).await);
            let differs = on_target.is_some() && on_source != on_target;
            let mut state = self.stage.state();
            if state.changed && differs && !state.lose_changes && !unseen {
                state
                    .broken
                    .push("what was changed since the commit is lost without a word".to_owned());
            }
        }
        self.stage.state().committed |= after.step == Step::Committed;
        let arrived = match (after.step, &entry.event) {
            (Step::RestoreRoute, Event::StepEnded { .. }) => Some(Side::Source),
            (Step::Committed, _) => Some(Side::Target),
            _ => None,
        };
        if let Some(side) = arrived {
            let mut state = self.stage.state();
            let looked = state.looked.get(side.as_str()).copied().unwrap_or(0);
            state.arrived.entry(side.as_str()).or_insert(looked);
        }
        let failed = |retry| {
            Err(Error::new(ErrorKind::Unavailable, "the journal does not take it")
                .with_operation(OperationKind::Migrate)
                .with_retry(retry))
        };
        match self.stage.arrive(&format!("journal {:?}", after.step)).await {
            Some(Mishap::CrashBefore) => die(&self.stage).await,
            Some(Mishap::CrashAfter | Mishap::CrashAndLate(_)) => {
                self.write(entry, after).await?;
                die(&self.stage).await
            }
            Some(Mishap::LostAnswer | Mishap::Late(_)) => {
                self.write(entry, after).await?;
                failed(Retry::OutcomeUnknown)
            }
            Some(Mishap::Fails | Mishap::Refused | Mishap::Outage(_)) => failed(Retry::After(None)),
            Some(Mishap::Slow(by)) => {
                tokio::time::sleep(by).await;
                self.write(entry, after).await
            }
            _ => self.write(entry, after).await,
        }
    }
}

/// The hooks as the migration sees them: each call is a point.
#[derive(Debug)]
pub(super) struct Hooks(pub(super) Arc<Stage>);

impl Hooks {
    /// `done` is what the call does, if it gets there.
    async fn call(&self, what: &str, done: impl FnOnce(&mut State) + Send) -> Result<()> {
        let stage = &self.0;
        let failed = || Err(Error::new(ErrorKind::Unavailable, "the hook fails"));
        match stage.arrive(what).await {
            Some(Mishap::CrashBefore) => die(stage).await,
            Some(Mishap::CrashAfter | Mishap::CrashAndLate(_)) => {
                done(&mut stage.state());
                die(stage).await
            }
            Some(Mishap::Fails | Mishap::Refused | Mishap::Late(_) | Mishap::Outage(_)) => {
                stage.behave("fails".to_owned());
                failed()
            }
            Some(Mishap::LostAnswer) => {
                done(&mut stage.state());
                stage.behave("fails".to_owned());
                failed()
            }
            Some(Mishap::Slow(by)) => {
                tokio::time::sleep(by).await;
                stage.behave("slow".to_owned());
                done(&mut stage.state());
                Ok(())
            }
            _ => {
                done(&mut stage.state());
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Probe for Hooks {
    async fn probe(&self, _instance: &Instance) -> Result<()> {
        self.call("the probe", |_| {}).await
    }
}

#[async_trait]
impl RouteSwitch for Hooks {
    async fn switch(&self, _instance: &Instance, to: Side) -> Result<()> {
        let target = to == Side::Target;
        self.call(&format!("visitors to the {to}"), |state| {
            state.routed_to_target = target
        })
        .await
    }
}
