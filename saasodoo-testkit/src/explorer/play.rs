//! One schedule, from its beginning to the end that it must have.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use saasodoo_core::migration::Side;
use saasodoo_core::migration::{
    Clock, Control, Force, Journal, KnownSecrets, MemoryJournal, MigrationConfig, Migrator, Record, Step, Tenancy,
};
use saasodoo_core::{BackendKind, DynOrchestrator, Error, ErrorKind, InstanceOrchestratorExt, InstanceStatus, Result};

use super::hooks::{Hooks, SeenJournal};
use super::intercept::{Seen, Stage};
use super::schedule::{Deed, Mishap, Schedule, Story};
use crate::fixtures;
use crate::memory::{MemoryOrchestrator, Trouble};

const ROOT: &str = "/mnt/cephfs/odoo_instances";
/// A file that the tenant had before.
const FILE: &str = "invoice.pdf";
/// So often a migration that stopped is resumed before the schedule counts as one that never ends.
const RESUMES: u32 = 12;

/// What became of a schedule.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outcome {
    /// Where the migration came to rest; `None` when it never did.
    pub step: Option<Step>,
    /// How many points it passed.
    pub points: u32,
    /// How often it was resumed.
    pub resumes: u32,
    /// What happened and what the migration saw, as a number: schedules with the same one are the same schedule under
    /// two names.
    pub behaviour: u64,
    /// What must not be and was. Empty: all is well.
    pub broken: Vec<String>,
    /// What happened, point by point.
    pub story: Vec<String>,
}

/// Plays a schedule on the current runtime, whose clock must be paused.
///
/// # Panics
/// When the tenant cannot be set up, which no schedule has a hand in.
pub async fn play(schedule: &Schedule, fence_is_broken: bool) -> Outcome {
    let source = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Swarm)
        .starting_at(Timestamp::UNIX_EPOCH)
        .build();
    let target = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Kubernetes)
        .sharing_data_with(&source)
        .start_time(Duration::from_secs(3))
        .build();
    let spec = fixtures::spec_with_id("acme", fixtures::id(1));
    let instance = source
        .create_and_wait(&spec, Duration::from_secs(60))
        .await
        .unwrap_or_else(|error| panic!("the tenant cannot be created: {error}"));
    let location = instance
        .storage
        .location
        .clone()
        .unwrap_or_else(|| panic!("no location"));
    let written = source.write_file(&location, FILE, "42");
    assert!(written.is_ok(), "{written:?}");
    match schedule.story {
        Story::Stopped => drop(source.stop(spec.id).await),
        Story::Suspended => drop(source.suspend(spec.id).await),
        Story::GoesBack => target.cause(spec.id, Trouble::Unready),
        _ => {}
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let stage = Arc::new(Stage::new(source, target, spec, schedule.mishaps.clone()));
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
    let play = Play {
        schedule,
        journal,
        clock: Clock::tokio(Timestamp::UNIX_EPOCH),
        fence_is_broken,
        stage,
        after_commit: AtomicBool::new(false),
    };
    let (record, resumes) = play.to_rest().await;
    play.stage.end_troubles();
    // Whatever is still on its way arrives, and the operator looks once more.
    tokio::time::sleep(Duration::from_secs(400)).await;
    let record = match record {
        Some(record) => play.look_again(record).await,
        None => None,
    };
    play.stage.end_troubles();
    tokio::time::sleep(Duration::from_secs(60)).await;
    play.check_the_end(record.as_ref()).await;
    play.check_the_data(&location);
    let mut state = play.stage.state();
    let mut behaviour = DefaultHasher::new();
    (schedule.story, &state.behaviour).hash(&mut behaviour);
    Outcome {
        behaviour: behaviour.finish(),
        step: record.map(|record| record.step),
        points: state.point,
        resumes,
        broken: std::mem::take(&mut state.broken),
        story: std::mem::take(&mut state.story),
    }
}

struct Play<'a> {
    schedule: &'a Schedule,
    stage: Arc<Stage>,
    journal: Arc<dyn Journal>,
    clock: Clock,
    #[cfg_attr(
        not(debug_assertions),
        allow(dead_code, reason = "the fence cannot be left out there")
    )]
    fence_is_broken: bool,
    /// What happens after the commit has happened.
    after_commit: AtomicBool,
}

