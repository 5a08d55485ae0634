//! The crash explorer: a migration in which everything goes wrong, at every point, on a simulated clock.
//!
//! A migration between two platforms in memory that share their data is played again and again. In each play something
//! goes wrong at one or two of its points: the process dies, an answer is lost or late, a platform fails, is slow or
//! cannot be reached, a node is lost, or somebody else has their hands on the instance. Then it is resumed until it
//! rests. Whatever happens:
//!
//! - at no instant do both sides have a live unit or shall have one, unless somebody else has opened a side where the
//!   migration could not see it in time;
//! - no side is started while the other one was last seen open;
//! - the tenant's data is there, and was never deleted;
//! - what was changed on the target since the commit is not lost on the way back unless the operator accepts it;
//! - what somebody else has made on the target is not deleted;
//! - what was ordered on the source before it was stopped, and was to be seen, is so on the target at the commit;
//! - what was ordered on the target before the way back began is so on the source at its end;
//! - visitors are sent where the tenant is;
//! - the migration ends committed or rolled back, with the tenant in the power state it had, on exactly one side.

mod divergence;
mod hooks;
mod intercept;
mod orders;
mod play;
mod scenario;
mod schedule;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use saasodoo_core::migration::{Side, Step};

pub use divergence::assert_no_divergence;
pub use play::{Outcome, play};
pub use scenario::{Scenario, ScenarioReport};
pub use schedule::{Deed, Mishap, Planned, Schedule, Story};

use schedule::Dice;

/// What an exploration found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Exploration {
    /// How many schedules were played.
    pub played: usize,
    /// How many of them were distinct: something happened, or was seen, that did not in any other one.
    pub schedules: usize,
    /// How they ended.
    pub ends: BTreeMap<String, usize>,
    /// How many of them were resumed at least once.
    pub resumed: usize,
    /// Schedules in which something was that must not be; at most 20.
    pub broken: Vec<(Schedule, Outcome)>,
    /// How many there were of those in all.
    pub broken_count: usize,
}

impl Exploration {
    /// Fails when something was that must not be, or when fewer schedules were played than expected.
    ///
    /// # Panics
    /// Then.
    pub fn assert_sound(&self, least: usize) {
        assert!(self.broken_count == 0, "{self}");
        assert!(
            self.schedules >= least,
            "{} schedules instead of {least}",
            self.schedules
        );
    }
}

impl fmt::Display for Exploration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} distinct schedules out of {} played, {} of these resumed, {} broken",
            self.schedules, self.played, self.resumed, self.broken_count
        )?;
        for (end, count) in &self.ends {
            write!(f, "; {count} {end}")?;
        }
        for (schedule, outcome) in &self.broken {
            write!(f, "\n\n{schedule}")?;
            for broken in &outcome.broken {
                write!(f, "\n  !! {broken}")?;
            }
        }
        if let Some((_, outcome)) = self.broken.first() {
            write!(f, "\n\nthe first of them, point by point:")?;
            for line in &outcome.story {
                write!(f, "\n  {line}")?;
            }
        }
        Ok(())
    }
}

/// Plays many schedules, on several threads.
#[derive(Debug, Clone)]
pub struct Explorer {
    threads: usize,
    seed: u64,
    most: usize,
    fence_is_broken: bool,
}

