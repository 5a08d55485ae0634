//! Requests: the only place that talks to the server. Names are checked before they become paths, every call has a
//! deadline of ours, and only what cannot do harm is repeated.

use std::future::Future;
use std::time::Duration;

use http::Request;
use http::header::RETRY_AFTER;
use kube::Client;
use kube::api::{
    DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy, VersionMatch,
};
use kube::client::Body;
use kube::core::Status;
use kube::core::response::StatusDetails;
use saasodoo_core::{BackendKind, Deadlines, Error, ErrorKind, ObjectName, Result, Retry};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument as _;

use crate::config::KubernetesConfig;
use crate::error::{Effect, NOT_KUBERNETES, classify, deadline, is_missing_kind, missing_kind, never_sent, unexpected};
use crate::views::Page;

/// A kind of object and where it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) kind: &'static str,
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) namespaced: bool,
}

impl Kind {
    const fn new(kind: &'static str, group: &'static str, version: &'static str, plural: &'static str) -> Self {
        Self {
            kind,
            group,
            version,
            plural,
            namespaced: true,
        }
    }

    const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `ingressroutes.traefik.io`, as custom resource definitions are named.
    pub(crate) fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    fn path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let api = self.api_version();
        if self.namespaced {
            format!("{root}/{api}/namespaces/{namespace}/{}", self.plural)
        } else {
            format!("{root}/{api}/{}", self.plural)
        }
    }
}

pub(crate) const DEPLOYMENT: Kind = Kind::new("Deployment", "apps", "v1", "deployments");
pub(crate) const POD: Kind = Kind::new("Pod", "", "v1", "pods");
pub(crate) const CLAIM: Kind = Kind::new("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims");
pub(crate) const VOLUME: Kind = Kind::new("PersistentVolume", "", "v1", "persistentvolumes").cluster();
pub(crate) const EVENT: Kind = Kind::new("Event", "", "v1", "events");
pub(crate) const SECRET: Kind = Kind::new("Secret", "", "v1", "secrets");
pub(crate) const SERVICE: Kind = Kind::new("Service", "", "v1", "services");
pub(crate) const INGRESS_ROUTE: Kind = Kind::new("IngressRoute", "traefik.io", "v1alpha1", "ingressroutes");
pub(crate) const INGRESS: Kind = Kind::new("Ingress", "networking.k8s.io", "v1", "ingresses");
pub(crate) const NETWORK_POLICY: Kind = Kind::new("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies");
pub(crate) const STORAGE_CLASS: Kind = Kind::new("StorageClass", "storage.k8s.io", "v1", "storageclasses").cluster();
pub(crate) const NAMESPACE: Kind = Kind::new("Namespace", "", "v1", "namespaces").cluster();
pub(crate) const ACCESS_REVIEW: Kind = Kind::new(
    "SelfSubjectAccessReview",
    "authorization.k8s.io",
    "v1",
    "selfsubjectaccessreviews",
)
.cluster();

/// An object of which only the metadata matters.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Stub {
    #[serde(default)]
    pub(crate) metadata: StubMeta,
}

/// The metadata of a [`Stub`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct StubMeta {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) deletion_timestamp: Option<String>,
    pub(crate) labels: std::collections::BTreeMap<String, String>,
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

/// How a patch is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// Lists are merged by their keys, as the server knows them. Not for custom resources.
    Strategic,
    /// Lists are replaced ([RFC 7386](https://www.rfc-editor.org/rfc/rfc7386)).
    Json,
}

/// How new the answer to a list must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fresh<'a> {
    /// As of the request.
    Now,
    /// Not older than this version, which must be one of the same kind: the server's cache has seen it, or soon will.
    Since(&'a str),
    /// Whatever the server's cache has.
    Cached,
}

/// The number of objects in a page of a list.
pub(crate) const PAGE: u32 = 500;
/// How often a request is sent at most.
const ATTEMPTS: u32 = 4;
/// More of an answer than this is not read.
const MOST_BYTES: u64 = 256 << 20;

/// The connection to one namespace of one cluster.
#[derive(Clone)]
pub(crate) struct Wire {
    client: Client,
    namespace: String,
    field_manager: String,
    pub(crate) deadlines: Deadlines,
}

