//! The table, the record, the journals' own promises, and the page.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::dual::{FieldVerdict, Verdict};
use crate::{BackendKind, ErrorKind, InstanceId};

fn entry(id: InstanceId, run: Uuid, seq: u64, event: Event) -> Entry {
    Entry {
        instance: id,
        run,
        seq,
        at: Timestamp::from_second(1000 + i64::try_from(seq).expect("small")).expect("a time"),
        event,
    }
}

fn began() -> Event {
    Event::Began {
        source: BackendKind::Swarm,
        target: BackendKind::Kubernetes,
        source_identity: None,
        target_identity: None,
        force: Force::none(),
    }
}

fn left(step: Step, signal: Signal) -> Event {
    Event::StepEnded {
        step,
        signal,
        note: String::new(),
        failure: None,
    }
}

fn record() -> Record {
    Record::begin(&entry(InstanceId::random(), Uuid::new_v4(), 0, began())).expect("a beginning")
}

fn at(step: Step, touched: bool) -> Record {
    let mut record = record();
    record.step = step;
    record.source_touched = touched;
    record
}

/// A committed migration whose tenant was down for so long.
pub(super) fn committed_after(seconds: i64) -> Record {
    let mut record = at(Step::Committed, true);
    let from = Timestamp::from_second(1000).expect("a time");
    let to = Timestamp::from_second(1000 + seconds).expect("a time");
    record.outages.push(super::Outage { from, to: Some(to) });
    record
}

#[test]
fn the_table_leads_from_everywhere_to_rest() {
    for touched in [false, true] {
        for step in Step::ALL {
            let done = transition(&at(step, touched), Signal::Done).map(|row| row.to);
            assert_eq!(done.is_none(), step.is_rest(), "{step}");
            // Whatever fails on the way there leads back; on the way back and in the removal nothing does.
            let back = step.is_back() || matches!(step, Step::RemoveSource);
            for signal in [Signal::Failed, Signal::Abort] {
                let next = transition(&at(step, touched), signal);
                assert_eq!(next.is_some(), !back && !step.is_rest(), "{step} {signal:?}");
                assert!(next.is_none_or(|row| row.to.is_back()), "{step}");
            }
            // Done again and again ends, and without going round in a circle.
            let mut now = step;
            for _ in 0..Step::ALL.len() {
                now = transition(&at(now, touched), Signal::Done).map_or(now, |row| row.to);
            }
            assert!(now.is_rest(), "{step} leads to {now}");
        }
    }
}

#[test]
fn the_table_has_no_row_twice_and_none_that_is_never_taken() {
    for row in TRANSITIONS {
        let taken = [false, true].into_iter().any(|touched| {
            transition(&at(row.from, touched), row.on)
                .is_some_and(|found| (found.to, found.guard.name) == (row.to, row.guard.name))
        });
        assert!(taken, "{row:?}");
    }
}

/// Between the stop of one side and the start of the other lies a fence, on every way.
#[test]
fn no_way_starts_a_side_without_a_fence_before() {
    for (start, fence) in [(Step::StartTarget, Step::Fence), (Step::StartSource, Step::FenceTarget)] {
        let before: BTreeSet<Step> = TRANSITIONS
            .iter()
            .filter(|row| row.to == start)
            .map(|row| row.from)
            .collect();
        assert_eq!(before, BTreeSet::from([fence]));
    }
}

#[test]
fn names_of_steps_are_read_back() {
    for step in Step::ALL {
        assert_eq!(Step::from_name(step.as_str()), Some(step));
    }
    assert_eq!(Step::from_name("elsewhere"), None);
}

#[test]
fn the_runbook_shows_this_table() {
    let runbook = include_str!("../../../docs/src/migration.md");
    assert!(
        runbook.contains(mermaid().trim()),
        "put this into the runbook:\n{}",
        mermaid()
    );
    for step in Step::ALL.into_iter().filter(|step| !step.is_rest()) {
        assert!(
            runbook.contains(&format!("`{step}`")),
            "the runbook says nothing about {step}"
        );
    }
}

