//! Settings of the Swarm backend, from a builder or from the environment.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use http::HeaderValue;
use saasodoo_core::{Config, Error, ErrorKind, Result, Secret};

use crate::error::{Answer, Failure};

/// Settings of the Swarm backend.
///
/// [`from_env`](Self::from_env) reads Docker's own variables, those of [`Config`], and these:
///
/// | variable | field | default |
/// |---|---|---|
/// | `DOCKER_HOST` | [`host`](Self::host) | `unix:///var/run/docker.sock` |
/// | `DOCKER_TLS_VERIFY`, `DOCKER_CERT_PATH` | [`host`](Self::host) | no TLS |
/// | `SAASODOO_SWARM_NETWORK` | [`network`](Self::network) | `saasodoo-network` |
/// | `SAASODOO_DATA_ROOT` | [`data_root`](Self::data_root) | `/mnt/cephfs/odoo_instances` |
/// | `SAASODOO_QUOTA` | [`quota`](Self::quota): `required` or `best-effort` | `required` |
/// | `SAASODOO_CREDENTIALS` | [`credentials`](Self::credentials): `secrets` or `environment` | `secrets` |
/// | `SAASODOO_IMAGE_RESOLUTION` | [`image_resolution`](Self::image_resolution): `tag` or `digest` | `tag` |
///
/// ```
/// use saasodoo_swarm::SwarmConfig;
///
/// let config = SwarmConfig::from_vars([("DOCKER_HOST", "tcp://manager:2375")])?;
/// assert_eq!(config.network, "saasodoo-network");
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SwarmConfig {
    /// What all backends share.
    pub common: Config,
    /// The daemon of a swarm manager.
    pub host: DockerHost,
    /// The overlay network of all instances and of Traefik.
    pub network: String,
    /// The directory under which each instance has its data directory: mounted at the same path on every node and
    /// where this process runs.
    pub data_root: PathBuf,
    /// Whether a file system that enforces no quotas will do.
    pub quota: QuotaPolicy,
    /// How passwords reach a new instance.
    pub credentials: Credentials,
    /// What a new instance's service names its image by.
    pub image_resolution: ImageResolution,
    /// Credentials for the registry of the images.
    pub registry: Option<RegistryAuth>,
    /// Traefik's entry points for new instances; none named: Traefik's default ones, as today.
    pub entry_points: Vec<String>,
    /// Traefik's certificate resolver for new instances; its presence makes their routes TLS. Today there is none.
    pub cert_resolver: Option<String>,
    /// How often a watch looks at tasks.
    pub polling: Polling,
}

/// How to reach the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DockerHost {
    /// A Unix socket.
    Unix(PathBuf),
    /// Plain HTTP to `host:port`.
    Tcp(String),
    /// HTTPS with a client certificate to `host:port`.
    Tls {
        /// `host:port`.
        address: String,
        /// The directory with `ca.pem`, `cert.pem` and `key.pem`.
        certificates: PathBuf,
    },
}

/// Whether a file system that enforces no quotas will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaPolicy {
    /// A new instance needs its quota enforced; without quotas nothing is created.
    #[default]
    Required,
    /// The quota is set where that works. The storage size is only a wish elsewhere.
    BestEffort,
}

/// How passwords reach a new instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// Docker secrets, mounted and named by `<VAR>_FILE`. They cannot be read back.
    #[default]
    Secrets,
    /// Plain environment variables, as the system in production has them: everybody who can inspect the service can
    /// read them.
    Environment,
}

/// What a new instance's service names its image by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageResolution {
    /// By its tag, as today: each node asks the registry what the tag means whenever it starts a task, and uses what it
    /// has when the registry does not answer.
    #[default]
    Tag,
    /// By the digest that the tag has in the registry when the instance is created or its image changes: all nodes run
    /// the same image, and a node that has it does not pull.
    Digest,
}

