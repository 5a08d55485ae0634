//! Plans: nothing is written, and the server is asked whether it would take it.

use super::*;

fn operations() -> Vec<(Operation, Option<String>)> {
    let other = fixtures::spec("other");
    let posted = format!("POST {DEPLOYMENTS}");
    let change = InstanceChange::new().memory(Bytes::from_gib(3));
    let patched = format!("PATCH {DEPLOYMENTS}/{NAME}");
    vec![
        (Operation::Create(Box::new(other), CreateOptions::new()), Some(posted)),
        (Operation::Update(spec().id, Box::new(change)), Some(patched)),
        (Operation::SetPower(spec().id, saasodoo_core::Power::Restart), None),
        (Operation::Delete(spec().id), None),
        (Operation::Purge(spec().id), None),
    ]
}

#[tokio::test(start_paused = true)]
async fn plans_write_nothing_and_ask_for_the_deployment_by_a_dry_run() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    let before = [
        server.get(DEPLOYMENTS, NAME),
        server.get(CLAIMS, &format!("{NAME}-storage")),
    ];
    for (operation, asked) in operations() {
        let plan = orchestrator.plan(&operation).await.expect("a plan");
        assert!(!plan.is_empty(), "{operation:?}");
        let seen = server.take();
        let writes = writes(&seen);
        assert!(
            writes.iter().all(|write| write.query["dryRun"] == "All"),
            "{operation:?}"
        );
        assert_eq!(writes.first().map(|write| write.line()), asked, "{operation:?}");
        assert_eq!(writes.len(), usize::from(asked.is_some()), "{operation:?}");
    }
    assert_eq!(server.names(DEPLOYMENTS), [NAME]);
    let after = [
        server.get(DEPLOYMENTS, NAME),
        server.get(CLAIMS, &format!("{NAME}-storage")),
    ];
    assert_eq!(after, before);

    // What is as asked already is not asked about.
    let same = InstanceChange::new().memory(spec().resources.memory);
    let plan = orchestrator
        .plan(&Operation::Update(spec().id, Box::new(same)))
        .await
        .expect("a plan");
    assert!(plan.is_empty());
    assert_eq!(writes(&server.take()).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_plan_says_what_the_server_would_refuse_and_not_that_it_could_not_be_asked() {
    let quota = "deployments.apps \"x\" is forbidden: exceeded quota: tenants, requested: count/deployments.apps=1";
    let webhook = "admission webhook \"policy.example\" denied the request: no such image";
    let role = "deployments.apps is forbidden: User \"a\" cannot create resource \"deployments\" in API group \"apps\"";
    let deaf = "admission webhook \"policy.example\" does not support dry run";
    for (code, reason, message, refused) in [
        (403, "Forbidden", quota, Some(ErrorKind::QuotaExceeded)),
        (403, "Forbidden", webhook, Some(ErrorKind::Forbidden)),
        (400, "BadRequest", webhook, Some(ErrorKind::InvalidInput)),
        (
            422,
            "Invalid",
            "Deployment.apps is invalid",
            Some(ErrorKind::InvalidInput),
        ),
        (403, "Forbidden", role, None),
        (400, "BadRequest", deaf, None),
        (409, "Conflict", "the object has been modified", None),
        (409, "AlreadyExists", "it already exists", None),
    ] {
        let server = Server::new();
        let orchestrator = existing(&server).await;
        for (operation, asked) in operations() {
            let Some(asked) = asked else { continue };
            let status = json!({"kind": "Status", "code": code, "reason": reason, "message": message});
            server.refuse(&asked, code, status);
            let answer = orchestrator.plan(&operation).await;
            assert_eq!(
                answer.as_ref().err().map(saasodoo_core::Error::kind),
                refused,
                "{asked} {message}"
            );
            if let Err(error) = answer {
                assert_eq!(error.retry(), Retry::Never, "{error}");
            }
            assert!(
                server
                    .take()
                    .iter()
                    .any(|request| request.line() == asked && request.is_dry())
            );
        }
    }
}
