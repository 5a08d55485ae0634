//! The contract suite on the in-memory backend, and proof that the suite can fail.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use saasodoo_core::{Capabilities, InstanceOrchestrator};
use saasodoo_testkit::contract::{self, Outcome, Record, Report, Runner, side_by_side};
use saasodoo_testkit::memory::{MemoryOrchestrator, MemorySubject};

use broken::{Broken, FLAWS, Flaw};

#[path = "contract_memory/broken.rs"]
mod broken;

/// Names in the `# Behavior` bullets of the trait.
fn promised() -> BTreeSet<&'static str> {
    let source = include_str!("../../saasodoo-core/src/orchestrator.rs");
    source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("/// - `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn every_promise_of_the_trait_is_a_clause() {
    let clauses: BTreeSet<&str> = contract::all().iter().map(|clause| clause.id).collect();
    let promised = promised();
    assert!(promised.len() >= 45, "the bullets are no longer found: {promised:?}");
    let missing: Vec<_> = promised.difference(&clauses).collect();
    assert!(missing.is_empty(), "no clause for {missing:?}");
}

#[test]
fn clauses_have_names_of_their_own_and_say_what_they_demand() {
    let mut seen = BTreeSet::new();
    for clause in contract::all() {
        assert!(seen.insert(clause.id), "{} twice", clause.id);
        assert!(clause.id.contains('.') && !clause.doc.is_empty(), "{clause:?}");
    }
    assert!(seen.len() >= 60);
}

#[tokio::test(start_paused = true)]
async fn memory_keeps_the_contract() {
    let memory = platform(MemoryOrchestrator::new().capabilities());
    let report = Runner::new(Arc::new(MemorySubject::new(memory.clone()))).run().await;
    report.write().expect("the result file");
    println!("{report}");
    report.assert_passed(150);
    let not_run = report.count(Outcome::Skipped) + report.count(Outcome::Unsupported);
    assert!(
        report.filtered || not_run <= 5,
        "not run on the backend that can do everything:\n{report}"
    );
    assert_eq!(
        memory.violations(),
        [],
        "two writers on one directory, or data deleted while in use"
    );
}

fn named(name: &str, memory: &MemoryOrchestrator) -> MemorySubject {
    MemorySubject::over(name, Arc::new(memory.clone()), memory.clone())
}

fn platform(capabilities: Capabilities) -> MemoryOrchestrator {
    MemoryOrchestrator::builder()
        .latency(Duration::from_millis(5))
        .capabilities(capabilities)
        .build()
}

/// Whatever is off is told, asked for and answered with `Unsupported`, or skipped with a reason; nothing fails.
#[tokio::test(start_paused = true)]
async fn memory_without_capabilities_keeps_the_contract() {
    let memory = platform(Capabilities::default());
    let report = Runner::new(Arc::new(named("memory-bare", &memory))).run().await;
    report.assert_passed(140);
    for (clause, outcome) in [
        ("update.storage_grows", Outcome::Unsupported),
        ("capabilities.tolerations", Outcome::Unsupported),
        ("capabilities.off_answers_unsupported", Outcome::Passed),
        ("logs.previous", Outcome::Unsupported),
        ("status.unready_is_not_running", Outcome::Skipped),
    ] {
        let Some(record) = report.record(clause) else {
            assert!(report.filtered, "{clause} is missing");
            continue;
        };
        assert_eq!(record.outcome, outcome, "{record:?}");
        assert_eq!(record.reason.is_some(), outcome != Outcome::Passed, "{record:?}");
    }
}

/// Several clauses at once do not disturb each other: nothing assumes that it is alone on the platform.
#[tokio::test(start_paused = true)]
async fn clauses_can_run_at_once() {
    let memory = platform(MemoryOrchestrator::new().capabilities());
    let subject = Arc::new(named("memory-at-once", &memory));
    let report = Runner::new(subject).concurrency(16).run().await;
    report.assert_passed(150);
    assert_eq!(memory.violations(), []);
}

