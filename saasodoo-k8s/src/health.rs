//! Health: whether the platform can do what this backend asks of it. Asks the server, and changes nothing.

use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use saasodoo_core::{BackendKind, ErrorKind, Health, HealthState};
use serde_json::{Value, json};

use crate::backend::Inner;
use crate::rbac::{Permission, custom_kind, permissions};
use crate::route::RouteView;
use crate::wire::{ACCESS_REVIEW, NAMESPACE, STORAGE_CLASS, Stub};

/// How many questions about permissions are asked at once.
const AT_ONCE: usize = 8;

/// One finding: its name, its state and what was seen.
type Finding = (&'static str, HealthState, String);

impl Inner {
    pub(crate) async fn health(&self) -> Health {
        let mut health = Health::new(BackendKind::Kubernetes, Timestamp::now());
        match self.wire.version().await {
            Ok(version) => {
                health.push("reachable", HealthState::Ok, format!("the API server is {version}"));
                health.server_version = Some(version);
            }
            Err(error) => {
                // Nothing else can be said.
                health.push("reachable", HealthState::Failed, error.to_string());
                return health;
            }
        }
        let (permissions, class, custom, namespace) = futures::join!(
            self.permitted(),
            self.class_exists(),
            self.custom_kind_exists(),
            self.namespace_exists(),
        );
        for (name, state, detail) in [permissions, namespace, class, custom] {
            health.push(name, state, detail);
        }
        if let Some((state, detail)) = self.cache.health() {
            health.push("watch", state, detail);
        }
        health
    }

    /// Asks about each permission. One that is missing names what stops working.
    async fn permitted(&self) -> Finding {
        let wanted = permissions(&self.config);
        let total = wanted.len();
        let answers: Vec<(Permission, Result<bool, String>)> = stream::iter(wanted)
            .map(|permission| async move {
                let allowed = self.allowed(&permission).await;
                (permission, allowed)
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
        let mut state = HealthState::Ok;
        let mut missing = Vec::new();
        for (permission, allowed) in answers {
            let Permission {
                group,
                resource,
                verb,
                required,
                purpose,
                ..
            } = permission;
            let object = if group.is_empty() {
                resource
            } else {
                format!("{resource}.{group}")
            };
            let worse = if required {
                HealthState::Failed
            } else {
                HealthState::Degraded
            };
            match allowed {
                Ok(true) => {}
                Ok(false) => {
                    state = state.max(worse);
                    missing.push(format!("{verb} {object} ({purpose})"));
                }
                Err(why) => {
                    state = state.max(HealthState::Degraded);
                    missing.push(format!("{verb} {object} (not known: {why})"));
                }
            }
        }
        let detail = if missing.is_empty() {
            format!("all {total} are granted")
        } else {
            format!("missing: {}; apply the roles that rbac_yaml prints", missing.join(", "))
        };
        ("permissions", state, detail)
    }

    async fn allowed(&self, permission: &Permission) -> Result<bool, String> {
        let (resource, subresource) = permission
            .resource
            .split_once('/')
            .unwrap_or((permission.resource.as_str(), ""));
        let mut attributes = json!({
            "group": permission.group,
            "resource": resource,
            "subresource": subresource,
            "verb": permission.verb,
        });
        if !permission.cluster {
            attributes["namespace"] = json!(self.wire.namespace());
        }
        let review = json!({
            "apiVersion": ACCESS_REVIEW.api_version(),
            "kind": ACCESS_REVIEW.kind,
            "spec": {"resourceAttributes": attributes},
        });
        let answer: Value = self
            .wire
            .create(&ACCESS_REVIEW, &review)
            .await
            .map_err(|error| error.message().to_owned())?;
        Ok(answer["status"]["allowed"] == true)
    }

    async fn class_exists(&self) -> Finding {
        let class = &self.config.common.storage_class;
        let name = "storage_class";
        match self.wire.get::<Value>(&STORAGE_CLASS, class).await {
            Ok(Some(found)) if found["allowVolumeExpansion"] != true => (
                name,
                HealthState::Degraded,
                format!("{class} is there and does not let storage grow (allowVolumeExpansion)"),
            ),
            Ok(Some(_)) => (name, HealthState::Ok, format!("{class} is there")),
            Ok(None) => (name, HealthState::Failed, format!("there is no storage class {class}")),
            Err(error) if error.kind() == ErrorKind::Forbidden => {
                (name, HealthState::Degraded, format!("{class} may not be read"))
            }
            Err(error) => (name, HealthState::Failed, error.to_string()),
        }
    }

    /// A list of one tells whether the kind is served, and needs no permission that is not needed anyway.
    async fn custom_kind_exists(&self) -> Finding {
        let name = "custom_resources";
        let Some(kind) = custom_kind(&self.config) else {
            return (name, HealthState::Ok, "none are needed".to_owned());
        };
        match self.wire.page::<RouteView>(&kind, "", 1, None).await {
            Ok(_) => (name, HealthState::Ok, format!("{} is served", kind.kind)),
            Err(error) => (name, HealthState::Failed, format!("{}: {error}", kind.kind)),
        }
    }

    async fn namespace_exists(&self) -> Finding {
        let name = "namespace";
        let namespace = self.wire.namespace();
        match self.wire.get::<Stub>(&NAMESPACE, namespace).await {
            Ok(Some(_)) => (name, HealthState::Ok, format!("{namespace} is there")),
            Ok(None) => (name, HealthState::Failed, format!("there is no namespace {namespace}")),
            Err(error) if error.kind() == ErrorKind::Forbidden => {
                (name, HealthState::Degraded, format!("{namespace} may not be read"))
            }
            Err(error) => (name, HealthState::Failed, error.to_string()),
        }
    }
}
