//! Everything that the manager keeps, and the steps that are due.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Settings;
use super::task::{Desired, State, Task};

/// Events kept for whoever asks with `since`.
const EVENTS: usize = 256;
const LINES: usize = 50_000;

/// What is to happen at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A task goes to its next state.
    Advance,
    /// Its process listens.
    Listen,
    /// Its healthcheck has succeeded.
    Healthy,
    /// Its healthcheck has failed too often.
    GiveUp,
    /// It has not ended when it was given up.
    Kill,
    /// Its process ends by itself.
    Exit(i32),
    /// It has been stopped.
    Stopped,
    /// A delay before its start is over.
    Release,
    /// Its node has been away for too long.
    Orphan,
    /// A service gets its networks.
    Allocate,
    /// A service's new tasks have run for long enough.
    Settled,
}

#[derive(Debug, Clone)]
pub(super) struct Update {
    pub(super) state: &'static str,
    pub(super) message: String,
    pub(super) started: Duration,
    pub(super) completed: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Service {
    pub(super) id: String,
    pub(super) version: u64,
    pub(super) created: Duration,
    pub(super) updated: Duration,
    pub(super) spec: Value,
    pub(super) previous: Option<Value>,
    pub(super) update: Option<Update>,
    /// The end of its update is on the agenda.
    pub(super) settling: bool,
}

impl Service {
    pub(super) fn name(&self) -> &str {
        self.spec.get("Name").and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.spec.get("Labels")?.get(key)?.as_str()
    }

    /// How many tasks there shall be. Docker's default is one.
    pub(super) fn replicas(&self) -> u64 {
        replicas(&self.spec)
    }

    /// What its tasks are made from.
    pub(super) fn template(&self) -> Value {
        let mut template = self.spec.get("TaskTemplate").cloned().unwrap_or_else(|| json!({}));
        if let Some(fields) = template.as_object_mut() {
            fields.remove("Runtime");
        }
        template
    }
}

pub(super) fn replicas(spec: &Value) -> u64 {
    match spec.pointer("/Mode/Replicated") {
        Some(replicated) => replicated.get("Replicas").and_then(Value::as_u64).unwrap_or(1),
        None if spec
            .get("Mode")
            .and_then(Value::as_object)
            .is_none_or(serde_json::Map::is_empty) =>
        {
            1
        }
        None => 0,
    }
}

/// A secret or a network.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) id: String,
    pub(super) version: u64,
    pub(super) created: Duration,
    pub(super) spec: Value,
}

impl Object {
    pub(super) fn name(&self) -> &str {
        self.spec.get("Name").and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.spec.get("Labels")?.get(key)?.as_str()
    }
}

#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) number: u64,
    pub(super) at: Timestamp,
    pub(super) action: &'static str,
    pub(super) service: String,
    pub(super) attributes: BTreeMap<String, String>,
}

/// A line that a process wrote.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) at: Timestamp,
    pub(super) task: String,
    pub(super) service: String,
    pub(super) node: String,
    pub(super) error: bool,
    pub(super) text: String,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) settings: Settings,
    pub(super) manager: bool,
    pub(super) node: Object,
    pub(super) node_up: bool,
    pub(super) services: BTreeMap<String, Service>,
    pub(super) tasks: BTreeMap<String, Task>,
    pub(super) secrets: BTreeMap<String, Object>,
    pub(super) networks: BTreeMap<String, Object>,
    pub(super) events: VecDeque<Event>,
    pub(super) lines: VecDeque<Line>,
    pub(super) violations: Vec<String>,
    pub(super) now: Duration,
    base: Timestamp,
    agenda: BTreeMap<(Duration, u64), (String, Step)>,
    index: u64,
    ids: u64,
    numbers: u64,
    changed: bool,
}

/// The time of day at a moment.
pub(super) fn stamp(base: Timestamp, at: Duration) -> Timestamp {
    base.checked_add(at).unwrap_or(Timestamp::MAX)
}

impl World {
    pub(super) fn new(settings: Settings, base: Timestamp) -> Self {
        let mut world = Self {
            manager: true,
            node: Object {
                id: String::new(),
                version: 9,
                created: Duration::ZERO,
                spec: json!({"Role": "manager", "Availability": "active", "Labels": settings.labels}),
            },
            node_up: true,
            services: BTreeMap::new(),
            tasks: BTreeMap::new(),
            secrets: BTreeMap::new(),
            networks: BTreeMap::new(),
            events: VecDeque::new(),
            lines: VecDeque::new(),
            violations: Vec::new(),
            now: Duration::ZERO,
            base,
            agenda: BTreeMap::new(),
            index: 10,
            ids: 0,
            numbers: 0,
            changed: false,
            settings,
        };
        world.node.id = world.new_id();
        for name in world.settings.networks.clone() {
            world.add_network(json!({"Name": name, "Driver": "overlay", "Labels": {}}));
        }
        world
    }

    pub(super) fn add_network(&mut self, spec: Value) -> String {
        let network = Object {
            id: self.new_id(),
            version: self.next_index(),
            created: self.now,
            spec,
        };
        let id = network.id.clone();
        self.networks.insert(id.clone(), network);
        id
    }

    /// An id of 25 letters and digits, as Swarm makes them: unlike the one before it, and the same in every run.
    pub(super) fn new_id(&mut self) -> String {
        self.random(25, b"0123456789abcdefghijklmnopqrstuvwxyz")
    }