/// How often a watch looks at tasks, about whose changes Swarm sends no events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Polling {
    /// While an instance is on its way to another status. Default: 1 s.
    pub fast: Duration,
    /// Otherwise: this is how long a crash can go unseen. Default: 10 s.
    pub slow: Duration,
}

impl Default for Polling {
    fn default() -> Self {
        Self {
            fast: Duration::from_secs(1),
            slow: Duration::from_secs(10),
        }
    }
}

impl Polling {
    /// These intervals.
    #[must_use]
    pub const fn new(fast: Duration, slow: Duration) -> Self {
        Self { fast, slow }
    }
}

/// Credentials for a registry, kept by Swarm with each service and given to the nodes.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryAuth {
    username: String,
    password: Secret,
    server: String,
}

impl RegistryAuth {
    /// A user of the registry at `server`, such as `registry.example.com`.
    #[must_use]
    pub fn new(username: impl Into<String>, password: Secret, server: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            password,
            server: server.into(),
        }
    }

    /// The `X-Registry-Auth` header: JSON in URL-safe base64 with padding.
    pub(crate) fn header(&self) -> Answer<HeaderValue> {
        let document = serde_json::json!({
            "username": self.username,
            "password": self.password.expose().unwrap_or_default(),
            "serveraddress": self.server,
        });
        let mut value = HeaderValue::from_str(&URL_SAFE.encode(document.to_string()))
            .map_err(|_| Failure::unexpected("the registry credentials do not fit into a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} {:?}", self.username, self.server, self.password)
    }
}

impl SwarmConfig {
    /// The names of the variables that [`from_env`](Self::from_env) reads, beside those of [`Config`].
    pub const VARIABLES: [&'static str; 8] = [
        "DOCKER_HOST",
        "DOCKER_TLS_VERIFY",
        "DOCKER_CERT_PATH",
        "SAASODOO_SWARM_NETWORK",
        "SAASODOO_DATA_ROOT",
        "SAASODOO_QUOTA",
        "SAASODOO_CREDENTIALS",
        "SAASODOO_IMAGE_RESOLUTION",
    ];

    /// Today's layout, on the local socket.
    #[must_use]
    pub fn new(common: Config) -> Self {
        Self {
            common,
            host: DockerHost::Unix(PathBuf::from("/var/run/docker.sock")),
            network: "saasodoo-network".to_owned(),
            data_root: PathBuf::from("/mnt/cephfs/odoo_instances"),
            quota: QuotaPolicy::default(),
            credentials: Credentials::default(),
            image_resolution: ImageResolution::default(),
            registry: None,
            entry_points: Vec::new(),
            cert_resolver: None,
            polling: Polling::default(),
        }
    }

