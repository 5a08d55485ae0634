//! Where a migration writes down what it does before it does it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::{Entry, Record};
use crate::{InstanceId, Result};

/// A durable record of migrations, one for each instance. Any process that can read it can go on where another ended.
///
/// An implementation keeps at least the record of the last migration of each instance.
#[async_trait]
pub trait Journal: fmt::Debug + Send + Sync + 'static {
    /// The record of an instance's last migration.
    ///
    /// # Errors
    /// When it cannot be read; never taken as "there is none".
    async fn load(&self, instance: InstanceId) -> Result<Option<Record>>;

    /// The records of all instances, in the order in which their migrations began.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    async fn load_all(&self) -> Result<Vec<Record>>;

    /// Makes an entry durable before it answers. `after` is the record with the entry folded in.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) when the entry does not follow what is there, because another process
    /// writes too; others when it could not be made durable. The migration stops then, and can be resumed.
    async fn append(&self, entry: &Entry, after: &Record) -> Result<()>;
}

/// A journal in memory: for tests, and for looking before moving anything.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    records: Mutex<BTreeMap<InstanceId, Record>>,
    entries: Mutex<Vec<Entry>>,
}

impl MemoryJournal {
    /// An empty journal.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every entry that was appended.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn load(&self, instance: InstanceId) -> Result<Option<Record>> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(records.get(&instance).cloned())
    }

    async fn load_all(&self) -> Result<Vec<Record>> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Record> = records.values().cloned().collect();
        all.sort_by_key(|record| (record.began, record.instance));
        Ok(all)
    }

    async fn append(&self, entry: &Entry, _after: &Record) -> Result<()> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        fold(&mut records, entry)?;
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(entry.clone());
        Ok(())
    }
}

/// Folds an entry into the records: a new migration of an instance takes the place of one that is over.
pub(super) fn fold(records: &mut BTreeMap<InstanceId, Record>, entry: &Entry) -> Result<()> {
    match records.get_mut(&entry.instance) {
        Some(record) if record.run == entry.run || !record.step.is_over() => record.apply(entry),
        last => {
            let record = Record::begin(entry)?.after(last.as_deref());
            records.insert(entry.instance, record);
            Ok(())
        }
    }
}
