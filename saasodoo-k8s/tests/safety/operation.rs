//! An instance that exists: reads, updates and power.

use super::*;

#[tokio::test(start_paused = true)]
async fn pods_without_a_deployment_are_not_an_absent_instance() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    server.put(VOLUMES, "pv-1", volume(&server, "Delete"));
    let token = token(&orchestrator).await;
    server.remove(DEPLOYMENTS, NAME);
    server.put(PODS, "old", pod("Running"));
    let error = orchestrator.get(id()).await.expect_err("it runs");
    assert_eq!(kinds(&error), LATER, "{error}");
    assert!(error.advice().is_some());
    assert!(orchestrator.exists(id()).await.is_err());
    server.take();
    let error = orchestrator
        .delete(id(), DeleteOptions::purge(token))
        .await
        .expect_err("its data is in use");
    assert_eq!(kinds(&error), LATER, "{error}");
    assert_eq!(writes(&server.take()), Vec::<String>::new());

    // A deletion waits for them, and the next read says that it is gone.
    let (deleted, ()) = tokio::join!(orchestrator.delete(id(), DeleteOptions::retain()), async {
        sleep(Duration::from_secs(5)).await;
        server.remove(PODS, "old");
    });
    let deleted = deleted.expect("gone");
    assert!(!deleted.existed && deleted.retained.is_some());
    let error = orchestrator.get(id()).await.expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_answer_of_the_server_is_no_absence() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let proxy = json!("<html>404 Not Found</html>");
    for (line, code, body, kind) in [
        (DEPLOYMENTS, 404, proxy.clone(), ErrorKind::Unavailable),
        (DEPLOYMENTS, 200, json!({}), ErrorKind::Unexpected),
        (
            DEPLOYMENTS,
            404,
            json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"}),
            ErrorKind::Unexpected,
        ),
        (PODS, 200, json!({"items": []}), ErrorKind::Unexpected),
    ] {
        server.refuse(&format!("GET {line}"), code, body);
        let error = orchestrator.get(id()).await.expect_err("no answer");
        assert_eq!(error.kind(), kind, "{line} {code}: {error}");
        let error = orchestrator
            .list_all(InstanceFilter::all())
            .await
            .expect_err("no answer");
        assert_eq!(error.kind(), kind, "{line} {code}: {error}");
        orchestrator
            .delete(id(), DeleteOptions::retain())
            .await
            .expect_err("no answer");
        server.heal();
    }
    server.take();
    // One object: its absence would let an update make a second route.
    for body in [proxy, json!({})] {
        let code = if body.is_object() { 200 } else { 404 };
        server.refuse(&format!("GET {ROUTES}/"), code, body);
        let mut route = Route::default();
        route.subdomain = Some("shop".parse().expect("a label"));
        let change = InstanceChange::new().route(route);
        orchestrator
            .update(id(), &change, UpdateOptions::new())
            .await
            .expect_err("no answer");
        assert_eq!(writes(&server.take()), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_does_not_restart_twice() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let stamp =
        |request: &Value| request["spec"]["template"]["metadata"]["annotations"]["saasodoo.io/restarted-at"].clone();
    server.lose("PATCH ");
    orchestrator.restart(id()).await.expect("restarted");
    let seen = server.take();
    let patches: Vec<&Seen> = seen.iter().filter(|request| request.method == "PATCH").collect();
    assert_eq!(patches.len(), 2, "sent again, and refused: it was done");
    let done = stamp(&server.get(DEPLOYMENTS, NAME).expect("stored"));
    assert!(done.is_string() && patches.iter().all(|patch| stamp(&patch.body) == done));

    // The next one is another one.
    sleep(Duration::from_secs(1)).await;
    orchestrator.restart(id()).await.expect("restarted");
    assert_ne!(stamp(&server.get(DEPLOYMENTS, NAME).expect("stored")), done);
}

#[tokio::test(start_paused = true)]
async fn an_update_whose_answer_was_lost_is_no_change_of_somebody_else() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let seen = orchestrator.get(id()).await.expect("there");
    let mut options = UpdateOptions::new();
    options.if_revision = Some(seen.provenance.revision);
    let change = InstanceChange::new().memory(Bytes::from_gib(3));
    server.lose("PATCH ");
    let answer = orchestrator
        .update(id(), &change, options.clone())
        .await
        .expect("updated");
    assert_eq!(answer.outcome, EnsureOutcome::Updated);
    let error = orchestrator
        .update(id(), &InstanceChange::new().memory(Bytes::from_gib(4)), options)
        .await
        .expect_err("an old revision");
    assert_eq!(error.conflicts(), ["revision"]);
}

