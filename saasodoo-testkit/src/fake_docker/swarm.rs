//! The orchestrator: which tasks there shall be of a service, and what becomes of its updates.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::task::{Desired, State, Task};
use super::world::{Step, Update, World};

/// Tasks kept for each slot, the present one included.
const HISTORY: usize = 5;

impl World {
    /// Does a step. One that the task has left behind is none any more.
    pub(super) fn fire(&mut self, whose: &str, step: &Step) {
        match step {
            Step::Allocate => {
                let index = self.next_index();
                if let Some(service) = self.services.get_mut(whose) {
                    service.version = index;
                    let name = service.name().to_owned();
                    self.tell("update", whose, &[("name", name)]);
                }
                self.reconcile(whose);
            }
            Step::Settled => self.settled(whose),
            _ => {
                let Some(task) = self.tasks.get(whose) else { return };
                let (service, state) = (task.service.clone(), task.state);
                let runs = task.process.is_some();
                match step {
                    Step::Advance => self.forward(whose),
                    Step::Listen if runs => {
                        self.write(whose, false, "odoo-stub: listening on 8069");
                        if let Some(process) = self.tasks.get_mut(whose).and_then(|task| task.process.as_mut()) {
                            process.beating = true;
                            process.next_beat = self.now;
                        }
                    }
                    Step::Healthy if runs && state == State::Starting => self.enter(whose, State::Running),
                    // It is stopped like any other, and one that ends well at that is taken for one that has finished.
                    Step::GiveUp if runs && self.stops(whose) => {
                        self.write(whose, false, "odoo-stub: stopping");
                        self.at(self.settings.stop, whose, Step::Exit(0));
                    }
                    Step::GiveUp if runs => {
                        let grace = self.tasks.get(whose).map(Task::grace);
                        self.at(grace.unwrap_or_default(), whose, Step::Kill);
                    }
                    Step::Kill if runs => {
                        let text = "task: non-zero exit (137): dockerexec: unhealthy container";
                        self.end(whose, State::Failed, 137, text);
                    }
                    Step::Exit(0) if runs => self.end(whose, State::Complete, 0, ""),
                    Step::Exit(code) if runs => {
                        self.end(whose, State::Failed, *code, &format!("task: non-zero exit ({code})"));
                    }
                    // A node that has gone away meanwhile is told again.
                    Step::Stopped if !state.ended() && self.node_up => {
                        if runs && self.stops(whose) {
                            self.write(whose, false, "odoo-stub: stopping");
                        }
                        let code = if runs && !self.stops(whose) { 137 } else { 0 };
                        self.end(whose, State::Shutdown, code, "");
                    }
                    Step::Orphan if !state.ended() && !self.node_up => self.enter(whose, State::Orphaned),
                    _ => {}
                }
                self.reconcile(&service);
            }
        }
    }

    /// Brings the tasks of a service to what it asks for.
    pub(super) fn reconcile(&mut self, id: &str) {
        let Some(service) = self.services.get(id) else {
            for task in self.of(id) {
                self.desire(&task, Desired::Remove);
            }
            return;
        };
        let (replicas, template) = (service.replicas(), service.template());
        let halted = service
            .update
            .as_ref()
            .is_some_and(|update| update.state.ends_with("paused"));
        let mut clean = true;
        for task in self.of(id) {
            let beyond = self
                .tasks
                .get(&task)
                .is_some_and(|task| task.slot > replicas && task.desired.wanted());
            if beyond {
                self.desire(&task, Desired::Remove);
            }
        }
        for slot in 1..=replicas {
            let active = self.of(id).into_iter().find(|task| {
                self.tasks
                    .get(task)
                    .is_some_and(|task| task.slot == slot && task.desired.wanted())
            });
            let Some(active) = active else {
                self.make(id, slot, Desired::Running, None, Duration::ZERO);
                clean = false;
                continue;
            };
            let Some(task) = self.tasks.get(&active) else { continue };
            let dirty = task.spec != template;
            clean &= !dirty && task.state == State::Running;
            if task.state.ended() {
                if !dirty && task.state != State::Shutdown {
                    self.update_fails(id, &active);
                }
                self.restart(id, &active);
            } else if dirty && !halted {
                self.begin_update(id);
                self.desire(&active, Desired::Shutdown);
                let alive = self
                    .tasks
                    .get(&active)
                    .is_some_and(|task| task.node.is_some() && !task.state.ended());
                let after = (alive && self.node_up).then_some(active);
                self.make(id, slot, Desired::Ready, after, Duration::ZERO);
            }
        }
        self.release(id);
        self.forget(id);
        let moving = |update: &Update| matches!(update.state, "updating" | "rollback_started");
        let monitor = self.monitor(id);
        if let Some(service) = self.services.get_mut(id)
            && clean
            && !service.settling
            && service.update.as_ref().is_some_and(moving)
        {
            service.settling = true;
            let wait = if replicas == 0 { Duration::ZERO } else { monitor };
            self.at(wait, id, Step::Settled);
        }
    }

