//! The scheduler and the kubelet: what becomes of a pod, step by step.
//!
//! A pod has at most one step before it; whatever sets another one takes the old one back. The process is the one of the
//! testbed's stand-in for Odoo, which the variables `CRASH`, `EAT_MB`, `SLOW` and `UNREADY` make misbehave.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::controllers::{condition, is_finished};
use super::rules::bytes;
use super::state::{Job, State, claims_of};
use super::storage::directory_of;
use super::store::{CLAIMS, Key, Object, PODS, SECRETS, VOLUMES, is_deleting, text, uid};

/// The only node, with the labels that selectors can ask for.
const NODE: &str = "fake-node";
const NODE_LABELS: [(&str, &str); 2] = [("kubernetes.io/hostname", NODE), ("kubernetes.io/os", "linux")];
/// How long a process takes to end when it is told to.
const STOPPING: Duration = Duration::from_millis(1500);
const LONGEST_BACK_OFF: u64 = 300;
/// A process that ran this long starts again as if it were the first time.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
const SECOND: Duration = Duration::from_secs(1);

/// What happens to a pod next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Schedule,
    Mount,
    Pull,
    PullBackOff,
    Start,
    Listen,
    Answer,
    /// A probe has failed too often.
    Kill,
    BackOff,
    Gone,
}

/// What one process wrote.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) lines: Vec<(Timestamp, String)>,
    pub(super) ended: bool,
}

/// A pod's side that no object shows.
#[derive(Debug)]
pub(super) struct Pod {
    key: Key,
    turn: u64,
    pub(super) container: String,
    /// The directory that it has mounted.
    directory: Option<String>,
    restarts: u32,
    crashes: u32,
    pulls: u32,
    /// Since when its process runs.
    started: Option<Instant>,
    started_at: String,
    /// Since when it writes its heartbeat, and how many beats are written.
    beating: Option<(Instant, Timestamp)>,
    beats: u64,
    last: Option<Value>,
    /// One for each process.
    pub(super) logs: Vec<Log>,
}

impl State {
    /// A new pod waits for the scheduler.
    pub(super) fn begin_pod(&mut self, key: &Key, object: &Object) {
        let uid = uid(object).to_owned();
        let pod = Pod {
            key: key.clone(),
            turn: 0,
            container: text(object, "/spec/containers/0/name").to_owned(),
            directory: None,
            restarts: 0,
            crashes: 0,
            pulls: 0,
            started: None,
            started_at: String::new(),
            beating: None,
            beats: 0,
            last: None,
            logs: Vec::new(),
        };
        self.pods.insert(uid.clone(), pod);
        self.next_step(&uid, Step::Schedule, Duration::from_millis(20));
    }

