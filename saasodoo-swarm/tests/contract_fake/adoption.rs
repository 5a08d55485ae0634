//! Services of the system in production are found, read and operated, and only what was asked of them changes.

use std::collections::BTreeSet;
use std::time::Duration;

use saasodoo_core::{
    Bytes, DeleteOptions, InstanceChange, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt,
    InstanceStatus, Origin, Power, Secret, UpdateOptions,
};
use serde_json::{Value, json};

use super::api::Api;
use super::subject::{builder, daemon};

/// As docker-py sends it, and with two fields of a daemon of the future.
fn legacy(name: &str, database: &str, id: InstanceId, source: &str) -> Value {
    let mut body = json!({
        "Name": name,
        "Labels": {
            "saasodoo.instance.id": id.to_string(),
            "saasodoo.instance.name": "Acme Ltd",
            "saasodoo.customer.id": "11111111-2222-4333-8444-555555555555",
            "saasodoo.restore.optimized": "true",
            "traefik.enable": "true",
        },
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "saasodoo/odoo-stub:17", "Command": null, "Args": null,
                "Env": [
                    "ODOO_DATABASE_HOST=postgres-pool-1", "ODOO_DATABASE_PORT_NUMBER=5432",
                    "ODOO_DATABASE_NAME=odoo_1111_0a1b2c3d", "ODOO_DATABASE_USER=odoo_1111_0a1b2c3d_user",
                    "ODOO_DATABASE_PASSWORD=s3ntinel-db", "ODOO_EMAIL=admin@acme.example",
                    "ODOO_PASSWORD=s3ntinel-admin", "ODOO_LOAD_DEMO_DATA=no", "WORKERS=4",
                ],
                "Mounts": [{"Target": "/bitnami/odoo", "Source": source, "Type": "bind", "ReadOnly": false}],
                "FutureField": {"b": [1, 2.5, null], "a": "x"},
            },
            "Resources": {"Limits": {"NanoCPUs": 100_000_000, "MemoryBytes": 67_108_864}},
            "RestartPolicy": {"Condition": "any", "Delay": 0, "MaxAttempts": 0, "Window": 0},
            "Networks": [{"Target": "saasodoo-network", "Future": 1}],
        },
        "Mode": {"replicated": {"Replicas": 1}},
    });
    let labels = &mut body["Labels"];
    labels[format!("traefik.http.routers.{name}.rule")] = json!(format!("Host(`{database}.fake.example`)"));
    labels[format!("traefik.http.routers.{name}.service")] = json!(name);
    labels[format!("traefik.http.services.{name}.loadbalancer.server.port")] = json!("8069");
    body
}

/// The paths at which two bodies differ.
fn differing(a: &Value, b: &Value, path: &str, into: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            for key in x.keys().chain(y.keys()).collect::<BTreeSet<_>>() {
                let (x, y) = (x.get(key).unwrap_or(&Value::Null), y.get(key).unwrap_or(&Value::Null));
                differing(x, y, &format!("{path}/{key}"), into);
            }
        }
        _ if a != b => into.push(path.to_owned()),
        _ => {}
    }
}

/// Compares a service with what it was at the last step.
struct Steps<'a> {
    api: &'a Api,
    name: &'a str,
    before: Value,
}

impl Steps<'_> {
    async fn inspect(&self) -> Value {
        self.api.get(&format!("/services/{}", self.name)).await.body["Spec"].clone()
    }

    async fn step(&mut self, what: &str, paths: &[&str]) {
        let after = self.inspect().await;
        let mut seen = Vec::new();
        differing(&self.before, &after, "", &mut seen);
        assert_eq!(seen, paths, "{what} of {}", self.name);
        self.before = after;
    }
}

#[tokio::test(start_paused = true)]
async fn services_of_today_are_adopted_and_only_what_was_asked_changes() {
    let (daemon, root) = (daemon(), tempfile::tempdir().expect("a directory"));
    let swarm = builder(&daemon)
        .data_root(root.path())
        .build()
        .expect("nothing to connect to");
    let api = Api::Fake(daemon.clone());
    let budget = Duration::from_secs(60);
    let mut made = Vec::new();
    for database in ["acme", "acme-corp_2", "a_b_c"] {
        let id = InstanceId::random();
        let name = format!("odoo-{database}-{}", id.short());
        let data = root.path().join(format!("odoo_data_{database}_{}", id.short()));
        std::fs::create_dir(&data).expect("a directory");
        let source = data.to_str().expect("UTF-8");
        let answer = api.post("/services/create", &legacy(&name, database, id, source)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        made.push((id, database, name, data));
    }
    let listed = swarm.list_all(InstanceFilter::all()).await.expect("a list");
    assert_eq!(listed.len(), 3);
    for (id, database, name, data) in made {
        let seen = swarm
            .wait_until(id, InstanceStatus::Running, budget)
            .await
            .expect("running");
        assert_eq!(
            (seen.name.as_str(), seen.provenance.origin),
            (name.as_str(), Origin::Legacy)
        );
        assert_eq!(seen.spec.database_name.as_str(), database);
        assert_eq!(seen.spec.resources.memory, Bytes::from_mib(64));
        let password = seen.spec.database.as_ref().map(|database| &database.password);
        assert_eq!(password, Some(&Secret::new("s3ntinel-db")));

        let mut steps = Steps {
            api: &api,
            name: &name,
            before: Value::Null,
        };
        steps.before = steps.inspect().await;
        let future = json!({"b": [1, 2.5, null], "a": "x"});
        assert_eq!(steps.before["TaskTemplate"]["ContainerSpec"]["FutureField"], future);
        swarm.set_power(id, Power::Stop).await.expect("accepted");
        swarm
            .wait_until(id, InstanceStatus::Stopped, budget)
            .await
            .expect("stopped");
        steps.step("stop", &["/Mode/Replicated/Replicas"]).await;
        swarm.set_power(id, Power::Start).await.expect("accepted");
        swarm
            .wait_until(id, InstanceStatus::Running, budget)
            .await
            .expect("running");
        steps.step("start", &["/Mode/Replicated/Replicas"]).await;
        let resize = InstanceChange::new().memory(Bytes::from_mib(96));
        swarm.update(id, &resize, UpdateOptions::new()).await.expect("resized");
        steps
            .step("resize", &["/TaskTemplate/Resources/Limits/MemoryBytes"])
            .await;
        swarm
            .wait_until(id, InstanceStatus::Running, budget)
            .await
            .expect("running");
        swarm.set_power(id, Power::Restart).await.expect("accepted");
        steps.step("restart", &["/TaskTemplate/ForceUpdate"]).await;
        swarm
            .wait_until(id, InstanceStatus::Running, budget)
            .await
            .expect("running");
        swarm.set_power(id, Power::Suspend).await.expect("accepted");
        swarm
            .wait_until(id, InstanceStatus::Paused, budget)
            .await
            .expect("paused");
        swarm.set_power(id, Power::Resume).await.expect("accepted");
        // Whatever held it is gone.
        steps.step("suspend and resume", &["/Mode/Replicated/Replicas"]).await;
        swarm.delete(id, DeleteOptions::retain()).await.expect("deleted");
        assert!(data.join("heartbeat.log").exists(), "the data is there");
    }
    assert_eq!(daemon.violations(), Vec::<String>::new());
}
