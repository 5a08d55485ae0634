//! Settings that all backends share, from a builder or from the environment.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::spec::{server_host, server_port};
use crate::{
    DatabaseEndpoint, DatabaseName, Error, ErrorKind, Host, ImageRef, InstanceId, InstanceSpec, ObjectName, Result,
    Secret,
};

/// Settings that all backends share, with the migration guide's variable names and defaults.
///
/// | variable | field | default |
/// |---|---|---|
/// | `KUBERNETES_NAMESPACE` | [`namespace`](Self::namespace) | `saasodoo` |
/// | `ODOO_IMAGE` | [`image`](Self::image) | `bitnami/odoo:17` |
/// | `STORAGE_CLASS_NAME` | [`storage_class`](Self::storage_class) | `cephfs-saasodoo` |
/// | `ODOO_POSTGRES_HOST` | [`postgres_host`](Self::postgres_host) | `postgres` |
/// | `ODOO_POSTGRES_PORT` | [`postgres_port`](Self::postgres_port) | `5432` |
/// | `BASE_DOMAIN` | [`base_domain`](Self::base_domain) | `saasodoo.com` |
/// | `RETAIN_STORAGE` | [`retain_storage`](Self::retain_storage) | `false` |
///
/// ```
/// use saasodoo_core::Config;
///
/// let config = Config::builder().base_domain("tenants.example".parse()?).build();
/// assert_eq!(config.namespace, "saasodoo");
///
/// let error = Config::from_vars([("ODOO_POSTGRES_PORT", "many")]).unwrap_err();
/// assert_eq!(error.field(), Some("ODOO_POSTGRES_PORT"));
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The Kubernetes namespace of all instances.
    pub namespace: String,
    /// The image of instances that do not choose one.
    pub image: ImageRef,
    /// The storage class of new claims.
    pub storage_class: String,
    /// The PostgreSQL server of instances that were not given their own.
    pub postgres_host: String,
    /// Its port.
    pub postgres_port: u16,
    /// The domain under which every instance has its default host.
    pub base_domain: Host,
    /// `true`: no data is ever deleted through this library, not even with a purge token. `false`, the guide's default,
    /// does **not** delete data with an instance, as the guide's code does: that takes a
    /// [`PurgeToken`](crate::PurgeToken) always.
    pub retain_storage: bool,
    /// How long calls to a server may take.
    pub deadlines: Deadlines,
}

/// How long calls to a server may take. Every one of them has a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deadlines {
    /// One request that reads. Default: 15 s.
    pub read: Duration,
    /// One request that writes. Default: 30 s.
    pub write: Duration,
    /// A whole operation with all its requests. Default: 120 s.
    pub operation: Duration,
    /// Undoing what a failed operation has made; runs even when the caller is gone. Default: 60 s.
    pub cleanup: Duration,
    /// Seeing the last process of an instance end, in a deletion. Must be longer than the longest
    /// [`stop_grace_seconds`](crate::Scheduling::stop_grace_seconds) in use. Default: 120 s.
    pub termination: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            read: Duration::from_secs(15),
            write: Duration::from_secs(30),
            operation: Duration::from_secs(120),
            cleanup: Duration::from_secs(60),
            termination: Duration::from_secs(120),
        }
    }
}

impl Config {
    /// The names of the variables that [`from_env`](Self::from_env) reads.
    pub const VARIABLES: [&'static str; 7] = [
        "KUBERNETES_NAMESPACE",
        "ODOO_IMAGE",
        "STORAGE_CLASS_NAME",
        "ODOO_POSTGRES_HOST",
        "ODOO_POSTGRES_PORT",
        "BASE_DOMAIN",
        "RETAIN_STORAGE",
    ];

