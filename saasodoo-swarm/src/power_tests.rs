//! What a change of power makes of a service, without a daemon.

use jiff::{Timestamp, ToSpan as _};
use saasodoo_core::{ErrorKind, InstanceStatus, Power, Result};
use serde_json::{Value, json};

use crate::facts::restarting;
use crate::facts_tests::{legacy, read_service};
use crate::power::powered;
use crate::read::Seen;
use crate::retained::{Writer, writes};
use crate::task::Task;

fn seen(service: &Value) -> Seen {
    Seen {
        service: service.clone(),
        tasks: Vec::new(),
    }
}

fn held(replicas: u64, hold: &str) -> Value {
    let mut service = legacy(replicas);
    service["Spec"]["Labels"]["saasodoo.hold"] = json!(hold);
    service
}

fn power_of(seen: &Seen, power: Power) -> Result<Option<Value>> {
    powered(seen, power, Timestamp::UNIX_EPOCH + 5000.seconds())
}

/// The service after a change of power.
fn after(service: &Value, power: Power) -> Value {
    let mut service = service.clone();
    if let Some(body) = power_of(&seen(&service), power).expect("allowed") {
        service["Spec"] = body;
    }
    service
}

#[test]
fn a_hold_is_not_gone_around() {
    for (hold, advice) in [
        ("suspended", "resume it first"),
        ("maintenance", "end the maintenance first"),
        // Of a later version, or by hand.
        ("legal", "end the maintenance first"),
    ] {
        for (power, replicas) in [
            (Power::Start, 0),
            (Power::Start, 1),
            (Power::Restart, 1),
            (Power::Restart, 0),
        ] {
            let error = power_of(&seen(&held(replicas, hold)), power).expect_err(hold);
            assert_eq!(
                (error.kind(), error.advice()),
                (ErrorKind::NotAllowed, Some(advice)),
                "{error}"
            );
        }
    }
    assert_eq!(read_service(&held(0, "legal")).status, InstanceStatus::Maintenance);
    let unparsed = read_service(&held(0, "legal")).unparsed;
    assert!(
        unparsed.iter().any(|left| left.field == "hold" && left.raw == "legal"),
        "{unparsed:?}"
    );
}

#[test]
fn a_resume_takes_a_suspension_away_and_nothing_else() {
    let maintained = held(0, "maintenance");
    assert_eq!(power_of(&seen(&maintained), Power::Resume).expect("harmless"), None);
    // Billing goes over an operator, who has to ask again.
    assert_eq!(
        after(&maintained, Power::Suspend)["Spec"]["Labels"]["saasodoo.hold"],
        "suspended"
    );
    for placement in [
        None,
        Some(json!({})),
        Some(json!({"Constraints": ["node.labels.disk==ssd"]})),
    ] {
        let mut service = legacy(0);
        if let Some(placement) = placement {
            service["Spec"]["TaskTemplate"]["Placement"] = placement;
        }
        let suspended = after(&service, Power::Suspend);
        let constraints = &suspended["Spec"]["TaskTemplate"]["Placement"]["Constraints"];
        assert!(constraints.to_string().contains("saasodoo-suspended"), "{constraints}");
        assert_eq!(after(&suspended, Power::Suspend), suspended);
        let (before, now) = (read_service(&service), read_service(&suspended));
        assert!(before.spec.diff(&now.spec).is_empty() && before.unparsed == now.unparsed);
        assert_eq!(now.status, InstanceStatus::Paused);
        assert_eq!(after(&suspended, Power::Resume), service, "as it was before");
    }
}

