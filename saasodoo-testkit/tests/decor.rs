//! The decorators around a platform that fails: what reaches it, and what the caller gets.

use std::sync::Arc;
use std::time::Duration;

use saasodoo_core::decor::{self, DecorExt, RateLimit, RetryPolicy};
use saasodoo_core::{
    Bytes, Config, CreateOptions, Deadlines, DeleteOptions, DynOrchestrator, EnsureOutcome, ErrorKind, InstanceChange,
    InstanceFilter, InstanceOrchestrator, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, OperationKind, Retry,
    UpdateOptions,
};
use saasodoo_testkit::contract::Runner;
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::{Fault, FaultPlan, MemoryOrchestrator, MemorySubject};
use tokio::time::Instant;

const BUDGET: Duration = Duration::from_secs(60);

fn platform() -> (MemoryOrchestrator, DynOrchestrator) {
    let memory = MemoryOrchestrator::new();
    let decorated = decor::standard(memory.clone(), &Config::default());
    (memory, decorated)
}

async fn with_a_tenant() -> (MemoryOrchestrator, DynOrchestrator, InstanceSpec) {
    let (memory, decorated) = platform();
    let spec = fixtures::spec("acme");
    decorated.create_and_wait(&spec, BUDGET).await.expect("a tenant");
    memory.forget_calls();
    (memory, decorated, spec)
}

fn lost(operation: OperationKind) -> FaultPlan {
    FaultPlan::new().on(operation, 1, Fault::LoseResponse)
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_was_lost_makes_one_instance() {
    let (memory, decorated) = platform();
    memory.plan_faults(lost(OperationKind::Create));
    let spec = fixtures::spec("acme");
    let ensured = decorated
        .create(&spec, CreateOptions::new())
        .await
        .expect("the repeat finds it");
    assert_eq!(ensured.outcome, EnsureOutcome::Unchanged);
    assert_eq!(memory.count_calls(OperationKind::Create), 2);
    let all = decorated.list_all(InstanceFilter::all()).await.expect("a list");
    assert_eq!(all.len(), 1);
    assert_eq!(memory.volumes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_create_that_hangs_is_repeated_after_its_deadline() {
    let (memory, decorated) = platform();
    memory.plan_faults(FaultPlan::new().on(OperationKind::Create, 1, Fault::Hang));
    let started = Instant::now();
    let spec = fixtures::spec("acme");
    let ensured = decorated.create(&spec, CreateOptions::new()).await.expect("the repeat");
    assert_eq!(ensured.outcome, EnsureOutcome::Created);
    let took = started.elapsed();
    let Deadlines {
        operation,
        cleanup,
        termination,
        ..
    } = Config::default().deadlines;
    let limit = operation + cleanup.max(termination);
    assert!(
        (limit..limit + Duration::from_secs(2)).contains(&took),
        "the deadline and a pause: {took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_deletion_whose_answer_was_lost_keeps_the_data() {
    let (memory, decorated, spec) = with_a_tenant().await;
    memory.plan_faults(lost(OperationKind::Delete));
    decorated
        .delete(spec.id, DeleteOptions::retain())
        .await
        .expect("the repeat");
    assert_eq!(memory.count_calls(OperationKind::Delete), 2);
    assert!(!decorated.exists(spec.id).await.expect("a read"));
    assert_eq!(memory.volumes().len(), 1, "the data stays");
    assert!(memory.violations().is_empty(), "{:?}", memory.violations());
}

#[tokio::test(start_paused = true)]
async fn a_restart_whose_answer_was_lost_happens_once() {
    let (memory, decorated, spec) = with_a_tenant().await;
    let unit = |instance: saasodoo_core::Instance| instance.facts.current().map(|unit| unit.id.clone());
    let before = unit(memory.get(spec.id).await.expect("it runs"));
    memory.plan_faults(lost(OperationKind::SetPower));
    let error = decorated
        .restart(spec.id)
        .await
        .expect_err("whether it happened is not known");
    assert_eq!(error.retry(), Retry::OutcomeUnknown);
    assert_eq!(memory.count_calls(OperationKind::SetPower), 1);
    let after = memory
        .wait_until(spec.id, InstanceStatus::Running, BUDGET)
        .await
        .expect("it runs again");
    assert_ne!(before, unit(after), "it did happen");
}

#[tokio::test(start_paused = true)]
async fn an_update_is_repeated_unless_it_names_a_revision() {
    let (memory, decorated, spec) = with_a_tenant().await;
    let seen = memory.get(spec.id).await.expect("it runs");
    memory.plan_faults(lost(OperationKind::Update));
    let change = InstanceChange::new().memory(Bytes::from_gib(4));
    let options = UpdateOptions::new().if_revision(seen.provenance.revision);
    let error = decorated
        .update(spec.id, &change, options)
        .await
        .expect_err("a repeat would meet its own revision");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Timeout, Retry::OutcomeUnknown)
    );
    assert_eq!(memory.count_calls(OperationKind::Update), 1);

    memory.plan_faults(lost(OperationKind::Update));
    let change = InstanceChange::new().memory(Bytes::from_gib(8));
    let ensured = decorated
        .update(spec.id, &change, UpdateOptions::new())
        .await
        .expect("the repeat");
    assert_eq!(ensured.outcome, EnsureOutcome::Unchanged, "the first attempt did it");
    assert_eq!(ensured.instance.spec.resources.memory, Bytes::from_gib(8));
    assert_eq!(memory.count_calls(OperationKind::Update), 3);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_at_first_gives_each_instance_once() {
    let (memory, decorated) = platform();
    for spec in fixtures::fleet(20) {
        decorated.create(&spec, CreateOptions::new()).await.expect("created");
    }
    memory.plan_faults(
        FaultPlan::new()
            .on(OperationKind::List, 1, Fault::Fail(ErrorKind::Unavailable))
            .on(OperationKind::List, 2, Fault::Hang),
    );
    let mut ids: Vec<_> = decorated
        .list_all(InstanceFilter::all())
        .await
        .expect("the third attempt")
        .into_iter()
        .map(|instance| instance.id)
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), memory.count_calls(OperationKind::List)), (20, 3));
}

