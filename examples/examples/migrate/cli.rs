//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};
use saasodoo_core::InstanceId;
use saasodoo_core::migration::{Force, Side};

use super::platforms::PlatformArgs;
use super::route::RouteCommand;
use super::router::Router;

const EXIT_CODES: &str = "\
Exit codes:
  0  all done
  1  an error: what was asked for was not done, or its output could not be written
  2  the command line is wrong
  3  some tenants: run has rolled them back or they are halted, rollback or finish failed for them, they cannot move
     (plan), were not compared (report), or could not be read
  4  paused, or stopped before all were begun: the same command goes on; with some of both it is 3
What happened in an earlier call does not count.";

/// How a command ended that did what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    Paused,
}

impl Outcome {
    pub(crate) fn failed_if(failed: bool) -> Self {
        if failed { Self::Failed } else { Self::Done }
    }

    /// That of both together: a failure weighs more than a pause.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Failed, _) | (_, Self::Failed) => Self::Failed,
            (Self::Paused, _) | (_, Self::Paused) => Self::Paused,
            _ => Self::Done,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Failed => Self::from(3),
            Outcome::Paused => Self::from(4),
        }
    }
}

/// Moves tenants between Docker Swarm and Kubernetes on the data they have, with a way back.
#[derive(Debug, Parser)]
#[command(name = "migrate", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) platforms: PlatformArgs,
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Settings {
    /// Where the journal is kept; the same directory for every command about the same wave. Only `run` makes it.
    #[arg(long, default_value = "migration", value_name = "DIR", global = true)]
    pub(crate) state: PathBuf,
    /// A JSON file with secrets: {"<id>": {"database_password": "…", "admin_password": "…"}}.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) secrets: Option<PathBuf>,
    /// The state of an earlier migration the other way, which knows where the data of its instances is: a Kubernetes
    /// claim does not say.
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) earlier: Option<PathBuf>,
    /// How long both sides are watched before the commit, in seconds; default: 120, and 1 for the simulation.
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=WEEK), value_name = "SECONDS", global = true)]
    pub(crate) bake: Option<u64>,
    /// How long a target may take to be ready, in seconds.
    #[arg(long, default_value_t = 420, value_parser = clap::value_parser!(u64).range(1..=86_400), value_name = "SECONDS", global = true)]
    pub(crate) ready: u64,
    /// How long one operation on a real platform may take, in seconds. A change whose answer was lost, because the process
    /// died or the platform did not answer, is waited for 80 s longer than this before anything that contradicts it.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(30..=3600), value_name = "SECONDS", global = true)]
    pub(crate) deadline: u64,
    /// How long after the commit a tenant can be taken back, in hours; written down at its commit.
    #[arg(long, default_value_t = 72, value_parser = clap::value_parser!(u64).range(0..=YEAR), value_name = "HOURS", global = true)]
    pub(crate) window: u64,
    /// Asks each tenant's host through this router of the target before visitors are sent there. `run` begins nothing when
    /// it takes no connection.
    #[arg(long, value_name = "HOST:PORT", value_parser = Router::parse, global = true)]
    pub(crate) probe: Option<Router>,
    /// Sends visitors to a side: a program and its arguments, divided by spaces and run without a shell for each host of
    /// a tenant, with HOST, INSTANCE and SIDE (source or target) in its environment. It is run again until it succeeds
    /// or the time is up.
    #[arg(long, value_name = "CMD", value_parser = RouteCommand::parse, global = true)]
    pub(crate) route_command: Option<RouteCommand>,
    /// How long the route command may take for one host. Then it is killed, with all that it has started, and run again.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600), value_name = "SECONDS", global = true)]
    pub(crate) route_timeout: u64,
    /// Move an instance that is not well on the source.
    #[arg(long, global = true)]
    pub(crate) force_unhealthy: bool,
    /// Give up what could not be parsed.
    #[arg(long, global = true)]
    pub(crate) force_unparsed: bool,
    /// Go on although an instance is gone from that side where it was before. Only after seeing, on that very platform,
    /// that nothing of it is left.
    #[arg(long, value_name = "SIDE", value_parser = ["source", "target"], global = true)]
    pub(crate) accept_absent: Vec<String>,
    /// Go on although that side has another name in the journal. Only when it is the same platform: another manager of
    /// the same swarm, another address of the same API server.
    #[arg(long, value_name = "SIDE", value_parser = ["source", "target"], global = true)]
    pub(crate) accept_platform: Vec<String>,
}