impl Wire {
    pub(crate) fn new(client: Client, config: &KubernetesConfig) -> Self {
        Self {
            client,
            namespace: config.common.namespace.clone(),
            field_manager: config.field_manager.clone(),
            deadlines: config.common.deadlines,
        }
    }

    /// The client, for watches and logs, which are streams.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    fn requests(&self, kind: &Kind) -> kube::core::Request {
        kube::core::Request::new(kind.path(&self.namespace))
    }

    /// Reads one object. `None` only when the server said that this object does not exist.
    pub(crate) async fn get<T: DeserializeOwned>(&self, kind: &Kind, name: &str) -> Result<Option<T>> {
        let request = self.requests(kind).get(checked(name)?, &GetParams::default());
        let answer = match self.answer(Some(kind), build(request)?, Effect::Read, true).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let stub: Stub = parsed(&answer)?;
        if stub.metadata.uid.is_empty() {
            return Err(unexpected(format!("the answer is no {}: it has no UID", kind.kind)));
        }
        parsed(&answer).map(Some)
    }

    /// Reads the few objects that the selector fits, at once. A server answers from its cache what has no limit (as of
    /// now since Kubernetes 1.31), and reads all objects of the kind for a page of those that a selector fits.
    pub(crate) async fn few<T: DeserializeOwned>(
        &self,
        kind: &Kind,
        selector: &str,
        fresh: Fresh<'_>,
    ) -> Result<Vec<T>> {
        let params = ListParams::default().labels(selector);
        let cached = match fresh {
            Fresh::Now => return Ok(self.listed(kind, &params, true).await?.items),
            Fresh::Since(version) => params.clone().at(version).matching(VersionMatch::NotOlderThan),
            Fresh::Cached => params.clone().match_any(),
        };
        match self.listed(kind, &cached, false).await {
            // The cache lags behind, or the connection broke.
            Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable) => {
                Ok(self.listed(kind, &params, true).await?.items)
            }
            other => Ok(other?.items),
        }
    }

    /// Reads one page of a list, from the server's storage and not from its cache.
    pub(crate) async fn page<T: DeserializeOwned>(
        &self,
        kind: &Kind,
        selector: &str,
        limit: u32,
        token: Option<&str>,
    ) -> Result<Page<T>> {
        page_of(kind, &self.page_answer(kind, selector, limit, token).await?)
    }

    /// The answer to the request for one page, not parsed.
    pub(crate) async fn page_answer(
        &self,
        kind: &Kind,
        selector: &str,
        limit: u32,
        token: Option<&str>,
    ) -> Result<Vec<u8>> {
        let mut params = ListParams::default().labels(selector).limit(limit);
        if let Some(token) = token {
            params = params.continue_token(token);
        }
        self.list_answer(kind, &params, true).await
    }

    async fn listed<T: DeserializeOwned>(&self, kind: &Kind, params: &ListParams, repeat: bool) -> Result<Page<T>> {
        page_of(kind, &self.list_answer(kind, params, repeat).await?)
    }

    async fn list_answer(&self, kind: &Kind, params: &ListParams, repeat: bool) -> Result<Vec<u8>> {
        let request = build(self.requests(kind).list(params))?;
        match self.answer(Some(kind), request, Effect::Read, repeat).await {
            // A list is empty or an error; that it "is not found" says nothing about what would be in it.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(unexpected(format!("no list of {}: {}", kind.plural, error.message())))
            }
            other => other,
        }
    }

    /// Reads the first objects that the field selector fits.
    pub(crate) async fn some_with<T: DeserializeOwned>(&self, kind: &Kind, fields: &str, most: u32) -> Result<Vec<T>> {
        let params = ListParams::default().fields(fields).limit(most);
        let request = build(self.requests(kind).list(&params))?;
        let page: Page<T> = self.call(Some(kind), request, Effect::Read, true).await?;
        Ok(page.items)
    }

    /// Creates an object. Never repeated once it may have reached the server.
    pub(crate) async fn create<T: DeserializeOwned>(&self, kind: &Kind, object: &Value) -> Result<T> {
        let params = PostParams {
            field_manager: Some(self.field_manager.clone()),
            ..PostParams::default()
        };
        let request = self.requests(kind).create(&params, bytes(object)?);
        self.call(Some(kind), build(request)?, Effect::Write, false).await
    }

    /// Changes an object. The patch holds a resource version or sets absolute values, so it may be repeated.
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        kind: &Kind,
        name: &str,
        merge: Merge,
        patch: &Value,
    ) -> Result<T> {
        let params = PatchParams {
            field_manager: Some(self.field_manager.clone()),
            ..PatchParams::default()
        };
        let request = self.patch_request(kind, name, merge, patch, &params)?;
        self.call(Some(kind), request, Effect::Write, true).await
    }

    /// Asks whether the server would take the object, and makes nothing. What cannot be asked is no refusal.
    pub(crate) async fn would_create(&self, kind: &Kind, object: &Value) -> Result<()> {
        let params = PostParams {
            field_manager: Some(self.field_manager.clone()),
            dry_run: true,
        };
        let request = self.requests(kind).create(&params, bytes(object)?);
        refusal(self.call(Some(kind), build(request)?, Effect::Read, true).await)
    }

    /// Asks whether the server would take the patch, and changes nothing. What cannot be asked is no refusal.
    pub(crate) async fn would_patch(&self, kind: &Kind, name: &str, merge: Merge, patch: &Value) -> Result<()> {
        let params = PatchParams {
            field_manager: Some(self.field_manager.clone()),
            dry_run: true,
            ..PatchParams::default()
        };
        let request = self.patch_request(kind, name, merge, patch, &params)?;
        refusal(self.call(Some(kind), request, Effect::Read, true).await)
    }

    fn patch_request(
        &self,
        kind: &Kind,
        name: &str,
        merge: Merge,
        patch: &Value,
        params: &PatchParams,
    ) -> Result<Request<Vec<u8>>> {
        let patch = match merge {
            Merge::Strategic => Patch::Strategic(patch),
            Merge::Json => Patch::Merge(patch),
        };
        build(self.requests(kind).patch(checked(name)?, params, &patch))
    }

    /// Deletes exactly this object. `false` when it was gone, or when the name now means another one.
    pub(crate) async fn delete(
        &self,
        kind: &Kind,
        name: &str,
        uid: &str,
        propagation: PropagationPolicy,
    ) -> Result<bool> {
        if uid.is_empty() {
            return Err(unexpected(format!(
                "{} {name} has no UID, so it is not deleted",
                kind.kind
            )));
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            propagation_policy: Some(propagation),
            ..DeleteParams::default()
        };
        let request = self.requests(kind).delete(checked(name)?, &params);
        match self
            .call::<Value>(Some(kind), build(request)?, Effect::Write, true)
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            // The precondition failed: the object of that name is another one, which nobody asked to delete.
            Err(error) if error.kind() == ErrorKind::Conflict => match self.get::<Stub>(kind, name).await? {
                Some(other) if other.metadata.uid == uid => Err(error),
                _ => Ok(false),
            },
            Err(error) => Err(error),
        }
    }

    /// The server's version.
    pub(crate) async fn version(&self) -> Result<String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            git_version: String,
        }
        let request = Request::get("/version").body(Vec::new());
        let request = request.map_err(|error| unexpected(error.to_string()))?;
        let version: Version = self.call(None, request, Effect::Read, true).await?;
        Ok(version.git_version)
    }

    /// Sends a request until it is answered, and reads the answer.
    async fn call<T: DeserializeOwned>(
        &self,
        kind: Option<&Kind>,
        request: Request<Vec<u8>>,
        effect: Effect,
        repeatable: bool,
    ) -> Result<T> {
        parsed(&self.answer(kind, request, effect, repeatable).await?)
    }

    /// Sends a request until it is answered, at most [`ATTEMPTS`] times and within one deadline.
    async fn answer(
        &self,
        kind: Option<&Kind>,
        request: Request<Vec<u8>>,
        effect: Effect,
        repeatable: bool,
    ) -> Result<Vec<u8>> {
        let limit = match effect {
            Effect::Read => self.deadlines.read,
            Effect::Write => self.deadlines.write,
        };
        let end = Instant::now() + limit;
        let span = tracing::debug_span!("kubernetes", method = %request.method(), path = request.uri().path());
        let attempts = async {
            let mut attempt = 1;
            loop {
                let (parts, body) = request.clone().into_parts();
                let error = match self.send(Request::from_parts(parts, body.into())).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error,
                };
                let safe = never_sent(&error) || is_throttled(&error) || (repeatable && is_passing(&error));
                let missing = matches!(&error, kube::Error::Api(status) if is_missing_kind(status));
                if let (true, Some(kind)) = (missing, kind) {
                    return Err(missing_kind(&kind.resource()));
                }
                let error = classify(error, effect);
                if !safe || attempt >= ATTEMPTS || matches!(error.retry(), Retry::Never) {
                    return Err(error);
                }
                let asked = match error.retry() {
                    Retry::After(asked) => asked,
                    Retry::Never | Retry::OutcomeUnknown => None,
                };
                let pause = asked.unwrap_or_else(|| jittered(Duration::from_millis(100) * 2u32.pow(attempt - 1)));
                // Sleeping through the deadline would turn a clear refusal into an outcome that nobody knows.
                if Instant::now() + pause >= end {
                    return Err(error);
                }
                tracing::debug!(attempt, ?pause, %error, "trying again");
                sleep(pause).await;
                attempt += 1;
            }
        };
        match timeout(limit, attempts).instrument(span).await {
            Ok(result) => result,
            Err(_) => Err(deadline(limit, effect)),
        }
    }

    /// Sends a request once and reads the whole answer.
    async fn send(&self, request: Request<Body>) -> Result<Vec<u8>, kube::Error> {
        let response = self.client.send(request).await?;
        let (parts, body) = response.into_parts();
        let too_long = parts
            .headers
            .get(http::header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok())
            .is_some_and(|length| length > MOST_BYTES);
        if too_long {
            return Err(too_much());
        }
        let body = collected(body, MOST_BYTES).await?;
        if parts.status.is_success() {
            return Ok(body);
        }
        let mut status = status_of(parts.status.as_u16(), &body);
        let wait = parts
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse::<u32>().ok());
        if let Some(seconds) = wait {
            let details = status.details.get_or_insert_with(no_details);
            details.retry_after_seconds = details.retry_after_seconds.max(seconds);
        }
        Err(kube::Error::Api(Box::new(status)))
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// The whole of a body that is not longer than this. The length is not always announced.
async fn collected<B>(mut body: B, most: u64) -> Result<Vec<u8>, kube::Error>
where
    B: http_body_util::BodyExt<Error = kube::Error> + Unpin,
    B::Data: AsRef<[u8]>,
{
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            let data = data.as_ref();
            if (bytes.len() + data.len()) as u64 > most {
                return Err(too_much());
            }
            bytes.extend_from_slice(data);
        }
    }
    Ok(bytes)
}

