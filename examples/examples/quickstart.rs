//! The whole life of an instance, on the platform of your choice:
//!
//! ```sh
//! cargo run -p saasodoo-examples --example quickstart
//! ```
//!
//! It prints each step, each event of the watch as it happens, and the final state. What it made is gone afterwards,
//! also after an error or Ctrl-C, unless `--keep` is given.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use futures::{StreamExt, TryStreamExt};
use saasodoo_core::{
    Bytes, CreateOptions, DataPolicy, DeleteOptions, DynOrchestrator, EnsureOutcome, ErrorKind, Instance,
    InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt,
    InstanceSpec, InstanceStatus, LogOptions, Operation, UpdateOptions,
};
use saasodoo_examples::BackendArgs;
use tokio::sync::Notify;

/// Creates, changes, stops, suspends, deletes and re-creates an instance, and shows what happens.
#[derive(Debug, Parser)]
#[command(name = "quickstart")]
struct Args {
    #[command(flatten)]
    backend: BackendArgs,
    /// Keep the instance: end after the log was shown, and print how to delete it.
    #[arg(long)]
    keep: bool,
    /// How long to wait for a status, in seconds.
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    wait: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    saasodoo_examples::init_tracing();
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    let (orchestrator, config) = args.backend.connect().await?;
    println!("{orchestrator}");
    let health = orchestrator.health().await;
    print!("{health}");
    if !health.is_ready() {
        bail!("the platform is not ready; what it lacks is marked FAILED above");
    }

