//! When the tasks start and end.

use super::*;

#[tokio::test(start_paused = true)]
async fn one_set_of_watches_serves_all_and_ends_with_the_last_owner() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    let cache = cache(&api);
    settle().await;
    assert_eq!(api.requests(), Vec::<String>::new(), "lazy");
    let mut streams: Vec<Events> = (0..10).map(|_| cache.watch(InstanceFilter::all())).collect();
    for events in &mut streams {
        until_synced(events).await;
    }
    assert_eq!(api.open_watches(), 3);
    let weak = Arc::downgrade(&cache.0);
    drop(cache);
    settle().await;
    assert_eq!(api.open_watches(), 3, "a stream keeps the cache");
    drop(streams);
    settle().await;
    assert!(weak.upgrade().is_none());
    assert_eq!(api.open_watches(), 0);
    let requests = api.requests().len();
    advance(Duration::from_secs(600)).await;
    settle().await;
    assert_eq!(api.requests().len(), requests);
}

#[test]
fn outside_of_a_runtime_nothing_starts_and_nothing_panics() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let cache = {
        let _guard = runtime.enter();
        cache(&FakeApi::new())
    };
    assert!(!cache.start());
    assert_eq!(cache.health(), None);
    let mut events = cache.watch(InstanceFilter::all());
    assert_eq!(events.next().now_or_never(), None);
}