fn too_much() -> kube::Error {
    let mut status = Status::failure("the answer is too long", "TooLong");
    status.code = 413;
    kube::Error::Api(Box::new(status))
}

/// What an answer that is no success says. Only a `Status` is the API server's own word: a proxy's page may have the
/// same code, and means something else by it. For a path that it does not know at all, such as that of a missing kind,
/// the server has one line of text.
fn status_of(code: u16, body: &[u8]) -> Status {
    #[derive(Deserialize)]
    struct Typed {
        kind: String,
    }
    let genuine = serde_json::from_slice::<Typed>(body).is_ok_and(|typed| typed.kind == "Status");
    let text = String::from_utf8_lossy(body);
    let plain = || match (code, text.trim()) {
        (404, "404 page not found") => Status::failure(text.trim(), "NotFound"),
        _ => Status::failure(&text, NOT_KUBERNETES),
    };
    let status = genuine.then(|| serde_json::from_slice::<Status>(body).ok()).flatten();
    let mut status = status.unwrap_or_else(plain);
    // The header is the truth: proxies answer with bodies of their own.
    status.code = code;
    status
}

fn no_details() -> StatusDetails {
    StatusDetails {
        name: String::new(),
        group: String::new(),
        kind: String::new(),
        uid: String::new(),
        causes: Vec::new(),
        retry_after_seconds: 0,
    }
}

