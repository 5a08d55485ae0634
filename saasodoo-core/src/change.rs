//! Differences between specs, and changes to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spec::{Addons, AdminAccount, DatabaseEndpoint, Probes, Resources, Route, Scheduling};
use crate::{Bytes, Cpu, EnvName, ImageRef, InstanceSpec, LabelKey, LabelValue, OdooVersion, Result, Secret};

/// One field that differs, with both values as text. Values of secrets and of environment variables are not shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FieldChange {
    /// The field's path, such as `resources.memory` or `environment.WORKERS`.
    pub field: String,
    /// The value before; `None` when there was none.
    pub from: Option<String>,
    /// The value after; `None` when it goes away.
    pub to: Option<String>,
}

impl FieldChange {
    /// A difference between two values as text.
    #[must_use]
    pub fn new(field: impl Into<String>, from: Option<String>, to: Option<String>) -> Self {
        Self {
            field: field.into(),
            from,
            to,
        }
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
        write!(f, "{}: {} -> {}", self.field, show(&self.from), show(&self.to))
    }
}

/// The value of a field, comparable; only the plain ones are shown.
#[derive(Clone, PartialEq, Eq)]
enum Value {
    Plain(String),
    Hidden(Secret),
}

impl Value {
    fn shown(&self) -> String {
        match self {
            Self::Plain(text) => text.clone(),
            Self::Hidden(_) => "(hidden)".to_owned(),
        }
    }

    /// A withheld secret says nothing about equality, so it differs from no other secret.
    fn differs(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Hidden(a), Self::Hidden(b)) => !a.is_withheld() && !b.is_withheld() && a != b,
            _ => self != other,
        }
    }
}

impl InstanceSpec {
    /// The fields in which `other` differs from this spec, in the order of their names. A secret that either side
    /// withholds is not compared.
    ///
    /// ```
    /// use saasodoo_core::{Bytes, InstanceId, InstanceSpec};
    ///
    /// let a = InstanceSpec::new(InstanceId::random(), "acme".parse()?, "odoo:17".parse()?);
    /// let b = a.clone().with_memory(Bytes::from_gib(4));
    /// assert_eq!(a.diff(&b)[0].to_string(), "resources.memory: 2Gi -> 4Gi");
    /// # Ok::<(), saasodoo_core::Error>(())
    /// ```
    #[must_use]
    pub fn diff(&self, other: &Self) -> Vec<FieldChange> {
        let (before, after) = (self.fields(), other.fields());
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        names
            .into_iter()
            .filter(|name| match (before.get(*name), after.get(*name)) {
                (Some(a), Some(b)) => a.differs(b),
                _ => true,
            })
            .map(|name| {
                FieldChange::new(
                    name,
                    before.get(name).map(Value::shown),
                    after.get(name).map(Value::shown),
                )
            })
            .collect()
    }

    /// The paths of the fields that have a value.
    pub(crate) fn field_names(&self) -> BTreeSet<String> {
        self.fields().into_keys().collect()
    }

    /// Every field under its path. Destructured without `..`, so that a new field cannot be forgotten.
    fn fields(&self) -> BTreeMap<String, Value> {
        let Self {
            id,
            database_name,
            display_name,
            customer_id,
            image,
            odoo_version: _, // compared as the effective version
            database,
            admin,
            demo_data,
            resources:
                Resources {
                    cpu,
                    memory,
                    cpu_request,
                    memory_request,
                },
            storage,
            environment,
            route: Route {
                subdomain,
                custom_domains,
            },
            probes:
                Probes {
                    path,
                    period_seconds,
                    startup_seconds,
                    liveness,
                },
            addons: Addons { custom, disabled },
            labels,
            scheduling:
                Scheduling {
                    node_selector,
                    tolerations,
                    priority_class,
                    stop_grace_seconds,
                },
        } = self;
        let mut fields = BTreeMap::new();
        let mut plain = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                fields.insert(name.to_owned(), Value::Plain(value));
            }
        };
        plain("id", Some(id.to_string()));
        plain("database_name", Some(database_name.to_string()));
        plain("display_name", (!display_name.is_empty()).then(|| display_name.clone()));
        plain("customer_id", customer_id.map(|id| id.to_string()));
        plain("image", Some(image.to_string()));
        plain(
            "odoo_version",
            self.effective_version().map(|version| version.to_string()),
        );
        plain("demo_data", Some(demo_data.to_string()));
        plain("resources.cpu", Some(cpu.to_string()));
        plain("resources.memory", Some(memory.to_string()));
        plain("resources.cpu_request", cpu_request.map(|cpu| cpu.to_string()));
        plain(
            "resources.memory_request",
            memory_request.map(|memory| memory.to_string()),
        );
        plain("storage", Some(storage.to_string()));
        plain("route.subdomain", subdomain.as_ref().map(ToString::to_string));
        plain("route.custom_domains", join(custom_domains));
        plain("probes.path", Some(path.to_string()));
        plain("probes.period_seconds", Some(period_seconds.to_string()));
        plain("probes.startup_seconds", Some(startup_seconds.to_string()));
        plain("probes.liveness", Some(liveness.to_string()));
        plain("addons.custom", join(custom));
        plain("addons.disabled", join(disabled));
        plain("scheduling.tolerations", join(tolerations));
        plain(
            "scheduling.priority_class",
            priority_class.as_ref().map(ToString::to_string),
        );
        plain("scheduling.stop_grace_seconds", Some(stop_grace_seconds.to_string()));
        for (key, value) in labels {
            plain(&format!("labels.{key}"), Some(value.to_string()));
        }
        for (key, value) in node_selector {
            plain(&format!("scheduling.node_selector.{key}"), Some(value.to_string()));
        }
        if let Some(DatabaseEndpoint {
            host,
            port,
            name,
            user,
            password,
        }) = database
        {
            plain("database.host", Some(host.clone()));
            plain("database.port", Some(port.to_string()));
            plain("database.name", Some(name.clone()));
            plain("database.user", user.clone());
            fields.insert("database.password".to_owned(), Value::Hidden(password.clone()));
        }
        if let Some(AdminAccount { email, password }) = admin {
            fields.insert("admin.email".to_owned(), Value::Plain(email.clone()));
            fields.insert("admin.password".to_owned(), Value::Hidden(password.clone()));
        }
        for (name, value) in environment {
            fields.insert(format!("environment.{name}"), Value::Hidden(Secret::new(value.clone())));
        }
        fields
    }
}

