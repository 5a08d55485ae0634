//! Purges: only what is meant, and only what is gone is reported.

use super::*;

#[tokio::test(start_paused = true)]
async fn eight_digits_never_purge_two_tenants() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    server.put(CLAIMS, "odoo-twin-0a1b2c3d-storage", claim_of(TWIN));
    // The instance is there, so the digits are its own, and the other claim is not.
    let error = orchestrator
        .plan(&Operation::Purge(digits()))
        .await
        .expect_err("whose data?");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["id".to_owned()][..]),
        "{error}"
    );
    let plan = orchestrator.plan(&Operation::Purge(id())).await.expect("a plan");
    let claims = plan
        .deletes
        .iter()
        .filter(|object| object.kind == "PersistentVolumeClaim");
    assert_eq!(claims.map(|claim| claim.name.as_str()).collect::<Vec<_>>(), [CLAIM]);

    // Nothing but the claims is left.
    orchestrator
        .delete(id(), DeleteOptions::retain())
        .await
        .expect("deleted");
    let error = orchestrator
        .plan(&Operation::Purge(digits()))
        .await
        .expect_err("whose data?");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    server.remove(CLAIMS, CLAIM);
    let plan = orchestrator
        .plan(&Operation::Purge(digits()))
        .await
        .expect("of one tenant");
    assert_eq!(plan.deletes.len(), 1);

    // A claim with the digits alone may be the twin's, too.
    server.remove(CLAIMS, "odoo-twin-0a1b2c3d-storage");
    let mut bare = claim_of(TWIN);
    bare["metadata"]["labels"] = json!({"app": "odoo", "managed-by": "saasodoo", "instance-id": "0a1b2c3d"});
    server.put(CLAIMS, "odoo-twin-0a1b2c3d-storage", bare);
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    let error = orchestrator.create(&spec(), options).await.expect_err("whose data?");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["data".to_owned()][..]),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_purge_reports_what_is_gone_and_goes_on_where_it_ended() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    server.put(VOLUMES, "pv-1", volume(&server, "Retain"));
    let token = token(&orchestrator).await;
    assert_eq!(token.objects().len(), 2);
    // The provisioner does nothing.
    let error = orchestrator
        .delete(id(), DeleteOptions::purge(token.clone()))
        .await
        .expect_err("the data is still there");
    assert_eq!(kinds(&error), (ErrorKind::Timeout, Retry::OutcomeUnknown), "{error}");
    let left = server.get(VOLUMES, "pv-1").expect("what leads to the data stays");
    assert_eq!(left["spec"]["persistentVolumeReclaimPolicy"], "Delete");
    assert_eq!(server.names(CLAIMS), Vec::<String>::new());
    let seen = server.take();
    let patch = seen
        .iter()
        .find(|request| request.line() == format!("PATCH {VOLUMES}/pv-1"))
        .expect("a patch");
    assert!(patch.body["metadata"]["resourceVersion"].is_string());
    assert!(
        !seen
            .iter()
            .any(|request| request.line() == format!("DELETE {VOLUMES}/pv-1"))
    );

    let (deleted, ()) = tokio::join!(orchestrator.delete(id(), DeleteOptions::purge(token)), async {
        sleep(Duration::from_secs(20)).await;
        server.remove(VOLUMES, "pv-1");
    });
    let deleted = deleted.expect("purged");
    assert_eq!(
        deleted
            .purged
            .iter()
            .map(|object| object.name.as_str())
            .collect::<Vec<_>>(),
        ["pv-1"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_given_away_meanwhile_is_not_released() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    server.put(VOLUMES, "pv-1", volume(&server, "Retain"));
    let token = token(&orchestrator).await;
    // The operator saves the data between the deletion of the claim and that of the volume.
    let rescue = async {
        while !server.names(CLAIMS).is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        server.edit(VOLUMES, "pv-1", |volume| {
            volume["spec"]["claimRef"] = json!({
                "namespace": "ns", "name": "rescue", "uid": "uid-rescue",
            })
        });
    };
    server.lose(&format!("DELETE {CLAIMS}"));
    let (deleted, ()) = tokio::join!(orchestrator.delete(id(), DeleteOptions::purge(token)), rescue);
    let error = deleted.expect_err("it is another claim's");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["purge".to_owned()][..]),
        "{error}"
    );
    let left = server.get(VOLUMES, "pv-1").expect("untouched");
    assert_eq!(left["spec"]["persistentVolumeReclaimPolicy"], "Retain");
}

#[tokio::test(start_paused = true)]
async fn data_that_stays_is_not_planned_away() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    server.refuse(&format!("GET {VOLUMES}"), 403, forbidden());
    let error = orchestrator
        .plan(&Operation::Purge(id()))
        .await
        .expect_err("nobody knows");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    assert!(
        error
            .advice()
            .is_some_and(|advice| advice.contains("persistentvolumes")),
        "{error}"
    );
    server.edit(CLASSES, "cephfs-saasodoo", |class| {
        class["reclaimPolicy"] = json!("Delete")
    });
    assert_eq!(
        token(&orchestrator).await.objects().len(),
        1,
        "the class says that the data goes"
    );
    server.heal();

    // A volume that somebody else made stays, with what is in it.
    let mut other = volume(&server, "Retain");
    other["metadata"] = json!({});
    server.put(VOLUMES, "pv-1", other);
    let token = token(&orchestrator).await;
    let deleted = orchestrator
        .delete(id(), DeleteOptions::purge(token))
        .await
        .expect("purged");
    assert_eq!(
        (deleted.purged.len(), deleted.retained.is_some()),
        (1, true),
        "{deleted:?}"
    );
    assert_eq!(server.names(VOLUMES), ["pv-1"]);
}

#[tokio::test]
async fn a_configuration_that_keeps_all_data_refuses_a_purge() {
    let server = Server::new();
    let token = {
        let orchestrator = existing(&server).await;
        token(&orchestrator).await
    };
    let mut config = config();
    config.common.retain_storage = true;
    let orchestrator = KubernetesOrchestrator::builder(config)
        .client(server.client())
        .build()
        .await
        .expect("an orchestrator");
    server.take();
    let error = orchestrator.plan(&Operation::Purge(id())).await.expect_err("kept");
    assert_eq!(error.kind(), ErrorKind::NotAllowed, "{error}");
    let error = orchestrator
        .delete(id(), DeleteOptions::purge(token))
        .await
        .expect_err("kept");
    assert_eq!(error.kind(), ErrorKind::NotAllowed, "{error}");
    assert!(server.take().is_empty());
}