/// The server refused before it did anything.
fn is_throttled(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 429)
}

/// The server, or the way to it, is out of order for a moment.
fn is_passing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 500 | 502 | 503 | 504),
        kube::Error::Service(_) | kube::Error::HyperError(_) => true,
        _ => false,
    }
}

pub(crate) fn is_expired(error: &Error) -> bool {
    let message = error.message();
    error.kind() == ErrorKind::Unavailable && (message.contains("too old") || message.contains("expired"))
}

/// A duration between half and the whole of the one given, so that many callers do not come back together.
pub(crate) fn jittered(most: Duration) -> Duration {
    // The low bits of the clock are as good as a random number for this.
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.subsec_nanos());
    most.mul_f64(0.5 + f64::from(nanos % 1000) / 2000.0)
}

fn build(request: Result<Request<Vec<u8>>, kube::core::request::Error>) -> Result<Request<Vec<u8>>> {
    request.map_err(|error| unexpected(format!("the request could not be made: {error}")))
}

/// What the answer to a dry run has against the real request. Who may not ask, and a webhook that takes no dry runs, say
/// nothing about it, and neither does an object that somebody else has just made or changed: it is looked at again then.
fn refusal(answer: Result<Value>) -> Result<()> {
    let Err(error) = answer else { return Ok(()) };
    let says = |text: &str| error.message().contains(text);
    let unknown = match error.kind() {
        ErrorKind::Forbidden => !says("denied"),
        ErrorKind::Conflict => true,
        _ => says("does not support dry run"),
    };
    if unknown {
        tracing::debug!(%error, "no dry run");
        return Ok(());
    }
    Err(error)
}

