//! What one call has made, and the undoing of exactly that.
//!
//! The answer to a request can be lost: then the object is looked for by the mark of the call, which every object that
//! is made carries. Undoing deletes by UID, on a deadline of its own.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::api::PropagationPolicy;
use saasodoo_core::{Error, ErrorKind, InstanceId, Result, Retry};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::sleep;

use crate::backend::Inner;
use crate::error::unexpected;
use crate::facts::is_live;
use crate::names::{CREATION, selector_of};
use crate::views::{PodView, View as _};
use crate::wire::{DEPLOYMENT, Fresh, Kind, POD, Stub, poll};

/// What one call has made, or may have made: the answer to a request can be lost.
#[derive(Debug)]
pub(crate) struct Ledger {
    instance: InstanceId,
    pub(crate) creation: String,
    /// What the caller wants the Deployment to be known by. Not the mark of the call: two calls may have the same.
    pub(crate) token: Option<uuid::Uuid>,
    /// How long the process of a pod that has to go may take to end.
    ending: Duration,
    entries: Mutex<Vec<Entry>>,
}

#[derive(Debug, Clone)]
struct Entry {
    kind: Kind,
    name: String,
    /// `None` while the answer is not there.
    uid: Option<String>,
}

impl Ledger {
    pub(crate) fn new(instance: InstanceId, token: Option<uuid::Uuid>, ending: Duration) -> Self {
        Self {
            instance,
            creation: uuid::Uuid::new_v4().to_string(),
            token,
            ending,
            entries: Mutex::default(),
        }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn intend(&self, kind: Kind, name: &str) {
        let name = name.to_owned();
        self.entries().push(Entry { kind, name, uid: None });
    }

    fn made(&self, kind: Kind, name: &str, uid: &str) {
        for entry in self.entries().iter_mut().filter(|e| e.kind == kind && e.name == name) {
            entry.uid = Some(uid.to_owned());
        }
    }

    fn forget(&self, kind: Kind, name: &str) {
        self.entries().retain(|entry| entry.kind != kind || entry.name != name);
    }
}

/// The answer to the creation of one object.
pub(crate) enum Posted<T> {
    /// This call made it.
    Made(T),
    /// One of that name was there.
    Exists,
}

impl Inner {
    /// Creates one object and records it. When the answer is lost, the object is looked for by this call's mark.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        ledger: &Ledger,
        kind: Kind,
        name: &str,
        object: &Value,
    ) -> Result<Posted<T>> {
        ledger.intend(kind, name);
        let mut attempts = 0;
        let error = loop {
            attempts += 1;
            match self.wire.create::<Value>(&kind, object).await {
                Ok(made) => return made_of(ledger, kind, name, made),
                // A quota's own bookkeeping ran into another request; nothing was made.
                Err(error) if error.kind() == ErrorKind::Conflict && error.retry() != Retry::Never && attempts < 4 => {
                    sleep(crate::wire::jittered(Duration::from_millis(200))).await;
                }
                Err(error) => break error,
            }
        };
        if error.kind() == ErrorKind::Conflict {
            ledger.forget(kind, name);
            return Ok(Posted::Exists);
        }
        if error.retry() != Retry::OutcomeUnknown {
            ledger.forget(kind, name);
            return Err(error);
        }
        for pause in [0, 300, 1000, 3000] {
            sleep(Duration::from_millis(pause)).await;
            let Ok(Some(found)) = self.wire.get::<Value>(&kind, name).await else {
                continue;
            };
            if found["metadata"]["annotations"][CREATION] == *ledger.creation {
                return made_of(ledger, kind, name, found);
            }
            ledger.forget(kind, name);
            return Ok(Posted::Exists);
        }
        Err(error)
    }

