//! Patches: merge patches (RFC 7386), and strategic ones, which merge lists by their keys.

use serde_json::{Map, Value};

/// Merges a patch into an object.
pub(super) fn merge(old: Value, patch: &Value, strategic: bool) -> Value {
    merged(old, patch, strategic, "")
}

/// The key by which the items of a list are told apart; `None`: the list is replaced. `inside`: the field that the list
/// is a field of.
fn merge_key(field: &str, inside: &str) -> Option<&'static str> {
    Some(match field {
        "containers" | "initContainers" | "env" | "volumes" | "imagePullSecrets" => "name",
        "volumeMounts" => "mountPath",
        "ports" if inside == "containers" || inside == "initContainers" => "containerPort",
        "ports" => "port",
        "ownerReferences" => "uid",
        "conditions" => "type",
        _ => return None,
    })
}

fn merged(old: Value, patch: &Value, strategic: bool, field: &str) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut old = match old {
        Value::Object(old) => old,
        _ => Map::new(),
    };
    if strategic {
        match patch.get("$patch").and_then(Value::as_str) {
            Some("delete") => return Value::Null,
            Some("replace") => old.clear(),
            _ => {}
        }
    }
    for (key, value) in patch {
        if strategic && key.starts_with('$') {
            continue;
        }
        if value.is_null() {
            old.remove(key);
            continue;
        }
        let before = old.remove(key).unwrap_or(Value::Null);
        let after = match (value, merge_key(key, field)) {
            (Value::Array(items), Some(by)) if strategic => merged_list(before, items, by, key),
            _ => merged(before, value, strategic, key),
        };
        if !(after.is_null() && strategic) {
            old.insert(key.clone(), after);
        }
    }
    Value::Object(old)
}

fn merged_list(old: Value, patch: &[Value], by: &str, field: &str) -> Value {
    let mut old = match old {
        Value::Array(old) => old,
        _ => Vec::new(),
    };
    if patch.iter().any(|item| item["$patch"] == "replace") {
        old.clear();
    }
    for item in patch {
        if item["$patch"] == "replace" {
            continue;
        }
        let place = old.iter().position(|other| other[by] == item[by]);
        match (item["$patch"] == "delete", place) {
            (true, Some(place)) => drop(old.remove(place)),
            (true, None) => {}
            (false, Some(place)) => old[place] = merged(old[place].take(), item, true, field),
            (false, None) => old.push(merged(Value::Null, item, true, field)),
        }
    }
    Value::Array(old)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_replaces_lists_and_removes_nulls() {
        let old = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        let patch = json!({"a": {"b": null, "d": {"e": null, "f": 1}}, "l": [3]});
        assert_eq!(
            merge(old, &patch, false),
            json!({"a": {"c": 2, "d": {"f": 1}}, "l": [3]})
        );
    }

    #[test]
    fn a_strategic_patch_merges_lists_by_their_keys() {
        let old = json!({"containers": [{
            "name": "odoo", "image": "a",
            "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"x": 1}}, {"name": "C"}],
            "ports": [{"containerPort": 1, "name": "x"}],
            "readinessProbe": {"httpGet": {"path": "/"}, "periodSeconds": 9},
        }, {"name": "sidecar"}], "tolerations": [{"key": "a"}]});
        let patch = json!({"containers": [{
            "name": "odoo", "image": "b",
            "env": [
                {"name": "A", "$patch": "delete"}, {"name": "B", "value": "2", "valueFrom": null},
                {"name": "D", "value": "4", "valueFrom": null},
            ],
            "ports": [{"containerPort": 2}],
            "readinessProbe": {"$patch": "replace", "httpGet": {"path": "/x"}},
            "livenessProbe": null,
        }], "tolerations": [{"key": "b"}]});
        assert_eq!(
            merge(old, &patch, true),
            json!({"containers": [{
                "name": "odoo", "image": "b",
                "env": [{"name": "B", "value": "2"}, {"name": "C"}, {"name": "D", "value": "4"}],
                "ports": [{"containerPort": 1, "name": "x"}, {"containerPort": 2}],
                "readinessProbe": {"httpGet": {"path": "/x"}},
            }, {"name": "sidecar"}], "tolerations": [{"key": "b"}]})
        );
    }
}
