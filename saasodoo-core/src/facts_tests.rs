//! The derivation, by table and by property.

use jiff::Timestamp;
use proptest::prelude::*;

use crate::{Cause, Exit, Facts, Hold, InstanceStatus, Transition, Unit, UnitPhase, derive};

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).expect("in range")
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 - seconds).expect("in range")
}

fn facts(desired: u32, units: Vec<Unit>) -> Facts {
    Facts {
        units,
        ..Facts::new(desired, now())
    }
}

fn ready(order: u64) -> Unit {
    Unit {
        ready: true,
        was_ready: true,
        started_at: Some(ago(100)),
        ..Unit::new(format!("u{order}"), order, UnitPhase::Running)
    }
}

fn failed(order: u64, code: i32) -> Unit {
    Unit {
        wanted: false,
        last_exit: Some(Exit::with_code(code, Some(ago(5)))),
        ..Unit::new(format!("u{order}"), order, UnitPhase::Failed)
    }
}

fn status(facts: &Facts) -> (InstanceStatus, Option<&'static str>) {
    let (status, cause) = derive(facts);
    (status, cause.map(|cause| cause.code()))
}

#[test]
fn nothing_desired_is_stopped_whatever_failed_before() {
    assert_eq!(status(&facts(0, vec![])), (InstanceStatus::Stopped, None));
    assert_eq!(
        status(&facts(0, vec![failed(1, 1), failed(2, 1)])),
        (InstanceStatus::Stopped, None)
    );
    let leaving = Unit {
        wanted: false,
        ..ready(1)
    };
    assert_eq!(status(&facts(0, vec![leaving])), (InstanceStatus::Stopping, None));
}

#[test]
fn the_newest_wanted_unit_decides() {
    let leaving = Unit {
        wanted: false,
        ..ready(1)
    };
    let coming = Unit::new("u2", 2, UnitPhase::Preparing);
    assert_eq!(
        status(&facts(1, vec![leaving.clone(), coming.clone()])).0,
        InstanceStatus::Starting
    );
    assert_eq!(
        status(&facts(1, vec![coming, leaving])).0,
        InstanceStatus::Starting,
        "whatever the order of the list"
    );
    let unready = Unit::new("u3", 3, UnitPhase::Running);
    assert_eq!(status(&facts(1, vec![ready(2), unready])).0, InstanceStatus::Starting);
}

#[test]
fn running_means_ready() {
    let unready = Unit::new("u", 1, UnitPhase::Running);
    assert_eq!(
        status(&facts(1, vec![unready.clone()])),
        (InstanceStatus::Starting, None)
    );
    let lost_it = Unit {
        was_ready: true,
        ..unready
    };
    assert_eq!(
        status(&facts(1, vec![lost_it])),
        (InstanceStatus::Error, Some("probe_failing"))
    );
    assert_eq!(status(&facts(1, vec![ready(1)])), (InstanceStatus::Running, None));
}

#[test]
fn old_failures_do_not_outweigh_a_healthy_unit() {
    assert_eq!(
        status(&facts(1, vec![failed(1, 1), failed(2, 1), ready(3)])),
        (InstanceStatus::Running, None)
    );
}

#[test]
fn a_crash_loop_does_not_flicker() {
    let young = Unit {
        started_at: Some(ago(2)),
        ..ready(3)
    };
    assert_eq!(
        derive(&facts(1, vec![failed(1, 3), failed(2, 3), young.clone()])),
        (
            InstanceStatus::Error,
            Some(Cause::CrashLoop {
                restarts: 2,
                last_exit: Some(3)
            })
        )
    );
    let between = Unit {
        ready: false,
        phase: UnitPhase::Preparing,
        ..young.clone()
    };
    assert_eq!(
        status(&facts(1, vec![failed(1, 3), failed(2, 3), between])).0,
        InstanceStatus::Error
    );
    let grown = Unit {
        started_at: Some(ago(12)),
        ..young
    };
    assert_eq!(
        status(&facts(1, vec![failed(1, 3), failed(2, 3), grown])).0,
        InstanceStatus::Running
    );
}

