//! One unit: a state machine whose steps are due at known moments.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use saasodoo_core::{Bytes, Capability, Cause, Exit, InstanceId, InstanceSpec, SETTLED_AFTER_SECONDS, Unit, UnitPhase};

use super::Settings;
use super::clock::{Moment, stamp};
use super::volume::{Volumes, Writer};

/// The platform gives a unit to a node after this.
const SCHEDULING: Duration = Duration::from_millis(100);
/// The longest pause between two starts of a process that ends again and again.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(300);
/// A process that ran this long starts again as if it were the first time.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);
/// Lines kept of one instance.
const LOG_LINES: usize = 10_000;

/// Trouble that a test causes for one instance; it lasts until it is cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// Every process ends at once with this code, the present one included.
    CrashLoop {
        /// The exit code.
        exit_code: i32,
    },
    /// Every process is killed for memory at once, the present one included.
    OutOfMemory,
    /// The image cannot be pulled: no new unit starts.
    ImagePull,
    /// The node does not answer any more: the unit's process may or may not run (it does, and it writes).
    NodeLost,
    /// The storage does not become ready: no new unit starts.
    StoragePending,
    /// The data cannot be mounted: no new unit starts.
    MountFailed,
    /// No node takes a new unit.
    Unschedulable,
    /// A quota refuses new units.
    QuotaExceeded,
    /// The process runs and does not answer its probe.
    Unready,
}

/// What the image does in this environment, as the testbed's stub does.
#[derive(Debug, Clone)]
struct Behaviour {
    image: String,
    image_missing: bool,
    crash: Option<i32>,
    out_of_memory: bool,
    never_listens: bool,
    slow: Duration,
    unready: bool,
    grace: Duration,
}

impl Behaviour {
    fn of(spec: &InstanceSpec) -> Self {
        let set = |name: &str| {
            spec.environment
                .iter()
                .find(|(key, value)| key.as_str() == name && !value.is_empty())
                .map(|(_, value)| value.as_str())
        };
        let eaten = set("EAT_MB")
            .and_then(|value| value.parse::<u32>().ok())
            .map(Bytes::from_mib);
        let out_of_memory = eaten.is_some_and(|eaten| eaten > spec.resources.memory);
        Self {
            image: spec.image.to_string(),
            image_missing: spec.image.tag() == Some("missing"),
            // A shell that is told to exit with something that is no number exits with 2.
            crash: set("CRASH").map(|value| value.parse::<u8>().map_or(2, i32::from)),
            out_of_memory,
            never_listens: eaten.is_some() && !out_of_memory,
            slow: set("SLOW")
                .and_then(|value| value.parse::<u32>().ok())
                .map_or(Duration::ZERO, |seconds| Duration::from_secs(seconds.into())),
            unready: set("UNREADY").is_some(),
            grace: spec.scheduling.stop_grace(),
        }
    }
}

/// What an instance's processes have written.
#[derive(Debug, Default)]
pub(super) struct Log {
    lines: VecDeque<Line>,
    next: u64,
    /// The number of the latest process.
    process: u64,
    running: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) number: u64,
    process: u64,
    pub(super) at: Moment,
    pub(super) unit: String,
    pub(super) text: String,
}

impl Log {
    fn write(&mut self, at: Moment, unit: &str, text: String) {
        if self.lines.len() >= LOG_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(Line {
            number: self.next,
            process: self.process,
            at,
            unit: unit.to_owned(),
            text,
        });
        self.next += 1;
    }

    /// The lines of the latest process.
    pub(super) fn present(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.process == self.process)
    }

    /// The lines of the process that ended last before the one that runs; while none runs, of the one that ended last,
    /// as Kubernetes answers between two starts.
    pub(super) fn previous(&self) -> impl Iterator<Item = &Line> {
        let process = if self.running {
            self.process.checked_sub(1)
        } else {
            Some(self.process)
        };
        self.lines
            .iter()
            .filter(move |line| Some(line.process) == process && line.process > 0)
    }

    /// The lines written since that line number.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |line| line.number >= number)
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Schedule,
    Pulled,
    Listening,
    Restart,
    /// Nothing happens, but the facts are read differently from now on.
    Settled,
    Gone,
}

