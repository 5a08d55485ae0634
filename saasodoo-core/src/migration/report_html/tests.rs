//! What the page shows, and that it stays small.

use std::time::Duration;

use jiff::Timestamp;

use super::super::report::{InstanceReport, Report};
use super::super::{Entry, Event, Failure, Force, Outage, Record, Signal, Step, StepRun};
use super::text::{shown, shown_call};
use crate::dual::{Counts, Divergence, DivergenceKind, FieldVerdict, LatencySummary, Place, Verdict};
use crate::{BackendKind, ErrorKind, InstanceId, OperationKind};

fn time(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_790_000_000_000 + millis).expect("a time")
}

/// The steps of a move with what each takes in milliseconds.
const STEPS: [(Step, i64); 13] = [
    (Step::Inventory, 20),
    (Step::Preflight, 80),
    (Step::Plan, 30),
    (Step::CreateTarget, 85),
    (Step::HoldTarget, 130),
    (Step::StopSource, 517),
    (Step::Fence, 20),
    (Step::StartTarget, 120),
    (Step::AwaitTarget, 940),
    (Step::ProbeTarget, 28),
    (Step::SwitchRoute, 30),
    (Step::Bake, 1200),
    (Step::Commit, 47),
];

fn run(step: Step, from: i64, took: i64) -> StepRun {
    StepRun {
        step,
        began: time(from),
        ended: Some(time(from + took)),
        signal: Some(Signal::Done),
        note: "done as the plan said it would be".to_owned(),
    }
}

/// A committed tenant that began at `from` and was down for `down`.
fn committed(number: usize, from: i64, down: i64) -> InstanceReport {
    let (mut timeline, mut at) = (Vec::new(), from);
    for (step, took) in STEPS {
        timeline.push(run(step, at, took));
        at += took + 1;
    }
    let id = format!("{number:08x}-0000-4000-8000-{number:012x}");
    InstanceReport {
        instance: id.parse::<InstanceId>().expect("an id"),
        name: format!("odoo-tenant-{number}-{number:08x}"),
        source: BackendKind::Swarm,
        target: BackendKind::Kubernetes,
        step: Step::Committed,
        failure: None,
        taken_back: None,
        halted: None,
        window_until: Some(time(from + 86_400_000)),
        began: time(from),
        timeline,
        outages: vec![Outage {
            from: time(from + 345),
            to: Some(time(from + 345 + down)),
        }],
        downtime_ms: down.unsigned_abs(),
        parity: (0..25)
            .map(|field| FieldVerdict {
                field: format!("field.{field}"),
                primary: None,
                secondary: None,
                verdict: Verdict::Matched,
            })
            .collect(),
        notes: Vec::new(),
    }
}

/// Gives up where it failed, and goes back.
fn rolled_back(mut instance: InstanceReport, failed: bool) -> InstanceReport {
    instance.timeline.truncate(10);
    let mut at = 0;
    if let Some(last) = instance.timeline.last_mut() {
        last.signal = Some(if failed { Signal::Failed } else { Signal::Abort });
        at = last.ended.expect("ended").as_millisecond() - time(0).as_millisecond();
        instance.taken_back = last.ended.filter(|_| !failed);
    }
    for (step, took) in [
        (Step::StopTarget, 500),
        (Step::StartSource, 200),
        (Step::RemoveTarget, 90),
    ] {
        instance.timeline.push(run(step, at, took));
        at += took + 1;
    }
    instance.step = Step::RolledBack;
    instance.failure = failed.then(|| "probe_target: the tenant's Odoo answers with 502 Bad Gateway".to_owned());
    instance
}

fn failure() -> Failure {
    Failure {
        step: Step::StartTarget,
        kind: ErrorKind::Unavailable,
        message: "the API server does not answer <at all>".to_owned(),
        at: time(4000),
    }
}