/// A pod whose container was started again in place: so often, the last end and the present start so long ago.
fn restarted(restarts: u32, ended: i64, started: Option<i64>) -> Unit {
    Unit {
        restarts,
        last_exit: Some(Exit::with_code(1, Some(ago(ended)))),
        started_at: started.map(ago),
        phase: started.map_or(UnitPhase::Preparing, |_| UnitPhase::Running),
        ..Unit::new("u", 1, UnitPhase::Running)
    }
}

#[test]
fn a_crash_loop_at_the_longest_back_off_does_not_flicker() {
    let young = Unit {
        ready: true,
        was_ready: true,
        ..restarted(20, 304, Some(4))
    };
    assert_eq!(
        status(&facts(1, vec![young.clone()])),
        (InstanceStatus::Error, Some("crash_loop"))
    );
    let started_by_hand = Unit {
        last_exit: Some(Exit::with_code(1, Some(ago(500)))),
        ..young.clone()
    };
    assert_eq!(status(&facts(1, vec![started_by_hand])).0, InstanceStatus::Running);
    let grown = Unit {
        started_at: Some(ago(10)),
        ..young
    };
    assert_eq!(status(&facts(1, vec![grown])).0, InstanceStatus::Running);
}

#[test]
fn a_process_that_answers_soon_after_a_crash_does_not_fail_its_probe() {
    let answers = Unit {
        ready: true,
        was_ready: true,
        ..restarted(1, 5, Some(4))
    };
    assert_eq!(
        status(&facts(1, vec![answers.clone()])),
        (InstanceStatus::Starting, None)
    );
    let no_more = Unit {
        ready: false,
        ..answers
    };
    assert_eq!(
        status(&facts(1, vec![no_more])),
        (InstanceStatus::Error, Some("probe_failing"))
    );
}

#[test]
fn old_restarts_do_not_make_a_crash_loop() {
    const WEEK: i64 = 7 * 24 * 3600;
    let unanswering = Unit {
        was_ready: true,
        ..restarted(2, WEEK + 10, Some(WEEK))
    };
    assert_eq!(
        status(&facts(1, vec![unanswering])),
        (InstanceStatus::Error, Some("probe_failing"))
    );
    let waits = restarted(2, WEEK, None);
    assert_eq!(status(&facts(1, vec![waits.clone()])), (InstanceStatus::Starting, None));
    let said = Unit {
        problem: Some(Cause::CrashLoop {
            restarts: 2,
            last_exit: Some(1),
        }),
        ..waits
    };
    assert_eq!(
        status(&facts(1, vec![said])),
        (InstanceStatus::Error, Some("crash_loop")),
        "the platform itself says so"
    );
    let mut after_weeks = restarted(3, 5, Some(4));
    assert_eq!(status(&facts(1, vec![after_weeks.clone()])).0, InstanceStatus::Error);
    if let Some(exit) = &mut after_weeks.last_exit {
        exit.started_at = Some(ago(WEEK));
    }
    assert_eq!(
        status(&facts(1, vec![after_weeks])),
        (InstanceStatus::Starting, None),
        "the first end after a long run"
    );
    let coming = Unit::new("u9", 9, UnitPhase::Preparing);
    let old = |order| Unit {
        last_exit: Some(Exit::with_code(1, Some(ago(601)))),
        ..failed(order, 1)
    };
    assert_eq!(
        status(&facts(1, vec![old(1), failed(2, 1), coming.clone()])).0,
        InstanceStatus::Starting,
        "one of the two is history"
    );
    // A slow start: the ends count for as long as the process that followed has not proved itself.
    let slow = |seconds| Unit {
        started_at: Some(ago(seconds)),
        phase: UnitPhase::Running,
        ..coming.clone()
    };
    let before = |order, seconds| Unit {
        last_exit: Some(Exit::with_code(1, Some(ago(seconds)))),
        ..failed(order, 1)
    };
    assert_eq!(
        status(&facts(1, vec![before(1, 900), before(2, 560), slow(550)])),
        (InstanceStatus::Error, Some("crash_loop"))
    );
    assert_eq!(
        status(&facts(1, vec![before(1, 950), before(2, 610), slow(600)])),
        (InstanceStatus::Starting, None),
        "it has run for ten minutes"
    );
}

