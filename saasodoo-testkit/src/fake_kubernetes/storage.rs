//! Claims, volumes and the directories behind them.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::controllers::is_finished;
use super::rules::{CLAIM_PROTECTION, VOLUME_PROTECTION, bytes};
use super::state::{Job, State, claims_of};
use super::store::{CLAIMS, CLASSES, Key, PODS, VOLUMES, is_deleting, text, uid, unfinalize};

const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const REQUESTED: &str = "/spec/resources/requests/storage";

impl State {
    pub(super) fn sync_claim(&mut self, key: &Key) {
        let Some(claim) = self.store.get(key).cloned() else {
            return;
        };
        if is_deleting(&claim) {
            let used = self.store.all(PODS, &key.namespace).any(|(_, pod)| {
                !text(pod, "/spec/nodeName").is_empty()
                    && !is_finished(pod)
                    && claims_of(pod).any(|name| name == key.name)
            });
            if !used {
                self.amend(key, |claim| unfinalize(claim, CLAIM_PROTECTION));
                self.finish_deletion(key);
            }
            return;
        }
        match text(&claim, "/status/phase") {
            "Bound" => self.keep_bound(key, &claim),
            "Lost" => {}
            _ if self.is_early(key, &claim) => {}
            _ => self.bind(key, &claim, false),
        }
    }

    /// Whether it is not the time yet to bind a claim; it is looked at again then.
    pub(super) fn is_early(&mut self, key: &Key, claim: &Value) -> bool {
        if self.binding.is_zero() {
            return false;
        }
        let now = Instant::now();
        let from = match self.bound_from.get(uid(claim)) {
            Some(from) => *from,
            None => {
                self.bound_from.insert(uid(claim).to_owned(), now + self.binding);
                self.later(Job::Claim(key.clone()), self.binding);
                now + self.binding
            }
        };
        now < from
    }

    fn keep_bound(&mut self, key: &Key, claim: &Value) {
        let volume = Key::new(VOLUMES, "", text(claim, "/spec/volumeName"));
        if self.store.get(&volume).is_none() {
            self.amend(key, |claim| claim["status"] = json!({"phase": "Lost"}));
            return;
        }
        let asked = text(claim, REQUESTED);
        let grown = bytes(asked) > bytes(text(claim, "/status/capacity/storage"));
        if grown {
            self.amend(&volume, |volume| volume["spec"]["capacity"]["storage"] = json!(asked));
            self.amend(key, |claim| claim["status"]["capacity"]["storage"] = json!(asked));
        }
    }

    /// Finds or makes the volume of a claim. `first_pod`: a pod that needs it has been given to a node.
    pub(super) fn bind(&mut self, key: &Key, claim: &Value, first_pod: bool) {
        let class = text(claim, "/spec/storageClassName");
        let named = text(claim, "/spec/volumeName");
        let fits = |volume: &Value, name: &str| {
            let owner = &volume["spec"]["claimRef"];
            let reserved = text(owner, "/name") == key.name && text(owner, "/namespace") == key.namespace;
            let own = text(owner, "/uid");
            let free = owner.is_null() || (reserved && (own.is_empty() || own == uid(claim)));
            let meant = if named.is_empty() {
                reserved || owner.is_null()
            } else {
                name == named
            };
            let enough = bytes(text(volume, "/spec/capacity/storage")) >= bytes(text(claim, REQUESTED));
            let same_class = text(volume, "/spec/storageClassName") == class;
            free && meant && same_class && (enough || !named.is_empty() || reserved) && !is_deleting(volume)
        };
        let found = self
            .store
            .all(VOLUMES, "")
            .find(|(key, volume)| fits(volume, &key.name));
        let volume = match found.map(|(key, _)| key.clone()) {
            Some(volume) => volume,
            None if !named.is_empty() => return,
            None => match self.provision(key, claim, first_pod) {
                Some(volume) => volume,
                None => return,
            },
        };
        let owner = json!({
            "apiVersion": "v1", "kind": CLAIMS.kind, "namespace": key.namespace, "name": key.name, "uid": uid(claim),
            "resourceVersion": claim["metadata"]["resourceVersion"],
        });
        self.amend(&volume, |volume| {
            volume["spec"]["claimRef"] = owner;
            volume["status"] = json!({"phase": "Bound"});
        });
        let capacity = self.store.get(&volume).map(|volume| volume["spec"]["capacity"].clone());
        self.amend(key, |claim| {
            claim["spec"]["volumeName"] = json!(volume.name);
            claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
            claim["status"] = json!({
                "phase": "Bound", "capacity": capacity, "accessModes": claim["spec"]["accessModes"],
            });
        });
    }

