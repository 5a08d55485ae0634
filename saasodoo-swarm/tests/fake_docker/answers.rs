//! What requests are answered with: refusals, filters, versions, fields.
#![allow(unreachable_pub)]

use serde_json::{Value, json};

use crate::api::{self, Findings};
use crate::{Script, keys, state};

impl Script<'_> {
    pub async fn refusals(&self, found: &mut Findings) {
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
        let filter = api::encoded(&json!({"service": [absent]}).to_string());
        let answer = self.api.get(&format!("/tasks?filters={filter}")).await;
        found.answer(
            "absent: tasks of it",
            &answer,
            404,
            &format!("service {absent} not found"),
        );
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

    pub async fn secrets(&self, found: &mut Findings) {
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

    pub async fn versions_and_filters(&self, found: &mut Findings) {
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

    /// As docker-py sends it, and as it is shown then.
    pub async fn spellings(&self, found: &mut Findings) {
        let mut body = self.body("spelt", &[]);
        body["Mode"] = json!({"replicated": {"Replicas": 0}});
        let container = &mut body["TaskTemplate"]["ContainerSpec"];
        container["Command"] = Value::Null;
        container["Args"] = Value::Null;
        container["HealthCheck"] = json!({"Test": ["NONE"]});
        container["Mounts"] = json!([{"Type": "bind", "Source": "/tmp", "Target": "/data", "ReadOnly": false}]);
        let id = self.create("spelt", &body).await;
        let spec = self.service(&id).await["Spec"].clone();
        found.equal("spelt: mode", &spec["Mode"], &json!({"Replicated": {"Replicas": 0}}));
        let container = &spec["TaskTemplate"]["ContainerSpec"];
        let fields = "Healthcheck Image Isolation Mounts StopGracePeriod".to_owned();
        found.equal("spelt: the container's fields", &keys(container), &fields);
        let mount = json!({"Type": "bind", "Source": "/tmp", "Target": "/data"});
        found.equal("spelt: a mount", &container["Mounts"][0], &mount);
        found.equal(
            "spelt: a healthcheck",
            &container["Healthcheck"],
            &json!({"Test": ["NONE"]}),
        );
        self.api.delete(&format!("/services/{id}")).await;
    }

    /// Which fields there are.
    pub async fn shapes(&self, found: &mut Findings) {
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
}
