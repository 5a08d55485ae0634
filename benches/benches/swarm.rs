//! Conversion on Swarm: a spec to its service, and a fleet's lists of services and tasks to instances, beside the client
//! library's own types parsing the same bytes.

use std::hint::black_box;

use bollard::models::{Service, Task};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use saasodoo_core::Config;
use saasodoo_swarm::{SwarmConfig, bench};
use saasodoo_testkit::fixtures;
use serde_json::{Value, json};

const INSTANCES: u32 = 500;
/// A manager keeps five tasks of each slot.
const HISTORY: u32 = 4;

fn time(second: u32) -> String {
    format!("2026-11-20T10:{:02}:{:02}.123456789Z", second / 60, second % 60)
}

/// A list of services and one of tasks, as large as those of a daemon.
fn lists(config: &SwarmConfig) -> (Vec<u8>, Vec<u8>) {
    let (mut services, mut tasks) = (Vec::new(), Vec::new());
    for spec in fixtures::fleet(INSTANCES) {
        let body = bench::service(config, &spec).expect("a service");
        let mut before = body.clone();
        before["Mode"]["Replicated"]["Replicas"] = json!(0);
        let id = format!("service-{}", spec.id);
        for number in 0..=HISTORY {
            let last = number == HISTORY;
            tasks.push(json!({
                "ID": format!("task-{number}-{}", spec.id),
                "Version": {"Index": 100 + number},
                "CreatedAt": time(60 * number), "UpdatedAt": time(60 * number + 9),
                "Labels": {}, "ServiceID": id, "Slot": 1, "NodeID": "node-1",
                "Spec": body["TaskTemplate"],
                "Status": {
                    "Timestamp": time(60 * number + 9),
                    "State": if last { "running" } else { "failed" },
                    "Message": "started",
                    "Err": if last { "" } else { "task: non-zero exit (1)" },
                    "ContainerStatus": {"ContainerID": "c0ffee", "PID": 4711, "ExitCode": u32::from(!last)},
                    "PortStatus": {},
                },
                "DesiredState": if last { "running" } else { "shutdown" },
                "NetworksAttachments": [{
                    "Network": {"ID": "network", "Spec": {"Name": config.network, "DriverConfiguration": {}}},
                    "Addresses": ["10.0.0.1/24"],
                }],
            }));
        }
        services.push(json!({
            "ID": id, "Version": {"Index": 90}, "CreatedAt": time(0), "UpdatedAt": time(1),
            "Spec": body, "PreviousSpec": before,
            "Endpoint": {"Spec": {"Mode": "vip"}, "VirtualIPs": [{"NetworkID": "network", "Addr": "10.0.0.2/24"}]},
        }));
    }
    let list = |items: Vec<Value>| Value::Array(items).to_string().into_bytes();
    (list(services), list(tasks))
}

fn benchmarks(c: &mut Criterion) {
    let config = SwarmConfig::new(Config::default());
    let spec = fixtures::spec("acme");
    c.bench_function("swarm/spec_to_service", |b| {
        b.iter(|| bench::service(&config, black_box(&spec)).expect("a service"));
    });

    let (services, tasks) = lists(&config);
    let bytes = u64::try_from(services.len() + tasks.len()).expect("a size");
    let mut group = c.benchmark_group("swarm/list_of_500");
    group.sample_size(20).throughput(Throughput::Bytes(bytes));
    group.bench_function("instances", |b| {
        b.iter(|| bench::instances(&config, black_box(&services), black_box(&tasks)).expect("instances"));
    });
    group.bench_function("typed_objects_only", |b| {
        b.iter(|| {
            let services: Vec<Service> = serde_json::from_slice(black_box(&services)).expect("a list");
            let tasks: Vec<Task> = serde_json::from_slice(black_box(&tasks)).expect("a list");
            (services.len(), tasks.len())
        });
    });
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
