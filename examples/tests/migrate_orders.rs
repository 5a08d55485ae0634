//! What the operator orders of `migrate`: signals, ids, and what is asked for twice or cannot be done.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use common::{Answer, Bed, id, moved, send};
use ids::Known;
use saasodoo_core::InstanceId;
use saasodoo_core::migration::{Record, Step};
use saasodoo_testkit::fixtures;

mod common;
#[path = "../examples/migrate/ids.rs"]
mod ids;

#[tokio::test]
async fn a_signal_pauses_a_wave() {
    for signal in ["INT", "TERM", "HUP"] {
        let bed = Bed::new(&format!("pause-{signal}"));
        let child = bed.begin(&["--bake", "600", "run", "--concurrency", "2"]);
        bed.wait_for("two in the bake", |records| {
            records.iter().filter(|record| record.step == Step::Bake).count() == 2
        })
        .await;
        send(signal, &child);
        let answer = Answer::of(child.wait_with_output().expect("its end"));
        assert_eq!(answer.code, Some(4), "{signal}: {answer:?}");
        assert!(answer.out.contains("2 paused, 1 not begun"), "{answer:?}");
        let paused = format!("  paused odoo-tenant-1-00000001 at bake: {}", id(1));
        assert!(answer.out.contains(&paused), "{answer:?}");
        let asks = answer.err.contains("pausing where tenants are up; Ctrl-C again takes");
        assert_eq!(asks, signal == "INT", "only who is at a terminal: {answer:?}");
        let plan = bed.call(&["plan"]).out;
        assert!(plan.contains("odoo-tenant-1-00000001  UNDER WAY at bake"), "{plan}");
        assert!(plan.contains("1 of 1 can move"), "{plan}");
    }
}

#[tokio::test]
async fn a_second_ctrl_c_takes_back_who_is_down() {
    let bed = Bed::new("abort");
    // The tenant is down until the orders were heard.
    let (hook, heard) = (bed.script("wait"), bed.0.join("heard"));
    let script = format!("#!/bin/sh\nwhile [ ! -e '{}' ]; do sleep 0.05; done\n", heard.display());
    hook.write(&script);
    let mut child = bed.begin(&["--route-command", &hook.path(), "run", "--concurrency", "1"]);
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut said = |what: &str| {
        let line = lines.find_map(|line| line.ok().filter(|line| line.contains(what)));
        assert!(line.is_some(), "never said: {what}");
    };
    bed.wait_for("down", |records| records.iter().any(Record::is_down))
        .await;
    send("TERM", &child);
    said("pausing where tenants are up");
    // What ends a machine pauses, however often it comes.
    send("TERM", &child);
    send("INT", &child);
    said("those that are paused already stay so");
    std::fs::write(heard, "").expect("written");
    said("rolled_back odoo-tenant-1-00000001 down");
    let answer = Answer::of(child.wait_with_output().expect("its end"));
    assert_eq!(answer.code, Some(3), "{answer:?}");
    assert!(bed.call(&["status"]).out.contains("    given up by the operator"));
}

#[tokio::test]
async fn a_signal_stops_a_rollback_between_two_tenants() {
    let bed = Bed::new("rollback");
    assert_eq!(bed.call(&["run"]).code, Some(0));
    let (first, second, third) = (id(1), id(2), id(3));
    let child = bed.begin(&["rollback", &first, &second, &third]);
    bed.wait_for("on the way back", |records| {
        records.iter().any(|record| record.step.is_back())
    })
    .await;
    send("TERM", &child);
    let answer = Answer::of(child.wait_with_output().expect("its end"));
    assert_eq!(answer.code, Some(4), "{answer:?}");
    assert!(answer.out.contains("1 done, 0 failed, 2 left"), "{answer:?}");
    assert!(answer.err.contains(&format!("{second} {third}")), "{answer:?}");
    let records = bed.records();
    let back = records.iter().filter(|record| record.step == Step::RolledBack);
    assert_eq!(back.count(), 1, "the one in hand came to its end");
}