fn halted(mut instance: InstanceReport, at: i64) -> InstanceReport {
    instance.timeline.truncate(7);
    instance.step = Step::StartTarget;
    instance.timeline.push(StepRun {
        ended: None,
        signal: None,
        ..run(Step::StartTarget, at - 100, 0)
    });
    instance.halted = Some(Failure {
        at: time(at),
        ..failure()
    });
    instance.outages.last_mut().expect("down").to = None;
    instance.downtime_ms = at.unsigned_abs();
    instance
}

/// A wave with a bit of everything: of a hundred two fail, one is taken back, and there are single ones that are halted
/// or were down very long.
fn wave(tenants: usize) -> Report {
    let instances = (1..=tenants)
        .map(|number| {
            let seed = i64::try_from(number).expect("small") * 7919 % 1009;
            let from = i64::try_from(number).expect("small") * 300;
            let instance = committed(number, from, 1400 + seed);
            match number {
                7 => halted(instance, from + 2000),
                11 => committed(number, from, 9_000_000),
                number if number % 50 == 3 => rolled_back(instance, true),
                number if number % 100 == 9 => rolled_back(instance, false),
                _ => instance,
            }
        })
        .collect();
    let end = i64::try_from(tenants).expect("small") * 300 + 60_000;
    Report::of(time(end), instances)
}

fn summary(place: Place, micros: u64) -> LatencySummary {
    LatencySummary {
        place,
        operation: OperationKind::Get,
        calls: 48,
        errors: 0,
        median: Duration::from_micros(micros),
        p95: Duration::from_micros(micros + 710),
        max: Duration::from_micros(micros + 3000),
    }
}

fn with_latencies(report: Report) -> Report {
    let counts = Counts {
        comparisons: 48,
        matched: 1056,
        ignored: 192,
        ..Counts::default()
    };
    let latencies = [summary(Place::Primary, 16_290), summary(Place::Secondary, 26_190)];
    report.with_dual_run(counts, Vec::new(), &latencies)
}

#[test]
fn ten_thousand_tenants_fit_on_a_page() {
    let mut report = wave(10_000);
    let page = report.to_html();
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
    assert!(page.contains("The other 9799 have one row each") || page.contains("The other 9800 have one row each"));
    assert!(page.contains("odoo-tenant-10000-"), "every tenant is on it");
    assert_eq!(page.matches("class=\"time\"").count(), super::TIMELINES);
    // Not even when all of them fail, with long reasons, after a hundred attempts.
    for (number, instance) in report.instances.iter_mut().enumerate() {
        *instance = rolled_back(committed(number, 0, 1500), true);
        instance.failure = Some(format!("probe_target: {}", "<why>".repeat(200)));
        if number < 250 {
            instance.notes = vec!["<note>".repeat(1000); 30];
            let last = instance.timeline.last().expect("a run").clone();
            instance.timeline.resize(300, last);
        }
    }
    let page = report.to_html();
    assert!(page.len() < 4_000_000, "{} bytes", page.len());
    assert!(page.contains("Failed in: probe_target 10000") && page.contains("9900 more are left out here"));
}

fn taken_back_late() -> InstanceReport {
    let mut instance = committed(1, 0, 1588);
    let mut at = 3 * 86_400_000 + 3_300;
    for (step, took) in [
        (Step::StopTarget, 565),
        (Step::StartSource, 164),
        (Step::AwaitSource, 777),
    ] {
        instance.timeline.push(run(step, at, took));
        at += took + 1;
    }
    instance.outages.push(Outage {
        from: time(3 * 86_400_000 + 3_300),
        to: Some(time(at)),
    });
    instance.downtime_ms += 1509;
    instance.step = Step::RolledBack;
    instance.taken_back = Some(time(3 * 86_400_000 + 3_300));
    instance
}

fn halted_long() -> InstanceReport {
    halted(committed(2, 0, 1588), 2 * 86_400_000)
}

/// The widths of the bars of a timeline, in percent.
fn widths(page: &str) -> Vec<f64> {
    page.split("<i class=\"p")
        .skip(1)
        .map(|bar| {
            let (_, width) = bar.split_once("width:").expect("a width");
            width.split_once('%').expect("percent").0.parse().expect("a number")
        })
        .collect()
}