/// In seconds.
const WEEK: u64 = 7 * 86_400;
/// In hours.
const YEAR: u64 = 366 * 24;

impl Settings {
    pub(crate) fn journal(&self) -> PathBuf {
        self.state.join("journal.jsonl")
    }

    pub(crate) fn window(&self) -> Duration {
        Duration::from_secs(self.window * 3600)
    }

    pub(crate) fn force(&self) -> Force {
        let mut force = Force::none();
        force.unhealthy_source = self.force_unhealthy;
        force.unparsed = self.force_unparsed;
        for side in [Side::Source, Side::Target] {
            let names = |given: &[String]| given.iter().any(|given| given == side.as_str());
            if names(&self.accept_absent) {
                force = force.accept_absent(side);
            }
            if names(&self.accept_platform) {
                force = force.accept_platform(side);
            }
        }
        force
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What is on the source, where the journal has it, and what of it could not be parsed.
    #[command(after_help = EXIT_CODES)]
    Inventory,
    /// Every change of every tenant, and hosts and names that clash. Changes nothing.
    #[command(after_help = EXIT_CODES)]
    Plan {
        /// Only these; default: all that the journal does not have under way or moved. Eight digits are enough where they
        /// fit one instance only.
        ids: Vec<InstanceId>,
    },
    /// Moves tenants. Run again to go on. Ctrl-C, SIGTERM or SIGHUP pauses where tenants are up; another Ctrl-C takes those
    /// under way back, but for those that are paused already.
    #[command(after_help = EXIT_CODES)]
    Run {
        /// Only these, in this order; default: all, by name. Eight digits are enough where they fit one instance only.
        ids: Vec<InstanceId>,
        /// How many at once.
        #[arg(long, default_value_t = 4, value_parser = RangedU64ValueParser::<usize>::new().range(1..=256), value_name = "N")]
        concurrency: usize,
        /// Begin no more when more than this share, from 0 to 1, of those that came to rest in this run has failed.
        #[arg(long, default_value_t = 0.1, value_parser = share, value_name = "SHARE")]
        stop_at: f64,
        /// So many must have come to rest before --stop-at counts.
        #[arg(long, default_value_t = 5, value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000), value_name = "N")]
        least_sample: usize,
        /// Begin again with those that were rolled back.
        #[arg(long)]
        retry: bool,
    },
    /// Where each tenant is, who is down now, until when each can be taken back, and why one was rolled back.
    #[command(after_help = EXIT_CODES)]
    Status,
    /// Takes tenants back to the source, one after the other. Ctrl-C, SIGTERM or SIGHUP stops after the one in hand.
    #[command(after_help = EXIT_CODES)]
    Rollback {
        /// These. Eight digits are enough where they fit one instance only.
        #[arg(required = true)]
        ids: Vec<InstanceId>,
        /// What was changed on the target since the commit is lost.
        #[arg(long)]
        lose_changes: bool,
    },
    /// Removes the sources of committed tenants whose window is over, one after the other. The data stays. Ctrl-C, SIGTERM or
    /// SIGHUP stops after the one in hand.
    #[command(after_help = EXIT_CODES)]
    Finish {
        /// Only these; default: all that are due. Eight digits are enough where they fit one instance only.
        ids: Vec<InstanceId>,
        /// Before the window is over; only with ids.
        #[arg(long, requires = "ids")]
        early: bool,
    },
    /// What it was like.
    #[command(after_help = EXIT_CODES)]
    Report {
        /// Writes one page of HTML there; `-` is the standard output.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Writes JSON there; `-`, and the default without --html, is the standard output.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Asks both sides and compares them as they are now, too.
        #[arg(long)]
        compare: bool,
    },
}

impl Cli {
    /// What cannot be meant together, and clap does not see.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        let standard = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
        match &self.command {
            Command::Report { html, json, .. } if standard(html) && standard(json) => {
                Some("--html - and --json - are both the standard output: give one of them a file")
            }
            _ => self.platforms.contradiction(),
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err("it is a share, from 0 to 1".to_owned())
    }
}