#[test]
fn what_somebody_scaled_up_is_not_started_by_a_resume() {
    let mut suspended = after(&legacy(1), Power::Suspend);
    suspended["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(1);
    assert_eq!(after(&suspended, Power::Resume), legacy(0));
    // And a suspension that was only a label by hand is no reason to stop what runs.
    assert_eq!(after(&held(1, "suspended"), Power::Resume), legacy(1));
}

#[test]
fn an_interrupted_restart_is_seen_and_gone_on_with() {
    let mut service = legacy(0);
    service["Spec"]["Labels"]["saasodoo.restarting"] = json!("1");
    assert_eq!(read_service(&service).status, InstanceStatus::Restarting);
    assert_eq!(after(&service, Power::Restart), legacy(1));
    assert_eq!(after(&service, Power::Start), legacy(1));
    assert_eq!(after(&service, Power::Stop), legacy(0));
    let stopped = power_of(&seen(&legacy(0)), Power::Restart).expect_err("stopped");
    assert_eq!(stopped.kind(), ErrorKind::NotAllowed);
}

/// A migration keeps its journal in labels of the suspended source, and each write moves the service's time of change.
#[test]
fn labels_of_a_suspended_service_do_not_make_it_a_later_writer() {
    let mut suspended = after(&legacy(1), Power::Suspend);
    let stopped_by = |service: &Value, seconds: i64| {
        let mut service = service.clone();
        service["UpdatedAt"] = json!((Timestamp::UNIX_EPOCH + seconds.seconds()).to_string());
        Writer::of(&seen(&service))
    };
    let grace = 10;
    assert_eq!(stopped_by(&suspended, 5000), Writer::StoppedBy(5000 + grace));
    suspended["Spec"]["Labels"]["saasodoo.migration"] = json!("written later");
    assert_eq!(stopped_by(&suspended, 9000), Writer::StoppedBy(5000 + grace));
    assert_eq!(
        stopped_by(&suspended, 4000),
        Writer::StoppedBy(4000 + grace),
        "the earlier of two clocks"
    );
    // Without the constraint it can have run since.
    let mut ended = suspended.clone();
    ended["Spec"]["TaskTemplate"]["Placement"] = Value::Null;
    assert_eq!(stopped_by(&ended, 9000), Writer::StoppedBy(9000 + grace));
    assert_eq!(
        read_service(&suspended).unparsed,
        read_service(&held(0, "suspended")).unparsed
    );
}

/// Whoever does not know the label leaves it where it is.
#[test]
fn a_label_of_a_restart_that_is_over_is_not_believed_and_goes() {
    let labelled = |replicas: u64| {
        let mut service = legacy(replicas);
        service["Spec"]["Labels"]["saasodoo.restarting"] = json!("1");
        service
    };
    assert_eq!(restarting(&labelled(0)), Some(1));
    assert_eq!(restarting(&labelled(1)), None);
    let restarted = after(&labelled(1), Power::Restart);
    assert!(restarted["Spec"]["Labels"].get("saasodoo.restarting").is_none());
    assert_eq!(restarted["Spec"]["Mode"]["Replicated"]["Replicas"], 1);
    // Somebody has started and stopped it.
    let mut stopped = labelled(0);
    stopped["PreviousSpec"] = labelled(1)["Spec"].clone();
    assert_eq!(restarting(&stopped), None);
    assert_eq!(read_service(&stopped).status, InstanceStatus::Stopped);
    let refused = power_of(&seen(&stopped), Power::Restart).expect_err("stopped");
    assert_eq!(refused.kind(), ErrorKind::NotAllowed);
    // The first step of a restart of one that had an old label.
    stopped["Spec"]["TaskTemplate"]["ForceUpdate"] = json!(1);
    assert_eq!(restarting(&stopped), Some(1));
    let mut held = labelled(0);
    held["Spec"]["Labels"]["saasodoo.hold"] = json!("suspended");
    let instance = read_service(&held);
    assert_eq!(
        (instance.status, instance.facts.desired),
        (InstanceStatus::Paused, 0),
        "nobody starts it"
    );
    assert_eq!(after(&held, Power::Resume), legacy(0));
}

#[test]
fn a_decision_about_power_is_later_than_an_unfinished_creation() {
    let mut service = legacy(0);
    service["Spec"]["Labels"]["saasodoo.creation.unfinished"] = json!("true");
    assert_eq!(after(&service, Power::Start), legacy(1));
    assert_eq!(after(&service, Power::Stop), legacy(0));
    assert_eq!(after(&after(&service, Power::Suspend), Power::Resume), legacy(0));
}

/// Somebody scales a suspended service up: its task is wanted, and has no process.
#[test]
fn a_task_that_no_node_fits_does_not_write() {
    let mut suspended = after(&legacy(0), Power::Suspend);
    suspended["Spec"]["Mode"]["Replicated"]["Replicas"] = json!(1);
    let with = |state: &str| {
        let task = json!({"ID": "t1", "ServiceID": "svc1", "DesiredState": "running", "Status": {"State": state}});
        let mut seen = seen(&suspended);
        seen.tasks.push(Task::read(&task, "n"));
        (seen.any_live(), seen.tasks.iter().any(writes), Writer::of(&seen))
    };
    assert_eq!(with("running"), (true, true, Writer::Runs));
    let (live, writes, writer) = with("pending");
    assert!(live && !writes && matches!(writer, Writer::StoppedBy(_)), "{writer:?}");
}
