//! The `migrate` example as an operator meets it: a process with a command line, output and an exit code, on the
//! simulation.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Answer, Bed, binary, id, moved_between};
use saasodoo_core::BackendKind;
use saasodoo_core::migration::{Force, Step};

mod common;
#[path = "../examples/migrate/guard.rs"]
#[allow(dead_code)]
mod guard;

#[test]
fn a_journal_that_is_not_there_is_said_and_not_made() {
    let bed = Bed::new("absent");
    let first = id(1);
    for arguments in [
        &["status"][..],
        &["report"],
        &["report", "--compare"],
        &["finish"],
        &["rollback", &first],
    ] {
        let answer = bed.call(arguments);
        assert_eq!(answer.code, Some(1), "{arguments:?}: {answer:?}");
        assert!(answer.err.contains("there is no journal at"), "{answer:?}");
    }
    assert_eq!(bed.call(&["inventory"]).code, Some(0), "it needs none");
    assert!(!bed.state().exists(), "only run makes it");

    std::fs::write(bed.state(), "not a directory").expect("written");
    for command in ["status", "inventory", "run"] {
        let answer = bed.call(&[command]);
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(!answer.err.contains("there is no journal"), "not absence: {answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_of_other_platforms_is_refused_as_a_whole() {
    let bed = Bed::new("foreign");
    moved_between(&bed.journal(), "swarm manager a", "kubernetes b").await;
    let before = std::fs::read(bed.journal()).expect("a journal");
    let first = id(1);
    for arguments in [
        &["run"][..],
        &["run", "--retry", &first],
        &["plan"],
        &["inventory"],
        &["rollback", &first],
        &["finish", "--early", &first],
        &["report", "--compare"],
        // A simulation is no other name of them.
        &["run", "--accept-platform", "source", "--accept-platform", "target"],
    ] {
        let answer = bed.call(arguments);
        assert_eq!(answer.code, Some(1), "{arguments:?}: {answer:?}");
        assert!(
            answer
                .err
                .starts_with("platforms: from simulation of swarm to simulation of kubernetes\n"),
            "{answer:?}"
        );
        assert!(
            answer.err.contains("from swarm manager a to kubernetes b") && answer.err.contains("nothing was begun"),
            "{answer:?}"
        );
    }
    assert_eq!(std::fs::read(bed.journal()).expect("a journal"), before);
    assert_eq!(bed.call(&["status"]).code, Some(0), "it asks no platform");
    assert_eq!(bed.call(&["report"]).code, Some(0), "nor does it");
}

#[tokio::test(start_paused = true)]
async fn another_name_of_a_real_platform_can_be_accepted() {
    use guard::{Identities, Identity};
    let bed = Bed::new("renamed");
    moved_between(&bed.journal(), "swarm manager a", "kubernetes b").await;
    let records = bed.records();
    let between = |source: &str, target: &str| Identities {
        source: Identity::new(BackendKind::Swarm, source),
        target: Identity::new(BackendKind::Kubernetes, target),
    };
    let check = |here: Identities, force| here.check(&records, force, Path::new("journal"));
    let accepted = Force::none().accept_platform(saasodoo_core::migration::Side::Source);
    assert!(check(between("swarm manager a", "kubernetes b"), Force::none()).is_ok());
    assert!(check(between("swarm manager c", "kubernetes b"), Force::none()).is_err());
    assert!(check(between("swarm manager c", "kubernetes b"), accepted).is_ok());
    assert!(check(between("swarm manager a", "kubernetes c"), accepted).is_err());
    let swapped = Identities {
        source: Identity::new(BackendKind::Kubernetes, "kubernetes b"),
        target: Identity::new(BackendKind::Swarm, "swarm manager a"),
    };
    let both = accepted.accept_platform(saasodoo_core::migration::Side::Target);
    assert!(check(swapped, both).is_err(), "another direction is no other name");
}

#[test]
fn a_wave_is_told_from_the_inventory_to_the_way_back() {
    let bed = Bed::new("wave");
    let first = id(1);
    let answer = bed.call(&["run"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(
        answer.err.contains("3/3 committed odoo-tenant-") && answer.err.contains(" down "),
        "{answer:?}"
    );
    assert!(answer.out.starts_with("3 committed, 0 rolled back"), "{answer:?}");

    let status = bed.call(&["status"]).out;
    assert!(
        status.contains("until 20") && status.contains("in 2 d 23 h"),
        "{status}"
    );
    let inventory = bed.call(&["inventory"]).out;
    let row = inventory.lines().find(|line| line.starts_with(&first)).expect("its id");
    assert!(row.contains("committed"), "{inventory}");
    let column = |line: &str, of: &str| line.find(of).map(|at| line[..at].chars().count());
    let header = inventory.lines().next().expect("a header");
    assert_eq!(column(header, "journal"), column(row, "committed"), "{inventory}");
    assert!(
        inventory.contains("3 committed, 0 under way, 0 finished, 0 rolled back"),
        "{inventory}"
    );
    let plan = bed.call(&["plan"]);
    assert_eq!(plan.code, Some(0), "{plan:?}");
    assert!(
        plan.out.contains("3 left out") && !plan.out.contains("CANNOT MOVE"),
        "{plan:?}"
    );
    let plan = bed.call(&["plan", &first]);
    assert_eq!(plan.code, Some(0), "there is nothing to move: {plan:?}");
    assert!(
        plan.out.contains("  HAS MOVED, in the journal at committed: "),
        "{plan:?}"
    );
    let finish = bed.call(&["finish"]);
    assert_eq!(finish.code, Some(0));
    assert!(finish.out.contains("the next one is odoo-tenant-"), "{finish:?}");

    let back = bed.call(&["rollback", &first]);
    assert_eq!(back.code, Some(0), "{back:?}");
    assert!(
        back.out
            .contains(&format!("{first} odoo-tenant-1-00000001 rolled_back")),
        "{back:?}"
    );
    assert!(
        bed.call(&["status"])
            .out
            .contains("taken back by the operator after the commit")
    );
    let again = bed.call(&["run"]);
    assert_eq!(again.code, Some(0), "this run failed for nobody: {again:?}");
    assert!(
        again.out.contains("1 of these were rolled back in an earlier run"),
        "{again:?}"
    );
    assert_eq!(bed.call(&["finish", "--early", &id(2)]).code, Some(0));
}

#[test]
fn one_tenant_that_is_missing_does_not_end_the_comparison() {
    let bed = Bed::new("compare");
    assert_eq!(bed.call(&["run"]).code, Some(0));
    let report = bed.0.join("report.json");
    let mut compare = Command::new(binary());
    compare
        .arg("--state")
        .arg(bed.state())
        .args(["--fleet", "2", "report", "--compare", "--json"]);
    let compare = Answer::of(compare.arg(&report).output().expect("a process"));
    assert_eq!(compare.code, Some(3), "{compare:?}");
    assert!(
        compare.err.contains("not compared: odoo-tenant-3-00000003"),
        "{compare:?}"
    );
    let report = std::fs::read_to_string(report).expect("a report");
    assert!(report.contains("\"not_compared\": 1"), "{report}");
}

#[test]
fn a_tenant_that_is_rolled_back_counts_in_the_run_that_did_it() {
    let bed = Bed::new("failed");
    let secrets = bed.0.join("secrets.json");
    let with_secrets = |text: &str| {
        std::fs::write(&secrets, text).expect("written");
        let path = secrets.display().to_string();
        bed.call(&["--secrets", &path, "run", &id(1)])
    };
    let answer = with_secrets(r#"{"one": {}}"#);
    assert_eq!(answer.code, Some(1));
    assert!(answer.err.contains("secrets.json: the id \"one\""), "{answer:?}");

    let answer = with_secrets("{}");
    assert_eq!(answer.code, Some(3), "{answer:?}");
    assert!(
        answer
            .err
            .contains("1/1 rolled_back odoo-tenant-1-00000001: preflight failed: "),
        "{answer:?}"
    );
    let status = bed.call(&["status"]).out;
    let row = status.lines().find(|line| line.starts_with(&id(1))).expect("a row");
    assert!(row.contains("rolled_back  -"), "never down: {status}");
    assert!(status.contains("    preflight failed: "), "{status}");
    assert_eq!(bed.call(&["run", &id(1)]).code, Some(0), "not in this run");
}

#[test]
fn an_id_that_nobody_knows_leaves_nothing_behind() {
    let bed = Bed::new("unknown");
    let (wrong, other) = (id(77), id(78));
    let answer = bed.call(&["run", &id(1), &wrong, &other]);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(answer.err.contains(&wrong) && answer.err.contains(&other), "{answer:?}");
    assert!(!bed.state().exists(), "nothing was begun");
}

#[tokio::test]
async fn a_tenant_that_is_down_and_one_that_is_halted_are_shown() {
    let bed = Bed::new("down");
    let mut child = bed.begin(&["--bake", "600", "run", &id(2)]);
    // Stopped, and not only about to be.
    bed.wait_for("starting on the target", |records| {
        records
            .iter()
            .any(|record| record.is_down() && record.step == Step::AwaitTarget)
    })
    .await;
    child.kill().expect("killed");
    child.wait().expect("its end");
    let status = bed.call(&["status"]).out;
    assert!(status.contains("  DOWN ") && status.contains("1 down now"), "{status}");

    // Here neither side has it any more.
    let mut halted = Command::new(binary());
    halted
        .arg("--state")
        .arg(bed.state())
        .args(["--fleet", "1", "run", &id(2)]);
    let halted = Answer::of(halted.output().expect("a process"));
    assert_eq!(halted.code, Some(3), "{halted:?}");
    assert!(halted.err.contains("HALTED odoo-tenant-2-00000002"), "{halted:?}");
    let status = bed.call(&["status"]).out;
    assert!(
        status.contains("    HALTED at ") && status.contains("1 halted"),
        "{status}"
    );
}

#[test]
fn what_cannot_work_is_refused_on_the_command_line() {
    let bed = Bed::new("usage");
    let plain = bed.0.join("plain");
    std::fs::write(&plain, "no program").expect("written");
    let plain = plain.display().to_string();
    for (arguments, says) in [
        (&["run", "--stop-at", "10"][..], "from 0 to 1"),
        (&["run", "--stop-at", "NaN"], "from 0 to 1"),
        (&["--source", "swarm", "--target", "swarm", "inventory"], "are the same"),
        (&["--target", "kubernetes", "plan"], "a simulated platform"),
        (&["report", "--html", "-", "--json", "-"], "both the standard output"),
        (&["run", "--concurrency", "0"], "0 is not in 1.."),
        (&["run", "--least-sample", "0"], "0 is not in 1.."),
        (&["--ready", "0", "run"], "0 is not in 1.."),
        (&["--window", "18446744073709551615", "finish"], "is not in 0.."),
        (
            &["--route-command", "/nowhere/switch-host --zone x", "run"],
            "/nowhere/switch-host",
        ),
        (&["--route-command", "no-such-program-anywhere", "run"], "in PATH"),
        (&["--route-command", &plain, "run"], "it is not executable"),
    ] {
        let answer = bed.call(arguments);
        assert_eq!(answer.code, Some(2), "{arguments:?}: {answer:?}");
        assert!(answer.err.contains(says), "{arguments:?}: {answer:?}");
    }
    let help = bed.call(&["run", "--help"]).out;
    assert!(
        help.contains("Exit codes:") && help.contains("--least-sample"),
        "{help}"
    );
}

#[test]
fn a_hook_is_found_in_path_and_runs_in_a_group_of_its_own() {
    let bed = Bed::new("hook");
    let (hook, log) = (bed.script("switch-host"), bed.0.join("log"));
    let script = format!(
        "#!/bin/sh\necho \"$1 $HOST $SIDE $$ $(cut -d' ' -f5 /proc/$$/stat)\" >> '{}'\n",
        log.display()
    );
    hook.write(&script);
    let mut run = bed.command(&["--route-command", "switch-host zone", "run", &id(1)]);
    let path = std::env::var("PATH").unwrap_or_default();
    run.env("PATH", format!("{}:{path}", bed.0.display()));
    let answer = Answer::of(run.output().expect("a process"));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let log = std::fs::read_to_string(log).expect("a log");
    let words: Vec<&str> = log.split_whitespace().collect();
    let [zone, host, side, process, group] = words[..] else {
        panic!("{log}")
    };
    assert_eq!((zone, host, side), ("zone", "tenant-1.saasodoo.com", "target"));
    assert_eq!(process, group, "a Ctrl-C in the terminal would end it");
}

#[test]
fn what_a_hook_has_started_ends_with_it_when_its_time_is_up() {
    let bed = Bed::new("hook-time");
    let (hook, again) = (bed.script("slow"), bed.0.join("again"));
    let (first, second) = (bed.0.join("first"), bed.0.join("second"));
    // The first run hangs; the second leaves something behind that holds its standard error open.
    hook.write(&format!(
        "#!/bin/sh\nif [ -e '{again}' ]; then sleep 600 & echo $! > '{second}'; exit 0; fi\n\
         touch '{again}'; sleep 600 & echo $! > '{first}'; wait\n",
        again = again.display(),
        first = first.display(),
        second = second.display()
    ));
    let answer = bed.call(&["--route-command", &hook.path(), "--route-timeout", "2", "run", &id(1)]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let runs = |file: &std::path::Path| {
        let process = std::fs::read_to_string(file).expect("it was started");
        // Whoever was killed may wait for somebody to hear of it.
        let about = std::fs::read_to_string(format!("/proc/{}/stat", process.trim())).unwrap_or_default();
        !about.is_empty() && !about.contains(") Z ")
    };
    let end = |file: &std::path::Path| {
        let process = std::fs::read_to_string(file).expect("it was started");
        Command::new("kill").arg(process.trim()).status().expect("kill")
    };
    let (left, goes_on) = (runs(&first), runs(&second));
    if left {
        end(&first);
    }
    end(&second);
    assert!(!left, "the child of the run whose time was up");
    assert!(goes_on, "what a run that succeeded has left");
}

#[test]
fn a_reader_that_goes_is_no_error_and_a_full_disk_is_one() {
    let bed = Bed::new("output");
    assert_eq!(bed.call(&["run", &id(1)]).code, Some(0));
    for command in ["status", "report"] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut gone = bed.command(&[command]);
        let gone = Answer::of(gone.stdout(writer).stderr(Stdio::piped()).output().expect("a process"));
        assert_eq!((gone.code, gone.err.as_str()), (Some(0), ""), "{command}");

        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("a full disk");
        let mut full_disk = bed.command(&[command]);
        let mut child = full_disk
            .stdout(full)
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut said = String::new();
        let stderr = child.stderr.as_mut().expect("piped");
        stderr.read_to_string(&mut said).expect("read");
        assert_eq!(child.wait().expect("its end").code(), Some(1), "{command}: {said}");
        assert!(said.starts_with("error: writing to the standard output"), "{said}");
    }
}
