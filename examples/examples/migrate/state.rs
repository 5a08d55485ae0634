//! The journal on the disk, and the migrator that goes on from it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use saasodoo_core::migration::{
    FileJournal, HttpProbe, Journal, KnownSecrets, MigrationConfig, Migrator, MigratorBuilder, Record, RecordedData,
    RootedData,
};
use saasodoo_core::{DatabaseEndpoint, InstanceId, InstanceSpec, Secret};

use super::cli::{Command, Settings};
use super::guard::Identities;
use super::platforms::Platforms;

/// Whether the file is there; that it cannot be looked at is not absence.
fn is_there(path: &Path) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            let given = path.parent().unwrap_or(path);
            bail!(
                "{} is a file: give the directory that holds journal.jsonl",
                given.display()
            )
        }
        Err(error) => Err(error).context(path.display().to_string()),
    }
}

/// The journal as that command needs it; `None` where there is none and the command does without.
pub(crate) fn open(path: &Path, command: &Command) -> Result<Option<Arc<dyn Journal>>> {
    let there = is_there(path).context("--state")?;
    Ok(match command {
        Command::Run { .. } | Command::Plan { .. } | Command::Inventory if !there => None,
        _ if !there => bail!("there is no journal at {}: give --state as for run", path.display()),
        // Only a command that changes something needs the file for itself.
        Command::Run { .. } | Command::Rollback { .. } | Command::Finish { .. } => {
            Some(Arc::new(FileJournal::open(path)?))
        }
        _ => Some(Arc::new(FileJournal::open_read_only(path)?)),
    })
}

/// A new journal for a wave that is about to begin.
pub(crate) async fn create(path: &Path) -> Result<Arc<dyn Journal>> {
    let journal = FileJournal::open(path)?;
    if !journal.load_all().await?.is_empty() {
        bail!("another process has just begun at {}: run again", path.display());
    }
    Ok(Arc::new(journal))
}

/// What the journal of an earlier migration knows.
pub(crate) async fn earlier(settings: &Settings) -> Result<Vec<Record>> {
    let Some(earlier) = &settings.earlier else {
        return Ok(Vec::new());
    };
    let path = earlier.join("journal.jsonl");
    if !is_there(&path).context("--earlier")? {
        bail!(
            "--earlier: there is no journal at {}: give the directory that was --state then",
            path.display()
        );
    }
    let journal = FileJournal::open_read_only(path).context("--earlier")?;
    Ok(journal.load_all().await?)
}

/// All of a migrator but its journal.
pub(crate) fn builder(
    settings: &Settings,
    identities: &Identities,
    platforms: &Platforms,
    records: &[Record],
    earlier: &[Record],
) -> Result<MigratorBuilder> {
    let mut config = MigrationConfig::default();
    config.ready = Duration::from_secs(settings.ready);
    // What a platform's own deadlines leave: an operation, undoing it, and the way of the answer.
    config.call = Duration::from_secs(settings.deadline + 10);
    config.doubt = Duration::from_secs(settings.deadline + 80);
    config.rollback_window = settings.window();
    if platforms.simulated {
        config.poll = Duration::from_millis(50);
        config.bake = Duration::from_secs(1);
        config.bake_poll = Duration::from_millis(250);
        config.expected_downtime = Duration::from_secs(2);
    }
    if let Some(bake) = settings.bake {
        config.bake = Duration::from_secs(bake);
    }
    // Only what an earlier migration knows: this one's own journal would say of its target what it expects there.
    let data = RecordedData::of(earlier, RootedData::under(platforms.data_root.clone()));
    let secrets = secrets(settings, platforms, &[records, earlier].concat())?;
    let mut builder = Migrator::builder(platforms.source.clone(), platforms.target.clone())
        .identities(identities.source.written(), identities.target.written())
        .data_locator(Arc::new(data))
        .config(config)
        .secrets(Arc::new(KnownSecrets::of(secrets)));
    if let Some(router) = &settings.probe {
        builder = builder.probe(Arc::new(HttpProbe::through(router.as_str())));
    }
    if let Some(command) = &settings.route_command {
        let budget = Duration::from_secs(settings.route_timeout);
        builder = builder.route(Arc::new(command.clone().within(budget)));
    }
    Ok(builder)
}

/// Specs that hold the secrets: the simulation's own, or those of the file on top of what is in the journal.
fn secrets(settings: &Settings, platforms: &Platforms, records: &[Record]) -> Result<Vec<InstanceSpec>> {
    let Some(path) = &settings.secrets else {
        return Ok(platforms.specs.clone());
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("reading --secrets {}", path.display()))?;
    // What is wrong is not shown: it may be a password.
    let given: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&text).map_err(|error| {
        let wanted = r#"{"<id>": {"database_password": "…", "admin_password": "…"}}"#;
        let (line, column) = (error.line(), error.column());
        anyhow!(
            "--secrets {}: line {line}, column {column}: this is expected: {wanted}",
            path.display()
        )
    })?;
    let mut specs = Vec::new();
    for (id, secrets) in given {
        let id: InstanceId = id
            .parse()
            .with_context(|| format!("--secrets {}: the id {id:?}", path.display()))?;
        let known = records.iter().find(|record| record.instance == id);
        let mut spec = match known.and_then(|record| record.inventory.as_ref()) {
            Some(inventory) => inventory.spec.clone(),
            None => InstanceSpec::new(id, "unknown".parse()?, "unknown:0".parse()?),
        };
        for (name, value) in secrets {
            let secret = Secret::new(value);
            match name.as_str() {
                "database_password" => spec = spec.with_database(endpoint(secret)),
                "admin_password" => spec = spec.with_admin("", secret),
                other => bail!(
                    "--secrets {}: {other:?} is no secret of an instance: database_password and admin_password are",
                    path.display()
                ),
            }
        }
        specs.push(spec);
    }
    Ok(specs)
}

/// Only its password is used.
fn endpoint(password: Secret) -> DatabaseEndpoint {
    let mut endpoint = DatabaseEndpoint::new("", "", "", password);
    endpoint.user = None;
    endpoint
}
