//! The way there, the way back, waves, and the journals.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use saasodoo_core::dual::{DualRun, Policy};
use saasodoo_core::migration::{
    Clock, Control, Event, FileJournal, Force, Journal, KnownSecrets, Migrator, Probe, Report, RootedData, RouteSwitch,
    SecretSource, Side, Step, Wave, WaveOptions,
};
use saasodoo_core::{
    CreateOptions, Error, ErrorKind, Hold, Instance, InstanceChange, InstanceFilter, InstanceOrchestrator,
    InstanceOrchestratorExt, InstanceSpec, InstanceStatus, OperationKind, Power, Result, Unparsed, UpdateOptions,
};
use saasodoo_testkit::explorer::Scenario;
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::{Fault, FaultPlan, MemoryOrchestrator, Trouble};

use super::{ROOT, migrate, on_objects, one, pass, quick};

#[tokio::test(start_paused = true)]
async fn an_instance_moves_and_comes_back_with_its_data() {
    let (scenario, spec, location) = one().await;
    let (old, new) = (&scenario.old, &scenario.new);
    let migrator = scenario.migrator().build();
    let record = migrate(&migrator, spec.id).await;
    assert_eq!(record.step, Step::Committed);
    let after = new.get(spec.id).await.expect("there");
    assert_eq!((after.status, after.facts.hold), (InstanceStatus::Running, None));
    assert_eq!(after.provenance.token, Some(record.run), "who has made it can be told");
    let kept = old.get(spec.id).await.expect("kept");
    assert_eq!(
        (kept.status, kept.facts.hold),
        (InstanceStatus::Paused, Some(Hold::Suspended))
    );
    assert_eq!(
        new.read_file(&location, "before").expect("readable").as_deref(),
        Some(&b"1"[..])
    );
    new.write_file(&location, "after", "2").expect("written");
    // Down from the suspension to the switch of the route, and no longer.
    let [outage] = record.outages[..] else {
        panic!("{:?}", record.outages)
    };
    assert!(outage.to.is_some() && record.downtime(migrator.now()) < Duration::from_secs(10));
    assert!(
        record.parity.iter().all(|field| !field.is_divergence()),
        "{:?}",
        record.parity
    );
    assert!(
        record
            .fences
            .iter()
            .any(|fence| fence.side == Side::Source && fence.desired == 0)
    );

    let record = migrator.rollback(spec.id).await.expect("back");
    assert_eq!((record.step, record.outages.len()), (Step::RolledBack, 2));
    assert_eq!(old.status(spec.id).await.expect("read"), InstanceStatus::Running);
    assert!(!new.exists(spec.id).await.expect("read"));
    for file in ["before", "after"] {
        assert!(old.read_file(&location, file).expect("readable").is_some(), "{file}");
    }
    assert_eq!(old.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn after_the_window_the_source_goes_and_the_way_back_is_a_migration() {
    let (scenario, spec, location) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    migrate(&migrator, spec.id).await;
    let early = migrator.finish(spec.id, false).await.expect_err("the window is open");
    assert_eq!(early.kind(), ErrorKind::NotAllowed);
    assert!(migrator.finish_due().await.expect("read").is_empty());
    pass(73 * 3600).await;
    let late = migrator.rollback(spec.id).await.expect_err("the window is over");
    assert_eq!(late.kind(), ErrorKind::NotAllowed);
    let finished = migrator.finish_due().await.expect("read");
    assert!(matches!(&finished[..], [(id, Ok(record))] if *id == spec.id && record.step == Step::Finished));
    assert!(!scenario.old.exists(spec.id).await.expect("read"));
    assert_eq!(
        scenario
            .old
            .read_file(&location, "before")
            .expect("readable")
            .as_deref(),
        Some(&b"1"[..])
    );

    let back = Migrator::builder(Arc::new(scenario.new.clone()), Arc::new(scenario.old.clone()))
        .data_root(ROOT)
        .secrets(Arc::new(KnownSecrets::of([spec.clone()])))
        .config(quick())
        .clock(Clock::tokio(jiff::Timestamp::now()))
        .build();
    let record = back
        .migrate(spec.id, Force::none(), &Control::new())
        .await
        .expect("moved back");
    assert_eq!(record.step, Step::Committed, "{:?}", record.failure);
    assert_eq!(
        scenario.old.status(spec.id).await.expect("read"),
        InstanceStatus::Running
    );
    assert!(scenario.old.read_file(&location, "before").expect("readable").is_some());
    assert_eq!(scenario.old.violations(), []);
}

/// A tenant that is stopped, or suspended by billing, is afterwards what it was, on the other side.
#[tokio::test(start_paused = true)]
async fn tenants_that_do_not_run_are_not_started() {
    for (power, status) in [
        (Power::Stop, InstanceStatus::Stopped),
        (Power::Suspend, InstanceStatus::Paused),
    ] {
        let (scenario, spec, _) = one().await;
        scenario.old.set_power(spec.id, power).await.expect("done");
        pass(10).await;
        let migrator = scenario.migrator().config(quick()).build();
        let record = migrate(&migrator, spec.id).await;
        assert_eq!((record.step, record.outages.len()), (Step::Committed, 0));
        assert_eq!(scenario.new.status(spec.id).await.expect("read"), status);
        let starts = scenario
            .new
            .calls()
            .into_iter()
            .filter(|call| call.power == Some(Power::Start))
            .count();
        assert_eq!(starts, 0);
        let record = migrator.rollback(spec.id).await.expect("back");
        assert_eq!(record.step, Step::RolledBack);
        assert_eq!(scenario.old.status(spec.id).await.expect("read"), status);
    }
}

/// What the preflight refuses has changed nothing anywhere.
#[tokio::test(start_paused = true)]
async fn the_preflight_refuses_and_changes_nothing() {
    type Spoil = fn(&Scenario, &InstanceSpec);
    let cases: [(&str, Spoil); 4] = [
        ("target.reachable", |scenario, _| {
            let always = FaultPlan::new().always(OperationKind::Health, Fault::Hang);
            scenario.new.plan_faults(always);
        }),
        ("target.accepts", |scenario, _| {
            let refuses = FaultPlan::new().always(OperationKind::Plan, Fault::Fail(ErrorKind::QuotaExceeded));
            scenario.new.plan_faults(refuses);
        }),
        ("unparsed", |scenario, spec| {
            let part = Unparsed::new(
                "labels.traefik.http.routers.x.middlewares",
                "auth@file",
                "not in a spec",
            );
            scenario.old.garble(spec.id, part).expect("there");
        }),
        ("source.instance", |scenario, spec| {
            scenario.old.cause(spec.id, Trouble::Unready);
        }),
    ];
    for (finding, spoil) in cases {
        let (scenario, spec, _) = one().await;
        spoil(&scenario, &spec);
        pass(60).await;
        let before = scenario.old.get(spec.id).await.expect("there").provenance.revision;
        let migrator = scenario.migrator().config(quick()).build();
        let record = migrate(&migrator, spec.id).await;
        let failure = record.failure.expect("a reason");
        assert_eq!(
            (record.step, failure.step),
            (Step::RolledBack, Step::Preflight),
            "{finding}"
        );
        let word = finding.split('.').next().expect("a word");
        assert!(failure.message.contains(word), "{finding}: {}", failure.message);
        scenario.new.plan_faults(FaultPlan::new());
        assert!(!scenario.new.exists(spec.id).await.expect("read"), "{finding}");
        assert_eq!(
            scenario.old.get(spec.id).await.expect("there").provenance.revision,
            before,
            "{finding}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_can_be_forced() {
    let (scenario, spec, _) = one().await;
    let part = Unparsed::new("labels.x", "y", "not in a spec");
    scenario.old.garble(spec.id, part).expect("there");
    scenario.old.cause(spec.id, Trouble::Unready);
    pass(60).await;
    let migrator = scenario.migrator().config(quick()).build();
    let refused = migrate(&migrator, spec.id).await;
    assert_eq!(refused.step, Step::RolledBack);
    let again = migrate(&migrator, spec.id).await;
    assert_eq!(again.run, refused.run, "what is over is not begun again by itself");
    let force = Force::none().unhealthy_source().unparsed();
    let record = migrator.retry(spec.id, force, &Control::new()).await.expect("moved");
    assert_eq!(record.step, Step::Committed, "{:?}", record.failure);
    assert!(
        record.plan.iter().any(|line| line.starts_with("lost: labels.x (y)")),
        "{:?}",
        record.plan
    );
}

/// Knows the secrets, and at the third question, which comes right before the creation, takes the id on the target.
#[derive(Debug)]
struct Intruder {
    new: MemoryOrchestrator,
    spec: InstanceSpec,
    asked: AtomicU32,
}

#[async_trait]
impl SecretSource for Intruder {
    async fn complete(&self, spec: InstanceSpec) -> Result<InstanceSpec> {
        if self.asked.fetch_add(1, Ordering::SeqCst) == 2 {
            let theirs = self.spec.clone().with_display_name("theirs");
            self.new.create(&theirs, CreateOptions::new().stopped()).await?;
        }
        KnownSecrets::of([self.spec.clone()]).complete(spec).await
    }
}

/// An instance that somebody else put on the target is neither used nor removed.
#[tokio::test(start_paused = true)]
async fn what_others_made_on_the_target_stays() {
    let (scenario, spec, _) = one().await;
    let intruder = Intruder {
        new: scenario.new.clone(),
        spec: spec.clone(),
        asked: AtomicU32::new(0),
    };
    let migrator = scenario.migrator().config(quick()).secrets(Arc::new(intruder)).build();
    let record = migrate(&migrator, spec.id).await;
    assert_eq!(record.failure.map(|failure| failure.step), Some(Step::CreateTarget));
    assert_eq!(record.step, Step::RolledBack);
    let there = scenario.new.get(spec.id).await.expect("theirs is there");
    assert_eq!(there.spec.display_name, "theirs");
    assert_eq!(
        scenario.old.status(spec.id).await.expect("read"),
        InstanceStatus::Running
    );
}

/// A lost node means that nobody knows whether the tenant's process writes: nothing is started on the other side.
#[tokio::test(start_paused = true)]
async fn a_lost_node_is_no_fence() {
    // On the way there the tenant goes back to where its process may still be.
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    let mut progress = migrator.progress();
    let (old, new, id) = (scenario.old.clone(), scenario.new.clone(), spec.id);
    tokio::spawn(async move {
        while let Some(progress) = progress.next().await {
            match progress.event {
                Event::StepBegan { step: Step::StopSource } => old.cause(id, Trouble::NodeLost),
                Event::StepBegan {
                    step: Step::StartSource,
                } => old.clear(id),
                _ => {}
            }
        }
    });
    let record = migrate(&migrator, id).await;
    assert_eq!(record.step, Step::RolledBack);
    let failure = record.failure.expect("a reason");
    assert_eq!(failure.step, Step::StopSource);
    assert!(
        failure.message.contains("is on a node that does not answer"),
        "{}",
        failure.message
    );
    assert!(
        new.calls().iter().all(|call| call.power != Some(Power::Start)),
        "the target was never started"
    );
    assert_eq!(scenario.old.violations(), []);

    // On the way back there is nowhere to go: it stops, starts nothing, and goes on when the node is back.
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    migrate(&migrator, spec.id).await;
    scenario.new.cause(spec.id, Trouble::NodeLost);
    let error = migrator.rollback(spec.id).await.expect_err("it cannot be known");
    assert!(error.to_string().contains("node that does not answer"), "{error}");
    assert_eq!(
        scenario.old.status(spec.id).await.expect("read"),
        InstanceStatus::Paused
    );
    let stuck = migrator.status(spec.id).await.expect("read").expect("known");
    assert_eq!(stuck.step, Step::StopTarget);
    scenario.new.clear(spec.id);
    let record = migrator.resume(spec.id, &Control::new()).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    assert_eq!(
        scenario.old.status(spec.id).await.expect("read"),
        InstanceStatus::Running
    );
    assert_eq!(scenario.old.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn a_change_since_the_inventory_is_not_lost() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    let mut progress = migrator.progress();
    let (old, id) = (scenario.old.clone(), spec.id);
    tokio::spawn(async move {
        while let Some(progress) = progress.next().await {
            if progress.event == (Event::StepBegan { step: Step::HoldTarget }) {
                let change = InstanceChange::new().image("saasodoo/odoo-stub:18".parse().expect("an image"));
                old.update(id, &change, UpdateOptions::new()).await.expect("updated");
            }
        }
    });
    let record = migrate(&migrator, id).await;
    let failure = record.failure.expect("a reason");
    assert_eq!((record.step, failure.step), (Step::RolledBack, Step::StopSource));
    assert!(failure.message.contains("image"), "{}", failure.message);
    assert!(record.outages.is_empty(), "the tenant was never down for the migration");
}

/// Answers at the given attempt only.
#[derive(Debug, Default)]
struct Hooks {
    probes: AtomicU32,
    routes: AtomicU32,
    probe_works: bool,
    route_works: bool,
    sides: std::sync::Mutex<Vec<Side>>,
}

#[async_trait]
impl Probe for Hooks {
    async fn probe(&self, instance: &Instance) -> Result<()> {
        assert_eq!(instance.status, InstanceStatus::Running);
        let attempt = self.probes.fetch_add(1, Ordering::SeqCst);
        if self.probe_works && attempt >= 2 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, "502 Bad Gateway"))
    }
}

#[async_trait]
impl RouteSwitch for Hooks {
    async fn switch(&self, _instance: &Instance, to: Side) -> Result<()> {
        self.routes.fetch_add(1, Ordering::SeqCst);
        self.sides.lock().expect("unpoisoned").push(to);
        if self.route_works || to == Side::Source {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, "the DNS server is asleep"))
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_are_asked_again_and_then_lead_back() {
    for (probe_works, route_works, failed) in [
        (true, true, None),
        (false, true, Some(Step::ProbeTarget)),
        (true, false, Some(Step::SwitchRoute)),
    ] {
        let hooks = Arc::new(Hooks {
            probe_works,
            route_works,
            ..Hooks::default()
        });
        let (scenario, spec, _) = one().await;
        let migrator = scenario
            .migrator()
            .config(quick())
            .probe(hooks.clone())
            .route(hooks.clone())
            .build();
        let record = migrate(&migrator, spec.id).await;
        assert_eq!(record.failure.as_ref().map(|failure| failure.step), failed);
        assert!(hooks.probes.load(Ordering::SeqCst) >= 3);
        let sides = hooks.sides.lock().expect("unpoisoned").clone();
        match failed {
            None => assert_eq!((record.step, &sides[..]), (Step::Committed, &[Side::Target][..])),
            Some(Step::ProbeTarget) => assert!(sides.is_empty(), "visitors were never sent to what does not answer"),
            Some(_) => assert_eq!(sides.last(), Some(&Side::Source), "visitors are sent back"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_pauses_resumes_and_gives_up() {
    let (scenario, spec, _) = one().await;
    let migrator = scenario.migrator().build();
    let control = Control::new();
    control.pause();
    let record = migrator
        .migrate(spec.id, Force::none(), &control)
        .await
        .expect("paused");
    assert_eq!((record.step, record.history.len()), (Step::Inventory, 0));
    // Paused in the middle, it stops where the tenant is up.
    control.resume();
    let later = control.clone();
    let mut progress = migrator.progress();
    tokio::spawn(async move {
        while let Some(progress) = progress.next().await {
            if progress.event == (Event::StepBegan { step: Step::Fence }) {
                later.pause();
            }
        }
    });
    let record = migrator
        .migrate(spec.id, Force::none(), &control)
        .await
        .expect("paused");
    assert_eq!(record.step, Step::Bake);
    assert!(
        record.outages.iter().all(|outage| outage.to.is_some()),
        "the tenant is up"
    );
    assert_eq!(
        scenario.new.status(spec.id).await.expect("read"),
        InstanceStatus::Running
    );
    control.abort();
    let record = migrator.resume(spec.id, &control).await.expect("given up");
    assert_eq!((record.step, record.failure), (Step::RolledBack, None));
    assert_eq!(
        scenario.old.status(spec.id).await.expect("read"),
        InstanceStatus::Running
    );
    let unknown = migrator.resume(fixtures::id(77), &control).await.expect_err("unknown");
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_wave_stops_when_too_many_fail_and_goes_on_later() {
    let scenario = Scenario::with_fleet(20).await.expect("a fleet");
    let ids = scenario.ids();
    for id in &ids[..8] {
        scenario.new.cause(*id, Trouble::CrashLoop { exit_code: 1 });
    }
    let migrator = scenario.migrator().config(quick()).build();
    let mut options = WaveOptions::default();
    options.concurrency = 2;
    options.least_sample = 4;
    options.stop_at_failure_rate = 0.5;
    let summary = Wave::new(&migrator, options.clone())
        .run(&ids, &Control::new())
        .await
        .expect("a wave");
    assert!(summary.stopped && summary.committed.is_empty(), "{summary}");
    assert!((4..=6).contains(&summary.rolled_back.len()), "{summary}");
    assert_eq!(summary.rolled_back.len() + summary.not_begun.len(), 20);
    for id in &ids {
        scenario.new.clear(*id);
        assert_eq!(scenario.old.status(*id).await.expect("read"), InstanceStatus::Running);
    }
    // Run again, it leaves alone what is over; with `retry` it takes that too.
    let summary = Wave::new(&migrator, options.clone())
        .run(&ids, &Control::new())
        .await
        .expect("a wave");
    assert!(
        !summary.rolled_back.is_empty() && summary.committed.len() >= 14,
        "{summary}"
    );
    options.retry = true;
    let report = scenario
        .migrate_with(&migrator, options, &Control::new(), Force::none())
        .await
        .expect("a wave");
    assert_eq!(report.summary.committed.len(), 20, "{}", report.summary);
    assert!(report.summary.median_downtime.is_some());
    report.assert_nobody_was_hurt();
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_finds_clashes_and_changes_nothing() {
    let mut specs = fixtures::fleet(3);
    specs[2]
        .route
        .custom_domains
        .insert("shop.example".parse().expect("a host"));
    let scenario = Scenario::with_specs(specs).await.expect("a fleet");
    let mut squatter = fixtures::spec("squatter");
    squatter
        .route
        .custom_domains
        .insert("shop.example".parse().expect("a host"));
    scenario
        .new
        .create(&squatter, CreateOptions::new())
        .await
        .expect("created");
    scenario.old.forget_calls();
    scenario.new.forget_calls();
    let migrator = scenario.migrator().build();
    let mut ids = scenario.ids();
    ids.push(fixtures::id(99));
    let plan = migrator.dry_run(&ids, Force::none(), 4).await.expect("a plan");
    assert!(!plan.is_clear());
    assert_eq!((plan.instances.len(), plan.failed.len()), (3, 1));
    let [clash] = &plan.clashes[..] else { panic!("{plan}") };
    assert_eq!((clash.what.as_str(), clash.value.as_str()), ("host", "shop.example"));
    let clear: Vec<bool> = plan.instances.iter().map(|plan| plan.is_clear()).collect();
    assert_eq!(clear, [true, true, false], "{plan}");
    let text = plan.to_string();
    assert!(
        text.contains("the tenant stops for about 45s") && text.contains("CLASH: host shop.example"),
        "{text}"
    );
    let writes = |memory: &MemoryOrchestrator| {
        memory.calls().into_iter().any(|call| {
            !matches!(
                call.operation,
                OperationKind::Get | OperationKind::List | OperationKind::Plan | OperationKind::Health
            )
        })
    };
    assert!(!writes(&scenario.old) && !writes(&scenario.new));
    assert!(migrator.journal().load_all().await.expect("read").is_empty());
}

/// Kills the process of a wave again and again; each time another one goes on with the file it left.
#[tokio::test(start_paused = true)]
async fn a_wave_that_is_killed_goes_on_from_its_file() {
    let scenario = Scenario::with_fleet(6).await.expect("a fleet");
    let ids = scenario.ids();
    let path = std::env::temp_dir().join(format!("saasodoo-wave-{}.jsonl", saasodoo_core::InstanceId::random()));
    let mut options = WaveOptions::default();
    options.concurrency = 3;
    let mut kills = 0u32;
    let summary = loop {
        let migrator = scenario
            .migrator()
            .config(quick())
            .journal(Arc::new(FileJournal::open(&path).expect("opened")))
            .build();
        let wave = Wave::new(&migrator, options.clone());
        let control = Control::new();
        let life = Duration::from_millis(2300 + 700 * u64::from(kills));
        match tokio::time::timeout(life, wave.run(&ids, &control)).await {
            Ok(summary) => break summary.expect("a wave"),
            Err(_) => kills += 1,
        }
        assert!(kills < 50, "it never ends");
    };
    assert!(kills >= 3, "{kills}");
    assert_eq!(summary.committed.len(), 6, "{summary}");
    let journal = FileJournal::open_read_only(&path).expect("opened");
    let records = journal.load_all().await.expect("read");
    let report = Report::new(jiff::Timestamp::now(), &records);
    assert_eq!(report.instances.len(), 6);
    assert!(report.to_html().contains("odoo-tenant-6"));
    std::fs::remove_file(path).expect("removed");
    for id in ids {
        assert_eq!(scenario.new.status(id).await.expect("read"), InstanceStatus::Running);
        assert_eq!(scenario.old.status(id).await.expect("read"), InstanceStatus::Paused);
    }
    assert_eq!(scenario.old.violations(), []);
}

fn journal_labels(instance: &Instance) -> usize {
    let ours = |key: &&saasodoo_core::LabelKey| key.as_str().starts_with("migration.saasodoo.io/");
    instance.spec.labels.keys().filter(ours).count()
}

/// Processes that share nothing but the platforms take one migration to its end, whenever each of them dies.
#[tokio::test(start_paused = true)]
async fn the_objects_themselves_are_a_journal() {
    let mut rests = BTreeSet::new();
    for step in 1..40 {
        let life = Duration::from_millis(step * 350);
        let (scenario, spec, location) = one().await;
        let mut lives = 0;
        let record = loop {
            lives += 1;
            assert!(lives < 60, "it never ends with lives of {life:?}");
            let migrator = on_objects(&scenario, quick());
            let control = Control::new();
            let work = migrator.migrate(spec.id, Force::none(), &control);
            if let Ok(answer) = tokio::time::timeout(life * lives, work).await {
                break answer.expect("it rests");
            }
        };
        assert_eq!(record.step, Step::Committed, "{life:?}: {:?}", record.failure);
        rests.insert(lives);
        let kept = scenario.old.get(spec.id).await.expect("kept");
        assert_eq!(kept.status, InstanceStatus::Paused);
        assert!(journal_labels(&kept) >= 4);
        // Another process takes it back, and cleans up behind itself.
        let record = on_objects(&scenario, quick()).rollback(spec.id).await.expect("back");
        assert_eq!(record.step, Step::RolledBack);
        let home = scenario.old.get(spec.id).await.expect("home");
        assert_eq!((home.status, journal_labels(&home)), (InstanceStatus::Running, 0));
        assert_eq!(home.spec.diff(&spec), [], "nothing of the journal is left in the spec");
        assert!(scenario.old.read_file(&location, "before").expect("readable").is_some());
        assert_eq!(scenario.old.violations(), []);
        assert!(
            on_objects(&scenario, quick())
                .status(spec.id)
                .await
                .expect("read")
                .is_none()
        );
    }
    assert!(rests.len() > 3, "{rests:?}");
}

#[tokio::test(start_paused = true)]
async fn two_processes_on_one_instance_are_noticed() {
    let (scenario, spec, _) = one().await;
    let (first, second) = (on_objects(&scenario, quick()), on_objects(&scenario, quick()));
    let control = Control::new();
    let pausing = control.clone();
    pausing.pause();
    first.migrate(spec.id, Force::none(), &control).await.expect("paused");
    control.resume();
    let (one, other) = tokio::join!(
        first.migrate(spec.id, Force::none(), &control),
        second.migrate(spec.id, Force::none(), &control)
    );
    let refused = [&one, &other]
        .into_iter()
        .filter(|answer| answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict))
        .count();
    assert!(refused >= 1, "{one:?} {other:?}");
    // Whoever is left, or the next one, brings it to an end.
    let record = on_objects(&scenario, quick())
        .migrate(spec.id, Force::none(), &Control::new())
        .await
        .expect("it ends");
    assert!(record.step.is_rest());
    let up = |status| status == InstanceStatus::Running;
    let (old, new) = (scenario.old.status(spec.id).await, scenario.new.status(spec.id).await);
    assert!(up(old.expect("read")) != up(new.expect("read")));
    assert_eq!(scenario.old.violations(), []);
}

/// A copy that a mirroring dual run keeps is what the migration then starts.
#[tokio::test(start_paused = true)]
async fn a_mirrored_copy_can_be_taken() {
    let scenario = Scenario::with_fleet(0).await.expect("an empty fleet");
    let dual = DualRun::builder(Arc::new(scenario.old.clone()), Arc::new(scenario.new.clone()))
        .policy(Policy::Mirror)
        .data_locator(Arc::new(RootedData::under(ROOT)))
        .build();
    let spec = fixtures::spec("acme");
    dual.create_and_wait(&spec, Duration::from_secs(60))
        .await
        .expect("created");
    pass(5).await;
    let secrets = || Arc::new(KnownSecrets::of([spec.clone()]));
    let refusing = scenario.migrator().secrets(secrets()).config(quick()).build();
    let record = refusing
        .migrate(spec.id, Force::none(), &Control::new())
        .await
        .expect("refused");
    assert_eq!(record.step, Step::RolledBack);
    assert!(
        scenario.new.exists(spec.id).await.expect("read"),
        "the copy is not the migration's to remove"
    );
    let mut config = quick();
    config.use_mirrored_copy = true;
    let taking = scenario.migrator().secrets(secrets()).config(config).build();
    let record = taking
        .retry(spec.id, Force::none(), &Control::new())
        .await
        .expect("moved");
    assert_eq!(record.step, Step::Committed, "{:?}", record.failure);
    assert_eq!(
        scenario.new.status(spec.id).await.expect("read"),
        InstanceStatus::Running
    );
    let record = taking.rollback(spec.id).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    assert_eq!(
        scenario.new.status(spec.id).await.expect("read"),
        InstanceStatus::Paused
    );
    assert_eq!(scenario.old.violations(), []);
}

/// Neither way touches data, and a purge of what adopted its directory leaves it.
#[tokio::test(start_paused = true)]
async fn adopted_data_survives_a_purge() {
    let (scenario, spec, location) = one().await;
    let migrator = scenario.migrator().config(quick()).build();
    migrate(&migrator, spec.id).await;
    migrator.finish(spec.id, true).await.expect("finished");
    let plan = scenario
        .new
        .plan(&saasodoo_core::Operation::Purge(spec.id))
        .await
        .expect("a plan");
    let token = plan.purge_token.expect("a token");
    let options = saasodoo_core::DeleteOptions::purge(token);
    scenario.new.delete(spec.id, options).await.expect("deleted");
    assert_eq!(
        scenario
            .new
            .read_file(&location, "before")
            .expect("readable")
            .as_deref(),
        Some(&b"1"[..])
    );
    assert!(
        scenario
            .old
            .list_all(InstanceFilter::all())
            .await
            .expect("listed")
            .is_empty()
    );
}
