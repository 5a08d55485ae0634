//! A service that embeds saasodoo: one shared orchestrator in its state, errors turned into HTTP answers, plans of
//! customers turned into changes.
//!
//! ```sh
//! cargo run -p saasodoo-examples --example embed
//! ```

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use saasodoo_core::{
    Bytes, Config, Cpu, CreateOptions, CustomerId, DeleteOptions, DynOrchestrator, Error, ErrorKind, Instance,
    InstanceChange, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt, InstanceStatus, Retry,
    UpdateOptions,
};
use saasodoo_examples::BackendArgs;

/// What a customer pays for.
#[derive(Debug, Clone, Copy)]
enum Tier {
    Basic,
    Standard,
}

impl Tier {
    fn resources(self) -> (Cpu, Bytes, Bytes) {
        match self {
            Self::Basic => (Cpu::from_millis(500), Bytes::from_gib(1), Bytes::from_gib(1)),
            Self::Standard => (Cpu::from_millis(1000), Bytes::from_gib(2), Bytes::from_gib(2)),
        }
    }
}

/// The state of the service. It does not know which platform is behind the orchestrator.
struct InstanceService {
    orchestrator: DynOrchestrator,
    config: Config,
}

impl InstanceService {
    /// `POST /instances`. May be delivered twice: the second call finds what the first one made.
    async fn provision(
        &self,
        id: InstanceId,
        customer: CustomerId,
        name: &str,
        tier: Tier,
    ) -> Result<Instance, ApiError> {
        let (cpu, memory, storage) = tier.resources();
        // What a user typed becomes a checked type here, or a 400 that names the field.
        let spec = self
            .config
            .instance(id, name.parse()?)
            .with_customer(customer)
            .with_cpu(cpu)
            .with_memory(memory)
            .with_storage(storage);
        let ensured = self.orchestrator.create(&spec, CreateOptions::new()).await?;
        Ok(ensured.instance)
    }

    /// `PUT /instances/{id}/tier`
    async fn change_tier(&self, id: InstanceId, tier: Tier) -> Result<Instance, ApiError> {
        let (cpu, memory, storage) = tier.resources();
        let change = InstanceChange::new().cpu(cpu).memory(memory).storage(storage);
        let ensured = self.orchestrator.update(id, &change, UpdateOptions::new()).await?;
        Ok(ensured.instance)
    }

    /// Billing: the customer did not pay.
    async fn payment_missing(&self, id: InstanceId) -> Result<(), ApiError> {
        self.orchestrator.suspend(id).await?;
        Ok(())
    }

    /// Billing: the customer paid.
    async fn payment_received(&self, id: InstanceId) -> Result<(), ApiError> {
        self.orchestrator.resume(id).await?;
        self.orchestrator.start(id).await?;
        Ok(())
    }

    /// `GET /instances/{id}/status`, for an instance that the service's own database knows.
    async fn status(&self, id: InstanceId) -> Result<(InstanceStatus, String), ApiError> {
        match self.orchestrator.get(id).await {
            Ok(instance) => {
                let message = instance.cause.map(|cause| cause.tenant_message()).unwrap_or_default();
                Ok((instance.status, message.to_owned()))
            }
            Err(error) if error.is_not_found() => Ok((InstanceStatus::ContainerMissing, String::new())),
            Err(error) => Err(error.into()),
        }
    }

    /// `DELETE /instances/{id}`: the data stays, and so does the way to get it back.
    async fn delete(&self, id: InstanceId) -> Result<String, ApiError> {
        let deleted = self.orchestrator.delete(id, DeleteOptions::retain()).await?;
        Ok(deleted.retained.map(|place| place.to_string()).unwrap_or_default())
    }
}

