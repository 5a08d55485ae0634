//! Decorators: an orchestrator around an orchestrator.
//!
//! [`standard`] stacks what a service needs. Whoever stacks by hand keeps this order, from the outside in:
//!
//! | decorator | what it adds | why there |
//! |---|---|---|
//! | [`Traced`] | one span for each call | inside of the retries it would show each attempt as a call of the user |
//! | [`Retrying`] | bounded repeats of what failed for the moment | |
//! | [`RateLimited`] | a token for each call, repeats included | outside of the deadline, so that waiting for a token is not taken for a slow server |
//! | [`Deadlined`] | a limit for each attempt | outside of the retries it would cut them short |
//!
//! ```
//! use saasodoo_core::decor::{DecorExt, RateLimit, RetryPolicy};
//! use saasodoo_core::{Config, InstanceOrchestrator};
//!
//! fn by_hand(backend: impl InstanceOrchestrator, config: &Config) -> impl InstanceOrchestrator {
//!     backend
//!         .deadlined(config.deadlines)
//!         .rate_limited(RateLimit::per_second(50))
//!         .retrying(RetryPolicy::default().with_attempts(3))
//!         .traced()
//! }
//! ```
//!
//! Each of them forwards `Display`, `backend` and `capabilities` unchanged, and passes the contract that the
//! orchestrator inside passes.

mod deadlined;
mod rate_limited;
mod retrying;
#[cfg(test)]
pub(crate) mod stub;
mod traced;

use std::sync::Arc;

pub use deadlined::Deadlined;
pub use rate_limited::{RateLimit, RateLimited};
pub use retrying::{RetryPolicy, Retrying};
pub use traced::Traced;

use crate::{Config, Deadlines, DynOrchestrator, InstanceOrchestrator};

/// The orchestrator with deadlines from the configuration, the default [`RetryPolicy`] and traces: what a service keeps
/// in its state.
///
/// ```
/// use saasodoo_core::{Config, DynOrchestrator, InstanceOrchestrator, decor};
///
/// fn for_the_service(backend: impl InstanceOrchestrator, config: &Config) -> DynOrchestrator {
///     decor::standard(backend, config)
/// }
/// ```
#[must_use]
pub fn standard<O: InstanceOrchestrator>(orchestrator: O, config: &Config) -> DynOrchestrator {
    Arc::new(
        orchestrator
            .deadlined(config.deadlines)
            .retrying(RetryPolicy::default())
            .traced(),
    )
}

/// Wraps any orchestrator, a [`DynOrchestrator`] included, in a decorator.
pub trait DecorExt: InstanceOrchestrator + Sized {
    /// Limits how long each call may take.
    #[must_use]
    fn deadlined(self, deadlines: Deadlines) -> Deadlined<Self> {
        Deadlined::new(self, deadlines)
    }

    /// Repeats calls that failed for the moment.
    #[must_use]
    fn retrying(self, policy: RetryPolicy) -> Retrying<Self> {
        Retrying::new(self, policy)
    }

    /// Limits how many calls are made.
    #[must_use]
    fn rate_limited(self, limit: RateLimit) -> RateLimited<Self> {
        RateLimited::new(self, limit)
    }

    /// Records a span for each call.
    #[must_use]
    fn traced(self) -> Traced<Self> {
        Traced::new(self)
    }
}

impl<O: InstanceOrchestrator> DecorExt for O {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::stub::{Stub, id, unavailable};
    use super::*;
    use crate::{BackendKind, OperationKind};

    #[tokio::test(start_paused = true)]
    async fn the_standard_stack_gives_each_attempt_its_own_deadline() {
        let stub = Stub::new();
        // The first attempt hangs beyond its deadline, the second is refused, the third answers.
        stub.hang_once();
        stub.fail([unavailable()]);
        let config = Config::default();
        let orchestrator = standard(stub.clone(), &config);
        let started = tokio::time::Instant::now();
        orchestrator.get(id()).await.expect("the third attempt");
        assert_eq!(stub.calls(OperationKind::Get), 3);
        let took = started.elapsed();
        assert!(
            took >= 2 * config.deadlines.read && took < 2 * config.deadlines.read + Duration::from_secs(5),
            "{took:?}"
        );
    }

    #[tokio::test]
    async fn decorators_are_transparent() {
        let stub = Stub::new();
        let (shown, backend, capabilities) = (stub.to_string(), stub.backend(), stub.capabilities());
        let decorated = standard(stub, &Config::default()).rate_limited(RateLimit::per_second(10));
        assert_eq!(decorated.to_string(), shown);
        assert_eq!((decorated.backend(), decorated.capabilities()), (backend, capabilities));
        assert_eq!(backend, BackendKind::Memory);
        assert!(format!("{decorated:?}").contains("Stub"), "{decorated:?}");
    }
}
