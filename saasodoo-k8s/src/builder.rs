//! Connecting: which cluster, with which credentials, and what cannot be assumed about the process around us.

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use saasodoo_core::{BackendKind, Error, ErrorKind, OperationKind, Result};

use crate::backend::KubernetesOrchestrator;
use crate::config::KubernetesConfig;
use crate::error::{Effect, classify};

/// Connects a [`KubernetesOrchestrator`].
///
/// Without a choice the credentials are those of the pod when this runs in a cluster, else those of `KUBECONFIG` or
/// `~/.kube/config`. With a choice there is no second one: what was named must work.
#[derive(Debug)]
#[must_use]
pub struct KubernetesOrchestratorBuilder {
    config: KubernetesConfig,
    source: Source,
    context: Option<String>,
}

enum Source {
    Inferred,
    Kubeconfig(PathBuf),
    Client(Box<Client>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inferred => f.write_str("Inferred"),
            Self::Kubeconfig(path) => write!(f, "Kubeconfig({})", path.display()),
            Self::Client(_) => f.write_str("Client"),
        }
    }
}

impl KubernetesOrchestratorBuilder {
    pub(crate) fn new(config: KubernetesConfig) -> Self {
        Self {
            config,
            source: Source::Inferred,
            context: None,
        }
    }

    /// Uses this kubeconfig, and nothing else.
    pub fn kubeconfig(mut self, path: impl Into<PathBuf>) -> Self {
        self.source = Source::Kubeconfig(path.into());
        self
    }

    /// Uses this context of the kubeconfig instead of its current one. Inside a cluster, too, the kubeconfig is used
    /// then.
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into());
        self
    }

    /// Uses this client. Its retries should be off (`default_retry = false`): this library has its own, which do not
    /// repeat what must not be repeated.
    pub fn client(mut self, client: Client) -> Self {
        self.source = Source::Client(Box::new(client));
        self
    }

    /// Checks the configuration and makes the client. Does not talk to the server yet;
    /// [`health`](saasodoo_core::InstanceOrchestrator::health) does.
    ///
    /// # Errors
    /// [`Configuration`](ErrorKind::Configuration), naming the field or the file.
    pub async fn build(self) -> Result<KubernetesOrchestrator> {
        let Self {
            config,
            source,
            context,
        } = self;
        let built = async {
            config.validate()?;
            let client = match source {
                Source::Client(client) => {
                    if context.is_some() {
                        return Err(configuration(
                            "context",
                            "a client that is given has its context already",
                        ));
                    }
                    *client
                }
                Source::Kubeconfig(path) => connect(from_file(path, context).await?)?,
                Source::Inferred => connect(inferred(context).await?)?,
            };
            Ok(KubernetesOrchestrator::new(client, config))
        };
        built.await.map_err(|error: Error| {
            error
                .with_operation(OperationKind::Connect)
                .with_backend(BackendKind::Kubernetes)
        })
    }
}

async fn from_file(path: PathBuf, context: Option<String>) -> Result<Config> {
    let options = KubeConfigOptions {
        context,
        ..KubeConfigOptions::default()
    };
    let shown = path.display().to_string();
    // Reading the file blocks; it is small, and often on a network mount.
    let read = tokio::task::spawn_blocking(move || Kubeconfig::read_from(path)).await;
    let kubeconfig = read
        .map_err(|error| configuration("kubeconfig", format!("{shown} was not read: {error}")))?
        .map_err(|error| unreadable(&shown, &error))?;
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| unreadable(&shown, &error))
}

async fn inferred(context: Option<String>) -> Result<Config> {
    if context.is_none() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        return Config::incluster().map_err(|error| {
            configuration(
                "KUBERNETES_SERVICE_HOST",
                format!("this runs in a cluster, but: {error}"),
            )
            .with_advice("mount the service account's token, or give a kubeconfig explicitly")
        });
    }
    let options = KubeConfigOptions {
        context,
        ..KubeConfigOptions::default()
    };
    let shown = std::env::var("KUBECONFIG").unwrap_or_else(|_| "~/.kube/config".to_owned());
    Config::from_kubeconfig(&options)
        .await
        .map_err(|error| unreadable(&shown, &error))
}