    /// Starts from the defaults.
    #[must_use]
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder {
            config: Self::default(),
        }
    }

    /// Reads the process' environment. A variable that is not set, or is empty, has its default.
    ///
    /// # Errors
    /// [`Configuration`](ErrorKind::Configuration) naming the variable, for a value that is not acceptable.
    pub fn from_env() -> Result<Self> {
        let mut vars = Vec::new();
        for name in Self::VARIABLES {
            match std::env::var(name) {
                Ok(value) => vars.push((name, value)),
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => return Err(bad(name, "is not UTF-8")),
            }
        }
        Self::from_vars(vars)
    }

    /// Reads these variables; others among them are ignored.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_vars<K: AsRef<str>, V: Into<String>>(vars: impl IntoIterator<Item = (K, V)>) -> Result<Self> {
        let vars: BTreeMap<String, String> = vars
            .into_iter()
            .map(|(key, value)| (key.as_ref().to_owned(), value.into()))
            .collect();
        let var = |name: &'static str| {
            vars.get(name)
                .filter(|value| !value.is_empty())
                .map(|value| (name, value))
        };
        let mut config = Self::default();
        if let Some((name, value)) = var("KUBERNETES_NAMESPACE") {
            config.namespace = dns_label(value).map_err(|why| bad(name, why))?;
        }
        if let Some((name, value)) = var("ODOO_IMAGE") {
            config.image = value.parse().map_err(|error: Error| bad(name, error.message()))?;
        }
        if let Some((name, value)) = var("STORAGE_CLASS_NAME") {
            config.storage_class = dns_subdomain(value).map_err(|why| bad(name, why))?;
        }
        if let Some((name, value)) = var("ODOO_POSTGRES_HOST") {
            server_host(value).map_err(|why| bad(name, why))?;
            config.postgres_host.clone_from(value);
        }
        if let Some((name, value)) = var("ODOO_POSTGRES_PORT") {
            let port = value
                .parse()
                .map_err(|_| bad(name, format!("{value:?} is not a port between 1 and 65535")))?;
            server_port(port).map_err(|why| bad(name, why))?;
            config.postgres_port = port;
        }
        if let Some((name, value)) = var("BASE_DOMAIN") {
            config.base_domain = value.parse().map_err(|error: Error| bad(name, error.message()))?;
        }
        if let Some((name, value)) = var("RETAIN_STORAGE") {
            config.retain_storage = match value.to_ascii_lowercase().as_str() {
                "true" => true,
                "false" => false,
                _ => return Err(bad(name, format!("{value:?} is neither true nor false"))),
            };
        }
        Ok(config)
    }

    /// A spec with this configuration's image.
    #[must_use]
    pub fn instance(&self, id: InstanceId, database_name: DatabaseName) -> InstanceSpec {
        InstanceSpec::new(id, database_name, self.image.clone())
    }

    /// A database on this configuration's server.
    #[must_use]
    pub fn database(&self, name: impl Into<String>, user: impl Into<String>, password: Secret) -> DatabaseEndpoint {
        let mut endpoint = DatabaseEndpoint::new(self.postgres_host.clone(), name, user, password);
        endpoint.port = self.postgres_port;
        endpoint
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: "saasodoo".to_owned(),
            image: "bitnami/odoo:17"
                .parse()
                .unwrap_or_else(|_| unreachable!("a valid image")),
            storage_class: "cephfs-saasodoo".to_owned(),
            postgres_host: "postgres".to_owned(),
            postgres_port: 5432,
            base_domain: "saasodoo.com".parse().unwrap_or_else(|_| unreachable!("a valid host")),
            retain_storage: false,
            deadlines: Deadlines::default(),
        }
    }
}

/// Builds a [`Config`] from its defaults. What it takes is already of the right type, so it cannot fail, but for the
/// names, which are checked where they are given.
#[derive(Debug, Clone)]
pub struct ConfigBuilder {
    config: Config,
}

impl ConfigBuilder {
    /// The Kubernetes namespace.
    ///
    /// # Errors
    /// [`Configuration`](ErrorKind::Configuration) when it is not a DNS label.
    pub fn namespace(mut self, namespace: &str) -> Result<Self> {
        self.config.namespace = dns_label(namespace).map_err(|why| bad("namespace", why))?;
        Ok(self)
    }

    /// The image of instances that do not choose one.
    #[must_use]
    pub fn image(mut self, image: ImageRef) -> Self {
        self.config.image = image;
        self
    }

    /// The storage class of new claims.
    #[must_use]
    pub fn storage_class(mut self, class: &ObjectName) -> Self {
        self.config.storage_class = class.to_string();
        self
    }

    /// The PostgreSQL server of instances that were not given their own.
    ///
    /// # Errors
    /// [`Configuration`](ErrorKind::Configuration) when it is no host or address, or the port is 0.
    pub fn postgres(mut self, host: impl Into<String>, port: u16) -> Result<Self> {
        let host = host.into();
        server_host(&host).map_err(|why| bad("postgres_host", why))?;
        server_port(port).map_err(|why| bad("postgres_port", why))?;
        self.config.postgres_host = host;
        self.config.postgres_port = port;
        Ok(self)
    }

