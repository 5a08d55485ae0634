//! From what the client library reports to the errors of this library: one function, tested by table.

use std::error::Error as StdError;
use std::time::Duration;

use kube::core::Status;
use saasodoo_core::{BackendKind, Error, ErrorKind, Retry};

/// Whether a request changes something: decides what a lost answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It reads.
    Read,
    /// It writes.
    Write,
}

/// Turns an error of the client library into one of this library.
///
/// The text of the server is kept as the message, for it names the object and the reason. The client library's error is
/// not kept as the source where it holds an answer's body: that may show an object with what is in it.
pub(crate) fn classify(error: kube::Error, effect: Effect) -> Error {
    let error = match error {
        kube::Error::Api(status) => status_error(&status, effect),
        kube::Error::Auth(error) => Error::new(ErrorKind::Unauthorized, format!("no credentials: {}", chain(&error)))
            .with_advice("renew the credentials in the kubeconfig, or check its exec plugin"),
        kube::Error::SerdeError(error) => unexpected(format!("the server's answer is not understood: {error}")),
        kube::Error::FromUtf8(_) => unexpected("the server's answer is not UTF-8"),
        kube::Error::BuildRequest(error) => unexpected(format!("the request could not be made: {error}")),
        kube::Error::HttpError(error) => unexpected(format!("the request could not be made: {error}")),
        kube::Error::InferConfig(error) => Error::new(ErrorKind::Configuration, chain(&error)),
        kube::Error::InferKubeconfig(error) => Error::new(ErrorKind::Configuration, chain(&error)),
        error @ (kube::Error::TlsRequired
        | kube::Error::RustlsTls(_)
        | kube::Error::ProxyProtocolUnsupported { .. }
        | kube::Error::ProxyProtocolDisabled { .. }) => Error::new(ErrorKind::Configuration, chain(&error)),
        error => transport_error(&error, effect),
    };
    error.with_backend(BackendKind::Kubernetes)
}

/// A deadline of ours has passed.
pub(crate) fn deadline(limit: Duration, effect: Effect) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!("the server did not answer within {} s", limit.as_secs_f64()),
    )
    .with_retry(match effect {
        Effect::Read => Retry::After(None),
        Effect::Write => Retry::OutcomeUnknown,
    })
    .with_backend(BackendKind::Kubernetes)
}

/// Something that should not be.
pub(crate) fn unexpected(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unexpected, message).with_backend(BackendKind::Kubernetes)
}

