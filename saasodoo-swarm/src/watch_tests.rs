//! Subscribers against a daemon that comes and goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use saasodoo_core::{InstanceEvent, InstanceFilter, InstanceStatus, Staleness};
use serde_json::json;

use crate::facts_tests::{as_shown, legacy, read_service};
use crate::watch::{Compared, Picture};

fn picture(replicas: &[u64], lost: u64, synced: u64) -> Picture {
    let instances: BTreeMap<_, _> = replicas
        .iter()
        .enumerate()
        .map(|(n, replicas)| {
            let mut service = legacy(*replicas);
            service["Spec"]["Labels"]["saasodoo.instance.id"] =
                json!(format!("0a1b2c3d-1111-4222-8333-44445555666{n}"));
            let instance = read_service(&as_shown(&service["Spec"]));
            (instance.id, Arc::new(instance))
        })
        .collect();
    Picture {
        instances: Arc::new(instances),
        lost,
        synced,
        stale: (lost > 0).then(|| Staleness::new(Timestamp::UNIX_EPOCH, "gone")),
    }
}

fn told(compared: &mut Compared, picture: &Picture) -> Vec<&'static str> {
    compared
        .with(picture)
        .into_iter()
        .map(|event| match event {
            InstanceEvent::Applied(_) => "applied",
            InstanceEvent::Deleted(_) => "deleted",
            InstanceEvent::Synced => "synced",
            InstanceEvent::Stale(_) => "stale",
            _ => "other",
        })
        .collect()
}

#[test]
fn the_snapshot_comes_before_synced_and_nothing_before_it_is_whole() {
    let mut compared = Compared::new(InstanceFilter::all());
    assert!(told(&mut compared, &Picture::default()).is_empty());
    let whole = picture(&[1, 0], 0, 1);
    assert_eq!(told(&mut compared, &whole), ["applied", "applied", "synced"]);
    assert!(told(&mut compared, &whole).is_empty());
    assert_eq!(told(&mut compared, &picture(&[], 0, 1)), ["deleted", "deleted"]);
}

#[test]
fn a_daemon_that_is_never_there_is_stale_once() {
    let mut compared = Compared::new(InstanceFilter::all());
    assert_eq!(told(&mut compared, &picture(&[], 1, 0)), ["stale"]);
    assert!(told(&mut compared, &picture(&[], 1, 0)).is_empty());
    assert_eq!(told(&mut compared, &picture(&[1], 1, 2)), ["applied", "synced"]);
}

#[test]
fn an_absence_between_two_looks_is_told_and_so_is_what_it_hid() {
    let mut compared = Compared::new(InstanceFilter::all());
    told(&mut compared, &picture(&[1], 0, 1));
    // Lost and whole again before the subscriber looked.
    assert_eq!(
        told(&mut compared, &picture(&[0], 1, 2)),
        ["stale", "applied", "synced"]
    );
    let gone = Picture {
        instances: compared.delivered_now(),
        ..picture(&[], 2, 2)
    };
    assert_eq!(told(&mut compared, &gone), ["stale"]);
}

#[test]
fn leaving_the_filter_is_a_deletion() {
    let mut compared = Compared::new(InstanceFilter::all().with_status(InstanceStatus::Stopped));
    assert_eq!(told(&mut compared, &picture(&[0], 0, 1)), ["applied", "synced"]);
    assert_eq!(told(&mut compared, &picture(&[1], 0, 1)), ["deleted"]);
    assert_eq!(told(&mut compared, &picture(&[0], 0, 1)), ["applied"]);
}