    fn of(&self, service: &str) -> Vec<String> {
        let tasks = self.tasks.values().filter(|task| task.service == service);
        tasks.map(|task| task.id.clone()).collect()
    }

    fn make(&mut self, service: &str, slot: u64, desired: Desired, after: Option<String>, wait: Duration) {
        let (id, version) = (self.new_id(), self.next_index());
        let Some(owner) = self.services.get(service) else {
            return;
        };
        let labels = owner.spec.get("Labels").and_then(Value::as_object);
        let labels: BTreeMap<String, String> = labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
        let spec = owner.template();
        let networks = self.attachments(&spec);
        let task = Task {
            id: id.clone(),
            version,
            created: self.now,
            updated: self.now,
            service: service.to_owned(),
            name: owner.name().to_owned(),
            labels,
            slot,
            networks,
            spec,
            node: None,
            desired,
            state: State::New,
            since: self.now,
            error: String::new(),
            container: None,
            exit: 0,
            process: None,
            stopping: false,
            after,
            release: self.now.saturating_add(wait),
        };
        self.tasks.insert(id.clone(), task);
        self.at(self.settings.step, &id, Step::Advance);
        if !wait.is_zero() {
            self.at(wait, &id, Step::Release);
        }
    }

    fn attachments(&self, spec: &Value) -> Value {
        let targets = spec.get("Networks").and_then(Value::as_array).into_iter().flatten();
        let attached = targets.filter_map(|target| {
            let network = self.networks.get(target.get("Target")?.as_str()?)?;
            Some(json!({
                "Network": {"ID": network.id, "Spec": {"Name": network.name(), "Labels": {}}},
                "Addresses": [format!("10.0.1.{}/24", self.tasks.len() % 250 + 2)],
            }))
        });
        attached.collect()
    }

    /// Replaces a task that has ended, as its restart policy says.
    fn restart(&mut self, service: &str, id: &str) {
        let Some(task) = self.tasks.get(id) else { return };
        // One that failed before it was to start is replaced when it would have started: no tight loops.
        if task.desired == Desired::Ready && task.release > self.now {
            return;
        }
        let policy = task.spec.get("RestartPolicy").unwrap_or(&Value::Null);
        let again = match policy.get("Condition").and_then(Value::as_str) {
            Some("none") => false,
            Some("on-failure") => task.state != State::Complete,
            _ => true,
        };
        let most = policy.get("MaxAttempts").and_then(Value::as_u64).unwrap_or(0);
        let delay = policy.get("Delay").and_then(Value::as_u64).unwrap_or(5_000_000_000);
        let slot = task.slot;
        let tried = self
            .tasks
            .values()
            .filter(|other| other.service == service && other.slot == slot && other.spec == task.spec)
            .count();
        if !again || (most > 0 && u64::try_from(tried).unwrap_or(u64::MAX) > most) {
            return;
        }
        self.desire(id, Desired::Shutdown);
        self.make(service, slot, Desired::Ready, None, Duration::from_nanos(delay));
    }

    /// Starts what has been waiting for its turn.
    fn release(&mut self, service: &str) {
        for id in self.of(service) {
            let Some(task) = self.tasks.get(&id) else { continue };
            let before = task.after.as_ref().and_then(|after| self.tasks.get(after));
            let waits = before.is_some_and(|before| !before.state.ended()) || task.release > self.now;
            if task.desired != Desired::Ready || task.state.ended() || waits {
                continue;
            }
            let ready = task.state == State::Ready;
            self.desire(&id, Desired::Running);
            if ready {
                self.at(self.settings.step, &id, Step::Advance);
            }
        }
    }

