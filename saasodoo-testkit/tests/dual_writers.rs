//! What is said about two writers, and about which side is which.

use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use saasodoo_core::dual::{
    Comparator, DivergenceKind, DualRun, DualRunBuilder, MemoryPlacement, MemorySink, Place, Policy, compare_fleets,
};
use saasodoo_core::migration::{Control, Force, RootedData};
use saasodoo_core::{
    BackendKind, Bytes, CreateOptions, Facts, Instance, InstanceFilter, InstanceId, InstanceOrchestrator,
    InstanceOrchestratorExt, InstanceSpec, Provenance,
};
use saasodoo_testkit::explorer::Scenario;
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::MemoryOrchestrator;
use saasodoo_testkit::mock::MockOrchestrator;

const ROOT: &str = "/mnt/cephfs/odoo_instances";

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn pair() -> (MemoryOrchestrator, MemoryOrchestrator) {
    let primary = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
    let secondary = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Kubernetes)
        .sharing_data_with(&primary)
        .build();
    (primary, secondary)
}

fn builder(primary: &MemoryOrchestrator, secondary: &MemoryOrchestrator, sink: &Arc<MemorySink>) -> DualRunBuilder {
    DualRun::builder(Arc::new(primary.clone()), Arc::new(secondary.clone()))
        .sink(sink.clone())
        .data_locator(Arc::new(RootedData::under(ROOT)))
}

type Values = (Option<String>, Option<String>);

fn writers(sink: &MemorySink) -> Vec<Values> {
    let found = sink.divergences().into_iter().filter_map(|found| match found.kind {
        DivergenceKind::Field {
            field,
            primary,
            secondary,
        } if field == "writers" => Some((primary, secondary)),
        _ => None,
    });
    found.collect()
}

fn both() -> Values {
    (Some("1 desired".to_owned()), Some("1 desired".to_owned()))
}

/// Whatever the comparator ignores.
#[tokio::test(start_paused = true)]
async fn a_mirrored_copy_that_runs_is_reported() {
    for comparator in [Comparator::mirrored(), Comparator::observed(), Comparator::strict()] {
        let (primary, secondary) = pair();
        let sink = Arc::new(MemorySink::new());
        let dual = builder(&primary, &secondary, &sink)
            .policy(Policy::Mirror)
            .comparator(comparator)
            .build();
        let spec = fixtures::spec("acme");
        dual.create(&spec, CreateOptions::new()).await.expect("created");
        pass(60).await;
        dual.get(spec.id).await.expect("there");
        pass(60).await;
        assert_eq!(writers(&sink), []);
        secondary.resume(spec.id).await.expect("resumed");
        secondary.start(spec.id).await.expect("started");
        dual.get(spec.id).await.expect("there");
        pass(29).await;
        assert_eq!(writers(&sink), [], "within the window nothing is said");
        pass(60).await;
        assert_eq!(writers(&sink), [both()]);
        let swept = dual.sweep(InstanceFilter::all()).await.expect("compared");
        assert!(
            swept
                .divergences()
                .any(|(id, field)| id == spec.id && field.field == "writers")
        );
        assert!(!primary.violations().is_empty());
    }
}

/// The instance, on both sides and running.
async fn both_run(primary: &MemoryOrchestrator, secondary: &MemoryOrchestrator, spec: &InstanceSpec) {
    for side in [primary, secondary] {
        side.create_and_wait(spec, Duration::from_secs(60))
            .await
            .expect("created");
    }
}