#[test]
fn what_ran_before_is_not_being_created() {
    let created = |unit: Unit| {
        let facts = Facts {
            transition: Some(Transition::Create),
            ..facts(1, vec![unit])
        };
        status(&facts).0
    };
    let coming = Unit::new("u", 1, UnitPhase::Preparing);
    assert_eq!(created(coming.clone()), InstanceStatus::Creating);
    assert_eq!(created(restarted(1, 5, None)), InstanceStatus::Starting);
    assert_eq!(
        created(Unit {
            last_exit: Some(Exit::with_code(1, None)),
            ..coming.clone()
        }),
        InstanceStatus::Starting
    );
    assert_eq!(
        created(Unit {
            was_ready: true,
            ..coming
        }),
        InstanceStatus::Starting
    );
}

#[test]
fn out_of_memory_is_told_from_a_crash() {
    let coming = Unit::new("u3", 3, UnitPhase::Preparing);
    assert_eq!(
        derive(&facts(1, vec![failed(1, 137), failed(2, 137), coming.clone()])).1,
        Some(Cause::OutOfMemory {
            inferred: true,
            restarts: 2
        })
    );
    let mut certain = failed(2, 137);
    certain.last_exit = Some(Exit {
        code: Some(137),
        out_of_memory: Some(true),
        at: None,
        started_at: None,
    });
    assert_eq!(
        derive(&facts(1, vec![failed(1, 137), certain, coming])).1,
        Some(Cause::OutOfMemory {
            inferred: false,
            restarts: 2
        })
    );
}

#[test]
fn the_first_exit_is_progress_and_not_an_error() {
    let coming = Unit::new("u2", 2, UnitPhase::Preparing);
    assert_eq!(
        status(&facts(1, vec![failed(1, 1), coming])).0,
        InstanceStatus::Starting
    );
    let ended = Unit {
        wanted: true,
        ..failed(1, 1)
    };
    assert_eq!(
        status(&facts(1, vec![ended])),
        (InstanceStatus::Starting, Some("exited"))
    );
}

#[test]
fn problems_are_terminal_or_progressing() {
    let pull = Cause::ImagePull {
        image: "odoo:99".into(),
        message: "not found".into(),
    };
    let unit = Unit {
        problem: Some(pull.clone()),
        ..Unit::new("u", 1, UnitPhase::Preparing)
    };
    assert_eq!(derive(&facts(1, vec![unit])), (InstanceStatus::Error, Some(pull)));
    let pending = Cause::StoragePending {
        message: "unbound".into(),
    };
    let unit = Unit {
        problem: Some(pending.clone()),
        ..Unit::new("u", 1, UnitPhase::Pending)
    };
    let creating = Facts {
        transition: Some(Transition::Create),
        ..facts(1, vec![unit])
    };
    assert_eq!(derive(&creating), (InstanceStatus::Creating, Some(pending)));
    let lost = Unit {
        node: Some("n1".into()),
        ..Unit::new("u", 1, UnitPhase::Lost)
    };
    assert_eq!(
        status(&facts(1, vec![lost])),
        (InstanceStatus::Error, Some("node_lost"))
    );
    let quota = Facts {
        obstacle: Some(Cause::QuotaExceeded {
            message: "pods=0".into(),
        }),
        ..facts(1, vec![])
    };
    assert_eq!(status(&quota), (InstanceStatus::Error, Some("quota_exceeded")));
}

