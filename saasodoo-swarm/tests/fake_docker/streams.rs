//! Logs and events.
#![allow(unreachable_pub)]

use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{self, Findings};
use crate::{Script, state};

impl Script<'_> {
    pub async fn logs(&self, found: &mut Findings) {
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

    pub async fn events(&self, found: &mut Findings) {
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
}
