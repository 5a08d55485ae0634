//! The `filters` of a list.

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::Value;

use super::wire::{Reply, Request};

/// Values by the filter's name.
#[derive(Debug, Default)]
pub(super) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads `{"label": ["a=b"]}` and the older `{"label": {"a=b": true}}`; a filter that is not known is refused.
    pub(super) fn of(request: &Request, known: &[&str]) -> Result<Self, Reply> {
        let refused = |why: String| Reply::error(StatusCode::BAD_REQUEST, why);
        let Some(text) = request.query("filters").filter(|text| !text.is_empty()) else {
            return Ok(Self::default());
        };
        let value: Value = serde_json::from_str(text).map_err(|error| refused(format!("invalid filter: {error}")))?;
        let map = value
            .as_object()
            .ok_or_else(|| refused("invalid filter: not an object".to_owned()))?;
        let mut filters = BTreeMap::new();
        for (name, values) in map {
            if !known.contains(&name.as_str()) {
                return Err(refused(format!("Invalid filter '{name}'")));
            }
            let values: Option<Vec<String>> = match values {
                Value::Array(list) => list.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
                Value::Object(set) => Some(set.keys().cloned().collect()),
                _ => None,
            };
            let values = values.ok_or_else(|| refused(format!("Invalid filter '{name}'")))?;
            filters.insert(name.clone(), values);
        }
        Ok(Self(filters))
    }

    pub(super) fn values(&self, name: &str) -> Option<&[String]> {
        self.0.get(name).map(Vec::as_slice).filter(|values| !values.is_empty())
    }

    /// One of the values is equal.
    pub(super) fn is(&self, name: &str, text: &str) -> bool {
        self.values(name)
            .is_none_or(|values| values.iter().any(|value| value == text))
    }

    /// One of the values begins it, as Swarm compares ids and names.
    pub(super) fn begins(&self, name: &str, text: &str) -> bool {
        self.values(name)
            .is_none_or(|values| values.iter().any(|value| text.starts_with(value.as_str())))
    }

    /// All of the values, a key or `key=value`, are among the labels.
    pub(super) fn labels<'a>(&self, name: &str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.values(name).is_none_or(|values| {
            values.iter().all(|value| match value.split_once('=') {
                Some((key, value)) => label(key) == Some(value),
                None => label(value).is_some(),
            })
        })
    }
}