/// When a unit's next step is. Of those at the same moment the ones that open a volume come last: what ends at a moment
/// has ended for what begins at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    pub(super) at: Moment,
    opens: bool,
}

/// What a unit's step can see and touch.
pub(super) struct Scene<'a> {
    pub(super) at: Moment,
    pub(super) base: Timestamp,
    pub(super) settings: &'a Settings,
    pub(super) volumes: &'a mut Volumes,
    pub(super) troubles: &'a [Trouble],
    pub(super) log: &'a mut Log,
    pub(super) volume: &'a str,
    pub(super) instance: InstanceId,
}

impl Scene<'_> {
    fn has(&self, trouble: &Trouble) -> bool {
        self.troubles.contains(trouble)
    }

    fn supports(&self, capability: Capability) -> bool {
        self.settings.capabilities.supports(capability)
    }
}

#[derive(Debug)]
pub(super) struct SimUnit {
    id: String,
    order: u64,
    pub(super) wanted: bool,
    phase: UnitPhase,
    ready: bool,
    was_ready: bool,
    mounted: bool,
    started: Option<Moment>,
    restarts: u32,
    /// Ends of its process in a row, for the pause before the next start.
    crashes: u32,
    last_exit: Option<Exit>,
    problem: Option<Cause>,
    behaviour: Behaviour,
    next: Option<(Moment, Step)>,
    /// While its node is lost: its phase, and what was to happen after how long.
    frozen: Option<(UnitPhase, Option<(Duration, Step)>)>,
}

impl SimUnit {
    pub(super) fn new(id: String, order: u64, spec: &InstanceSpec, at: Moment) -> Self {
        Self {
            id,
            order,
            wanted: true,
            phase: UnitPhase::Pending,
            ready: false,
            was_ready: false,
            mounted: false,
            started: None,
            restarts: 0,
            crashes: 0,
            last_exit: None,
            problem: None,
            behaviour: Behaviour::of(spec),
            next: Some((at + SCHEDULING, Step::Schedule)),
            frozen: None,
        }
    }

    pub(super) fn due(&self) -> Option<Due> {
        self.next.map(|(at, step)| Due {
            at,
            opens: step == Step::Schedule,
        })
    }

    /// It answers, and shall.
    pub(super) fn is_up(&self) -> bool {
        self.ready && self.wanted
    }

    pub(super) fn is_lost(&self) -> bool {
        self.phase == UnitPhase::Lost
    }

    fn has_process(&self) -> bool {
        let phase = self.frozen.as_ref().map_or(self.phase, |(phase, _)| *phase);
        phase == UnitPhase::Running
    }

    /// Does what is due; true when the unit is gone afterwards.
    pub(super) fn step(&mut self, scene: &mut Scene<'_>) -> bool {
        let Some((_, step)) = self.next.take() else {
            return false;
        };
        match step {
            Step::Schedule => self.schedule(scene),
            Step::Pulled => self.pulled(scene),
            Step::Listening => self.listening(scene),
            Step::Restart => {
                self.restarts = self.restarts.saturating_add(1);
                self.start_process(scene);
            }
            Step::Settled => {}
            Step::Gone => {
                self.end_process(scene);
                self.unmount(scene);
                return true;
            }
        }
        false
    }

    fn schedule(&mut self, scene: &mut Scene<'_>) {
        let waits = "the simulation was told so".to_owned();
        self.problem = if scene.has(&Trouble::Unschedulable) {
            Some(Cause::Unschedulable { message: waits })
        } else if scene.has(&Trouble::StoragePending) {
            Some(Cause::StoragePending { message: waits })
        } else {
            None
        };
        if self.problem.is_none() {
            self.phase = UnitPhase::Preparing;
            let writer = Writer {
                backend: scene.settings.kind,
                instance: scene.instance,
                unit: self.id.clone(),
            };
            scene.volumes.open(scene.volume, writer, scene.at);
            self.mounted = true;
            self.next = Some((scene.at + scene.settings.pull_time, Step::Pulled));
        }
    }