#[test]
fn an_entry_that_does_not_follow_is_a_conflict() {
    let mut record = record();
    let (id, run) = (record.instance, record.run);
    let begun = Event::StepBegan { step: Step::Inventory };
    record.apply(&entry(id, run, 1, begun.clone())).expect("it follows");
    for wrong in [
        entry(id, run, 1, begun.clone()),
        entry(id, run, 3, begun.clone()),
        entry(id, Uuid::new_v4(), 2, begun.clone()),
        entry(InstanceId::random(), run, 2, begun),
    ] {
        let before = record.clone();
        let error = record.apply(&wrong).expect_err("it does not follow");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(record, before);
    }
    let error = record
        .apply(&entry(id, run, 2, left(Step::Bake, Signal::Done)))
        .expect_err("it is not baking");
    assert_eq!(error.kind(), ErrorKind::Unexpected);
}

#[test]
fn a_lost_answer_stays_in_doubt_when_a_second_attempt_is_answered() {
    let mut record = record();
    let (id, run) = (record.instance, record.run);
    let until = |second| Timestamp::from_second(second).expect("a time");
    let intends = |second| Event::Intends {
        side: Side::Target,
        mutation: Mutation::Start,
        until: until(second),
    };
    let settled = Event::Settled {
        side: Side::Target,
        mutation: Mutation::Start,
    };
    for (seq, event) in [(1, intends(2000)), (2, intends(2001)), (3, settled)] {
        record.apply(&entry(id, run, seq, event)).expect("it follows");
    }
    assert_eq!(record.in_doubt(&[(Side::Target, Mutation::Start)]), Some(until(2000)));
    assert_eq!(record.in_doubt(&[(Side::Source, Mutation::Start)]), None);
    assert!(record.target_started);
}

