//! Refusals, in the words of the real server: adapters read them.

use serde_json::{Value, json};

use super::store::Resource;

/// An answer that is a `Status`.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) body: Value,
}

impl Refusal {
    fn new(code: u16, reason: &str, message: impl Into<String>, details: Value) -> Self {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message.into(), "reason": reason, "code": code,
        });
        if !details.is_null() {
            body["details"] = details;
        }
        Self { code, body }
    }

    fn about(code: u16, reason: &str, message: String, resource: Resource, name: &str) -> Self {
        let details = json!({"name": name, "group": resource.group, "kind": resource.plural});
        Self::new(code, reason, message, details)
    }

    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        let message = format!("{} {name:?} not found", resource.qualified());
        Self::about(404, "NotFound", message, resource, name)
    }

    /// The kind itself is not served.
    pub(super) fn no_such_path() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
            json!({}),
        )
    }

    pub(super) fn exists(resource: Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::about(409, "AlreadyExists", message, resource, name)
    }

    pub(super) fn modified(resource: Resource, name: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: the object has been modified; please apply your changes to \
             the latest version and try again",
            resource.qualified()
        );
        Self::about(409, "Conflict", message, resource, name)
    }

    pub(super) fn other_uid(resource: Resource, name: &str, wanted: &str, present: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: the UID in the precondition ({wanted}) does not match the UID in \
             record ({present}). The object might have been deleted and then recreated",
            resource.kind
        );
        Self::about(409, "Conflict", message, resource, name)
    }

    /// One field is wrong.
    pub(super) fn invalid(resource: Resource, name: &str, field: &str, reason: &str, why: &str) -> Self {
        let message = format!("{}{} {name:?} is invalid: {field}: {why}", resource.kind, {
            if resource.group.is_empty() {
                String::new()
            } else {
                format!(".{}", resource.group)
            }
        });
        let details = json!({
            "name": name, "group": resource.group, "kind": resource.kind,
            "causes": [{"reason": reason, "message": why, "field": field}],
        });
        Self::new(422, "Invalid", message, details)
    }

    pub(super) fn forbidden(resource: Resource, name: &str, why: &str) -> Self {
        let message = format!("{} {name:?} is forbidden: {why}", resource.qualified());
        Self::about(403, "Forbidden", message, resource, name)
    }

    pub(super) fn not_allowed(resource: Resource, verb: &str) -> Self {
        let user = "User \"fake\"";
        let message = format!(
            "{} is forbidden: {user} cannot {verb} resource {:?} in API group {:?}",
            resource.qualified(),
            resource.plural,
            resource.group
        );
        Self::new(
            403,
            "Forbidden",
            message,
            json!({"group": resource.group, "kind": resource.plural}),
        )
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message, Value::Null)
    }

    pub(super) fn method(what: &str) -> Self {
        let message = format!("the server does not allow this method on the requested resource: {what}");
        Self::new(405, "MethodNotAllowed", message, Value::Null)
    }

    pub(super) fn media_type(what: &str) -> Self {
        let message = format!("the body of the request was in an unknown format: {what}");
        Self::new(415, "UnsupportedMediaType", message, Value::Null)
    }

    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message, Value::Null)
    }

    pub(super) fn too_old(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    pub(super) fn no_streaming_lists() -> Self {
        let why = "sendInitialEvents is forbidden for watch: this server has no streaming lists";
        Self::new(422, "Invalid", why, Value::Null)
    }
}
