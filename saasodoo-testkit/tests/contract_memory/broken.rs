//! Orchestrators that break one promise each.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, future};
use saasodoo_core::{
    BackendKind, Capabilities, Capability, CreateOptions, DataPolicy, DeleteOptions, Deleted, DynOrchestrator,
    EnsureOutcome, Ensured, Error, ErrorKind, Health, HealthState, Instance, InstanceChange, InstanceEvent,
    InstanceFilter, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, LogLine,
    LogOptions, Operation, Plan, Power, PurgeToken, Result, UpdateOptions,
};

/// What an orchestrator does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    SaysCreatedAgain,
    ReplacesOnConflict,
    LeavesGarbage,
    CreatesInTwoSteps,
    RollsBackTheTenantsData,
    UpdatesInTwoSteps,
    CleansUpTooMuch,
    AdoptsUnasked,
    IgnoresStopped,
    LosesAField,
    RestartsForNothing,
    ForgetsTheRest,
    IgnoresRevision,
    SwallowsRefusals,
    StartsOnUpdate,
    StartsTheSuspended,
    RestartsNothing,
    DeletesData,
    AnswersBeforeItIsGone,
    AcceptsAnyToken,
    DeletesNothing,
    FailsWhenGone,
    TakesErrorsForAbsence,
    ShowsSecrets,
    ReadsOldAnswers,
    TakesTwinsForOne,
    TakesCrashesForRunning,
    TakesProcessesForReady,
    ListsTwice,
    HidesTheBad,
    ListsBeforeAsked,
    IgnoresFilters,
    NeverSynced,
    ForgetsDeletions,
    WatchEnds,
    HidesStaleness,
    IgnoresTail,
    AbsentLogsAreEmpty,
    EndsInsteadOfFollowing,
    PlansByDoing,
    PlansNothing,
    IsNeverHealthy,
    ForgetsWhere,
    DoesWhatIsOff,
    Panics,
    Hangs,
}

/// Each flaw with the clause that must notice it.
pub(crate) const FLAWS: &[(Flaw, &str)] = &[
    (Flaw::SaysCreatedAgain, "create.second_with_equal_spec_is_unchanged"),
    (Flaw::ReplacesOnConflict, "create.second_with_other_spec_is_conflict"),
    (Flaw::LeavesGarbage, "create.taken_host_is_conflict"),
    (Flaw::LeavesGarbage, "create.rolls_back_exactly"),
    (Flaw::CreatesInTwoSteps, "create.dropped_future_is_all_or_nothing"),
    (
        Flaw::RollsBackTheTenantsData,
        "create.rollback_never_deletes_adopted_data",
    ),
    (Flaw::UpdatesInTwoSteps, "update.fails_whole_at_every_request"),
    (Flaw::UpdatesInTwoSteps, "update.dropped_future_is_all_or_nothing"),
    (Flaw::CleansUpTooMuch, "delete.never_loses_data_to_a_failure"),
    (Flaw::CleansUpTooMuch, "delete.lost_responses_are_made_up_for"),
    (Flaw::CreatesInTwoSteps, "create.rolls_back_at_every_request"),
    (Flaw::AdoptsUnasked, "create.over_retained_data_needs_adopt"),
    (Flaw::IgnoresStopped, "create.stopped_stays_stopped"),
    (Flaw::LosesAField, "create.every_field_is_kept"),
    (Flaw::RestartsForNothing, "update.same_values_are_unchanged"),
    (Flaw::ForgetsTheRest, "update.env_set_and_unset"),
    (Flaw::IgnoresRevision, "update.stale_revision_is_conflict"),
    (Flaw::SwallowsRefusals, "update.storage_never_shrinks"),
    (Flaw::SwallowsRefusals, "bad_input.update"),
    (Flaw::StartsOnUpdate, "update.while_stopped_stays_stopped"),
    (Flaw::StartsTheSuspended, "power.suspend_refuses_start"),
    (Flaw::RestartsNothing, "power.restart_replaces_the_process"),
    (Flaw::DeletesData, "delete.retains_data"),
    (Flaw::AnswersBeforeItIsGone, "delete.of_running_stops_it_first"),
    (Flaw::AcceptsAnyToken, "delete.foreign_token_is_refused"),
    (Flaw::AcceptsAnyToken, "delete.outdated_token_is_refused"),
    (Flaw::DeletesNothing, "create.makes_an_instance"),
    (Flaw::FailsWhenGone, "delete.twice_is_already_gone"),
    (Flaw::TakesErrorsForAbsence, "get.failed_read_is_no_absence"),
    (Flaw::ShowsSecrets, "get.secrets_are_withheld"),
    (Flaw::ReadsOldAnswers, "get.sees_own_writes"),
    (Flaw::TakesTwinsForOne, "isolation.equal_short_ids"),
    (Flaw::TakesCrashesForRunning, "status.crash_loop_is_error"),
    (Flaw::TakesProcessesForReady, "status.unready_is_not_running"),
    (Flaw::ListsTwice, "list.contains_what_exists"),
    (Flaw::HidesTheBad, "list.one_bad_object_does_not_hide_the_rest"),
    (Flaw::ListsBeforeAsked, "list.is_lazy"),
    (Flaw::IgnoresFilters, "list.filters"),
    (Flaw::IgnoresFilters, "watch.filters"),
    (Flaw::NeverSynced, "watch.snapshot_then_synced"),
    (Flaw::ForgetsDeletions, "watch.reports_delete"),
    (Flaw::WatchEnds, "watch.reports_changes"),
    (Flaw::HidesStaleness, "watch.survives_server_restart"),
    (Flaw::IgnoresTail, "logs.tail"),
    (Flaw::AbsentLogsAreEmpty, "logs.absent_is_not_found"),
    (Flaw::EndsInsteadOfFollowing, "logs.follow"),
    (Flaw::PlansByDoing, "plan.has_no_side_effects"),
    (Flaw::PlansNothing, "plan.names_the_fields"),
    (Flaw::IsNeverHealthy, "health.is_ready"),
    (Flaw::ForgetsWhere, "errors.name_operation_instance_and_backend"),
    (Flaw::DoesWhatIsOff, "capabilities.off_answers_unsupported"),
    (Flaw::DoesWhatIsOff, "update.storage_grows"),
    (Flaw::Panics, "create.makes_an_instance"),
    (Flaw::Hangs, "create.makes_an_instance"),
];

