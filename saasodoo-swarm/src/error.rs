//! What bollard and the daemon answer, as errors of this library.

use std::error::Error as StdError;
use std::io;

use bollard::errors::Error as Bollard;
use saasodoo_core::{BackendKind, Error, ErrorKind, Retry};

/// A request that failed, before anybody has decided what that means.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The HTTP status, when the daemon answered.
    pub(crate) status: Option<u16>,
    /// What the daemon or the transport said.
    pub(crate) message: String,
    /// Whether the request may have reached the daemon.
    pub(crate) sent: bool,
    /// Whether it was to change something.
    pub(crate) write: bool,
    kind: ErrorKind,
    advice: Option<&'static str>,
    source: Option<Bollard>,
}

/// The result of one request.
pub(crate) type Answer<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn timeout(write: bool, after: std::time::Duration) -> Self {
        Self {
            status: None,
            message: format!("the daemon did not answer within {after:?}"),
            sent: true,
            write,
            kind: ErrorKind::Timeout,
            advice: Some("check that dockerd runs and that the swarm has a leader"),
            source: None,
        }
    }

    pub(crate) fn unexpected(message: impl Into<String>) -> Self {
        Self {
            status: None,
            message: message.into(),
            sent: true,
            write: false,
            kind: ErrorKind::Unexpected,
            advice: None,
            source: None,
        }
    }

    /// From bollard, about a request that reads or writes.
    pub(crate) fn from_bollard(error: Bollard, write: bool) -> Self {
        if let Bollard::DockerResponseServerError { status_code, message } = error {
            return Self::answered(status_code, message, write);
        }
        let (kind, sent, advice) = classify(&error);
        Self {
            status: None,
            message: innermost(&error),
            sent,
            write,
            kind,
            advice,
            source: Some(error),
        }
    }

    fn answered(status: u16, message: String, write: bool) -> Self {
        // Swarm's control API speaks gRPC behind the daemon; its codes survive only in the text.
        let text = message.to_ascii_lowercase();
        let says = |part: &str| text.contains(part);
        let (kind, advice) = match status {
            _ if says("not a swarm manager") || says("not part of a swarm") || says("swarm mode") => (
                ErrorKind::MissingPrerequisite,
                Some("give the address of a swarm manager in DOCKER_HOST, or run `docker swarm init`"),
            ),
            _ if says("swarm is encrypted") => (ErrorKind::MissingPrerequisite, Some("unlock the swarm")),
            _ if says("does not have a leader") || says("deadlineexceeded") || says("code = unavailable") => (
                ErrorKind::Unavailable,
                Some("check that most of the swarm's managers run"),
            ),
            400 => (ErrorKind::InvalidInput, None),
            401 => (ErrorKind::Unauthorized, None),
            403 => (ErrorKind::Forbidden, None),
            404 => (ErrorKind::NotFound, None),
            409 => (ErrorKind::Conflict, None),
            429 => (ErrorKind::Throttled, None),
            500 if says("network ") && says("not found") => (
                ErrorKind::MissingPrerequisite,
                Some("create the overlay network, or configure the one that exists"),
            ),
            500 if says("update out of sequence") => (ErrorKind::Conflict, None),
            502..=504 => (ErrorKind::Unavailable, None),
            _ => (ErrorKind::Unexpected, None),
        };
        Self {
            status: Some(status),
            message,
            sent: true,
            write,
            kind,
            advice,
            source: None,
        }
    }

    /// The daemon has no such object.
    pub(crate) fn is_missing(&self) -> bool {
        self.status == Some(404)
    }

    /// The name is taken.
    pub(crate) fn is_taken(&self) -> bool {
        self.status == Some(409)
    }

    /// Somebody else changed the service since it was inspected. Swarm says so with status 500.
    pub(crate) fn is_out_of_sequence(&self) -> bool {
        self.status.is_some() && self.message.contains("update out of sequence")
    }

    /// Nobody knows whether the change was made.
    pub(crate) fn is_unknown(&self) -> bool {
        let refused = self.status.is_some_and(|status| (400..500).contains(&status));
        self.write && self.sent && !refused && !self.is_out_of_sequence() && self.kind != ErrorKind::MissingPrerequisite
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let unknown = failure.is_unknown();
        let mut error = Self::new(failure.kind, failure.message).with_backend(BackendKind::Swarm);
        if let Some(advice) = failure.advice {
            error = error.with_advice(advice);
        }
        if unknown {
            error = error.with_retry(Retry::OutcomeUnknown);
        } else if failure.kind == ErrorKind::Timeout {
            error = error.with_retry(Retry::After(None));
        }
        match failure.source {
            Some(source) => error.with_source(source),
            None => error,
        }
    }
}

