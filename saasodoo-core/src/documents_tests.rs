//! The tables in docs/src against the code.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    Cause, Config, Deadlines, Error, ErrorKind, Exit, Facts, Hold, InstanceStatus, Retry, Transition, Unit, UnitPhase,
    derive, pod_phase_status, task_state_status,
};

const STATUS_MAPPING: &str = include_str!("../../docs/src/status-mapping.md");
const ERRORS: &str = include_str!("../../docs/src/errors.md");
const CONTRACT: &str = include_str!("../../docs/src/contract.md");
const GUIDE: &str = include_str!("../../docs/src/guide.md");
const TRAIT: &str = include_str!("orchestrator.rs");

/// The rows of the first table under a heading, without the head, each cell without its backticks.
fn table(document: &str, heading: &str) -> Vec<Vec<String>> {
    let heading = format!("## {heading}");
    let rows: Vec<Vec<String>> = document
        .lines()
        .skip_while(|line| *line != heading)
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().replace('`', ""))
                .collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table under {heading:?}");
    rows
}

fn keys(rows: &[Vec<String>]) -> Vec<&str> {
    rows.iter().map(|row| row[0].as_str()).collect()
}

#[test]
fn statuses() {
    let rows = table(STATUS_MAPPING, "Statuses");
    assert_eq!(keys(&rows), InstanceStatus::ALL.map(InstanceStatus::as_str));
    for row in &rows {
        let status: InstanceStatus = row[0].parse().expect("a status");
        assert_eq!(row[2] == "yes", status.is_transitional(), "{status}");
        let actions: Vec<String> = status.allowed_actions().iter().map(ToString::to_string).collect();
        let written = if row[3] == "nothing" { "" } else { &row[3] };
        assert_eq!(written, actions.join(", "), "{status}");
    }
}

#[test]
fn pod_phases_and_task_states() {
    let mut pods = table(STATUS_MAPPING, "Pod phases");
    let mut tasks = table(STATUS_MAPPING, "Task states");
    assert_eq!((pods.len(), tasks.len()), (6, 16));
    for (rows, map) in [
        (&mut pods, pod_phase_status as fn(&str) -> InstanceStatus),
        (&mut tasks, task_state_status),
    ] {
        let rest = rows.pop().expect("not empty");
        assert_eq!(rest, ["anything else", map("evaporated").as_str()]);
        for row in rows {
            assert_eq!(row[1], map(&row[0]).as_str(), "{}", row[0]);
            assert_ne!(map(&row[0]), InstanceStatus::Unknown, "{}", row[0]);
        }
    }
}

/// One of each variant. The match makes a new variant an error here.
fn causes() -> Vec<Cause> {
    let message = String::new;
    let all = vec![
        Cause::ImagePull {
            image: message(),
            message: message(),
        },
        Cause::CrashLoop {
            restarts: 2,
            last_exit: None,
        },
        Cause::OutOfMemory {
            inferred: false,
            restarts: 2,
        },
        Cause::Exited { code: None },
        Cause::Unschedulable { message: message() },
        Cause::QuotaExceeded { message: message() },
        Cause::MountFailed { message: message() },
        Cause::StoragePending { message: message() },
        Cause::ProbeFailing { message: message() },
        Cause::Rejected { message: message() },
        Cause::Evicted { message: message() },
        Cause::NodeLost { node: None },
        Cause::RolloutFailed { message: message() },
        Cause::Other {
            reason: message(),
            message: message(),
        },
    ];
    for cause in &all {
        match cause {
            Cause::ImagePull { .. }
            | Cause::CrashLoop { .. }
            | Cause::OutOfMemory { .. }
            | Cause::Exited { .. }
            | Cause::Unschedulable { .. }
            | Cause::QuotaExceeded { .. }
            | Cause::MountFailed { .. }
            | Cause::StoragePending { .. }
            | Cause::ProbeFailing { .. }
            | Cause::Rejected { .. }
            | Cause::Evicted { .. }
            | Cause::NodeLost { .. }
            | Cause::RolloutFailed { .. }
            | Cause::Other { .. } => {}
        }
    }
    all
}

#[test]
fn terminal_and_progressing_causes() {
    let written: Vec<(String, String)> = table(STATUS_MAPPING, "Causes")
        .into_iter()
        .map(|row| (row[0].clone(), row[2].clone()))
        .collect();
    let real: Vec<(String, String)> = causes()
        .iter()
        .map(|cause| {
            let kind = if cause.is_terminal() { "terminal" } else { "progressing" };
            (cause.code().to_owned(), kind.to_owned())
        })
        .collect();
    assert_eq!(written, real);
}

type Overlay = fn(&mut Facts);

fn running(facts: &mut Facts) -> &mut Unit {
    facts.desired = 1;
    facts.units = vec![Unit::new("new", 9, UnitPhase::Running)];
    &mut facts.units[0]
}

