//! Creations: adopted data, calls that meet, and calls that die.

use super::*;

#[tokio::test(start_paused = true)]
async fn data_that_a_pod_still_writes_to_is_not_adopted() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    // As `kubectl delete deployment` leaves it for a while.
    server.remove(DEPLOYMENTS, NAME);
    for collection in [SECRETS, SERVICES, ROUTES] {
        server.remove(collection, NAME);
    }
    server.put(PODS, "old", pod("Running"));
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    let error = orchestrator
        .create(&spec(), options.clone())
        .await
        .expect_err("two writers");
    assert_eq!(kinds(&error), LATER, "{error}");
    assert!(error.message().contains("old"), "{error}");
    let error = orchestrator
        .plan(&Operation::Create(Box::new(spec()), options.clone()))
        .await
        .expect_err("two writers");
    assert_eq!(kinds(&error), LATER, "{error}");
    assert_eq!(
        server.names(DEPLOYMENTS),
        Vec::<String>::new(),
        "what was made is undone"
    );
    assert_eq!(server.names(CLAIMS), [CLAIM]);

    // A pod of anybody, as long as it mounts the claim.
    server.edit(PODS, "old", |pod| {
        pod["metadata"]["labels"]["app.kubernetes.io/instance"] = json!(TWIN)
    });
    let error = orchestrator
        .create(&spec(), options.clone())
        .await
        .expect_err("two writers");
    assert_eq!(kinds(&error), LATER, "{error}");

    server.put(PODS, "old", pod("Succeeded"));
    let adopted = orchestrator.create(&spec(), options).await.expect("adopted");
    assert_eq!(adopted.outcome, EnsureOutcome::Adopted);
}

