//! From a change to the parts of an inspected body that it touches. Pure.

use std::collections::BTreeSet;

use saasodoo_core::{Bytes, EnvName, FieldChange, Host, InstanceChange, InstanceSpec, Result, Unparsed};
use serde_json::{Value, json};

use crate::config::SwarmConfig;
use crate::convert::{
    HEALTHCHECK, child, health_check, is_platform_label, label, optional_labels, probes, set_label, variable_entry,
};
use crate::traefik;

/// A change of an inspected body.
#[derive(Debug)]
pub(crate) struct Patch<'a> {
    pub(crate) asked: &'a InstanceChange,
    pub(crate) before: &'a InstanceSpec,
    pub(crate) after: &'a InstanceSpec,
    /// All hosts afterwards.
    pub(crate) hosts: &'a [Host],
    /// The image with its digest, if it was found out.
    pub(crate) resolved: Option<&'a str>,
    /// What was asked for and has to be written although it is equal: see [`unread`].
    pub(crate) unread: &'a BTreeSet<&'static str>,
    pub(crate) config: &'a SwarmConfig,
}

/// The fields of a change that the body has nothing readable for. What was observed of them is a default, and being
/// equal to it says nothing.
pub(crate) fn unread(asked: &InstanceChange, unparsed: &[Unparsed], body: &Value) -> BTreeSet<&'static str> {
    let left = |field: &str| unparsed.iter().any(|unparsed| unparsed.field == field);
    let probed = HEALTHCHECK
        .iter()
        .try_fold(body, |value, name| value.get(*name))
        .is_some_and(|check| probes(check).is_some());
    [
        ("image", asked.image.is_some() && left("image")),
        ("odoo_version", asked.odoo_version.is_some() && left("odoo_version")),
        ("resources.cpu", asked.cpu.is_some() && left("resources.cpu")),
        ("resources.memory", asked.memory.is_some() && left("resources.memory")),
        ("probes", asked.probes.is_some() && !probed),
        ("route", asked.route.is_some() && left("route")),
        ("storage", asked.storage.is_some() && left("storage")),
    ]
    .into_iter()
    .filter_map(|(field, forced)| forced.then_some(field))
    .collect()
}

/// Labels to remove that are there and have values that no spec can have.
fn unreadable<'a>(asked: &'a InstanceChange, before: &InstanceSpec, body: &Value) -> Vec<&'a str> {
    let labels = body.get("Labels").and_then(Value::as_object);
    asked
        .labels
        .iter()
        .filter(|(key, value)| value.is_none() && !before.labels.contains_key(*key))
        .map(|(key, _)| key.as_str())
        .filter(|key| !is_platform_label(key) && labels.is_some_and(|labels| labels.contains_key(*key)))
        .collect()
}

/// What a change comes to, field by field.
pub(crate) fn fields(
    asked: &InstanceChange,
    before: &InstanceSpec,
    after: &InstanceSpec,
    unread: &BTreeSet<&'static str>,
    body: &Value,
) -> Vec<FieldChange> {
    let mut fields = before.diff(after);
    for key in unreadable(asked, before, body) {
        fields.push(FieldChange::new(
            format!("labels.{key}"),
            Some("(unreadable)".to_owned()),
            None,
        ));
    }
    for field in unread {
        let part = format!("{field}.");
        if fields
            .iter()
            .any(|change| change.field == *field || change.field.starts_with(&part))
        {
            continue;
        }
        let value = match *field {
            "image" => after.image.to_string(),
            "odoo_version" => after
                .odoo_version
                .map(|version| version.to_string())
                .unwrap_or_default(),
            "resources.cpu" => after.resources.cpu.to_string(),
            "resources.memory" => after.resources.memory.to_string(),
            "probes" => after.probes.path.to_string(),
            "route" => after
                .route
                .subdomain
                .as_ref()
                .map_or_else(|| after.database_name.to_string(), ToString::to_string),
            _ => after.storage.to_string(),
        };
        fields.push(FieldChange::new(*field, None, Some(value)));
    }
    fields.sort_by(|a, b| a.field.cmp(&b.field));
    fields
}