#[test]
fn days_between_two_steps_do_not_hide_the_steps() {
    let page = Report::of(time(4 * 86_400_000), vec![taken_back_late()]).to_html();
    assert!(page.contains("⋯ 3 d committed"), "{page}");
    let widths = widths(&page);
    let readable = widths.iter().filter(|width| **width > 1.0).count();
    assert!(readable >= 10, "{widths:?}");
    let all: f64 = widths.iter().sum();
    assert!(all > 85.0 && all < 101.0, "{all}");
}

#[test]
fn a_step_that_takes_very_long_does_not_hide_the_others() {
    let page = Report::of(time(4 * 86_400_000), vec![halted_long()]).to_html();
    assert!(page.contains("⋯ 2 d in no step"), "{page}");
    let mut instance = committed(1, 0, 1588);
    instance.timeline.push(run(Step::RemoveSource, 3_300, 3_600_000));
    let page = Report::of(time(4 * 86_400_000), vec![instance]).to_html();
    assert!(page.contains("1 h"), "{page}");
    let readable = widths(&page).iter().filter(|width| **width > 1.0).count();
    assert!(readable >= 8, "{:?}", widths(&page));
}

#[test]
fn a_step_in_which_the_process_died_does_not_last_until_now() {
    let mut instance = committed(1, 0, 1588);
    instance.timeline.insert(
        0,
        StepRun {
            ended: None,
            signal: None,
            ..run(Step::Inventory, 0, 0)
        },
    );
    let page = Report::of(time(86_400_000), vec![instance]).to_html();
    assert!(page.contains("interrupted") && !page.contains("so far"), "{page}");
}

#[test]
fn values_are_text_beside_bars_of_any_width() {
    let report = with_latencies(wave(20));
    let page = report.to_html();
    assert!(
        page.contains("<span class=\"v\">16.3 ms / 17.0 ms · 48 calls, 0 errors</span>"),
        "{page}"
    );
    assert!(
        !page.contains("<svg") && !page.contains("min-width:6"),
        "a drawing that cannot get narrower"
    );
    assert!(page.contains("width:100.00%"));
}

#[test]
fn one_tenant_that_was_down_for_hours_leaves_the_other_bars_readable() {
    let mut tenants: Vec<InstanceReport> = (1..=5).map(|number| committed(number, 0, 1500)).collect();
    tenants.push(committed(6, 0, 9_000_000));
    let page = Report::of(time(10_000_000), tenants).to_html();
    assert!(page.contains("<span class=\"v\">⋯ 2 h 30 min</span>"), "{page}");
    assert_eq!(
        page.matches("<i class=\"t\" style=\"width:25.00%\">").count(),
        5,
        "{page}"
    );
}

#[test]
fn many_downtimes_are_a_histogram_and_one_far_out_does_not_spoil_it() {
    let page = wave(600).to_html();
    let (_, histogram) = page.split_once("How many were down for how long").expect("a histogram");
    let (histogram, _) = histogram.split_once("<h2>").expect("an end");
    let rows = histogram.matches("class=\"r\"").count();
    assert!((8..=20).contains(&rows), "{rows}: {histogram}");
    assert!(histogram.contains("and longer</span><span class=\"v\">"), "{histogram}");
    assert!(
        histogram.contains("· median") && histogram.contains("· p95"),
        "{histogram}"
    );
    assert!(
        page.contains("Longest downtimes: 10") && page.contains("2 h 30 min"),
        "{page}"
    );
    assert!(!wave(50).to_html().contains("How many were down for how long"));
}

#[test]
fn durations_are_rounded() {
    for (millis, text) in [
        (0, "< 1 ms"),
        (588, "588 ms"),
        (1588, "1.6 s"),
        (1549, "1.5 s"),
        (119_960, "2 min"),
        (125_700, "2 min 6 s"),
        (3_599_700, "1 h"),
        (7_199_600, "2 h"),
        (9_000_000, "2 h 30 min"),
        (3 * 86_400_000, "3 d"),
        (3 * 86_400_000 + 5_400_000, "3 d 2 h"),
    ] {
        assert_eq!(shown(millis), text);
    }
    for (micros, text) in [
        (0, "0 µs"),
        (999, "999 µs"),
        (26_188, "26.2 ms"),
        (999_949, "999.9 ms"),
        (999_950, "1.0 s"),
    ] {
        assert_eq!(shown_call(Duration::from_micros(micros)), text);
    }
}