    fn provision(&mut self, key: &Key, claim: &Value, first_pod: bool) -> Option<Key> {
        let class = Key::new(CLASSES, "", text(claim, "/spec/storageClassName"));
        let class = self.store.get(&class)?.clone();
        if class["volumeBindingMode"] == "WaitForFirstConsumer" && !first_pod {
            return None;
        }
        let name = format!("pvc-{}", uid(claim));
        let volume = Key::new(VOLUMES, "", &name);
        let path = format!("/volumes/{}-{}-{name}", key.namespace, key.name);
        let mut metadata = self.metadata_of(&volume);
        metadata["annotations"] = json!({PROVISIONED_BY: class["provisioner"]});
        metadata["finalizers"] = json!([VOLUME_PROTECTION]);
        let object = json!({
            "apiVersion": "v1", "kind": VOLUMES.kind, "metadata": metadata,
            "spec": {
                "capacity": {"storage": text(claim, REQUESTED)},
                "accessModes": claim["spec"]["accessModes"],
                "persistentVolumeReclaimPolicy": class["reclaimPolicy"],
                "storageClassName": class["metadata"]["name"],
                "volumeMode": "Filesystem",
                "hostPath": {"path": path, "type": ""},
            },
            "status": {"phase": "Pending"},
        });
        self.directories.entry(path).or_default();
        self.write(&volume, object);
        Some(volume)
    }

    pub(super) fn sync_volume(&mut self, key: &Key) {
        let Some(volume) = self.store.get(key).cloned() else {
            return;
        };
        let owner = &volume["spec"]["claimRef"];
        let bound_to = text(owner, "/uid");
        let claim = Key::new(CLAIMS, text(owner, "/namespace"), text(owner, "/name"));
        let claim_there = self.store.get(&claim).is_some_and(|claim| uid(claim) == bound_to);
        let provisioned = volume["metadata"]["annotations"][PROVISIONED_BY].is_string();
        let reclaim = volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete";
        let phase = match (bound_to.is_empty(), claim_there) {
            (true, _) => "Available",
            (false, true) => "Bound",
            (false, false) if reclaim && provisioned => {
                // The provisioner deletes the data together with the volume.
                let directory = directory_of(&volume);
                if self.is_in_use(&directory) {
                    self.violations
                        .push(format!("{directory} was deleted while it was in use"));
                }
                self.directories.remove(&directory);
                self.amend(key, |volume| unfinalize(volume, VOLUME_PROTECTION));
                self.erase(key);
                return;
            }
            (false, false) if reclaim => "Failed",
            (false, false) => "Released",
        };
        if volume["status"]["phase"] != phase {
            self.amend(key, |volume| volume["status"] = json!({"phase": phase}));
        }
        if is_deleting(&volume) && phase != "Bound" {
            self.amend(key, |volume| unfinalize(volume, VOLUME_PROTECTION));
            self.finish_deletion(key);
        }
        if phase == "Available" && !claim.name.is_empty() {
            self.sync_claim(&claim);
        }
    }

    /// The directory behind a claim that has its volume.
    pub(super) fn directory_of_claim(&self, claim: &Key) -> Option<String> {
        let claim = self.store.get(claim)?;
        let volume = Key::new(VOLUMES, "", text(claim, "/spec/volumeName"));
        Some(directory_of(self.store.get(&volume)?))
    }
}

/// The directory that a volume leads to.
pub(super) fn directory_of(volume: &Value) -> String {
    let pointers = [
        "/spec/hostPath/path",
        "/spec/nfs/path",
        "/spec/csi/volumeAttributes/rootPath",
        "/spec/csi/volumeHandle",
    ];
    let found = pointers.iter().map(|pointer| text(volume, pointer));
    found
        .into_iter()
        .find(|path| !path.is_empty())
        .unwrap_or_default()
        .to_owned()
}
