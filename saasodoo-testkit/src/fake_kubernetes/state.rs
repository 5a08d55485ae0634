//! The whole cluster: what is stored, what is due, and what goes on in the containers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::pods::{Pod, Step};
use super::store::{
    CLAIMS, CLASSES, DEPLOYMENTS, Key, NAMESPACES, Object, PODS, Store, VOLUMES, is_deleting, owners, text,
};

/// How soon a controller notices a change: sooner than a caller of the server can ask for the next.
pub(super) const NOTICED: Duration = Duration::from_millis(3);

/// What is done to a request on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection breaks before the request arrives.
    Before,
    /// The request has its effect, and the answer is lost.
    After,
}

/// A fault that waits for its request.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) id: u64,
    pub(super) left: u32,
    pub(super) fault: Fault,
    pub(super) hit: Arc<AtomicBool>,
}

/// Work of a controller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Job {
    Deployment(Key),
    Claim(Key),
    Volume(Key),
    /// Owner references.
    Collect,
    /// The next step of a pod, unless it has been overtaken by another.
    Pod {
        uid: String,
        turn: u64,
        step: Step,
    },
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) store: Store,
    /// The time of day at `zero`.
    base: Timestamp,
    zero: Instant,
    jobs: BTreeMap<(Instant, u64), Job>,
    /// Jobs of controllers that wait already.
    waiting: BTreeSet<Job>,
    counter: u64,
    addresses: u32,
    pub(super) pods: BTreeMap<String, Pod>,
    /// Directories, by their path, with the files in them.
    pub(super) directories: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) violations: Vec<String>,
    pub(super) absent: Vec<String>,
    pub(super) denied: BTreeSet<(String, String)>,
    /// Why no pod is admitted.
    pub(super) no_pods: Option<String>,
    pub(super) down: bool,
    /// Watches are refused, and nothing else.
    pub(super) blind: bool,
    /// Raised to cut all streams.
    pub(super) epoch: u64,
    pub(super) requests: u64,
    pub(super) fault: Option<Planned>,
    /// The template of each Deployment's present rollout, by the Deployment's UID.
    pub(super) rollouts: BTreeMap<String, String>,
    /// Raised with everything that a stream may wait for.
    pub(super) touched: u64,
    /// How long a process takes from its start until it listens.
    pub(super) boot: Duration,
    /// How long a new claim waits for its volume.
    pub(super) binding: Duration,
    /// By how long the collector of garbage is late.
    pub(super) late: Duration,
    /// Until when it does not see what has lost its owner.
    pub(super) unseen_until: Option<Instant>,
    /// From when on a claim may be bound, by its UID.
    pub(super) bound_from: BTreeMap<String, Instant>,
}