    let id = InstanceId::random();
    let mut spec = config
        .instance(id, "quickstart".parse()?)
        .with_display_name("Quickstart")
        .with_subdomain(format!("quickstart-{}", id.short()).parse()?)
        .with_memory(Bytes::from_gib(1))
        .with_storage(Bytes::from_gib(1));
    // Asked often, so that the demonstration does not wait for the next question.
    spec.probes.period_seconds = 2;
    let mut show = Show {
        orchestrator,
        spec,
        budget: Duration::from_secs(args.wait),
        started: Instant::now(),
        steps: Vec::new(),
    };
    let events = show.follow().await;
    let outcome = tokio::select! {
        outcome = show.life(args.keep) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if outcome.is_err() && !args.keep {
        match purge(&show.orchestrator, id).await {
            Ok(_) => eprintln!("\nwhat this run made has been deleted"),
            Err(error) => eprintln!("\nwhat this run made could not be deleted: {error:#}"),
        }
    }
    // The last events may still be on their way.
    if outcome.is_ok() && !args.keep {
        let gone = tokio::time::timeout(Duration::from_secs(15), events.gone.notified()).await;
        if gone.is_err() {
            eprintln!("the watch has not reported the deletion");
        }
    }
    events.task.abort();
    outcome?;
    show.summary();
    Ok(())
}

struct Show {
    orchestrator: DynOrchestrator,
    spec: InstanceSpec,
    budget: Duration,
    started: Instant,
    steps: Vec<(&'static str, Duration)>,
}

struct Events {
    task: tokio::task::JoinHandle<()>,
    gone: Arc<Notify>,
}

impl Show {
    /// Prints what the watch reports, from now on. Returns when the watch is in step.
    async fn follow(&self) -> Events {
        let (started, gone, synced) = (self.started, Arc::new(Notify::new()), Arc::new(Notify::new()));
        let mut events = self.orchestrator.watch(InstanceFilter::id(self.spec.id));
        let (tell_gone, tell_synced) = (gone.clone(), synced.clone());
        let task = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let text = match &event {
                    InstanceEvent::Applied(instance) => describe(instance),
                    InstanceEvent::Deleted(_) => "gone".to_owned(),
                    InstanceEvent::Synced => "the watch is in step".to_owned(),
                    InstanceEvent::Stale(stale) => format!("the watch is out of touch: {}", stale.reason),
                    other => format!("{other:?}"),
                };
                println!("{:>8.3}      event  {text}", started.elapsed().as_secs_f64());
                match event {
                    InstanceEvent::Deleted(_) => tell_gone.notify_one(),
                    InstanceEvent::Synced => tell_synced.notify_one(),
                    _ => {}
                }
            }
        });
        synced.notified().await;
        Events { task, gone }
    }

    fn step(&mut self, name: &'static str) {
        let at = self.started.elapsed();
        println!("{:>8.3}  {name}", at.as_secs_f64());
        self.steps.push((name, at));
    }

    fn say(&self, text: &str) {
        for line in text.lines() {
            println!("{:>8.3}    {line}", self.started.elapsed().as_secs_f64());
        }
    }

    async fn wait(&self, status: InstanceStatus) -> Result<Instance> {
        Ok(self.orchestrator.wait_until(self.spec.id, status, self.budget).await?)
    }

    async fn life(&mut self, keep: bool) -> Result<()> {
        let (id, orchestrator) = (self.spec.id, self.orchestrator.clone());

        self.step("create");
        let plan = orchestrator
            .plan(&Operation::Create(Box::new(self.spec.clone()), CreateOptions::new()))
            .await?;
        self.say(&plan.to_string());
        orchestrator.create(&self.spec, CreateOptions::new()).await?;
        let running = self.wait(InstanceStatus::Running).await?;
        let process = running.facts.current().map(|unit| unit.id.clone());

        self.step("create again");
        let again = orchestrator.create(&self.spec, CreateOptions::new()).await?;
        if again.outcome != EnsureOutcome::Unchanged {
            bail!("a second create with the same spec answered {:?}", again.outcome);
        }
        self.say("unchanged: the second create wrote nothing");

        self.step("update the memory");
        let change = InstanceChange::new().memory(Bytes::from_gib(2));
        let plan = orchestrator
            .plan(&Operation::Update(id, Box::new(change.clone())))
            .await?;
        self.say(&plan.to_string());
        orchestrator.update(id, &change, UpdateOptions::new()).await?;
        let updated = self.wait(InstanceStatus::Running).await?;
        self.say(&format!("memory is {} now", updated.spec.resources.memory));

        self.step("restart");
        orchestrator.restart(id).await?;
        let restarted = self.wait(InstanceStatus::Running).await?;
        if let (Some(before), Some(now)) = (process, restarted.facts.current()) {
            self.say(&format!("{before} at first, {} now", now.id));
        }

        self.step("stop");
        orchestrator.stop(id).await?;
        self.wait(InstanceStatus::Stopped).await?;

        self.step("start");
        orchestrator.start(id).await?;
        self.wait(InstanceStatus::Running).await?;

        self.step("suspend");
        orchestrator.suspend(id).await?;
        self.wait(InstanceStatus::Paused).await?;
        match orchestrator.start(id).await {
            Err(error) if error.kind() == ErrorKind::NotAllowed => self.say(&format!("a start is refused: {error}")),
            Err(error) => return Err(error.into()),
            Ok(_) => bail!("a suspended instance was started"),
        }

        self.step("resume");
        orchestrator.resume(id).await?;
        self.wait(InstanceStatus::Stopped).await?;
        orchestrator.start(id).await?;
        let running = self.wait(InstanceStatus::Running).await?;

        self.step("log");
        let lines: Vec<_> = orchestrator.logs(id, LogOptions::tail(5)).try_collect().await?;
        for line in lines {
            self.say(&format!("{} | {}", line.unit, line.text));
        }
        if keep {
            self.finally("it is kept", &running);
            self.say(&format!(
                "delete {} with your platform's tools, or with this library, id {id}",
                running.name
            ));
            return Ok(());
        }

        self.step("delete, keeping the data");
        let deleted = orchestrator.delete(id, DeleteOptions::retain()).await?;
        match &deleted.retained {
            Some(location) => self.say(&format!("the data stays: {location}")),
            None => bail!("the deletion does not say where the data is"),
        }

        self.step("create on the data that was kept");
        match orchestrator.create(&self.spec, CreateOptions::new()).await {
            Err(error) if error.kind() == ErrorKind::Conflict => self.say(&format!("not by accident: {error}")),
            Err(error) => return Err(error.into()),
            Ok(_) => bail!("data of a deleted instance was taken without being asked for"),
        }
        let adopt = CreateOptions::new().with_data(DataPolicy::AdoptRetained);
        let adopted = orchestrator.create(&self.spec, adopt).await?;
        self.say(&format!("{:?}", adopted.outcome).to_lowercase());
        let last = self.wait(InstanceStatus::Running).await?;
        self.finally("before the end", &last);

        self.step("delete with the data");
        let purged = purge(&orchestrator, id).await?;
        for object in &purged {
            self.say(&format!("deleted {object}"));
        }
        if orchestrator.exists(id).await? {
            bail!("the instance is still there");
        }
        Ok(())
    }

    fn finally(&self, title: &str, instance: &Instance) {
        let spec = &instance.spec;
        let location = instance.storage.location.as_ref();
        self.say(&format!("final state, {title}:"));
        for (name, value) in [
            ("instance", instance.id.to_string()),
            ("objects", instance.name.to_string()),
            ("status", describe(instance)),
            ("image", spec.image.to_string()),
            ("memory", spec.resources.memory.to_string()),
            ("reached at", instance.endpoints.external.join(" ")),
            (
                "data",
                location.map_or_else(|| "not observed".to_owned(), ToString::to_string),
            ),
        ] {
            self.say(&format!("  {name:<12}{value}"));
        }
    }

    fn summary(&self) {
        println!(
            "\nfinal state: {}",
            if self.steps.last().is_some_and(|(name, _)| *name == "log") {
                "the instance is kept"
            } else {
                "the instance and its data are gone"
            }
        );
        let ends = self
            .steps
            .iter()
            .skip(1)
            .map(|(_, at)| *at)
            .chain([self.started.elapsed()]);
        for ((name, at), end) in self.steps.iter().zip(ends) {
            println!("  {name:<34}{:>8.3} s", (end - *at).as_secs_f64());
        }
    }
}

fn describe(instance: &Instance) -> String {
    let replicas = instance.replicas;
    let unit = instance
        .facts
        .current()
        .map(|unit| format!(", {:?}", unit.phase).to_lowercase());
    let cause = instance.cause.as_ref().map(|cause| format!(": {cause}"));
    format!(
        "{} ({} of {} ready{}){}",
        instance.status,
        replicas.ready,
        replicas.desired,
        unit.unwrap_or_default(),
        cause.unwrap_or_default()
    )
}

/// Deletes the instance, if it is there, and then its data, if there is any.
async fn purge(orchestrator: &DynOrchestrator, id: InstanceId) -> Result<Vec<saasodoo_core::ObjectIdentity>> {
    let plan = match orchestrator.plan(&Operation::Purge(id)).await {
        Ok(plan) => plan,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error).context("planning to delete it"),
    };
    let Some(token) = plan.purge_token else {
        orchestrator.delete(id, DeleteOptions::retain()).await?;
        return Ok(Vec::new());
    };
    Ok(orchestrator.delete(id, DeleteOptions::purge(token)).await?.purged)
}