#[tokio::test(start_paused = true)]
async fn a_route_is_changed_by_the_short_id_and_never_one_of_somebody_else() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let change = |label: &str| {
        let mut route = Route::default();
        route.subdomain = Some(label.parse().expect("a label"));
        InstanceChange::new().route(route)
    };
    for label in ["shop", "acme", "shop"] {
        let plan = orchestrator
            .plan(&Operation::Update(digits(), Box::new(change(label))))
            .await
            .expect("its own hosts");
        assert!(!plan.is_empty());
        let answer = orchestrator
            .update(digits(), &change(label), UpdateOptions::new())
            .await
            .expect("its own hosts");
        assert_eq!(answer.outcome, EnsureOutcome::Updated);
    }
    let seen = server.take();
    let patch = seen
        .iter()
        .rfind(|request| request.line() == format!("PATCH {ROUTES}/{NAME}"))
        .expect("a patch");
    let metadata = &patch.body["metadata"];
    assert!(metadata["uid"].is_string() && metadata["resourceVersion"].is_string());

    server.edit(ROUTES, NAME, |route| {
        route["metadata"]["ownerReferences"][0]["uid"] = json!("another")
    });
    let error = orchestrator
        .update(id(), &change("third"), UpdateOptions::new())
        .await
        .expect_err("somebody else's");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["route".to_owned()][..]),
        "{error}"
    );
    assert_eq!(writes(&server.take()), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_on_a_claim_that_is_going() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let going = |claim: &mut Value| claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    server.edit(CLAIMS, CLAIM, going);
    let seen = orchestrator.get(id()).await.expect("there");
    assert_eq!(seen.storage.state, StorageState::Missing);
    server.take();
    let change = InstanceChange::new().memory(Bytes::from_gib(3));
    let refused = [
        orchestrator.restart(id()).await.err(),
        orchestrator.update(id(), &change, UpdateOptions::new()).await.err(),
        orchestrator
            .plan(&Operation::SetPower(id(), Power::Restart))
            .await
            .err(),
        orchestrator
            .plan(&Operation::Update(id(), Box::new(change)))
            .await
            .err(),
        orchestrator
            .update(
                id(),
                &InstanceChange::new().storage(Bytes::from_gib(20)),
                UpdateOptions::new(),
            )
            .await
            .err(),
    ];
    for error in refused {
        assert_eq!(error.expect("refused").kind(), ErrorKind::StorageMissing);
    }
    assert_eq!(writes(&server.take()), Vec::<String>::new());
    orchestrator.stop(id()).await.expect("stopped");
    server.take();
    for error in [
        orchestrator.start(id()).await.expect_err("refused"),
        orchestrator
            .plan(&Operation::SetPower(id(), Power::Start))
            .await
            .expect_err("refused"),
    ] {
        assert_eq!(error.kind(), ErrorKind::StorageMissing, "{error}");
    }
    assert_eq!(writes(&server.take()), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_changed_strategy_is_put_right_before_a_pod_is_replaced() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    server.edit(DEPLOYMENTS, NAME, |deployment| {
        deployment["spec"]["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}});
    });
    let change = InstanceChange::new().memory(Bytes::from_gib(3));
    orchestrator
        .update(id(), &change, UpdateOptions::new())
        .await
        .expect("updated");
    let strategy = || server.get(DEPLOYMENTS, NAME).expect("stored")["spec"]["strategy"].clone();
    assert_eq!(strategy(), json!({"type": "Recreate"}));
    server.edit(DEPLOYMENTS, NAME, |deployment| {
        deployment["spec"]["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}});
    });
    orchestrator.restart(id()).await.expect("restarted");
    assert_eq!(strategy(), json!({"type": "Recreate"}));
}

#[tokio::test(start_paused = true)]
async fn slower_probes_get_a_later_end_of_the_rollout() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let mut probes = spec().probes;
    probes.startup_seconds = 3000;
    orchestrator
        .update(id(), &InstanceChange::new().probes(probes), UpdateOptions::new())
        .await
        .expect("updated");
    let stored = server.get(DEPLOYMENTS, NAME).expect("stored");
    assert_eq!(stored["spec"]["progressDeadlineSeconds"], 3120);
}

#[tokio::test(start_paused = true)]
async fn a_throttle_that_outlasts_the_deadline_stays_a_throttle() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let slow = json!({
        "kind": "Status", "code": 429, "reason": "TooManyRequests", "message": "later",
        "details": {"retryAfterSeconds": 3600},
    });
    server.refuse("PATCH", 429, slow);
    let begun = tokio::time::Instant::now();
    let error = orchestrator.stop(id()).await.expect_err("throttled");
    assert_eq!(
        kinds(&error),
        (ErrorKind::Throttled, Retry::After(Some(Duration::from_secs(3600)))),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn every_hold_keeps_the_instance_down() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    for (hold, advice) in [
        ("suspended", "resume it first"),
        ("maintenance", "end the maintenance first"),
        ("audit", "end the maintenance first"),
    ] {
        server.edit(DEPLOYMENTS, NAME, |deployment| {
            deployment["metadata"]["annotations"]["saasodoo.io/hold"] = json!(hold);
            deployment["spec"]["replicas"] = json!(i32::from(hold != "suspended"));
        });
        for error in [orchestrator.start(id()).await, orchestrator.restart(id()).await] {
            let error = error.expect_err(hold);
            assert_eq!(
                (error.kind(), error.advice()),
                (ErrorKind::NotAllowed, Some(advice)),
                "{hold}"
            );
        }
        if hold != "suspended" {
            let held = orchestrator.resume(id()).await.expect("nothing to resume");
            assert_eq!(held.status, InstanceStatus::Maintenance, "{hold}");
        }
    }
    assert_eq!(writes(&server.take()), Vec::<String>::new());
    orchestrator.suspend(id()).await.expect("suspended");
    let stored = server.get(DEPLOYMENTS, NAME).expect("stored");
    assert_eq!(stored["metadata"]["annotations"]["saasodoo.io/hold"], "suspended");
    assert_eq!(stored["spec"]["replicas"], 0);
    orchestrator.resume(id()).await.expect("resumed");
    let stored = server.get(DEPLOYMENTS, NAME).expect("stored");
    assert_eq!(stored["metadata"]["annotations"]["saasodoo.io/hold"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn no_grace_period_at_all_is_told() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    server.edit(DEPLOYMENTS, NAME, |deployment| {
        deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(0);
    });
    let seen = orchestrator.get(id()).await.expect("there");
    assert!(
        seen.unparsed
            .iter()
            .any(|left| left.field == "scheduling.stop_grace_seconds")
    );
    assert!(seen.spec.scheduling.stop_grace_seconds > 0);
    // A long one is waited for: longer than the deadline for the usual ones.
    server.edit(DEPLOYMENTS, NAME, |deployment| {
        deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(600);
    });
    server.put(PODS, "slow", pod("Running"));
    orchestrator.stop(id()).await.expect("stopped");
    let (started, ()) = tokio::join!(orchestrator.start(id()), async {
        sleep(Duration::from_secs(500)).await;
        server.remove(PODS, "slow");
    });
    started.expect("started after the end of the old process");
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cannot_be_mounted_is_the_cause() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let started = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(60);
    let mut waiting = pod("Pending");
    waiting["status"]["startTime"] = json!(started.to_string());
    waiting["status"]["containerStatuses"] = json!([
        {"name": "odoo", "state": {"waiting": {"reason": "ContainerCreating"}}},
    ]);
    server.put(PODS, "new", waiting);
    server.edit(DEPLOYMENTS, NAME, |deployment| {
        deployment["status"] = json!({"observedGeneration": 100});
    });
    let event = |seconds: i64, reason: &str, message: &str| {
        let at = started + jiff::SignedDuration::from_secs(seconds);
        server.put(
            EVENTS,
            &format!("new.{seconds}"),
            json!({"metadata": {}, "lastTimestamp": at.to_string(), "reason": reason, "message": message}),
        );
    };
    // The Secret comes a moment after the pod.
    event(1, "FailedMount", "no such secret");
    assert_eq!(orchestrator.get(id()).await.expect("there").cause, None);
    event(30, "FailedMount", "no such directory");
    let seen = orchestrator.get(id()).await.expect("there");
    assert!(
        matches!(&seen.cause, Some(Cause::MountFailed { message }) if message == "no such directory"),
        "{:?}",
        seen.cause
    );
    let asked = server
        .take()
        .into_iter()
        .find(|request| request.path == EVENTS)
        .expect("asked");
    assert!(asked.query["fieldSelector"].starts_with("involvedObject.uid="));
    // All is mounted by now.
    event(40, "Pulling", "a large image");
    assert_eq!(orchestrator.get(id()).await.expect("there").cause, None);
    server.remove(EVENTS, "new.40");
    // Without the permission the rest is as it was.
    server.refuse(&format!("GET {EVENTS}"), 403, forbidden());
    assert_eq!(orchestrator.get(id()).await.expect("there").cause, None);
}
