//! Holds, orphans, adopted data, and what is done by hand.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_instance_that_crashes_once_after_a_long_time_is_not_being_created() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    let made = running(&memory, &spec).await;
    assert_eq!(made.facts.transition, None, "it is where it was to go");
    seconds(30 * 24 * 3600).await;
    memory.crash(spec.id, 1).expect("it has a process");
    let (status, cause) = code(&memory, spec.id).await;
    assert_eq!((status, cause), (InstanceStatus::Starting, Some("exited")));
    // Once a month is no loop, however often.
    for _ in 0..3 {
        seconds(30 * 24 * 3600).await;
        memory.crash(spec.id, 1).expect("it has a process");
        seconds(2).await;
        assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Starting);
    }
}

#[tokio::test(start_paused = true)]
async fn a_maintenance_refuses_starts_and_says_how_to_end_it() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    running(&memory, &spec).await;
    memory.hold_for_maintenance(spec.id, true).expect("held");
    for power in [Power::Start, Power::Restart] {
        let error = memory.set_power(spec.id, power).await.expect_err("held");
        assert_eq!(error.kind(), ErrorKind::NotAllowed);
        assert_eq!(error.advice(), Some("end the maintenance first"));
    }
    memory.resume(spec.id).await.expect("nothing to resume");
    memory.stop(spec.id).await.expect("allowed");
    seconds(5).await;
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Maintenance);
    memory.suspend(spec.id).await.expect("allowed");
    assert_eq!(seen(&memory, spec.id).await.0, InstanceStatus::Paused);
}

#[tokio::test(start_paused = true)]
async fn an_orphan_is_neither_there_nor_gone_while_its_process_lives() {
    for kind in [BackendKind::Memory, BackendKind::Kubernetes, BackendKind::Swarm] {
        let memory = MemoryOrchestrator::builder().posing_as(kind).build();
        let spec = spec("acme");
        let place = location(&running(&memory, &spec).await);
        let mut watch = memory.watch(InstanceFilter::all());
        assert!(matches!(watch.next().await, Some(InstanceEvent::Applied(_))));
        assert!(matches!(watch.next().await, Some(InstanceEvent::Synced)));
        memory.orphan(spec.id).expect("it exists");
        assert!(matches!(watch.next().await, Some(InstanceEvent::Deleted(gone)) if gone.id == spec.id));
        assert_eq!(memory.list_all(InstanceFilter::all()).await.expect("a list"), []);
        for error in [
            memory.get(spec.id).await.map(drop).expect_err("an orphan"),
            memory.start(spec.id).await.map(drop).expect_err("an orphan"),
            memory
                .delete(spec.id, DeleteOptions::retain())
                .await
                .map(drop)
                .expect_err("an orphan"),
            memory
                .create(&spec, CreateOptions::new())
                .await
                .map(drop)
                .expect_err("an orphan"),
        ] {
            assert_eq!((error.kind(), error.retry()), (ErrorKind::Conflict, Retry::After(None)));
        }
        assert_eq!(
            memory.writers(&place).expect("there").len(),
            1,
            "{kind}: it still writes"
        );
        seconds(60).await;
        let left = memory.writers(&place).expect("there").len();
        assert_eq!(
            left,
            usize::from(kind != BackendKind::Swarm),
            "{kind}: only Swarm drains it"
        );
        memory.clear(spec.id);
        seconds(5).await;
        assert!(memory.get(spec.id).await.expect_err("gone").is_not_found());
        let adopt = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
        memory.create(&spec, adopt).await.expect("its data is there");
        assert_eq!(memory.violations(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn retained_data_is_not_shrunk_by_adopting_it() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme").with_storage(Bytes::from_gib(20));
    running(&memory, &spec).await;
    memory.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
    let adopt = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    let smaller = spec.clone().with_storage(Bytes::from_gib(10));
    let error = memory.create(&smaller, adopt.clone()).await.expect_err("smaller");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["storage".to_owned()][..])
    );
    memory.create(&spec, adopt).await.expect("as large as it was");
}

#[tokio::test(start_paused = true)]
async fn an_adopted_directory_is_forgotten_by_a_purge_and_never_deleted() {
    let memory = MemoryOrchestrator::new();
    let place = memory.make_directory(&"shared".parse().expect("a path"));
    let spec = spec("acme");
    let adopt = CreateOptions::new().with_data(DataPolicy::AdoptDirectory("shared".parse().expect("a path")));
    memory.create(&spec, adopt).await.expect("adopted");
    memory.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
    let error = memory
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("left behind");
    assert_eq!(error.conflicts(), ["data"]);
    let plan = memory.plan(&Operation::Purge(spec.id)).await.expect("a plan");
    let purge = DeleteOptions::purge(plan.purge_token.expect("a token"));
    let answer = memory.delete(spec.id, purge).await.expect("forgotten");
    assert_eq!((answer.retained, answer.purged.len()), (Some(place), 0));
    assert_eq!(memory.volumes(), ["shared"]);
    let made = memory.create(&spec, CreateOptions::new()).await.expect("not stuck");
    assert_eq!(made.outcome, EnsureOutcome::Created);
}

#[tokio::test(start_paused = true)]
async fn a_list_on_kubernetes_knows_no_claims() {
    let memory = MemoryOrchestrator::builder().posing_as(BackendKind::Kubernetes).build();
    let spec = spec("acme");
    running(&memory, &spec).await;
    let listed = memory.list_all(InstanceFilter::all()).await.expect("a list");
    let storage = &listed[0].storage;
    assert_eq!(storage.state, StorageState::NotObserved);
    assert_eq!((storage.capacity, storage.used), (None, None));
    assert_eq!(storage.requested, Some(spec.storage));
    let seen = memory.get(spec.id).await.expect("it exists").storage;
    assert_eq!((seen.state, seen.capacity), (StorageState::Ready, Some(spec.storage)));
}

#[tokio::test(start_paused = true)]
async fn an_edit_by_hand_loses_no_change_of_somebody_else() {
    let memory = MemoryOrchestrator::new();
    let spec = spec("acme");
    running(&memory, &spec).await;
    let mut attempts = 0;
    memory
        .edit_by_hand(spec.id, |edited| {
            attempts += 1;
            if attempts == 1 {
                let other = memory.clone();
                other
                    .edit_by_hand(spec.id, |edited| edited.display_name = "Acme".to_owned())
                    .expect("edited");
            }
            edited.demo_data = true;
        })
        .expect("edited");
    let seen = memory.get(spec.id).await.expect("it exists").spec;
    assert_eq!(
        (attempts, seen.display_name.as_str(), seen.demo_data),
        (2, "Acme", true)
    );
    let error = memory
        .edit_by_hand(InstanceId::random(), |_| unreachable!("there is nothing to edit"))
        .expect_err("absent");
    assert!(error.is_not_found());
}