    /// Undoes what the ledger holds, and gives the error back with what could not be undone.
    ///
    /// A call that did not make the Deployment has completed another call's instance. That one may rely on every object
    /// by now, so they stay: they belong to its Deployment, or are its data.
    pub(crate) async fn rolled_back(&self, ledger: &Ledger, error: Error) -> Error {
        let entries = ledger.entries().clone();
        if !entries.iter().any(|entry| entry.kind == DEPLOYMENT) {
            return error;
        }
        let limit = self.wire.deadlines.cleanup.max(ledger.ending);
        let undone = tokio::time::timeout(limit, async {
            // The Deployment first, so that no pod uses what goes after it. It takes along what it owns. The rest backwards:
            // a volume does not go while its claim is there.
            let first = entries.iter().filter(|entry| entry.kind == DEPLOYMENT);
            let rest = entries.iter().rev().filter(|entry| entry.kind != DEPLOYMENT);
            let mut left = Vec::new();
            for entry in first.chain(rest) {
                if let Err(why) = self.undo(ledger, entry).await {
                    tracing::error!(kind = entry.kind.kind, name = entry.name, error = %why, "not undone");
                    left.push(format!("{} {}", entry.kind.kind, entry.name));
                }
            }
            left
        })
        .await;
        match undone {
            Ok(left) if left.is_empty() => error,
            Ok(left) => error.with_advice(format!("remove what could not be undone: {}", left.join(", "))),
            Err(_) => error.with_advice(format!("undoing did not end within {} s", limit.as_secs())),
        }
    }

    /// Deletes one object that this call made, and waits until it is gone.
    async fn undo(&self, ledger: &Ledger, entry: &Entry) -> Result<()> {
        let Entry { kind, name, uid } = entry;
        let uid = match uid {
            Some(uid) => uid.clone(),
            None => match self.wire.get::<Stub>(kind, name).await? {
                Some(stub) if stub.metadata.annotations.get(CREATION) == Some(&ledger.creation) => stub.metadata.uid,
                _ => return Ok(()),
            },
        };
        let propagation = if *kind == DEPLOYMENT {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        let mut attempts = 0;
        while let Err(error) = self.wire.delete(kind, name, &uid, propagation.clone()).await {
            attempts += 1;
            if attempts >= 5 || matches!(error.kind(), ErrorKind::Forbidden | ErrorKind::Unauthorized) {
                return Err(error);
            }
            sleep(crate::wire::jittered(Duration::from_millis(500))).await;
        }
        let limit = self.wire.deadlines.cleanup.max(ledger.ending);
        self.until_gone(kind, name, &uid, limit).await?;
        if *kind == DEPLOYMENT {
            self.until_pods_gone(ledger, limit).await?;
        }
        Ok(())
    }

    /// Waits until no pod of this call's Deployment can have a process. A Deployment goes after its pods; but a collector
    /// that is late does not know of them yet, and lets it go before.
    async fn until_pods_gone(&self, ledger: &Ledger, limit: Duration) -> Result<()> {
        let selector = selector_of(ledger.instance);
        let gone = poll(limit, || async {
            let now = Timestamp::now();
            let own = |pod: &PodView| pod.annotation(CREATION) == Some(&ledger.creation) && is_live(pod, now);
            match self.wire.few::<PodView>(&POD, &selector, Fresh::Now).await {
                Ok(pods) => Ok((!pods.iter().any(own)).then_some(())),
                Err(error) if matches!(error.retry(), Retry::After(_)) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await?;
        gone.ok_or_else(|| {
            let why = format!("a pod of the instance is not gone after {} s", limit.as_secs());
            Error::new(ErrorKind::Timeout, why)
        })
    }

    /// Waits until an object is gone, or another one has its name.
    pub(crate) async fn until_gone(&self, kind: &Kind, name: &str, uid: &str, limit: Duration) -> Result<()> {
        let gone = poll(limit, || async {
            let there = self.wire.get::<Stub>(kind, name).await;
            match there {
                Ok(Some(stub)) if stub.metadata.uid == uid => Ok(None),
                Ok(_) => Ok(Some(())),
                // A server that is away for a moment says nothing about the object.
                Err(error) if matches!(error.retry(), Retry::After(_)) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await?;
        gone.ok_or_else(|| {
            Error::new(
                ErrorKind::Timeout,
                format!("the {} {name} is not gone after {} s", kind.kind, limit.as_secs()),
            )
        })
    }
}

fn made_of<T: DeserializeOwned>(ledger: &Ledger, kind: Kind, name: &str, made: Value) -> Result<Posted<T>> {
    let uid = made["metadata"]["uid"].as_str().unwrap_or_default();
    ledger.made(kind, name, uid);
    serde_json::from_value(made)
        .map(Posted::Made)
        .map_err(|error| unexpected(format!("the server's answer is not understood: {error}")))
}
