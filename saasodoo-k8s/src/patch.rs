//! From a change to the parts of the objects that it touches. Pure.
//!
//! A patch names exactly the fields that are meant, so that what others set stays, on our objects and on the guide's
//! alike. It carries the resource version that was read: a change is never made on top of something unseen.

use saasodoo_core::{Bytes, Error, Host, InstanceChange, InstanceSpec, Result, Transition};
use serde_json::{Map, Value, json};

use crate::backend::Inner;
use crate::convert::{
    Rendered, addon_annotations, default_requests, patch_of, probe_annotations, progress_deadline, resources,
    route_annotations,
};
use crate::create::storage_missing;
use crate::facts::quiet;
use crate::names::{CHANGE, HOST_PREFIX, ODOO_VERSION, QUIET, STORAGE, TRANSITION, VERSION, host_label};
use crate::observe::{data_claim, is_static, main_container};
use crate::read::{Live, is_usable};
use crate::views::{ClaimView, DeploymentView, View};

/// What an update writes. An empty one has nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// For the Deployment: metadata and pod template.
    pub(crate) metadata: Map<String, Value>,
    pub(crate) container: Map<String, Value>,
    /// For its spec, beside the template.
    pub(crate) rollout: Map<String, Value>,
    /// For the claim.
    pub(crate) storage: Option<Bytes>,
    /// For the route: the hosts that it shall have.
    pub(crate) hosts: Option<Vec<Host>>,
    /// The spec before and after.
    pub(crate) before: Option<InstanceSpec>,
    pub(crate) after: Option<InstanceSpec>,
}

impl Changes {
    pub(crate) fn touches_deployment(&self) -> bool {
        !self.metadata.is_empty() || !self.container.is_empty()
    }

    pub(crate) fn restarts(&self) -> bool {
        !self.container.is_empty()
    }
}

impl Inner {
    /// What differs between what is asked and what is there. Nothing is read or written.
    pub(crate) fn changes(&self, live: &Live, change: &InstanceChange) -> Result<Changes> {
        let instance = self.instance(live);
        let before = instance.spec;
        let after = change.apply_to(&before)?;
        let mut changes = Changes::default();
        let mut annotations: Vec<(String, Option<String>)> = Vec::new();
        let mut labels: Vec<(String, Option<String>)> = Vec::new();
        let deployment = &live.deployment;

        if change.image.is_some() || change.odoo_version.is_some() {
            if after.image != before.image {
                changes.container.insert("image".to_owned(), json!(after.image));
            }
            annotations.push((
                ODOO_VERSION.to_owned(),
                after.odoo_version.map(|version| version.to_string()),
            ));
            labels.push((
                VERSION.to_owned(),
                after.effective_version().map(|version| version.to_string()),
            ));
        }
        if (change.cpu.is_some() || change.memory.is_some()) && after.resources != before.resources {
            changes
                .container
                .insert("resources".to_owned(), resources(&self.config, &after));
            let (key, value) = default_requests(&self.config, &after);
            annotations.push((key.to_owned(), value));
        }
        let env = env_patch(deployment, change);
        if !env.is_empty() {
            changes.container.insert("env".to_owned(), Value::Array(env));
        }
        if change.probes.is_some() && after.probes != before.probes {
            let rendered = Rendered::of(&after.probes);
            changes
                .container
                .insert("startupProbe".to_owned(), replaced(rendered.startup));
            changes
                .container
                .insert("readinessProbe".to_owned(), replaced(rendered.readiness));
            let liveness = rendered.liveness.map_or(Value::Null, replaced);
            changes.container.insert("livenessProbe".to_owned(), liveness);
            changes.rollout.insert(
                "progressDeadlineSeconds".to_owned(),
                json!(progress_deadline(&after.probes)),
            );
            let recorded = probe_annotations(&after.probes);
            annotations.extend(recorded.into_iter().map(|(key, value)| (key.to_owned(), value)));
        }
        if change.addons.is_some() {
            let recorded = addon_annotations(&after);
            annotations.extend(recorded.into_iter().map(|(key, value)| (key.to_owned(), value)));
        }
        if let Some(size) = change.storage {
            let Some(claim) = &live.claim else {
                return Err(storage_missing(
                    data_claim(deployment, &self.config.data_path).unwrap_or("(unknown)"),
                ));
            };
            if Some(size) != requested(claim) {
                if is_static(claim) {
                    return Err(cannot_grow());
                }
                if !is_usable(claim) {
                    return Err(storage_missing(claim.name()));
                }
                changes.storage = Some(size);
            }
            annotations.push((STORAGE.to_owned(), Some(size.to_string())));
        }
        if change.route.is_some() {
            let hosts = after.hosts(self.config.base_domain())?;
            let recorded = route_annotations(&after, &hosts);
            annotations.extend(recorded.into_iter().map(|(key, value)| (key.to_owned(), value)));
            let present = deployment.metadata.labels.iter().flatten();
            let old = present
                .filter(|(key, _)| key.starts_with(HOST_PREFIX))
                .map(|(key, _)| (key.clone(), None));
            labels.extend(old);
            for host in &hosts {
                let key = host_label(host.as_str());
                labels.retain(|(other, _)| *other != key);
                labels.push((key, Some("true".to_owned())));
            }
            changes.hosts = Some(hosts);
        }

        // On the Deployment alone: in the pods' template they would restart the tenant. A key that is not the spec's own
        // is nobody's to take away here.
        for (key, value) in &change.labels {
            if value.is_some() || before.labels.contains_key(key) {
                labels.push((key.to_string(), value.as_ref().map(ToString::to_string)));
            }
        }

        annotations.retain(|(key, value)| deployment.annotation(key) != value.as_deref());
        labels.retain(|(key, value)| deployment.label(key) != value.as_deref());
        if changes.restarts()
            && let Some(strategy) = one_after_the_other(deployment)
        {
            changes.rollout.insert("strategy".to_owned(), strategy);
        }
        if changes.restarts() && deployment.spec.replicas != Some(0) {
            self.needs_claim(live)?;
            annotations.push((TRANSITION.to_owned(), Some(Transition::Update.as_str().to_owned())));
        }
        if !annotations.is_empty() {
            changes
                .metadata
                .insert("annotations".to_owned(), Value::Object(patch_of(annotations)));
        }
        if !labels.is_empty() {
            changes
                .metadata
                .insert("labels".to_owned(), Value::Object(patch_of(labels)));
        }
        changes.before = Some(before);
        changes.after = Some(after);
        Ok(changes)
    }
}

