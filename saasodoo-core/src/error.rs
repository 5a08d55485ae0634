//! Errors made for the person who reads them: what was attempted, on which instance, on which backend, why it failed,
//! what to do, and whether a retry helps.

use std::fmt;
use std::time::Duration;

use crate::{BackendKind, InstanceId};

/// The result of every fallible call of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What went wrong, as a caller decides by it. HTTP-like services can map each kind to one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value given by the caller is not acceptable; [`Error::field`] names it. Nothing was changed.
    InvalidInput,
    /// The configuration, the environment or a kubeconfig is not usable; [`Error::field`] names the variable.
    Configuration,
    /// The instance does not exist, confirmed by the server.
    NotFound,
    /// What was asked contradicts what exists: another spec, a taken name or host, data nobody asked to adopt.
    /// [`Error::conflicts`] names the fields.
    Conflict,
    /// The instance is in a state in which this operation is not allowed, such as starting a suspended one.
    NotAllowed,
    /// The server does not know who is calling: expired or missing credentials.
    Unauthorized,
    /// The server knows who is calling and refuses.
    Forbidden,
    /// A quota of the platform refuses the change.
    QuotaExceeded,
    /// The server asks to slow down.
    Throttled,
    /// The server cannot be reached or cannot answer now.
    Unavailable,
    /// A deadline of ours passed. Whether a change was made is unknown: see [`Retry::OutcomeUnknown`].
    Timeout,
    /// This backend cannot do this; [`Error::field`] names the part of the request, when it is a part.
    Unsupported,
    /// Something the platform needs is missing: a storage class, a custom resource definition, a network.
    MissingPrerequisite,
    /// The data of the instance is not where it was recorded to be. Nothing was changed; look before you act.
    StorageMissing,
    /// The server answered something that this library does not understand, or a bug of ours.
    Unexpected,
}

impl ErrorKind {
    /// All kinds.
    pub const ALL: [Self; 15] = [
        Self::InvalidInput,
        Self::Configuration,
        Self::NotFound,
        Self::Conflict,
        Self::NotAllowed,
        Self::Unauthorized,
        Self::Forbidden,
        Self::QuotaExceeded,
        Self::Throttled,
        Self::Unavailable,
        Self::Timeout,
        Self::Unsupported,
        Self::MissingPrerequisite,
        Self::StorageMissing,
        Self::Unexpected,
    ];

    /// The kind's name in `snake_case`, for metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::Configuration => "configuration",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::NotAllowed => "not_allowed",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::QuotaExceeded => "quota_exceeded",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Unsupported => "unsupported",
            Self::MissingPrerequisite => "missing_prerequisite",
            Self::StorageMissing => "storage_missing",
            Self::Unexpected => "unexpected",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether and how a failed call may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Repeating the same call gives the same answer.
    Never,
    /// The call changed nothing and may be repeated, after the duration the server asked for when it named one.
    After(Option<Duration>),
    /// The change may or may not have been made. Look first; every mutation of
    /// [`InstanceOrchestrator`](crate::InstanceOrchestrator) does so itself when it is called again.
    OutcomeUnknown,
}

/// What a caller attempted, as an error and a tracing span name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OperationKind {
    /// Reading configuration and connecting.
    Connect,
    /// [`create`](crate::InstanceOrchestrator::create)
    Create,
    /// [`update`](crate::InstanceOrchestrator::update)
    Update,
    /// [`set_power`](crate::InstanceOrchestrator::set_power)
    SetPower,
    /// [`delete`](crate::InstanceOrchestrator::delete)
    Delete,
    /// [`get`](crate::InstanceOrchestrator::get)
    Get,
    /// [`list`](crate::InstanceOrchestrator::list)
    List,
    /// [`watch`](crate::InstanceOrchestrator::watch)
    Watch,
    /// [`logs`](crate::InstanceOrchestrator::logs)
    Logs,
    /// [`plan`](crate::InstanceOrchestrator::plan)
    Plan,
    /// [`health`](crate::InstanceOrchestrator::health)
    Health,
    /// Waiting for a status.
    Wait,
    /// A step of a migration.
    Migrate,
}

impl OperationKind {
    /// The operation's name in `snake_case`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Create => "create",
            Self::Update => "update",
            Self::SetPower => "set_power",
            Self::Delete => "delete",
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Logs => "logs",
            Self::Plan => "plan",
            Self::Health => "health",
            Self::Wait => "wait",
            Self::Migrate => "migrate",
        }
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of this library.
///
/// Its `Display` is one sentence with the operation, the instance, the backend, the reason and the advice; it does not
/// repeat the [`source`](std::error::Error::source), which is the client library's own error where there is one.
///
/// ```
/// use saasodoo_core::{BackendKind, Error, ErrorKind, OperationKind, Retry};
///
/// let error = Error::new(ErrorKind::Unavailable, "the server closed the connection")
///     .with_operation(OperationKind::Get)
///     .with_backend(BackendKind::Kubernetes)
///     .with_advice("check that the API server runs");
/// assert_eq!(error.retry(), Retry::After(None));
/// assert_eq!(
///     error.to_string(),
///     "get on kubernetes: unavailable: the server closed the connection; check that the API server runs"
/// );
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    retry: Retry,
    message: String,
    advice: Option<String>,
    operation: Option<OperationKind>,
    backend: Option<BackendKind>,
    instance: Option<InstanceId>,
    field: Option<String>,
    conflicts: Vec<String>,
    source: Option<Source>,
}

