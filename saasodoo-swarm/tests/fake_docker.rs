//! The simulated daemon answers as the real one: one script of requests, and what must come of each, for both.

#[path = "fake_docker/answers.rs"]
mod answers;
#[path = "fake_docker/api.rs"]
mod api;
#[path = "fake_docker/lives.rs"]
mod lives;
#[path = "fake_docker/streams.rs"]
mod streams;
#[path = "fake_docker/troubles.rs"]
mod troubles;

use std::time::Duration;

use api::{Answer, Api, Findings};
use saasodoo_testkit::fake_docker::FakeDocker;
use serde_json::{Value, json};

const IMAGE: &str = "saasodoo/odoo-stub:17";

#[tokio::test(start_paused = true)]
async fn the_simulation_answers_as_docker_does() {
    let docker = FakeDocker::builder()
        .image(IMAGE)
        .image("saasodoo/odoo-stub:18")
        .build();
    script(&Api::Fake(docker), "saasodoo-network").await.assert_none();
}

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn docker_answers_so() {
    let host = std::env::var("DOCKER_HOST").expect("eval \"$(.ci/testbed/testbed env)\"");
    let socket = host.strip_prefix("unix://").expect("the testbed's socket");
    script(&Api::Unix(socket.into()), "saasodoo-network")
        .await
        .assert_none();
}

async fn script(api: &Api, network: &str) -> Findings {
    let mut found = Findings::default();
    let unique = saasodoo_core::InstanceId::random().short().to_string();
    let script = Script { api, network, unique };
    script.refusals(&mut found).await;
    script.secrets(&mut found).await;
    script.versions_and_filters(&mut found).await;
    script.lives(&mut found).await;
    script.updates(&mut found).await;
    script.rollback(&mut found).await;
    script.misfits(&mut found).await;
    script.probes(&mut found).await;
    script.overlaps(&mut found).await;
    script.spellings(&mut found).await;
    script.shapes(&mut found).await;
    script.logs(&mut found).await;
    script.events(&mut found).await;
    script.clean_up().await;
    found
}

struct Script<'a> {
    api: &'a Api,
    network: &'a str,
    unique: String,
}

impl Script<'_> {
    fn name(&self, part: &str) -> String {
        format!("lie-{}-{part}", self.unique)
    }

    fn body(&self, part: &str, env: &[&str]) -> Value {
        json!({
            "Name": self.name(part),
            "Labels": {"lie": self.unique, "part": part},
            "TaskTemplate": {
                "ContainerSpec": {"Image": IMAGE, "Env": env, "StopGracePeriod": 3_000_000_000_u64},
                "Resources": {"Limits": {"MemoryBytes": 67_108_864}},
                "RestartPolicy": {"Condition": "any", "Delay": 2_000_000_000_u64, "MaxAttempts": 0},
                "Networks": [{"Target": self.network}],
            },
            "Mode": {"Replicated": {"Replicas": 1}},
            "UpdateConfig": {"Parallelism": 1, "FailureAction": "pause", "Order": "stop-first", "Monitor": 3_000_000_000_u64},
        })
    }

    async fn create(&self, part: &str, body: &Value) -> String {
        let answer = self.api.post("/services/create", body).await;
        let id = answer.body["ID"].as_str();
        id.unwrap_or_else(|| panic!("{part}: {answer:?}")).to_owned()
    }

    async fn service(&self, id: &str) -> Value {
        self.api.get(&format!("/services/{id}")).await.body
    }

    /// Changes the body that is there now.
    async fn change(&self, id: &str, change: impl Fn(&mut Value)) -> Answer {
        for _ in 0..10 {
            let service = self.service(id).await;
            let mut body = service["Spec"].clone();
            change(&mut body);
            let path = format!("/services/{id}/update?version={}", service["Version"]["Index"]);
            let answer = self.api.post(&path, &body).await;
            if !answer.message().contains("out of sequence") {
                return answer;
            }
        }
        panic!("others change {id} all the time")
    }

    /// The tasks of a service, the newest first.
    async fn tasks(&self, id: &str) -> Vec<Value> {
        let filter = json!({"service": [id]}).to_string();
        let answer = self.api.get(&format!("/tasks?filters={}", api::encoded(&filter))).await;
        let mut tasks = answer.body.as_array().cloned().unwrap_or_default();
        tasks.sort_by_key(|task| std::cmp::Reverse(task["CreatedAt"].as_str().unwrap_or_default().to_owned()));
        tasks
    }

    /// Waits for tasks as described, the newest first.
    async fn until(&self, found: &mut Findings, what: &str, id: &str, fits: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut seen = Vec::new();
        for _ in 0..300 {
            seen = self.tasks(id).await;
            if fits(&seen) {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        found.say(what, format!("not seen; there is {}", Value::Array(seen.clone())));
        seen
    }

    /// Tasks by a label that their service has or had.
    async fn labelled(&self, part: &str) -> usize {
        let filter = json!({"label": [format!("lie={}", self.unique), format!("part={part}")]}).to_string();
        let answer = self.api.get(&format!("/tasks?filters={}", api::encoded(&filter))).await;
        answer.body.as_array().map_or(0, Vec::len)
    }

    async fn clean_up(&self) {
        let filter = json!({"label": [format!("lie={}", self.unique)]}).to_string();
        for kind in ["services", "secrets"] {
            let left = self
                .api
                .get(&format!("/{kind}?filters={}", api::encoded(&filter)))
                .await;
            for object in left.body.as_array().into_iter().flatten() {
                let id = object["ID"].as_str().unwrap_or_default();
                self.api.delete(&format!("/{kind}/{id}")).await;
            }
        }
    }
}

/// The state of the newest task.
fn state(tasks: &[Value]) -> &str {
    tasks
        .first()
        .and_then(|task| task["Status"]["State"].as_str())
        .unwrap_or_default()
}

fn count(tasks: &[Value], state: &str) -> usize {
    tasks.iter().filter(|task| task["Status"]["State"] == state).count()
}

fn env(task: &Value) -> Vec<&str> {
    let entries = task["Spec"]["ContainerSpec"]["Env"].as_array();
    entries.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The names of an object's fields.
fn keys(object: &Value) -> String {
    let names: std::collections::BTreeSet<&str> = object
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect();
    names.into_iter().collect::<Vec<_>>().join(" ")
}
