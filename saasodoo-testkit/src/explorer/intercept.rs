//! Between the migration and the platforms: counts, causes mishaps, and watches.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use saasodoo_core::migration::Side;
use saasodoo_core::{
    BackendKind, Capabilities, CreateOptions, DeleteOptions, Deleted, EnsureOutcome, Ensured, Error, ErrorKind, Health,
    Instance, InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt,
    InstanceSpec, LogLine, LogOptions, Operation, Plan, Power, Result, UpdateOptions,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::orders::{Orders, THEIRS};
use super::schedule::{Deed, Mishap, Planned};
use crate::memory::{MemoryOrchestrator, Trouble, Violation};

/// Both platforms, and everything that is known about one run of a schedule.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) source: MemoryOrchestrator,
    pub(super) target: MemoryOrchestrator,
    pub(super) spec: InstanceSpec,
    pub(super) crash: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Points passed.
    pub(super) point: u32,
    mishaps: Vec<Planned>,
    /// Until when a platform cannot be reached.
    outages: BTreeMap<&'static str, Instant>,
    /// Counts deeds and looks, to tell which came first.
    tick: u64,
    pub(super) looked: BTreeMap<&'static str, u64>,
    /// What was ordered on the source before that has to be seen before it is stopped.
    must_see: u64,
    /// When somebody else last did something on a side, and what.
    deeds: BTreeMap<&'static str, (u64, Deed)>,
    /// Somebody else has opened a side, and the migration has not seen it closed since.
    opened: BTreeMap<&'static str, u64>,
    /// The look at which the tenant was seen at home: running on the source again, or committed on the target.
    pub(super) arrived: BTreeMap<&'static str, u64>,
    /// Sides whose instance is not found, though it is there.
    not_found: Vec<Side>,
    /// Where visitors are sent.
    pub(super) routed_to_target: bool,
    /// It was committed at some time.
    pub(super) committed: bool,
    /// Somebody has changed the target since then.
    pub(super) changed: bool,
    /// The operator has accepted that this is lost.
    pub(super) lose_changes: bool,
    /// What somebody else has ordered.
    pub(super) orders: Orders,
    /// When somebody else has made an instance of theirs on the target.
    made_by_others: Option<u64>,
    /// So many violations have been judged.
    violations: usize,
    /// What happened and what was seen, whatever it is called in the schedule: two schedules with the same of it are the
    /// same one.
    pub(super) behaviour: Vec<String>,
    /// What must not be.
    pub(super) broken: Vec<String>,
    /// What happened at each point, for people.
    pub(super) story: Vec<String>,
}

