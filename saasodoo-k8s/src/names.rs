//! The labels, annotations and fixed names of the objects, and how an object is told to belong to an instance.

use saasodoo_core::{Error, InstanceId, ObjectName};
use sha2::{Digest, Sha256};

use crate::views::View;

/// The guide's labels, which its tools select by.
pub(crate) const APP: &str = "app";
pub(crate) const MANAGED_BY: &str = "managed-by";
pub(crate) const SHORT_ID: &str = "instance-id";
pub(crate) const DATABASE: &str = "database";
/// The label with the whole UUID. An object without it was made by the guide's client.
pub(crate) const FULL_ID: &str = "app.kubernetes.io/instance";
pub(crate) const VERSION: &str = "app.kubernetes.io/version";
pub(crate) const CUSTOMER: &str = "saasodoo.io/customer-id";
/// One label for each host, so that a host is looked up by a selector.
pub(crate) const HOST_PREFIX: &str = "saasodoo.io/host-";

pub(crate) const DATABASE_NAME: &str = "saasodoo.io/database-name";
pub(crate) const DISPLAY_NAME: &str = "saasodoo.io/display-name";
pub(crate) const ODOO_VERSION: &str = "saasodoo.io/odoo-version";
pub(crate) const STORAGE: &str = "saasodoo.io/storage";
pub(crate) const CLAIM: &str = "saasodoo.io/claim";
pub(crate) const HOSTS: &str = "saasodoo.io/hosts";
pub(crate) const SUBDOMAIN: &str = "saasodoo.io/subdomain";
pub(crate) const CUSTOM_DOMAINS: &str = "saasodoo.io/custom-domains";
pub(crate) const ADDONS: &str = "saasodoo.io/addons";
/// The requests that were computed and not asked for, so that a reader can tell them from those that were.
pub(crate) const DEFAULT_REQUESTS: &str = "saasodoo.io/default-requests";
pub(crate) const STARTUP_SECONDS: &str = "saasodoo.io/startup-seconds";
/// The probes' period in seconds, where the readiness probe has a shorter one.
pub(crate) const PROBE_PERIOD: &str = "saasodoo.io/probe-period-seconds";
pub(crate) const TRANSITION: &str = "saasodoo.io/transition";
/// Generations between which only metadata changed: the server counts those too, but no pod is the worse for it.
pub(crate) const QUIET: &str = "saasodoo.io/quiet-generations";
pub(crate) const HOLD: &str = "saasodoo.io/hold";
/// Which call made an object: tells, after an answer was lost, whether the object is this call's.
pub(crate) const CREATION: &str = "saasodoo.io/creation";
/// [`CreateOptions::token`](saasodoo_core::CreateOptions::token).
pub(crate) const TOKEN: &str = "saasodoo.io/creation-token";
/// Where the data of the instance came from: `new`, `retained`, or `directory:…`.
pub(crate) const DATA: &str = "saasodoo.io/data";
/// Which update wrote last: tells, after an answer was lost, whether the change is this call's.
pub(crate) const CHANGE: &str = "saasodoo.io/change";
pub(crate) const RESTARTED_AT: &str = "saasodoo.io/restarted-at";
pub(crate) const RETAINED_AT: &str = "saasodoo.io/retained-at";

/// All that both this library and the guide's client make.
pub(crate) const SELECTOR: &str = "managed-by=saasodoo,app=odoo";

pub(crate) const CONTAINER: &str = "odoo";
pub(crate) const DATA_VOLUME: &str = "odoo-data";
pub(crate) const SECRET_VOLUME: &str = "odoo-secrets";
pub(crate) const SECRET_PATH: &str = "/run/secrets/saasodoo";
pub(crate) const HTTP_PORT: u16 = 8069;
pub(crate) const WEBSOCKET_PORT: u16 = 8072;
pub(crate) const DATABASE_PASSWORD_KEY: &str = "database-password";
pub(crate) const ADMIN_PASSWORD_KEY: &str = "admin-password";

/// The selector for everything that may belong to the instance.
pub(crate) fn selector_of(id: InstanceId) -> String {
    format!("{SELECTOR},{SHORT_ID}={}", id.short())
}

/// The label that stands for a host.
pub(crate) fn host_label(host: &str) -> String {
    format!("{HOST_PREFIX}{}", hash(host))
}

/// The first 80 bits of a hash, as text that any label takes.
pub(crate) fn hash(text: &str) -> String {
    use std::fmt::Write as _;
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(10).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The name of the data claim of a new instance. Of an existing one it is read from its Deployment.
pub(crate) fn claim_name(name: &ObjectName) -> String {
    format!("{name}-storage")
}

/// Which instance an object says it belongs to.
pub(crate) fn id_of(object: &impl View) -> Option<InstanceId> {
    object
        .label(FULL_ID)
        .or_else(|| object.label(SHORT_ID))
        .and_then(|text| text.parse().ok())
}

/// True for an object that this library made.
pub(crate) fn is_ours(object: &impl View) -> bool {
    object.label(FULL_ID).is_some()
}

/// Finds the one object of the instance among those whose short id agrees. An object with the whole UUID wins over
/// those of the guide, which have eight digits only; several candidates are a contradiction that a person must solve.
pub(crate) fn the_one<T: View>(id: InstanceId, objects: Vec<T>) -> Result<Option<T>, Error> {
    let mut exact = Vec::new();
    let mut alike = Vec::new();
    for object in objects {
        match id_of(&object) {
            Some(other) if other == id => exact.push(object),
            Some(other) if other.matches(id) => alike.push(object),
            _ => {}
        }
    }
    let mut candidates = if exact.is_empty() { alike } else { exact };
    if candidates.len() > 1 {
        let names: Vec<&str> = candidates.iter().map(View::name).collect();
        return Err(
            Error::conflict(["id"], format!("several objects have this id: {}", names.join(", ")))
                .with_instance(id)
                .with_advice("use the whole UUID, or remove what does not belong there"),
        );
    }
    Ok(candidates.pop())
}
