//! The derivation of a status from facts, which every observation of every backend makes.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use saasodoo_core::{Cause, Exit, Facts, Unit, UnitPhase, derive};

fn running() -> Facts {
    let mut facts = Facts::new(1, Timestamp::UNIX_EPOCH);
    let mut unit = Unit::new("odoo-acme-0a1b2c3d-x", 1, UnitPhase::Running);
    unit.ready = true;
    facts.units.push(unit);
    facts
}

/// A crash loop with a history, as Swarm keeps it.
fn looping() -> Facts {
    let mut facts = Facts::new(1, Timestamp::UNIX_EPOCH);
    for order in 0..5 {
        let mut unit = Unit::new(format!("task-{order}"), order, UnitPhase::Failed);
        unit.wanted = order == 4;
        unit.last_exit = Some(Exit::with_code(1, Some(Timestamp::UNIX_EPOCH)));
        unit.problem = Some(Cause::Exited { code: Some(1) });
        facts.units.push(unit);
    }
    facts
}

fn benchmarks(c: &mut Criterion) {
    let (running, looping) = (running(), looping());
    c.bench_function("derive/running", |b| b.iter(|| derive(black_box(&running))));
    c.bench_function("derive/crash_loop_of_five", |b| b.iter(|| derive(black_box(&looping))));
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
