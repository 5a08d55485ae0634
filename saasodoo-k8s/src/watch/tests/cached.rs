//! Answers without a request.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_cached_answer_is_never_older_than_the_callers_writes() {
    let api = FakeApi::new();
    let version = api.deployment(1, 0);
    let cache = cache(&api);
    assert!(cache.cached(id(1)).is_none(), "not started");
    let mut events = cache.watch(InstanceFilter::all());
    until_synced(&mut events).await;
    let requests = api.requests().len();
    assert!(
        cache.cached(id(1)).is_none(),
        "that its claim is missing is for the server to say"
    );
    api.claim(1, "512Mi");
    next(&mut events).await;
    let seen = cache.cached(id(1)).expect("it is in step");
    assert_eq!(
        (seen.provenance.source, seen.provenance.revision.as_str()),
        (Source::Cache, version.as_str())
    );
    assert!(cache.cached(id(2)).is_none(), "absence is for the server to say");
    assert!(cache.cached("00000001".parse().expect("a short id")).is_some());
    assert_eq!(api.requests().len(), requests, "without a request");

    api.pause_watches(true);
    let version = api.title(1, "mine");
    cache.wrote(id(1), Kind::Deployment, &version);
    assert!(cache.cached(id(1)).is_none());
    api.pause_watches(false);
    assert_eq!(applied(next(&mut events).await).spec.display_name, "mine");
    assert!(cache.cached(id(1)).is_some_and(|i| i.spec.display_name == "mine"));

    api.claim(1, "1Gi");
    next(&mut events).await;
    api.pause_watches(true);
    let grown = api.claim(1, "2Gi");
    cache.wrote(id(1), Kind::Claim, &grown);
    let newer = api.title(9, "another");
    assert!(newer > grown && cache.cached(id(1)).is_none());
    api.pause_watches(false);
    next(&mut events).await;
    next(&mut events).await;
    assert!(cache.cached(id(1)).is_some());

    api.pause_watches(true);
    api.remove_deployment(1);
    cache.deleted(id(1));
    assert!(cache.cached(id(1)).is_none());
    api.pause_watches(false);
    assert!(matches!(next(&mut events).await, InstanceEvent::Deleted(_)));
    assert!(cache.cached(id(1)).is_none());
    api.deployment(1, 0);
    next(&mut events).await;
    assert!(cache.cached(id(1)).is_some(), "a new one of the same id");
    cache.deleted(id(1));
    assert!(cache.cached(id(1)).is_none(), "the deletion's event is on its way");
}

#[tokio::test(start_paused = true)]
async fn two_deployments_of_one_short_id_are_not_mixed_up() {
    let api = FakeApi::new();
    api.deployment(1, 0);
    api.claim(1, "1Gi");
    let of_the_guide = json!({
        "metadata": {"labels": {"app": "odoo", "managed-by": "saasodoo", "instance-id": "00000001"}},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "odoo", "instance-id": "00000001"}}}
    });
    api.put("deployments", "odoo-other-00000001", of_the_guide.clone());
    let cache = cache(&api);
    let mut events = cache.watch(InstanceFilter::all());
    assert_eq!(until_synced(&mut events).await.len(), 2);
    assert!(cache.cached(id(1)).is_some(), "the whole UUID is unambiguous");
    assert!(
        cache
            .cached("00000001".parse().expect("short"))
            .is_some_and(|i| i.id.is_legacy()),
        "as is the exact label"
    );
    api.put("deployments", "odoo-third-00000001", of_the_guide);
    next(&mut events).await;
    assert!(
        cache.cached("00000001".parse().expect("short")).is_none(),
        "a contradiction is for the live read to tell"
    );
}