impl Explorer {
    /// Plays until there were so many distinct schedules: some that aim at what others order and make, up to two thirds of
    /// that number with one mishap, out of every mishap at every point of every story, and then pairs of them.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            seed: 1,
            most,
            fence_is_broken: false,
        }
    }

    /// Chooses pairs by another seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Uses so many threads. Default: as many as there are processors.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Leaves the fence out of the migration, to see that it is noticed. Without debug assertions nothing can be left
    /// out.
    #[must_use]
    pub fn with_a_broken_fence(mut self) -> Self {
        self.fence_is_broken = true;
        self
    }

    /// The schedules, in the order in which they are played; more than are needed, because some turn out to be the same.
    #[must_use]
    pub fn schedules(&self) -> Vec<Schedule> {
        let mut singles = Vec::new();
        let mut points = BTreeMap::new();
        for story in Story::ALL {
            let calm = Schedule::of(story);
            let length = on_paused_clock(play(&calm, false)).points;
            points.insert(format!("{story:?}"), length);
            singles.push(calm.clone());
            for point in 1..=length {
                singles.extend(Mishap::all().into_iter().map(|mishap| calm.clone().with(point, mishap)));
            }
        }
        // Two thirds single mishaps, spread evenly when there are more; the rest pairs.
        let wanted = (self.most - self.most / 3).min(singles.len()).max(1);
        let mut schedules = aimed(points.get(&format!("{:?}", Story::Moves)).copied().unwrap_or(1));
        schedules.truncate(wanted / 3);
        let spread = wanted.saturating_sub(schedules.len());
        schedules.extend((0..spread).filter_map(|at| singles.get(at * singles.len() / spread).cloned()));
        let mut seen = HashSet::new();
        schedules.retain(|schedule| seen.insert(schedule.clone()));
        let mut dice = Dice(self.seed);
        let mishaps = Mishap::all();
        let stories = Story::ALL;
        let pick =
            |dice: &mut Dice, from: usize| usize::try_from(dice.below(u64::try_from(from).unwrap_or(1))).unwrap_or(0);
        while schedules.len() < self.most * 3 {
            let story = stories[pick(&mut dice, stories.len())];
            let length = u64::from(points.get(&format!("{story:?}")).copied().unwrap_or(1));
            let first = 1 + dice.below(length);
            // The second one may lie in what follows from the first: a resumption, a way back.
            let second = first + 1 + dice.below(length);
            let (one, other) = (
                mishaps[pick(&mut dice, mishaps.len())],
                mishaps[pick(&mut dice, mishaps.len())],
            );
            let at = |point: u64| u32::try_from(point).unwrap_or(u32::MAX);
            let pair = Schedule::of(story).with(at(first), one).with(at(second), other);
            if seen.insert(pair.clone()) {
                schedules.push(pair);
            }
        }
        schedules
    }

    /// Plays them all.
    #[must_use]
    pub fn run(&self) -> Exploration {
        let schedules = self.schedules();
        let next = AtomicUsize::new(0);
        let found = Mutex::new((Exploration::default(), HashSet::new()));
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    while let Some(schedule) = schedules.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = on_paused_clock(play(schedule, self.fence_is_broken));
                        let mut guard = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        let (found, behaviours) = &mut *guard;
                        found.played += 1;
                        behaviours.insert(outcome.behaviour);
                        found.schedules = behaviours.len();
                        if found.schedules >= self.most {
                            next.store(schedules.len(), Ordering::Relaxed);
                        }
                        let end = outcome
                            .step
                            .map_or_else(|| "without an end".to_owned(), |step: Step| step.to_string());
                        *found.ends.entry(end).or_default() += 1;
                        found.resumed += usize::from(outcome.resumes > 0);
                        if !outcome.broken.is_empty() {
                            found.broken_count += 1;
                            if found.broken.len() < 20 {
                                found.broken.push((schedule.clone(), outcome));
                            }
                        }
                    }
                });
            }
        });
        let (found, _) = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        found
    }
}

/// Where somebody else's orders and instances would be lost, which an even spread of few schedules may miss.
fn aimed(length: u32) -> Vec<Schedule> {
    let moves = Schedule::of(Story::Moves);
    let by = |side, deed| Mishap::Competitor(side, deed);
    let other = by(Side::Target, Deed::CreateOther);
    let mut schedules: Vec<Schedule> = (1..=length / 3).map(|point| moves.clone().with(point, other)).collect();
    for point in (1..=length).step_by(4) {
        for (side, deed) in [
            (Side::Source, Deed::Change),
            (Side::Source, Deed::Suspend),
            (Side::Target, Deed::Stop),
        ] {
            schedules.push(moves.clone().with(point, by(side, deed)));
        }
        let deleted = moves.clone().with(point, by(Side::Target, Deed::Delete));
        schedules.push(deleted.with(point + 3, other));
    }
    schedules
}

/// A runtime of its own whose clock jumps to whatever comes next.
fn on_paused_clock<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    runtime.block_on(work)
}