#[test]
fn a_router_that_cannot_be_is_a_wrong_command_line() {
    let bed = Bed::new("router");
    for (router, says) in [
        ("router", "the host or the port is missing"),
        (":80", "the host or the port is missing"),
        ("http://router:80", "an address of the web"),
        ("router:", "from 1 to 65535"),
        ("router:0", "from 1 to 65535"),
        ("router:65536", "from 1 to 65535"),
        ("router:+80", "from 1 to 65535"),
        ("ro uter:80", "no name of a host"),
        ("::1:80", "needs brackets"),
        ("[router]:80", "no IPv6 address"),
        ("[::1]80", "no IPv6 address"),
    ] {
        let answer = bed.call(&["--probe", router, "run"]);
        assert_eq!(answer.code, Some(2), "{router}: {answer:?}");
        assert!(answer.err.contains(says), "{router}: {answer:?}");
    }
    for router in ["router.example:80", "10.0.0.1:65535", "[2001:db8::1]:80"] {
        let answer = bed.call(&["--probe", router, "inventory"]);
        assert_eq!(answer.code, Some(0), "only run asks it: {answer:?}");
    }
}

#[test]
fn a_router_that_does_not_answer_is_noticed_before_anybody_is_down() {
    let bed = Bed::new("probe");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let router = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let answer = bed.call(&["--probe", &router, "run"]);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    for says in [&router, "Connection refused", "nothing was begun", "leave --probe out"] {
        assert!(answer.err.contains(says), "{says}: {answer:?}");
    }
    assert!(!bed.state().exists(), "nothing was begun");

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let router = listener.local_addr().expect("an address").to_string();
    // Ends with the test.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a visitor");
            // Who only looks whether somebody is there asks nothing.
            if stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            }
        }
    });
    let answer = bed.call(&["--probe", &router, "run", &id(1)]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
}

