//! Hooks that hang, fail or panic, and budgets and clocks that are not what one expects.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use saasodoo_core::migration::{
    Clock, KnownSecrets, MemoryJournal, PreflightCheck, Probe, RouteSwitch, SecretSource, Side, Step, Wave, WaveOptions,
};
use saasodoo_core::{
    DeleteOptions, Error, ErrorKind, HealthCheck, Instance, InstanceOrchestratorExt as _, InstanceStatus,
    OperationKind, Result,
};
use saasodoo_testkit::memory::{Fault, FaultPlan};
use tokio::time::Instant;

use super::*;

/// Hangs once it is told to.
#[derive(Debug)]
struct Hangs(AtomicBool, KnownSecrets);

impl Hangs {
    fn new(spec: &InstanceSpec, from_the_start: bool) -> Arc<Self> {
        Arc::new(Self(AtomicBool::new(from_the_start), KnownSecrets::of([spec.clone()])))
    }

    async fn wait(&self) {
        if self.0.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl SecretSource for Hangs {
    async fn complete(&self, spec: InstanceSpec) -> Result<InstanceSpec> {
        self.wait().await;
        self.1.complete(spec).await
    }
}

#[async_trait]
impl PreflightCheck for Hangs {
    async fn check(&self, _: &Instance, _: &InstanceSpec) -> Vec<HealthCheck> {
        self.wait().await;
        Vec::new()
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_of_secrets_or_a_check_that_hangs_is_given_up() {
    for secrets in [true, false] {
        let (scenario, spec, _) = one().await;
        let (builder, hook) = (scenario.migrator().config(quick()), Hangs::new(&spec, true));
        let migrator = match secrets {
            true => builder.secrets(hook),
            false => builder.preflight_check(hook),
        };
        let record = migrate(&migrator.build(), spec.id).await;
        assert_eq!(record.step, Step::RolledBack, "secrets: {secrets}");
        let why = record.failure.expect("a reason");
        assert_eq!(why.step, Step::Preflight);
        assert!(why.message.contains("130s"), "{}", why.message);
        let status = scenario.old.status(spec.id).await.expect("read");
        assert_eq!(status, InstanceStatus::Running);
    }
}

/// The source's objects are made again, and the tenant is down until then.
#[tokio::test(start_paused = true)]
async fn a_source_of_secrets_that_hangs_while_a_tenant_is_down_is_told() {
    let (scenario, spec, _) = one().await;
    let hook = Hangs::new(&spec, false);
    let migrator = scenario.migrator().config(quick()).secrets(hook.clone()).build();
    assert_eq!(migrate(&migrator, spec.id).await.step, Step::Committed);
    let deleted = scenario.old.delete(spec.id, DeleteOptions::retain()).await;
    deleted.expect("deleted");
    hook.0.store(true, Ordering::SeqCst);
    let force = Force::none().accept_absent(Side::Source);
    let began = Instant::now();
    let error = migrator.rollback_with(spec.id, force).await.expect_err("no secrets");
    assert!(error.message().contains("the secrets cannot be had"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(600), "{:?}", began.elapsed());

    hook.0.store(false, Ordering::SeqCst);
    let force = Force::none().accept_absent(Side::Source);
    let back = migrator.resume_with(spec.id, force, &Control::new()).await;
    assert_eq!(back.expect("back").step, Step::RolledBack);
}

/// A DNS service that refuses, and counts its callers.
#[derive(Debug, Default)]
struct Refuses(Mutex<Vec<Instant>>);

#[async_trait]
impl RouteSwitch for Refuses {
    async fn switch(&self, _: &Instance, to: Side) -> Result<()> {
        if to == Side::Source {
            return Ok(());
        }
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Instant::now());
        Err(Error::new(ErrorKind::Unavailable, "exit status: 7"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_hook_that_fails_is_called_less_and_less_often() {
    let (scenario, spec, _) = one().await;
    let hook = Arc::new(Refuses::default());
    let migrator = scenario.migrator().config(quick()).route(hook.clone()).build();
    let record = migrate(&migrator, spec.id).await;
    assert_eq!(record.step, Step::RolledBack);
    let why = record.failure.expect("a reason").message;
    assert!(
        why.contains("the route is not switched to the target: exit status: 7"),
        "{why}"
    );
    let calls = hook.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let pauses: Vec<Duration> = calls.windows(2).map(|two| two[1] - two[0]).collect();
    assert!((10..25).contains(&calls.len()), "{}", calls.len());
    assert!(pauses[0] < Duration::from_millis(400), "{pauses:?}");
    assert!(pauses.windows(2).all(|two| two[0] <= two[1]), "{pauses:?}");
    assert_eq!(pauses.last().map(Duration::as_secs), Some(5), "{pauses:?}");
}

#[derive(Debug)]
struct Panics(InstanceId);

#[async_trait]
impl Probe for Panics {
    async fn probe(&self, instance: &Instance) -> Result<()> {
        assert!(instance.id != self.0, "a bug in the hook");
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_takes_no_other_tenant_down() {
    let scenario = Scenario::with_fleet(6).await.expect("tenants");
    let ids: Vec<InstanceId> = scenario.specs.iter().map(|spec| spec.id).collect();
    let migrator = scenario
        .migrator()
        .config(quick())
        .probe(Arc::new(Panics(ids[1])))
        .build();
    let wave = Wave::new(&migrator, WaveOptions::default())
        .run(&ids, &Control::new())
        .await;
    let summary = wave.expect("a summary");
    assert_eq!((summary.committed.len(), summary.halted.len()), (5, 1), "{summary}");
    assert!(
        summary.halted[&ids[1]].contains("a panic: a bug in the hook"),
        "{summary}"
    );

    let repaired = scenario.migrator().config(quick()).build();
    assert_eq!(migrate(&repaired, ids[1]).await.step, Step::Committed);
}

#[tokio::test(start_paused = true)]
async fn a_budget_may_be_without_limit() {
    type Budget = fn(&mut MigrationConfig) -> &mut Duration;
    let budgets: [(&str, Budget); 10] = [
        ("call", |config| &mut config.call),
        ("doubt", |config| &mut config.doubt),
        ("retry", |config| &mut config.retry),
        ("stop", |config| &mut config.stop),
        ("storage", |config| &mut config.storage),
        ("ready", |config| &mut config.ready),
        ("probe", |config| &mut config.probe),
        ("probe_attempt", |config| &mut config.probe_attempt),
        ("rollback_window", |config| &mut config.rollback_window),
        ("expected_downtime", |config| &mut config.expected_downtime),
    ];
    for (name, of) in budgets {
        let (scenario, spec, _) = one().await;
        let mut config = quick();
        *of(&mut config) = Duration::MAX;
        let migrator = scenario.migrator().config(config).build();
        assert_eq!(migrate(&migrator, spec.id).await.step, Step::Committed, "{name}");
    }
}

/// The change was asked for in the past, whatever the clock of the machine said that asked for it.
#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_back_keeps_nobody_down() {
    let (scenario, spec, _) = one().await;
    let (now, journal) = (jiff::Timestamp::now(), Arc::new(MemoryJournal::new()));
    let ahead = now + jiff::SignedDuration::from_hours(24);
    let lost = FaultPlan::new().on(OperationKind::SetPower, 1, Fault::HangAfter);
    scenario.old.plan_faults(lost);
    let at = |clock| {
        let builder = scenario.migrator().config(quick()).journal(journal.clone());
        builder.clock(Clock::tokio(clock)).build()
    };
    let dying = at(ahead);
    let control = Control::new();
    let killed = tokio::time::timeout(Duration::from_secs(10), dying.migrate(spec.id, Force::none(), &control));
    assert!(killed.await.is_err(), "it hangs");
    let began = Instant::now();
    let record = at(now).rollback(spec.id).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    assert!(began.elapsed() < Duration::from_secs(600), "{:?}", began.elapsed());
}

/// A platform that is unwell for a while is asked again; what is configured wrongly is not.
#[derive(Debug, Default)]
struct Misconfigured(AtomicU32);

#[async_trait]
impl Probe for Misconfigured {
    async fn probe(&self, _: &Instance) -> Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Err(Error::new(ErrorKind::Configuration, "\"router\" is no host:port"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_configured_wrongly_is_asked_once() {
    let (scenario, spec, _) = one().await;
    let probe = Arc::new(Misconfigured::default());
    let migrator = scenario.migrator().config(quick()).probe(probe.clone()).build();
    let record = migrate(&migrator, spec.id).await;
    assert_eq!(record.step, Step::RolledBack);
    assert_eq!(probe.0.load(Ordering::SeqCst), 1);
}
