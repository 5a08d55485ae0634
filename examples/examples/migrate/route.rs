//! The operator's own command that sends visitors to one side.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use saasodoo_core::migration::{RouteSwitch, Side};
use saasodoo_core::{Error, ErrorKind, Instance, OperationKind, Result};
use tokio::process::Command;

/// So long the command may take for one host.
const BUDGET: Duration = Duration::from_secs(60);

/// Runs a command for each host, without a shell: `HOST`, `INSTANCE` and `SIDE` (`source` or `target`) are in its
/// environment. Anything but success is a failure, and it is run again.
#[derive(Debug, Clone)]
pub(crate) struct RouteCommand {
    program: PathBuf,
    arguments: Vec<String>,
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
        })
    }

    async fn run(&self, instance: &Instance, host: &str, to: Side) -> Result<()> {
        let failed = |kind, why: String| {
            Error::new(kind, format!("{} for {host}: {why}", self.program.display()))
                .with_instance(instance.id)
                .with_operation(OperationKind::Migrate)
        };
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env("HOST", host)
            .env("INSTANCE", instance.id.to_string())
            .env("SIDE", to.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Its own group: a Ctrl-C in the terminal pauses the wave and does not end a switch half-way.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(ErrorKind::Configuration, error.to_string()))?;
        match tokio::time::timeout(BUDGET, child.wait_with_output()).await {
            Err(_) => Err(failed(ErrorKind::Timeout, format!("not done within {BUDGET:?}"))),
            Ok(Err(error)) => Err(failed(ErrorKind::Unavailable, error.to_string())),
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said.lines().last().unwrap_or_default();
                Err(failed(ErrorKind::Unavailable, format!("{}: {last}", output.status)))
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