/// True when a request never reached the server, so that repeating it is safe whatever it does.
pub(crate) fn never_sent(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(client) = error.downcast_ref::<hyper_util::client::legacy::Error>()
            && client.is_connect()
        {
            return true;
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The reason of a [`Status`] that was made of an answer which was none, such as a proxy's page.
pub(crate) const NOT_KUBERNETES: &str = "NotKubernetes";

/// True when the server says that a *kind* is not there, rather than an object of a kind.
pub(crate) fn is_missing_kind(status: &Status) -> bool {
    let named = status.details.as_ref().is_some_and(|details| !details.name.is_empty());
    status.code == 404
        && !named
        && status.reason != NOT_KUBERNETES
        && (status.message.contains("could not find the requested resource")
            || status.message.contains("page not found")
            || status.message.is_empty())
}

/// The server does not know a kind of objects.
pub(crate) fn missing_kind(what: &str) -> Error {
    Error::new(
        ErrorKind::MissingPrerequisite,
        format!("the server has no such kind of objects: {what}"),
    )
    .with_advice("install the custom resource definitions that the configuration asks for, such as Traefik's")
    .with_backend(BackendKind::Kubernetes)
}

fn status_error(status: &Status, effect: Effect) -> Error {
    let message = if status.message.is_empty() {
        format!("the server answered {} {}", status.code, status.reason)
    } else {
        cut(&status.message)
    };
    let wait = status
        .details
        .as_ref()
        .map(|details| details.retry_after_seconds)
        .filter(|seconds| *seconds > 0)
        .map(|seconds| Duration::from_secs(seconds.into()));
    let says = |text: &str| message.contains(text);
    match status.code {
        400 | 413 | 415 | 422 => match fault(status) {
            Some(field) => Error::invalid(field, message),
            None => Error::new(ErrorKind::InvalidInput, message),
        },
        401 => Error::new(ErrorKind::Unauthorized, message)
            .with_advice("renew the credentials: a token or client certificate is missing, wrong or expired"),
        403 if says("exceeded quota") || says("usage per Container") || says("usage per Pod") => {
            Error::new(ErrorKind::QuotaExceeded, message)
                .with_advice("raise the quota of the namespace, or ask for less")
        }
        403 if says("usage per PersistentVolumeClaim") => Error::new(ErrorKind::QuotaExceeded, message),
        403 if says("can be resized") => {
            Error::unsupported("storage", message).with_advice("use a storage class with allowVolumeExpansion")
        }
        // Admission refuses to grow a claim without a volume; it gets one soon, or with its first pod.
        403 if says("can be expanded") => Error::new(ErrorKind::Unavailable, message)
            .with_retry(Retry::After(wait))
            .with_advice("try again when the claim has its volume"),
        403 if says("because it is being terminated") => Error::new(ErrorKind::MissingPrerequisite, message)
            .with_advice("the namespace is being deleted: wait, and create it again"),
        403 => Error::new(ErrorKind::Forbidden, message)
            .with_advice("give the service account the role that `saasodoo_k8s::rbac_yaml` prints"),
        404 if status.reason == NOT_KUBERNETES => Error::new(
            ErrorKind::Unavailable,
            format!("the answer 404 is not the API server's: {message}"),
        )
        .with_retry(unknown_outcome(effect, wait))
        .with_advice("look at what is between here and the API server, and at its address"),
        404 if is_missing_kind(status) => missing_kind(message.trim()),
        404 if says("namespaces \"") => {
            Error::new(ErrorKind::MissingPrerequisite, message).with_advice("create the namespace")
        }
        404 => Error::new(ErrorKind::NotFound, message),
        409 => Error::new(ErrorKind::Conflict, message).with_retry(if status.is_already_exists() {
            Retry::Never
        } else {
            Retry::After(wait)
        }),
        410 => Error::new(ErrorKind::Unavailable, message),
        429 => Error::new(ErrorKind::Throttled, message).with_retry(Retry::After(wait)),
        408 | 504 => Error::new(ErrorKind::Timeout, message).with_retry(unknown_outcome(effect, wait)),
        500 if says("exceeded quota") => Error::new(ErrorKind::QuotaExceeded, message),
        500 | 502 | 503 => Error::new(ErrorKind::Unavailable, message).with_retry(unknown_outcome(effect, wait)),
        _ => unexpected(format!("the server answered {}: {message}", status.code)),
    }
}

/// A write that failed half-way through the server may have been carried out.
fn unknown_outcome(effect: Effect, wait: Option<Duration>) -> Retry {
    match effect {
        Effect::Read => Retry::After(wait),
        Effect::Write => Retry::OutcomeUnknown,
    }
}

fn transport_error(error: &kube::Error, effect: Effect) -> Error {
    let text = chain(error);
    let lower = text.to_lowercase();
    let certificate = ["certificate", "tls", "handshake", "unknownissuer"]
        .iter()
        .any(|word| lower.contains(word));
    if never_sent(error) {
        if certificate {
            return Error::new(ErrorKind::Configuration, format!("no trusted connection: {text}"))
                .with_advice("check the certificate authority in the kubeconfig, and the dates of the certificates");
        }
        return Error::new(ErrorKind::Unavailable, format!("the server cannot be reached: {text}"))
            .with_advice("check that the API server runs and that its address is right");
    }
    if certificate {
        // An expired client certificate is refused by the server in the middle of the exchange.
        return Error::new(ErrorKind::Unauthorized, format!("the connection was refused: {text}"))
            .with_advice("renew the client certificate");
    }
    Error::new(ErrorKind::Unavailable, format!("the connection failed: {text}"))
        .with_retry(unknown_outcome(effect, None))
}

/// The field that the server complains about, in its own terms.
fn fault(status: &Status) -> Option<String> {
    let details = status.details.as_ref()?;
    details
        .causes
        .iter()
        .map(|cause| cause.field.clone())
        .find(|field| !field.is_empty())
}

/// The messages of an error and of all its causes, each once.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    cut(&text)
}

/// A server's text can be a page long: webhooks answer with whole objects.
fn cut(text: &str) -> String {
    const MOST: usize = 600;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::response::{StatusCause, StatusDetails};

    use super::*;

    fn status(code: u16, reason: &str, message: &str) -> Status {
        let mut status = Status::failure(message, reason);
        status.code = code;
        status
    }

    fn details() -> StatusDetails {
        serde_json::from_str("{}").expect("all fields have defaults")
    }

    fn classified(status: Status, effect: Effect) -> Error {
        classify(kube::Error::Api(Box::new(status)), effect)
    }

    #[test]
    fn every_status_has_its_kind_and_retry() {
        use Effect::{Read, Write};
        use ErrorKind as K;
        let after = |seconds: Option<u64>| Retry::After(seconds.map(Duration::from_secs));
        let cases = [
            (
                400,
                "BadRequest",
                "the body is bad",
                Write,
                K::InvalidInput,
                Retry::Never,
            ),
            (401, "Unauthorized", "Unauthorized", Read, K::Unauthorized, Retry::Never),
            (
                403,
                "Forbidden",
                "deployments.apps is forbidden: User \"x\" cannot list",
                Read,
                K::Forbidden,
                Retry::Never,
            ),
            (
                403,
                "Forbidden",
                "pods \"x\" is forbidden: exceeded quota: compute",
                Write,
                K::QuotaExceeded,
                Retry::Never,
            ),
            (
                403,
                "Forbidden",
                "persistentvolumeclaims \"x\" is forbidden: maximum storage usage per PersistentVolumeClaim is 5Gi",
                Write,
                K::QuotaExceeded,
                Retry::Never,
            ),
            (
                403,
                "Forbidden",
                "only dynamically provisioned pvc can be resized and the storageclass must support resize",
                Write,
                K::Unsupported,
                Retry::Never,
            ),
            (
                403,
                "Forbidden",
                "persistentvolumeclaims \"x\" is forbidden: Only bound persistent volume claims can be expanded",
                Write,
                K::Unavailable,
                after(None),
            ),
            (
                404,
                NOT_KUBERNETES,
                "<html>no backend</html>",
                Read,
                K::Unavailable,
                after(None),
            ),
            (
                404,
                NOT_KUBERNETES,
                "<html>no backend</html>",
                Write,
                K::Unavailable,
                Retry::OutcomeUnknown,
            ),
            (
                403,
                "Forbidden",
                "unable to create new content in namespace x because it is being terminated",
                Write,
                K::MissingPrerequisite,
                Retry::Never,
            ),
            (
                404,
                "NotFound",
                "the server could not find the requested resource",
                Write,
                K::MissingPrerequisite,
                Retry::Never,
            ),
            (
                404,
                "NotFound",
                "namespaces \"x\" not found",
                Write,
                K::MissingPrerequisite,
                Retry::Never,
            ),
            (
                404,
                "NotFound",
                "deployments.apps \"x\" not found",
                Read,
                K::NotFound,
                Retry::Never,
            ),
            (
                409,
                "AlreadyExists",
                "deployments.apps \"x\" already exists",
                Write,
                K::Conflict,
                Retry::Never,
            ),
            (
                409,
                "Conflict",
                "the object has been modified",
                Write,
                K::Conflict,
                after(None),
            ),
            (
                410,
                "Expired",
                "too old resource version",
                Read,
                K::Unavailable,
                after(None),
            ),
            (
                422,
                "Invalid",
                "spec.x: Invalid value",
                Write,
                K::InvalidInput,
                Retry::Never,
            ),
            (429, "TooManyRequests", "slow down", Write, K::Throttled, after(None)),
            (
                500,
                "InternalError",
                "etcdserver: leader changed",
                Read,
                K::Unavailable,
                after(None),
            ),
            (
                500,
                "InternalError",
                "etcdserver: leader changed",
                Write,
                K::Unavailable,
                Retry::OutcomeUnknown,
            ),
            (
                503,
                "ServiceUnavailable",
                "overloaded",
                Read,
                K::Unavailable,
                after(None),
            ),
            (
                503,
                "ServiceUnavailable",
                "overloaded",
                Write,
                K::Unavailable,
                Retry::OutcomeUnknown,
            ),
            (504, "Timeout", "request timed out", Read, K::Timeout, after(None)),
            (
                504,
                "Timeout",
                "request timed out",
                Write,
                K::Timeout,
                Retry::OutcomeUnknown,
            ),
            (418, "Teapot", "no coffee", Read, K::Unexpected, Retry::Never),
        ];
        for (code, reason, message, effect, kind, retry) in cases {
            let error = classified(status(code, reason, message), effect);
            assert_eq!(
                (error.kind(), error.retry()),
                (kind, retry),
                "{code} {message}: {error}"
            );
            assert!(error.message().contains(message), "{error}");
            assert_eq!(error.backend(), Some(BackendKind::Kubernetes));
        }
    }

    #[test]
    fn the_servers_wait_is_kept() {
        let mut throttled = status(429, "TooManyRequests", "slow down");
        throttled.details = Some(StatusDetails {
            retry_after_seconds: 7,
            ..details()
        });
        let error = classified(throttled, Effect::Write);
        assert_eq!(error.retry(), Retry::After(Some(Duration::from_secs(7))));
    }

    #[test]
    fn the_field_at_fault_is_named() {
        let mut invalid = status(422, "Invalid", "spec.replicas: Invalid value: -1");
        invalid.details = Some(StatusDetails {
            causes: vec![StatusCause {
                field: "spec.replicas".to_owned(),
                reason: String::new(),
                message: String::new(),
            }],
            ..details()
        });
        assert_eq!(classified(invalid, Effect::Write).field(), Some("spec.replicas"));
    }

    #[test]
    fn a_missing_object_is_not_a_missing_kind() {
        let mut object = status(404, "NotFound", "ingressroutes.traefik.io \"x\" not found");
        object.details = Some(StatusDetails {
            name: "x".to_owned(),
            ..details()
        });
        assert!(!is_missing_kind(&object));
        assert!(is_missing_kind(&status(404, "NotFound", "404 page not found\n")));
    }

    #[test]
    fn failed_connections_are_told_apart() {
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = kube::Error::Service(Box::new(refused));
        assert!(never_sent(&error));
        let error = classify(error, Effect::Write);
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Unavailable, Retry::After(None))
        );

        let reset = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "connection reset");
        let error = classify(kube::Error::Service(Box::new(reset)), Effect::Write);
        assert_eq!(
            (error.kind(), error.retry()),
            (ErrorKind::Unavailable, Retry::OutcomeUnknown)
        );

        let expired = std::io::Error::other("received fatal alert: certificate_expired");
        let error = classify(kube::Error::Service(Box::new(expired)), Effect::Read);
        assert_eq!(error.kind(), ErrorKind::Unauthorized);

        let late = deadline(Duration::from_secs(30), Effect::Write);
        assert_eq!((late.kind(), late.retry()), (ErrorKind::Timeout, Retry::OutcomeUnknown));
        assert_eq!(
            deadline(Duration::from_secs(15), Effect::Read).retry(),
            Retry::After(None)
        );
    }

    #[test]
    fn long_texts_are_cut() {
        let error = classified(status(422, "Invalid", &"é".repeat(5000)), Effect::Write);
        assert!(error.message().chars().count() < 700);
    }
}
