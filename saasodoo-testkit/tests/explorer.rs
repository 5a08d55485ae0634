//! The crash explorer on the migration.

use std::time::Instant;

use saasodoo_testkit::explorer::Explorer;

fn explore(explorer: &Explorer, least: usize) {
    let began = Instant::now();
    let found = explorer.run();
    println!("{found}");
    println!(
        "crash explorer: {} distinct schedules in {:.1?}",
        found.schedules,
        began.elapsed()
    );
    found.assert_sound(least);
}

#[test]
fn a_spread_of_schedules_ends_well() {
    explore(&Explorer::new(1500), 1500);
}

#[test]
#[ignore = "needs two minutes"]
fn ten_thousand_schedules_end_well() {
    explore(&Explorer::new(10_000), 10_000);
}

/// Without the fence the same exploration finds two writers: it can fail.
#[test]
fn a_broken_fence_is_noticed() {
    let found = Explorer::new(300).with_a_broken_fence().run();
    println!("{found}");
    let two_writers = found
        .broken
        .iter()
        .any(|(_, outcome)| outcome.broken.iter().any(|broken| broken.contains("2 writers")));
    assert!(two_writers, "{found}");
}
