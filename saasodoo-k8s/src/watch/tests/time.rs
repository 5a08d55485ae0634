//! What changes by the passage of time alone.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_status_that_changes_with_time_alone_is_reported() {
    let api = FakeApi::new();
    api.deployment(1, 1);
    let started = now().to_string();
    api.put(
        "pods",
        "p-1",
        json!({
            "metadata": {"labels": fake::labels(1)},
            "status": {"phase": "Running", "containerStatuses": [{
                "name": "odoo", "ready": true, "restartCount": 1,
                "state": {"running": {"startedAt": started}},
                "lastState": {"terminated": {"finishedAt": started}}
            }]}
        }),
    );
    let mut events = cache(&api).watch(InstanceFilter::all());
    let snapshot = until_synced(&mut events).await;
    assert_ne!(
        applied(snapshot[0].clone()).status,
        InstanceStatus::Running,
        "not settled"
    );
    let start = tokio::time::Instant::now();
    assert_eq!(applied(next(&mut events).await).status, InstanceStatus::Running);
    let after = start.elapsed().as_secs();
    assert!((9..=12).contains(&after), "{after}");
    pass(60).await;
    assert_eq!(drain(&mut events), []);
}

#[tokio::test(start_paused = true)]
async fn ends_that_are_forgiven_after_ten_minutes_are_reported_then() {
    // A process that runs and does not answer, and one that is not started again.
    for phase in ["Running", "Pending"] {
        let api = FakeApi::new();
        api.deployment(1, 1);
        let begun = tokio::time::Instant::now();
        let at = now().to_string();
        let ended = json!({"terminated": {"finishedAt": at}});
        let state = match phase {
            "Running" => json!({"running": {"startedAt": at}}),
            _ => json!({}),
        };
        api.put(
            "pods",
            "p-1",
            json!({
                "metadata": {"labels": fake::labels(1)},
                "status": {"phase": phase, "containerStatuses": [{
                    "name": "odoo", "ready": false, "restartCount": 3, "state": state, "lastState": ended
                }]}
            }),
        );
        let mut events = cache(&api).watch(InstanceFilter::all());
        let snapshot = until_synced(&mut events).await;
        assert_eq!(
            applied(snapshot[0].clone()).status,
            InstanceStatus::Error,
            "a crash loop"
        );
        pass(595).await;
        assert_eq!(drain(&mut events), [], "{phase}");
        let forgiven = applied(next(&mut events).await);
        let after = begun.elapsed().as_secs();
        assert_eq!(
            (forgiven.status, forgiven.cause),
            (InstanceStatus::Starting, None),
            "{phase}"
        );
        assert!((599..=602).contains(&after), "{phase}: {after}");
        pass(60).await;
        assert_eq!(drain(&mut events), [], "{phase}");
    }
}