/// Every flaw is noticed by the clause that is about it: the suite can fail.
#[tokio::test(start_paused = true)]
async fn broken_orchestrators_are_caught() {
    let mut unnoticed = Vec::new();
    for (flaw, clause) in FLAWS {
        let report = broken(*flaw, clause).await;
        let record = report.record(clause).expect("the clause ran");
        println!("{flaw:?}: {clause}: {}", record.reason.as_deref().unwrap_or("passed"));
        if record.outcome != Outcome::Failed || record.reason.as_ref().is_none_or(String::is_empty) {
            unnoticed.push((flaw, record.clone()));
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

async fn broken(flaw: Flaw, clause: &str) -> Report {
    let memory = platform(MemoryOrchestrator::new().capabilities());
    let broken = Broken::new(Arc::new(memory.clone()), flaw);
    Runner::new(Arc::new(MemorySubject::over("broken", broken, memory)))
        .only(&[clause])
        .run()
        .await
}

#[tokio::test(start_paused = true)]
async fn a_failure_says_what_happened() {
    for (flaw, clause, reason) in [
        (Flaw::Panics, "create.makes_an_instance", "it panicked: this one panics"),
        (Flaw::Hangs, "create.makes_an_instance", "it did not end within"),
        (Flaw::DeletesNothing, "create.makes_an_instance", "is left over"),
        (
            Flaw::SaysCreatedAgain,
            "create.second_with_equal_spec",
            "expected the outcome Unchanged, got Created",
        ),
        (Flaw::IsNeverHealthy, "health.is_ready", "it is Monday"),
    ] {
        let report = broken(flaw, clause).await;
        let text = report.records[0].reason.clone().unwrap_or_default();
        assert!(text.contains(reason), "{flaw:?}: {text}");
    }
}

/// What one flaw breaks does not spread: the other clauses still pass, and nothing is left on the platform.
#[tokio::test(start_paused = true)]
async fn a_failed_clause_is_cleaned_up() {
    let memory = platform(MemoryOrchestrator::new().capabilities());
    let broken = Broken::new(Arc::new(memory.clone()), Flaw::SaysCreatedAgain);
    let subject = MemorySubject::over("broken", broken, memory.clone());
    let report = Runner::new(Arc::new(subject)).only(&["create."]).run().await;
    let failed: Vec<&str> = report
        .records
        .iter()
        .filter(|record| record.outcome == Outcome::Failed)
        .map(|record| record.clause.as_str())
        .collect();
    assert!(
        failed.contains(&"create.second_with_equal_spec_is_unchanged"),
        "{failed:?}"
    );
    assert!(failed.len() * 2 < report.records.len(), "{failed:?}");
    assert_eq!(memory.volumes(), Vec::<String>::new());
}

fn record(clause: &str, outcome: Outcome, reason: Option<&str>) -> Record {
    Record {
        clause: clause.to_owned(),
        outcome,
        reason: reason.map(ToOwned::to_owned),
        seconds: 0.5,
    }
}

fn report(subject: &str, records: Vec<Record>) -> Report {
    Report {
        subject: subject.to_owned(),
        records,
        filtered: false,
    }
}

#[test]
fn a_run_of_nothing_a_short_run_and_a_failure_do_not_pass() {
    let passes = |report: Report, least: usize| std::panic::catch_unwind(move || report.assert_passed(least)).is_ok();
    let good = || report("x", vec![record("a.b", Outcome::Passed, None)]);
    assert!(passes(good(), 1));
    assert!(!passes(good(), 2), "fewer than expected");
    assert!(!passes(report("x", Vec::new()), 0), "nothing ran");
    let skipped = vec![record("a.b", Outcome::Skipped, Some("no server"))];
    assert!(!passes(report("x", skipped), 0), "nothing but skips");
    let mut failed = good();
    failed.records.push(record("a.c", Outcome::Failed, Some("no")));
    assert!(!passes(failed, 1));
}

#[test]
fn the_result_file_has_the_format_that_others_read() {
    let records = vec![
        record("a.b", Outcome::Passed, None),
        record("a.c", Outcome::Unsupported, Some("it is off")),
    ];
    let json = serde_json::to_value(&records).expect("json");
    assert_eq!(
        json,
        serde_json::json!([
            {"clause": "a.b", "outcome": "passed", "reason": null, "seconds": 0.5},
            {"clause": "a.c", "outcome": "unsupported", "reason": "it is off", "seconds": 0.5},
        ])
    );
    let written = report("format-test", records);
    let path = written.write().expect("written");
    assert!(path.ends_with("contract/format-test.json"), "{path:?}");
    assert_eq!(Report::read(&path).expect("read"), written);
    std::fs::remove_file(path).expect("removed");
}

#[test]
fn results_side_by_side_explain_each_difference() {
    let table = side_by_side(&[
        report(
            "memory",
            vec![
                record("a.b", Outcome::Passed, None),
                record("a.c", Outcome::Passed, None),
            ],
        ),
        report(
            "swarm",
            vec![
                record("a.b", Outcome::Passed, None),
                record("a.c", Outcome::Unsupported, Some("it is off")),
            ],
        ),
    ]);
    assert!(table.contains("a.c on swarm: it is off"), "{table}");
    assert!(!table.contains("a.b on"), "{table}");
    assert!(table.contains("contract on memory: 2 ran"), "{table}");
}
