//! The operator's own command that sends visitors to one side.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use saasodoo_core::migration::{RouteSwitch, Side};
use saasodoo_core::{Error, ErrorKind, Instance, OperationKind, Result};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};

/// More of one line is not kept, in bytes.
const LONGEST: u64 = 4096;

/// Runs a command for each host, without a shell: `HOST`, `INSTANCE` and `SIDE` (`source` or `target`) are in its
/// environment. Anything but success is a failure, and it is run again.
#[derive(Debug, Clone)]
pub(crate) struct RouteCommand {
    program: PathBuf,
    arguments: Vec<String>,
    budget: Duration,
}

impl RouteCommand {
    /// The program and its arguments, divided by spaces. One that cannot be run is refused now, and not when the first
    /// tenant is down.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut words = text.split_ascii_whitespace().map(ToOwned::to_owned);
        let program = words.next().ok_or("there is no program in it")?;
        Ok(Self {
            program: resolve(&program, std::env::var_os("PATH").unwrap_or_default().as_os_str())?,
            arguments: words.collect(),
            budget: Duration::from_secs(60),
        })
    }

    /// So long it may take for one host.
    pub(crate) fn within(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    async fn run(&self, instance: &Instance, host: &str, to: Side) -> Result<()> {
        let failed = |kind, why: String| {
            Error::new(kind, format!("{} for {host}: {why}", self.program.display()))
                .with_instance(instance.id)
                .with_operation(OperationKind::Migrate)
        };
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .env("HOST", host)
            .env("INSTANCE", instance.id.to_string())
            .env("SIDE", to.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Its own group: a Ctrl-C in the terminal pauses the wave and does not end a switch half-way.
            .process_group(0)
            .spawn()
            .map_err(|error| failed(ErrorKind::Configuration, error.to_string()))?;
        let group = Group::of(&child);
        let said = tokio::spawn(last_line(child.stderr.take()));
        match tokio::time::timeout(self.budget, child.wait()).await {
            Err(_) => Err(failed(ErrorKind::Timeout, format!("not done within {:?}", self.budget))),
            Ok(Err(error)) => Err(failed(ErrorKind::Unavailable, error.to_string())),
            Ok(Ok(status)) if status.success() => {
                group.leave();
                Ok(())
            }
            Ok(Ok(status)) => {
                // Whatever still holds its standard error ends here.
                drop(group);
                let last = said.await.unwrap_or_default();
                Err(failed(ErrorKind::Unavailable, format!("{status}: {last}")))
            }
        }
    }
}

/// The processes of a command, which end with this. A script that is killed leaves those that it has started.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    /// They may go on: the command has done its work.
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error means that they have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The last line that a command says. All of it is read, or the command would wait for a reader.
async fn last_line(stderr: Option<ChildStderr>) -> String {
    let mut last = String::new();
    let Some(stderr) = stderr else { return last };
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LONGEST).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return last,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                if !text.trim().is_empty() {
                    text.trim().clone_into(&mut last);
                }
            }
        }
    }
}

/// The file that is run: as a shell looks for it.
fn resolve(program: &str, path: &std::ffi::OsStr) -> std::result::Result<PathBuf, String> {
    if program.contains('/') {
        let file = PathBuf::from(program);
        return runs(&file).map(|()| file).map_err(|why| format!("{program}: {why}"));
    }
    std::env::split_paths(path)
        .map(|directory| directory.join(program))
        .find(|file| runs(file).is_ok())
        .ok_or_else(|| format!("there is no program {program} in PATH"))
}

fn runs(file: &Path) -> std::result::Result<(), String> {
    let about = std::fs::metadata(file).map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("it is not a file".to_owned());
    }
    if about.permissions().mode() & 0o111 == 0 {
        return Err("it is not executable".to_owned());
    }
    Ok(())
}

#[async_trait]
impl RouteSwitch for RouteCommand {
    async fn switch(&self, instance: &Instance, to: Side) -> Result<()> {
        for host in &instance.endpoints.hosts {
            self.run(instance, host.as_str(), to).await?;
        }
        Ok(())
    }
}
