//! A daemon that is reached over TLS, and wants a certificate of its clients.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::recorder::{Recorder, Reply, Request};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use saasodoo_core::{Config, Deadlines, Error, ErrorKind, InstanceFilter, InstanceOrchestratorExt, Retry};
use saasodoo_swarm::{DockerHost, QuotaPolicy, SwarmOrchestrator};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio_rustls::TlsAcceptor;

/// An authority and what it has signed, each in a directory of Docker's layout.
struct Authority {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut wanted = named(name, &[]);
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(wanted, key).expect("a certificate");
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("written");
        Self { directory, issuer }
    }

    /// A certificate for these hosts, with its key and beside the authority's own.
    fn sign(&self, name: &str, hosts: &[&str]) -> PathBuf {
        let directory = self.directory.path().join(name);
        std::fs::create_dir(&directory).expect("made");
        let key = KeyPair::generate().expect("a key");
        let certificate = named(name, hosts).signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(directory.join("cert.pem"), certificate.pem()).expect("written");
        std::fs::write(directory.join("key.pem"), key.serialize_pem()).expect("written");
        std::fs::copy(self.directory.path().join("ca.pem"), directory.join("ca.pem")).expect("copied");
        directory
    }
}

fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let mut wanted = CertificateParams::new(hosts).expect("hosts");
    wanted.distinguished_name = DistinguishedName::new();
    wanted.distinguished_name.push(DnType::CommonName, name);
    wanted
}

/// A daemon behind TLS.
struct Daemon {
    recorder: Recorder,
    address: String,
}

impl Daemon {
    /// With the certificate in this directory. It asks its clients for one of the same authority.
    async fn new(certificate: &Path) -> Self {
        let provider = Arc::new(ring::default_provider());
        let mut authorities = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(certificate.join("ca.pem")).expect("a certificate");
        authorities.add(authority).expect("an authority");
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider));
        let own = CertificateDer::from_pem_file(certificate.join("cert.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(certificate.join("key.pem")).expect("a key");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(clients.build().expect("a verifier"))
            .with_single_cert(vec![own], key)
            .expect("a certificate with its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let recorder = Recorder::new(|request: &Request| match request.path.as_str() {
            "/services" | "/tasks" => Reply::json(200, json!([])),
            path => Reply::json(404, json!({"message": format!("no {path}")})),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let socket = recorder.socket();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, socket) = (acceptor.clone(), socket.clone());
                tokio::spawn(async move {
                    match acceptor.accept(client).into_fallible().await {
                        Ok(mut client) => {
                            let mut daemon = tokio::net::UnixStream::connect(&socket).await.expect("the recorder");
                            let _ = tokio::io::copy_bidirectional(&mut client, &mut daemon).await;
                        }
                        // Not closed before all is read: the alert would be lost with the connection.
                        Err((_, mut client)) => drop(client.read_to_end(&mut Vec::new()).await),
                    }
                });
            }
        });
        Self { recorder, address }
    }

    fn client(&self, certificates: PathBuf, root: &Path) -> SwarmOrchestrator {
        let mut deadlines = Deadlines::default();
        deadlines.read = Duration::from_secs(5);
        SwarmOrchestrator::builder(Config::builder().deadlines(deadlines).build())
            .data_root(root)
            .quota(QuotaPolicy::BestEffort)
            .host(DockerHost::Tls {
                address: self.address.clone(),
                certificates,
            })
            .build()
            .expect("certificates")
    }

    /// The error of a request, none of which got through.
    async fn refusal(&self, certificates: PathBuf) -> Error {
        let root = tempfile::tempdir().expect("a root");
        let swarm = self.client(certificates, root.path());
        let error = swarm.list_all(InstanceFilter::all()).await.expect_err("no trust");
        assert!(self.recorder.requests().is_empty(), "{error}");
        error
    }
}

#[track_caller]
fn is_about_certificates(error: &Error, part: &str) {
    assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
    assert_eq!(error.retry(), Retry::Never, "{error}");
    assert!(error.message().contains(part), "{error}");
    assert!(
        error.advice().is_some_and(|advice| advice.contains("DOCKER_CERT_PATH")),
        "{error}"
    );
}

#[tokio::test]
async fn a_daemon_is_reached_over_tls() {
    let authority = Authority::new("authority");
    let daemon = Daemon::new(&authority.sign("daemon", &["127.0.0.1"])).await;
    let root = tempfile::tempdir().expect("a root");
    let swarm = daemon.client(authority.sign("client", &[]), root.path());
    assert_eq!(swarm.list_all(InstanceFilter::all()).await.expect("a list"), []);
    assert_eq!(daemon.recorder.requests().len(), 2);
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (authority, other) = (Authority::new("authority"), Authority::new("other"));
    let daemon = Daemon::new(&authority.sign("daemon", &["127.0.0.1"])).await;
    // It trusts the daemon, and is not trusted.
    let certificates = other.sign("client", &[]);
    std::fs::copy(authority.directory.path().join("ca.pem"), certificates.join("ca.pem")).expect("copied");
    is_about_certificates(&daemon.refusal(certificates).await, "alert");
}

#[tokio::test]
async fn a_daemon_that_is_not_trusted_gets_no_request() {
    let (authority, other) = (Authority::new("authority"), Authority::new("other"));
    let client = authority.sign("client", &[]);
    let daemon = Daemon::new(&other.sign("daemon", &["127.0.0.1"])).await;
    is_about_certificates(&daemon.refusal(client.clone()).await, "UnknownIssuer");
    // Of the right authority, and for another host.
    let daemon = Daemon::new(&authority.sign("elsewhere", &["another.example"])).await;
    is_about_certificates(&daemon.refusal(client).await, "not valid for name");
}