#[test]
fn a_tenant_that_was_not_down_has_no_downtime() {
    let mut instance = committed(1, 0, 0);
    instance.outages.clear();
    let page = Report::of(time(10_000), vec![instance]).to_html();
    assert!(
        page.contains("· down –</summary>") && page.contains("<b>–</b>median downtime"),
        "{page}"
    );
}

#[test]
fn a_halted_tenant_and_one_that_is_down_are_shown_as_such() {
    let report = Report::of(
        time(3_602_000),
        vec![committed(1, 0, 1500), halted(committed(2, 0, 1500), 2_000)],
    );
    assert_eq!((report.halted, report.down_now), (1, 1));
    let page = report.to_html();
    for wanted in [
        "<div class=\"tile alarm\"><b>1</b>halted</div>",
        "<div class=\"tile alarm\"><b>1</b>down now</div>",
        "<b>0</b>under way",
        "<span class=\"halt\">halted in start_target</span> since <time>2026-",
        "the API server does not answer &lt;at all&gt;",
        "<span class=\"halt\">down now</span>",
        "<span class=\"v\">halted after 100 ms</span>",
        ", 1 h, in start_target",
        "The rollback window ends <time>2026-",
    ] {
        assert!(page.contains(wanted), "no {wanted} in {page}");
    }
    let json: Report = serde_json::from_str(&report.to_json().expect("json")).expect("read back");
    assert_eq!(json, report);
    let calm = Report::of(time(10_000), vec![committed(1, 0, 1500)]).to_html();
    assert!(
        !calm.contains("tile alarm") && calm.contains("Nothing halted"),
        "{calm}"
    );
}

#[test]
fn what_the_operator_took_back_is_not_called_a_failure() {
    let page = Report::of(time(10_000), vec![rolled_back(committed(1, 0, 1500), false)]).to_html();
    assert!(page.contains("Taken back by the operator: 1"), "{page}");
    assert!(
        page.contains("<span class=\"note\">taken back by the operator</span>"),
        "{page}"
    );
    assert!(!page.contains("Rolled back: "), "{page}");
    let page = Report::of(time(10_000), vec![rolled_back(committed(1, 0, 1500), true)]).to_html();
    assert!(
        page.contains("Rolled back: 1") && !page.contains("taken back"),
        "{page}"
    );
}

fn entry(record: &Record, event: Event) -> Entry {
    Entry {
        instance: record.instance,
        run: record.run,
        seq: record.next_seq,
        at: time(i64::try_from(record.next_seq).expect("small") * 1000),
        event,
    }
}

fn begun() -> Record {
    Record::begin(&Entry {
        instance: InstanceId::random(),
        run: uuid::Uuid::new_v4(),
        seq: 0,
        at: time(0),
        event: Event::Began {
            source: BackendKind::Swarm,
            target: BackendKind::Kubernetes,
            source_identity: None,
            target_identity: None,
            force: Force::none(),
        },
    })
    .expect("a beginning")
}

fn tell(record: &mut Record, event: Event) {
    let entry = entry(record, event);
    record.apply(&entry).expect("it follows");
}

fn leave(step: Step, signal: Signal) -> Event {
    Event::StepEnded {
        step,
        signal,
        note: String::new(),
        failure: None,
    }
}

