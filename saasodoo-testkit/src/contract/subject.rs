//! What the suite runs against.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use saasodoo_core::{DataPath, DynOrchestrator, Host, ImageRef, Instance, InstanceSpec, Result, StorageLocation};

/// A backend as the suite sees it. The hooks that have a default are optional: what needs them is skipped, with the
/// reason, where they answer `None` or `false`.
///
/// Instances misbehave by their environment, as the stub image understands it: `CRASH=n` ends with code n at once,
/// `EAT_MB=n` takes n MiB of memory, `SLOW=n` listens after n seconds, `UNREADY=1` never answers its probe.
#[async_trait]
pub trait Subject: Send + Sync + 'static {
    /// The name of the result file: `memory`, `kubernetes`, `swarm`, `fake-kubernetes`, `fake-docker`, `dual-run`.
    fn name(&self) -> &str;

    /// The orchestrator under test. Called once for each run.
    fn orchestrator(&self) -> DynOrchestrator;

    /// A valid spec with a fresh id and database name, on the stub image with tag 17: small resources, quick probes
    /// (a period of one second), with a database and an administrator. No instance of it exists.
    fn spec(&self) -> InstanceSpec;

    /// Another image that runs, with another version of Odoo in its tag.
    fn other_image(&self) -> ImageRef;

    /// An image that cannot be pulled.
    fn missing_image(&self) -> ImageRef;

    /// The base domain that the orchestrator is configured with.
    fn base_domain(&self) -> Host;

    /// How long things may take here.
    fn budgets(&self) -> Budgets;

    /// Writes a file into the data of an instance, whether it runs or not.
    ///
    /// # Errors
    /// When the data is not there or cannot be written.
    async fn write_file(&self, instance: &Instance, name: &str, content: &str) -> Result<()>;

    /// Reads a file of an instance's data. `None`: neither it nor, possibly, the whole data is there.
    ///
    /// # Errors
    /// When that cannot be found out.
    async fn read_file(&self, location: &StorageLocation, name: &str) -> Result<Option<String>>;

    /// Makes the n-th request from now (from 1) fail without an effect; those before and after it pass.
    fn fail_nth_request(&self, n: u32) -> Option<FaultGuard> {
        let _ = n;
        None
    }

    /// Lets the n-th request from now (from 1) have its effect, and loses its response.
    fn lose_nth_response(&self, n: u32) -> Option<FaultGuard> {
        let _ = n;
        None
    }

    /// How many requests the orchestrator has made so far. Reads of its own in the background count too, so the suite
    /// compares only where there are none.
    fn count_requests(&self) -> Option<u64> {
        None
    }

    /// Stops the server, and starts it again before this returns. `false`: not possible here.
    ///
    /// # Errors
    /// When it does not come back.
    async fn restart_server(&self) -> Result<bool> {
        Ok(false)
    }

    /// Puts something into the objects of an instance that no library understands, such as a memory limit of `many`.
    /// `false`: not possible here.
    ///
    /// # Errors
    /// When it fails.
    async fn spoil(&self, instance: &Instance) -> Result<bool> {
        let _ = instance;
        Ok(false)
    }

    /// Makes a directory under the root that the backend is configured with, holding a file `marker` with the content
    /// `adopt me`. `None`: not possible here.
    ///
    /// # Errors
    /// When it fails.
    async fn make_directory(&self) -> Result<Option<DataPath>> {
        Ok(None)
    }

    /// Where [`make_directory`](Self::make_directory) made it.
    fn directory_location(&self, path: &DataPath) -> Option<StorageLocation> {
        let _ = path;
        None
    }

    /// Removes a directory that [`make_directory`](Self::make_directory) made.
    ///
    /// # Errors
    /// When it fails.
    async fn remove_directory(&self, path: &DataPath) -> Result<()> {
        let _ = path;
        Ok(())
    }
}

/// How long the platform may take. All waiting goes through tokio's clock, so a paused one makes it instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// From a creation or a start to `running`.
    pub start: Duration,
    /// From a stop to `stopped`, and for a deletion.
    pub stop: Duration,
    /// From a start to the error with its cause: a crash loop takes several starts.
    pub failure: Duration,
    /// What to wait before believing that nothing more happens.
    pub settle: Duration,
}

impl Budgets {
    /// For backends that are simulated, on a paused clock.
    #[must_use]
    pub const fn simulated() -> Self {
        Self {
            start: Duration::from_secs(300),
            stop: Duration::from_secs(120),
            failure: Duration::from_secs(600),
            settle: Duration::from_secs(30),
        }
    }

    /// For real platforms.
    #[must_use]
    pub const fn real() -> Self {
        Self {
            start: Duration::from_secs(90),
            stop: Duration::from_secs(60),
            failure: Duration::from_secs(150),
            settle: Duration::from_secs(5),
        }
    }
}

/// A fault that waits for its request; dropping it takes the fault away.
pub struct FaultGuard {
    hit: Arc<AtomicBool>,
    remove: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl FaultGuard {
    /// A fault: `hit` becomes true when it has struck, `remove` takes it away.
    #[must_use]
    pub fn new(hit: Arc<AtomicBool>, remove: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self {
            hit,
            remove: Some(Box::new(remove)),
        }
    }

    /// Whether it has struck.
    #[must_use]
    pub fn hit(&self) -> bool {
        self.hit.load(Ordering::SeqCst)
    }
}

impl Drop for FaultGuard {
    fn drop(&mut self) {
        if let Some(remove) = self.remove.take() {
            remove();
        }
    }
}

impl fmt::Debug for FaultGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultGuard").field("hit", &self.hit()).finish()
    }
}