pub(crate) struct Broken {
    inner: DynOrchestrator,
    flaw: Flaw,
    seen: Mutex<BTreeMap<InstanceId, Instance>>,
}

impl Broken {
    pub(crate) fn new(inner: DynOrchestrator, flaw: Flaw) -> Arc<Self> {
        Arc::new(Self {
            inner,
            flaw,
            seen: Mutex::default(),
        })
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    async fn token(&self, id: InstanceId) -> Option<PurgeToken> {
        self.inner.plan(&Operation::Purge(id)).await.ok()?.purge_token
    }

    /// The id that a lookup by eight digits would find.
    async fn twin(&self, id: InstanceId) -> InstanceId {
        let all = self.inner.list_all(InstanceFilter::all()).await.unwrap_or_default();
        let mut twins = all
            .into_iter()
            .map(|instance| instance.id)
            .filter(|other| other.short() == id.short());
        twins.next().unwrap_or(id)
    }

    fn spoil(&self, mut instance: Instance) -> Instance {
        match self.flaw {
            Flaw::ShowsSecrets => {
                if let Some(database) = &mut instance.spec.database {
                    database.password = "database-password".into();
                }
            }
            Flaw::TakesCrashesForRunning if instance.status == InstanceStatus::Error => {
                instance.status = InstanceStatus::Running;
                instance.cause = None;
            }
            Flaw::TakesProcessesForReady if instance.facts.any_live() => instance.status = InstanceStatus::Running,
            _ => {}
        }
        instance
    }
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broken({:?})", self.flaw)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory that {:?}", self.flaw)
    }
}

#[async_trait]
impl InstanceOrchestrator for Broken {
    fn backend(&self) -> BackendKind {
        self.inner.backend()
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.inner.capabilities();
        if self.has(Flaw::DoesWhatIsOff) {
            return capabilities.without(Capability::StorageGrowth);
        }
        capabilities
    }

