//! The pure parts, for the benchmarks. Not a part of the API: it may change or go with any release.

use std::collections::HashMap;

use jiff::Timestamp;
use saasodoo_core::{Instance, InstanceSpec, Result};
use serde_json::Value;

use crate::config::SwarmConfig;
use crate::convert::{self, Creation};
use crate::facts::{self, Disk};
use crate::task::Task;
use crate::wire::each_element;

/// The body of a new instance's service.
///
/// # Errors
/// Those of a creation's checks.
pub fn service(config: &SwarmConfig, spec: &InstanceSpec) -> Result<Value> {
    convert::check_supported(spec)?;
    let name = convert::service_name(&spec.database_name, spec.id)?;
    let hosts = spec.hosts(&config.common.base_domain)?;
    let creation = Creation {
        spec,
        name: &name,
        hosts: &hosts,
        directory: &config.data_root.join(convert::directory_name(spec)),
        adopted: false,
        stopped: false,
        secrets: &[],
        resolved: None,
    };
    convert::service(&creation, config)
}

/// The instances in a list of services and a list of tasks, as the daemon sends them.
///
/// # Errors
/// When a list is not JSON, or a service has no id.
pub fn instances(config: &SwarmConfig, services: &[u8], tasks: &[u8]) -> Result<Vec<Instance>> {
    let mut by_service: HashMap<String, Vec<Task>> = HashMap::new();
    each_element(tasks, |task| {
        let task = Task::read(&task, &config.network);
        by_service.entry(task.service.clone()).or_default().push(task);
    })?;
    let now = Timestamp::now();
    let mut read = Vec::new();
    each_element(services, |service| {
        let own = service.get("ID").and_then(Value::as_str).unwrap_or_default();
        let tasks = by_service.remove(own).unwrap_or_default();
        read.push(facts::instance(&service, &tasks, Disk::default(), config, now));
    })?;
    read.into_iter().collect()
}
