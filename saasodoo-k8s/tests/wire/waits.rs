//! What is asked while a process ends.

use super::*;

/// A pod of the instance, on a node.
fn with_pod(server: &Server) {
    let deployment = server.get(DEPLOYMENTS, NAME).expect("stored");
    let pod = json!({
        "metadata": {"labels": deployment["spec"]["template"]["metadata"]["labels"]},
        "spec": {"nodeName": "a", "containers": [{"name": "odoo"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "odoo", "state": {"running": {}}}]},
    });
    server.put(PODS, "pod", pod);
}

/// Of the looks at pods: those in the server's cache, and those as of now.
fn looks(seen: &[Seen]) -> (usize, usize) {
    let pods = || seen.iter().filter(|request| request.line() == format!("GET {PODS}"));
    let cached = pods().filter(|request| {
        request
            .query
            .get("resourceVersion")
            .is_some_and(|version| version == "0")
    });
    let cached = cached.count();
    (cached, pods().count() - cached)
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_process_asks_the_cache_and_believes_only_the_storage() {
    for blind in [false, true] {
        for start in [false, true] {
            let server = Server::new();
            let orchestrator = existing(&server).await;
            with_pod(&server);
            if start {
                // It is being stopped.
                server.edit(DEPLOYMENTS, NAME, |deployment| {
                    deployment["spec"]["replicas"] = json!(0)
                });
            }
            if blind {
                server.blind();
            }
            server.take();
            let begun = tokio::time::Instant::now();
            let ends = async {
                tokio::time::sleep(Duration::from_secs(20)).await;
                server.remove(PODS, "pod");
            };
            let waits = async {
                if start {
                    orchestrator
                        .set_power(spec().id, saasodoo_core::Power::Start)
                        .await
                        .expect("started");
                } else {
                    orchestrator
                        .delete(spec().id, DeleteOptions::retain())
                        .await
                        .expect("deleted");
                }
            };
            tokio::join!(waits, ends);
            let took = begun.elapsed();
            assert!((20..22).contains(&took.as_secs()), "{took:?}");
            let (cached, exact) = looks(&server.take());
            if blind {
                // No worse than without a cache.
                assert!(cached > 15 && exact >= cached, "{cached} {exact}");
            } else {
                // That of the instance, the first of the wait, one in eight, and the last.
                assert!(cached > 15 && exact <= 3 + cached / 7, "{cached} {exact}");
            }
        }
    }
}
