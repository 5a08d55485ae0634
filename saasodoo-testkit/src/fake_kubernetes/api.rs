//! What the server answers.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};

use super::merge::merge;
use super::refusal::Refusal;
use super::request::{Asked, Target};
use super::rules::has_generation;
use super::selector::Selector;
use super::state::{Job, NOTICED, State};
use super::store::{Key, NAMESPACES, Object, PODS, Resource, Rest, finalizers, is_deleting, text, uid};

type Answer = Result<(u16, Value), Refusal>;

/// The version that the server says it is.
const VERSION: &str = "v1.33.0-fake";
pub(super) const FOREGROUND: &str = "foregroundDeletion";

impl State {
    /// Answers a request that is no stream.
    pub(super) fn answer(&mut self, asked: &Asked) -> Answer {
        match (&asked.target, asked.method.as_str()) {
            (Target::Version, "GET") => Ok((200, json!({"major": "1", "minor": "33", "gitVersion": VERSION}))),
            (Target::AccessReview, "POST") => self.review(asked),
            (Target::Collection(resource, namespace), "GET") => {
                self.allowed("list", *resource, "")?;
                self.list(*resource, namespace, asked)
            }
            (Target::Collection(resource, namespace), "POST") => {
                self.allowed("create", *resource, "")?;
                self.create(*resource, namespace, asked)
            }
            (Target::Object(resource, namespace, name), method) => {
                let key = Key::new(*resource, namespace, name);
                let verb = match method {
                    "GET" => "get",
                    "PATCH" => "patch",
                    "PUT" => "update",
                    "DELETE" => "delete",
                    other => return Err(Refusal::method(other)),
                };
                self.allowed(verb, *resource, "")?;
                let present = self.store.get(&key).cloned();
                let present = present.ok_or_else(|| Refusal::not_found(*resource, name))?;
                match method {
                    "GET" => Ok((200, (*present).clone())),
                    "DELETE" => self.delete(&key, &present, asked),
                    _ => self.change(&key, &present, asked),
                }
            }
            (_, other) => Err(Refusal::method(other)),
        }
    }

    /// Whether the caller may do this.
    pub(super) fn allowed(&self, verb: &str, resource: Resource, sub: &str) -> Result<(), Refusal> {
        let denied = (verb.to_owned(), format!("{}{sub}", resource.plural));
        if self.denied.contains(&denied) {
            return Err(Refusal::not_allowed(resource, verb));
        }
        Ok(())
    }

    fn review(&self, asked: &Asked) -> Answer {
        let mut review = json_body(asked)?;
        let attributes = &review["spec"]["resourceAttributes"];
        let sub = match text(attributes, "/subresource") {
            "" => String::new(),
            sub => format!("/{sub}"),
        };
        let what = format!("{}{sub}", text(attributes, "/resource"));
        let allowed = !self.denied.contains(&(text(attributes, "/verb").to_owned(), what));
        review["status"] = json!({"allowed": allowed});
        Ok((201, review))
    }

    fn list(&mut self, resource: Resource, namespace: &str, asked: &Asked) -> Answer {
        let token = asked.text("continue");
        let rest = if token.is_empty() {
            let selector = Selector::parse(asked.text("labelSelector"), asked.text("fieldSelector"))?;
            let all = self.store.all(resource, namespace);
            let items: VecDeque<Object> = all
                .filter(|(_, object)| selector.fits(object))
                .map(|(_, object)| Arc::clone(object))
                .collect();
            Rest {
                version: self.store.version(),
                items,
            }
        } else {
            let gone = "The provided continue parameter is too old to display a consistent list result";
            self.store.take_page(token).ok_or_else(|| Refusal::expired(gone))?
        };
        let Rest { version, mut items } = rest;
        let limit = asked.number("limit")?.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let left = if items.len() > limit {
            items.split_off(limit)
        } else {
            VecDeque::new()
        };
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if !left.is_empty() {
            metadata["continue"] = json!(self.store.keep_page(Rest { version, items: left }));
        }
        let items: Vec<Value> = items.iter().map(|object| listed(object)).collect();
        Ok((
            200,
            json!({
                "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(),
                "metadata": metadata, "items": items,
            }),
        ))
    }

