//! The probe that asks over HTTP.

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Probe;
use crate::{Error, ErrorKind, Instance, OperationKind, Result};

/// The answers that the system in production takes for a working Odoo.
const WELL: [u16; 3] = [200, 302, 303];

/// Asks for a path on the tenant's first host, through the router of the target: what a visitor would do, before
/// visitors are sent there. Plain HTTP; 200, 302 and 303 are good answers.
///
/// ```
/// use saasodoo_core::migration::HttpProbe;
///
/// let probe = HttpProbe::through("10.0.0.10:80").path("/web/login".parse()?);
/// # drop(probe);
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct HttpProbe {
    router: String,
    path: Option<crate::HttpPath>,
}

impl HttpProbe {
    /// Connects to this `host:port`, whatever the tenant's host resolves to.
    #[must_use]
    pub fn through(router: impl Into<String>) -> Self {
        Self {
            router: router.into(),
            path: None,
        }
    }

    /// Asks for this path. Default: the one of the instance's own probes.
    #[must_use]
    pub fn path(mut self, path: crate::HttpPath) -> Self {
        self.path = Some(path);
        self
    }

    async fn ask(&self, host: &str, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&self.router).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: saasodoo\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // The status line is all that matters.
        let mut answer = Vec::new();
        let mut part = [0_u8; 512];
        while !answer.contains(&b'\n') && answer.len() < 4096 {
            let read = stream.read(&mut part).await?;
            if read == 0 {
                break;
            }
            answer.extend_from_slice(part.get(..read).unwrap_or_default());
        }
        let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok(String::from_utf8_lossy(line).trim().to_owned())
    }
}

/// The status code of `HTTP/1.1 200 OK`.
fn status(line: &str) -> Option<u16> {
    let mut words = line.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[async_trait]
impl Probe for HttpProbe {
    async fn probe(&self, instance: &Instance) -> Result<()> {
        let fail = |kind, why: String| {
            Error::new(kind, why)
                .with_instance(instance.id)
                .with_operation(OperationKind::Migrate)
        };
        let Some(host) = instance.endpoints.hosts.first() else {
            return Err(fail(
                ErrorKind::Unavailable,
                "it has no host that could be asked".to_owned(),
            ));
        };
        let path = self.path.as_ref().unwrap_or(&instance.spec.probes.path);
        let line = self.ask(host.as_str(), path.as_str()).await.map_err(|error| {
            let kind = match error.kind() {
                // It is no `host:port`, and will not become one.
                std::io::ErrorKind::InvalidInput => ErrorKind::Configuration,
                _ => ErrorKind::Unavailable,
            };
            fail(kind, format!("{host} through {}: {error}", self.router))
        })?;
        match status(&line) {
            Some(code) if WELL.contains(&code) => Ok(()),
            _ => Err(fail(
                ErrorKind::Unavailable,
                format!("{host}{path} through {}: {line:?}", self.router),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackendKind, Endpoints, Facts, InstanceId, InstanceSpec, Provenance};
    use jiff::Timestamp;
    use tokio::net::TcpListener;

    fn instance() -> Instance {
        let spec = InstanceSpec::new(
            InstanceId::random(),
            "acme".parse().expect("a name"),
            "odoo:17".parse().expect("an image"),
        );
        let name = spec.object_name();
        let now = Timestamp::UNIX_EPOCH;
        let provenance = Provenance::live("1", now);
        let host = "acme.saasodoo.example".parse().expect("a host");
        Instance::observed(BackendKind::Kubernetes, name, spec, Facts::new(1, now), provenance)
            .with_endpoints(Endpoints::new(None, vec![host], false))
    }

    /// Answers once, and tells what it was asked.
    async fn asked(answer: &'static str) -> (Result<()>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a visitor");
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("answered");
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        let probe = HttpProbe::through(address.to_string());
        let result = probe.probe(&instance()).await;
        (result, server.await.expect("it answered"))
    }

    #[tokio::test]
    async fn it_asks_the_tenants_host_and_takes_what_the_system_in_production_takes() {
        for answer in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 303 See Other\r\n\r\n"] {
            let (result, request) = asked(answer).await;
            result.expect("a good answer");
            assert!(
                request.starts_with("GET /web/health HTTP/1.1\r\nHost: acme.saasodoo.example\r\n"),
                "{request}"
            );
        }
        for answer in [
            "HTTP/1.1 502 Bad Gateway\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "SSH-2.0-x\r\n",
            "",
        ] {
            let (result, _) = asked(answer).await;
            assert_eq!(result.expect_err(answer).kind(), ErrorKind::Unavailable);
        }
    }

    #[tokio::test]
    async fn nobody_there_is_an_error() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let probe = HttpProbe::through(address.to_string());
        assert!(probe.probe(&instance()).await.is_err());
    }
}