/// The kind, whether the request can have been sent, and what to do about it.
fn classify(error: &Bollard) -> (ErrorKind, bool, Option<&'static str>) {
    let connecting = matches!(error, Bollard::HyperLegacyError { err } if err.is_connect());
    let sent = !connecting;
    if let Some(io) = find::<io::Error>(error) {
        // A failed handshake is an I/O error of kind InvalidData around the one of the TLS library.
        if tls(error) {
            return (ErrorKind::Configuration, sent, Some(TLS_ADVICE));
        }
        if let Some((kind, advice)) = unconnected(io.kind()).filter(|_| connecting) {
            return (kind, false, Some(advice));
        }
    }
    if tls(error) {
        return (ErrorKind::Configuration, sent, Some(TLS_ADVICE));
    }
    match error {
        Bollard::SocketNotFoundError(_) => (ErrorKind::Unavailable, false, Some(START_ADVICE)),
        Bollard::RequestTimeoutError => (ErrorKind::Timeout, true, Some(START_ADVICE)),
        Bollard::HyperLegacyError { .. } | Bollard::HyperResponseError { .. } | Bollard::IOError { .. } => {
            (ErrorKind::Unavailable, sent, Some(START_ADVICE))
        }
        Bollard::CertPathError { .. }
        | Bollard::CertMultipleKeys { .. }
        | Bollard::CertParseError { .. }
        | Bollard::NoHomePathError
        | Bollard::NoNativeCertsError { .. }
        | Bollard::LoadNativeCertsErrors { .. } => (ErrorKind::Configuration, false, Some(TLS_ADVICE)),
        Bollard::InvalidURIError { .. } | Bollard::URLParseError { .. } | Bollard::UnsupportedURISchemeError { .. } => {
            (ErrorKind::Configuration, false, Some("check DOCKER_HOST"))
        }
        _ => (ErrorKind::Unexpected, sent, None),
    }
}

/// Why there was no connection to the socket.
fn unconnected(error: io::ErrorKind) -> Option<(ErrorKind, &'static str)> {
    match error {
        io::ErrorKind::PermissionDenied => Some((
            ErrorKind::Forbidden,
            "add the user to the group that owns the Docker socket",
        )),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Some((ErrorKind::Unavailable, START_ADVICE)),
        _ => None,
    }
}

const START_ADVICE: &str = "check DOCKER_HOST and that dockerd runs";
const TLS_ADVICE: &str = "check that DOCKER_CERT_PATH has ca.pem, cert.pem and key.pem of this daemon, and that the \
                          daemon expects TLS on this port";

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    let mut errors = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        errors.push(error);
        // An io::Error hides the error it wraps from `source`.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    errors
}

fn find<T: StdError + 'static>(error: &Bollard) -> Option<&T> {
    chain(error)
        .into_iter()
        .find_map(|error| error.downcast_ref::<T>())
        .or(match error {
            Bollard::IOError { err } => (err as &(dyn StdError + 'static)).downcast_ref::<T>(),
            _ => None,
        })
}

fn tls(error: &Bollard) -> bool {
    chain(error)
        .into_iter()
        .any(|error| error.downcast_ref::<rustls::Error>().is_some())
}

/// The whole chain's texts without repetitions: bollard's own often says only "client error (Connect)".
fn innermost(error: &Bollard) -> String {
    let mut parts: Vec<String> = Vec::new();
    for text in chain(error).into_iter().map(ToString::to_string) {
        if !parts.iter().any(|seen| seen.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, message: &str, write: bool) -> Error {
        Failure::answered(status, message.to_owned(), write).into()
    }

    #[test]
    fn the_daemons_texts_have_kinds() {
        for (status, text, kind) in [
            (
                503,
                "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\"",
                ErrorKind::MissingPrerequisite,
            ),
            (
                500,
                "rpc error: code = Unknown desc = The swarm does not have a leader.",
                ErrorKind::Unavailable,
            ),
            (500, "network nosuchnet not found", ErrorKind::MissingPrerequisite),
            (
                409,
                "rpc error: code = AlreadyExists desc = name conflicts with an existing object",
                ErrorKind::Conflict,
            ),
            (
                500,
                "rpc error: code = Unknown desc = update out of sequence",
                ErrorKind::Conflict,
            ),
            (404, "service x not found", ErrorKind::NotFound),
            (500, "something new", ErrorKind::Unexpected),
        ] {
            assert_eq!(answer(status, text, true).kind(), kind, "{text}");
        }
    }

    #[test]
    fn a_socket_that_may_not_be_opened_is_told_from_one_that_nobody_serves() {
        let kind = |error: io::ErrorKind| unconnected(error).map(|(kind, _)| kind);
        assert_eq!(kind(io::ErrorKind::PermissionDenied), Some(ErrorKind::Forbidden));
        assert_eq!(kind(io::ErrorKind::ConnectionRefused), Some(ErrorKind::Unavailable));
        assert_eq!(kind(io::ErrorKind::NotFound), Some(ErrorKind::Unavailable));
        assert_eq!(kind(io::ErrorKind::InvalidData), None);
    }

    #[test]
    fn only_a_write_without_an_answer_has_an_unknown_outcome() {
        assert_eq!(answer(503, "no leader now", true).retry(), Retry::OutcomeUnknown);
        assert_eq!(answer(503, "no leader now", false).retry(), Retry::After(None));
        assert_eq!(answer(409, "exists", true).retry(), Retry::Never);
        let late = |write| Error::from(Failure::timeout(write, std::time::Duration::from_secs(1))).retry();
        assert_eq!((late(true), late(false)), (Retry::OutcomeUnknown, Retry::After(None)));
        let unconnected = Bollard::SocketNotFoundError("/nowhere".to_owned());
        assert_eq!(
            Error::from(Failure::from_bollard(unconnected, true)).retry(),
            Retry::After(None)
        );
    }
}
