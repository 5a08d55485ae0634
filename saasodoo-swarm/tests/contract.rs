//! The contract suite against the testbed's Docker Swarm and CephFS.

mod common;

use std::sync::Arc;

use common::proxy::Proxy;
use common::subject::SwarmSubject;
use common::{builder, on_testbed, socket};
use saasodoo_swarm::DockerHost;
use saasodoo_testkit::contract::Runner;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker Swarm (creates services)"]
async fn the_contract_holds() {
    on_testbed(|_, root| async move {
        let subject = |counts| {
            let proxy = Proxy::before(&socket());
            let orchestrator = builder(&root)
                .host(DockerHost::Unix(proxy.socket()))
                .build()
                .expect("the proxy's socket");
            Arc::new(SwarmSubject {
                orchestrator,
                root: root.clone(),
                proxy: Some(proxy),
                counts,
                // An exclusive clause does that, when nothing else of the suite is under way.
                restarts: std::env::var_os("SAASODOO_TESTBED_CTL").is_some(),
            })
        };
        let mut report = Runner::new(subject(false)).concurrency(6).run().await;
        // Requests can be counted only while nothing else goes on.
        if !report.filtered {
            let counted = ["list.in_constant_requests", "create.bad_input_changes_nothing"];
            for record in Runner::new(subject(true)).only(&counted).run().await.records {
                if let Some(place) = report.records.iter_mut().find(|other| other.clause == record.clause) {
                    *place = record;
                }
            }
        }
        println!("{}", report.summary());
        println!("{}", report.write().expect("target is writable").display());
        report.assert_passed(60);
    })
    .await;
}
