//! The one place that talks to the daemon, through bollard's transports.
//!
//! Requests and answers pass as raw JSON and not through bollard's models, for three reasons that its version 0.21
//! gives: its models drop fields that they do not know, so an inspected service sent back would lose them; one unknown
//! enum value fails a whole list; and it logs the bodies of typed requests, which hold secrets. Its connections, TLS,
//! error answers and the framing of logs are used as they are: a request that bollard makes is rewritten on its way
//! out ([`with_request_modifier`](bollard::Docker::with_request_modifier)), and its body is a stream, which bollard
//! does not log.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderName, Method};
use saasodoo_core::{Deadlines, Error, ErrorKind, Result};
use serde_json::Value;

use crate::config::{DockerHost, RegistryAuth};
use crate::error::{Answer, Failure};

/// Bollard's own limit is ours too, in whole seconds and above all of ours, so that ours decide.
const BOLLARD_SECONDS: u64 = 3600;
/// An answer larger than this is no answer: 10,000 services are about 60 MB.
const MAX_ANSWER: usize = 1 << 30;

/// A connection to one daemon.
#[derive(Clone)]
pub(crate) struct Wire {
    docker: Docker,
    deadlines: Deadlines,
    requests: Arc<AtomicU64>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("requests", &self.requests())
            .finish_non_exhaustive()
    }
}

/// One request, checked when it is made.
struct Call {
    method: Method,
    target: PathAndQuery,
    body: Option<Bytes>,
    auth: Option<HeaderValue>,
}

impl Wire {
    /// Prepares connections to the daemon; the first request makes one.
    pub(crate) fn connect(host: &DockerHost, deadlines: Deadlines) -> Result<Self> {
        let fail = |error| Error::from(Failure::from_bollard(error, false)).with_field("DOCKER_HOST");
        let docker = match host {
            DockerHost::Unix(path) => {
                let path = path.to_str().ok_or_else(|| {
                    Error::new(ErrorKind::Configuration, "the path of the socket is not UTF-8")
                        .with_field("DOCKER_HOST")
                })?;
                Docker::connect_with_unix(path, BOLLARD_SECONDS, API_DEFAULT_VERSION)
            }
            DockerHost::Tcp(address) => {
                Docker::connect_with_http(&format!("tcp://{address}"), BOLLARD_SECONDS, API_DEFAULT_VERSION)
            }
            DockerHost::Tls { address, certificates } => {
                let [key, cert, ca] = ["key.pem", "cert.pem", "ca.pem"].map(|name| certificates.join(name));
                // bollard reads these at the first handshake and goes on without them when they are missing.
                for file in [&key, &cert, &ca] {
                    if let Err(error) = std::fs::metadata(file) {
                        return Err(Error::new(
                            ErrorKind::Configuration,
                            format!("{} cannot be read: {error}", file.display()),
                        )
                        .with_field("DOCKER_CERT_PATH"));
                    }
                }
                // With two providers in one binary rustls does not choose and bollard would panic; an error means that
                // the embedding service has chosen already.
                let _ = rustls::crypto::ring::default_provider().install_default();
                Docker::connect_with_ssl(
                    &format!("tcp://{address}"),
                    &key,
                    &cert,
                    &ca,
                    BOLLARD_SECONDS,
                    API_DEFAULT_VERSION,
                )
            }
        };
        Ok(Self::over(docker.map_err(fail)?, deadlines))
    }

    /// Through a client that has been made already.
    pub(crate) fn over(docker: Docker, deadlines: Deadlines) -> Self {
        Self {
            docker,
            deadlines,
            requests: Arc::default(),
        }
    }

    /// How many requests were made so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Reads one object or a list.
    pub(crate) async fn get(&self, path: &str, query: &[(&str, &str)]) -> Answer<Bytes> {
        let call = Call::new(Method::GET, path, query)?;
        self.run(call, false, self.deadlines.read).await
    }

    /// Reads one object.
    pub(crate) async fn get_json(&self, path: &str, query: &[(&str, &str)]) -> Answer<Value> {
        json(&self.get(path, query).await?)
    }