#[test]
fn downtime_is_the_sum_of_all_outages() {
    let mut record = record();
    let (id, run) = (record.instance, record.run);
    // Entries are a second apart: down at 1001, up at 1002, down at 1003 and again at 1004.
    for (seq, event) in [(1, Event::Down), (2, Event::Up), (3, Event::Down), (4, Event::Down)] {
        record.apply(&entry(id, run, seq, event)).expect("it follows");
    }
    let now = Timestamp::from_second(1010).expect("a time");
    assert_eq!(record.downtime(now).as_secs(), 1 + 7);
}

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("saasodoo-journal-{}", Uuid::new_v4()));
        std::fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }

    fn file(&self) -> PathBuf {
        self.0.join("journal.jsonl")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn write(journal: &FileJournal, id: InstanceId, entries: u64) -> Record {
    let run = Uuid::new_v4();
    let first = entry(id, run, 0, began());
    let mut record = Record::begin(&first).expect("a beginning");
    journal.append(&first, &record).await.expect("appended");
    for seq in 1..entries {
        let event = Event::Noted {
            note: format!("note {seq}"),
        };
        let next = entry(id, run, seq, event);
        record.apply(&next).expect("it follows");
        journal.append(&next, &record).await.expect("appended");
    }
    record
}

/// Cut anywhere, the file is read up to the last whole line, and goes on from there.
#[tokio::test]
async fn a_file_that_was_cut_off_is_read_up_to_the_cut() {
    let scratch = Scratch::new();
    let id = InstanceId::random();
    let journal = FileJournal::open(scratch.file()).expect("opened");
    let whole = write(&journal, id, 5).await;
    drop(journal);
    let bytes = std::fs::read(scratch.file()).expect("read");
    for cut in 0..=bytes.len() {
        std::fs::write(scratch.file(), &bytes[..cut]).expect("cut");
        let lines = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
        let journal = FileJournal::open(scratch.file()).expect("opened");
        let record = journal.load(id).await.expect("loaded");
        assert_eq!(
            record.as_ref().map_or(0, |record| record.next_seq),
            lines as u64,
            "cut at {cut}"
        );
        if let Some(mut record) = record {
            let next = entry(
                id,
                whole.run,
                record.next_seq,
                Event::Noted {
                    note: "after".to_owned(),
                },
            );
            record.apply(&next).expect("it follows");
            journal.append(&next, &record).await.expect("appended");
            drop(journal);
            let again = FileJournal::open_read_only(scratch.file()).expect("opened");
            assert_eq!(again.load(id).await.expect("loaded"), Some(record), "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_file_is_for_one_process_and_refuses_what_it_did_not_write() {
    let scratch = Scratch::new();
    let journal = FileJournal::open(scratch.file()).expect("opened");
    let record = write(&journal, InstanceId::random(), 3).await;
    let error = FileJournal::open(scratch.file()).expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    // Who only looks may look, and changes nothing.
    let looking = FileJournal::open_read_only(scratch.file()).expect("opened");
    assert_eq!(looking.load_all().await.expect("loaded"), std::slice::from_ref(&record));
    let next = entry(record.instance, record.run, 3, Event::Up);
    assert_eq!(
        looking.append(&next, &record).await.expect_err("for reading").kind(),
        ErrorKind::NotAllowed
    );
    // An entry that another process has written already is refused before anything reaches the disk.
    let stale = entry(record.instance, record.run, 1, Event::Up);
    let before = std::fs::read(scratch.file()).expect("read");
    assert_eq!(
        journal.append(&stale, &record).await.expect_err("stale").kind(),
        ErrorKind::Conflict
    );
    assert_eq!(std::fs::read(scratch.file()).expect("read"), before);
    drop(journal);
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(scratch.file())
        .expect("opened");
    // In front of a line of ours it is no torn write.
    let mut lines = std::fs::read(scratch.file()).expect("read");
    let last = lines[..lines.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .expect("lines")
        + 1;
    lines.splice(last..last, *b"somebody was here\n");
    file.set_len(0).and_then(|()| file.write_all(&lines)).expect("written");
    let error = FileJournal::open(scratch.file()).expect_err("not ours");
    assert!(error.message().starts_with("line 3"), "{error}");
}

/// After a power cut the end of a write may be on the disk and its middle not.
#[tokio::test]
async fn a_last_line_with_a_hole_is_dropped_and_one_before_it_is_not() {
    let scratch = Scratch::new();
    let id = InstanceId::random();
    let journal = FileJournal::open(scratch.file()).expect("opened");
    write(&journal, id, 5).await;
    drop(journal);
    let whole = std::fs::read(scratch.file()).expect("read");
    let starts: Vec<usize> = std::iter::once(0)
        .chain((0..whole.len() - 1).filter(|at| whole[*at] == b'\n').map(|at| at + 1))
        .collect();
    for (hole, byte) in [(3, 0), (30, 0), (60, b'_'), (90, b'\t')] {
        let mut torn = whole.clone();
        assert_ne!(torn[starts[4] + hole], byte, "no hole");
        torn[starts[4] + hole] = byte;
        std::fs::write(scratch.file(), &torn).expect("torn");
        let journal = FileJournal::open(scratch.file()).expect("opened");
        let record = journal.load(id).await.expect("loaded").expect("known");
        assert_eq!(record.next_seq, 4, "{hole}");
        drop(journal);
        assert_eq!(std::fs::read(scratch.file()).expect("read").len(), starts[4]);

        let mut torn = whole.clone();
        torn[starts[2] + hole] = byte;
        std::fs::write(scratch.file(), &torn).expect("torn");
        let error = FileJournal::open(scratch.file()).expect_err("not the last");
        assert!(error.message().starts_with("line 3"), "{error}");
    }
}

/// A newer version has written it, and acted upon it.
#[tokio::test]
async fn a_last_line_that_is_whole_is_not_dropped_when_it_cannot_be_understood() {
    let scratch = Scratch::new();
    let journal = FileJournal::open(scratch.file()).expect("opened");
    write(&journal, InstanceId::random(), 3).await;
    drop(journal);
    let mut file = std::fs::read(scratch.file()).expect("read");
    let last = file.split_inclusive(|byte| *byte == b'\n').next_back().expect("a line");
    let line = String::from_utf8(last.to_vec()).expect("text");
    let (json, _) = line.rsplit_once(",\"sum\"").expect("a checksum");
    let newer = super::journal_file::seal(format!("{}}}", json.replace("noted", "of_a_newer_version")));
    assert!(newer.contains("of_a_newer_version"), "{newer}");
    file.extend_from_slice(newer.as_bytes());
    std::fs::write(scratch.file(), &file).expect("written");
    let error = FileJournal::open(scratch.file()).expect_err("not understood");
    assert_eq!(error.kind(), ErrorKind::Unexpected, "{error}");
    assert!(error.message().starts_with("line 4"), "{error}");
    assert_eq!(std::fs::read(scratch.file()).expect("read"), file);
}

/// Those under way have to write until the end.
#[tokio::test]
async fn a_journal_keeps_room_on_the_disk() {
    let scratch = Scratch::new();
    let spare = scratch.file().with_extension("jsonl.spare");
    let journal = FileJournal::open(scratch.file()).expect("opened");
    assert!(!spare.exists(), "nothing is under way");
    write(&journal, InstanceId::random(), 3).await;
    assert_eq!(std::fs::metadata(&spare).expect("there").len(), 1 << 20);
    drop(journal);
    assert!(!spare.exists());
    // That of a process that was killed is used again.
    std::fs::write(&spare, "half").expect("written");
    let journal = FileJournal::open(scratch.file()).expect("opened");
    write(&journal, InstanceId::random(), 3).await;
    assert_eq!(std::fs::metadata(&spare).expect("there").len(), 1 << 20);
}

/// A disk on which there is none: nobody is begun, and nobody is stopped.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn without_room_nobody_is_begun_or_stopped() {
    let scratch = Scratch::new();
    let spare = scratch.file().with_extension("jsonl.spare");
    let (id, run) = (InstanceId::random(), Uuid::new_v4());
    let journal = FileJournal::open(scratch.file()).expect("opened");
    let append = async |seq, event| {
        let entry = entry(id, run, seq, event);
        let before = journal.load(id).await.expect("loaded");
        let mut after = before.map_or_else(|| Record::begin(&entry), Ok).expect("a record");
        if seq > 0 {
            after.apply(&entry).expect("it follows");
        }
        journal.append(&entry, &after).await
    };
    let full = || std::os::unix::fs::symlink("/dev/full", &spare).expect("linked");
    full();
    let error = append(0, began()).await.expect_err("no room");
    assert!(error.message().contains("No space left"), "{error}");
    assert!(
        error
            .advice()
            .is_some_and(|advice| advice.contains("nothing was stopped")),
        "{error}"
    );
    assert_eq!(journal.load(id).await.expect("loaded"), None);

    append(0, began()).await.expect("there is room again");
    drop(journal);
    full();
    let journal = FileJournal::open(scratch.file()).expect("opened");
    let down = entry(id, run, 1, Event::Down);
    let after = journal.load(id).await.expect("loaded").expect("known");
    let error = journal.append(&down, &after).await.expect_err("no room");
    assert!(error.message().contains("No space left"), "{error}");
    assert!(!journal.load(id).await.expect("loaded").expect("known").is_down());
}

#[cfg(unix)]
#[tokio::test]
async fn a_journal_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let _journal = FileJournal::open(scratch.file()).expect("opened");
    let mode = std::fs::metadata(scratch.file()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn the_page_needs_nothing_else_and_escapes_every_text() {
    const HOSTILE: &str = "<script>alert('1')</script>\"&";
    let mut record = record();
    record.notes.push(HOSTILE.to_owned());
    record.parity.push(FieldVerdict {
        field: HOSTILE.to_owned(),
        primary: Some(HOSTILE.to_owned()),
        secondary: None,
        verdict: Verdict::Diverged,
    });
    record.failure = Some(Failure {
        step: Step::Bake,
        kind: ErrorKind::Timeout,
        message: HOSTILE.to_owned(),
        at: record.began,
    });
    let (id, run) = (record.instance, record.run);
    for (seq, event) in [
        (1, Event::StepBegan { step: Step::Inventory }),
        (2, Event::Down),
        (
            3,
            Event::StepEnded {
                step: Step::Inventory,
                signal: Signal::Done,
                note: HOSTILE.to_owned(),
                failure: None,
            },
        ),
        (4, Event::Up),
    ] {
        record.apply(&entry(id, run, seq, event)).expect("it follows");
    }
    let report = Report::new(Timestamp::from_second(1010).expect("a time"), &[record]);
    let page = report.to_html();
    assert!(!page.contains("<script") && !page.contains("alert('"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;"));
    for reference in ["http://", "https://", "src=", "url(", "@import", "<link"] {
        assert!(!page.contains(reference), "the page asks for {reference}");
    }
    assert!(page.contains("name=\"viewport\"") && page.contains("2.0 s"), "{page}");
    let json: Report = serde_json::from_str(&report.to_json().expect("json")).expect("read back");
    assert_eq!(json, report);
}
