//! The simulated daemon answers as the real one: one script of requests, and what must come of each, for both.

#[path = "fake_docker/api.rs"]
mod api;

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

    async fn refusals(&self, found: &mut Findings) {
        let api = self.api;
        let absent = self.name("absent");
        for (what, answer, status, text) in [
            (
                "inspect",
                api.get(&format!("/services/{absent}")).await,
                404,
                format!("service {absent} not found"),
            ),
            (
                "remove",
                api.delete(&format!("/services/{absent}")).await,
                404,
                format!("service {absent} not found"),
            ),
            (
                "task",
                api.get("/tasks/0nosuchtask").await,
                404,
                "task 0nosuchtask not found".to_owned(),
            ),
            (
                "network",
                api.get(&format!("/networks/{absent}")).await,
                404,
                format!("network {absent} not found"),
            ),
            (
                "secret",
                api.get(&format!("/secrets/{absent}")).await,
                404,
                format!("secret {absent} not found"),
            ),
            (
                "image",
                api.get("/images/saasodoo/none:1/json").await,
                404,
                "no such image: saasodoo/none:1: No such image: saasodoo/none:1".to_owned(),
            ),
            (
                "filter",
                api.get("/services?filters=%7B%22colour%22%3A%5B%22red%22%5D%7D").await,
                400,
                "Invalid filter 'colour'".to_owned(),
            ),
            ("page", api.get("/nowhere").await, 404, "page not found".to_owned()),
        ] {
            found.answer(&format!("absent: {what}"), &answer, status, &text);
        }
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut body = self.body("refused", &[]);
            change(&mut body);
            body
        };
        let invalid = "rpc error: code = InvalidArgument desc = ";
        for (what, body, status, text) in [
            (
                "name",
                refused(&|body| body["Name"] = json!("no/name")),
                400,
                format!("{invalid}name must be valid as a DNS name component"),
            ),
            (
                "image",
                refused(&|body| body["TaskTemplate"]["ContainerSpec"]["Image"] = json!("")),
                400,
                format!("{invalid}ContainerSpec: image reference must be provided"),
            ),
            (
                "memory",
                refused(&|body| body["TaskTemplate"]["Resources"]["Limits"]["MemoryBytes"] = json!(1024)),
                400,
                format!("{invalid}invalid memory value 1024: Must be at least 4MiB"),
            ),
            (
                "network",
                refused(&|body| body["TaskTemplate"]["Networks"] = json!([{"Target": absent}])),
                500,
                format!("network {absent} not found"),
            ),
        ] {
            let answer = api.post("/services/create", &body).await;
            found.answer(&format!("create: {what}"), &answer, status, &text);
        }
        let answer = api.get(&format!("/services/{absent}/logs?stdout=0")).await;
        found.answer(
            "logs without an output",
            &answer,
            500,
            "Bad parameters: you must choose at least one stream",
        );
    }

    async fn secrets(&self, found: &mut Findings) {
        let (api, name) = (self.api, self.name("secret"));
        let secret = json!({"Name": name, "Labels": {"lie": self.unique}, "Data": "c2VjcmV0"});
        let made = api.post("/secrets/create", &secret).await;
        found.equal("secret: create", &made.status, &201);
        let id = made.body["ID"].as_str().unwrap_or_default().to_owned();
        let again = api.post("/secrets/create", &secret).await;
        let text = format!("rpc error: code = AlreadyExists desc = secret {name} already exists");
        found.answer("secret: the same name", &again, 409, &text);
        let shown = api.get(&format!("/secrets/{name}")).await;
        found.equal(
            "secret: its data is not shown",
            &shown.body["Spec"]["Data"],
            &Value::Null,
        );
        let mut body = self.body("keeper", &[]);
        body["Mode"] = json!({"Replicated": {"Replicas": 0}});
        let file = json!({"Name": "x", "UID": "0", "GID": "0", "Mode": 292});
        body["TaskTemplate"]["ContainerSpec"]["Secrets"] = json!([{"SecretID": id, "SecretName": name, "File": file}]);
        let keeper = self.create("keeper", &body).await;
        let used = api.delete(&format!("/secrets/{id}")).await;
        let user = self.name("keeper");
        let text = format!(
            "rpc error: code = InvalidArgument desc = secret '{name}' is in use by the following service: {user}"
        );
        found.answer("secret: in use", &used, 400, &text);
        let removed = api.delete(&format!("/services/{keeper}")).await;
        found.equal("service: remove", &removed.status, &200);
        found.equal(
            "secret: remove",
            &api.delete(&format!("/secrets/{id}")).await.status,
            &204,
        );
    }

    async fn versions_and_filters(&self, found: &mut Findings) {
        let api = self.api;
        let mut body = self.body("still", &[]);
        body["Mode"] = json!({"Replicated": {"Replicas": 0}});
        let id = self.create("still", &body).await;
        let again = api.post("/services/create", &body).await;
        let name = self.name("still");
        let text = format!(
            "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service {name} already exists"
        );
        found.answer("create: the same name", &again, 409, &text);
        let answer = api.post(&format!("/services/{id}/update"), &body).await;
        found.equal("update without a version", &answer.status, &400);
        let answer = api.post(&format!("/services/{id}/update?version=1"), &body).await;
        let text = "rpc error: code = Unknown desc = update out of sequence";
        found.answer("update of another version", &answer, 500, text);
        let answer = self
            .change(&id, |body| body["Name"] = json!(self.name("renamed")))
            .await;
        let text = "rpc error: code = Unimplemented desc = renaming services is not supported";
        found.answer("update of the name", &answer, 501, text);
        let answer = self.change(&id, |body| body["Labels"]["extra"] = json!("1")).await;
        found.equal("update of a label", &answer.status, &200);
        let service = self.service(&id).await;
        found.equal(
            "a change of a label is no rolling update",
            &service["UpdateStatus"],
            &Value::Null,
        );
        found.equal(
            "what it was before",
            &service["PreviousSpec"]["Labels"]["extra"],
            &Value::Null,
        );
        found.equal(
            "the network by its id",
            &(service["Spec"]["TaskTemplate"]["Networks"][0]["Target"] == json!(self.network)),
            &false,
        );
        for (what, filters, count) in [
            ("label", json!({"label": [format!("lie={}", self.unique)]}), 1),
            (
                "two labels",
                json!({"label": [format!("lie={}", self.unique), "extra=2"]}),
                0,
            ),
            (
                "a label's key",
                json!({"label": ["extra"], "name": [format!("lie-{}", self.unique)]}),
                1,
            ),
            (
                "the beginning of the name",
                json!({"name": [format!("lie-{}-st", self.unique)]}),
                1,
            ),
            ("the end of the name", json!({"name": ["still"]}), 0),
            ("the beginning of the id", json!({"id": [&id[..12]]}), 1),
            (
                "the old form",
                json!({"label": {format!("lie={}", self.unique): true}}),
                1,
            ),
        ] {
            let answer = api
                .get(&format!("/services?filters={}", api::encoded(&filters.to_string())))
                .await;
            let count_seen = answer.body.as_array().map_or(0, Vec::len);
            found.equal(&format!("filter by {what}"), &count_seen, &count);
        }
        api.delete(&format!("/services/{id}")).await;
    }

    /// Running, crashing, stopping, removing.
    async fn lives(&self, found: &mut Findings) {
        let id = self.create("runs", &self.body("runs", &[])).await;
        let seen = self
            .until(found, "a task runs", &id, |tasks| state(tasks) == "running")
            .await;
        let task = seen.first().cloned().unwrap_or_default();
        found.equal("running: desired", &task["DesiredState"], &json!("running"));
        found.equal("running: slot", &task["Slot"], &json!(1));
        found.equal(
            "running: exit code",
            &task["Status"]["ContainerStatus"]["ExitCode"],
            &json!(0),
        );
        found.equal(
            "running: it has a container",
            &task["Status"]["ContainerStatus"]["ContainerID"].is_string(),
            &true,
        );
        found.equal(
            "running: on a network",
            &task["NetworksAttachments"][0]["Network"]["Spec"]["Name"],
            &json!(self.network),
        );
        let (mine, theirs) = (
            &task["Spec"]["ContainerSpec"],
            &self.service(&id).await["Spec"]["TaskTemplate"]["ContainerSpec"],
        );
        found.equal("running: made from the template", mine, theirs);
        let listed = self
            .api
            .get(&format!(
                "/services?status=1&filters={}",
                api::encoded(&json!({"id": [id]}).to_string())
            ))
            .await;
        found.equal(
            "status: running",
            &listed.body[0]["ServiceStatus"]["RunningTasks"],
            &json!(1),
        );
        found.equal(
            "status: desired",
            &listed.body[0]["ServiceStatus"]["DesiredTasks"],
            &json!(1),
        );
        self.change(&id, |body| body["Mode"]["Replicated"]["Replicas"] = json!(0))
            .await;
        let seen = self
            .until(found, "a stopped task is forgotten", &id, <[Value]>::is_empty)
            .await;
        found.equal("stopped: no history", &seen.len(), &0);
        self.api.delete(&format!("/services/{id}")).await;

        let id = self.create("crashes", &self.body("crashes", &["CRASH=7"])).await;
        let seen = self
            .until(found, "two crashes", &id, |tasks| count(tasks, "failed") >= 2)
            .await;
        let failed = seen
            .iter()
            .find(|task| task["Status"]["State"] == "failed")
            .cloned()
            .unwrap_or_default();
        found.equal("crash: desired", &failed["DesiredState"], &json!("shutdown"));
        found.equal(
            "crash: error",
            &failed["Status"]["Err"],
            &json!("task: non-zero exit (7)"),
        );
        found.equal(
            "crash: exit code",
            &failed["Status"]["ContainerStatus"]["ExitCode"],
            &json!(7),
        );
        let next = seen.first().cloned().unwrap_or_default();
        found.equal("crash: the next one waits", &next["DesiredState"], &json!("ready"));
        self.until(found, "five tasks", &id, |tasks| {
            tasks.len() == 5 && count(tasks, "failed") >= 4
        })
        .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        found.equal("crash: history", &(self.tasks(&id).await.len() <= 6), &true);
        self.change(&id, |body| body["Mode"]["Replicated"]["Replicas"] = json!(0))
            .await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let left = self.tasks(&id).await;
        let failures = count(&left, "failed");
        found.equal(
            "stopped after crashes: the failures stay",
            &(failures > 0 && failures == left.len()),
            &true,
        );
        self.api.delete(&format!("/services/{id}")).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        found.equal("removed: no history", &self.labelled("crashes").await, &0);

        // A program that does not listen to SIGTERM takes its whole grace. It has little to run with, so that it is
        // not done before.
        let mut body = self.body("drains", &["EAT_MB=8"]);
        body["TaskTemplate"]["Resources"]["Limits"]["NanoCPUs"] = json!(20_000_000);
        let id = self.create("drains", &body).await;
        self.until(found, "a task runs that cannot be stopped", &id, |tasks| {
            state(tasks) == "running"
        })
        .await;
        self.api.delete(&format!("/services/{id}")).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        found.equal("removed: its task goes on", &self.labelled("drains").await, &1);
        tokio::time::sleep(Duration::from_secs(8)).await;
        found.equal("removed: its task has ended", &self.labelled("drains").await, &0);
    }

    /// Tasks by a label that their service has or had.
    async fn labelled(&self, part: &str) -> usize {
        let filter = json!({"label": [format!("lie={}", self.unique), format!("part={part}")]}).to_string();
        let answer = self.api.get(&format!("/tasks?filters={}", api::encoded(&filter))).await;
        answer.body.as_array().map_or(0, Vec::len)
    }

    async fn updates(&self, found: &mut Findings) {
        let id = self.create("changes", &self.body("changes", &[])).await;
        let seen = self
            .until(found, "a task runs", &id, |tasks| state(tasks) == "running")
            .await;
        let first = seen.first().map(|task| task["ID"].clone()).unwrap_or_default();
        self.change(&id, |body| body["TaskTemplate"]["ForceUpdate"] = json!(1))
            .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let status = self.service(&id).await["UpdateStatus"]["State"].clone();
        found.equal("update: at once", &status, &json!("updating"));
        let seen = self
            .until(found, "another task runs", &id, |tasks| {
                state(tasks) == "running" && tasks.first().is_some_and(|task| task["ID"] != first)
            })
            .await;
        let old = seen
            .iter()
            .find(|task| task["ID"] == first)
            .cloned()
            .unwrap_or_default();
        found.equal("update: the old task", &old["Status"]["State"], &json!("shutdown"));
        found.equal(
            "update: the old task is not wanted",
            &old["DesiredState"],
            &json!("shutdown"),
        );
        tokio::time::sleep(Duration::from_secs(5)).await;
        let status = self.service(&id).await["UpdateStatus"].clone();
        found.equal("update: in the end", &status["State"], &json!("completed"));
        found.equal("update: its text", &status["Message"], &json!("update completed"));
        self.change(&id, |body| {
            body["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["CRASH=3"])
        })
        .await;
        let seen = self
            .until(found, "the change fails", &id, |tasks| count(tasks, "failed") >= 1)
            .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let failed = seen
            .iter()
            .rfind(|task| task["Status"]["State"] == "failed")
            .map(|task| task["ID"].clone());
        let status = self.service(&id).await["UpdateStatus"].clone();
        found.equal("failed update", &status["State"], &json!("paused"));
        let text = format!(
            "update paused due to failure or early termination of task {}",
            failed.unwrap_or_default().as_str().unwrap_or_default()
        );
        found.equal("failed update: its text", &status["Message"], &json!(text));
        self.until(found, "it is tried again all the same", &id, |tasks| {
            count(tasks, "failed") >= 2
        })
        .await;
        self.change(&id, |body| body["TaskTemplate"]["ContainerSpec"]["Env"] = json!([]))
            .await;
        self.until(found, "a good change runs", &id, |tasks| state(tasks) == "running")
            .await;
        self.api.delete(&format!("/services/{id}")).await;
    }

    /// What no node can run.
    async fn misfits(&self, found: &mut Findings) {
        let mut body = self.body("noimage", &[]);
        body["TaskTemplate"]["ContainerSpec"]["Image"] = json!("saasodoo/no-such-image:17");
        let id = self.create("noimage", &body).await;
        let seen = self
            .until(found, "a refusal", &id, |tasks| count(tasks, "rejected") >= 1)
            .await;
        let rejected = seen
            .iter()
            .find(|task| task["Status"]["State"] == "rejected")
            .cloned()
            .unwrap_or_default();
        let text = rejected["Status"]["Err"].as_str().unwrap_or_default().to_owned();
        found.equal(
            "no image: it is said",
            &text.starts_with("No such image: saasodoo/no-such-image:17"),
            &true,
        );
        found.equal(
            "no image: no container",
            &rejected["Status"]["ContainerStatus"]["ContainerID"]
                .as_str()
                .unwrap_or_default(),
            &"",
        );
        self.until(found, "another refusal", &id, |tasks| count(tasks, "rejected") >= 2)
            .await;
        self.api.delete(&format!("/services/{id}")).await;

        let mut body = self.body("nosource", &[]);
        let mount = json!({"Type": "bind", "Source": "/no/such/directory", "Target": "/data"});
        body["TaskTemplate"]["ContainerSpec"]["Mounts"] = json!([mount]);
        let id = self.create("nosource", &body).await;
        let seen = self
            .until(found, "a refusal", &id, |tasks| count(tasks, "rejected") >= 1)
            .await;
        let rejected = seen
            .iter()
            .find(|task| task["Status"]["State"] == "rejected")
            .cloned()
            .unwrap_or_default();
        let text = "invalid mount config for type \"bind\": bind source path does not exist: /no/such/directory";
        found.equal("no source", &rejected["Status"]["Err"], &json!(text));
        self.api.delete(&format!("/services/{id}")).await;

        let mut body = self.body("nonode", &[]);
        body["TaskTemplate"]["Placement"] = json!({"Constraints": ["node.labels.lie==none"]});
        let id = self.create("nonode", &body).await;
        let told = |tasks: &[Value]| tasks.first().is_some_and(|task| task["Status"]["Err"].is_string());
        let seen = self.until(found, "why it waits", &id, told).await;
        let task = seen.first().cloned().unwrap_or_default();
        found.equal("no node: state", &task["Status"]["State"], &json!("pending"));
        let text = "no suitable node (scheduling constraints not satisfied on 1 node)";
        found.equal("no node: error", &task["Status"]["Err"], &json!(text));
        self.api.delete(&format!("/services/{id}")).await;

        let id = self.create("greedy", &self.body("greedy", &["EAT_MB=256"])).await;
        let seen = self
            .until(found, "a kill for memory", &id, |tasks| count(tasks, "failed") >= 1)
            .await;
        let failed = seen
            .iter()
            .find(|task| task["Status"]["State"] == "failed")
            .cloned()
            .unwrap_or_default();
        found.equal(
            "memory: exit code",
            &failed["Status"]["ContainerStatus"]["ExitCode"],
            &json!(137),
        );
        found.equal(
            "memory: error",
            &failed["Status"]["Err"],
            &json!("task: non-zero exit (137)"),
        );
        self.api.delete(&format!("/services/{id}")).await;
    }

    async fn rollback(&self, found: &mut Findings) {
        let mut body = self.body("back", &[]);
        body["UpdateConfig"]["FailureAction"] = json!("rollback");
        body["RollbackConfig"] = json!({"Monitor": 2_000_000_000_u64});
        let id = self.create("back", &body).await;
        self.until(found, "a task runs", &id, |tasks| state(tasks) == "running")
            .await;
        self.change(&id, |body| {
            body["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["CRASH=3"])
        })
        .await;
        self.until(found, "the change fails", &id, |tasks| count(tasks, "failed") >= 1)
            .await;
        self.until(found, "what was before runs", &id, |tasks| {
            state(tasks) == "running" && tasks.first().is_some_and(|task| env(task).is_empty())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let service = self.service(&id).await;
        found.equal(
            "rolled back: state",
            &service["UpdateStatus"]["State"],
            &json!("rollback_completed"),
        );
        found.equal(
            "rolled back: text",
            &service["UpdateStatus"]["Message"],
            &json!("rollback completed"),
        );
        let spec = &service["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"];
        found.equal(
            "rolled back: the spec",
            &spec.as_array().is_none_or(Vec::is_empty),
            &true,
        );
        let again = |service: &Value| {
            format!(
                "/services/{id}/update?rollback=previous&version={}",
                service["Version"]["Index"]
            )
        };
        self.change(&id, |body| body["Labels"]["extra"] = json!("1")).await;
        let service = self.service(&id).await;
        let answer = self.api.post(&again(&service), &service["Spec"]).await;
        found.equal("asked to roll back", &answer.status, &200);
        let service = self.service(&id).await;
        found.equal(
            "asked to roll back: the spec",
            &service["Spec"]["Labels"]["extra"],
            &Value::Null,
        );
        self.api.delete(&format!("/services/{id}")).await;
    }

    async fn probes(&self, found: &mut Findings) {
        let check = json!({
            "Test": ["CMD-SHELL", "wget -q -O /dev/null http://127.0.0.1:8069/web/health || exit 1"],
            "Interval": 1_000_000_000_u64, "Retries": 3,
        });
        let mut body = self.body("ill", &["UNREADY=1"]);
        body["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = check.clone();
        let id = self.create("ill", &body).await;
        let seen = self
            .until(found, "a start", &id, |tasks| state(tasks) == "starting")
            .await;
        let task = seen.first().cloned().unwrap_or_default();
        found.equal(
            "starting: it has a container",
            &task["Status"]["ContainerStatus"]["ContainerID"].is_string(),
            &true,
        );
        let seen = self
            .until(found, "it is given up", &id, |tasks| count(tasks, "complete") >= 1)
            .await;
        let ended = seen
            .iter()
            .find(|task| task["Status"]["State"] == "complete")
            .cloned()
            .unwrap_or_default();
        found.equal("unhealthy, and ends well: error", &ended["Status"]["Err"], &Value::Null);
        found.equal(
            "unhealthy, and ends well: exit code",
            &ended["Status"]["ContainerStatus"]["ExitCode"],
            &json!(0),
        );
        let next = seen.first().cloned().unwrap_or_default();
        found.equal(
            "waiting: no container yet",
            &next["Status"]["ContainerStatus"],
            &Value::Null,
        );
        self.api.delete(&format!("/services/{id}")).await;

        let mut body = self.body("stubborn", &["EAT_MB=8"]);
        body["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = check.clone();
        body["TaskTemplate"]["Resources"]["Limits"]["NanoCPUs"] = json!(50_000_000);
        let id = self.create("stubborn", &body).await;
        let seen = self
            .until(found, "it is given up and killed", &id, |tasks| {
                count(tasks, "failed") >= 1
            })
            .await;
        let failed = seen
            .iter()
            .find(|task| task["Status"]["State"] == "failed")
            .cloned()
            .unwrap_or_default();
        found.equal(
            "unhealthy, and killed: error",
            &failed["Status"]["Err"],
            &json!("task: non-zero exit (137)"),
        );
        self.api.delete(&format!("/services/{id}")).await;

        let mut body = self.body("well", &[]);
        body["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = check;
        let id = self.create("well", &body).await;
        self.until(found, "a start", &id, |tasks| state(tasks) == "starting")
            .await;
        self.until(found, "it is healthy", &id, |tasks| state(tasks) == "running")
            .await;
        self.api.delete(&format!("/services/{id}")).await;
    }

    /// Swarm starts the next process while the last one still drains.
    async fn overlaps(&self, found: &mut Findings) {
        let mut body = self.body("twice", &["EAT_MB=8"]);
        body["TaskTemplate"]["Resources"]["Limits"]["NanoCPUs"] = json!(20_000_000);
        let id = self.create("twice", &body).await;
        self.until(found, "a task runs that cannot be stopped", &id, |tasks| {
            state(tasks) == "running"
        })
        .await;
        self.change(&id, |body| body["Mode"]["Replicated"]["Replicas"] = json!(0))
            .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let tasks = self.tasks(&id).await;
        found.equal(
            "stopping: desired",
            &tasks.first().map(|task| task["DesiredState"].clone()),
            &Some(json!("remove")),
        );
        found.equal("stopping: state", &state(&tasks), &"running");
        self.change(&id, |body| body["Mode"]["Replicated"]["Replicas"] = json!(1))
            .await;
        let both = |tasks: &[Value]| count(tasks, "running") == 2;
        self.until(found, "the next one runs beside it", &id, both).await;
        self.api.delete(&format!("/services/{id}")).await;
    }

    /// Which fields there are.
    async fn shapes(&self, found: &mut Findings) {
        let api = self.api;
        let id = self.create("shown", &self.body("shown", &[])).await;
        let seen = self
            .until(found, "a task runs", &id, |tasks| state(tasks) == "running")
            .await;
        let task = seen.first().cloned().unwrap_or_default();
        let service = self.service(&id).await;
        let mut template = service["Spec"]["TaskTemplate"].clone();
        if let Some(fields) = template.as_object_mut() {
            fields.remove("Runtime");
        }
        found.equal("a task's spec is the template", &task["Spec"], &template);
        found.equal(
            "a task's fields",
            &keys(&task),
            &"CreatedAt DesiredState ID Labels NetworksAttachments NodeID ServiceID Slot Spec Status UpdatedAt Version"
                .to_owned(),
        );
        found.equal(
            "a task's status",
            &keys(&task["Status"]),
            &"ContainerStatus Message PortStatus State Timestamp".to_owned(),
        );
        found.equal(
            "a service's fields",
            &keys(&service),
            &"CreatedAt Endpoint ID Spec UpdatedAt Version".to_owned(),
        );
        let defaults = api.get(&format!("/services/{id}?insertDefaults=true")).await.body;
        found.equal(
            "a spec's fields with defaults",
            &keys(&defaults["Spec"]),
            &"Labels Mode Name RollbackConfig TaskTemplate UpdateConfig".to_owned(),
        );
        found.equal(
            "the template's fields with defaults",
            &keys(&defaults["Spec"]["TaskTemplate"]),
            &"ContainerSpec ForceUpdate Networks Placement Resources RestartPolicy Runtime".to_owned(),
        );
        let node = api.get("/nodes").await.body[0].clone();
        found.equal(
            "a node's fields",
            &keys(&node),
            &"CreatedAt Description ID ManagerStatus Spec Status UpdatedAt Version".to_owned(),
        );
        found.equal("the task's node", &task["NodeID"], &node["ID"]);
        found.equal("the node's state", &node["Status"]["State"], &json!("ready"));
        let info = api.get("/info").await.body;
        found.equal("a manager", &info["Swarm"]["ControlAvailable"], &json!(true));
        found.equal("the manager's node", &info["Swarm"]["NodeID"], &node["ID"]);
        let network = api.get(&format!("/networks/{}", self.network)).await.body;
        found.equal("the network's scope", &network["Scope"], &json!("swarm"));
        let version = api.get("/version").await.body;
        found.equal(
            "versions",
            &(version["Version"].is_string() && version["ApiVersion"].is_string()),
            &true,
        );
        let updated = self.change(&id, |body| body["Labels"]["extra"] = json!("1")).await;
        found.equal("the answer to an update", &updated.body, &json!({"Warnings": null}));
        let removed = api.delete(&format!("/services/{id}")).await;
        found.equal("the answer to a removal", &removed.bytes.len(), &0);
    }

    async fn logs(&self, found: &mut Findings) {
        let id = self.create("talks", &self.body("talks", &[])).await;
        let seen = self
            .until(found, "a task runs", &id, |tasks| state(tasks) == "running")
            .await;
        let task = seen
            .first()
            .and_then(|task| task["ID"].as_str())
            .unwrap_or_default()
            .to_owned();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let query = "stdout=1&stderr=1&timestamps=1";
        let frames = api::frames(&self.api.get(&format!("/tasks/{task}/logs?{query}")).await.bytes);
        let texts: Vec<&str> = frames
            .iter()
            .filter_map(|(_, text)| text.split_once(' '))
            .map(|(_, text)| text)
            .collect();
        found.equal(
            "logs: the last line",
            &texts.last().copied(),
            &Some("odoo-stub: listening on 8069\n"),
        );
        found.equal(
            "logs: the first line",
            &texts
                .first()
                .is_some_and(|text| text.starts_with("odoo-stub: starting on ")),
            &true,
        );
        found.equal(
            "logs: on the standard output",
            &frames.first().map(|(output, _)| *output),
            &Some(1),
        );
        let time = frames
            .first()
            .map(|(_, text)| text.split(' ').next().unwrap_or_default().len());
        found.equal(
            "logs: a time with nine decimals",
            &time,
            &Some("2026-01-02T03:04:05.123456789Z".len()),
        );
        let frames = api::frames(
            &self
                .api
                .get(&format!("/services/{id}/logs?{query}&tail=1&details=1"))
                .await
                .bytes,
        );
        found.equal("logs: a tail", &frames.len(), &1);
        let details = frames
            .first()
            .and_then(|(_, text)| text.split(' ').nth(1))
            .unwrap_or_default();
        let end = format!(",com.docker.swarm.service.id={id},com.docker.swarm.task.id={task}");
        found.equal(
            "logs: whose",
            &(details.starts_with("com.docker.swarm.node.id=") && details.ends_with(&end)),
            &true,
        );
        self.api.delete(&format!("/services/{id}")).await;
    }

    async fn events(&self, found: &mut Findings) {
        let since = self.api.now();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let mut body = self.body("heard", &[]);
        body["Mode"] = json!({"Replicated": {"Replicas": 0}});
        let id = self.create("heard", &body).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.change(&id, |body| body["Mode"]["Replicated"]["Replicas"] = json!(1))
            .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.api.delete(&format!("/services/{id}")).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let filters = api::encoded(&json!({"type": ["service"], "service": [self.name("heard")]}).to_string());
        let path = format!("/events?since={since}&until={}&filters={filters}", self.api.now());
        let answer = self.api.get(&path).await;
        let events: Vec<Value> = String::from_utf8_lossy(&answer.bytes)
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let actions: Vec<&str> = events.iter().filter_map(|event| event["Action"].as_str()).collect();
        found.equal("events", &actions, &vec!["create", "update", "update", "remove"]);
        // The first one is about its networks.
        let update = events.get(2).cloned().unwrap_or_default();
        found.equal("events: whose", &update["Actor"]["ID"], &json!(id));
        let attributes = json!({"name": self.name("heard"), "replicas.old": "0", "replicas.new": "1"});
        found.equal("events: what", &update["Actor"]["Attributes"], &attributes);
        found.equal("events: scope", &update["scope"], &json!("swarm"));
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