    /// Reads one object, with credentials for the registry that the daemon asks.
    pub(crate) async fn get_with_auth(&self, path: &str, auth: Option<&RegistryAuth>) -> Answer<Value> {
        let mut call = Call::new(Method::GET, path, &[])?;
        call.auth = auth.map(RegistryAuth::header).transpose()?;
        json(&self.run(call, false, self.deadlines.read).await?)
    }

    /// Writes. `auth` is sent as `X-Registry-Auth`.
    pub(crate) async fn post(
        &self,
        path: &str,
        query: &[(&str, &str)],
        body: &Value,
        auth: Option<&RegistryAuth>,
    ) -> Answer<Bytes> {
        let mut call = Call::new(Method::POST, path, query)?;
        call.body = Some(Bytes::from(body.to_string()));
        call.auth = auth.map(RegistryAuth::header).transpose()?;
        self.run(call, true, self.deadlines.write).await
    }

    /// Deletes.
    pub(crate) async fn delete(&self, path: &str) -> Answer<()> {
        let call = Call::new(Method::DELETE, path, &[])?;
        self.run(call, true, self.deadlines.write).await.map(drop)
    }

    /// Follows an endless answer. The deadline is for its beginning only.
    pub(crate) fn follow(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Answer<impl Stream<Item = Answer<Bytes>> + Send + Unpin + use<>> {
        let call = Call::new(Method::GET, path, query)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let docker = rewritten(&self.docker, call).with_timeout(self.beginning());
        let body = docker.export_image("raw");
        Ok(body.map_err(|error| Failure::from_bollard(error, false)))
    }

    /// Reads the log of a task or a service, in frames. The deadline is for its beginning only.
    pub(crate) fn logs(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Answer<impl Stream<Item = Answer<LogOutput>> + Send + Unpin + use<>> {
        let call = Call::new(Method::GET, path, query)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let docker = rewritten(&self.docker, call).with_timeout(self.beginning());
        let frames = docker.service_logs("raw", None::<bollard::query_parameters::LogsOptions>);
        Ok(Box::pin(frames.map_err(|error| Failure::from_bollard(error, false))))
    }

    /// How long the headers of an endless answer may take: bollard's limit ends with them, and knows whole seconds.
    fn beginning(&self) -> Duration {
        Duration::from_secs(self.deadlines.read.as_secs().max(1))
    }

    async fn run(&self, call: Call, write: bool, deadline: Duration) -> Answer<Bytes> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(method = %call.method, path = call.target.path(), "docker request");
        let mut body = rewritten(&self.docker, call).export_image("raw");
        // bollard's limit ends with the headers of the answer; this one is for all of it.
        let collected = tokio::time::timeout(deadline, async {
            let mut whole = BytesMut::new();
            while let Some(part) = body.next().await {
                whole.extend_from_slice(&part.map_err(|error| Failure::from_bollard(error, write))?);
                if whole.len() > MAX_ANSWER {
                    return Err(Failure::unexpected("the answer is larger than a gibibyte"));
                }
            }
            Ok(whole.freeze())
        });
        collected
            .await
            .unwrap_or_else(|_| Err(Failure::timeout(write, deadline)))
    }
}

/// A client whose next request is this one.
fn rewritten(docker: &Docker, call: Call) -> Docker {
    docker
        .clone()
        .with_request_modifier(move |request| rewrite(request, &call))
}

fn rewrite(request: BollardRequest, call: &Call) -> BollardRequest {
    let (mut parts, _) = request.into_parts();
    let mut uri = parts.uri.into_parts();
    // The path that bollard made, without the part that belongs to the borrowed method: the API version, if any.
    let made = uri.path_and_query.as_ref().map_or("", PathAndQuery::path);
    let version = ["/images/raw/get", "/services/raw/logs"]
        .iter()
        .find_map(|borrowed| made.strip_suffix(borrowed))
        .unwrap_or_default();
    uri.path_and_query = format!("{version}{}", call.target).parse().ok();
    parts.uri = http::Uri::from_parts(uri).unwrap_or_default();
    parts.method = call.method.clone();
    if let Some(auth) = &call.auth {
        parts
            .headers
            .insert(HeaderName::from_static("x-registry-auth"), auth.clone());
    }
    let body = match &call.body {
        Some(body) => {
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            bollard::body_stream(stream::iter([body.clone()]))
        }
        None => bollard::body_full(Bytes::new()),
    };
    http::Request::from_parts(parts, body)
}

impl Call {
    fn new(method: Method, path: &str, query: &[(&str, &str)]) -> Answer<Self> {
        let mut target = path.to_owned();
        for (index, (name, value)) in query.iter().enumerate() {
            target.push(if index == 0 { '?' } else { '&' });
            target.push_str(name);
            target.push('=');
            encode(value, &mut target);
        }
        let target = target
            .parse()
            .map_err(|_| Failure::unexpected(format!("{path:?} cannot be put into a request")))?;
        Ok(Self {
            method,
            target,
            body: None,
            auth: None,
        })
    }
}

/// One name or id as a segment of a path. bollard and the daemon would take `../secrets` or `a?b` apart.
pub(crate) fn segment(name: &str) -> Answer<&str> {
    let ok = (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !name.starts_with('.')
        && !name.contains("..");
    if ok {
        Ok(name)
    } else {
        Err(Failure::unexpected(format!("{name:?} is not a name of an object")))
    }
}

/// The value of a `filters` parameter.
pub(crate) fn filters(filters: &[(&str, &[String])]) -> String {
    let map: serde_json::Map<String, Value> = filters
        .iter()
        .map(|(name, values)| ((*name).to_owned(), Value::from(values.to_vec())))
        .collect();
    Value::Object(map).to_string()
}

pub(crate) fn json(bytes: &[u8]) -> Answer<Value> {
    serde_json::from_slice(bytes).map_err(|error| Failure::unexpected(format!("the answer is not JSON: {error}")))
}

/// Hands each element of a JSON list to `each` and keeps none: ten thousand services are large.
pub(crate) fn each_element(bytes: &[u8], each: impl FnMut(Value)) -> Answer<()> {
    struct Elements<F>(F);
    impl<'de, F: FnMut(Value)> serde::de::Visitor<'de> for Elements<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
            while let Some(value) = seq.next_element()? {
                (self.0)(value);
            }
            Ok(())
        }

        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
    }
    use serde::Deserializer as _;
    serde_json::Deserializer::from_slice(bytes)
        .deserialize_any(Elements(each))
        .map_err(|error| Failure::unexpected(format!("the answer is not a list: {error}")))
}