impl Error {
    /// An error with the retry advice that fits most errors of its kind; [`with_retry`](Self::with_retry) changes it.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retry = match kind {
            ErrorKind::Throttled | ErrorKind::Unavailable => Retry::After(None),
            ErrorKind::Timeout => Retry::OutcomeUnknown,
            _ => Retry::Never,
        };
        Self(Box::new(Inner {
            kind,
            retry,
            message: message.into(),
            advice: None,
            operation: None,
            backend: None,
            instance: None,
            field: None,
            conflicts: Vec::new(),
            source: None,
        }))
    }

    /// A value of the caller that is not acceptable: `field` is its path, `message` says why.
    #[must_use]
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message).with_field(field)
    }

    /// Something this backend cannot do.
    #[must_use]
    pub fn unsupported(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message).with_field(field)
    }

    /// The answer for an instance that is not there.
    #[must_use]
    pub fn not_found(id: InstanceId) -> Self {
        Self::new(ErrorKind::NotFound, "there is no such instance").with_instance(id)
    }

    /// A contradiction between what was asked and what exists, naming the fields that differ.
    #[must_use]
    pub fn conflict<I, S>(fields: I, message: impl Into<String>) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let mut error = Self::new(ErrorKind::Conflict, message);
        error.0.conflicts = fields.into_iter().map(Into::into).collect();
        error
    }

    /// Adds what was attempted, unless it is already known.
    #[must_use]
    pub fn with_operation(mut self, operation: OperationKind) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Adds the backend, unless it is already known.
    #[must_use]
    pub fn with_backend(mut self, backend: BackendKind) -> Self {
        self.0.backend.get_or_insert(backend);
        self
    }

    /// Adds the instance, unless it is already known.
    #[must_use]
    pub fn with_instance(mut self, id: InstanceId) -> Self {
        self.0.instance.get_or_insert(id);
        self
    }

    /// Adds the path of the field, variable or part of the request that is at fault, unless it is already known.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.0.field.get_or_insert_with(|| field.into());
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    /// Replaces the retry advice.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether and how to repeat the call.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// Why, without the operation and the advice.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do, when there is something to do.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.0.advice.as_deref()
    }

    /// What was attempted.
    #[must_use]
    pub fn operation(&self) -> Option<OperationKind> {
        self.0.operation
    }

    /// Where.
    #[must_use]
    pub fn backend(&self) -> Option<BackendKind> {
        self.0.backend
    }

    /// On which instance.
    #[must_use]
    pub fn instance(&self) -> Option<InstanceId> {
        self.0.instance
    }

    /// Which field of the spec, which environment variable, or which part of the request.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// The fields in which a [`Conflict`](ErrorKind::Conflict) differs from what exists.
    #[must_use]
    pub fn conflicts(&self) -> &[String] {
        &self.0.conflicts
    }

    /// True for [`ErrorKind::NotFound`].
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.0.kind == ErrorKind::NotFound
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            kind,
            message,
            advice,
            operation,
            backend,
            instance,
            field,
            conflicts,
            ..
        } = &*self.0;
        let mut context = false;
        if let Some(operation) = operation {
            write!(f, "{operation}")?;
            context = true;
        }
        if let Some(instance) = instance {
            write!(f, "{}instance {instance}", if context { " " } else { "" })?;
            context = true;
        }
        if let Some(backend) = backend {
            write!(f, "{}on {backend}", if context { " " } else { "" })?;
            context = true;
        }
        write!(
            f,
            "{}{}",
            if context { ": " } else { "" },
            kind.as_str().replace('_', " ")
        )?;
        if let Some(field) = field {
            write!(f, " ({field})")?;
        }
        write!(f, ": {message}")?;
        if !conflicts.is_empty() {
            write!(f, " [{}]", conflicts.join(", "))?;
        }
        if let Some(advice) = advice {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("message", &self.to_string())
            .field("retry", &self.0.retry)
            .field("source", &self.0.source.as_ref().map(ToString::to_string))
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_everything_once() {
        let id: InstanceId = "0a1b2c3d-0000-4000-8000-000000000000".parse().expect("a UUID");
        let error = Error::conflict(["image", "memory"], "another spec exists")
            .with_operation(OperationKind::Create)
            .with_instance(id)
            .with_backend(BackendKind::Memory)
            .with_source(std::io::Error::other("hidden"))
            .with_advice("update it instead");
        assert_eq!(
            error.to_string(),
            "create instance 0a1b2c3d-0000-4000-8000-000000000000 on memory: conflict: another spec exists \
             [image, memory]; update it instead"
        );
        assert_eq!(
            std::error::Error::source(&error).map(ToString::to_string).as_deref(),
            Some("hidden")
        );
    }

    #[test]
    fn all_kinds_are_listed_once() {
        for (at, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "{kind}");
        }
        assert_eq!(ErrorKind::Unexpected as usize + 1, ErrorKind::ALL.len());
    }

    #[test]
    fn the_first_context_wins() {
        let error = Error::new(ErrorKind::Timeout, "late")
            .with_operation(OperationKind::Get)
            .with_operation(OperationKind::Wait);
        assert_eq!(error.operation(), Some(OperationKind::Get));
        assert_eq!(error.retry(), Retry::OutcomeUnknown);
    }

    #[test]
    fn errors_are_small_and_sendable() {
        fn sendable<T: Send + Sync + 'static>() {}
        sendable::<Error>();
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
