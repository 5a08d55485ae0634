//! Whatever is done in whatever order, with whatever going wrong: no data is lost, no two units of one volume live at
//! once, and every way to look shows the same.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use proptest::prelude::*;
use saasodoo_core::{
    BackendKind, Bytes, CreateOptions, DataPolicy, DeleteOptions, EnsureOutcome, ErrorKind, Instance, InstanceChange,
    InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt, Operation, OperationKind,
    Power, StorageLocation, UpdateOptions,
};
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::{Fault, FaultPlan, MemoryOrchestrator, Trouble};

/// One thing that somebody does, to one of three instances.
#[derive(Debug, Clone)]
enum Step {
    Create { stopped: bool, adopt: bool },
    Grow(u32),
    Memory(u32),
    Crashing(bool),
    Power(Power),
    Delete,
    Purge,
    Cause(Trouble),
    Clear,
    Crash,
    Faults(FaultPlan),
    CutWatches,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let power = prop_oneof![
        Just(Power::Start),
        Just(Power::Stop),
        Just(Power::Restart),
        Just(Power::Suspend),
        Just(Power::Resume),
    ];
    let trouble = prop_oneof![
        Just(Trouble::CrashLoop { exit_code: 1 }),
        Just(Trouble::OutOfMemory),
        Just(Trouble::ImagePull),
        Just(Trouble::NodeLost),
        Just(Trouble::StoragePending),
        Just(Trouble::MountFailed),
        Just(Trouble::Unschedulable),
        Just(Trouble::QuotaExceeded),
        Just(Trouble::Unready),
    ];
    let operation = prop_oneof![
        Just(OperationKind::Create),
        Just(OperationKind::Update),
        Just(OperationKind::SetPower),
        Just(OperationKind::Delete),
    ];
    let fault = prop_oneof![
        Just(Fault::Fail(ErrorKind::Unavailable)),
        Just(Fault::LoseResponse),
        Just(Fault::Delay(Duration::from_secs(3))),
        Just(Fault::DelayResponse(Duration::from_secs(3))),
        Just(Fault::Hang),
        Just(Fault::HangAfter),
    ];
    prop_oneof![
        4 => (any::<bool>(), any::<bool>()).prop_map(|(stopped, adopt)| Step::Create { stopped, adopt }),
        1 => (5u32..20).prop_map(Step::Grow),
        1 => (1u32..4).prop_map(Step::Memory),
        1 => any::<bool>().prop_map(Step::Crashing),
        4 => power.prop_map(Step::Power),
        2 => Just(Step::Delete),
        1 => Just(Step::Purge),
        2 => trouble.prop_map(Step::Cause),
        2 => Just(Step::Clear),
        1 => Just(Step::Crash),
        2 => (operation, 1u32..3, fault).prop_map(|(operation, nth, fault)| {
            Step::Faults(FaultPlan::new().on(operation, nth, fault))
        }),
        1 => Just(Step::CutWatches),
        4 => (0u64..20_000).prop_map(Step::Wait),
    ]
}

/// What must be true of an instance's data.
struct Data {
    location: StorageLocation,
    content: String,
}

struct Run {
    memory: MemoryOrchestrator,
    watch: BoxStream<'static, InstanceEvent>,
    believed: BTreeMap<InstanceId, Instance>,
    in_step: bool,
    data: BTreeMap<InstanceId, Data>,
    written: u32,
}

/// What two looks at the same moment must agree on.
fn essence(instance: &Instance) -> Instance {
    let mut instance = instance.clone();
    instance.facts.observed_at = jiff::Timestamp::UNIX_EPOCH;
    instance.provenance.observed_at = jiff::Timestamp::UNIX_EPOCH;
    instance.storage.used = None;
    instance
}

impl Run {
    fn new() -> Self {
        let memory = MemoryOrchestrator::new();
        Self {
            watch: memory.watch(InstanceFilter::all()),
            memory,
            believed: BTreeMap::new(),
            in_step: false,
            data: BTreeMap::new(),
            written: 0,
        }
    }