    fn create(&mut self, resource: Resource, namespace: &str, asked: &Asked) -> Answer {
        let mut object = json_body(asked)?;
        if object["kind"] != resource.kind || object["apiVersion"] != resource.api_version() {
            return Err(Refusal::bad(format!(
                "{} in version {} cannot be handled as a {}",
                object["kind"], object["apiVersion"], resource.kind
            )));
        }
        if resource.namespaced {
            let there = self.store.get(&Key::new(NAMESPACES, "", namespace)).is_some();
            if !there {
                return Err(Refusal::not_found(NAMESPACES, namespace));
            }
            let own = text(&object, "/metadata/namespace");
            if !own.is_empty() && own != namespace {
                return Err(Refusal::bad(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        }
        let mut name = text(&object, "/metadata/name").to_owned();
        let prefix = text(&object, "/metadata/generateName");
        if name.is_empty() && !prefix.is_empty() {
            let number = self.next_number();
            name = format!("{prefix}{number:05}");
        }
        if name.is_empty() {
            let why = "Required value: name or generateName is required";
            return Err(Refusal::invalid(
                resource,
                "",
                "metadata.name",
                "FieldValueRequired",
                why,
            ));
        }
        let key = Key::new(resource, namespace, &name);
        let mut metadata = self.metadata_of(&key);
        for kept in ["labels", "annotations", "ownerReferences", "finalizers", "generateName"] {
            let value = &object["metadata"][kept];
            if value.as_object().is_some_and(|map| !map.is_empty())
                || value.as_array().is_some_and(|list| !list.is_empty())
                || value.is_string()
            {
                metadata[kept] = value.clone();
            }
        }
        if has_generation(resource) {
            metadata["generation"] = json!(1);
        }
        object["metadata"] = metadata;
        self.admit(&key, &mut object)?;
        if self.store.get(&key).is_some() {
            return Err(Refusal::exists(resource, &name));
        }
        if asked.is_dry()? {
            return Ok((201, object));
        }
        let object = self.write(&key, object);
        if resource == PODS {
            self.begin_pod(&key, &object);
        }
        Ok((201, (*object).clone()))
    }

    fn change(&mut self, key: &Key, present: &Value, asked: &Asked) -> Answer {
        let body = json_body(asked)?;
        let version = text(&body, "/metadata/resourceVersion");
        if !version.is_empty() && version != text(present, "/metadata/resourceVersion") {
            return Err(Refusal::modified(key.resource, &key.name));
        }
        let (wanted, seen) = (text(&body, "/metadata/uid"), uid(present));
        if !wanted.is_empty() && wanted != seen {
            // For a patch the UID is a field like another, for a replacement it is a precondition.
            return Err(if asked.method == "PUT" {
                Refusal::other_uid(key.resource, &key.name, wanted, seen)
            } else {
                let why = format!("Invalid value: {wanted:?}: field is immutable");
                Refusal::invalid(key.resource, &key.name, "metadata.uid", "FieldValueInvalid", &why)
            });
        }
        let mut object = if asked.method == "PUT" {
            body
        } else {
            let strategic = match asked.content_type.as_str() {
                "application/merge-patch+json" => false,
                "application/strategic-merge-patch+json" if !key.resource.is_custom() => true,
                other => return Err(Refusal::media_type(other)),
            };
            merge(present.clone(), &body, strategic)
        };
        for empty in ["labels", "annotations", "finalizers"] {
            let value = &object["metadata"][empty];
            let nothing = value.as_object().is_some_and(serde_json::Map::is_empty)
                || value.as_array().is_some_and(Vec::is_empty)
                || value.is_null();
            if let Some(metadata) = object["metadata"].as_object_mut().filter(|_| nothing) {
                metadata.remove(empty);
            }
        }
        self.admit_change(key, present, &mut object)?;
        if asked.is_dry()? {
            return Ok((200, object));
        }
        let object = self.write(key, object);
        if is_deleting(&object) && finalizers(&object).is_empty() && key.resource != PODS {
            self.erase(key);
        }
        Ok((200, (*object).clone()))
    }

    fn delete(&mut self, key: &Key, present: &Object, asked: &Asked) -> Answer {
        let options = if asked.body.is_empty() {
            json!({})
        } else {
            json_body(asked)?
        };
        let (wanted, seen) = (text(&options, "/preconditions/uid"), uid(present));
        if !wanted.is_empty() && wanted != seen {
            return Err(Refusal::other_uid(key.resource, &key.name, wanted, seen));
        }
        let version = text(&options, "/preconditions/resourceVersion");
        if !version.is_empty() && version != text(present, "/metadata/resourceVersion") {
            return Err(Refusal::modified(key.resource, &key.name));
        }
        if asked.is_dry()? || options["dryRun"].as_array().is_some_and(|stages| !stages.is_empty()) {
            return Ok((200, (**present).clone()));
        }
        let policy = match text(&options, "/propagationPolicy") {
            "" => asked.text("propagationPolicy"),
            policy => policy,
        };
        let grace = match options["gracePeriodSeconds"].as_u64() {
            Some(seconds) => Some(seconds),
            None => asked.number("gracePeriodSeconds")?,
        };
        let uid = seen.to_owned();
        Ok(match self.begin_deletion(key, policy, grace) {
            Some(object) => (200, (*object).clone()),
            None => (
                200,
                json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": {
                        "name": key.name, "group": key.resource.group, "kind": key.resource.plural, "uid": uid,
                    },
                }),
            ),
        })
    }

    /// Deletes an object, or marks it where something has to come first. Answers with what is left of it.
    pub(super) fn begin_deletion(&mut self, key: &Key, policy: &str, grace: Option<u64>) -> Option<Object> {
        let mut object = (**self.store.get(key)?).clone();
        if key.resource == PODS {
            return self.delete_pod(key, &object, grace);
        }
        if policy == "Orphan" {
            self.orphan(uid(&object));
        }
        if policy == "Foreground" && !finalizers(&object).contains(&FOREGROUND) {
            let mut list = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            list.push(json!(FOREGROUND));
            object["metadata"]["finalizers"] = json!(list);
        }
        if finalizers(&object).is_empty() {
            self.erase(key);
            return None;
        }
        if !is_deleting(&object) {
            object["metadata"]["deletionTimestamp"] = json!(self.stamp());
            object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
            if let Some(generation) = object["metadata"]["generation"].as_i64() {
                object["metadata"]["generation"] = json!(generation + 1);
            }
        }
        let object = self.write(key, object);
        self.later(Job::Collect, NOTICED);
        Some(object)
    }
}

/// Items of a list do not say what they are.
fn listed(object: &Value) -> Value {
    let mut item = object.clone();
    if let Some(item) = item.as_object_mut() {
        item.remove("kind");
        item.remove("apiVersion");
    }
    item
}

fn json_body(asked: &Asked) -> Result<Value, Refusal> {
    let body: Result<Value, _> = serde_json::from_slice(&asked.body);
    match body {
        Ok(body) if body.is_object() => Ok(body),
        Ok(_) => Err(Refusal::bad("the body is no object")),
        Err(error) => Err(Refusal::bad(format!("the body cannot be read: {error}"))),
    }
}