/// Two fleets on data of their own are only looked at, until it is recorded where a tenant lives.
#[tokio::test(start_paused = true)]
async fn two_that_run_on_their_own_data_are_two_writers_only_where_one_place_is_recorded() {
    for recorded in [false, true] {
        let (primary, secondary) = pair();
        let sink = Arc::new(MemorySink::new());
        let spec = fixtures::spec("acme");
        both_run(&primary, &secondary, &spec).await;
        let placement = MemoryPlacement::of(recorded.then_some((spec.id, Place::Secondary)));
        let dual = builder(&primary, &secondary, &sink)
            .policy(Policy::Observe)
            .placement(Arc::new(placement))
            .build();
        dual.get(spec.id).await.expect("there");
        pass(60).await;
        let expected = if recorded { vec![both()] } else { Vec::new() };
        assert_eq!(writers(&sink), expected);
    }
}

/// The placement was forgotten, and billing has resumed the tenant where it came from.
#[tokio::test(start_paused = true)]
async fn two_that_run_on_one_directory_are_two_writers() {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let id = scenario.ids()[0];
    let moved = scenario
        .migrator()
        .build()
        .migrate(id, Force::none(), &Control::new())
        .await;
    moved.expect("moved");
    let sink = Arc::new(MemorySink::new());
    let dual = builder(&scenario.old, &scenario.new, &sink)
        .policy(Policy::Observe)
        .build();
    dual.get(id).await.expect("there");
    pass(60).await;
    assert_eq!(writers(&sink), []);
    dual.resume(id).await.expect("resumed");
    dual.start(id).await.expect("started");
    dual.get(id).await.expect("there");
    pass(60).await;
    assert_eq!(writers(&sink), [both()]);
}

#[tokio::test(start_paused = true)]
async fn a_divergence_says_on_which_side_the_instance_lives() {
    let (primary, secondary) = pair();
    let sink = Arc::new(MemorySink::new());
    let spec = fixtures::spec("acme");
    both_run(&primary, &secondary, &spec).await;
    secondary
        .edit_by_hand(spec.id, |spec| spec.resources.memory = Bytes::from_gib(7))
        .expect("there");
    pass(60).await;
    let placement = Arc::new(MemoryPlacement::of([(spec.id, Place::Secondary)]));
    let dual = builder(&primary, &secondary, &sink)
        .policy(Policy::Observe)
        .placement(placement)
        .build();
    dual.get(spec.id).await.expect("there");
    pass(60).await;
    let found = sink.divergences();
    let memory = found
        .iter()
        .find(|found| found.to_string().contains("resources.memory"));
    let memory = memory.expect("found");
    assert_eq!(memory.home, Place::Secondary);
    let text = memory.to_string();
    assert!(
        text.contains("7Gi on the secondary") && text.contains("2Gi on the primary"),
        "{text}"
    );
}

/// One platform knows the whole id and the other eight digits of it.
#[tokio::test(start_paused = true)]
async fn fleets_are_compared_by_eight_digits_where_no_more_is_known() {
    let spec = fixtures::spec("acme");
    let digits: InstanceId = spec.id.short().to_string().parse().expect("eight digits");
    let side = |kind, ids: Vec<InstanceId>| {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let instances: Vec<Instance> = ids
            .into_iter()
            .map(|id| {
                let mut spec = spec.clone();
                spec.id = id;
                let name = spec.object_name();
                Instance::observed(kind, name, spec, Facts::new(1, now), Provenance::live("1", now))
            })
            .collect();
        let mut mock = MockOrchestrator::new();
        mock.expect_list()
            .returning(move |_| Box::pin(stream::iter(instances.clone().into_iter().map(Ok))));
        mock
    };
    for (here, there) in [(digits, spec.id), (spec.id, digits)] {
        let (here, there) = (
            side(BackendKind::Swarm, vec![here]),
            side(BackendKind::Kubernetes, vec![there]),
        );
        let window = Duration::from_secs(30);
        let compared = compare_fleets(&here, &there, InstanceFilter::all(), &Comparator::strict(), window, 3).await;
        let compared = compared.expect("compared");
        assert_eq!(compared.divergences().collect::<Vec<_>>(), []);
        assert_eq!(compared.instances.keys().copied().collect::<Vec<_>>(), [spec.id]);
    }
}