    async fn create(&self, spec: &InstanceSpec, mut options: CreateOptions) -> Result<Ensured> {
        assert!(!self.has(Flaw::Panics), "this one panics");
        let mut spec = spec.clone();
        match self.flaw {
            Flaw::IgnoresStopped => options.stopped = false,
            Flaw::LosesAField => spec.demo_data = false,
            Flaw::CreatesInTwoSteps => {
                let whole = InstanceChange::new().memory(spec.resources.memory);
                spec.resources.memory = saasodoo_core::Bytes::from_mib(32);
                self.inner.create(&spec, options).await?;
                let mut done = self.inner.update(spec.id, &whole, UpdateOptions::new()).await?;
                done.outcome = EnsureOutcome::Created;
                return Ok(done);
            }
            _ => {}
        }
        let answer = self.inner.create(&spec, options.clone()).await;
        match (self.flaw, answer) {
            (Flaw::SaysCreatedAgain, Ok(ensured)) => Ok(Ensured::new(EnsureOutcome::Created, ensured.instance)),
            (Flaw::ReplacesOnConflict, Err(error)) if error.kind() == ErrorKind::Conflict => {
                self.inner.delete(spec.id, DeleteOptions::retain()).await?;
                self.inner
                    .create(&spec, options.with_data(DataPolicy::AdoptRetained))
                    .await?;
                Err(error)
            }
            (Flaw::LeavesGarbage, Err(error)) if error.kind() == ErrorKind::Conflict => {
                let elsewhere = format!("garbage-{}", spec.id.short()).parse()?;
                let _ = self.inner.create(&spec.with_subdomain(elsewhere), options).await;
                Err(error)
            }
            (Flaw::RollsBackTheTenantsData, Err(error)) if options.data == DataPolicy::AdoptRetained => {
                if let Some(token) = self.token(spec.id).await {
                    self.inner.delete(spec.id, DeleteOptions::purge(token)).await?;
                }
                Err(error)
            }
            (Flaw::AdoptsUnasked, Err(error)) if error.kind() == ErrorKind::Conflict => {
                self.inner
                    .create(&spec, options.with_data(DataPolicy::AdoptRetained))
                    .await
            }
            (_, answer) => answer,
        }
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, mut options: UpdateOptions) -> Result<Ensured> {
        let mut change = change.clone();
        match self.flaw {
            Flaw::UpdatesInTwoSteps => {
                let first = change.memory.take();
                if let Some(memory) = first {
                    let first = InstanceChange::new().memory(memory);
                    self.inner.update(id, &first, UpdateOptions::new()).await?;
                }
            }
            Flaw::IgnoresRevision => options = UpdateOptions::new(),
            Flaw::ForgetsTheRest => {
                for name in self.inner.get(id).await?.spec.environment.into_keys() {
                    change.environment.entry(name).or_insert(None);
                }
            }
            _ => {}
        }
        let answer = self.inner.update(id, &change, options).await;
        match (self.flaw, answer) {
            (Flaw::RestartsForNothing, Ok(ensured)) => {
                let _ = self.inner.restart(id).await;
                Ok(ensured)
            }
            (Flaw::StartsOnUpdate, Ok(ensured)) => {
                self.inner.start(id).await?;
                Ok(ensured)
            }
            (Flaw::SwallowsRefusals, Err(_)) => Ok(Ensured::new(EnsureOutcome::Updated, self.inner.get(id).await?)),
            (_, answer) => answer,
        }
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        match (self.flaw, power) {
            (Flaw::StartsTheSuspended, Power::Start) => {
                self.inner.resume(id).await?;
            }
            (Flaw::RestartsNothing, Power::Restart) => return self.inner.get(id).await,
            _ => {}
        }
        self.inner.set_power(id, power).await
    }