fn encode(text: &str, into: &mut String) {
    use fmt::Write as _;
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            into.push(char::from(byte));
        } else {
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn elements_pass_one_by_one() {
        let mut seen = Vec::new();
        each_element(b"[1, {\"a\": 2}]", |value| seen.push(value.to_string())).expect("a list");
        assert_eq!(seen, ["1", "{\"a\":2}"]);
        each_element(b"null", |_| panic!("nothing")).expect("no list is an empty one");
        assert!(each_element(b"[1, ", |_| {}).is_err());
        assert!(each_element(b"{}", |_| {}).is_err());
    }

    proptest! {
        #[test]
        fn no_name_leaves_its_segment(text in "\\PC{0,60}") {
            if let Ok(name) = segment(&text) {
                prop_assert!(!name.contains(['/', '?', '#', '%']) && name != "." && name != "..");
            }
        }

        #[test]
        fn every_value_survives_a_query(text in "\\PC{0,60}") {
            let call = Call::new(Method::GET, "/services", &[("filters", &text), ("x", "1")]).expect("a target");
            prop_assert_eq!(call.target.path(), "/services");
            let query = call.target.query().expect("a query");
            prop_assert_eq!(query.matches('&').count(), 1);
            prop_assert!(!query.contains('#'));
        }
    }
}