impl State {
    pub(super) fn new(namespaces: &[String], class: &str) -> Self {
        let now = Timestamp::now();
        let mut state = Self {
            store: Store::new(),
            // Whole seconds, for the rules of a status count seconds.
            base: Timestamp::from_second(now.as_second()).unwrap_or(now),
            zero: Instant::now(),
            jobs: BTreeMap::new(),
            waiting: BTreeSet::new(),
            counter: 0,
            addresses: 0,
            pods: BTreeMap::new(),
            directories: BTreeMap::new(),
            violations: Vec::new(),
            absent: Vec::new(),
            denied: BTreeSet::new(),
            no_pods: None,
            down: false,
            blind: false,
            epoch: 0,
            requests: 0,
            fault: None,
            rollouts: BTreeMap::new(),
            touched: 0,
            boot: Duration::from_millis(200),
            binding: Duration::ZERO,
            late: Duration::ZERO,
            unseen_until: None,
            bound_from: BTreeMap::new(),
        };
        for name in namespaces {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "status": {"phase": "Active"}});
            state.seed(&Key::new(NAMESPACES, "", name), object);
        }
        let object = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "fake.saasodoo.io/directory",
            "reclaimPolicy": "Retain", "volumeBindingMode": "Immediate", "allowVolumeExpansion": true,
        });
        state.seed(&Key::new(CLASSES, "", class), object);
        state
    }

    fn seed(&mut self, key: &Key, mut object: Value) {
        object["metadata"] = self.metadata_of(key);
        self.write(key, object);
    }

    /// The metadata of a new object.
    pub(super) fn metadata_of(&self, key: &Key) -> Value {
        let mut metadata = json!({
            "name": key.name, "uid": Uuid::new_v4().to_string(), "creationTimestamp": self.stamp(),
        });
        if !key.namespace.is_empty() {
            metadata["namespace"] = json!(key.namespace);
        }
        metadata
    }

    pub(super) fn time(&self) -> Timestamp {
        let elapsed = Instant::now().saturating_duration_since(self.zero);
        self.base.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    /// The time of day as objects show it.
    pub(super) fn stamp(&self) -> String {
        self.stamp_in(0)
    }

    /// The time of day in so many seconds.
    pub(super) fn stamp_in(&self, seconds: u64) -> String {
        let later = self
            .time()
            .checked_add(Duration::from_secs(seconds))
            .unwrap_or(Timestamp::MAX);
        let whole = Timestamp::from_second(later.as_second()).unwrap_or(later);
        whole.to_string()
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(super) fn next_address(&mut self, network: &str) -> String {
        self.addresses += 1;
        format!("{network}.{}.{}", self.addresses / 250 % 250, self.addresses % 250 + 1)
    }

    // Writing.

    /// Writes an object, and lets the controllers know.
    pub(super) fn write(&mut self, key: &Key, object: Value) -> Object {
        let before = self.store.version();
        let object = self.store.put(key, object);
        if self.store.version() != before {
            self.touched += 1;
            self.noticed(key, &object);
        }
        object
    }

    /// Changes an object that may be there.
    pub(super) fn amend(&mut self, key: &Key, change: impl FnOnce(&mut Value)) {
        if let Some(object) = self.store.get(key) {
            let mut object = (**object).clone();
            change(&mut object);
            self.write(key, object);
        }
    }

    /// Removes an object for good, and lets the controllers know.
    pub(super) fn erase(&mut self, key: &Key) -> Option<Object> {
        let object = self.store.remove(key)?;
        self.touched += 1;
        self.noticed(key, &object);
        self.later(Job::Collect, NOTICED);
        if key.resource == PODS {
            self.forget_pod(&object);
        }
        Some(object)
    }

    fn noticed(&mut self, key: &Key, object: &Value) {
        match key.resource {
            DEPLOYMENTS => self.later(Job::Deployment(key.clone()), NOTICED),
            PODS => {
                let owners: Vec<String> = owners(object).map(|(uid, _)| uid.to_owned()).collect();
                let deployments = self.store.all(DEPLOYMENTS, &key.namespace);
                let own = deployments.filter(|(_, d)| owners.iter().any(|owner| owner == text(d, "/metadata/uid")));
                let own: Vec<Key> = own.map(|(key, _)| key.clone()).collect();
                for deployment in own {
                    self.later(Job::Deployment(deployment), NOTICED);
                }
                for claim in claims_of(object) {
                    self.later(Job::Claim(Key::new(CLAIMS, &key.namespace, claim)), NOTICED);
                }
            }
            CLAIMS => {
                self.later(Job::Claim(key.clone()), NOTICED);
                let volume = text(object, "/spec/volumeName");
                if !volume.is_empty() {
                    self.later(Job::Volume(Key::new(VOLUMES, "", volume)), NOTICED);
                }
            }
            VOLUMES => {
                self.later(Job::Volume(key.clone()), NOTICED);
                let (namespace, name) = (
                    text(object, "/spec/claimRef/namespace"),
                    text(object, "/spec/claimRef/name"),
                );
                if !name.is_empty() {
                    self.later(Job::Claim(Key::new(CLAIMS, namespace, name)), NOTICED);
                }
            }
            _ => {}
        }
        if is_deleting(object) {
            self.later(Job::Collect, NOTICED);
        }
    }

    // What is due.

    /// Has something done after a while. A controller that waits already is not asked twice.
    pub(super) fn later(&mut self, job: Job, after: Duration) {
        let once = !matches!(job, Job::Pod { .. }) && after == NOTICED;
        if once && !self.waiting.insert(job.clone()) {
            return;
        }
        let number = self.next_number();
        self.jobs.insert((Instant::now() + after, number), job);
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.jobs.first_key_value().map(|((due, _), _)| *due)
    }

    /// Does what is due.
    pub(super) fn run(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.jobs.first_entry().filter(|entry| entry.key().0 <= now) {
            let job = entry.remove();
            self.waiting.remove(&job);
            match job {
                Job::Deployment(key) => self.sync_deployment(&key),
                Job::Claim(key) => self.sync_claim(&key),
                Job::Volume(key) => self.sync_volume(&key),
                Job::Collect => self.collect(),
                Job::Pod { uid, turn, step } => self.step_pod(&uid, turn, &step),
            }
        }
    }
}

/// The claims that a pod mounts.
pub(super) fn claims_of(pod: &Value) -> impl Iterator<Item = &str> {
    let volumes = pod["spec"]["volumes"].as_array();
    volumes
        .into_iter()
        .flatten()
        .map(|volume| text(volume, "/persistentVolumeClaim/claimName"))
        .filter(|name| !name.is_empty())
}
