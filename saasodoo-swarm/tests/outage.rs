//! The daemon goes away during a watch. Disturbs everything else on the testbed, so it is asked for by name.

mod common;

use std::sync::Arc;

use common::on_testbed;
use common::subject::SwarmSubject;
use saasodoo_testkit::contract::Runner;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker Swarm (restarts dockerd)"]
async fn no_change_is_lost_when_the_daemon_restarts() {
    on_testbed(|orchestrator, root| async move {
        let subject = Arc::new(SwarmSubject {
            orchestrator,
            root,
            proxy: None,
            counts: false,
            restarts: true,
        });
        let report = Runner::new(subject).only(&["watch.survives_server_restart"]).run().await;
        println!("{}", report.summary());
        report.assert_passed(1);
    })
    .await;
}