    async fn delete(&self, id: InstanceId, mut options: DeleteOptions) -> Result<Deleted> {
        match self.flaw {
            Flaw::DeletesNothing => return Ok(Deleted::done(None, Vec::new())),
            Flaw::DeletesData => {
                let location = self
                    .inner
                    .get(id)
                    .await
                    .ok()
                    .and_then(|instance| instance.storage.location);
                let token = self.token(id).await;
                self.inner
                    .delete(id, token.map_or_else(DeleteOptions::retain, DeleteOptions::purge))
                    .await?;
                return Ok(Deleted::done(location, Vec::new()));
            }
            Flaw::AcceptsAnyToken if options.purge.is_some() => options.purge = self.token(id).await,
            Flaw::CleansUpTooMuch => {
                let answer = self.inner.delete(id, options).await;
                if answer.is_err()
                    && let Some(token) = self.token(id).await
                {
                    let _ = self.inner.delete(id, DeleteOptions::purge(token)).await;
                }
                return answer;
            }
            Flaw::AnswersBeforeItIsGone => {
                let location = self
                    .inner
                    .get(id)
                    .await
                    .ok()
                    .and_then(|instance| instance.storage.location);
                let inner = Arc::clone(&self.inner);
                tokio::spawn(async move { inner.delete(id, options).await });
                return Ok(Deleted::done(location, Vec::new()));
            }
            Flaw::FailsWhenGone => {
                self.inner.get(id).await?;
            }
            _ => {}
        }
        self.inner.delete(id, options).await
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        match self.flaw {
            Flaw::Hangs => return future::pending().await,
            Flaw::TakesTwinsForOne => return self.inner.get(self.twin(id).await).await,
            Flaw::TakesErrorsForAbsence => {
                return self.inner.get(id).await.map_err(|_| Error::not_found(id));
            }
            Flaw::ForgetsWhere => {
                let answer = self.inner.get(id).await;
                return answer.map_err(|error| Error::new(error.kind(), error.message()));
            }
            Flaw::ReadsOldAnswers => {
                let old = self.seen.lock().expect("the lock").get(&id).cloned();
                if let Some(old) = old {
                    return Ok(old);
                }
                let seen = self.inner.get(id).await?;
                self.seen.lock().expect("the lock").insert(id, seen.clone());
                return Ok(seen);
            }
            _ => {}
        }
        self.inner.get(id).await.map(|instance| self.spoil(instance))
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        match self.flaw {
            Flaw::IgnoresFilters => self.inner.list(InstanceFilter::all()),
            Flaw::ListsTwice => self.inner.list(filter.clone()).chain(self.inner.list(filter)).boxed(),
            Flaw::HidesTheBad => self
                .inner
                .list(filter)
                .filter(|answer| future::ready(answer.as_ref().is_ok_and(|instance| instance.unparsed.is_empty())))
                .boxed(),
            Flaw::ListsBeforeAsked => {
                let inner = Arc::clone(&self.inner);
                let early = tokio::spawn(async move { inner.list(filter).collect::<Vec<_>>().await });
                stream::once(async move { stream::iter(early.await.unwrap_or_default()) })
                    .flatten()
                    .boxed()
            }
            _ => self.inner.list(filter),
        }
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        let without = |unwanted: fn(&InstanceEvent) -> bool| {
            let events = self.inner.watch(filter.clone());
            events.filter(move |event| future::ready(!unwanted(event))).boxed()
        };
        match self.flaw {
            Flaw::IgnoresFilters => self.inner.watch(InstanceFilter::all()),
            Flaw::NeverSynced => without(|event| matches!(event, InstanceEvent::Synced)),
            Flaw::ForgetsDeletions => without(|event| matches!(event, InstanceEvent::Deleted(_))),
            Flaw::HidesStaleness => without(|event| matches!(event, InstanceEvent::Stale(_))),
            Flaw::WatchEnds => self.inner.watch(filter).take(2).boxed(),
            _ => self.inner.watch(filter),
        }
    }

    fn logs(&self, id: InstanceId, mut options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        match self.flaw {
            Flaw::IgnoresTail => options.tail = None,
            Flaw::EndsInsteadOfFollowing => options.follow = false,
            Flaw::AbsentLogsAreEmpty => {
                let lines = self.inner.logs(id, options);
                return lines.filter(|line| future::ready(line.is_ok())).boxed();
            }
            _ => {}
        }
        self.inner.logs(id, options)
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        match (self.flaw, operation) {
            (Flaw::PlansNothing, Operation::Update(..)) => return Ok(Plan::nothing(operation.instance())),
            (Flaw::PlansByDoing, Operation::Create(spec, options)) => {
                let _ = self.inner.create(spec, options.clone()).await;
            }
            _ => {}
        }
        self.inner.plan(operation).await
    }

    async fn health(&self) -> Health {
        let mut health = self.inner.health().await;
        if self.has(Flaw::IsNeverHealthy) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            health.push("mood", HealthState::Failed, "it is Monday");
        }
        health
    }
}