    fn pulled(&mut self, scene: &mut Scene<'_>) {
        self.problem = if self.behaviour.image_missing || scene.has(&Trouble::ImagePull) {
            Some(Cause::ImagePull {
                image: self.behaviour.image.clone(),
                message: "manifest unknown".to_owned(),
            })
        } else if scene.has(&Trouble::MountFailed) || !scene.volumes.exists(scene.volume) {
            Some(Cause::MountFailed {
                message: format!("{} is not there", scene.volume),
            })
        } else {
            None
        };
        if self.problem.is_none() {
            self.start_process(scene);
        }
    }

    fn start_process(&mut self, scene: &mut Scene<'_>) {
        self.phase = UnitPhase::Running;
        self.ready = false;
        self.was_ready = false;
        self.problem = None;
        self.started = Some(scene.at);
        scene.log.process += 1;
        scene.log.running = true;
        scene
            .log
            .write(scene.at, &self.id, format!("odoo-stub: starting on {}", self.id));
        self.next = None;
        if let Some(code) = self.behaviour.crash.or_else(|| crash_trouble(scene.troubles)) {
            scene
                .log
                .write(scene.at, &self.id, format!("odoo-stub: crashing with {code}"));
            self.exit(Exit::with_code(code, Some(stamp(scene.base, scene.at))), scene);
            return;
        }
        if self.behaviour.out_of_memory || scene.has(&Trouble::OutOfMemory) {
            self.killed_for_memory(scene);
            return;
        }
        scene.volumes.process_started(scene.volume, &self.id, scene.at);
        if !scene.supports(Capability::Readiness) {
            self.ready = true;
            self.was_ready = true;
        }
        if !self.behaviour.never_listens {
            let after = scene.settings.start_time + self.behaviour.slow;
            self.next = Some((scene.at + after, Step::Listening));
        }
        if scene.has(&Trouble::NodeLost) {
            self.lose_node(scene.at);
        }
    }

    fn listening(&mut self, scene: &mut Scene<'_>) {
        scene
            .log
            .write(scene.at, &self.id, "odoo-stub: listening on 8069".to_owned());
        let unready = self.behaviour.unready || scene.has(&Trouble::Unready);
        if !unready {
            self.ready = true;
            self.was_ready = true;
        }
        if self.restarts > 0
            && let Some(started) = self.started
        {
            // Counted in whole seconds, as the derivation of the status does.
            let settled = Duration::from_secs(started.as_secs() + SETTLED_AFTER_SECONDS.unsigned_abs());
            self.next = Some((settled.max(scene.at), Step::Settled));
        }
    }

    /// The process, if there is one, ends now and is started again after a pause.
    pub(super) fn crash(&mut self, code: i32, scene: &mut Scene<'_>) -> bool {
        if !self.has_process() || !self.wanted || self.is_lost() {
            return false;
        }
        scene
            .log
            .write(scene.at, &self.id, format!("odoo-stub: crashing with {code}"));
        self.exit(Exit::with_code(code, Some(stamp(scene.base, scene.at))), scene);
        true
    }

    /// The process, if there is one, is killed for memory now and is started again after a pause.
    pub(super) fn run_out_of_memory(&mut self, scene: &mut Scene<'_>) -> bool {
        if !self.has_process() || !self.wanted || self.is_lost() {
            return false;
        }
        self.killed_for_memory(scene);
        true
    }

    fn killed_for_memory(&mut self, scene: &mut Scene<'_>) {
        let mut exit = Exit::with_code(137, Some(stamp(scene.base, scene.at)));
        exit.out_of_memory = Some(scene.supports(Capability::OutOfMemoryCertain));
        self.exit(exit, scene);
    }

    fn exit(&mut self, mut exit: Exit, scene: &mut Scene<'_>) {
        exit.started_at = self.started.map(|at| stamp(scene.base, at));
        let ran = self
            .started
            .map_or(Duration::ZERO, |started| scene.at.saturating_sub(started));
        if ran >= FORGIVEN_AFTER {
            self.crashes = 0;
        }
        self.end_process(scene);
        let code = exit.code;
        // The first end is told as it is; from the second on the platform speaks of a loop.
        self.problem = Some(if self.crashes == 0 {
            Cause::Exited { code }
        } else {
            Cause::CrashLoop {
                restarts: self.restarts,
                last_exit: code,
            }
        });
        self.last_exit = Some(exit);
        self.phase = UnitPhase::Preparing;
        let pause = scene
            .settings
            .crash_back_off
            .saturating_mul(1u32.checked_shl(self.crashes.min(16)).unwrap_or(u32::MAX))
            .min(LONGEST_BACK_OFF);
        self.crashes = self.crashes.saturating_add(1);
        self.next = Some((scene.at + pause, Step::Restart));
    }