    fn next_step(&mut self, uid: &str, step: Step, after: Duration) {
        let turn = self.next_number();
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.turn = turn;
            let uid = uid.to_owned();
            self.later(Job::Pod { uid, turn, step }, after);
        }
    }

    pub(super) fn step_pod(&mut self, uid: &str, turn: u64, step: &Step) {
        let Some(pod) = self.pods.get(uid).filter(|pod| pod.turn == turn) else {
            return;
        };
        let key = pod.key.clone();
        let Some(object) = self.store.get(&key).cloned() else {
            return;
        };
        match step {
            Step::Schedule => self.schedule(uid, &key, &object),
            Step::Mount => self.mount(uid, &key, &object),
            Step::Pull => self.pull(uid, &key, &object),
            Step::PullBackOff => {
                let image = text(&object, "/spec/containers/0/image");
                self.waits(uid, "ImagePullBackOff", &format!("Back-off pulling image {image:?}"));
                let pulls = self.pods.get(uid).map_or(0, |pod| pod.pulls);
                self.next_step(uid, Step::Pull, back_off(pulls));
            }
            Step::Start => self.start(uid, &object),
            Step::Listen => self.listen(uid, &object),
            Step::Answer => self.answers(uid),
            Step::Kill => {
                self.log(uid, "odoo-stub: stopping".to_owned());
                // A shell that is told to end says so; what it was replaced by is ended by the signal.
                let listens = variable(&object, "EAT_MB").is_none();
                let (code, reason) = if listens { (0, "Completed") } else { (143, "Error") };
                self.exits(uid, code, reason);
            }
            Step::BackOff => {
                let Some(pod) = self.pods.get(uid) else { return };
                let pause = back_off(pod.crashes.saturating_sub(1));
                let message = format!(
                    "back-off {}s restarting failed container={} pod={}_{}({uid})",
                    pause.as_secs(),
                    pod.container,
                    key.name,
                    key.namespace
                );
                self.waits(uid, "CrashLoopBackOff", &message);
                self.next_step(uid, Step::Start, pause);
            }
            Step::Gone => {
                self.end_process(uid);
                self.erase(&key);
            }
        }
    }

    fn schedule(&mut self, uid: &str, key: &Key, object: &Value) {
        if let Err(why) = self.placed(key, object) {
            let now = self.stamp();
            self.amend(key, |pod| {
                let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
                condition(
                    &mut conditions,
                    "PodScheduled",
                    ("False", "Unschedulable", why),
                    &now,
                    false,
                );
                pod["status"]["conditions"] = json!(conditions);
            });
            return self.next_step(uid, Step::Schedule, SECOND);
        }
        let now = self.stamp();
        self.amend(key, |pod| {
            pod["spec"]["nodeName"] = json!(NODE);
            pod["status"]["startTime"] = json!(now);
            pod["status"]["hostIP"] = json!("192.0.2.1");
        });
        self.waits(uid, "ContainerCreating", "");
        self.next_step(uid, Step::Mount, Duration::from_millis(50));
    }

    /// Whether a node takes the pod, or what the scheduler says.
    fn placed(&mut self, key: &Key, object: &Value) -> Result<(), String> {
        let names: Vec<String> = claims_of(object).map(str::to_owned).collect();
        for name in names {
            let claim_key = Key::new(CLAIMS, &key.namespace, &name);
            let Some(claim) = self.store.get(&claim_key).cloned() else {
                return Err(format!("persistentvolumeclaim {name:?} not found"));
            };
            if is_deleting(&claim) {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if claim["status"]["phase"] != "Bound" {
                if !self.is_early(&claim_key, &claim) {
                    self.bind(&claim_key, &claim, true);
                }
                return Err("0/1 nodes are available: 1 pod has unbound immediate PersistentVolumeClaims.".to_owned());
            }
        }
        let wanted = object["spec"]["nodeSelector"].as_object();
        let fits = |(key, value): (&String, &Value)| NODE_LABELS.iter().any(|(k, v)| key == k && value == v);
        if !wanted.into_iter().flatten().all(fits) {
            return Err("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.".to_owned());
        }
        Ok(())
    }

    fn mount(&mut self, uid: &str, key: &Key, object: &Value) {
        let volumes = object["spec"]["volumes"].as_array();
        let secrets = volumes
            .into_iter()
            .flatten()
            .map(|volume| text(volume, "/secret/secretName"));
        let secrets_there = secrets
            .filter(|name| !name.is_empty())
            .all(|name| self.store.get(&Key::new(SECRETS, &key.namespace, name)).is_some());
        let mut directory = None;
        let mut mounted = secrets_there;
        for name in claims_of(object) {
            let found = self.directory_of_claim(&Key::new(CLAIMS, &key.namespace, name));
            mounted &= found.as_ref().is_some_and(|path| self.directories.contains_key(path));
            directory = directory.or(found);
        }
        if !mounted {
            // Only events tell why; the object says that the container is being created.
            return self.next_step(uid, Step::Mount, SECOND);
        }
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.directory = directory;
        }
        self.next_step(uid, Step::Pull, Duration::from_millis(100));
    }

    fn pull(&mut self, uid: &str, key: &Key, object: &Value) {
        let image = text(object, "/spec/containers/0/image");
        if is_missing(image) {
            let message = format!("rpc error: code = Unknown desc = failed to pull image {image:?}: not found");
            self.waits(uid, "ErrImagePull", &message);
            if let Some(pod) = self.pods.get_mut(uid) {
                pod.pulls += 1;
            }
            return self.next_step(uid, Step::PullBackOff, 2 * SECOND);
        }
        let env = object["spec"]["containers"][0]["env"].as_array();
        let wanted = env.into_iter().flatten().filter_map(|variable| {
            let from = variable.pointer("/valueFrom/secretKeyRef")?;
            Some((text(from, "/name").to_owned(), text(from, "/key").to_owned()))
        });
        let missing = wanted.into_iter().find(|(name, entry)| {
            let secret = self.store.get(&Key::new(SECRETS, &key.namespace, name));
            secret.is_none_or(|secret| secret["data"].get(entry).is_none())
        });
        if let Some((name, _)) = missing {
            self.waits(
                uid,
                "CreateContainerConfigError",
                &format!("secret {name:?} or its key not found"),
            );
            return self.next_step(uid, Step::Pull, SECOND);
        }
        self.start(uid, object);
    }

    fn start(&mut self, uid: &str, object: &Value) {
        let now = self.stamp();
        let address = match text(object, "/status/podIP") {
            "" => self.next_address("10.244"),
            address => address.to_owned(),
        };
        let busy = self
            .pods
            .get(uid)
            .and_then(|pod| pod.directory.clone())
            .filter(|directory| {
                let mut others = self.pods.iter().filter(|(other, _)| *other != uid);
                others.any(|(_, pod)| pod.started.is_some() && pod.directory.as_ref() == Some(directory))
            });
        if let Some(directory) = busy {
            self.violations.push(format!("two processes on {directory}"));
        }
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if !pod.logs.is_empty() {
            pod.restarts += 1;
        }
        pod.started = Some(Instant::now());
        pod.started_at.clone_from(&now);
        pod.logs.push(Log::default());
        let name = pod.key.name.clone();
        let running = json!({"running": {"startedAt": now}});
        self.log(uid, format!("odoo-stub: starting on {name}"));
        if let Some(code) = variable(object, "CRASH") {
            // A shell that is told to exit with something that is no number exits with 2.
            let code = code.parse::<u8>().map_or(2, i32::from);
            self.log(uid, format!("odoo-stub: crashing with {code}"));
            return self.exits(uid, code, if code == 0 { "Completed" } else { "Error" });
        }
        let limit = bytes(text(object, "/spec/containers/0/resources/limits/memory"));
        let eaten = variable(object, "EAT_MB").and_then(|text| text.parse::<u64>().ok());
        if let (Some(eaten), Some(limit)) = (eaten, limit)
            && eaten << 20 > limit
        {
            return self.exits(uid, 137, "OOMKilled");
        }
        self.show(uid, running, Some(address), false, false);
        let budget = budget(object);
        let slow = variable(object, "SLOW").and_then(|text| text.parse().ok()).unwrap_or(0);
        let listens = self.boot + Duration::from_secs(slow);
        match budget {
            Some(budget) if eaten.is_some() || budget < listens => self.next_step(uid, Step::Kill, budget),
            None if eaten.is_some() => {}
            _ => self.next_step(uid, Step::Listen, listens),
        }
    }

    fn listen(&mut self, uid: &str, object: &Value) {
        self.log(uid, "odoo-stub: listening on 8069".to_owned());
        let at = self.time();
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.beating = Some((Instant::now(), at));
        let running = pod.started.map_or(Duration::ZERO, |started| started.elapsed());
        if variable(object, "UNREADY").is_some() {
            if let Some(budget) = budget(object) {
                self.next_step(uid, Step::Kill, budget.saturating_sub(running));
            }
            return;
        }
        // Probes ask at their periods, counted from the start.
        let probe = &object["spec"]["containers"][0]["readinessProbe"];
        let probe = if probe.is_object() {
            probe
        } else {
            &object["spec"]["containers"][0]["startupProbe"]
        };
        let after = if probe.is_object() {
            let delay = Duration::from_secs(probe["initialDelaySeconds"].as_u64().unwrap_or(0));
            let period = Duration::from_secs(probe["periodSeconds"].as_u64().unwrap_or(10).max(1));
            let mut asked = delay;
            while asked < running {
                asked += period;
            }
            asked.saturating_sub(running)
        } else {
            Duration::ZERO
        };
        self.next_step(uid, Step::Answer, after);
    }

    fn answers(&mut self, uid: &str) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        // Nothing else is going to happen to it by itself.
        let running = json!({"running": {"startedAt": pod.started_at}});
        self.show(uid, running, None, true, true);
    }

    /// The process ends, and is started again after a pause.
    fn exits(&mut self, uid: &str, code: i32, reason: &str) {
        let ran = self.end_process(uid);
        let finished = self.stamp();
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.crashes = if ran >= FORGIVEN_AFTER { 1 } else { pod.crashes + 1 };
        let ended = json!({"terminated": {
            "exitCode": code, "reason": reason, "startedAt": pod.started_at, "finishedAt": finished,
            "containerID": format!("fake://{uid}-{}", pod.restarts),
        }});
        let first = pod.crashes == 1;
        self.show(uid, ended.clone(), None, false, false);
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.last = Some(ended);
        }
        // The first time it is started again at once.
        if first {
            self.next_step(uid, Step::Start, SECOND);
        } else {
            self.next_step(uid, Step::BackOff, SECOND / 2);
        }
    }

    /// Ends the process, if there is one; how long it ran.
    fn end_process(&mut self, uid: &str) -> Duration {
        self.beat(uid);
        self.touched += 1;
        let Some(pod) = self.pods.get_mut(uid) else {
            return Duration::ZERO;
        };
        pod.beating = None;
        pod.beats = 0;
        if let Some(log) = pod.logs.last_mut() {
            log.ended = true;
        }
        pod.started.take().map_or(Duration::ZERO, |started| started.elapsed())
    }

    fn log(&mut self, uid: &str, line: String) {
        let at = self.time();
        self.touched += 1;
        if let Some(log) = self.pods.get_mut(uid).and_then(|pod| pod.logs.last_mut()) {
            log.lines.push((at, line));
        }
    }

    /// Writes the heartbeats of the time that has passed.
    fn beat(&mut self, uid: &str) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let (Some((since, at)), Some(directory)) = (pod.beating, &pod.directory) else {
            return;
        };
        let Some(files) = self.directories.get_mut(directory) else {
            return;
        };
        let due = since.elapsed().as_secs() + 1;
        let file = files.entry("heartbeat.log".to_owned()).or_default();
        let first = u64::try_from(at.as_second()).unwrap_or(0);
        for beat in pod.beats..due {
            file.push_str(&format!("{} {}\n", first + beat, pod.key.name));
        }
        pod.beats = due;
    }

    /// Writes the heartbeats of all processes on a directory.
    pub(super) fn beat_on(&mut self, directory: &str) {
        let pods = self.pods.iter();
        let there = pods.filter(|(_, pod)| pod.directory.as_deref() == Some(directory));
        let there: Vec<String> = there.map(|(uid, _)| uid.clone()).collect();
        for uid in there {
            self.beat(&uid);
        }
    }

    /// Whether a process has the directory open.
    pub(super) fn is_in_use(&self, directory: &str) -> bool {
        let mut pods = self.pods.values();
        pods.any(|pod| pod.started.is_some() && pod.directory.as_deref() == Some(directory))
    }

    /// Deletes a pod: its process is told to end, and it is gone when that has ended.
    pub(super) fn delete_pod(&mut self, key: &Key, object: &Value, grace: Option<u64>) -> Option<Object> {
        let uid = uid(object).to_owned();
        let grace = grace.or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_u64());
        let grace = grace.unwrap_or(30);
        let placed = !text(object, "/spec/nodeName").is_empty();
        if !placed || grace == 0 || is_finished(object) {
            self.end_process(&uid);
            self.erase(key);
            return None;
        }
        if !is_deleting(object) {
            let until = self.stamp_in(grace);
            self.amend(key, |pod| {
                pod["metadata"]["deletionTimestamp"] = json!(until);
                pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            });
            let runs = self.pods.get(&uid).is_some_and(|pod| pod.started.is_some());
            let after = if runs {
                self.log(&uid, "odoo-stub: stopping".to_owned());
                STOPPING.min(Duration::from_secs(grace))
            } else {
                Duration::from_millis(50)
            };
            self.next_step(&uid, Step::Gone, after);
        }
        self.store.get(key).cloned()
    }

    pub(super) fn forget_pod(&mut self, object: &Value) {
        self.pods.remove(uid(object));
    }

    /// Shows that the container waits, and why.
    fn waits(&mut self, uid: &str, reason: &str, message: &str) {
        let mut waiting = json!({"reason": reason});
        if !message.is_empty() {
            waiting["message"] = json!(message);
        }
        self.show(uid, json!({"waiting": waiting}), None, false, false);
    }

    /// Writes the pod's status.
    fn show(&mut self, uid: &str, state: Value, address: Option<String>, started: bool, ready: bool) {
        let Some(pod) = self.pods.get(uid) else { return };
        let (key, restarts, begun) = (pod.key.clone(), pod.restarts, !pod.logs.is_empty());
        let last = pod.last.clone().unwrap_or_else(|| json!({}));
        let now = self.stamp();
        self.amend(&key, |object| {
            let containers = object["spec"]["containers"].as_array().cloned().unwrap_or_default();
            let statuses: Vec<Value> = containers
                .iter()
                .map(|container| {
                    json!({
                        "name": container["name"], "image": container["image"], "imageID": "",
                        "ready": ready, "started": started, "restartCount": restarts,
                        "state": state, "lastState": last,
                    })
                })
                .collect();
            let status = &mut object["status"];
            let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let readiness = if ready {
                ("True", "", String::new())
            } else {
                let why = format!("containers with unready status: [{}]", text(&containers[0], "/name"));
                ("False", "ContainersNotReady", why)
            };
            condition(&mut conditions, "Initialized", ("True", "", String::new()), &now, false);
            condition(&mut conditions, "Ready", readiness.clone(), &now, false);
            condition(&mut conditions, "ContainersReady", readiness, &now, false);
            condition(
                &mut conditions,
                "PodScheduled",
                ("True", "", String::new()),
                &now,
                false,
            );
            status["conditions"] = json!(conditions);
            status["containerStatuses"] = json!(statuses);
            status["phase"] = json!(if begun { "Running" } else { "Pending" });
            if let Some(address) = address {
                status["podIPs"] = json!([{"ip": address}]);
                status["podIP"] = json!(address);
            }
        });
    }
}

