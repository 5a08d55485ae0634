//! From a request line to what is meant by it.

use std::collections::BTreeMap;

use super::refusal::Refusal;
use super::store::{RESOURCES, Resource};

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Version,
    AccessReview,
    Collection(Resource, String),
    Object(Resource, String, String),
    Log(String, String),
}

/// A request whose body is whole.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) target: Target,
    pub(super) query: BTreeMap<String, String>,
    pub(super) content_type: String,
    pub(super) body: Vec<u8>,
}

impl Asked {
    pub(super) fn text(&self, key: &str) -> &str {
        self.query.get(key).map(String::as_str).unwrap_or_default()
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        matches!(self.text(key), "true" | "1")
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, Refusal> {
        match self.text(key) {
            "" => Ok(None),
            text => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Refusal::bad(format!("{key}: {text:?} is not a number"))),
            },
        }
    }

    /// True when only the answer is wanted. All stages are run then; no other word is known.
    pub(super) fn is_dry(&self) -> Result<bool, Refusal> {
        match self.text("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(Refusal::bad(format!(
                "dryRun: Unsupported value: {other:?}: supported values: \"All\""
            ))),
        }
    }

    /// Streams, which run in the background.
    pub(super) fn is_stream(&self) -> bool {
        self.flag("watch") || matches!(self.target, Target::Log(..))
    }
}

/// Reads a path. Segments are decoded after they were taken apart, as the server does.
pub(super) fn target(path: &str, absent: &[String]) -> Result<Target, Refusal> {
    let segments: Vec<String> = path.split('/').skip(1).map(decoded).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if segments == ["version"] {
        return Ok(Target::Version);
    }
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(Refusal::no_such_path()),
    };
    if (group, rest) == ("authorization.k8s.io", &["selfsubjectaccessreviews"]) {
        return Ok(Target::AccessReview);
    }
    let find = |plural: &str, namespaced: bool| {
        let found = RESOURCES.iter().find(|resource| {
            (resource.group, resource.version, resource.plural) == (group, version, plural)
                && (resource.namespaced || !namespaced)
        });
        found
            .filter(|resource| !absent.iter().any(|kind| kind == resource.kind))
            .copied()
            .ok_or_else(Refusal::no_such_path)
    };
    let owned = |text: &str| text.to_owned();
    match rest {
        ["namespaces", namespace, plural] => Ok(Target::Collection(find(plural, true)?, owned(namespace))),
        ["namespaces", namespace, plural, name] => {
            Ok(Target::Object(find(plural, true)?, owned(namespace), owned(name)))
        }
        ["namespaces", namespace, "pods", name, "log"] => Ok(Target::Log(owned(namespace), owned(name))),
        [plural] => Ok(Target::Collection(find(plural, false)?, String::new())),
        [plural, name] => {
            let resource = find(plural, false)?;
            if resource.namespaced {
                return Err(Refusal::no_such_path());
            }
            Ok(Target::Object(resource, String::new(), owned(name)))
        }
        _ => Err(Refusal::no_such_path()),
    }
}

pub(super) fn query(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(&key.replace('+', " ")), decoded(&value.replace('+', " ")))
        })
        .collect()
}

/// Without percent signs. What is no code stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::store::{CLASSES, DEPLOYMENTS, NAMESPACES, PODS};
    use super::*;

    #[test]
    fn paths_lead_to_what_is_served() {
        let own = str::to_owned;
        for (path, expected) in [
            ("/version", Some(Target::Version)),
            (
                "/apis/apps/v1/namespaces/a/deployments",
                Some(Target::Collection(DEPLOYMENTS, own("a"))),
            ),
            (
                "/apis/apps/v1/deployments",
                Some(Target::Collection(DEPLOYMENTS, own(""))),
            ),
            (
                "/api/v1/namespaces/a/pods/b%2Fc",
                Some(Target::Object(PODS, own("a"), own("b/c"))),
            ),
            ("/api/v1/namespaces/a/pods/b/log", Some(Target::Log(own("a"), own("b")))),
            (
                "/api/v1/namespaces/a",
                Some(Target::Object(NAMESPACES, own(""), own("a"))),
            ),
            (
                "/apis/storage.k8s.io/v1/storageclasses",
                Some(Target::Collection(CLASSES, own(""))),
            ),
            ("/api/v1/deployments", None),
            ("/api/v1/pods/a", None),
            ("/apis/traefik.io/v1alpha1/namespaces/a/ingressroutes", None),
            ("/metrics", None),
        ] {
            let seen = target(path, &["IngressRoute".to_owned()]);
            assert_eq!(seen.map_err(|refusal| refusal.code).ok(), expected, "{path}");
        }
        let query = query("labelSelector=a%3Db%2Cc&limit=5&x");
        assert_eq!(query["labelSelector"], "a=b,c");
        assert_eq!((query["limit"].as_str(), query["x"].as_str()), ("5", ""));
    }
}