#[tokio::test(start_paused = true)]
async fn a_completing_call_that_fails_takes_nothing_away() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    server.remove(SECRETS, NAME);
    server.remove(SERVICES, NAME);
    server.refuse(&format!("POST {SERVICES}"), 403, forbidden());
    let error = orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect_err("forbidden");
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    assert_eq!(server.names(SECRETS), [NAME], "the first call may rely on it by now");
    let seen = server.take();
    assert!(
        !seen.iter().any(|request| request.method == "DELETE"),
        "{:?}",
        writes(&seen)
    );
    server.heal();
    let completed = orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect("completed");
    assert_eq!(completed.outcome, EnsureOutcome::Created);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_being_undone_is_not_reported_as_made() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    server.remove(SERVICES, NAME);
    let spec = spec();
    let (answer, ()) = tokio::join!(orchestrator.create(&spec, CreateOptions::new()), async {
        // The other call gives up after its Service was there.
        sleep(Duration::from_secs(1)).await;
        server.edit(DEPLOYMENTS, NAME, |deployment| {
            deployment["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        });
        server.put(SERVICES, NAME, json!({}));
    });
    let error = answer.expect_err("it is going");
    assert_eq!(kinds(&error), LATER, "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_deployment_owned_is_waited_for() {
    let server = Server::new();
    let orchestrator = orchestrator(server.client()).await;
    let left_over = json!({
        "metadata": {"labels": labels(UUID), "ownerReferences": [{"kind": "Deployment", "uid": "earlier"}]},
    });
    server.put(SECRETS, NAME, left_over.clone());
    let spec = spec();
    let (answer, ()) = tokio::join!(orchestrator.create(&spec, CreateOptions::new()), async {
        sleep(Duration::from_secs(5)).await;
        server.remove(SECRETS, NAME);
    });
    assert_eq!(answer.expect("made").outcome, EnsureOutcome::Created);

    // One that nobody collects, and one that was never ours.
    let server = Server::new();
    let orchestrator = self::orchestrator(server.client()).await;
    server.put(SECRETS, NAME, left_over);
    let error = orchestrator
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("in the way");
    assert_eq!(kinds(&error), LATER, "{error}");
    server.put(SECRETS, NAME, json!({}));
    let error = orchestrator
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("in the way");
    assert_eq!(kinds(&error), (ErrorKind::Conflict, Retry::Never), "{error}");
    assert_eq!(server.names(SECRETS), [NAME]);
    assert_eq!(server.names(DEPLOYMENTS), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn two_calls_that_adopt_the_same_data_under_two_names_do_not_both_run() {
    let server = Server::new();
    let orchestrator = orchestrator(server.client()).await;
    orchestrator.create(&spec(), CreateOptions::new()).await.expect("made");
    orchestrator
        .delete(id(), DeleteOptions::retain())
        .await
        .expect("deleted");
    server.edit(CLAIMS, CLAIM, |claim| {
        claim["status"] = json!({"phase": "Bound", "capacity": {"storage": "10Gi"}});
    });
    let renamed = fixtures::spec_with_id("renamed", id());
    let (own, renamed_spec) = (spec(), &renamed);
    let adopt = || CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    server.in_rounds();
    let (first, second) = tokio::join!(
        orchestrator.create(&own, adopt()),
        orchestrator.create(renamed_spec, adopt()),
    );
    let made = [&first, &second].into_iter().filter(|answer| answer.is_ok()).count();
    assert!(made <= 1, "{first:?} {second:?}");
    assert_eq!(server.names(DEPLOYMENTS).len(), made);
    assert_eq!(server.names(CLAIMS), [CLAIM], "the data stays");
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_adopted_through_the_claim_that_has_it_whatever_its_name() {
    let server = Server::new();
    let orchestrator = orchestrator(server.client()).await;
    let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory("shop".parse().expect("a path")));
    let first = orchestrator.create(&spec(), options.clone()).await.expect("adopted");
    let Some(StorageLocation::Claim { directory, .. }) = first.instance.storage.location else {
        panic!("{:?}", first.instance.storage)
    };
    assert_eq!(directory.as_deref(), Some("shop"));
    server.edit(CLAIMS, CLAIM, |claim| {
        claim["status"] = json!({"phase": "Bound", "capacity": {"storage": "10Gi"}});
    });
    let seen = orchestrator.get(id()).await.expect("there");
    assert_eq!(
        (seen.storage.state, seen.storage.capacity),
        (StorageState::Ready, None),
        "nothing enforces a size"
    );
    let deleted = orchestrator
        .delete(id(), DeleteOptions::retain())
        .await
        .expect("deleted");
    let Some(StorageLocation::Claim { directory, .. }) = deleted.retained else {
        panic!("{deleted:?}")
    };
    assert_eq!(directory.as_deref(), Some("shop"));

    // The tenant has been renamed since.
    let renamed = fixtures::spec_with_id("renamed", id());
    let again = orchestrator.create(&renamed, options).await.expect("adopted again");
    assert_eq!(again.outcome, EnsureOutcome::Adopted);
    assert_eq!(server.names(CLAIMS), [CLAIM]);
    let name = "odoo-renamed-0a1b2c3d";
    let mounted = &server.get(DEPLOYMENTS, name).expect("made")["spec"]["template"]["spec"]["volumes"][0];
    assert_eq!(mounted["persistentVolumeClaim"]["claimName"], CLAIM);

    // A second Deployment of the id on the same data is refused, under whatever name.
    server.take();
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    let error = orchestrator.create(&spec(), options).await.expect_err("two writers");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["id".to_owned()][..]),
        "{error}"
    );
    assert_eq!(writes(&server.take()), Vec::<String>::new());

    // Adopted as retained data it still is a directory that no purge deletes.
    orchestrator
        .delete(id(), DeleteOptions::retain())
        .await
        .expect("deleted");
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    orchestrator.create(&renamed, options).await.expect("adopted");
    let token = token(&orchestrator).await;
    let deleted = orchestrator
        .delete(id(), DeleteOptions::purge(token))
        .await
        .expect("purged");
    assert_eq!(
        deleted
            .purged
            .iter()
            .map(|object| object.name.as_str())
            .collect::<Vec<_>>(),
        [CLAIM]
    );
    assert_eq!(server.names(VOLUMES).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn retained_data_grows_once_its_claim_is_bound() {
    let server = Server::new();
    let orchestrator = existing(&server).await;
    orchestrator
        .delete(id(), DeleteOptions::retain())
        .await
        .expect("deleted");
    server.edit(CLAIMS, CLAIM, |claim| claim["status"]["phase"] = json!("Pending"));
    let larger = spec().with_storage(Bytes::from_gib(20));
    let options = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
    let error = orchestrator
        .create(&larger, options.clone())
        .await
        .expect_err("no volume");
    assert_eq!(kinds(&error), (ErrorKind::Unavailable, Retry::After(None)), "{error}");
    assert_eq!(server.names(DEPLOYMENTS), Vec::<String>::new());
    let (adopted, ()) = tokio::join!(orchestrator.create(&larger, options), async {
        sleep(Duration::from_secs(5)).await;
        server.edit(CLAIMS, CLAIM, |claim| claim["status"]["phase"] = json!("Bound"));
    });
    assert_eq!(adopted.expect("adopted").outcome, EnsureOutcome::Adopted);
    let claim = server.get(CLAIMS, CLAIM).expect("there");
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "20Gi");
}

#[tokio::test(start_paused = true)]
async fn a_plan_gives_the_errors_of_the_operation() {
    let server = Server::new();
    let orchestrator = orchestrator(server.client()).await;
    let create = |spec: &InstanceSpec| Operation::Create(Box::new(spec.clone()), CreateOptions::new());
    // No storage class.
    let class = server.get(CLASSES, "cephfs-saasodoo").expect("a class");
    server.remove(CLASSES, "cephfs-saasodoo");
    let error = orchestrator.plan(&create(&spec())).await.expect_err("no class");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    server.put(CLASSES, "cephfs-saasodoo", class);
    // A Deployment of that name that is somebody else's.
    server.put(DEPLOYMENTS, NAME, json!({"metadata": {"labels": {"app": "other"}}}));
    let error = orchestrator.plan(&create(&spec())).await.expect_err("a taken name");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["id".to_owned()][..]),
        "{error}"
    );
    server.remove(DEPLOYMENTS, NAME);
    let orchestrator = existing(&server).await;
    // An interrupted creation.
    assert!(orchestrator.plan(&create(&spec())).await.expect("a plan").is_empty());
    let service = server.get(SERVICES, NAME).expect("a Service");
    server.remove(SERVICES, NAME);
    let plan = orchestrator.plan(&create(&spec())).await.expect("a plan");
    assert_eq!(plan.creates, [format!("Service {NAME}")]);
    server.put(SERVICES, NAME, service);
    // One that is being deleted.
    server.edit(DEPLOYMENTS, NAME, |deployment| {
        deployment["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    let change = InstanceChange::new().memory(Bytes::from_gib(3));
    for (operation, kind) in [
        (create(&spec()), ErrorKind::Conflict),
        (Operation::Update(id(), Box::new(change)), ErrorKind::NotAllowed),
        (Operation::SetPower(id(), Power::Stop), ErrorKind::NotAllowed),
    ] {
        let error = orchestrator.plan(&operation).await.expect_err("being deleted");
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[tokio::test]
async fn an_unreachable_server_is_told_and_nothing_is_made() {
    // A port that nobody listens on.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let url = format!("http://{address}").parse().expect("a URL");
    let client = Client::try_from(kube::Config::new(url)).expect("a client");
    let orchestrator = orchestrator(client).await;
    let error = orchestrator
        .create(&spec(), CreateOptions::new())
        .await
        .expect_err("nobody listens");
    assert_eq!(kinds(&error), (ErrorKind::Unavailable, Retry::After(None)), "{error}");
    assert!(error.message().contains("cannot be reached"), "{error}");
    assert!(error.advice().is_some());
}

#[test]
fn a_creation_that_dies_with_its_runtime_is_completed_by_the_next() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime")
    };
    let bystander = fixtures::spec_with_id("other", InstanceId::random());
    let mut died = 0;
    for n in 1.. {
        for after in [false, true] {
            let server = Server::new();
            let first = runtime();
            let before = first.block_on(async {
                let orchestrator = orchestrator(server.client()).await;
                orchestrator
                    .create(&bystander, CreateOptions::new())
                    .await
                    .expect("created");
                let before = server.get(DEPLOYMENTS, bystander.object_name().as_str());
                server.hang(n, after);
                let spec = spec();
                tokio::select! {
                    _ = orchestrator.create(&spec, CreateOptions::new()) => {}
                    // The request hangs; the others of its round are answered.
                    () = async { while !server.has_hung() { tokio::task::yield_now().await } } => {
                        for _ in 0..200 { tokio::task::yield_now().await }
                    }
                }
                before
            });
            drop(first);
            let hung = server.has_hung();
            server.heal();
            died += usize::from(hung);
            runtime().block_on(async {
                let orchestrator = orchestrator(server.client()).await;
                let answer = orchestrator
                    .create(&spec(), CreateOptions::new())
                    .await
                    .unwrap_or_else(|error| panic!("request {n}, after: {after}: {error}"));
                assert_eq!(answer.instance.spec.diff(&spec()), [], "request {n}");
                let uid = server.get(DEPLOYMENTS, NAME).expect("made")["metadata"]["uid"].clone();
                for collection in [SECRETS, SERVICES, ROUTES] {
                    let object = server
                        .get(collection, NAME)
                        .unwrap_or_else(|| panic!("{collection}, request {n}"));
                    assert_eq!(
                        object["metadata"]["ownerReferences"][0]["uid"], uid,
                        "{collection}, request {n}"
                    );
                }
                assert!(server.get(CLAIMS, CLAIM).is_some(), "request {n}");
                assert_eq!(server.names(DEPLOYMENTS).len(), 2);
            });
            assert_eq!(server.get(DEPLOYMENTS, bystander.object_name().as_str()), before);
            if !hung {
                assert!(died > 10, "only {died} requests");
                return;
            }
        }
    }
}
