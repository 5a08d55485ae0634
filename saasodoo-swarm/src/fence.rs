//! A constraint that no node fits, on suspended services.
//!
//! The system in production knows no holds: a suspended service that it, or somebody with `docker service scale`, scales
//! up would run, maybe beside the same instance on another platform. With this constraint its task stays pending. Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::convert::{child, label, set_label};
use crate::task::timestamp;

/// No node has this for an id, and no label can give it to one.
const FENCE: &str = "node.id==saasodoo-suspended";
/// The same on a service that had no placement at all, which it has not afterwards either.
const FENCE_ALONE: &str = "node.id==saasodoo-suspended-alone";

pub(crate) fn is_fence(constraint: &str) -> bool {
    constraint == FENCE || constraint == FENCE_ALONE
}

const PLACEMENT: &str = "/TaskTemplate/Placement";

/// Adds the constraint, and a label that says since when: later changes of labels move the service's own time.
pub(crate) fn raise(body: &mut Value, now: Timestamp) {
    if is_raised(body) {
        return;
    }
    set_label(body, label::SUSPENDED_AT, Some(now.to_string()));
    let alone = body.pointer(PLACEMENT).is_none_or(Value::is_null);
    let constraints = child(body, &["TaskTemplate", "Placement", "Constraints"]);
    let mut list = constraints.as_array().cloned().unwrap_or_default();
    list.push(json!(if alone { FENCE_ALONE } else { FENCE }));
    *constraints = Value::Array(list);
}

/// Takes it away again; the body is afterwards as it was before.
pub(crate) fn lower(body: &mut Value) {
    set_label(body, label::SUSPENDED_AT, None);
    let Some(placement) = body.pointer_mut(PLACEMENT).and_then(Value::as_object_mut) else {
        return;
    };
    let Some(list) = placement.get_mut("Constraints").and_then(Value::as_array_mut) else {
        return;
    };
    let before = list.len();
    let alone = list.iter().any(|constraint| constraint.as_str() == Some(FENCE_ALONE));
    list.retain(|constraint| !constraint.as_str().is_some_and(is_fence));
    if list.len() == before || !list.is_empty() {
        return;
    }
    placement.remove("Constraints");
    if alone
        && placement.is_empty()
        && let Some(template) = body.pointer_mut("/TaskTemplate").and_then(Value::as_object_mut)
    {
        template.remove("Placement");
    }
}

pub(crate) fn is_raised(body: &Value) -> bool {
    let constraints = body
        .pointer(PLACEMENT)
        .and_then(|placement| placement.get("Constraints"));
    let list = constraints.and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .any(|constraint| constraint.as_str().is_some_and(is_fence))
}

/// Since when it is there. `None`: a version before this one raised it, or somebody by hand.
pub(crate) fn raised_at(body: &Value) -> Option<Timestamp> {
    let label = body.pointer("/Labels")?.get(label::SUSPENDED_AT)?.as_str()?;
    timestamp(label).filter(|_| is_raised(body))
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;

    #[test]
    fn a_fence_leaves_nothing_behind() {
        for template in [
            json!({}),
            json!({"Placement": {}}),
            json!({"Placement": {"Platforms": [{"OS": "linux"}]}}),
            json!({"Placement": {"Constraints": ["node.labels.a == b", "node.role!=manager"], "MaxReplicas": 1}}),
        ] {
            let before = json!({"Name": "x", "Labels": {"a": "b"}, "TaskTemplate": template});
            let mut body = before.clone();
            lower(&mut body);
            assert_eq!(body, before, "there is none to lower");
            let (first, later) = (
                Timestamp::UNIX_EPOCH + 10.seconds(),
                Timestamp::UNIX_EPOCH + 20.seconds(),
            );
            raise(&mut body, first);
            assert!(is_raised(&body) && body != before);
            let once = body.clone();
            raise(&mut body, later);
            assert_eq!(raised_at(&body), Some(first));
            assert_eq!(body, once, "one is enough");
            lower(&mut body);
            assert_eq!(body, before);
        }
    }
}