/// An answer over HTTP.
#[derive(Debug)]
struct ApiError {
    status: u16,
    body: String,
    retry_after: Option<Duration>,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidInput => 400,
            ErrorKind::NotFound => 404,
            ErrorKind::Conflict | ErrorKind::NotAllowed => 409,
            ErrorKind::Unsupported => 422,
            ErrorKind::Throttled | ErrorKind::Unavailable | ErrorKind::MissingPrerequisite => 503,
            ErrorKind::Timeout => 504,
            ErrorKind::QuotaExceeded => 507,
            // Of this service with its platform, not of the user with this service: never a 401 or 403.
            ErrorKind::Unauthorized | ErrorKind::Forbidden => 502,
            _ => 500,
        };
        let retry_after = match error.retry() {
            Retry::After(pause) => Some(pause.unwrap_or(Duration::from_secs(5))),
            Retry::Never | Retry::OutcomeUnknown => None,
        };
        let body = match error.field() {
            Some(field) if status < 500 => format!("{field}: {}", error.message()),
            _ if status < 500 => error.message().to_owned(),
            // What is wrong inside is for the log.
            _ => "something went wrong on our side".to_owned(),
        };
        Self {
            status,
            body,
            retry_after,
        }
    }
}

/// A day in the life of the service.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    backend: BackendArgs,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    saasodoo_examples::init_tracing();
    let (orchestrator, config) = args.backend.connect().await?;
    let service = InstanceService { orchestrator, config };
    let (id, customer) = (InstanceId::random(), "7b0c1a52-3b5e-4f2f-9f43-1f4f3f3f0a01".parse()?);
    let answer = a_day(&service, id, customer).await;
    if answer.is_err() {
        let _ = service.delete(id).await;
    }
    answer
}

async fn a_day(service: &InstanceService, id: InstanceId, customer: CustomerId) -> Result<()> {
    let refused = |error: ApiError| anyhow::anyhow!("{} {}", error.status, error.body);
    let budget = Duration::from_secs(180);

    let instance = service
        .provision(id, customer, "acme", Tier::Basic)
        .await
        .map_err(refused)?;
    println!("201 {} at {}", instance.status, instance.endpoints.external.join(" "));
    let again = service
        .provision(id, customer, "acme", Tier::Basic)
        .await
        .map_err(refused)?;
    println!("201 {} again, for the message was delivered twice", again.id);
    service
        .orchestrator
        .wait_until(id, InstanceStatus::Running, budget)
        .await?;

    for name in ["api", "../etc", "ünïcode"] {
        match service
            .provision(InstanceId::random(), customer, name, Tier::Basic)
            .await
        {
            Ok(_) => anyhow::bail!("{name:?} was accepted"),
            Err(error) => println!("{} {}", error.status, error.body),
        }
    }
    // Another customer wants the same name, and with it the same host.
    match service
        .provision(InstanceId::random(), customer, "acme", Tier::Basic)
        .await
    {
        Ok(_) => anyhow::bail!("a taken host was given away"),
        Err(error) => println!("{} {} (retry: {:?})", error.status, error.body, error.retry_after),
    }

    let instance = service.change_tier(id, Tier::Standard).await.map_err(refused)?;
    println!("200 upgraded to {}", instance.spec.resources.memory);
    service
        .orchestrator
        .wait_until(id, InstanceStatus::Running, budget)
        .await?;

    service.payment_missing(id).await.map_err(refused)?;
    let paused = service
        .orchestrator
        .wait_until(id, InstanceStatus::Paused, budget)
        .await?;
    println!("200 {} until the bill is paid", paused.status);
    service.payment_received(id).await.map_err(refused)?;
    service
        .orchestrator
        .wait_until(id, InstanceStatus::Running, budget)
        .await?;
    let (status, message) = service.status(id).await.map_err(refused)?;
    println!("200 {status} {message}");

    let filter = InstanceFilter::all().with_customer(customer);
    for instance in service.orchestrator.list_all(filter).await? {
        println!("200 {} is {}", instance.spec.database_name, instance.status);
    }
    println!(
        "200 deleted; its data stays in {}",
        service.delete(id).await.map_err(refused)?
    );
    let (status, _) = service.status(id).await.map_err(refused)?;
    println!("200 {status}");
    Ok(())
}
