//! What is known about how long tenants are down.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::{Journal, Record};

/// So many measurements say more than the configuration.
const ENOUGH: usize = 3;

/// The downtimes of the committed migrations: read from the journal once, for it may hold ten thousand of them, and
/// counted from then on.
#[derive(Debug, Default)]
pub(super) struct Downtimes(OnceCell<Mutex<Vec<Duration>>>);

impl Downtimes {
    /// The median of what was measured, once there is enough of it.
    pub(super) async fn median(&self, journal: &dyn Journal, now: Timestamp) -> Option<Duration> {
        let read = || async {
            let records = journal.load_all().await?;
            let committed = records.iter().filter_map(|record| measured(record, now));
            let mut downtimes: Vec<Duration> = committed.collect();
            downtimes.sort_unstable();
            Ok::<_, crate::Error>(Mutex::new(downtimes))
        };
        // A journal that cannot be read now stops a migration elsewhere. Here it is an estimate for people.
        let all = self.0.get_or_try_init(read).await.ok()?;
        let all = all.lock().unwrap_or_else(PoisonError::into_inner);
        (all.len() >= ENOUGH).then(|| all[all.len() / 2])
    }

    /// One more was committed.
    pub(super) fn add(&self, record: &Record, now: Timestamp) {
        let (Some(all), Some(downtime)) = (self.0.get(), measured(record, now)) else {
            return;
        };
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.partition_point(|known| *known < downtime);
        all.insert(at, downtime);
    }
}

fn measured(record: &Record, now: Timestamp) -> Option<Duration> {
    (record.is_committed() && !record.outages.is_empty()).then(|| record.downtime(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::MemoryJournal;

    #[tokio::test]
    async fn the_median_is_of_enough_measurements() {
        let (downtimes, journal, now) = (Downtimes::default(), MemoryJournal::new(), Timestamp::UNIX_EPOCH);
        assert_eq!(downtimes.median(&journal, now).await, None);
        for (seconds, median) in [(9, None), (1, None), (5, Some(5)), (7, Some(7)), (2, Some(5))] {
            downtimes.add(&crate::migration::tests::committed_after(seconds), now);
            let found = downtimes.median(&journal, now).await;
            assert_eq!(found, median.map(Duration::from_secs), "after {seconds} s");
        }
    }
}
