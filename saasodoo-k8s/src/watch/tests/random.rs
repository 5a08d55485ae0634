//! Whatever happens, in any order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Something that happens to the server, its connections or the time.
#[derive(Debug, Clone)]
enum Step {
    Deployment(u32, i32),
    Title(u32, u8),
    RemoveDeployment(u32),
    Pod(u32, bool),
    RemovePod(u32),
    Claim(u32, u8),
    Close,
    Break,
    Down(bool),
    Silent(bool),
    Compact,
    Garbage,
    Wait(u16),
    Poll(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = 0..6_u32;
    let step = prop_oneof![
        4 => (n.clone(), 0..2).prop_map(|(n, replicas)| Step::Deployment(n, replicas)),
        2 => (n.clone(), any::<u8>()).prop_map(|(n, title)| Step::Title(n, title)),
        2 => n.clone().prop_map(Step::RemoveDeployment),
        4 => (n.clone(), any::<bool>()).prop_map(|(n, ready)| Step::Pod(n, ready)),
        2 => n.clone().prop_map(Step::RemovePod),
        1 => (n, 1..9_u8).prop_map(|(n, size)| Step::Claim(n, size)),
        2 => Just(Step::Close),
        1 => Just(Step::Break),
        2 => any::<bool>().prop_map(Step::Down),
        1 => any::<bool>().prop_map(Step::Silent),
        1 => Just(Step::Compact),
        1 => Just(Step::Garbage),
        3 => (0..40_000_u16).prop_map(Step::Wait),
        3 => (0..8_u8).prop_map(Step::Poll),
    ];
    prop::collection::vec(step, 0..60)
}

/// A subscriber's picture, kept by the events alone.
#[derive(Default)]
struct Picture {
    instances: BTreeMap<String, (String, InstanceStatus)>,
    synced: bool,
}

impl Picture {
    fn take(&mut self, event: InstanceEvent) -> Result<(), TestCaseError> {
        match event {
            InstanceEvent::Applied(i) => {
                self.instances
                    .insert(i.name.to_string(), (i.provenance.revision.clone(), i.status));
            }
            InstanceEvent::Deleted(i) => {
                prop_assert!(
                    self.instances.remove(i.name.as_str()).is_some(),
                    "deleted and never applied"
                );
            }
            InstanceEvent::Synced => {
                prop_assert!(!self.synced, "synced twice");
                self.synced = true;
            }
            InstanceEvent::Stale(_) => self.synced = false,
            other => panic!("unknown event {other:?}"),
        }
        Ok(())
    }
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let api = FakeApi::new();
    let cache = cache(&api);
    let (mut quick, mut slow) = (cache.watch(InstanceFilter::all()), cache.watch(InstanceFilter::all()));
    cache.start();
    let (mut seen, mut late) = (Picture::default(), Picture::default());
    for step in steps {
        match step {
            Step::Deployment(n, replicas) => drop(api.deployment(n, replicas)),
            Step::Title(n, title) => drop(api.title(n, &title.to_string())),
            Step::RemoveDeployment(n) => api.remove_deployment(n),
            Step::Pod(n, ready) => api.pod(n, "p", ready),
            Step::RemovePod(n) => api.remove_pod(n, "p"),
            Step::Claim(n, size) => drop(api.claim(n, &format!("{size}Gi"))),
            Step::Close => api.close_watches(),
            Step::Break => api.break_watches(),
            Step::Down(down) => api.down(down),
            Step::Silent(silent) => api.silent(silent),
            Step::Compact => api.compact(),
            Step::Garbage => api.send_raw("pods", "<html>\n"),
            Step::Wait(millis) => {
                advance(Duration::from_millis(millis.into())).await;
                settle().await;
            }
            Step::Poll(events) => {
                for _ in 0..events {
                    tokio::task::yield_now().await;
                    if let Some(Some(event)) = quick.next().now_or_never() {
                        seen.take(event)?;
                    }
                }
            }
        }
    }
    api.silent(false);
    api.down(false);
    pass(150).await;
    for (events, picture) in [(&mut quick, &mut seen), (&mut slow, &mut late)] {
        for event in drain(events) {
            picture.take(event)?;
        }
        prop_assert!(picture.synced);
    }
    let truth = api.list(&Small);
    prop_assert_eq!(&seen.instances, &truth);
    prop_assert_eq!(&late.instances, &truth);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_picture_is_that_of_a_list(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(run(steps))?;
    }
}