impl Patch<'_> {
    /// Changes a body where the change says so, and nothing else in it.
    pub(crate) fn apply(&self, body: &mut Value) -> Result<()> {
        let Self { before, after, .. } = *self;
        let ours = body
            .pointer("/Labels")
            .and_then(|labels| labels.get(label::MANAGED_BY))
            .is_some();
        let forced = |field: &str| self.unread.contains(field);
        if before.image != after.image || forced("image") {
            let image = self.resolved.unwrap_or(after.image.as_str());
            *child(body, &["TaskTemplate", "ContainerSpec", "Image"]) = json!(image);
            set_label(body, label::RESOLVED, self.resolved.map(|_| "true".to_owned()));
        }
        let (old, new) = (&before.resources, &after.resources);
        let bytes = |bytes: Bytes| bytes.as_i64();
        for (changed, kind, name, value) in [
            (
                old.cpu != new.cpu || forced("resources.cpu"),
                "Limits",
                "NanoCPUs",
                Some(new.cpu.nano_cpus()),
            ),
            (
                old.memory != new.memory || forced("resources.memory"),
                "Limits",
                "MemoryBytes",
                Some(bytes(new.memory)),
            ),
            (
                old.cpu_request != new.cpu_request,
                "Reservations",
                "NanoCPUs",
                new.cpu_request.map(|cpu| cpu.nano_cpus()),
            ),
            (
                old.memory_request != new.memory_request,
                "Reservations",
                "MemoryBytes",
                new.memory_request.map(bytes),
            ),
        ] {
            if changed {
                *child(body, &["TaskTemplate", "Resources", kind, name]) = json!(value.unwrap_or(0));
            }
        }
        self.environment(body);
        if before.probes != after.probes || forced("probes") {
            *child(body, HEALTHCHECK) = health_check(&after.probes);
        }
        if before.route != after.route || forced("route") {
            self.route(body)?;
        }
        for ((key, old), (_, new)) in optional_labels(before).into_iter().zip(optional_labels(after)) {
            let unread = key == label::ODOO_VERSION && forced("odoo_version");
            if old != new || unread {
                set_label(body, key, new);
            }
        }
        if ours && (before.storage != after.storage || forced("storage")) {
            set_label(body, label::STORAGE, Some(after.storage.get().to_string()));
        }
        for (key, value) in &self.asked.labels {
            if before.labels.get(key) != value.as_ref() || unreadable(self.asked, before, body).contains(&key.as_str())
            {
                set_label(body, key.as_str(), value.as_ref().map(ToString::to_string));
            }
        }
        Ok(())
    }

    fn environment(&self, body: &mut Value) {
        let changed: Vec<(&EnvName, Option<&String>)> = self
            .asked
            .environment
            .iter()
            .map(|(name, value)| (name, value.as_ref()))
            .filter(|(name, value)| self.before.environment.get(*name) != *value)
            .collect();
        if changed.is_empty() {
            return;
        }
        let env = child(body, &["TaskTemplate", "ContainerSpec", "Env"]);
        let mut list = env.as_array().cloned().unwrap_or_default();
        for (name, value) in changed {
            let is_it = |entry: &Value| {
                let text = entry.as_str().unwrap_or_default();
                text.split('=').next() == Some(name.as_str())
            };
            let first = list.iter().position(is_it);
            // One that is there twice would have two values.
            list.retain(|entry| !is_it(entry));
            if let Some(value) = value {
                let entry = json!(variable_entry(name.as_str(), value));
                list.insert(first.unwrap_or(list.len()), entry);
            }
        }
        *env = Value::Array(list);
    }

    fn route(&self, body: &mut Value) -> Result<()> {
        let name = body.get("Name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let labels = body
            .get("Labels")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        let main = traefik::rule_label(&name);
        for key in [main.clone(), traefik::rule_label(&traefik::websocket(&name))] {
            if let Some(rule) = labels.get(&key) {
                let rule = traefik::reroute(rule.as_str().unwrap_or_default(), self.hosts)?;
                set_label(body, &key, Some(rule));
            }
        }
        if !labels.contains_key(&main) {
            // Nothing was routed to it so far.
            for (key, value) in traefik::labels(&name, self.hosts, self.config) {
                if !labels.contains_key(&key) {
                    set_label(body, &key, Some(value));
                }
            }
        }
        for key in labels.keys().filter(|key| key.starts_with(label::HOST)) {
            set_label(body, key, None);
        }
        for host in self.hosts {
            set_label(body, &format!("{}{host}", label::HOST), Some("true".to_owned()));
        }
        Ok(())
    }
}
