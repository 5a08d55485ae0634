//! Keeps a picture of the whole fleet up to date from one watch, and knows when the picture is old.
//!
//! ```sh
//! cargo run -p saasodoo-examples --example watch
//! ```
//!
//! On the in-memory backend something happens by itself: a fleet is created, one instance runs out of memory, and the
//! connection is cut for a while. On a real platform it shows what happens there, until Ctrl-C.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use futures::StreamExt;
use saasodoo_core::{
    CreateOptions, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceOrchestratorExt,
    InstanceStatus,
};
use saasodoo_examples::{Backend, BackendArgs};
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::{MemoryOrchestrator, Trouble};

/// Shows the fleet as it changes.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    backend: BackendArgs,
}

/// What is known of the fleet.
#[derive(Default)]
struct Fleet {
    statuses: BTreeMap<InstanceId, InstanceStatus>,
    synced: bool,
}

impl Fleet {
    /// Takes an event in, and says what is new about it, if something is.
    fn apply(&mut self, event: InstanceEvent) -> Option<String> {
        Some(match event {
            InstanceEvent::Applied(instance) => {
                let before = self.statuses.insert(instance.id, instance.status);
                if before == Some(instance.status) {
                    return None;
                }
                let cause = instance.cause.map(|cause| format!(": {cause}")).unwrap_or_default();
                let from = before.map(|status| format!("{status} -> ")).unwrap_or_default();
                format!("{} {from}{}{cause}", instance.name, instance.status)
            }
            InstanceEvent::Deleted(instance) => {
                self.statuses.remove(&instance.id);
                format!("{} is gone", instance.name)
            }
            InstanceEvent::Synced => {
                self.synced = true;
                "the picture is whole".to_owned()
            }
            InstanceEvent::Stale(stale) => {
                self.synced = false;
                format!("the picture may be old: {}", stale.reason)
            }
            other => format!("{other:?}"),
        })
    }

    fn line(&self) -> String {
        let mut counts = BTreeMap::new();
        for status in self.statuses.values() {
            *counts.entry(*status).or_insert(0_u32) += 1;
        }
        let counts: Vec<String> = counts
            .iter()
            .map(|(status, count)| format!("{count} {status}"))
            .collect();
        format!("[{}{}]", counts.join(", "), if self.synced { "" } else { ", stale" })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    saasodoo_examples::init_tracing();
    if args.backend.backend == Backend::Memory {
        let memory = saasodoo_examples::memory(&args.backend.config()?);
        return follow(memory.clone(), a_bad_day(memory)).await;
    }
    let (orchestrator, _) = args.backend.connect().await?;
    follow(orchestrator, async { Ok(tokio::signal::ctrl_c().await?) }).await
}

/// Prints the fleet until `meanwhile` ends.
async fn follow(orchestrator: impl InstanceOrchestrator, meanwhile: impl Future<Output = Result<()>>) -> Result<()> {
    let started = Instant::now();
    let mut fleet = Fleet::default();
    let mut events = orchestrator.watch(InstanceFilter::all());
    tokio::pin!(meanwhile);
    loop {
        tokio::select! {
            // A watch never ends by itself.
            Some(event) = events.next() => {
                if let Some(news) = fleet.apply(event) {
                    println!("{:>8.3}  {:<40} {news}", started.elapsed().as_secs_f64(), fleet.line());
                }
            }
            ended = &mut meanwhile => return ended,
        }
    }
}

async fn a_bad_day(memory: MemoryOrchestrator) -> Result<()> {
    let specs: Vec<_> = (1..=5).map(|n| fixtures::spec(&format!("tenant-{n}"))).collect();
    for spec in &specs {
        memory.create(spec, CreateOptions::new()).await?;
    }
    for spec in &specs {
        memory
            .wait_until(spec.id, InstanceStatus::Running, Duration::from_secs(30))
            .await?;
    }
    memory.cause(specs[0].id, Trouble::OutOfMemory);
    memory
        .wait_until(specs[0].id, InstanceStatus::Error, Duration::from_secs(30))
        .await?;
    // What happens while the watch is cut off is made up for when it is back.
    memory.cut_watches(Duration::from_secs(1));
    memory.stop(specs[1].id).await?;
    memory.clear(specs[0].id);
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}
