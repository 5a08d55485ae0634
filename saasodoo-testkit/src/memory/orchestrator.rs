//! The trait, over the simulated world.

use std::future::Future;
use std::panic::resume_unwind;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use saasodoo_core::{
    BackendKind, Capabilities, CreateOptions, DeleteOptions, Deleted, Ensured, Error, ErrorKind, Health, HealthState,
    Instance, InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec, LogLine,
    LogOptions, Operation, OperationKind, Plan, Power, Result, Retry, UpdateOptions,
};
use tokio::time::Instant;

use super::fault::{Call, Fault};
use super::{MemoryOrchestrator, logs, only_id, watch};

/// Runs on when the caller is gone, as the trait promises for mutations.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(answer) => answer,
        Err(error) => {
            match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => Err(Error::new(ErrorKind::Unavailable, "the runtime is shutting down")
                    .with_retry(Retry::OutcomeUnknown)),
            }
        }
    }
}

impl MemoryOrchestrator {
    /// Waits until nothing of the instance is left, under the configuration's deadline.
    async fn until_gone(&self, id: InstanceId) -> Result<()> {
        // A longer grace period than the configuration thought of is the instance's own wish.
        let patience = self.read(|world, _, _| {
            let grace = world.tenants.get(&id).map(|tenant| tenant.spec.scheduling.stop_grace());
            let termination = world.settings.config.deadlines.termination;
            termination.max(grace.unwrap_or_default() + Duration::from_secs(30))
        });
        let deadline = Instant::now() + patience;
        loop {
            let mut changes = self.changes();
            let gone = self.read(|world, _, _| world.tenants.get(&id).is_none_or(|tenant| tenant.deleting.is_none()));
            if gone {
                return Ok(());
            }
            let due = self.due();
            tokio::select! {
                biased;
                () = self.until_due(due) => {}
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(deadline) => {
                    return Err(Error::new(ErrorKind::Timeout, "its unit did not end in time")
                        .with_advice("find out what keeps it, then delete again: the deletion goes on"));
                }
            }
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl InstanceOrchestrator for MemoryOrchestrator {
    fn backend(&self) -> BackendKind {
        self.kind
    }

    fn capabilities(&self) -> Capabilities {
        self.peek(|world| world.settings.capabilities.clone())
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        let (memory, spec, id) = (self.clone(), spec.clone(), spec.id);
        // What is wrong by itself never gets as far as the platform.
        self.peek(|world| world.check(&spec).map(drop))
            .map_err(|error| self.context(error, OperationKind::Create, Some(id)))?;
        detached(async move {
            let call = Call::new(OperationKind::Create, Some(id));
            let apply = || {
                memory.write(|world, volumes, at| {
                    let outcome = world.create(&spec, &options, at, volumes)?;
                    Ok(Ensured::new(outcome, world.observe(id, at, volumes)?))
                })
            };
            memory.around(call, apply).await
        })
        .await
        .map_err(|error| self.context(error, OperationKind::Create, Some(id)))
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        let (memory, change) = (self.clone(), change.clone());
        detached(async move {
            let call = Call::new(OperationKind::Update, Some(id));
            let apply = || {
                memory.write(|world, volumes, at| {
                    let (id, outcome) = world.update(id, &change, &options, at, volumes)?;
                    Ok(Ensured::new(outcome, world.observe(id, at, volumes)?))
                })
            };
            memory.around(call, apply).await
        })
        .await
        .map_err(|error| self.context(error, OperationKind::Update, Some(id)))
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        let memory = self.clone();
        detached(async move {
            let call = Call::new(OperationKind::SetPower, Some(id)).with_power(power);
            let apply = || {
                memory.write(|world, volumes, at| {
                    let id = world.set_power(id, power, at, volumes)?;
                    world.observe(id, at, volumes)
                })
            };
            memory.around(call, apply).await
        })
        .await
        .map_err(|error| self.context(error, OperationKind::SetPower, Some(id)))
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        let memory = self.clone();
        detached(async move {
            let call = Call::new(OperationKind::Delete, Some(id));
            let fault = memory.arrive_or_fail(call).await?;
            let (answer, wait) = memory.write(|world, volumes, at| world.delete(id, &options, at, volumes))?;
            if let Some(id) = wait
                && !matches!(fault, Some(Fault::LoseResponse | Fault::HangAfter))
            {
                memory.until_gone(id).await?;
            }
            memory.depart(fault, Ok(answer)).await
        })
        .await
        .map_err(|error| self.context(error, OperationKind::Delete, Some(id)))
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        // No request, so nothing to record and nothing that could go wrong. What the cache does not have is asked for.
        if let Some(instance) = self.read(|world, volumes, at| world.cached(id, at, volumes)) {
            return Ok(instance);
        }
        let call = Call::new(OperationKind::Get, Some(id));
        let look = || self.read(|world, volumes, at| world.observe(world.resolve(id)?, at, volumes));
        self.around(call, look)
            .await
            .map_err(|error| self.context(error, OperationKind::Get, Some(id)))
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        let memory = self.clone();
        stream::once(async move {
            let call = Call::new(OperationKind::List, only_id(&filter));
            let look = || memory.read(|world, volumes, at| Ok(world.observe_all(&filter, at, volumes)));
            let found = memory.around(call, look).await;
            found
                .map(|instances| stream::iter(instances.into_iter().map(Ok)))
                .map_err(|error| memory.context(error, OperationKind::List, None))
        })
        .try_flatten()
        .boxed()
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        watch::watch(self.clone(), filter)
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        logs::logs(self.clone(), id, options)
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        let id = operation.instance();
        let call = Call::new(OperationKind::Plan, Some(id));
        let look = || self.read(|world, volumes, at| world.plan(operation, at, volumes));
        self.around(call, look)
            .await
            .map_err(|error| self.context(error, OperationKind::Plan, Some(id)))
    }

    async fn health(&self) -> Health {
        let look = || Ok(self.read(|world, _, at| world.stamp(at)));
        let answer = self.around(Call::new(OperationKind::Health, None), look).await;
        let mut health = Health::new(self.kind, self.read(|world, _, at| world.stamp(at)));
        match answer {
            Ok(_) => {
                health.server_version = Some("in memory".to_owned());
                health.push("reachable", HealthState::Ok, "it is this process");
                health.push("permissions", HealthState::Ok, "everything is allowed");
                health.push("storage", HealthState::Ok, "there is room");
                let cut = self.read(|world, _, at| world.watch_down_until > at);
                if cut {
                    health.push("watch", HealthState::Degraded, "the watches are cut off");
                } else {
                    health.push("watch", HealthState::Ok, "connected");
                }
            }
            Err(error) => health.push("reachable", HealthState::Failed, error.to_string()),
        }
        health
    }
}
