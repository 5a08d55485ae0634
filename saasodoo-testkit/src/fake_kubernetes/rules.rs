//! What the server checks and fills in before it writes an object.

use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use super::state::State;
use super::store::{CLAIMS, CLASSES, DEPLOYMENTS, Key, NAMESPACES, PODS, Resource, SECRETS, SERVICES, VOLUMES, text};

const REQUIRED: &str = "FieldValueRequired";
const INVALID: &str = "FieldValueInvalid";
const FORBIDDEN: &str = "FieldValueForbidden";

pub(super) const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
pub(super) const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

fn is_label(text: &str, letter_first: bool) -> bool {
    text.len() <= 63 && is_part(text, letter_first)
}

fn is_part(text: &str, letter_first: bool) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
        && alphanumeric(*last)
        && (first.is_ascii_lowercase() || (!letter_first && first.is_ascii_digit()))
}

fn is_subdomain(text: &str) -> bool {
    // The parts between the dots may be longer than a label.
    text.len() <= 253 && text.split('.').all(|part| is_part(part, false))
}

/// The part of a label's key after the slash, and a label's value.
fn is_word(text: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && end(text.chars().next())
        && end(text.chars().last())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_word(name),
        None => is_word(key),
    }
}

/// Checks the metadata of any object.
fn metadata(resource: Resource, name: &str, object: &Value) -> Result<(), Refusal> {
    let sound = match resource {
        SERVICES => is_label(name, true),
        NAMESPACES => is_label(name, false),
        _ => is_subdomain(name),
    };
    if !sound {
        let rule = match resource {
            SERVICES => "a DNS-1035 label must consist of lower case alphanumeric characters or '-'",
            NAMESPACES => "a DNS-1123 label must consist of lower case alphanumeric characters or '-'",
            _ => "a DNS-1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'",
        };
        let why = format!("Invalid value: {name:?}: {rule}");
        return Err(Refusal::invalid(resource, name, "metadata.name", INVALID, &why));
    }
    labels(resource, name, "metadata.labels", &object["metadata"]["labels"])?;
    let annotations = object["metadata"]["annotations"].as_object();
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        if !is_qualified(key) || !value.is_string() {
            let why = format!("Invalid value: {key:?}: name part must consist of alphanumeric characters");
            return Err(Refusal::invalid(resource, name, "metadata.annotations", INVALID, &why));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > 256 * 1024 {
        let why = "Too long: must have at most 262144 bytes";
        return Err(Refusal::invalid(
            resource,
            name,
            "metadata.annotations",
            "FieldValueTooLong",
            why,
        ));
    }
    Ok(())
}

fn labels(resource: Resource, name: &str, field: &str, labels: &Value) -> Result<(), Refusal> {
    for (key, value) in labels.as_object().into_iter().flatten() {
        let wrong = match value.as_str() {
            _ if !is_qualified(key) => key.as_str(),
            Some(value) if value.is_empty() || is_word(value) => continue,
            Some(value) => value,
            None => return Err(Refusal::bad(format!("{field}: the value of {key} is no string"))),
        };
        let why = format!(
            "Invalid value: {wrong:?}: a valid label must be an empty string or consist of alphanumeric characters"
        );
        return Err(Refusal::invalid(resource, name, field, INVALID, &why));
    }
    Ok(())
}

impl State {
    /// Fills in and checks a new object.
    pub(super) fn admit(&mut self, key: &Key, object: &mut Value) -> Result<(), Refusal> {
        let (resource, name) = (key.resource, key.name.as_str());
        metadata(resource, name, object)?;
        let missing = |field: &str| Refusal::invalid(resource, name, field, REQUIRED, "Required value");
        match resource {
            DEPLOYMENTS => {
                deployment(name, object)?;
                object["status"] = json!({});
            }
            PODS => {
                if object["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
                    return Err(missing("spec.containers"));
                }
                object["status"] = json!({"phase": "Pending"});
            }
            CLAIMS => {
                if text(object, "/spec/resources/requests/storage").is_empty() {
                    return Err(missing("spec.resources[storage]"));
                }
                if object["spec"]["accessModes"].as_array().is_none_or(Vec::is_empty) {
                    return Err(missing("spec.accessModes"));
                }
                if object["spec"]["storageClassName"].is_null()
                    && let Some(class) = self.default_class()
                {
                    object["spec"]["storageClassName"] = json!(class);
                }
                fill(&mut object["spec"], json!({"volumeMode": "Filesystem"}));
                object["metadata"]["finalizers"] = json!([CLAIM_PROTECTION]);
                object["status"] = json!({"phase": "Pending"});
            }
            VOLUMES => {
                if text(object, "/spec/capacity/storage").is_empty() {
                    return Err(missing("spec.capacity"));
                }
                fill(
                    &mut object["spec"],
                    json!({"persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"}),
                );
                object["metadata"]["finalizers"] = json!([VOLUME_PROTECTION]);
                object["status"] = json!({"phase": "Pending"});
            }
            SECRETS => {
                let plain = object.as_object_mut().and_then(|object| object.remove("stringData"));
                for (key, value) in plain.as_ref().and_then(Value::as_object).into_iter().flatten() {
                    object["data"][key] = json!(base64(value.as_str().unwrap_or_default().as_bytes()));
                }
                fill(object, json!({"type": "Opaque"}));
            }
            SERVICES => {
                if object["spec"]["ports"].as_array().is_none_or(Vec::is_empty) {
                    return Err(missing("spec.ports"));
                }
                let address = self.next_address("10.96");
                fill(
                    &mut object["spec"],
                    json!({"type": "ClusterIP", "sessionAffinity": "None", "clusterIP": address}),
                );
                object["status"] = json!({"loadBalancer": {}});
            }
            CLASSES => {
                if text(object, "/provisioner").is_empty() {
                    return Err(missing("provisioner"));
                }
                fill(
                    object,
                    json!({"reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}),
                );
            }
            NAMESPACES => object["status"] = json!({"phase": "Active"}),
            _ => {}
        }
        Ok(())
    }

    /// Checks a change of an object, and counts its generation.
    pub(super) fn admit_change(&self, key: &Key, old: &Value, new: &mut Value) -> Result<(), Refusal> {
        let (resource, name) = (key.resource, key.name.as_str());
        let kept = [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "selfLink",
        ];
        for field in kept {
            if old["metadata"][field].is_null() {
                if let Some(metadata) = new["metadata"].as_object_mut() {
                    metadata.remove(field);
                }
            } else {
                new["metadata"][field] = old["metadata"][field].clone();
            }
        }
        new["apiVersion"] = json!(resource.api_version());
        new["kind"] = json!(resource.kind);
        if old["status"].is_null() {
            if let Some(object) = new.as_object_mut() {
                object.remove("status");
            }
        } else {
            new["status"] = old["status"].clone();
        }
        metadata(resource, name, new)?;
        let immutable = |field: &str| Refusal::invalid(resource, name, field, INVALID, "field is immutable");
        match resource {
            DEPLOYMENTS => {
                deployment(name, new)?;
                if old["spec"]["selector"] != new["spec"]["selector"] {
                    return Err(immutable("spec.selector"));
                }
            }
            CLAIMS => self.claim_change(name, old, new)?,
            PODS => {
                let image = |object: &Value| {
                    let mut spec = object["spec"].clone();
                    for container in spec["containers"].as_array_mut().into_iter().flatten() {
                        container["image"] = Value::Null;
                    }
                    spec
                };
                if image(old) != image(new) {
                    let why = "Forbidden: pod updates may not change fields other than the image";
                    return Err(Refusal::invalid(resource, name, "spec", FORBIDDEN, why));
                }
            }
            VOLUMES
                if old["spec"]["hostPath"] != new["spec"]["hostPath"] || old["spec"]["csi"] != new["spec"]["csi"] =>
            {
                let why = "Forbidden: spec.persistentvolumesource is immutable after creation";
                return Err(Refusal::invalid(
                    resource,
                    name,
                    "spec.persistentvolumesource",
                    FORBIDDEN,
                    why,
                ));
            }
            SERVICES if old["spec"]["clusterIP"] != new["spec"]["clusterIP"] => {
                return Err(immutable("spec.clusterIP"));
            }
            CLASSES if old["provisioner"] != new["provisioner"] => return Err(immutable("provisioner")),
            _ => {}
        }
        if let Some(generation) = old["metadata"]["generation"].as_i64()
            && counts(resource, old, new)
        {
            new["metadata"]["generation"] = json!(generation + 1);
        }
        Ok(())
    }

    fn claim_change(&self, name: &str, old: &Value, new: &Value) -> Result<(), Refusal> {
        let asked = "/spec/resources/requests/storage";
        let without = |object: &Value| {
            let mut spec = object["spec"].clone();
            spec["resources"]["requests"]["storage"] = Value::Null;
            spec
        };
        let (before, after) = (text(old, asked), text(new, asked));
        let bound = old["status"]["phase"] == "Bound";
        if without(old) != without(new) || (before != after && !bound) {
            let why = "Forbidden: spec is immutable after creation except resources.requests for bound claims";
            return Err(Refusal::invalid(CLAIMS, name, "spec", FORBIDDEN, why));
        }
        if before == after {
            return Ok(());
        }
        let (Some(less), Some(more)) = (bytes(before), bytes(after)) else {
            return Err(Refusal::bad("quantities must match the regular expression"));
        };
        if more < less {
            let why = "Forbidden: field can not be less than previous value";
            return Err(Refusal::invalid(
                CLAIMS,
                name,
                "spec.resources.requests.storage",
                FORBIDDEN,
                why,
            ));
        }
        let class = Key::new(CLASSES, "", text(old, "/spec/storageClassName"));
        if self
            .store
            .get(&class)
            .is_none_or(|class| class["allowVolumeExpansion"] != true)
        {
            let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                       support resize";
            return Err(Refusal::forbidden(CLAIMS, name, why));
        }
        Ok(())
    }

    fn default_class(&self) -> Option<String> {
        let marked = "/metadata/annotations/storageclass.kubernetes.io~1is-default-class";
        let mut classes = self.store.all(CLASSES, "");
        classes
            .find(|(_, class)| text(class, marked) == "true")
            .map(|(key, _)| key.name.clone())
    }
}

/// Whether a change raises the generation. That of a Deployment is raised by its annotations too, for the controller
/// copies them to what it makes.
fn counts(resource: Resource, old: &Value, new: &Value) -> bool {
    if resource.is_custom() {
        let content = |object: &Value| {
            let mut content = object.clone();
            for field in ["metadata", "status"] {
                content[field] = Value::Null;
            }
            content
        };
        return content(old) != content(new);
    }
    let annotations = |object: &Value| match object["metadata"]["annotations"].clone() {
        Value::Null => json!({}),
        present => present,
    };
    old["spec"] != new["spec"] || (resource == DEPLOYMENTS && annotations(old) != annotations(new))
}

/// Whether objects of this kind have a generation.
pub(super) fn has_generation(resource: Resource) -> bool {
    resource == DEPLOYMENTS || resource.is_custom() || matches!(resource.plural, "ingresses" | "networkpolicies")
}

fn deployment(name: &str, object: &mut Value) -> Result<(), Refusal> {
    let wrong = |field: &str, reason: &str, why: &str| Err(Refusal::invalid(DEPLOYMENTS, name, field, reason, why));
    let spec = &mut object["spec"];
    let grown = spec["template"]["spec"]["containers"]
        .as_array()
        .is_none_or(Vec::is_empty);
    if grown {
        return wrong("spec.template.spec.containers", REQUIRED, "Required value");
    }
    fill(
        spec,
        json!({
            "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate"},
        }),
    );
    fill(
        &mut spec["template"]["spec"],
        json!({
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30, "securityContext": {},
        }),
    );
    if spec["replicas"].as_i64().is_none_or(|replicas| replicas < 0) {
        return wrong(
            "spec.replicas",
            INVALID,
            "Invalid value: must be greater than or equal to 0",
        );
    }
    let selected = spec["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
    let present = &spec["template"]["metadata"]["labels"];
    if selected.is_empty() {
        return wrong("spec.selector", REQUIRED, "Required value");
    }
    if selected.iter().any(|(key, value)| present.get(key) != Some(value)) {
        let why = "Invalid value: `selector` does not match template `labels`";
        return wrong("spec.template.metadata.labels", INVALID, why);
    }
    labels(DEPLOYMENTS, name, "spec.template.labels", present)?;
    let containers = spec["template"]["spec"]["containers"].as_array_mut();
    let mut names = Vec::new();
    for (index, container) in containers.into_iter().flatten().enumerate() {
        let field = |field: &str| format!("spec.template.spec.containers[{index}].{field}");
        let own = text(container, "/name").to_owned();
        if !is_label(&own, false) {
            return wrong(&field("name"), INVALID, "Invalid value: a DNS-1123 label must be given");
        }
        if names.contains(&own) {
            return wrong(&field("name"), "FieldValueDuplicate", "Duplicate value");
        }
        names.push(own);
        if text(container, "/image").is_empty() {
            return wrong(&field("image"), REQUIRED, "Required value");
        }
        fill(
            container,
            json!({
                "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File", "resources": {},
            }),
        );
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            if container[probe].is_object() {
                fill(
                    &mut container[probe],
                    json!({"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}),
                );
            }
        }
        for variable in container["env"].as_array_mut().into_iter().flatten() {
            let sound = text(variable, "/name");
            if sound.is_empty() || sound.contains(['=', '\0']) || sound.starts_with(|c: char| c.is_ascii_digit()) {
                return wrong(
                    &field("env"),
                    INVALID,
                    "Invalid value: a valid environment variable name is needed",
                );
            }
            // The server does not keep an empty value.
            if variable["value"] == ""
                && let Some(variable) = variable.as_object_mut()
            {
                variable.remove("value");
            }
        }
        for (resource, limit) in container["resources"]["limits"].as_object().into_iter().flatten() {
            let requested = &container["resources"]["requests"][resource];
            let amount = if resource == "cpu" { millis } else { bytes };
            let (Some(limit), requested) = (limit.as_str().and_then(amount), requested.as_str().and_then(amount))
            else {
                return Err(Refusal::bad("quantities must match the regular expression"));
            };
            if requested.is_some_and(|requested| requested > limit) {
                let why = format!("Invalid value: must be less than or equal to {resource} limit");
                return wrong(&field("resources.requests"), INVALID, &why);
            }
        }
        if let Some(container) = container.as_object_mut() {
            container.retain(|_, value| !value.is_null());
        }
    }
    Ok(())
}

/// Sets fields that are not there.
fn fill(object: &mut Value, defaults: Value) {
    let Value::Object(defaults) = defaults else { return };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    if let Some(object) = object.as_object_mut() {
        for (key, value) in defaults {
            if object.get(&key).is_none_or(Value::is_null) {
                object.insert(key, value);
            }
        }
    }
}

/// A quantity in bytes, rounded up.
pub(super) fn bytes(text: &str) -> Option<u64> {
    saasodoo_core::Bytes::from_kubernetes(text)
        .ok()
        .map(saasodoo_core::Bytes::get)
}

/// A quantity of processors in thousandths.
fn millis(text: &str) -> Option<u64> {
    let cpu: saasodoo_core::Cpu = text.parse().ok()?;
    Some(cpu.millis().into())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = usize::try_from(group >> (18 - 6 * place) & 63).unwrap_or(0);
            text.push(if place <= chunk.len() {
                char::from(DIGITS[digit])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_kept_in_base64() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("shared", "c2hhcmVk"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
