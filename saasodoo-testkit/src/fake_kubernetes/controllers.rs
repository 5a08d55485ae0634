//! The controllers of Deployments and of owner references.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::FOREGROUND;
use super::state::{Job, NOTICED, State};
use super::store::{DEPLOYMENTS, Key, Object, PODS, finalizers, is_deleting, owners, text, uid, unfinalize};

const REVISION: &str = "deployment.kubernetes.io/revision";
const HASH: &str = "pod-template-hash";

impl State {
    /// The pods that a Deployment has made.
    fn pods_of(&self, deployment: &Key, owner: &str) -> Vec<(Key, Object)> {
        let all = self.store.all(PODS, &deployment.namespace);
        all.filter(|(_, pod)| owners(pod).any(|(uid, _)| uid == owner))
            .map(|(key, pod)| (key.clone(), Arc::clone(pod)))
            .collect()
    }

    pub(super) fn sync_deployment(&mut self, key: &Key) {
        let Some(deployment) = self.store.get(key).cloned() else {
            return;
        };
        if is_deleting(&deployment) {
            return;
        }
        let owner = uid(&deployment);
        let hash = template_hash(&deployment["spec"]["template"]);
        let desired = usize::try_from(deployment["spec"]["replicas"].as_u64().unwrap_or(1)).unwrap_or(0);
        let recreate = deployment["spec"]["strategy"]["type"] == "Recreate";
        let pods = self.pods_of(key, owner);
        let (new, old): (Vec<_>, Vec<_>) = pods
            .into_iter()
            .filter(|(_, pod)| !is_finished(pod))
            .partition(|(_, pod)| text(pod, "/metadata/labels/pod-template-hash") == hash);
        let ready = new.iter().filter(|(_, pod)| is_ready(pod)).count();
        if recreate || ready >= desired {
            for (pod, _) in old.iter().filter(|(_, pod)| !is_deleting(pod)) {
                self.begin_deletion(pod, "", None);
            }
        }
        let mut refused = None;
        // Also pods that are ending hold a new template up, and those of the same template do not: the real one's
        // replica set counts only what shall run.
        if !recreate || old.is_empty() {
            let mut active: Vec<_> = new.iter().filter(|(_, pod)| !is_deleting(pod)).collect();
            let missing = active.len()..desired;
            if self.no_pods.is_none() {
                for _ in missing {
                    self.make_pod(key, &deployment, &hash);
                }
            } else if !missing.is_empty() {
                refused = self.no_pods.clone();
            }
            active.sort_by_key(|(_, pod)| !is_ready(pod));
            for (pod, _) in active.iter().skip(desired) {
                self.begin_deletion(pod, "", None);
            }
        }
        self.report(key, &deployment, &hash, desired, refused);
    }

    /// Has every Deployment looked at again.
    pub(super) fn retry_deployments(&mut self) {
        let all = self.store.all(DEPLOYMENTS, "");
        let all: Vec<Key> = all.map(|(key, _)| key.clone()).collect();
        for key in all {
            self.later(Job::Deployment(key), NOTICED);
        }
    }

