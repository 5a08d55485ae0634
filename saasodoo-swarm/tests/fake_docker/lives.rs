//! How tasks run, end, are updated and drain.
#![allow(unreachable_pub)]

use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{self, Findings};
use crate::{Script, count, env, state};

impl Script<'_> {
    /// Running, crashing, stopping, removing.
    pub async fn lives(&self, found: &mut Findings) {
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
        // One that was on its way may take its time to end.
        let failures_only = |tasks: &[Value]| !tasks.is_empty() && count(tasks, "failed") == tasks.len();
        self.until(found, "stopped after crashes: failures only", &id, failures_only)
            .await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let left = self.tasks(&id).await;
        found.equal("stopped after crashes: the failures stay", &failures_only(&left), &true);
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

    pub async fn updates(&self, found: &mut Findings) {
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

    pub async fn rollback(&self, found: &mut Findings) {
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

    /// Swarm starts the next process while the last one still drains.
    pub async fn overlaps(&self, found: &mut Findings) {
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
}