impl Play<'_> {
    /// What a process has: everything but the journal is new.
    fn migrator(&self) -> Migrator {
        let side = |side| -> DynOrchestrator {
            Arc::new(Seen {
                stage: Arc::clone(&self.stage),
                side,
            })
        };
        let secs = Duration::from_secs;
        let mut config = MigrationConfig::default();
        config.retry = secs(30);
        config.poll = secs(1);
        config.poll_down = secs(1);
        config.stop = secs(90);
        config.ready = secs(60);
        config.probe = secs(10);
        config.bake = secs(6);
        config.bake_poll = secs(3);
        let builder = Migrator::builder(side(Side::Source), side(Side::Target))
            .journal(Arc::new(SeenJournal {
                stage: Arc::clone(&self.stage),
                inner: Arc::clone(&self.journal),
            }))
            .data_root(ROOT)
            .secrets(Arc::new(KnownSecrets::of([self.stage.spec.clone()])))
            .clock(self.clock.clone())
            .probe(Arc::new(Hooks(Arc::clone(&self.stage))))
            .route(Arc::new(Hooks(Arc::clone(&self.stage))))
            .config(config);
        #[cfg(debug_assertions)]
        let builder = if self.fence_is_broken {
            builder.with_a_broken_fence()
        } else {
            builder
        };
        builder.build()
    }

    /// One life of the process: `None` when it dies.
    async fn live(&self, force: Force, control: &Control) -> Option<Result<Record>> {
        let migrator = self.migrator();
        let id = self.stage.id();
        let work = async {
            let record = migrator.migrate(id, force, control).await?;
            match (self.schedule.story, record.step) {
                (story, Step::Committed) if story.is_taken_back() => {
                    if let Some(deed) = story.after_commit()
                        && !self.after_commit.swap(true, Ordering::SeqCst)
                    {
                        self.stage.compete(Side::Target, deed).await;
                        tokio::time::sleep(Duration::from_secs(30)).await;
                    }
                    migrator.rollback_with(id, force).await
                }
                (Story::Finishes, Step::Committed | Step::RemoveSource) => migrator.finish_with(id, true, force).await,
                _ => Ok(record),
            }
        };
        tokio::select! {
            biased;
            () = self.stage.crash.notified() => None,
            answer = work => Some(answer),
        }
    }

    /// Runs, and resumes what died or stopped, until the migration rests.
    async fn to_rest(&self) -> (Option<Record>, u32) {
        let mut force = Force::none();
        for resumes in 0..RESUMES {
            let control = Control::new();
            if self.schedule.story == Story::Aborted {
                let given_up = control.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    given_up.abort();
                });
            }
            match self.live(force, &control).await {
                Some(Ok(record)) if record.step.is_rest() && !self.wants_more(&record) => {
                    return (Some(record), resumes);
                }
                Some(Err(error)) => {
                    self.stage.state().story.push(format!("stopped: {error}"));
                    // The operator sees to the platforms before trying again.
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    self.stage.end_troubles();
                    force = self.accept(&error).await;
                }
                Some(Ok(_)) => {}
                None => {
                    self.stage.state().story.push("died".to_owned());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        self.stage
            .state()
            .broken
            .push(format!("it never ended: {RESUMES} resumptions"));
        (None, RESUMES)
    }

    /// What an operator accepts who has looked at both platforms.
    async fn accept(&self, error: &Error) -> Force {
        let mut force = Force::none();
        for side in [Side::Source, Side::Target] {
            if self.stage.observe(side).await.is_none() {
                force = force.accept_absent(side);
            }
        }
        let text = error.to_string();
        if text.contains("has opened the instance since the commit") {
            // Two writers, by somebody's order: one of them goes.
            drop(self.stage.source.suspend(self.stage.id()).await);
        } else if error.kind() == ErrorKind::Conflict && text.contains("since the commit") {
            force = force.lose_changes();
            self.stage.state().lose_changes = true;
        }
        force
    }

    fn wants_more(&self, record: &Record) -> bool {
        let story = self.schedule.story;
        record.step == Step::Committed && (story.is_taken_back() || story == Story::Finishes)
    }

    async fn look_again(&self, record: Record) -> Option<Record> {
        match self.live(Force::none(), &Control::new()).await {
            Some(Ok(record)) => Some(record),
            _ => Some(record),
        }
    }

    /// The tenant is where the record says, in the state in which it was, and only there.
    async fn check_the_end(&self, record: Option<&Record>) {
        let Some(record) = record else { return };
        let stage = &self.stage;
        let home = match record.step {
            Step::RolledBack => Side::Source,
            Step::Committed | Step::Finished => Side::Target,
            other => {
                stage.state().broken.push(format!("it rests at {other}"));
                return;
            }
        };
        let away = home.other();
        let mut broken = Vec::new();
        // What somebody else did when nobody looked any more is theirs.
        let untouched = home == Side::Source && !record.source_touched;
        let running = (record.inventory.as_ref()).is_some_and(|inventory| inventory.tenancy == Tenancy::Running);
        // So is a tenant that runs nowhere else and that they have opened there.
        let away_is_theirs = stage.unseen_deed(away).is_some()
            || stage.did(away, Deed::CreateOther)
            || (!running && stage.is_opened_by_others(away));
        if stage.is_open(away).await && !away_is_theirs {
            broken.push(format!("it is {}, and the {away} is open", record.step));
        }
        // A tenant that shall not run may be started by somebody else where it is at home.
        let deeds_at_home = stage.unseen_deed(home).is_some()
            || stage.deed_after_arrival(home)
            || ((untouched || !running) && mishap_on(self.schedule, home));
        // Visitors are sent where the tenant is, unless it has moved nowhere.
        if running && record.source_touched && stage.visitors_at() != home {
            broken.push(format!("it is {}, and visitors go to the {away}", record.step));
        }
        let wanted = match record.inventory.as_ref().map(|inventory| inventory.tenancy) {
            Some(Tenancy::Running) => Some(InstanceStatus::Running),
            Some(Tenancy::Stopped) => Some(InstanceStatus::Stopped),
            Some(Tenancy::Suspended) => Some(InstanceStatus::Paused),
            None => None,
        };
        match stage.observe(home).await {
            Some(instance) => {
                if let Some(wanted) = wanted
                    && instance.status != wanted
                    && !deeds_at_home
                {
                    broken.push(format!(
                        "it is {}, and the {home} is {} instead of {wanted}",
                        record.step, instance.status
                    ));
                }
                let owed = stage.state().orders.owed().filter(|_| home == Side::Source);
                if let Some(owed) = owed
                    && instance.status != owed
                    && !deeds_at_home
                {
                    broken.push(format!(
                        "{owed} was ordered on the target before the way back, and the source is {}",
                        instance.status
                    ));
                }
            }
            None if deeds_at_home => {}
            None => broken.push(format!("it is {}, and the {home} has nothing", record.step)),
        }
        let leftover = home == Side::Source
            && stage.observe(Side::Target).await.is_some()
            && !mishap_on(self.schedule, Side::Target);
        if leftover {
            broken.push("it went back, and left something on the target".to_owned());
        }
        stage.state().broken.extend(broken);
    }

    fn check_the_data(&self, location: &saasodoo_core::StorageLocation) {
        let stage = &self.stage;
        let mut broken = Vec::new();
        match stage.source.read_file(location, FILE) {
            Ok(Some(content)) if content == b"42" => {}
            other => broken.push(format!("the data is not what it was: {other:?}")),
        }
        stage.judge_violations();
        stage.state().broken.extend(broken);
    }
}

/// Whether somebody else has their hands on a side.
fn mishap_on(schedule: &Schedule, side: Side) -> bool {
    schedule
        .mishaps
        .iter()
        .any(|planned| matches!(planned.mishap, Mishap::Competitor(on, _) | Mishap::NotFound(on) if on == side))
        || (side == Side::Target && schedule.story.after_commit().is_some())
}