#[tokio::test(start_paused = true)]
async fn refusals_reach_the_platform_once() {
    let (memory, decorated, spec) = with_a_tenant().await;
    let other = spec.clone().with_memory(Bytes::from_gib(16));
    let error = decorated
        .create(&other, CreateOptions::new())
        .await
        .expect_err("another spec");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    decorated.start(fixtures::id(99)).await.expect_err("no such instance");
    assert_eq!(memory.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn repeats_take_tokens_too() {
    let memory = MemoryOrchestrator::new();
    memory.plan_faults(FaultPlan::new().always(OperationKind::Get, Fault::Fail(ErrorKind::Throttled)));
    let decorated = memory
        .clone()
        .rate_limited(RateLimit::per_second(2).with_burst(1))
        .retrying(
            RetryPolicy::default()
                .with_attempts(5)
                .with_delays(Duration::ZERO, Duration::ZERO),
        );
    let started = Instant::now();
    decorated.get(fixtures::id(1)).await.expect_err("throttled for ever");
    assert_eq!(memory.count_calls(OperationKind::Get), 5);
    let took = started.elapsed().as_secs_f64();
    assert!((1.99..2.1).contains(&took), "five calls at two per second: {took}");
}

/// Every decorator passes the contract that the backend inside passes.
#[tokio::test(start_paused = true)]
async fn the_decorated_backend_keeps_the_contract() {
    let memory = MemoryOrchestrator::new();
    let limited = memory.clone().rate_limited(RateLimit::per_second(1000));
    let decorated = decor::standard(limited, &Config::default());
    let subject = MemorySubject::over("memory-decorated", decorated, memory.clone());
    let report = Runner::new(Arc::new(subject)).run().await;
    println!("{report}");
    report.assert_passed(60);
    assert_eq!(memory.violations(), []);
}