/// The strategy to write beside a new template when somebody has changed it: the new pod would start beside the old one.
pub(crate) fn one_after_the_other(deployment: &DeploymentView) -> Option<Value> {
    let changed = deployment.spec.strategy.type_.as_deref() != Some("Recreate");
    changed.then(|| json!({"type": "Recreate", "rollingUpdate": null}))
}

/// A patch that is refused when the Deployment is not the one that was read, or not as it was.
pub(crate) fn as_read(deployment: &DeploymentView, mut patch: Value) -> Value {
    patch["metadata"]["uid"] = json!(deployment.uid());
    patch["metadata"]["resourceVersion"] = json!(deployment.version());
    patch
}

pub(crate) fn deployment_patch(live: &Live, changes: &Changes, mark: &str) -> Value {
    let mut patch = json!({ "metadata": changes.metadata });
    patch["metadata"]["annotations"][CHANGE] = json!(mark);
    if !changes.restarts() {
        // The server raises the generation for annotations too; the controller has nothing to do then.
        let generation = live.deployment.metadata.generation.unwrap_or_default();
        let from = match quiet(&live.deployment) {
            Some((from, to)) if to == generation => from,
            _ => generation,
        };
        patch["metadata"]["annotations"][QUIET] = json!(format!("{from}-{}", generation + 1));
    }
    if changes.restarts() {
        let mut container = changes.container.clone();
        let name = main_container(&live.deployment).map_or("", |container| container.name.as_str());
        container.insert("name".to_owned(), json!(name));
        patch["spec"] = Value::Object(changes.rollout.clone());
        patch["spec"]["template"] = json!({"spec": {"containers": [container]}});
    }
    patch
}

/// The variables to set and to remove, without those that are as asked.
fn env_patch(deployment: &DeploymentView, change: &InstanceChange) -> Vec<Value> {
    let present = main_container(deployment)
        .map(|container| container.env.as_slice())
        .unwrap_or_default();
    let mut patch = Vec::new();
    for (name, value) in &change.environment {
        let old = present.iter().find(|variable| variable.name == name.as_str());
        match (value, old) {
            (None, None) => {}
            (None, Some(_)) => patch.push(json!({"name": name, "$patch": "delete"})),
            (Some(value), Some(old))
                if old.value.as_deref().unwrap_or_default() == value && old.value_from.is_none() => {}
            (Some(value), Some(old)) if old.value_from.is_some() => {
                patch.push(json!({"name": name, "value": value, "valueFrom": null}));
            }
            (Some(value), _) => patch.push(json!({"name": name, "value": value})),
        }
    }
    patch
}

/// A value that replaces the old one as a whole instead of being merged into it.
fn replaced(mut value: Value) -> Value {
    value["$patch"] = json!("replace");
    value
}

pub(crate) fn cannot_grow() -> Error {
    Error::unsupported("storage", "the volume of an adopted directory cannot grow")
        .with_advice("change the quota of the directory itself")
}

pub(crate) fn requested(claim: &ClaimView) -> Option<Bytes> {
    let size = claim.spec.resources.requests.get("storage")?;
    Bytes::from_kubernetes(size).ok()
}