    async fn take(&mut self, which: usize, step: Step) -> Result<(), TestCaseError> {
        let memory = self.memory.clone();
        let spec = fixtures::fleet(3).swap_remove(which);
        let id = spec.id;
        // A call may hang: its caller gives up, and looks again later.
        let patience = Duration::from_secs(10);
        match step {
            Step::Create { stopped, adopt } => {
                let mut options = CreateOptions::new();
                options.stopped = stopped;
                if adopt {
                    options.data = DataPolicy::AdoptRetained;
                }
                let answer = tokio::time::timeout(patience, memory.create(&spec, options)).await;
                if let Ok(Ok(ensured)) = answer {
                    let known = self.data.contains_key(&id);
                    prop_assert!(
                        ensured.outcome != EnsureOutcome::Created || !known,
                        "new data for an instance that had some"
                    );
                }
            }
            Step::Grow(gib) => {
                let change = InstanceChange::new().storage(Bytes::from_gib(gib));
                let _ = tokio::time::timeout(patience, memory.update(id, &change, UpdateOptions::new())).await;
            }
            Step::Memory(gib) => {
                let change = InstanceChange::new().memory(Bytes::from_gib(gib));
                let _ = tokio::time::timeout(patience, memory.update(id, &change, UpdateOptions::new())).await;
            }
            Step::Crashing(on) => {
                let name = "CRASH".parse().expect("a name");
                let change = InstanceChange::new();
                let change = if on {
                    change.set_env(name, "1")
                } else {
                    change.unset_env(name)
                };
                let _ = tokio::time::timeout(patience, memory.update(id, &change, UpdateOptions::new())).await;
            }
            Step::Power(power) => {
                let _ = tokio::time::timeout(patience, memory.set_power(id, power)).await;
            }
            Step::Delete => {
                let _ = tokio::time::timeout(patience, memory.delete(id, DeleteOptions::retain())).await;
            }
            Step::Purge => {
                let plan = memory.plan(&Operation::Purge(id)).await.expect("a plan");
                if let Some(token) = plan.purge_token {
                    // From here on the data may go at any time: it was asked for.
                    self.data.remove(&id);
                    let _ = tokio::time::timeout(patience, memory.delete(id, DeleteOptions::purge(token))).await;
                    // A purge that is still on its way is waited for, so that what follows is about new data.
                    memory.plan_faults(FaultPlan::new());
                    memory.clear(id);
                    tokio::time::sleep(patience).await;
                }
            }
            Step::Cause(trouble) => memory.cause(id, trouble),
            Step::Clear => memory.clear(id),
            Step::Crash => drop(memory.crash(id, 1)),
            Step::Faults(plan) => memory.plan_faults(plan),
            Step::CutWatches => memory.cut_watches(Duration::from_secs(7)),
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
        self.check().await
    }

    async fn check(&mut self) -> Result<(), TestCaseError> {
        let violations = self.memory.violations();
        prop_assert!(violations.is_empty(), "{violations:?}");

        let listed = self.memory.list_all(InstanceFilter::all()).await.expect("a list");
        for instance in &listed {
            let live = instance.facts.units.iter().filter(|unit| unit.is_live()).count();
            prop_assert!(live <= 1, "{:?}", instance.facts.units);
            let location = instance.storage.location.clone().expect("a place");
            prop_assert!(self.memory.writers(&location).expect("there").len() <= 1);
            let got = self.memory.get(instance.id).await.expect("what is listed exists");
            prop_assert_eq!(essence(&got), essence(instance));
            // Each instance's first data is marked, and the mark must stay.
            if !self.data.contains_key(&instance.id) && !instance.facts.deleting {
                self.written += 1;
                let content = format!("data {}", self.written);
                self.memory
                    .write_file(&location, "mark", content.clone())
                    .expect("room");
                self.data.insert(instance.id, Data { location, content });
            }
        }
        for spec in fixtures::fleet(3) {
            let there = listed.iter().any(|instance| instance.id == spec.id);
            prop_assert_eq!(self.memory.exists(spec.id).await.expect("an answer"), there);
        }
        for (id, Data { location, content }) in &self.data {
            let read = self.memory.read_file(location, "mark");
            prop_assert!(read.is_ok(), "the data of {id} is gone: {read:?}");
            prop_assert_eq!(read.ok().flatten(), Some(content.clone().into_bytes()));
        }

        while let Some(event) = self.watch.next().now_or_never() {
            match event.expect("a watch never ends") {
                InstanceEvent::Applied(instance) => drop(self.believed.insert(instance.id, *instance)),
                InstanceEvent::Deleted(instance) => {
                    prop_assert!(
                        self.believed.remove(&instance.id).is_some(),
                        "told to be gone, never told to be"
                    );
                }
                InstanceEvent::Synced => self.in_step = true,
                InstanceEvent::Stale(_) => self.in_step = false,
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
        }
        if self.in_step {
            let believed: Vec<Instance> = self.believed.values().map(essence).collect();
            let shown: Vec<Instance> = listed.iter().map(essence).collect();
            prop_assert_eq!(believed, shown, "the watch shows something else than the list");
        }
        Ok(())
    }
}

fn paused<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn nothing_loses_data_or_runs_twice_and_all_looks_agree(steps in prop::collection::vec((0usize..3, step()), 1..60)) {
        paused(async {
            let mut run = Run::new();
            for (which, step) in steps {
                run.take(which, step).await?;
            }
            // When all trouble is over, what shall run runs.
            run.memory.plan_faults(FaultPlan::new());
            let name = || "CRASH".parse().expect("a name");
            for spec in fixtures::fleet(3) {
                run.memory.clear(spec.id);
                let _ = run.memory.update(spec.id, &InstanceChange::new().unset_env(name()), UpdateOptions::new()).await;
            }
            tokio::time::sleep(Duration::from_secs(900)).await;
            run.check().await?;
            prop_assert!(run.in_step);
            for instance in run.memory.list_all(InstanceFilter::all()).await.expect("a list") {
                prop_assert!(!instance.status.is_transitional(), "{} {:?}", instance.status, instance.cause);
                prop_assert_eq!(instance.replicas.ready, instance.replicas.desired);
            }
            Ok(())
        })?;
    }

    /// Two platforms on the same data, started and stopped without any fence: the store notices exactly when both live.
    #[test]
    fn two_writers_are_noticed_exactly_when_there_are_two(steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0u64..3_000), 1..20)) {
        paused(async {
            let swarm = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
            let kubernetes = MemoryOrchestrator::builder()
                .posing_as(BackendKind::Kubernetes)
                .sharing_data_with(&swarm)
                .build();
            let path: saasodoo_core::DataPath = "shared".parse().expect("a path");
            let place = swarm.make_directory(&path);
            let spec = fixtures::spec("acme");
            let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory(path)).stopped();
            for side in [&swarm, &kubernetes] {
                side.create(&spec, options.clone()).await.expect("adopted");
            }
            let mut both = false;
            for (left, start, wait) in steps {
                let side = if left { &swarm } else { &kubernetes };
                let power = if start { Power::Start } else { Power::Stop };
                side.set_power(spec.id, power).await.expect("done");
                // Looked at every 50 ms, which is finer than every time of the simulation.
                for _ in 0..=(wait / 50) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    both |= swarm.writers(&place).expect("there").len() > 1;
                }
            }
            prop_assert_eq!(!swarm.violations().is_empty(), both);
            Ok(())
        })?;
    }
}
