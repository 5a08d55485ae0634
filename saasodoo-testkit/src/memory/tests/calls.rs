//! Watching and reading, planned faults, and two platforms with the same data.

use super::*;

// --- watching and reading -----------------------------------------------------------------------------------------

fn told(event: &InstanceEvent) -> String {
    match event {
        InstanceEvent::Applied(instance) => instance.status.to_string(),
        InstanceEvent::Deleted(_) => "deleted".to_owned(),
        InstanceEvent::Synced => "synced".to_owned(),
        InstanceEvent::Stale(_) => "stale".to_owned(),
        other => format!("{other:?}"),
    }
}

/// The different things told, in order; units coming closer to being ready show the same status several times.
async fn take_until(watch: &mut futures::stream::BoxStream<'static, InstanceEvent>, last: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    loop {
        let event = told(&watch.next().await.expect("a watch never ends"));
        let done = event == last;
        if all.last() != Some(&event) {
            all.push(event);
        }
        if done {
            return all;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_watcher_hears_everything_also_what_time_brings() {
    let memory = MemoryOrchestrator::new();
    let old = spec("old");
    running(&memory, &old).await;
    let mut watches = [memory.watch(InstanceFilter::all()), memory.watch(InstanceFilter::all())];
    for watch in &mut watches {
        assert_eq!(take_until(watch, "synced").await, ["running", "synced"]);
    }
    let acting = memory.clone();
    let new = spec("new");
    let id = new.id;
    tokio::spawn(async move {
        running(&acting, &new).await;
        acting.stop(id).await.expect("stopped");
        acting
            .wait_until(id, InstanceStatus::Stopped, BUDGET)
            .await
            .expect("it stops");
        acting.start(id).await.expect("started");
        acting
            .wait_until(id, InstanceStatus::Running, BUDGET)
            .await
            .expect("it runs");
        acting.delete(id, DeleteOptions::retain()).await.expect("deleted");
    });
    for watch in &mut watches {
        assert_eq!(
            take_until(watch, "deleted").await,
            [
                "creating",
                "running",
                "stopping",
                "stopped",
                "starting",
                "running",
                "terminated",
                "deleted"
            ]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_hears_time_alone_without_anybody_calling() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    memory.create(&spec, CreateOptions::new()).await.expect("created");
    let mut watch = memory.watch(InstanceFilter::id(spec.id));
    let heard = tokio::time::timeout(BUDGET, take_until(&mut watch, "running")).await;
    assert_eq!(heard.expect("in time"), ["creating", "synced", "creating", "running"]);
    let calls = memory.calls().len();
    let quiet = tokio::time::timeout(Duration::from_secs(86_400), watch.next()).await;
    assert!(quiet.is_err(), "nothing more happens: {quiet:?}");
    assert_eq!(memory.calls().len(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_watch_filters_also_by_status() {
    let memory = MemoryOrchestrator::new();
    let (a, b) = (spec("a"), spec("b"));
    running(&memory, &a).await;
    running(&memory, &b).await;
    let mut watch = memory.watch(InstanceFilter::id(a.id).with_status(InstanceStatus::Running));
    assert_eq!(take_until(&mut watch, "synced").await, ["running", "synced"]);
    memory.stop(b.id).await.expect("stopped");
    memory.stop(a.id).await.expect("stopped");
    let event = watch.next().await.expect("an event");
    assert!(
        matches!(&event, InstanceEvent::Deleted(last) if last.id == a.id),
        "{event:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_was_cut_off_says_so_and_makes_up_for_it() {
    let memory = MemoryOrchestrator::new();
    let (kept, changed, gone) = (spec("kept"), spec("changed"), spec("gone"));
    for spec in [&kept, &changed, &gone] {
        running(&memory, spec).await;
    }
    let mut watch = memory.watch(InstanceFilter::all());
    take_until(&mut watch, "synced").await;
    memory.cut_watches(Duration::from_secs(30));
    assert_eq!(told(&watch.next().await.expect("an event")), "stale");
    assert_eq!(
        memory.health().await.check("watch").map(|check| check.state),
        Some(HealthState::Degraded)
    );
    memory.delete(gone.id, DeleteOptions::retain()).await.expect("deleted");
    memory.stop(changed.id).await.expect("stopped");
    let mut made_up = Vec::new();
    loop {
        match watch.next().await.expect("an event") {
            InstanceEvent::Applied(instance) => made_up.push((instance.id, instance.status.to_string())),
            InstanceEvent::Deleted(instance) => made_up.push((instance.id, "deleted".to_owned())),
            InstanceEvent::Synced => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        made_up,
        [(changed.id, "stopped".to_owned()), (gone.id, "deleted".to_owned())]
    );
    let mut late = memory.watch(InstanceFilter::all());
    assert_eq!(
        take_until(&mut late, "synced").await.last().map(String::as_str),
        Some("synced")
    );
}

#[tokio::test(start_paused = true)]
async fn logs_tail_follow_and_show_the_process_before() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let made = running(&memory, &spec).await;
    let unit = made.facts.units[0].id.clone();
    assert_eq!(
        lines(&memory, spec.id, LogOptions::all()).await,
        [
            format!("odoo-stub: starting on {unit}"),
            "odoo-stub: listening on 8069".to_owned()
        ]
    );
    assert_eq!(
        lines(&memory, spec.id, LogOptions::tail(1)).await,
        ["odoo-stub: listening on 8069"]
    );
    assert_eq!(
        lines(&memory, spec.id, LogOptions::all().previous()).await,
        Vec::<String>::new()
    );
    let mut followed = memory.logs(spec.id, LogOptions::tail(1).follow());
    let mut next = async || followed.next().await.expect("a line").expect("a line").text;
    assert_eq!(next().await, "odoo-stub: listening on 8069");
    memory.crash(spec.id, 9).expect("crashed");
    assert_eq!(next().await, "odoo-stub: crashing with 9");
    assert!(next().await.starts_with("odoo-stub: starting on"));
    let previous = lines(&memory, spec.id, LogOptions::all().previous()).await;
    assert_eq!(previous.last().map(String::as_str), Some("odoo-stub: crashing with 9"));
    let since = memory.get(spec.id).await.expect("it exists").facts.observed_at;
    assert_eq!(
        lines(&memory, spec.id, LogOptions::all().since(since)).await,
        Vec::<String>::new()
    );
    memory.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
    let rest: Vec<_> = followed.collect().await;
    assert!(rest.len() < 10, "a log ends with its instance");
    let absent: Vec<_> = memory.logs(spec.id, LogOptions::all()).collect().await;
    assert!(matches!(&absent[..], [Err(error)] if error.is_not_found()));
}

// --- faults -------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn planned_faults_befall_the_calls_they_name() {
    let memory = MemoryOrchestrator::builder()
        .faults(
            FaultPlan::new()
                .on(OperationKind::Create, 1, Fault::Fail(ErrorKind::Unavailable))
                .on(OperationKind::Create, 2, Fault::LoseResponse)
                .on(OperationKind::Get, 1, Fault::Fail(ErrorKind::Throttled))
                .on(OperationKind::List, 1, Fault::Fail(ErrorKind::Forbidden))
                .on(OperationKind::Health, 1, Fault::Fail(ErrorKind::Unavailable))
                .on(OperationKind::Logs, 1, Fault::Fail(ErrorKind::Timeout)),
        )
        .build();
    let spec = spec("acme");
    let error = memory.create(&spec, CreateOptions::new()).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.operation(), Some(OperationKind::Create));
    assert_eq!(memory.volumes().len(), 0, "nothing was done");
    let error = memory.create(&spec, CreateOptions::new()).await.expect_err("lost");
    assert_eq!(error.retry(), Retry::OutcomeUnknown);
    let again = memory.create(&spec, CreateOptions::new()).await.expect("it was done");
    assert_eq!(again.outcome, EnsureOutcome::Unchanged);
    assert_eq!(
        memory.get(spec.id).await.expect_err("planned").kind(),
        ErrorKind::Throttled
    );
    memory.get(spec.id).await.expect("only the first");
    let list = memory.list_all(InstanceFilter::all()).await;
    assert_eq!(list.expect_err("planned").kind(), ErrorKind::Forbidden);
    assert!(!memory.health().await.is_ready());
    assert!(memory.health().await.is_ready());
    let logs: Vec<_> = memory.logs(spec.id, LogOptions::all()).collect().await;
    assert!(matches!(&logs[..], [Err(error)] if error.kind() == ErrorKind::Timeout));

    let calls = memory.calls();
    assert_eq!(memory.count_calls(OperationKind::Create), 3);
    assert_eq!(calls[1].fault, Some(Fault::LoseResponse));
    assert_eq!(
        (calls[0].operation, calls[0].instance),
        (OperationKind::Create, Some(spec.id))
    );
}

#[tokio::test(start_paused = true)]
async fn slow_hanging_and_panicking_calls() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    running(&memory, &spec).await;
    memory.plan_faults(
        FaultPlan::new()
            .on(OperationKind::SetPower, 1, Fault::Delay(Duration::from_secs(5)))
            .on(OperationKind::SetPower, 2, Fault::DelayResponse(Duration::from_secs(5)))
            .on(OperationKind::SetPower, 3, Fault::Hang)
            .on(OperationKind::SetPower, 4, Fault::HangAfter)
            .on(OperationKind::SetPower, 5, Fault::Panic),
    );
    let call = |power| {
        let memory = memory.clone();
        async move { tokio::time::timeout(Duration::from_secs(2), memory.set_power(spec.id, power)).await }
    };
    assert!(call(Power::Stop).await.is_err());
    assert_eq!(
        seen(&memory, spec.id).await.0,
        InstanceStatus::Running,
        "still on its way"
    );
    seconds(10).await;
    assert_eq!(
        seen(&memory, spec.id).await.0,
        InstanceStatus::Stopped,
        "dropping the future did not stop it"
    );
    assert!(call(Power::Start).await.is_err());
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Starting);
    assert!(call(Power::Stop).await.is_err());
    seconds(10).await;
    assert_eq!(
        seen(&memory, spec.id).await.0,
        InstanceStatus::Running,
        "it never arrived"
    );
    assert!(call(Power::Stop).await.is_err());
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Stopped, "it was done");
    let panicked = tokio::spawn(call(Power::Start)).await;
    assert!(panicked.expect_err("it panics").is_panic());
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_cannot_begin_is_stale_and_tries_again() {
    let memory = MemoryOrchestrator::builder()
        .faults(FaultPlan::new().on(OperationKind::Watch, 1, Fault::Fail(ErrorKind::Forbidden)))
        .build();
    let mut watch = memory.watch(InstanceFilter::all());
    assert_eq!(take_until(&mut watch, "synced").await, ["stale", "synced"]);
}

// --- two platforms ------------------------------------------------------------------------------------------------

fn pair() -> (MemoryOrchestrator, MemoryOrchestrator) {
    let swarm = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
    let kubernetes = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Kubernetes)
        .sharing_data_with(&swarm)
        .build();
    (swarm, kubernetes)
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_adopted_by_the_other_platform_and_two_writers_are_noticed() {
    let (swarm, kubernetes) = pair();
    let spec = spec("acme");
    let source = running(&swarm, &spec).await;
    let StorageLocation::Directory { path } = location(&source) else {
        panic!("a directory on Swarm: {:?}", source.storage);
    };
    swarm.write_file(&location(&source), "a", "1").expect("written");
    let path: DataPath = path.rsplit('/').next().expect("a name").parse().expect("a path");
    let options = CreateOptions::new()
        .with_data(DataPolicy::AdoptDirectory(path))
        .stopped();
    let target = kubernetes.create(&spec, options).await.expect("adopted");
    assert_eq!(target.outcome, EnsureOutcome::Adopted);
    assert!(
        kubernetes
            .read_file(&location(&target.instance), "a")
            .expect("there")
            .is_some()
    );
    assert_eq!(swarm.violations(), []);

    // The broken fence: started while the other side still runs. Nobody looks at the other side meanwhile.
    kubernetes.start(spec.id).await.expect("started");
    seconds(5).await;
    assert!(
        matches!(&swarm.violations()[..], [Violation::TwoWriters { writers, .. }] if writers.len() == 2),
        "{:?}",
        swarm.violations()
    );
    assert_eq!(kubernetes.writers(&location(&target.instance)).expect("there").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_after_the_other_is_no_violation_even_if_nobody_looked_in_between() {
    let (swarm, kubernetes) = pair();
    let spec = spec("acme");
    let source = running(&swarm, &spec).await;
    swarm.stop(spec.id).await.expect("stopped");
    seconds(30).await;
    let path = format!("odoo_data_acme_{}", spec.id.short()).parse().expect("a path");
    let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory(path));
    kubernetes.create(&spec, options).await.expect("adopted");
    seconds(30).await;
    assert_eq!(swarm.violations(), []);
    let units: std::collections::BTreeSet<_> = swarm
        .heartbeats(&location(&source))
        .expect("there")
        .into_iter()
        .map(|beat| beat.unit)
        .collect();
    assert_eq!(units.len(), 2, "both have written, one after the other");
    // Rolling back or purging the adopting side leaves the directory where it is.
    let plan = kubernetes.plan(&Operation::Purge(spec.id)).await.expect("a plan");
    let token = plan.purge_token.expect("a token");
    assert_eq!(token.objects(), []);
    let deleted = kubernetes
        .delete(spec.id, DeleteOptions::purge(token))
        .await
        .expect("deleted");
    assert!(deleted.retained.is_some() && deleted.purged.is_empty());
    assert_eq!(swarm.volumes().len(), 1);
    swarm.start(spec.id).await.expect("started");
    swarm
        .wait_until(spec.id, InstanceStatus::Running, BUDGET)
        .await
        .expect("it runs");
    assert_eq!(swarm.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn what_ends_at_a_moment_has_ended_for_what_begins_at_it() {
    for first in 0..2 {
        let (swarm, kubernetes) = pair();
        let place = swarm.make_directory(&"shared".parse().expect("a path"));
        let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory("shared".parse().expect("a path")));
        let spec = spec("acme");
        let sides = [&swarm, &kubernetes];
        for side in sides {
            side.create(&spec, options.clone().stopped()).await.expect("adopted");
        }
        sides[first].start(spec.id).await.expect("started");
        seconds(10).await;
        sides[first].stop(spec.id).await.expect("stopped");
        millis(900).await;
        assert_eq!(swarm.writers(&place).expect("there").len(), 1, "for another 100 ms");
        sides[1 - first]
            .start(spec.id)
            .await
            .expect("it opens the data after 100 ms");
        seconds(10).await;
        assert_eq!(swarm.violations(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn everything_is_the_same_in_every_run() {
    async fn run() -> Vec<String> {
        let memory = MemoryOrchestrator::builder()
            .seed(7)
            .starting_at("2026-03-01T12:00:00.7Z".parse().expect("a time"))
            .build();
        let mut watch = memory.watch(InstanceFilter::all());
        let mut seen = Vec::new();
        for spec in fixtures::fleet(5) {
            memory.create(&spec, CreateOptions::new()).await.expect("created");
            memory.cause(spec.id, Trouble::CrashLoop { exit_code: 1 });
        }
        while seen.len() < 60 {
            seen.push(format!("{:?}", watch.next().await));
        }
        seen
    }
    assert_eq!(run().await, run().await);
}

/// Not paused: what the quickstart and several threads at once see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_also_works_on_a_running_clock_and_on_several_threads() {
    let quick = Duration::from_millis(5);
    let memory = MemoryOrchestrator::builder()
        .pull_time(quick)
        .start_time(quick)
        .stop_time(quick)
        .build();
    let mut watch = memory.watch(InstanceFilter::all());
    let fleet = fixtures::fleet(10);
    let tasks: Vec<_> = fleet
        .iter()
        .cloned()
        .map(|spec| {
            let memory = memory.clone();
            tokio::spawn(async move { running(&memory, &spec).await })
        })
        .collect();
    let mut up = std::collections::BTreeSet::new();
    let all_up = async {
        while up.len() < fleet.len() {
            if let Some(InstanceEvent::Applied(instance)) = watch.next().await
                && instance.status == InstanceStatus::Running
            {
                up.insert(instance.id);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_up)
        .await
        .expect("every instance is reported as running");
    for task in tasks {
        assert_eq!(task.await.expect("no panic").status, InstanceStatus::Running);
    }
    for spec in &fleet {
        assert!(
            memory
                .delete(spec.id, DeleteOptions::retain())
                .await
                .expect("deleted")
                .existed
        );
    }
    assert_eq!(memory.list_all(InstanceFilter::all()).await.expect("a list").len(), 0);
    assert_eq!(memory.violations(), []);
}
