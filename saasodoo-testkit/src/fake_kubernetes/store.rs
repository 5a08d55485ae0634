//! The objects: one global version, a history for watches, and pages of lists that stay as they were.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

/// An object as it was at one version.
pub(super) type Object = Arc<Value>;

/// How many changes are kept for watches.
const HISTORY: usize = 20_000;

/// A kind of objects and where it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resource {
    pub(super) plural: &'static str,
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
}

impl Resource {
    const fn new(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        kind: &'static str,
        namespaced: bool,
    ) -> Self {
        Self {
            plural,
            group,
            version,
            kind,
            namespaced,
        }
    }

    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// As messages of the server name it: `deployments.apps`.
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Custom resources take no strategic merge, and their generation counts every change but that of metadata.
    pub(super) fn is_custom(&self) -> bool {
        self.group.contains('.') && !self.group.ends_with(".k8s.io")
    }
}

pub(super) const DEPLOYMENTS: Resource = Resource::new("apps", "v1", "deployments", "Deployment", true);
pub(super) const PODS: Resource = Resource::new("", "v1", "pods", "Pod", true);
pub(super) const CLAIMS: Resource = Resource::new("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", true);
pub(super) const VOLUMES: Resource = Resource::new("", "v1", "persistentvolumes", "PersistentVolume", false);
pub(super) const SECRETS: Resource = Resource::new("", "v1", "secrets", "Secret", true);
pub(super) const SERVICES: Resource = Resource::new("", "v1", "services", "Service", true);
pub(super) const CLASSES: Resource = Resource::new("storage.k8s.io", "v1", "storageclasses", "StorageClass", false);
pub(super) const NAMESPACES: Resource = Resource::new("", "v1", "namespaces", "Namespace", false);

/// Everything that is served.
pub(super) const RESOURCES: [Resource; 13] = [
    DEPLOYMENTS,
    PODS,
    CLAIMS,
    VOLUMES,
    SECRETS,
    SERVICES,
    CLASSES,
    NAMESPACES,
    Resource::new("", "v1", "configmaps", "ConfigMap", true),
    Resource::new("", "v1", "serviceaccounts", "ServiceAccount", true),
    Resource::new("traefik.io", "v1alpha1", "ingressroutes", "IngressRoute", true),
    Resource::new("networking.k8s.io", "v1", "ingresses", "Ingress", true),
    Resource::new("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", true),
];

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) resource: Resource,
    /// Empty for what belongs to the whole cluster.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn new(resource: Resource, namespace: &str, name: &str) -> Self {
        let namespace = if resource.namespaced { namespace } else { "" };
        Self {
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// One change, as watches see it.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) resource: Resource,
    pub(super) namespace: String,
    pub(super) before: Option<Object>,
    /// `None`: it was deleted.
    pub(super) after: Option<Object>,
}

/// What is left of a list that is read page by page.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) version: u64,
    pub(super) items: VecDeque<Object>,
}

#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<Key, Object>,
    history: VecDeque<Change>,
    /// Changes up to this version are forgotten.
    compacted: u64,
    pages: BTreeMap<u64, Rest>,
    next_page: u64,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            // A server is never at its first version.
            version: 1000,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            compacted: 1000,
            pages: BTreeMap::new(),
            next_page: 1,
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn compacted(&self) -> u64 {
        self.compacted
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// All objects of a kind, in the order of their keys. An empty namespace: of all.
    pub(super) fn all(&self, resource: Resource, namespace: &str) -> impl Iterator<Item = (&Key, &Object)> {
        let from = Key::new(resource, namespace, "");
        self.objects
            .range(from..)
            .take_while(move |(key, _)| key.resource == resource)
            .filter(move |(key, _)| namespace.is_empty() || key.namespace == namespace)
    }

    /// All objects of all kinds.
    pub(super) fn everything(&self) -> impl Iterator<Item = (&Key, &Object)> {
        self.objects.iter()
    }

    /// Writes an object under the next version. One that is as it was keeps its version, and nobody is told.
    pub(super) fn put(&mut self, key: &Key, mut object: Value) -> Object {
        let before = self.objects.get(key).cloned();
        if let Some(before) = &before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if object == **before {
                return Arc::clone(before);
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let after = Arc::new(object);
        self.objects.insert(key.clone(), Arc::clone(&after));
        self.record(key, before, Some(Arc::clone(&after)));
        after
    }

    /// Removes an object; what it was, under the version of its removal.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Object> {
        let before = self.objects.remove(key)?;
        self.version += 1;
        let mut last = (*before).clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let last = Arc::new(last);
        self.record(key, Some(Arc::clone(&last)), None);
        Some(last)
    }

    fn record(&mut self, key: &Key, before: Option<Object>, after: Option<Object>) {
        self.history.push_back(Change {
            version: self.version,
            resource: key.resource,
            namespace: key.namespace.clone(),
            before,
            after,
        });
        while self.history.len() > HISTORY {
            if let Some(change) = self.history.pop_front() {
                self.compacted = change.version;
            }
        }
    }

    /// The changes after a version.
    pub(super) fn since(&self, version: u64) -> impl Iterator<Item = &Change> {
        let from = self.history.partition_point(|change| change.version <= version);
        self.history.range(from..)
    }

    /// Forgets all changes and all pages, as a server does after some minutes.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.pages.clear();
        self.compacted = self.version;
    }

    /// Keeps the rest of a list, and answers with its token.
    pub(super) fn keep_page(&mut self, rest: Rest) -> String {
        let page = self.next_page;
        self.next_page += 1;
        self.pages.insert(page, rest);
        // A caller that never came back.
        while self.pages.len() > 1000 {
            self.pages.pop_first();
        }
        format!("page-{page}")
    }

    pub(super) fn take_page(&mut self, token: &str) -> Option<Rest> {
        self.pages.remove(&token.strip_prefix("page-")?.parse().ok()?)
    }
}

/// A text in an object; empty when it is not there.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

pub(super) fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

pub(super) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object["metadata"]["finalizers"].as_array();
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Takes one finalizer away.
pub(super) fn unfinalize(object: &mut Value, finalizer: &str) {
    let Some(list) = object.pointer_mut("/metadata/finalizers").and_then(Value::as_array_mut) else {
        return;
    };
    list.retain(|other| other != finalizer);
    if list.is_empty()
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.remove("finalizers");
    }
}

/// The UIDs of an object's owners, and whether each waits for it.
pub(super) fn owners(object: &Value) -> impl Iterator<Item = (&str, bool)> {
    let list = object["metadata"]["ownerReferences"].as_array();
    list.into_iter()
        .flatten()
        .map(|owner| (text(owner, "/uid"), owner["blockOwnerDeletion"] == true))
}