/// For each rule of the derivation: what makes it hold, and what then comes out.
fn rules() -> Vec<(&'static str, Overlay, InstanceStatus)> {
    vec![
        ("deleting", |f| f.deleting = true, InstanceStatus::Terminated),
        (
            "maintenance",
            |f| f.hold = Some(Hold::Maintenance),
            InstanceStatus::Maintenance,
        ),
        (
            "suspended",
            |f| {
                f.hold = Some(Hold::Suspended);
                f.desired = 0;
                f.units.clear();
            },
            InstanceStatus::Paused,
        ),
        (
            "stopped",
            |f| {
                f.desired = 0;
                f.units.retain(|unit| !unit.is_live());
            },
            InstanceStatus::Stopped,
        ),
        (
            "lagging",
            |f| {
                f.desired = 1;
                f.lagging = true;
            },
            InstanceStatus::Updating,
        ),
        (
            "no_unit",
            |f| {
                f.desired = 1;
                f.units.clear();
                f.obstacle = Some(Cause::QuotaExceeded { message: String::new() });
            },
            InstanceStatus::Error,
        ),
        ("lost", |f| running(f).phase = UnitPhase::Lost, InstanceStatus::Error),
        (
            "unknown",
            |f| running(f).phase = UnitPhase::Unknown,
            InstanceStatus::Unknown,
        ),
        ("ready", |f| running(f).ready = true, InstanceStatus::Running),
        ("looping", |f| running_after_crashes(f), InstanceStatus::Error),
        (
            "problem",
            |f| {
                running(f).problem = Some(Cause::Rejected { message: String::new() });
            },
            InstanceStatus::Error,
        ),
        (
            "ended",
            |f| running(f).phase = UnitPhase::Failed,
            InstanceStatus::Updating,
        ),
        (
            "not_ready_any_more",
            |f| running(f).was_ready = true,
            InstanceStatus::Error,
        ),
        ("not_ready_yet", |f| running(f).ready = false, InstanceStatus::Updating),
    ]
}

fn running_after_crashes(facts: &mut Facts) {
    let unit = running(facts);
    unit.restarts = 3;
    unit.last_exit = Some(Exit::with_code(1, None));
}

fn facts() -> Facts {
    let mut facts = Facts::new(1, Timestamp::UNIX_EPOCH);
    facts.transition = Some(Transition::Update);
    facts
}

#[test]
fn the_rules_of_the_derivation_in_their_order() {
    let rules = rules();
    let rows = table(STATUS_MAPPING, "The order of the derivation");
    assert_eq!(keys(&rows), rules.iter().map(|rule| rule.0).collect::<Vec<_>>());
    for (row, (rule, overlay, expected)) in rows.iter().zip(&rules) {
        let mut facts = facts();
        overlay(&mut facts);
        let (status, _) = derive(&facts);
        assert_eq!(status, *expected, "{rule}");
        let written = row[2].contains(status.as_str()) || (status.is_transitional() && row[2].contains("on its way"));
        assert!(written, "{rule} gives {status}, and the table says {}", row[2]);
    }
    // A rule wins over every later one that holds as well.
    for (at, (first, overlay, expected)) in rules.iter().enumerate() {
        for (second, later, _) in &rules[at + 1..] {
            let mut facts = facts();
            later(&mut facts);
            overlay(&mut facts);
            assert_eq!(derive(&facts).0, *expected, "{first} before {second}");
        }
    }
}

#[test]
fn kinds_of_errors_and_their_advice() {
    let written: BTreeMap<String, String> = table(ERRORS, "Kinds")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let real: BTreeMap<String, String> = ErrorKind::ALL
        .into_iter()
        .map(|kind| {
            let advice = match Error::new(kind, "").retry() {
                Retry::Never => "never",
                Retry::After(_) => "after",
                Retry::OutcomeUnknown => "unknown",
            };
            (kind.as_str().to_owned(), advice.to_owned())
        })
        .collect();
    assert_eq!(written, real);
}

#[test]
fn the_behaviours_are_those_of_the_trait() {
    let bullets: Vec<&str> = TRAIT
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("/// - `")?.split_once('`'))
        .map(|(clause, _)| clause)
        .collect();
    assert!(bullets.len() > 40, "{bullets:?}");
    assert_eq!(keys(&table(CONTRACT, "The behaviours")), bullets);
}

#[test]
fn the_configuration_and_its_defaults() {
    let rows = table(GUIDE, "Configuration");
    assert_eq!(keys(&rows), Config::VARIABLES);
    // Each default is read as what it is the default of.
    let written = Config::from_vars(rows.iter().map(|row| (&row[0], &row[1]))).expect("the defaults are valid");
    assert_eq!(written, Config::default());

    let Deadlines {
        read,
        write,
        operation,
        cleanup,
        termination,
    } = Deadlines::default();
    let deadlines = GUIDE.split_once("`Config::deadlines`").expect("a table of deadlines").1;
    for (name, value) in [
        ("read", read),
        ("write", write),
        ("operation", operation),
        ("cleanup", cleanup),
        ("termination", termination),
    ] {
        let row = format!("| `{name}` | {} s |", value.as_secs());
        assert!(deadlines.contains(&row), "{row}");
    }
}