    fn make_pod(&mut self, deployment: &Key, object: &Value, hash: &str) {
        let number = self.next_number();
        let suffix: String = uuid::Uuid::new_v4().simple().to_string().chars().take(5).collect();
        let name = format!("{}-{hash}-{suffix}", deployment.name);
        let key = Key::new(PODS, &deployment.namespace, &name);
        let template = &object["spec"]["template"];
        let mut metadata = self.metadata_of(&key);
        metadata["labels"] = template["metadata"]["labels"].clone();
        metadata["labels"][HASH] = json!(hash);
        if template["metadata"]["annotations"].is_object() {
            metadata["annotations"] = template["metadata"]["annotations"].clone();
        }
        metadata["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.name, "uid": uid(object),
            "controller": true, "blockOwnerDeletion": true,
        }]);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"],
            "status": {"phase": "Pending", "qosClass": "Burstable"},
        });
        tracing::trace!(name, number, "made");
        let pod = self.write(&key, pod);
        self.begin_pod(&key, &pod);
    }

    /// Writes the status of a Deployment.
    fn report(&mut self, key: &Key, deployment: &Object, hash: &str, desired: usize, refused: Option<String>) {
        let owner = uid(deployment).to_owned();
        let pods = self.pods_of(key, &owner);
        let active: Vec<_> = pods
            .iter()
            .filter(|(_, pod)| !is_deleting(pod) && !is_finished(pod))
            .collect();
        let updated = active
            .iter()
            .filter(|(_, pod)| text(pod, "/metadata/labels/pod-template-hash") == hash)
            .count();
        let ready = active.iter().filter(|(_, pod)| is_ready(pod)).count();
        let mut status = json!({"observedGeneration": deployment["metadata"]["generation"]});
        for (field, count) in [
            ("replicas", active.len()),
            ("updatedReplicas", updated),
            ("readyReplicas", ready),
            ("availableReplicas", ready),
            ("unavailableReplicas", desired.saturating_sub(ready)),
        ] {
            // A zero is left out, as the real server's types do.
            if count > 0 {
                status[field] = json!(count);
            }
        }
        let old = &deployment["status"];
        let mut conditions = old["conditions"].as_array().cloned().unwrap_or_default();
        let now = self.stamp();
        let available = if ready >= desired {
            (
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.".to_owned(),
            )
        } else {
            (
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.".to_owned(),
            )
        };
        condition(&mut conditions, "Available", available, &now, false);
        match refused {
            Some(why) => {
                let why = format!("pods \"{}-{hash}-\" is forbidden: {why}", key.name);
                condition(
                    &mut conditions,
                    "ReplicaFailure",
                    ("True", "FailedCreate", why),
                    &now,
                    false,
                );
            }
            None => conditions.retain(|condition| condition["type"] != "ReplicaFailure"),
        }
        let rollout = self.rollouts.insert(owner, hash.to_owned());
        let new_rollout = rollout.as_deref() != Some(hash);
        let set = format!("ReplicaSet \"{}-{hash}\"", key.name);
        let complete = active.len() == desired && updated == desired && ready == desired;
        let seen = progress(&conditions);
        let moved = ["replicas", "updatedReplicas", "readyReplicas"]
            .iter()
            .any(|field| old[field] != status[field]);
        let limit = deployment["spec"]["progressDeadlineSeconds"].as_u64().unwrap_or(600);
        let progressing = match seen {
            _ if complete => Some((
                "True",
                "NewReplicaSetAvailable",
                format!("{set} has successfully progressed."),
            )),
            _ if new_rollout => Some(("True", "NewReplicaSetCreated", format!("Created new {set}"))),
            // Once it was complete, what happens to a pod is no rollout any more.
            Some((reason, _)) if reason == "NewReplicaSetAvailable" => None,
            _ if moved => Some(("True", "ReplicaSetUpdated", format!("{set} is progressing."))),
            Some((_, since))
                if self.time().duration_since(since).as_secs() >= i64::try_from(limit).unwrap_or(i64::MAX) =>
            {
                Some((
                    "False",
                    "ProgressDeadlineExceeded",
                    format!("{set} has timed out progressing."),
                ))
            }
            _ => None,
        };
        if let Some(progressing) = progressing {
            let on_the_way = !complete && progressing.0 == "True";
            condition(&mut conditions, "Progressing", progressing, &now, moved || new_rollout);
            if on_the_way {
                self.later(Job::Deployment(key.clone()), Duration::from_secs(limit + 1));
            }
        }
        status["conditions"] = json!(conditions);
        self.amend(key, |object| {
            if new_rollout {
                // Written with the status, so the generation stays as it is.
                let before = object["metadata"]["annotations"][REVISION].as_str();
                let revision = before.and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
                object["metadata"]["annotations"][REVISION] = json!((revision + 1).to_string());
            }
            object["status"] = status;
        });
    }

    /// Deletes what has lost its owners, and what an owner that is going waits for.
    pub(super) fn collect(&mut self) {
        let late = !self.late.is_zero();
        let blind = self.unseen_until.is_some_and(|until| Instant::now() < until);
        let present: BTreeSet<String> = self
            .store
            .everything()
            .map(|(_, object)| uid(object).to_owned())
            .collect();
        let orphans: Vec<Key> = self
            .store
            .everything()
            .filter(|(_, object)| {
                let mut owners = owners(object).peekable();
                !blind
                    && !is_deleting(object)
                    && owners.peek().is_some()
                    && owners.all(|(uid, _)| !present.contains(uid))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in orphans {
            self.begin_deletion(&key, "Background", None);
        }
        let going: Vec<(Key, String)> = self
            .store
            .everything()
            .filter(|(_, object)| is_deleting(object) && finalizers(object).contains(&FOREGROUND))
            .map(|(key, object)| (key.clone(), uid(object).to_owned()))
            .collect();
        for (key, owner) in going {
            let owned = |state: &Self| -> Vec<(Key, bool, bool)> {
                let all = state.store.everything();
                all.filter_map(|(key, object)| {
                    let (_, blocks) = owners(object).find(|(uid, _)| *uid == owner)?;
                    Some((key.clone(), blocks, is_deleting(object)))
                })
                .collect()
            };
            for (dependent, _, deleting) in owned(self) {
                if !deleting && !late {
                    self.begin_deletion(&dependent, "Background", None);
                }
            }
            if late {
                self.unseen_until = Some(Instant::now() + self.late);
                self.later(Job::Collect, self.late);
            }
            if late || owned(self).iter().all(|(_, blocks, _)| !blocks) {
                self.amend(&key, |object| unfinalize(object, FOREGROUND));
                self.finish_deletion(&key);
            }
        }
    }

    /// Removes an object that is being deleted once nothing holds it any more.
    pub(super) fn finish_deletion(&mut self, key: &Key) {
        let over = |object: &Object| is_deleting(object) && finalizers(object).is_empty();
        if self.store.get(key).is_some_and(over) {
            self.erase(key);
        }
    }

    /// Takes an owner out of what it owns.
    pub(super) fn orphan(&mut self, owner: &str) {
        let all = self.store.everything();
        let owned = all.filter(|(_, object)| owners(object).any(|(uid, _)| uid == owner));
        let owned: Vec<Key> = owned.map(|(key, _)| key.clone()).collect();
        for key in owned {
            self.amend(&key, |object| {
                if let Some(list) = object["metadata"]["ownerReferences"].as_array_mut() {
                    list.retain(|other| text(other, "/uid") != owner);
                }
            });
        }
    }
}

/// Sets a condition. Its transition time changes with its status only.
pub(super) fn condition(
    conditions: &mut Vec<Value>,
    type_: &str,
    (status, reason, message): (&str, &str, String),
    now: &str,
    moved: bool,
) {
    let old = conditions.iter().find(|other| other["type"] == type_).cloned();
    let same = old.as_ref().is_some_and(|old| old["status"] == status);
    let unchanged = old
        .as_ref()
        .is_some_and(|old| same && old["reason"] == reason && old["message"] == *message);
    let kept = |field: &str, keep: bool| match &old {
        Some(old) if keep => old[field].clone(),
        _ => json!(now),
    };
    let new = json!({
        "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": kept("lastTransitionTime", same),
        "lastUpdateTime": kept("lastUpdateTime", unchanged && !moved),
    });
    match conditions.iter_mut().find(|other| other["type"] == type_) {
        Some(place) => *place = new,
        None => conditions.push(new),
    }
}

fn progress(conditions: &[Value]) -> Option<(String, Timestamp)> {
    let progressing = conditions.iter().find(|other| other["type"] == "Progressing")?;
    let since = text(progressing, "/lastUpdateTime").parse().ok()?;
    Some((text(progressing, "/reason").to_owned(), since))
}

fn template_hash(template: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    format!("{:x}", hasher.finish()).chars().take(9).collect()
}

pub(super) fn is_finished(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