    /// Drops the oldest of each slot, and what was only to be stopped.
    fn forget(&mut self, service: &str) {
        let slots: BTreeSet<u64> = self
            .tasks
            .values()
            .filter(|task| task.service == service)
            .map(|task| task.slot)
            .collect();
        for slot in slots {
            let mut kept: Vec<(Duration, u64, String)> = self
                .tasks
                .values()
                .filter(|task| task.service == service && task.slot == slot)
                .map(|task| (task.created, task.version, task.id.clone()))
                .collect();
            kept.sort();
            let mut extra = kept.len().saturating_sub(HISTORY);
            for (_, _, id) in kept {
                let old = self
                    .tasks
                    .get(&id)
                    .is_some_and(|task| !task.desired.wanted() && (task.state.ended() || task.node.is_none()));
                if extra > 0 && old {
                    self.tasks.remove(&id);
                    extra -= 1;
                }
            }
        }
    }

    fn begin_update(&mut self, id: &str) {
        let Some(service) = self.services.get_mut(id) else {
            return;
        };
        service.settling = false;
        if service.update.as_ref().is_none_or(|update| update.completed.is_some()) {
            self.tell_update(id, "updating", "update in progress");
        }
    }

    /// A new task did not live: what the service says about that.
    fn update_fails(&mut self, id: &str, task: &str) {
        let Some(service) = self.services.get(id) else { return };
        let (state, rolling_back) = match &service.update {
            Some(update) if update.state == "updating" => (update.state, false),
            Some(update) if update.state == "rollback_started" => (update.state, true),
            _ => return,
        };
        let config = if rolling_back { "RollbackConfig" } else { "UpdateConfig" };
        let action = service.spec.get(config).and_then(|config| config.get("FailureAction"));
        let action = action.and_then(Value::as_str).unwrap_or("pause").to_owned();
        match action.as_str() {
            "continue" => {}
            "rollback" if state == "updating" => {
                let message = format!("update rolled back due to failure or early termination of task {task}");
                if let Some(service) = self.services.get_mut(id)
                    && let Some(previous) = service.previous.take()
                {
                    service.previous = Some(std::mem::replace(&mut service.spec, previous));
                }
                self.tell_update(id, "rollback_started", &message);
            }
            _ if rolling_back => {
                let message = format!("rollback paused due to failure or early termination of task {task}");
                self.tell_update(id, "rollback_paused", &message);
            }
            _ => {
                let message = format!("update paused due to failure or early termination of task {task}");
                self.tell_update(id, "paused", &message);
            }
        }
    }

    fn monitor(&self, id: &str) -> Duration {
        let config = self
            .services
            .get(id)
            .and_then(|service| service.spec.get("UpdateConfig"));
        let nanos = config.and_then(|config| config.get("Monitor")).and_then(Value::as_u64);
        nanos
            .filter(|nanos| *nanos > 0)
            .map_or(Duration::from_secs(5), Duration::from_nanos)
    }

    fn settled(&mut self, id: &str) {
        let Some(service) = self.services.get_mut(id) else {
            return;
        };
        if !std::mem::take(&mut service.settling) {
            return;
        }
        let (replicas, template) = (service.replicas(), service.template());
        let state = service.update.as_ref().map(|update| update.state);
        let well = self
            .tasks
            .values()
            .filter(|task| task.service == id && task.desired.wanted())
            .filter(|task| task.spec == template && task.state == State::Running)
            .count();
        if u64::try_from(well).unwrap_or(0) < replicas {
            return;
        }
        match state {
            Some("updating") => self.tell_update(id, "completed", "update completed"),
            Some("rollback_started") => self.tell_update(id, "rollback_completed", "rollback completed"),
            _ => {}
        }
    }

    pub(super) fn tell_update(&mut self, id: &str, state: &'static str, message: &str) {
        let (now, index) = (self.now, self.next_index());
        let Some(service) = self.services.get_mut(id) else {
            return;
        };
        let before = service.update.take();
        let ends = matches!(state, "completed" | "rollback_completed");
        let started = before.as_ref().filter(|before| before.completed.is_none());
        service.update = Some(Update {
            state,
            message: message.to_owned(),
            started: started.map_or(now, |before| before.started),
            completed: ends.then_some(now),
        });
        (service.version, service.updated) = (index, now);
        let mut attributes = vec![
            ("name", service.name().to_owned()),
            ("updatestate.new", state.to_owned()),
        ];
        if let Some(before) = before {
            attributes.push(("updatestate.old", before.state.to_owned()));
        }
        self.tell("update", id, &attributes);
    }

    pub(super) fn desire(&mut self, id: &str, desired: Desired) {
        if self.tasks.get(id).is_none_or(|task| task.desired >= desired) {
            return;
        }
        let (index, now) = (self.next_index(), self.now);
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.desired = desired;
        (task.version, task.updated) = (index, now);
        if !desired.wanted() {
            self.stop(id);
        }
    }
}