#[test]
fn transitions_name_the_way() {
    let coming = || vec![Unit::new("u", 1, UnitPhase::Preparing)];
    for (transition, expected) in [
        (None, InstanceStatus::Starting),
        (Some(Transition::Create), InstanceStatus::Creating),
        (Some(Transition::Start), InstanceStatus::Starting),
        (Some(Transition::Restart), InstanceStatus::Restarting),
        (Some(Transition::Update), InstanceStatus::Updating),
    ] {
        assert_eq!(
            status(&Facts {
                transition,
                ..facts(1, coming())
            })
            .0,
            expected
        );
        let lagging = Facts {
            transition,
            lagging: true,
            ..facts(1, vec![ready(1)])
        };
        // What ran once is not created any more.
        let expected = match expected {
            InstanceStatus::Creating => InstanceStatus::Starting,
            other => other,
        };
        assert_eq!(
            status(&lagging).0,
            expected,
            "the ready unit is of the generation before"
        );
    }
}

#[test]
fn holds_and_deletion_come_first() {
    let held = |hold, desired, units| Facts {
        hold: Some(hold),
        ..facts(desired, units)
    };
    assert_eq!(status(&held(Hold::Suspended, 0, vec![])).0, InstanceStatus::Paused);
    let leaving = Unit {
        wanted: false,
        ..ready(1)
    };
    assert_eq!(
        status(&held(Hold::Suspended, 0, vec![leaving])).0,
        InstanceStatus::Stopping
    );
    assert_eq!(
        status(&held(Hold::Suspended, 1, vec![ready(1)])).0,
        InstanceStatus::Running,
        "somebody went around us"
    );
    assert_eq!(
        status(&held(Hold::Maintenance, 1, vec![ready(1)])).0,
        InstanceStatus::Maintenance
    );
    assert_eq!(
        status(&Facts {
            deleting: true,
            ..facts(1, vec![ready(1)])
        })
        .0,
        InstanceStatus::Terminated
    );
}

fn unit() -> impl Strategy<Value = Unit> {
    let phase = prop_oneof![
        Just(UnitPhase::Pending),
        Just(UnitPhase::Preparing),
        Just(UnitPhase::Running),
        Just(UnitPhase::Finished),
        Just(UnitPhase::Failed),
        Just(UnitPhase::Lost),
        Just(UnitPhase::Unknown),
    ];
    (
        phase,
        any::<bool>(),
        any::<bool>(),
        0u64..6,
        0u32..4,
        proptest::option::of(0i32..140),
    )
        .prop_map(|(phase, wanted, ready, order, restarts, code)| Unit {
            wanted,
            ready: ready && phase == UnitPhase::Running,
            restarts,
            last_exit: code.map(|code| Exit::with_code(code, Some(ago(3)))),
            started_at: Some(ago(30)),
            ..Unit::new(format!("u{order}"), order, phase)
        })
}

proptest! {
    #[test]
    fn the_derivation_keeps_its_promises(
        desired in 0u32..2,
        units in proptest::collection::vec(unit(), 0..6),
        lagging: bool,
        deleting: bool,
    ) {
        let mut facts = Facts { lagging, deleting, ..facts(desired, units) };
        let (status, cause) = derive(&facts);
        if status == InstanceStatus::Running {
            let current = facts.current().expect("something runs");
            prop_assert!(desired > 0 && !deleting && current.ready && current.phase == UnitPhase::Running);
        }
        if status == InstanceStatus::Stopped {
            prop_assert!(desired == 0 && !facts.any_live(), "stopped means that nothing writes");
        }
        if desired == 0 && !deleting {
            prop_assert!(matches!(status, InstanceStatus::Stopped | InstanceStatus::Stopping));
        }
        if status == InstanceStatus::Error {
            prop_assert!(cause.is_some(), "an error has a cause");
        }
        let distinct: std::collections::BTreeSet<_> = facts.units.iter().map(|unit| unit.order).collect();
        if distinct.len() == facts.units.len() {
            facts.units.reverse();
            prop_assert_eq!((status, cause), derive(&facts), "the order of the list does not matter");
        }
    }
}