    fn end_process(&mut self, scene: &mut Scene<'_>) {
        if self.has_process() {
            scene.log.running = false;
            scene.volumes.process_ended(scene.volume, &self.id, scene.at);
        }
        self.started = None;
        self.ready = false;
        self.was_ready = false;
    }

    fn unmount(&mut self, scene: &mut Scene<'_>) {
        if std::mem::take(&mut self.mounted) {
            scene.volumes.close(scene.volume, &self.id);
        }
    }

    /// Tells the unit to end; true when it is gone at once, because it has no process.
    pub(super) fn stop(&mut self, scene: &mut Scene<'_>) -> bool {
        if !std::mem::replace(&mut self.wanted, false) {
            return false;
        }
        self.problem = None;
        self.ready = false;
        let after = scene.settings.stop_time.min(self.behaviour.grace);
        if let Some((_, pending)) = &mut self.frozen {
            // Nobody can reach it: it ends when its node comes back.
            *pending = Some((after, Step::Gone));
            return false;
        }
        if !self.has_process() {
            self.next = None;
            self.unmount(scene);
            return true;
        }
        scene.log.write(scene.at, &self.id, "odoo-stub: stopping".to_owned());
        self.next = Some((scene.at + after, Step::Gone));
        false
    }

    /// The node stops answering. What runs on it goes on unseen.
    pub(super) fn lose_node(&mut self, at: Moment) {
        if matches!(self.phase, UnitPhase::Running | UnitPhase::Preparing) {
            let pending = self.next.take().map(|(due, step)| (due.saturating_sub(at), step));
            self.frozen = Some((self.phase, pending));
            self.phase = UnitPhase::Lost;
            self.ready = false;
        }
    }

    /// The node answers again.
    pub(super) fn find_node(&mut self, at: Moment) {
        if let Some((phase, pending)) = self.frozen.take() {
            self.phase = phase;
            self.ready = self.was_ready && self.wanted;
            self.next = pending.map(|(after, step)| (at + after, step));
        }
    }

    pub(super) fn become_unready(&mut self) {
        self.ready = false;
    }

    /// All trouble is over: tries again at once what was given up.
    pub(super) fn retry(&mut self, at: Moment) {
        self.find_node(at);
        match self.phase {
            UnitPhase::Pending if self.next.is_none() => self.next = Some((at, Step::Schedule)),
            UnitPhase::Preparing if self.next.is_none() => self.next = Some((at, Step::Pulled)),
            UnitPhase::Running if self.wanted && self.next.is_none() && !self.ready && !self.behaviour.unready => {
                // It has been listening all the time, unless it never does.
                self.ready = !self.behaviour.never_listens;
                self.was_ready = self.ready;
            }
            _ => {}
        }
    }

    pub(super) fn observe(&self, base: Timestamp) -> Unit {
        let mut unit = Unit::new(&self.id, self.order, self.phase);
        let placed = self.phase != UnitPhase::Pending;
        unit.node = placed.then(|| "memory-node".to_owned());
        unit.address = self
            .has_process()
            .then(|| format!("10.0.{}.{}", self.order / 256 % 256, self.order % 256));
        unit.wanted = self.wanted;
        unit.ready = self.ready;
        unit.was_ready = self.was_ready;
        unit.started_at = self.started.map(|at| stamp(base, at));
        unit.restarts = self.restarts;
        unit.last_exit.clone_from(&self.last_exit);
        unit.problem.clone_from(&self.problem);
        unit
    }
}

fn crash_trouble(troubles: &[Trouble]) -> Option<i32> {
    troubles.iter().find_map(|trouble| match trouble {
        Trouble::CrashLoop { exit_code } => Some(*exit_code),
        _ => None,
    })
}