    /// Reads the process' environment. A variable that is not set, or is empty, has its default.
    ///
    /// # Errors
    /// [`Configuration`](ErrorKind::Configuration) naming the variable, for a value that is not acceptable.
    pub fn from_env() -> Result<Self> {
        let mut vars = Vec::new();
        for name in Config::VARIABLES.into_iter().chain(Self::VARIABLES) {
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
        let vars: Vec<(String, String)> = vars
            .into_iter()
            .map(|(key, value)| (key.as_ref().to_owned(), value.into()))
            .collect();
        let var = |name: &str| {
            vars.iter()
                .find(|(key, value)| key == name && !value.is_empty())
                .map(|(_, value)| value.as_str())
        };
        let mut config = Self::new(Config::from_vars(vars.iter().map(|(key, value)| (key, value.clone())))?);
        // As docker-py and bollard have it, and unlike the documentation, any value switches verification on; there is
        // no TLS without verification here.
        let tls = var("DOCKER_TLS_VERIFY").is_some();
        if let Some(host) = var("DOCKER_HOST") {
            config.host = docker_host(host, tls, var("DOCKER_CERT_PATH"))?;
        } else if tls {
            return Err(bad("DOCKER_HOST", "is not set although DOCKER_TLS_VERIFY is"));
        }
        if let Some(network) = var("SAASODOO_SWARM_NETWORK") {
            config.network = checked_network(network)?;
        }
        if let Some(root) = var("SAASODOO_DATA_ROOT") {
            config.data_root = PathBuf::from(root);
        }
        if let Some(quota) = var("SAASODOO_QUOTA") {
            config.quota = match quota {
                "required" => QuotaPolicy::Required,
                "best-effort" => QuotaPolicy::BestEffort,
                _ => return Err(bad("SAASODOO_QUOTA", "is neither required nor best-effort")),
            };
        }
        if let Some(credentials) = var("SAASODOO_CREDENTIALS") {
            config.credentials = match credentials {
                "secrets" => Credentials::Secrets,
                "environment" => Credentials::Environment,
                _ => return Err(bad("SAASODOO_CREDENTIALS", "is neither secrets nor environment")),
            };
        }
        if let Some(resolution) = var("SAASODOO_IMAGE_RESOLUTION") {
            config.image_resolution = match resolution {
                "tag" => ImageResolution::Tag,
                "digest" => ImageResolution::Digest,
                _ => return Err(bad("SAASODOO_IMAGE_RESOLUTION", "is neither tag nor digest")),
            };
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types of the fields cannot.
    ///
    /// # Errors
    /// [`Configuration`](ErrorKind::Configuration) naming the field.
    pub fn validate(&self) -> Result<()> {
        checked_network(&self.network)?;
        let root = self.data_root.to_str().unwrap_or_default();
        let plain = self.data_root.is_absolute()
            && self.data_root.parent().is_some()
            && !root.is_empty()
            && !root.contains(['\0', '\n'])
            && !root.split('/').any(|part| part == "..");
        if !plain {
            return Err(bad("SAASODOO_DATA_ROOT", "is not the absolute path of a directory below /"));
        }
        for name in self.entry_points.iter().chain(&self.cert_resolver) {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
                return Err(bad("entry_points", format!("{name:?} is not a name of Traefik's configuration")));
            }
        }
        if self.polling.fast < Duration::from_millis(50) || self.polling.slow < self.polling.fast {
            return Err(bad("polling", "the fast interval is below 50 ms or above the slow one"));
        }
        Ok(())
    }
}

fn docker_host(text: &str, tls: bool, certificates: Option<&str>) -> Result<DockerHost> {
    let address = |rest: &str| {
        let rest = rest.trim_end_matches('/');
        let (host, port) = rest
            .rsplit_once(':')
            .ok_or_else(|| bad("DOCKER_HOST", "has no port, which Docker does not default"))?;
        let ok = !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
            && port.parse::<u16>().is_ok_and(|port| port > 0);
        if ok {
            Ok(rest.to_owned())
        } else {
            Err(bad("DOCKER_HOST", format!("{rest:?} is not like manager:2376")))
        }
    };
    match text.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(DockerHost::Unix(PathBuf::from(path))),
        Some(("tcp" | "http", rest)) if !tls => Ok(DockerHost::Tcp(address(rest)?)),
        Some(("tcp" | "https", rest)) => Ok(DockerHost::Tls {
            address: address(rest)?,
            certificates: PathBuf::from(
                certificates.ok_or_else(|| bad("DOCKER_CERT_PATH", "is not set, and TLS needs it"))?,
            ),
        }),
        _ => Err(bad("DOCKER_HOST", "is neither unix:///path nor tcp://host:port")
            .with_advice("give the address of a swarm manager; ssh is not supported")),
    }
}

fn checked_network(text: &str) -> Result<String> {
    let ok = (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !text.contains("..");
    if ok {
        Ok(text.to_owned())
    } else {
        Err(bad("SAASODOO_SWARM_NETWORK", format!("{text:?} is not a name of a network")))
    }
}

fn bad(variable: &str, why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Configuration, why).with_field(variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read() {
        let config = SwarmConfig::from_vars([
            ("DOCKER_HOST", "tcp://manager:2376/"),
            ("DOCKER_TLS_VERIFY", "1"),
            ("DOCKER_CERT_PATH", "/certs"),
            ("SAASODOO_SWARM_NETWORK", "net_1"),
            ("SAASODOO_DATA_ROOT", "/ceph/x"),
            ("SAASODOO_QUOTA", "best-effort"),
            ("SAASODOO_CREDENTIALS", "environment"),
            ("SAASODOO_IMAGE_RESOLUTION", "digest"),
            ("BASE_DOMAIN", "tenants.example"),
        ])
        .expect("good values");
        assert_eq!(
            config.host,
            DockerHost::Tls {
                address: "manager:2376".to_owned(),
                certificates: "/certs".into()
            }
        );
        assert_eq!(config.common.base_domain.as_str(), "tenants.example");
        assert_eq!(config.quota, QuotaPolicy::BestEffort);
        assert_eq!(config.credentials, Credentials::Environment);
        assert_eq!(config.image_resolution, ImageResolution::Digest);
        assert_eq!(
            SwarmConfig::from_vars([("DOCKER_HOST", "")]).expect("empty is unset").host,
            DockerHost::Unix("/var/run/docker.sock".into())
        );
    }

    #[test]
    fn a_bad_value_names_its_variable() {
        for (vars, field) in [
            (vec![("DOCKER_HOST", "manager:2375")], "DOCKER_HOST"),
            (vec![("DOCKER_HOST", "tcp://manager")], "DOCKER_HOST"),
            (vec![("DOCKER_HOST", "tcp://a/b:1")], "DOCKER_HOST"),
            (vec![("DOCKER_HOST", "tcp://a:0")], "DOCKER_HOST"),
            (vec![("DOCKER_HOST", "ssh://a")], "DOCKER_HOST"),
            (vec![("DOCKER_HOST", "unix://relative")], "DOCKER_HOST"),
            (vec![("DOCKER_TLS_VERIFY", "1")], "DOCKER_HOST"),
            (
                vec![("DOCKER_HOST", "tcp://a:1"), ("DOCKER_TLS_VERIFY", "1")],
                "DOCKER_CERT_PATH",
            ),
            (vec![("SAASODOO_SWARM_NETWORK", "../x")], "SAASODOO_SWARM_NETWORK"),
            (vec![("SAASODOO_DATA_ROOT", "relative")], "SAASODOO_DATA_ROOT"),
            (vec![("SAASODOO_DATA_ROOT", "/")], "SAASODOO_DATA_ROOT"),
            (vec![("SAASODOO_DATA_ROOT", "/a/../b")], "SAASODOO_DATA_ROOT"),
            (vec![("SAASODOO_QUOTA", "maybe")], "SAASODOO_QUOTA"),
            (vec![("SAASODOO_CREDENTIALS", "files")], "SAASODOO_CREDENTIALS"),
            (vec![("SAASODOO_IMAGE_RESOLUTION", "always")], "SAASODOO_IMAGE_RESOLUTION"),
            (vec![("BASE_DOMAIN", "localhost")], "BASE_DOMAIN"),
        ] {
            let error = SwarmConfig::from_vars(vars.clone()).expect_err(field);
            assert_eq!(
                (error.kind(), error.field()),
                (ErrorKind::Configuration, Some(field)),
                "{vars:?}: {error}"
            );
        }
    }

    #[test]
    fn registry_credentials_are_url_safe_and_hidden() {
        let auth = RegistryAuth::new("~~?~~>", "s3ntinel".into(), "r.example");
        let header = auth.header().expect("a header");
        let text = header.to_str().expect("ASCII");
        assert!(!text.contains(['+', '/']), "{text}");
        let document: serde_json::Value =
            serde_json::from_slice(&URL_SAFE.decode(text).expect("base64")).expect("JSON");
        assert_eq!(document["username"], "~~?~~>");
        assert!(!format!("{auth:?}{header:?}").contains("s3ntinel"));
    }
}