    /// The domain under which every instance has its default host.
    #[must_use]
    pub fn base_domain(mut self, domain: Host) -> Self {
        self.config.base_domain = domain;
        self
    }

    /// Whether to refuse every deletion of data.
    #[must_use]
    pub fn retain_storage(mut self, retain: bool) -> Self {
        self.config.retain_storage = retain;
        self
    }

    /// How long calls to a server may take.
    #[must_use]
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.config.deadlines = deadlines;
        self
    }

    /// The configuration.
    #[must_use]
    pub fn build(self) -> Config {
        self.config
    }
}

fn bad(variable: &str, why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Configuration, why).with_field(variable)
}

/// DNS-1123: what Kubernetes takes as the name of most objects, a storage class among them.
fn dns_subdomain(text: &str) -> Result<String, String> {
    if text.len() <= 253 && text.split('.').all(|label| !label.is_empty() && is_dns_part(label)) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a DNS subdomain"))
    }
}

/// A part of a subdomain: as a label, of any length.
fn is_dns_part(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn dns_label(text: &str) -> Result<String, String> {
    if (1..=63).contains(&text.len()) && is_dns_part(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a DNS label"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_with_the_guides_names() {
        let config = Config::from_vars([
            ("KUBERNETES_NAMESPACE", "tenants"),
            ("ODOO_IMAGE", "bitnamilegacy/odoo:18"),
            ("STORAGE_CLASS_NAME", "fast"),
            ("ODOO_POSTGRES_HOST", "db.internal"),
            ("ODOO_POSTGRES_PORT", "6432"),
            ("BASE_DOMAIN", "tenants.example"),
            ("RETAIN_STORAGE", "True"),
            ("PATH", "/bin"),
        ])
        .expect("good values");
        assert_eq!(config.namespace, "tenants");
        assert_eq!(config.image.as_str(), "bitnamilegacy/odoo:18");
        assert_eq!(config.storage_class, "fast");
        assert_eq!(config.database("d", "u", "p".into()).port, 6432);
        assert_eq!(config.base_domain.as_str(), "tenants.example");
        assert!(config.retain_storage);
        assert_eq!(
            Config::from_vars([("BASE_DOMAIN", "")]).expect("empty is unset"),
            Config::default()
        );
    }

    #[test]
    fn the_builder_checks_names_as_the_environment_does() {
        for (host, port, field) in [
            ("a b", 5432, "postgres_host"),
            ("", 5432, "postgres_host"),
            ("db", 0, "postgres_port"),
        ] {
            let error = Config::builder().postgres(host, port).expect_err(field);
            assert_eq!((error.kind(), error.field()), (ErrorKind::Configuration, Some(field)));
        }
        let config = Config::builder().postgres("db.internal", 5433).expect("valid").build();
        assert_eq!(
            (config.postgres_host.as_str(), config.postgres_port),
            ("db.internal", 5433)
        );
        let dotted = Config::from_vars([("STORAGE_CLASS_NAME", "rook.ceph-fs")]).expect("valid");
        assert_eq!(dotted.storage_class, "rook.ceph-fs");
    }

    #[test]
    fn a_bad_value_names_its_variable() {
        for (name, value) in [
            ("KUBERNETES_NAMESPACE", "../kube-system"),
            ("ODOO_IMAGE", "odoo 17"),
            ("STORAGE_CLASS_NAME", "a/b"),
            ("STORAGE_CLASS_NAME", "Fast"),
            ("STORAGE_CLASS_NAME", "a..b"),
            ("STORAGE_CLASS_NAME", "-fast"),
            ("ODOO_POSTGRES_HOST", "a b"),
            ("ODOO_POSTGRES_PORT", "0"),
            ("ODOO_POSTGRES_PORT", "65536"),
            ("BASE_DOMAIN", "localhost"),
            ("RETAIN_STORAGE", "yes"),
        ] {
            let error = Config::from_vars([(name, value)]).expect_err(name);
            assert_eq!(
                (error.kind(), error.field()),
                (ErrorKind::Configuration, Some(name)),
                "{error}"
            );
        }
    }
}