/// The files of a claim's or a volume's directory are found through the volume.
pub(super) fn directory_of_volume(state: &State, name: &str) -> Option<String> {
    let volume = state.store.get(&Key::new(VOLUMES, "", name))?;
    Some(directory_of(volume))
}

/// The object of a pod by its name.
pub(super) fn pod_named(state: &State, namespace: &str, name: &str) -> Option<Object> {
    state.store.get(&Key::new(PODS, namespace, name)).cloned()
}

fn back_off(times: u32) -> Duration {
    let factor = 1u64.checked_shl(times.saturating_sub(1).min(16)).unwrap_or(u64::MAX);
    Duration::from_secs((10 * factor).min(LONGEST_BACK_OFF))
}

/// There is no registry at port 1, and no image of this tag anywhere.
fn is_missing(image: &str) -> bool {
    image.starts_with("localhost:1/") || image.ends_with(":missing")
}

/// A variable of the first container that is set to something.
fn variable(pod: &Value, name: &str) -> Option<String> {
    let env = pod["spec"]["containers"][0]["env"].as_array()?;
    let found = env.iter().find(|variable| variable["name"] == name)?;
    let value = text(found, "/value");
    (!value.is_empty()).then(|| value.to_owned())
}

/// How long a process may take until it answers: after that the startup probe, or else the liveness probe, ends it.
fn budget(pod: &Value) -> Option<Duration> {
    let container = &pod["spec"]["containers"][0];
    let probe = ["startupProbe", "livenessProbe"].map(|name| &container[name]);
    let probe = probe.into_iter().find(|probe| probe.is_object())?;
    let number = |field: &str, default: u64| probe[field].as_u64().unwrap_or(default);
    let seconds = number("initialDelaySeconds", 0) + number("periodSeconds", 10) * number("failureThreshold", 3);
    Some(Duration::from_secs(seconds))
}
