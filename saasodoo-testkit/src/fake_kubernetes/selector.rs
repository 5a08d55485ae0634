//! Label and field selectors.

use serde_json::Value;

use super::refusal::Refusal;
use super::store::text;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
    /// A field: its pointer and value.
    Field(&'static str, String, bool),
}

/// Which objects are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Term>);

impl Selector {
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, Refusal> {
        let mut terms = Vec::new();
        for term in split(labels) {
            terms.push(label_term(term).ok_or_else(|| Refusal::bad(format!("unable to parse requirement: {term}")))?);
        }
        for term in split(fields) {
            terms.push(field_term(term)?);
        }
        Ok(Self(terms))
    }

    pub(super) fn fits(&self, object: &Value) -> bool {
        let label = |key: &String| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        self.0.iter().all(|term| match term {
            Term::In(key, values) => label(key).is_some_and(|value| values.iter().any(|other| other == value)),
            // An object without the label is not in the set either.
            Term::NotIn(key, values) => !label(key).is_some_and(|value| values.iter().any(|other| other == value)),
            Term::Exists(key) => label(key).is_some(),
            Term::Missing(key) => label(key).is_none(),
            Term::Field(pointer, value, equal) => (text(object, pointer) == value) == *equal,
        })
    }
}

/// At the commas outside of parentheses.
fn split(selector: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    selector
        .split(move |c: char| {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            c == ',' && depth == 0
        })
        .map(str::trim)
        .filter(|term| !term.is_empty())
}

fn label_term(term: &str) -> Option<Term> {
    let set = |text: &str| -> Option<Vec<String>> {
        let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
    };
    let key = |text: &str| {
        let text = text.trim();
        let sound = !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'));
        sound.then(|| text.to_owned())
    };
    if let Some((name, values)) = term.split_once(" notin ") {
        return Some(Term::NotIn(key(name)?, set(values)?));
    }
    if let Some((name, values)) = term.split_once(" in ") {
        return Some(Term::In(key(name)?, set(values)?));
    }
    if let Some((name, value)) = term.split_once("!=") {
        return Some(Term::NotIn(key(name)?, vec![value.trim().to_owned()]));
    }
    if let Some((name, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Some(Term::In(key(name)?, vec![value.trim().to_owned()]));
    }
    if let Some(name) = term.strip_prefix('!') {
        return Some(Term::Missing(key(name)?));
    }
    Some(Term::Exists(key(term)?))
}

fn field_term(term: &str) -> Result<Term, Refusal> {
    let (field, value, equal) = match term.split_once("!=") {
        Some((field, value)) => (field, value, false),
        None => {
            let parts = term.split_once("==").or_else(|| term.split_once('='));
            let (field, value) = parts.ok_or_else(|| Refusal::bad(format!("invalid field selector: {term}")))?;
            (field, value, true)
        }
    };
    let pointer = match field {
        "metadata.name" => "/metadata/name",
        "metadata.namespace" => "/metadata/namespace",
        "spec.nodeName" => "/spec/nodeName",
        "status.phase" => "/status/phase",
        _ => return Err(Refusal::bad(format!("field label not supported: {field}"))),
    };
    Ok(Term::Field(pointer, value.to_owned(), equal))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_pick_as_the_server_does() {
        let object = json!({"metadata": {"name": "x", "labels": {"app": "odoo", "tier": "a", "n/k": ""}}});
        for (labels, fields, fits) in [
            ("", "", true),
            ("app=odoo", "", true),
            ("app==odoo,tier in (a, b)", "", true),
            ("app!=odoo", "", false),
            ("other!=odoo", "", true),
            ("tier notin (a)", "", false),
            ("other notin (a)", "", true),
            ("n/k", "", true),
            ("!n/k", "", false),
            ("!other", "", true),
            ("other", "", false),
            ("app=odoo", "metadata.name=x", true),
            ("", "metadata.name!=x", false),
        ] {
            let selector = Selector::parse(labels, fields).expect("a selector");
            assert_eq!(selector.fits(&object), fits, "{labels} {fields}");
        }
        for (labels, fields) in [("a b", ""), ("=x", ""), ("a in x", ""), ("", "spec.x=1"), ("", "x")] {
            assert_eq!(
                Selector::parse(labels, fields).map_err(|refusal| refusal.code),
                Err(400)
            );
        }
    }
}