#[test]
fn the_operators_rollback_is_known_though_no_step_was_left_by_it() {
    let mut record = begun();
    record.step = Step::Committed;
    tell(&mut record, leave(Step::Committed, Signal::Rollback));
    let just_now = Report::new(time(9000), std::slice::from_ref(&record));
    assert_eq!(just_now.instances[0].taken_back, Some(time(1000)));
    tell(&mut record, Event::StepBegan { step: Step::StopTarget });
    let report = Report::new(time(9000), &[record]);
    assert_eq!(report.instances[0].taken_back, Some(time(2000)));
    assert!(report.to_html().contains("stop_target, taken back by the operator"));
    // Within a step.
    let mut record = begun();
    tell(&mut record, Event::StepBegan { step: Step::Inventory });
    tell(&mut record, leave(Step::Inventory, Signal::Abort));
    let report = Report::new(time(9000), &[record]);
    assert_eq!(report.instances[0].taken_back, Some(time(2000)));
    // A failure is not the operator's.
    let mut record = begun();
    record.failure = Some(failure());
    tell(&mut record, leave(Step::Inventory, Signal::Failed));
    assert_eq!(Report::new(time(9000), &[record]).instances[0].taken_back, None);
}

#[test]
fn what_the_record_says_of_its_end_is_in_the_report() {
    let mut record = begun();
    tell(&mut record, Event::StepBegan { step: Step::Inventory });
    tell(&mut record, Event::Window { until: time(70_000) });
    tell(&mut record, Event::Down);
    tell(&mut record, Event::Halted(failure()));
    let report = Report::new(time(9000), &[record]);
    assert_eq!((report.halted, report.down_now), (1, 1));
    let instance = &report.instances[0];
    assert_eq!(instance.halted, Some(failure()));
    assert_eq!(instance.window_until, Some(time(70_000)));
    assert_eq!(instance.down_since(), Some(time(3000)));
}

#[test]
fn no_comparison_is_not_a_good_one() {
    let nothing = wave(5).with_dual_run(Counts::default(), Vec::new(), &[]).to_html();
    assert!(
        nothing.contains("Nothing was compared.") && !nothing.contains("None in"),
        "{nothing}"
    );
    assert!(!nothing.contains("fields diverged"), "{nothing}");
    assert!(with_latencies(wave(5)).to_html().contains("None in 48 comparisons."));
}

#[test]
fn lists_that_are_cut_say_so() {
    let divergence = |number: i64| Divergence {
        instance: InstanceId::random(),
        home: Place::Primary,
        operation: OperationKind::Get,
        kind: DivergenceKind::Field {
            field: "status<".to_owned(),
            primary: Some("running".to_owned()),
            secondary: None,
        },
        first_seen: time(number),
        reported: time(number),
        samples: 3,
    };
    let counts = Counts {
        comparisons: 1000,
        diverged: 1000,
        ..Counts::default()
    };
    let mut instance = committed(1, 0, 1500);
    instance.notes = vec!["worth knowing".to_owned(); 25];
    let report =
        Report::of(time(10_000), vec![instance]).with_dual_run(counts, (0..1000).map(divergence).collect(), &[]);
    let page = report.to_html();
    assert_eq!(page.matches("<td data-h=\"field\">status&lt;</td>").count(), 200);
    assert!(
        page.contains("800 more are left out here; the JSON report has all."),
        "{page}"
    );
    assert_eq!(page.matches("worth knowing").count(), 20);
    assert!(page.contains("5 more are left out here"), "{page}");
    assert!(
        page.contains("<div class=\"tile alarm\"><b>1000</b>fields diverged"),
        "{page}"
    );
}

#[test]
fn an_older_report_can_be_read() {
    let mut json = serde_json::to_value(wave(2)).expect("json");
    let report = json.as_object_mut().expect("an object");
    for field in ["halted", "down_now"] {
        report.remove(field).expect("there");
    }
    for instance in report["instances"].as_array_mut().expect("a list") {
        let instance = instance.as_object_mut().expect("an object");
        for field in ["halted", "taken_back", "window_until"] {
            instance.remove(field).expect("there");
        }
    }
    let report: Report = serde_json::from_value(json).expect("read");
    assert!(report.to_html().contains("odoo-tenant-2"));
    // The operator's rollback is known by that nothing failed.
    let mut older = rolled_back(committed(1, 0, 1500), false);
    older.taken_back = None;
    let page = Report::of(time(10_000), vec![older]).to_html();
    assert!(page.contains("Taken back by the operator: 1"), "{page}");
}
