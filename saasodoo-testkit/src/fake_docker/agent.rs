//! The scheduler and the agent: how one task goes from state to state.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::process::{Course, Process};
use super::task::{Desired, State};
use super::world::{Step, World};

impl World {
    /// Has a task's node stop it, however far it is.
    pub(super) fn stop(&mut self, id: &str) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let remove = task.desired == Desired::Remove;
        if task.state.ended() || task.node.is_none() {
            if remove {
                self.tasks.remove(id);
            }
            return;
        }
        // A node that is away is told when it is back.
        if task.stopping || !self.node_up {
            return;
        }
        task.stopping = true;
        let (grace, runs) = (task.grace(), task.process.is_some());
        let wait = match runs {
            true if self.stops(id) => self.settings.stop.min(grace),
            true => grace,
            false => self.settings.step,
        };
        self.at(wait, id, Step::Stopped);
    }

    fn course(&self, id: &str) -> Option<Course> {
        let task = self.tasks.get(id)?;
        let limit = task
            .spec
            .pointer("/Resources/Limits/MemoryBytes")
            .and_then(Value::as_u64);
        Some(Course::of(
            task.container_spec(),
            limit.unwrap_or(0),
            self.settings.start,
        ))
    }

    pub(super) fn stops(&self, id: &str) -> bool {
        self.course(id).is_some_and(|course| course.stops)
    }

    pub(super) fn enter(&mut self, id: &str, state: State) {
        let (index, now) = (self.next_index(), self.now);
        if let Some(task) = self.tasks.get_mut(id) {
            task.state = state;
            task.error.clear();
            (task.version, task.since, task.updated) = (index, now, now);
        }
    }

    pub(super) fn end(&mut self, id: &str, state: State, code: i32, error: &str) {
        self.enter(id, state);
        if let Some(task) = self.tasks.get_mut(id) {
            task.process = None;
            task.exit = code;
            error.clone_into(&mut task.error);
            if task.desired == Desired::Remove {
                self.tasks.remove(id);
            }
        }
    }

    /// The next state on the way to `running`.
    pub(super) fn forward(&mut self, id: &str) {
        let step = self.settings.step;
        let Some(task) = self.tasks.get(id) else { return };
        if !task.desired.wanted() {
            return;
        }
        match task.state {
            State::New => {
                self.enter(id, State::Pending);
                self.at(step, id, Step::Advance);
            }
            State::Pending => match self.unsuitable(id) {
                Some(why) => {
                    let (index, now) = (self.next_index(), self.now);
                    if let Some(task) = self.tasks.get_mut(id) {
                        task.error = why;
                        (task.version, task.since) = (index, now);
                    }
                }
                None => {
                    self.enter(id, State::Assigned);
                    let node = self.node.id.clone();
                    if let Some(task) = self.tasks.get_mut(id) {
                        task.node = Some(node);
                    }
                    self.at(step, id, Step::Advance);
                }
            },
            State::Assigned => {
                self.enter(id, State::Accepted);
                self.at(step, id, Step::Advance);
            }
            State::Accepted => {
                self.enter(id, State::Preparing);
                self.at(self.settings.prepare, id, Step::Advance);
            }
            State::Preparing => self.prepared(id),
            State::Ready if task.desired == Desired::Running => self.start(id),
            _ => {}
        }
    }

    fn unsuitable(&self, id: &str) -> Option<String> {
        let task = self.tasks.get(id)?;
        if !self.node_up {
            return Some("no suitable node (1 node not available for new tasks)".to_owned());
        }
        let constraints = task.spec.pointer("/Placement/Constraints").and_then(Value::as_array);
        let fits = |text: &str| {
            let (text, equal) = match text.split_once("!=") {
                Some(parts) => (Some(parts), false),
                None => (text.split_once("=="), true),
            };
            let Some((key, value)) = text else { return false };
            let found = match key.trim() {
                "node.id" => Some(self.node.id.as_str()),
                "node.hostname" => Some("manager1"),
                "node.role" => Some("manager"),
                key => key.strip_prefix("node.labels.").and_then(|key| self.node.label(key)),
            };
            (found == Some(value.trim())) == equal
        };
        let all = constraints.into_iter().flatten().filter_map(Value::as_str).all(fits);
        (!all).then(|| "no suitable node (scheduling constraints not satisfied on 1 node)".to_owned())
    }

    /// The node has the image and the mounts, or refuses.
    fn prepared(&mut self, id: &str) {
        let Some(task) = self.tasks.get(id) else { return };
        let missing = task
            .container_spec()
            .get("Mounts")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|mount| mount.get("Type").and_then(Value::as_str) == Some("bind"))
            .filter_map(|mount| mount.get("Source")?.as_str())
            .find(|source| !Path::new(source).exists());
        let refusal = if !self.has_image(task.image()) {
            Some(format!("No such image: {}", task.image()))
        } else {
            missing.map(|source| {
                format!("invalid mount config for type \"bind\": bind source path does not exist: {source}")
            })
        };
        if let Some(refusal) = refusal {
            self.end(id, State::Rejected, 0, &refusal);
            return;
        }
        self.enter(id, State::Ready);
        if self.tasks.get(id).is_some_and(|task| task.desired == Desired::Running) {
            self.at(self.settings.step, id, Step::Advance);
        }
    }

    /// Whether the node has an image or can pull it, whatever its digest.
    pub(super) fn has_image(&self, image: &str) -> bool {
        let plain = image.split('@').next().unwrap_or(image);
        self.settings.images.iter().any(|known| known == plain)
    }

    fn start(&mut self, id: &str) {
        self.enter(id, State::Starting);
        let container = self.new_container();
        if let Some(task) = self.tasks.get_mut(id) {
            task.container = Some(container);
        }
        let Some(course) = self.course(id) else { return };
        let Some(task) = self.tasks.get(id) else { return };
        let mounts = task.container_spec().get("Mounts").and_then(Value::as_array);
        let data: Option<PathBuf> = mounts
            .into_iter()
            .flatten()
            .find(|mount| mount.get("Type").and_then(Value::as_str) == Some("bind"))
            .and_then(|mount| mount.get("Source")?.as_str())
            .map(PathBuf::from);
        let (host, name) = (task.host().to_owned(), task.name.clone());
        let shared = self.tasks.values().find(|other| {
            let theirs = other.process.as_ref().and_then(|process| process.data.as_ref());
            theirs.is_some() && theirs == data.as_ref()
        });
        if let Some(other) = shared {
            self.violations
                .push(format!("{name} starts in the directory of {}, which runs", other.name));
        }
        let next_beat = self.now;
        if let Some(task) = self.tasks.get_mut(id) {
            task.process = Some(Process {
                data,
                beating: false,
                next_beat,
            });
        }
        self.write(id, false, format!("odoo-stub: starting on {host}"));
        if let Some(text) = course.complaint {
            self.write(id, true, text);
        }
        for (wait, step) in [
            (course.listens, Step::Listen),
            (course.healthy, Step::Healthy),
            (course.given_up, Step::GiveUp),
        ] {
            if let Some(wait) = wait {
                self.at(wait, id, step);
            }
        }
        if let Some((wait, code)) = course.ends {
            self.at(wait, id, Step::Exit(code));
        }
    }
}