/// The library's error without what it may quote of the file.
fn unreadable(shown: &str, error: &kube::config::KubeconfigError) -> Error {
    use kube::config::KubeconfigError as K;
    let why = match error {
        K::ReadConfig(error, _) => format!("cannot be read: {error}"),
        K::Parse(_) => "is not a kubeconfig: its YAML cannot be parsed".to_owned(),
        K::CurrentContextNotSet => "names no current context".to_owned(),
        K::LoadContext(name) => format!("has no context {name:?}"),
        K::LoadClusterOfContext(name) => format!("has no cluster {name:?}"),
        K::FindPath => "is not there".to_owned(),
        K::MissingClusterUrl => "has a cluster without a server".to_owned(),
        K::ParseClusterUrl(error) => format!("has a server that is no URL: {error}"),
        K::LoadCertificateAuthority(error) => format!("has a certificate authority that cannot be loaded: {error}"),
        K::LoadClientCertificate(error) => format!("has a client certificate that cannot be loaded: {error}"),
        K::LoadClientKey(_) => "has a client key that cannot be loaded".to_owned(),
        _ => "cannot be used".to_owned(),
    };
    configuration("kubeconfig", format!("{shown} {why}"))
}

fn configuration(field: &str, why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Configuration, why).with_field(field)
}

fn connect(mut config: Config) -> Result<Client> {
    ensure_crypto()?;
    // Ours are bounded and know which requests may be repeated.
    config.default_retry = false;
    config.connect_timeout.get_or_insert(Duration::from_secs(10));
    Client::try_from(config).map_err(|error| classify(error, Effect::Read))
}

/// TLS needs a process-wide provider of cryptography. When two are compiled in, none is the default, and the TLS library
/// would panic on its first use.
fn ensure_crypto() -> Result<()> {
    if rustls::crypto::CryptoProvider::get_default().is_some() {
        return Ok(());
    }
    // Losing a race to another installer is as good as winning it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match rustls::crypto::CryptoProvider::get_default() {
        Some(_) => Ok(()),
        None => Err(
            configuration("tls", "no provider of cryptography can be installed for TLS")
                .with_advice("call rustls::crypto::ring::default_provider().install_default() first"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn settings() -> KubernetesConfig {
        KubernetesConfig::new(saasodoo_core::Config::default())
    }

    async fn build(text: &str, context: Option<&str>) -> Error {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        let mut builder = KubernetesOrchestrator::builder(settings()).kubeconfig(file.path());
        if let Some(context) = context {
            builder = builder.context(context);
        }
        let error = builder.build().await.expect_err("a bad kubeconfig");
        assert!(error.message().contains(&file.path().display().to_string()), "{error}");
        error
    }

    #[tokio::test]
    async fn a_bad_kubeconfig_is_named_and_not_shown() {
        let error = build("users: [ s3ntinel: {", None).await;
        assert_eq!(
            (error.kind(), error.field()),
            (ErrorKind::Configuration, Some("kubeconfig"))
        );
        assert!(!format!("{error:?}").contains("s3ntinel"), "{error:?}");
        let error = build("apiVersion: v1\nkind: Config\n", Some("nowhere")).await;
        assert!(error.message().contains("nowhere"), "{error}");
    }

    #[tokio::test]
    async fn a_named_kubeconfig_has_no_second_choice() {
        let error = KubernetesOrchestrator::builder(settings())
            .kubeconfig("/nonexistent/kubeconfig")
            .build()
            .await
            .expect_err("a missing file");
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.message().contains("/nonexistent/kubeconfig"), "{error}");
    }

    #[tokio::test]
    async fn an_https_client_is_made_without_a_panic() {
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n\
                    clusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: a, user: {token: t}}]\n";
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        KubernetesOrchestrator::builder(settings())
            .kubeconfig(file.path())
            .build()
            .await
            .expect("a client");
    }
}