fn join<T: ToString>(set: &BTreeSet<T>) -> Option<String> {
    (!set.is_empty()).then(|| set.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

/// What an [`update`](crate::InstanceOrchestrator::update) changes; everything that is `None` stays as it is.
///
/// The identity, the database name, the customer, what is set aside on the node
/// ([`cpu_request`](crate::Resources::cpu_request), [`memory_request`](crate::Resources::memory_request)) and what is
/// used at the first start only (administrator, demo data) cannot be changed. A request follows a smaller limit down.
///
/// ```
/// use saasodoo_core::{Bytes, InstanceChange};
///
/// let change = InstanceChange::new().memory(Bytes::from_gib(4)).set_env("WORKERS".parse()?, "8");
/// assert!(!change.is_empty());
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct InstanceChange {
    /// Another image. The version follows its tag unless [`odoo_version`](Self::odoo_version) is given too.
    pub image: Option<ImageRef>,
    /// Another version of Odoo, for images whose tag does not tell.
    pub odoo_version: Option<OdooVersion>,
    /// Another processor limit.
    pub cpu: Option<Cpu>,
    /// Another memory limit.
    pub memory: Option<Bytes>,
    /// A larger data volume or quota. A smaller one is refused.
    pub storage: Option<Bytes>,
    /// Variables to set (`Some`) and to remove (`None`).
    pub environment: BTreeMap<EnvName, Option<String>>,
    /// Other host names.
    pub route: Option<Route>,
    /// Other probes.
    pub probes: Option<Probes>,
    /// Other metadata about addons.
    pub addons: Option<Addons>,
    /// Labels of the spec to set (`Some`) and to remove (`None`). A change of labels alone never replaces the tenant's
    /// process: a backend keeps them on its objects, not on the pod or the container.
    pub labels: BTreeMap<LabelKey, Option<LabelValue>>,
}

impl InstanceChange {
    /// A change of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the image.
    #[must_use]
    pub fn image(mut self, image: ImageRef) -> Self {
        self.image = Some(image);
        self
    }

    /// Changes the version of Odoo.
    #[must_use]
    pub fn odoo_version(mut self, version: OdooVersion) -> Self {
        self.odoo_version = Some(version);
        self
    }

    /// Changes the processor limit.
    #[must_use]
    pub fn cpu(mut self, cpu: Cpu) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Changes the memory limit.
    #[must_use]
    pub fn memory(mut self, memory: Bytes) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Grows the storage.
    #[must_use]
    pub fn storage(mut self, storage: Bytes) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn set_env(mut self, name: EnvName, value: impl Into<String>) -> Self {
        self.environment.insert(name, Some(value.into()));
        self
    }

    /// Removes an environment variable.
    #[must_use]
    pub fn unset_env(mut self, name: EnvName) -> Self {
        self.environment.insert(name, None);
        self
    }

    /// Changes the host names.
    #[must_use]
    pub fn route(mut self, route: Route) -> Self {
        self.route = Some(route);
        self
    }

    /// Changes the probes.
    #[must_use]
    pub fn probes(mut self, probes: Probes) -> Self {
        self.probes = Some(probes);
        self
    }

    /// Changes the metadata about addons.
    #[must_use]
    pub fn addons(mut self, addons: Addons) -> Self {
        self.addons = Some(addons);
        self
    }

    /// Sets a label.
    #[must_use]
    pub fn set_label(mut self, key: LabelKey, value: LabelValue) -> Self {
        self.labels.insert(key, Some(value));
        self
    }

    /// Removes a label.
    #[must_use]
    pub fn unset_label(mut self, key: LabelKey) -> Self {
        self.labels.insert(key, None);
        self
    }

    /// True when nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The spec after this change.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the storage would shrink.
    pub fn apply_to(&self, spec: &InstanceSpec) -> Result<InstanceSpec> {
        let Self {
            image,
            odoo_version,
            cpu,
            memory,
            storage,
            environment,
            route,
            probes,
            addons,
            labels,
        } = self.clone();
        let mut new = spec.clone();
        if let Some(image) = image {
            new.image = image;
            // The version that was recorded belonged to the image before.
            new.odoo_version = None;
        }
        new.odoo_version = odoo_version.or(new.odoo_version);
        new.resources.cpu = cpu.unwrap_or(new.resources.cpu);
        new.resources.memory = memory.unwrap_or(new.resources.memory);
        if let Some(storage) = storage {
            if storage < new.storage {
                return Err(crate::Error::invalid(
                    "storage",
                    format!(
                        "{storage} is less than the present {}, and storage cannot shrink",
                        new.storage
                    ),
                )
                .with_instance(spec.id));
            }
            new.storage = storage;
        }
        for (name, value) in environment {
            match value {
                Some(value) => new.environment.insert(name, value),
                None => new.environment.remove(&name),
            };
        }
        new.route = route.unwrap_or(new.route);
        new.probes = probes.unwrap_or(new.probes);
        new.addons = addons.unwrap_or(new.addons);
        for (key, value) in labels {
            match value {
                Some(value) => new.labels.insert(key, value),
                None => new.labels.remove(&key),
            };
        }
        // A request that was fine under the old limit follows a smaller one down.
        let resources = &mut new.resources;
        resources.cpu_request = resources.cpu_request.map(|request| request.min(resources.cpu));
        resources.memory_request = resources.memory_request.map(|request| request.min(resources.memory));
        Ok(new)
    }
}

impl fmt::Debug for InstanceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceChange")
            .field("image", &self.image)
            .field("odoo_version", &self.odoo_version)
            .field("cpu", &self.cpu)
            .field("memory", &self.memory)
            .field("storage", &self.storage)
            .field("environment", &self.environment.keys().collect::<Vec<_>>())
            .field("route", &self.route)
            .field("probes", &self.probes)
            .field("addons", &self.addons)
            .field("labels", &self.labels)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InstanceId;

    fn spec() -> InstanceSpec {
        InstanceSpec::new(
            InstanceId::random(),
            "acme".parse().expect("a name"),
            "odoo:17".parse().expect("an image"),
        )
    }

    #[test]
    fn a_change_shows_up_in_the_diff_and_only_there() {
        let before = spec();
        let change = InstanceChange::new()
            .image("odoo:18".parse().expect("an image"))
            .cpu(Cpu::from_millis(2000))
            .storage(Bytes::from_gib(20))
            .set_env("A".parse().expect("a name"), "1");
        let after = change.apply_to(&before).expect("growth");
        let fields: Vec<_> = before.diff(&after).into_iter().map(|change| change.field).collect();
        assert_eq!(
            fields,
            ["environment.A", "image", "odoo_version", "resources.cpu", "storage"]
        );
        assert!(
            change.apply_to(&after).expect("the same").diff(&after).is_empty(),
            "a change is idempotent"
        );
    }

    #[test]
    fn labels_are_set_and_removed() {
        let key: LabelKey = "tier".parse().expect("a key");
        let change = InstanceChange::new().set_label(key.clone(), "gold".parse().expect("a value"));
        assert!(!change.is_empty());
        let labelled = change.apply_to(&spec()).expect("a label");
        assert_eq!(labelled.labels[&key].as_str(), "gold");
        let bare = InstanceChange::new()
            .unset_label(key)
            .apply_to(&labelled)
            .expect("no label");
        assert!(bare.labels.is_empty());
    }

    #[test]
    fn storage_does_not_shrink() {
        let error = InstanceChange::new()
            .storage(Bytes::from_gib(1))
            .apply_to(&spec())
            .expect_err("a shrink");
        assert_eq!(error.field(), Some("storage"));
    }

    #[test]
    fn hidden_values_are_compared_and_not_shown() {
        let a = spec().with_env("TOKEN".parse().expect("a name"), "s3ntinel");
        let b = a.clone().with_env("TOKEN".parse().expect("a name"), "other");
        let diff = a.diff(&b);
        assert_eq!(diff.len(), 1);
        assert!(!format!("{diff:?}").contains("s3ntinel"));
        let with = a.clone().with_admin("a@b.example", "x".into());
        let withheld = a.with_admin("a@b.example", Secret::withheld());
        assert!(with.diff(&withheld).is_empty());
    }
}