    pub(super) fn new_container(&mut self) -> String {
        self.random(64, b"0123456789abcdef")
    }

    fn random(&mut self, length: usize, alphabet: &[u8]) -> String {
        let size = u64::try_from(alphabet.len()).unwrap_or(1);
        let mut text = String::new();
        while text.len() < length {
            self.ids = self.ids.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.ids;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            let digit = usize::try_from(mixed % size).unwrap_or(0);
            text.push(char::from(alphabet[digit]));
        }
        text
    }

    /// The next of the versions that all objects of the swarm share.
    pub(super) fn next_index(&mut self) -> u64 {
        self.index += 1;
        self.changed = true;
        self.index
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.changed = true;
        self.numbers
    }

    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn stamp(&self, at: Duration) -> Timestamp {
        stamp(self.base, at)
    }

    /// A moment as the API writes it.
    pub(super) fn time(&self, at: Duration) -> String {
        self.stamp(at).to_string()
    }

    /// Puts a step on the agenda, of a task or a service.
    pub(super) fn at(&mut self, wait: Duration, whose: &str, step: Step) {
        self.ids = self.ids.wrapping_add(1);
        let order = self.next_number();
        let at = self.now.saturating_add(wait);
        self.agenda.insert((at, order), (whose.to_owned(), step));
    }

    /// When the next step is.
    pub(super) fn due(&self) -> Option<Duration> {
        self.agenda.keys().next().map(|(at, _)| *at)
    }

    /// Lets everything happen that is due by now, each step at its own moment.
    pub(super) fn advance(&mut self, now: Duration) {
        while let Some(entry) = self.agenda.first_entry() {
            let (at, _) = *entry.key();
            if at > now {
                break;
            }
            let (whose, step) = entry.remove();
            self.beat(at);
            self.now = self.now.max(at);
            self.fire(&whose, &step);
        }
        self.beat(now);
        self.now = self.now.max(now);
    }

    /// The heartbeats that are due until then.
    fn beat(&mut self, until: Duration) {
        let base = self.base;
        for task in self.tasks.values_mut() {
            let host = task.host().to_owned();
            let Some(process) = task.process.as_mut().filter(|process| process.beating) else {
                continue;
            };
            let Some(data) = &process.data else { continue };
            let mut text = String::new();
            while process.next_beat <= until {
                text.push_str(&format!("{} {host}\n", stamp(base, process.next_beat).as_second()));
                process.next_beat += Duration::from_secs(1);
            }
            if !text.is_empty()
                && let Err(error) = append(&data.join("heartbeat.log"), &text)
            {
                process.beating = false;
                self.violations
                    .push(format!("{} writes into {}: {error}", task.name, data.display()));
            }
        }
    }

    pub(super) fn write(&mut self, task: &str, error: bool, text: impl Into<String>) {
        let number = self.next_number();
        let at = self.stamp(self.now);
        let Some(task) = self.tasks.get(task) else { return };
        if self.lines.len() >= LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(Line {
            number,
            at,
            task: task.id.clone(),
            service: task.service.clone(),
            node: task.node.clone().unwrap_or_default(),
            error,
            text: text.into(),
        });
    }

    pub(super) fn tell(&mut self, action: &'static str, service: &str, attributes: &[(&str, String)]) {
        let number = self.next_number();
        if self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event {
            number,
            at: self.stamp(self.now),
            action,
            service: service.to_owned(),
            attributes: attributes
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        });
    }

    /// The newest number of an event or a line.
    pub(super) fn newest(&self) -> u64 {
        self.numbers
    }

    pub(super) fn processes(&self) -> Vec<String> {
        let running = self.tasks.values().filter(|task| task.process.is_some());
        running.map(|task| task.name.clone()).collect()
    }

    pub(super) fn exit(&mut self, service: &str, code: i32) -> bool {
        let found = self
            .tasks
            .values()
            .find(|task| task.process.is_some() && task.desired == Desired::Running && task.name == service);
        match found.map(|task| task.id.clone()) {
            Some(id) => {
                self.fire(&id, &Step::Exit(code));
                true
            }
            None => false,
        }
    }

    pub(super) fn set_node(&mut self, up: bool) {
        if self.node_up == up {
            return;
        }
        self.node_up = up;
        self.node.version = self.next_index();
        let ids: Vec<String> = self.tasks.keys().cloned().collect();
        for id in ids {
            let Some(task) = self.tasks.get(&id) else { continue };
            let (state, desired, assigned) = (task.state, task.desired, task.node.is_some());
            if up {
                if state == State::Pending && desired.wanted() {
                    self.fire(&id, &Step::Advance);
                } else if !desired.wanted() && assigned {
                    self.stop(&id);
                }
            } else if assigned && !state.ended() {
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.stopping = false;
                }
                // The manager gives up on what runs there; the process does not know.
                if desired.wanted() {
                    self.desire(&id, Desired::Shutdown);
                }
                self.at(Duration::from_secs(24 * 3600), &id, Step::Orphan);
            }
        }
        let services: Vec<String> = self.services.keys().cloned().collect();
        for service in services {
            self.reconcile(&service);
        }
    }
}

/// Into a file of a directory that is there.
fn append(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(text.as_bytes())
}
