//! What cannot run, and what is told about it.
#![allow(unreachable_pub)]

use serde_json::{Value, json};

use crate::api::Findings;
use crate::{Script, count, state};

impl Script<'_> {
    /// What no node can run.
    pub async fn misfits(&self, found: &mut Findings) {
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

    pub async fn probes(&self, found: &mut Findings) {
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
        let second = 1_000_000_000_u64;
        body["TaskTemplate"]["ContainerSpec"]["Healthcheck"] =
            json!({"Test": ["CMD-SHELL", "exit 1"], "Interval": second, "Timeout": second, "Retries": 1});
        body["TaskTemplate"]["Resources"]["Limits"]["NanoCPUs"] = json!(20_000_000);
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
            &json!("task: non-zero exit (137): dockerexec: unhealthy container"),
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
}