/// The page that was answered. Nothing at all would read as an empty list.
pub(crate) fn page_of<T: DeserializeOwned>(kind: &Kind, answer: &[u8]) -> Result<Page<T>> {
    let page: Page<T> = parsed(answer)?;
    if page.metadata.resource_version.as_deref().unwrap_or_default().is_empty() {
        return Err(unexpected(format!(
            "the answer is no list of {}: it has no version",
            kind.plural
        )));
    }
    Ok(page)
}

fn parsed<T: DeserializeOwned>(answer: &[u8]) -> Result<T> {
    serde_json::from_slice(answer)
        .map_err(|error| unexpected(format!("the server's answer is not understood: {error}")))
}

fn bytes(object: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(object).map_err(|error| unexpected(format!("the object could not be written: {error}")))
}

/// A name that is safe in a path: the client library does not escape it.
fn checked(name: &str) -> Result<&str> {
    ObjectName::existing(name)
        .map(|_| name)
        .map_err(|error| error.with_backend(BackendKind::Kubernetes))
}

/// Runs a mutation in a task of its own, so that it goes on when the caller stops waiting.
pub(crate) async fn detached<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    match tokio::spawn(work.in_current_span()).await {
        Ok(result) => result,
        Err(error) => Err(unexpected(format!("the operation ended early: {error}")).with_retry(Retry::OutcomeUnknown)),
    }
}

/// Bounds a whole operation.
pub(crate) async fn bounded<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Timeout,
            format!("the operation did not end within {} s", limit.as_secs_f64()),
        ))
    })
}

/// Asks again and again until the answer is there or the time is up. `None`: the time is up.
pub(crate) async fn poll<T, F, Fut>(limit: Duration, mut ask: F) -> Result<Option<T>>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(50);
    loop {
        if let Some(answer) = ask().await? {
            return Ok(Some(answer));
        }
        if Instant::now() + pause >= end {
            return Ok(None);
        }
        sleep(jittered(pause)).await;
        pause = (pause * 3 / 2).min(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_or_the_servers_own_line_says_that_something_is_not_there() {
        let status = r#"{"kind":"Status","code":200,"reason":"NotFound","message":"pods \"x\" not found"}"#;
        for (body, reason) in [
            (status, "NotFound"),
            ("404 page not found\n", "NotFound"),
            ("<html>404 Not Found</html>", NOT_KUBERNETES),
            (r#"{"message":"no Route matched"}"#, NOT_KUBERNETES),
            ("", NOT_KUBERNETES),
        ] {
            let read = status_of(404, body.as_bytes());
            assert_eq!((read.code, read.reason.as_str()), (404, reason), "{body}");
        }
        assert!(is_missing_kind(&status_of(404, b"404 page not found\n")));
        assert!(!is_missing_kind(&status_of(404, b"")));
    }

    #[tokio::test]
    async fn an_answer_whose_length_was_not_announced_has_a_limit_too() {
        let body = || {
            let chunks =
                (0..4).map(|_| Ok::<_, kube::Error>(hyper::body::Frame::data(bytes::Bytes::from_static(b"12345"))));
            http_body_util::StreamBody::new(futures::stream::iter(chunks))
        };
        assert_eq!(collected(body(), 20).await.expect("it fits").len(), 20);
        let error = collected(body(), 19).await.expect_err("too long");
        assert!(error.to_string().contains("too long"), "{error}");
    }
}
