//! Whether the platform can do its work.

use jiff::Timestamp;
use saasodoo_core::{BackendKind, Error, ErrorKind, Health, HealthState, Result};
use serde_json::Value;

use crate::backend::Inner;
use crate::config::QuotaPolicy;
use crate::wire::segment;

const MANAGER_ADVICE: &str = "give the address of one in DOCKER_HOST";

fn no_manager(info: &Value) -> String {
    let state = info.pointer("/Swarm/LocalNodeState").and_then(Value::as_str);
    format!(
        "this node is not a swarm manager (its state is {})",
        state.unwrap_or_default()
    )
}

impl Inner {
    /// The id of the swarm. Not from `/swarm`, whose answer holds the tokens with which nodes join.
    pub(crate) async fn cluster_id(&self) -> Result<String> {
        let info = self.wire.get_json("/info", &[]).await?;
        // A worker does not know it.
        let id = info.pointer("/Swarm/Cluster/ID").and_then(Value::as_str);
        match id.filter(|id| !id.is_empty()) {
            Some(id) => Ok(id.to_owned()),
            None => Err(Error::new(ErrorKind::MissingPrerequisite, no_manager(&info)).with_advice(MANAGER_ADVICE)),
        }
    }

    pub(crate) async fn health(&self) -> Health {
        let mut health = Health::new(BackendKind::Swarm, Timestamp::now());
        let (version, info) = futures::join!(self.wire.get_json("/version", &[]), self.wire.get_json("/info", &[]));
        let text = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_str).map(str::to_owned);
        match version {
            Ok(version) => {
                health.server_version = text(&version, "/Version");
                let api = text(&version, "/ApiVersion").unwrap_or_default();
                health.push("reachable", HealthState::Ok, format!("Docker API {api}"));
            }
            Err(failure) => {
                health.push("reachable", HealthState::Failed, Error::from(failure).to_string());
                return health;
            }
        }
        let (state, detail) = match info {
            Ok(info) if info.pointer("/Swarm/ControlAvailable").and_then(Value::as_bool) == Some(true) => {
                (HealthState::Ok, "this node is a manager".to_owned())
            }
            Ok(info) => (HealthState::Failed, format!("{}; {MANAGER_ADVICE}", no_manager(&info))),
            Err(failure) => (HealthState::Failed, Error::from(failure).to_string()),
        };
        health.push("manager", state, detail);
        for (name, (state, detail)) in [
            ("network", self.check_network().await),
            ("storage", self.check_storage().await),
            ("image", self.check_image().await),
            ("watch", self.hub.check()),
        ] {
            health.push(name, state, detail);
        }
        health
    }

    async fn check_network(&self) -> (HealthState, String) {
        let name = &self.config.network;
        let answer = match segment(name) {
            Ok(name) => self.wire.get_json(&format!("/networks/{name}"), &[]).await,
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(network) if network.get("Scope").and_then(Value::as_str) == Some("swarm") => {
                (HealthState::Ok, format!("{name} exists"))
            }
            Ok(_) => (
                HealthState::Failed,
                format!("{name} is not a network of the swarm; make it with --driver overlay"),
            ),
            Err(failure) => (HealthState::Failed, Error::from(failure).to_string()),
        }
    }

    async fn check_storage(&self) -> (HealthState, String) {
        let root = self.storage.path().display();
        match self.storage.probe().await {
            Ok(true) => (HealthState::Ok, format!("{root} is writable and takes quotas")),
            Ok(false) if self.config.quota == QuotaPolicy::BestEffort => {
                (HealthState::Degraded, format!("{root} is writable and takes no quotas"))
            }
            Ok(false) => (
                HealthState::Failed,
                format!("{root} takes no quotas; mount CephFS there, or configure best-effort quotas"),
            ),
            Err(error) => (HealthState::Failed, error.to_string()),
        }
    }

    async fn check_image(&self) -> (HealthState, String) {
        let image = &self.config.common.image;
        match self.wire.get_json(&format!("/images/{image}/json"), &[]).await {
            Ok(_) => return (HealthState::Ok, format!("{image} is on this node")),
            Err(failure) if failure.is_missing() => {}
            Err(failure) => return (HealthState::Degraded, Error::from(failure).to_string()),
        }
        let path = format!("/distribution/{image}/json");
        match self.wire.get_with_auth(&path, self.config.registry.as_ref()).await {
            Ok(_) => (HealthState::Ok, format!("{image} can be pulled")),
            Err(failure) => {
                let error = Error::from(failure);
                let what = if error.kind() == ErrorKind::NotFound {
                    "is not"
                } else {
                    "may not be"
                };
                (
                    HealthState::Degraded,
                    format!(
                        "{image} is not on this node and {what} in its registry: {}",
                        error.message()
                    ),
                )
            }
        }
    }
}