impl Stage {
    pub(super) fn new(
        source: MemoryOrchestrator,
        target: MemoryOrchestrator,
        spec: InstanceSpec,
        mishaps: Vec<Planned>,
    ) -> Self {
        Self {
            source,
            target,
            spec,
            crash: Notify::new(),
            state: Mutex::new(State {
                mishaps,
                ..State::default()
            }),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn side(&self, side: Side) -> &MemoryOrchestrator {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    pub(super) fn id(&self) -> InstanceId {
        self.spec.id
    }

    /// Whether a side can write now, or shall.
    pub(super) async fn is_open(&self, side: Side) -> bool {
        self.observe(side)
            .await
            .is_some_and(|instance| instance.facts.desired > 0 || instance.facts.any_live())
    }

    pub(super) async fn observe(&self, side: Side) -> Option<Instance> {
        self.side(side).get(self.id()).await.ok()
    }

    /// Two writers are nobody's fault but ours, unless somebody else has opened the side of one of them and it was not seen
    /// closed since.
    pub(super) fn judge_violations(&self) {
        let violations = self.source.violations();
        let mut state = self.state();
        let opened = |side: Side| {
            state
                .opened
                .contains_key(side.as_str())
                .then(|| self.side(side).backend())
        };
        let theirs: Vec<BackendKind> = [Side::Source, Side::Target].into_iter().filter_map(opened).collect();
        let explained = |violation: &Violation| match violation {
            Violation::TwoWriters { writers, .. } => writers.iter().any(|writer| theirs.contains(&writer.backend)),
            _ => false,
        };
        let new = violations.iter().skip(state.violations);
        let new: Vec<String> = new.filter(|new| !explained(new)).map(ToString::to_string).collect();
        state.violations = violations.len();
        state.broken.extend(new);
    }

    /// The migration has seen that a side is closed: whoever opens it from now on is judged anew.
    fn saw_closed(&self, side: Side) {
        self.judge_violations();
        self.state().opened.remove(side.as_str());
    }

    /// The operator sees to the platforms.
    pub(super) fn end_troubles(&self) {
        for side in [Side::Source, Side::Target] {
            self.side(side).clear(self.id());
        }
        self.state().not_found.clear();
    }

    pub(super) fn visitors_at(&self) -> Side {
        if self.state().routed_to_target {
            Side::Target
        } else {
            Side::Source
        }
    }

    pub(super) fn behave(&self, what: String) {
        self.state().behaviour.push(what);
    }

    /// Both sides open is the end, unless somebody else has opened one of them.
    pub(super) async fn check(&self, after: &str) {
        self.judge_violations();
        if self.is_open(Side::Source).await && self.is_open(Side::Target).await {
            let mut state = self.state();
            if state.opened.is_empty() {
                let point = state.point;
                state
                    .broken
                    .push(format!("both sides are open after {after} (point {point})"));
            }
        }
    }

    /// Before the migration starts a side: the other one must be closed, as far as it can know.
    async fn check_start(&self, side: Side) {
        let other = side.other();
        if !self.is_open(other).await {
            return;
        }
        let mut state = self.state();
        let looked = state.looked.get(other.as_str()).copied().unwrap_or(0);
        let opened = state.opened.get(other.as_str()).copied();
        if opened.is_none_or(|opened| opened < looked) {
            let point = state.point;
            state.broken.push(format!(
                "the {side} is started while the {other} is open (point {point})"
            ));
        }
    }

    /// Before the migration deletes the target: what somebody else has made there, and it has seen, is not its to delete.
    async fn check_delete(&self, side: Side) {
        if side == Side::Source || self.observe(side).await.is_none_or(|there| !is_theirs(&there)) {
            return;
        }
        let mut state = self.state();
        let looked = state.looked.get(side.as_str()).copied().unwrap_or(0);
        if state.made_by_others.is_some_and(|made| made < looked) {
            let point = state.point;
            let what = format!("what somebody else has made on the {side} is deleted (point {point})");
            state.broken.push(what);
        }
    }

    /// The migration comes to stop the source: whatever was ordered there until now it has to see before it does.
    pub(super) async fn comes_to_stop(&self, is_touched: bool) {
        let up = |there: Instance| there.facts.desired > 0 && there.facts.hold.is_none();
        if is_touched && !self.observe(Side::Source).await.is_some_and(up) {
            return;
        }
        let mut state = self.state();
        state.tick += 1;
        state.must_see = state.tick;
    }

    /// Before the migration stops the source: what was ordered before its last look there must not be lost.
    fn check_stop(&self) {
        let mut state = self.state();
        let looked = state.looked.get(Side::Source.as_str()).copied().unwrap_or(0);
        let seen = looked.max(state.must_see);
        state.orders.source_is_stopped(seen);
    }

    /// Whether somebody else has opened a side that the migration has not seen closed since.
    pub(super) fn is_opened_by_others(&self, side: Side) -> bool {
        self.state().opened.contains_key(side.as_str())
    }

    /// What somebody else did on a side after the migration last looked there.
    pub(super) fn unseen_deed(&self, side: Side) -> Option<Deed> {
        let state = self.state();
        let looked = state.looked.get(side.as_str()).copied().unwrap_or(0);
        let (at, deed) = state.deeds.get(side.as_str())?;
        (*at > looked).then_some(*deed)
    }

    /// Whether somebody else did something on a side after the tenant had arrived there.
    pub(super) fn deed_after_arrival(&self, side: Side) -> bool {
        let state = self.state();
        let deed = state.deeds.get(side.as_str()).map(|(at, _)| *at);
        let arrived = state.arrived.get(side.as_str()).copied();
        deed.zip(arrived).is_some_and(|(deed, arrived)| deed > arrived)
    }

    /// Whether somebody else has ever done this on a side.
    pub(super) fn did(&self, side: Side, deed: Deed) -> bool {
        let state = self.state();
        state.deeds.get(side.as_str()).is_some_and(|(_, done)| *done == deed)
    }

    /// The next point: its mishap, if one is planned there.
    pub(super) async fn arrive(&self, what: &str) -> Option<Mishap> {
        let mishap = {
            let mut state = self.state();
            state.point += 1;
            let point = state.point;
            let at = state.mishaps.iter().position(|planned| planned.point <= point);
            let mishap = at.map(|at| state.mishaps.remove(at).mishap);
            state.behaviour.push(what.to_owned());
            if let Some(mishap) = mishap {
                state.story.push(format!("{point}: {what}: {mishap:?}"));
            } else {
                state.story.push(format!("{point}: {what}"));
            }
            mishap
        };
        match mishap {
            Some(Mishap::Competitor(side, deed)) => {
                self.compete(side, deed).await;
                None
            }
            Some(Mishap::NodeLost(side)) => {
                self.side(side).cause(self.id(), Trouble::NodeLost);
                None
            }
            Some(Mishap::Unready(side)) => {
                self.side(side).cause(self.id(), Trouble::Unready);
                None
            }
            Some(Mishap::CrashLoop(side)) => {
                self.side(side).cause(self.id(), Trouble::CrashLoop { exit_code: 1 });
                None
            }
            Some(Mishap::NotFound(side)) => {
                let mut state = self.state();
                state.not_found.push(side);
                state.orders.forget_target();
                None
            }
            other => other,
        }
    }

    /// Somebody else acts. What the platform refuses them has not happened.
    pub(super) async fn compete(&self, side: Side, deed: Deed) {
        let platform = self.side(side);
        let id = self.id();
        let was_open = self.is_open(side).await;
        let done = match deed {
            Deed::Start => platform.start(id).await.is_ok(),
            Deed::Resume => platform.resume(id).await.is_ok(),
            Deed::ForceStart => platform.resume(id).await.is_ok() && platform.start(id).await.is_ok(),
            Deed::Stop => platform.stop(id).await.is_ok(),
            Deed::Suspend => platform.suspend(id).await.is_ok(),
            Deed::Delete => {
                let platform = platform.clone();
                tokio::spawn(async move { platform.delete(id, DeleteOptions::retain()).await });
                tokio::task::yield_now().await;
                true
            }
            Deed::CreateOther => {
                let spec = self.spec.clone().with_display_name(THEIRS);
                platform.create(&spec, CreateOptions::new().stopped()).await.is_ok()
            }
            Deed::Change => match "saasodoo/odoo-stub:18".parse() {
                Ok(image) => {
                    let change = InstanceChange::new().image(image);
                    let updated = platform.update(id, &change, UpdateOptions::new()).await;
                    updated.is_ok_and(|ensured| ensured.outcome != EnsureOutcome::Unchanged)
                }
                Err(_) => false,
            },
        };
        self.behave(format!("{deed:?} on the {side}: {done}"));
        if done {
            let opened = !was_open && self.is_open(side).await;
            let left = self.observe(side).await;
            self.remember(side, deed, opened, left.as_ref());
        }
        self.check("somebody else's deed").await;
    }
}

impl Stage {
    fn remember(&self, side: Side, deed: Deed, opened: bool, left: Option<&Instance>) {
        let mut state = self.state();
        state.tick += 1;
        let tick = state.tick;
        state.deeds.insert(side.as_str(), (tick, deed));
        if opened && matches!(deed, Deed::Start | Deed::ForceStart) {
            state.opened.insert(side.as_str(), tick);
        }
        if deed == Deed::Change && side == Side::Target && state.committed {
            state.changed = true;
        }
        if deed == Deed::CreateOther && side == Side::Target {
            state.made_by_others = Some(tick);
        }
        state.orders.given(side, deed, left, tick);
    }
}

fn is_theirs(instance: &Instance) -> bool {
    instance.spec.display_name == THEIRS
}

/// The process that runs the migration is gone: whatever it was doing ends here.
pub(super) async fn die<T>(stage: &Stage) -> T {
    stage.behave("died".to_owned());
    stage.crash.notify_one();
    std::future::pending().await
}

fn lost() -> Error {
    Error::new(ErrorKind::Timeout, "the answer was lost")
}

/// A platform as the migration sees it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) stage: Arc<Stage>,
    pub(super) side: Side,
}

impl Seen {
    fn platform(&self) -> &MemoryOrchestrator {
        self.stage.side(self.side)
    }

    /// A call with its mishap. `call` is what the platform does; it may be done later, or by nobody's order any more.
    async fn call<T, F, Fut>(&self, what: &str, looks: bool, call: F) -> Result<T>
    where
        F: FnOnce(MemoryOrchestrator) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        let stage = &self.stage;
        let what = format!("{what} on the {}", self.side);
        let mishap = stage.arrive(&what).await;
        let until = stage.state().outages.get(self.side.as_str()).copied();
        if until.is_some_and(|until| Instant::now() < until) {
            stage.behave("unreachable".to_owned());
            return Err(Error::new(ErrorKind::Unavailable, "the platform cannot be reached"));
        }
        if stage.state().not_found.contains(&self.side) {
            stage.behave("not found".to_owned());
            return Err(Error::not_found(stage.id()));
        }
        let platform = self.platform().clone();
        match mishap {
            Some(Mishap::CrashBefore) => return die(stage).await,
            Some(Mishap::CrashAfter) => {
                let done = call(platform).await.is_ok();
                stage.behave(format!("done: {done}"));
                stage.check(&what).await;
                return die(stage).await;
            }
            Some(Mishap::CrashAndLate(by)) => {
                self.later(what, by, platform, call);
                return die(stage).await;
            }
            Some(Mishap::Late(by)) => {
                self.later(what, by, platform, call);
                return Err(lost());
            }
            Some(mishap @ (Mishap::Fails | Mishap::Refused)) => {
                stage.behave(mishap.error_kind().to_string());
                return Err(Error::new(mishap.error_kind(), "a mishap"));
            }
            Some(Mishap::Outage(length)) => {
                let until = Instant::now() + length;
                stage.state().outages.insert(self.side.as_str(), until);
                stage.behave("unreachable".to_owned());
                return Err(Error::new(ErrorKind::Unavailable, "the platform cannot be reached"));
            }
            _ => {}
        }
        let answer = call(platform).await;
        if looks {
            let mut state = stage.state();
            state.tick += 1;
            let tick = state.tick;
            state.looked.insert(self.side.as_str(), tick);
        } else {
            stage.check(&what).await;
        }
        match mishap {
            Some(Mishap::LostAnswer) => {
                stage.behave("lost".to_owned());
                Err(lost())
            }
            Some(Mishap::Slow(by)) => {
                tokio::time::sleep(by).await;
                answer
            }
            _ => answer,
        }
    }

    /// The request is on its way, whoever has sent it.
    fn later<T, F, Fut>(&self, what: String, by: Duration, platform: MemoryOrchestrator, call: F)
    where
        F: FnOnce(MemoryOrchestrator) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        let stage = Arc::clone(&self.stage);
        stage.behave("no answer".to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(by).await;
            let done = call(platform).await.is_ok();
            stage.state().story.push(format!("late: {what}"));
            stage.behave(format!("late: {what}: {done}"));
            stage.check(&format!("a late {what}")).await;
        });
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.platform().fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl InstanceOrchestrator for Seen {
    fn backend(&self) -> BackendKind {
        self.platform().backend()
    }

    fn capabilities(&self) -> Capabilities {
        self.platform().capabilities()
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        let spec = spec.clone();
        self.call("create", false, |platform| async move {
            platform.create(&spec, options).await
        })
        .await
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        let change = change.clone();
        self.call("update", false, move |platform| async move {
            platform.update(id, &change, options).await
        })
        .await
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        if power == Power::Start {
            self.stage.check_start(self.side).await;
        }
        if power == Power::Suspend && self.side == Side::Source {
            self.stage.check_stop();
        }
        self.call(power.as_str(), false, move |platform| async move {
            platform.set_power(id, power).await
        })
        .await
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        self.stage.check_delete(self.side).await;
        self.call("delete", false, move |platform| async move {
            platform.delete(id, options).await
        })
        .await
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        let answer = self
            .call("get", true, move |platform| async move { platform.get(id).await })
            .await;
        match &answer {
            Ok(seen) => {
                let facts = &seen.facts;
                let live = facts.any_live();
                self.stage.behave(format!(
                    "{} {} {:?} {live} {}",
                    seen.status, facts.desired, facts.hold, seen.spec.image
                ));
                if facts.desired == 0 && !live {
                    self.stage.saw_closed(self.side);
                }
            }
            Err(error) => self.stage.behave(error.kind().to_string()),
        }
        answer
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        self.platform().list(filter)
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        self.platform().watch(filter)
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        self.platform().logs(id, options)
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        let operation = operation.clone();
        self.call(
            "plan",
            false,
            move |platform| async move { platform.plan(&operation).await },
        )
        .await
    }

    async fn health(&self) -> Health {
        let answer = self
            .call("health", false, |platform| async move { Ok(platform.health().await) })
            .await;
        answer.unwrap_or_else(|error| {
            let mut health = Health::new(self.backend(), jiff::Timestamp::now());
            health.push("reachable", saasodoo_core::HealthState::Failed, error.to_string());
            health
        })
    }
}
