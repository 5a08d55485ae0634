//! Lists of many pages.

use futures::StreamExt as _;

use super::*;

/// So many instances with their pods, copied from one.
fn fleet(server: &Server, size: u32) {
    let deployment = server.get(DEPLOYMENTS, NAME).expect("stored");
    for n in 0..size {
        let short = format!("{n:08x}");
        let mut copy = deployment.clone();
        let text = copy.to_string().replace("0a1b2c3d", &short);
        copy = serde_json::from_str(&text).expect("JSON");
        copy["metadata"]["uid"] = json!(format!("u-{n}"));
        server.put(DEPLOYMENTS, &format!("odoo-acme-{short}"), copy.clone());
        let pod = json!({
            "metadata": {"labels": copy["spec"]["template"]["metadata"]["labels"]},
            "spec": {"nodeName": "a", "containers": [{"name": "odoo"}]},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "odoo", "ready": true, "state": {"running": {}}}],
            },
        });
        server.put(PODS, &format!("odoo-acme-{short}-x"), pod);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_is_two_requests_for_five_hundred_instances() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    fleet(&server, 1199);
    let listed = orchestrator.list_all(InstanceFilter::all()).await.expect("a list");
    assert_eq!(listed.len(), 1200);
    assert_eq!(
        listed.iter().filter(|i| i.facts.units.len() == 1).count(),
        1199,
        "each with its own pod"
    );
    let seen = server.take();
    assert!(seen.len() <= 2 * 3, "{:#?}", lines(&seen));
    for request in &seen {
        assert_eq!(request.method, "GET");
        assert!([DEPLOYMENTS, PODS].contains(&request.path.as_str()), "{}", request.path);
        assert_eq!(request.query.get("limit").map(String::as_str), Some("500"));
        assert_eq!(request.query.get("labelSelector").map(String::as_str), Some(SELECTOR));
    }

    // What the server can pick out, it does.
    let ids: Vec<InstanceId> = listed.iter().take(3).map(|i| i.id).collect();
    let filter = ids.iter().fold(InstanceFilter::all(), |mut filter, id| {
        filter.ids.push(*id);
        filter
    });
    assert_eq!(orchestrator.list_all(filter).await.expect("a list").len(), 3);
    let seen = server.take();
    assert_eq!(seen.len(), 2);
    assert!(
        seen.iter()
            .all(|r| r.query["labelSelector"].contains("instance-id in (")),
        "{seen:#?}"
    );
}

/// Lets everything happen that does not wait for the test. The clock stands still while something is parsed.
async fn idle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn the_next_pages_of_a_list_are_read_ahead_and_no_more_than_a_few() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    fleet(&server, 3499);
    let asked = |seen: &[Seen]| seen.iter().filter(|request| request.path == DEPLOYMENTS).count();
    let mut listed = orchestrator.list(InstanceFilter::all());
    idle().await;
    assert_eq!(server.take().len(), 0, "nothing before the list is polled");
    listed.next().await.expect("one").expect("an instance");
    idle().await;
    let first = asked(&server.take());
    assert!((2..=4).contains(&first), "{first} pages for the first instance");
    idle().await;
    assert_eq!(asked(&server.take()), 0, "the rest waits until it is wanted");
    for _ in 0..500 {
        listed.next().await.expect("more").expect("an instance");
    }
    idle().await;
    assert_eq!(asked(&server.take()), 1, "one page further");
    drop(listed);
    idle().await;
    assert_eq!(server.take().len(), 0, "nobody reads on");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_the_server_has_forgotten_starts_over_and_repeats_nothing() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    fleet(&server, 1199);
    server.forget("1000");
    let listed = orchestrator.list_all(InstanceFilter::all()).await.expect("a list");
    let names: Vec<String> = listed.iter().map(|instance| instance.name.to_string()).collect();
    assert_eq!(names, server.names(DEPLOYMENTS), "each once, in the server's order");
    let with_pod = listed.iter().filter(|instance| instance.facts.units.len() == 1);
    assert_eq!(with_pod.count(), 1199);

    // In the first page it is an error like any other.
    let message = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    server.refuse(&format!("GET {DEPLOYMENTS}"), 410, message);
    let error = orchestrator.list_all(InstanceFilter::all()).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}