#[test]
fn eight_digits_and_twice_the_same_are_one_tenant() {
    let bed = Bed::new("digits");
    let (short, whole) = ("00000001", id(1));
    let plan = bed.call(&["plan", short, &whole]);
    assert_eq!(plan.code, Some(0), "{plan:?}");
    assert!(plan.out.contains("1 of 1 can move"), "{plan:?}");
    let run = bed.call(&["run", short, &whole, short]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.out.starts_with("1 committed, 0 rolled back, 0 halted"), "{run:?}");
    let plan = bed.call(&["plan", short]);
    assert_eq!(plan.code, Some(0), "{plan:?}");
    let moved = format!("odoo-tenant-1-00000001  HAS MOVED, in the journal at committed: {whole}");
    assert!(plan.out.contains(&moved), "{plan:?}");
    let back = bed.call(&["rollback", short, short]);
    assert_eq!(back.code, Some(0), "{back:?}");
    assert!(back.out.contains("1 done, 0 failed, 0 left"), "{back:?}");
    let again = bed.call(&["run", "--retry", short]);
    assert_eq!(again.code, Some(0), "{again:?}");
    let finish = bed.call(&["finish", "--early", short]);
    assert!(finish.out.contains("1 done, 0 failed, 0 left"), "{finish:?}");
    for command in ["rollback", "finish", "run", "plan"] {
        let answer = bed.call(&[command, "00000077"]);
        assert_eq!(answer.code, Some(1), "{answer:?}");
        let advised = answer.err.contains("lists what there is");
        assert!(advised && answer.err.contains("00000077; nothing was"), "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn digits_that_fit_two_are_refused_before_anything_begins() {
    let bed = Bed::new("twins");
    let twin = "00000001-0000-0000-0000-0000000000ff";
    let platforms = ("simulation", "simulation");
    let spec = fixtures::spec_with_id("twin", twin.parse().expect("an id"));
    moved(&bed.journal(), platforms, spec).await;
    // One of them is on the source, the other one in the journal.
    for command in ["run", "plan"] {
        let answer = bed.call(&[command, &id(2), "00000001"]);
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(answer.err.contains("00000001 fits several: "), "{answer:?}");
        assert!(answer.err.contains(twin) && answer.err.contains(&id(1)), "{answer:?}");
        assert!(answer.err.contains("; nothing was "), "{answer:?}");
    }
    assert_eq!(bed.records().len(), 1, "nothing was begun");
    assert_eq!(bed.call(&["plan", &id(1)]).code, Some(0), "the whole one is clear");

    moved(&bed.journal(), platforms, fixtures::fleet(1).remove(0)).await;
    for command in ["rollback", "finish"] {
        let answer = bed.call(&[command, "00000001"]);
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(answer.err.contains(twin) && answer.err.contains(&id(1)), "{answer:?}");
    }
    let untouched = bed.records();
    assert!(untouched.iter().all(|record| record.step == Step::Committed));
}

#[test]
fn of_an_instance_with_eight_digits_the_whole_id_is_wanted() {
    let given = |text: &str| -> InstanceId { text.parse().expect("an id") };
    let known = |text: &str| Known {
        id: given(text),
        name: "odoo-acme".to_owned(),
    };
    let (short, whole) = (given("00000001"), given(&id(1)));
    let on_source = known("00000001");
    let refused = ids::whole(short, std::slice::from_ref(&on_source)).expect_err("nobody knows the rest");
    assert!(refused.contains("only eight digits") && refused.contains("give the whole UUID"));
    let both = [on_source.clone(), known(&id(1))];
    assert_eq!(ids::whole(short, &both), Ok(Some(whole)), "the journal knows the rest");
    assert_eq!(ids::whole(whole, &[on_source]), Ok(Some(whole)));
    assert_eq!(ids::whole(whole, &[known(&id(2))]), Ok(None));

    let second = given(&id(2));
    let twice = [second, short, whole, second].map(|id| (id, vec![known(&self::id(2)), known(&self::id(1))]));
    assert_eq!(ids::all(twice, "nobody has"), Ok(vec![second, whole]), "in their order");
}

#[test]
fn what_is_done_already_is_not_done_again() {
    let bed = Bed::new("already");
    let (first, second) = (id(1), id(2));
    assert_eq!(bed.call(&["run", &first, &second]).code, Some(0));
    assert_eq!(bed.call(&["rollback", &first]).code, Some(0));
    let again = bed.call(&["rollback", &first, &second]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(
        again
            .out
            .contains(&format!("{first} odoo-tenant-1-00000001 already rolled back"))
            && again.out.contains("1 done, 1 already rolled back, 0 failed, 0 left"),
        "{again:?}"
    );
    assert_eq!(bed.call(&["run", "--retry", &first]).code, Some(0));
    assert_eq!(bed.call(&["finish", "--early", &first]).code, Some(0));
    let again = bed.call(&["finish", "--early", &first]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(
        again.out.contains("0 done, 1 already finished, 0 failed, 0 left"),
        "{again:?}"
    );
}

#[test]
fn a_file_that_is_no_good_is_said_with_its_option() {
    let bed = Bed::new("files");
    let path = |name: &str| bed.0.join(name).display().to_string();
    std::fs::write(path("list"), "[]").expect("written");
    let (absent, list, nowhere) = (path("absent"), path("list"), path("absent/report"));
    for (arguments, says) in [
        (&["--secrets", &absent, "run"][..], "reading --secrets"),
        (&["--secrets", &list, "run"], "\"database_password\": "),
        (&["--earlier", &absent, "run"], "--earlier: there is no journal at"),
        (&["--earlier", &list, "run"], "--earlier: "),
    ] {
        let answer = bed.call(arguments);
        assert_eq!(answer.code, Some(1), "{arguments:?}: {answer:?}");
        assert!(answer.err.contains(says), "{arguments:?}: {answer:?}");
        assert!(!bed.state().exists(), "nothing was begun");
    }
    // The password in the place of its map.
    std::fs::write(path("list"), format!("{{\"{}\": \"hunter2\"}}", id(1))).expect("written");
    let answer = bed.call(&["--secrets", &list, "run"]);
    assert!(
        answer.err.contains("line 1, column ") && !answer.err.contains("hunter2"),
        "{answer:?}"
    );
    std::fs::write(bed.state(), "").expect("written");
    let answer = bed.call(&["status"]);
    assert!(answer.err.contains("give the directory"), "{answer:?}");
    std::fs::remove_file(bed.state()).expect("removed");

    assert_eq!(bed.call(&["run", &id(1)]).code, Some(0));
    let answer = bed.call(&["report", "--html", &nowhere]);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(answer.err.contains("writing the report to "), "{answer:?}");
    let mut standard = bed.command(&["report", "--html", "-"]);
    let html = Answer::of(standard.current_dir(&bed.0).output().expect("a process"));
    assert!(
        html.out.starts_with("<!doctype html>") && html.err.is_empty(),
        "{html:?}"
    );
    let json = bed.call(&["report", "--json", "-"]);
    assert!(json.out.starts_with("{\n  \"made\": "), "{json:?}");
    assert!(!bed.0.join("-").exists(), "no file of that name");
}
