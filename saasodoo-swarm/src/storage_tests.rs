//! Directories on a file system without quotas: what is made, taken back and deleted, and what never is.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use saasodoo_core::{Bytes, Deadlines, ErrorKind, InstanceId, ObjectIdentity, Retry};

use crate::config::QuotaPolicy;
use crate::directory::{CHANGED, changed, check_free, check_owner, claim, is_no_mark, is_purged, number, seconds};
use crate::retained::{Left, Writer};
use crate::storage::DataRoot;

fn root(path: &Path) -> DataRoot {
    DataRoot::new(path.to_owned(), QuotaPolicy::BestEffort, Deadlines::default())
}

const SIZE: Bytes = Bytes::from_mib(64);
const LONG: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_new_directory_is_taken_back_only_while_it_is_empty() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id) = (root(dir.path()), InstanceId::random());
    let made = root.make("a".to_owned(), id, SIZE).await.expect("made");
    root.undo(made).await;
    assert!(!dir.path().join("a").exists());

    let made = root.make("a".to_owned(), id, SIZE).await.expect("made");
    std::fs::write(dir.path().join("a/data"), "x").expect("a file");
    root.undo(made).await;
    assert!(dir.path().join("a/data").exists(), "somebody uses it by now");

    // One of the same name that was made since is not this call's.
    let other = InstanceId::random();
    let made = root.make("b".to_owned(), other, SIZE).await.expect("made");
    std::fs::create_dir(dir.path().join("keep")).expect("another inode");
    std::fs::remove_dir(dir.path().join("b")).expect("removed");
    std::fs::rename(dir.path().join("keep"), dir.path().join("b")).expect("renamed");
    root.undo(made).await;
    assert!(dir.path().join("b").exists());
}

#[tokio::test]
async fn what_an_interrupted_creation_left_will_do_and_data_will_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id) = (root(dir.path()), InstanceId::random());
    std::fs::create_dir(dir.path().join("a")).expect("a directory");
    let made = root.make("a".to_owned(), id, SIZE).await.expect("an empty one will do");
    root.undo(made).await;
    assert!(dir.path().join("a").exists(), "this call did not make it");
    std::fs::write(dir.path().join("a/data"), "x").expect("a file");
    let error = root.make("a".to_owned(), id, SIZE).await.expect_err("data");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(
        std::fs::read_to_string(dir.path().join("a/data")).expect("the data"),
        "x"
    );
}

#[tokio::test]
async fn no_link_leads_out_of_the_root() {
    let (dir, outside) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    std::fs::write(outside.path().join("precious"), "x").expect("a file");
    let (root, id) = (root(dir.path()), InstanceId::random());
    symlink(outside.path(), dir.path().join("link")).expect("a link");
    let path = dir.path().join("link");
    let error = root.make("link".to_owned(), id, SIZE).await.expect_err("a link");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(root.adopt(path.clone(), id, SIZE, false).await.is_err());
    let target = ObjectIdentity::new("Directory", path.to_string_lossy(), "1");
    assert!(root.purge(target, Writer::Gone, LONG).await.is_err());

    // Links inside the data are removed and not followed, and neither is one on the way.
    std::fs::create_dir_all(dir.path().join("a/deep/er")).expect("directories");
    symlink(outside.path(), dir.path().join("a/deep/link")).expect("a link");
    symlink("/etc/hostname", dir.path().join("a/file")).expect("a link");
    let path = dir.path().join("a");
    let left = root
        .identify(&path.to_string_lossy())
        .await
        .expect("read")
        .expect("there");
    assert!(root.purge(left.identity, Writer::Gone, LONG).await.expect("purged"));
    assert!(!path.exists());
    assert!(outside.path().join("precious").exists());
    for elsewhere in ["/etc", "/", "relative", &format!("{}/../x", dir.path().display())] {
        let target = ObjectIdentity::new("Directory", elsewhere, "1");
        let error = root.purge(target, Writer::Gone, LONG).await.expect_err(elsewhere);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}

#[tokio::test]
async fn a_purge_is_for_one_inode() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = root(dir.path());
    let path = dir.path().join("a");
    std::fs::create_dir(&path).expect("a directory");
    let planned = root
        .identify(&path.to_string_lossy())
        .await
        .expect("read")
        .expect("there")
        .identity;
    std::fs::create_dir(dir.path().join("other")).expect("another inode");
    std::fs::write(dir.path().join("other/data"), "x").expect("a file");
    std::fs::rename(&path, dir.path().join("old")).expect("moved away");
    std::fs::rename(dir.path().join("other"), &path).expect("replaced");
    let error = root.purge(planned, Writer::Gone, LONG).await.expect_err("replaced");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(path.join("data").exists());
}

#[tokio::test]
async fn a_directory_with_the_inode_of_a_deleted_one_is_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = root(dir.path());
    let path = dir.path().join("a");
    let mut seen = Vec::new();
    // Some file systems give the same inode out again at once.
    for _ in 0..5 {
        std::fs::create_dir(&path).expect("a directory");
        let found = root
            .identify(&path.to_string_lossy())
            .await
            .expect("read")
            .expect("there");
        assert!(
            !seen.contains(&found.identity.uid),
            "{seen:?} and again {:?}",
            found.identity
        );
        seen.push(found.identity.uid);
        std::fs::remove_dir(&path).expect("removed");
    }
}

#[tokio::test]
async fn a_quota_that_is_required_and_missing_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let strict = DataRoot::new(dir.path().to_owned(), QuotaPolicy::Required, Deadlines::default());
    let error = strict
        .make("a".to_owned(), InstanceId::random(), SIZE)
        .await
        .expect_err("no quotas here");
    assert_eq!(
        (error.kind(), error.field()),
        (ErrorKind::MissingPrerequisite, Some("storage"))
    );
    assert!(!dir.path().join("a").exists());
    // The mount point of a CephFS that is not mounted has no data, and that is no absence of an instance's.
    for error in [
        strict.probe().await.expect_err("no CephFS"),
        strict
            .look(Some(&dir.path().join("a").to_string_lossy()), true)
            .await
            .expect_err("no CephFS"),
        strict
            .find_left(InstanceId::random(), Some("a".to_owned()))
            .await
            .expect_err("no CephFS"),
        strict
            .purge(
                ObjectIdentity::new("Directory", dir.path().join("a").to_string_lossy(), "1"),
                Writer::Gone,
                LONG,
            )
            .await
            .expect_err("no CephFS"),
    ] {
        assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
        assert!(error.message().contains("no CephFS is mounted"), "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("the root").count(), 0);
}

#[tokio::test]
async fn a_root_that_is_not_there_is_no_empty_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = root(&dir.path().join("unmounted"));
    let error = root
        .find_left(InstanceId::random(), Some("a".to_owned()))
        .await
        .expect_err("no root");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
}

/// Deeper than a purge keeps directories open, and than any path can name.
#[tokio::test]
async fn a_tree_without_end_is_purged() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = root(dir.path());
    let path = dir.path().join("a");
    std::fs::create_dir(&path).expect("a directory");
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    let mut level = openat(CWD, &path, flags, Mode::empty()).expect("opened");
    let long = "d".repeat(40);
    for _ in 0..300 {
        mkdirat(&level, long.as_str(), Mode::from_raw_mode(0o755)).expect("a directory");
        level = openat(&level, long.as_str(), flags, Mode::empty()).expect("opened");
    }
    drop(level);
    let left = root
        .identify(&path.to_string_lossy())
        .await
        .expect("read")
        .expect("there");
    assert!(root.purge(left.identity, Writer::Gone, LONG).await.expect("purged"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("the root").count(), 0);
}

#[tokio::test]
async fn a_purge_stops_at_its_deadline_and_goes_on_with_the_same_token() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id) = (root(dir.path()), InstanceId::random());
    let path = dir.path().join("a");
    std::fs::create_dir(&path).expect("a directory");
    std::fs::write(path.join("data"), "x").expect("a file");
    let target = root
        .identify(&path.to_string_lossy())
        .await
        .expect("read")
        .expect("there")
        .identity;
    let error = root
        .purge(target.clone(), Writer::Gone, Duration::ZERO)
        .await
        .expect_err("no time");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Timeout, Retry::After(None)),
        "{error}"
    );
    // Nobody takes what is left of it for data: not by its old name, and not by its new one.
    assert!(!path.exists());
    let aside = dir.path().join(format!(".purge-{}", target.uid));
    assert!(aside.join("data").exists());
    let error = root
        .adopt(aside.clone(), id, SIZE, false)
        .await
        .expect_err("incomplete");
    assert_eq!(error.kind(), ErrorKind::StorageMissing, "{error}");
    // A new directory of the old name is not what the token is for.
    root.make("a".to_owned(), id, SIZE).await.expect("made");
    assert!(root.purge(target.clone(), Writer::Gone, LONG).await.expect("purged"));
    assert!(!aside.exists() && path.exists());
    assert!(root.purge(target, Writer::Gone, LONG).await.is_err());
}

#[tokio::test]
async fn a_purge_that_cannot_begin_leaves_data_that_can_be_adopted() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id) = (root(dir.path()), InstanceId::random());
    let path = dir.path().join("a");
    std::fs::create_dir(&path).expect("a directory");
    std::fs::write(path.join("data"), "x").expect("a file");
    let left = root.identify(&path.to_string_lossy()).await.expect("read");
    let target = left.expect("there").identity;
    // Something else has the name that it would be moved to.
    let aside = dir.path().join(format!(".purge-{}", target.uid));
    std::fs::create_dir(&aside).expect("a directory");
    std::fs::write(aside.join("else"), "x").expect("a file");
    root.purge(target, Writer::Gone, LONG)
        .await
        .expect_err("no name for it");
    root.adopt(path, id, SIZE, true).await.expect("whole");
    assert!(aside.join("else").exists());
}

#[tokio::test]
async fn a_purge_is_for_the_instance_whose_mark_the_data_has() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id, other) = (root(dir.path()), InstanceId::random(), InstanceId::random());
    let path = dir.path().join("a");
    std::fs::create_dir(&path).expect("a directory");
    std::fs::write(path.join("data"), "x").expect("a file");
    let left = || async {
        root.identify(&path.to_string_lossy())
            .await
            .expect("read")
            .expect("there")
    };
    left()
        .await
        .check(id, Writer::Runs)
        .expect("no mark, as today's have none");
    root.retain(&path.to_string_lossy(), id, false, Writer::Runs, 0).await;
    left().await.check(id, Writer::Runs).expect("its own");
    let short = id.short().to_string().parse().expect("an id of today");
    left().await.check(short, Writer::Runs).expect("its own");
    let error = left().await.check(other, Writer::Runs).expect_err("another's");
    assert_eq!(
        (error.kind(), error.conflicts()),
        (ErrorKind::Conflict, &["storage".to_owned()][..]),
        "{error}"
    );
    assert!(error.message().contains(&id.to_string()), "{error}");
}

#[tokio::test]
async fn a_directory_that_was_taken_away_is_made_again_and_an_adopted_one_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id) = (root(dir.path()), InstanceId::random());
    let made = root.make("a".to_owned(), id, SIZE).await.expect("made");
    root.hold(made.clone()).await.expect("there");
    root.undo(made.clone()).await;
    root.hold(made).await.expect("made again");
    assert!(dir.path().join("a").exists());

    std::fs::create_dir(dir.path().join("b")).expect("a directory");
    let adopted = root
        .adopt(dir.path().join("b"), id, SIZE, false)
        .await
        .expect("adopted");
    std::fs::remove_dir(dir.path().join("b")).expect("removed");
    let error = root.hold(adopted).await.expect_err("its data is gone");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(!dir.path().join("b").exists());
}

/// One call that hangs keeps a thread of a pool that the whole process shares.
#[tokio::test(start_paused = true)]
async fn a_file_system_that_hangs_takes_few_threads_and_is_told_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = root(dir.path());
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Arc::new(std::sync::Mutex::new(gate));
    let hung: Vec<_> = (0..16)
        .map(|_| {
            let (root, gate) = (root.clone(), std::sync::Arc::clone(&gate));
            tokio::spawn(async move {
                root.writing(move |_| {
                    let _ = gate.lock().map(|gate| gate.recv());
                    Ok(())
                })
                .await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    let look = root.identify("/nowhere");
    assert_eq!(look.await.expect_err("elsewhere").kind(), ErrorKind::Unsupported);
    let path = dir.path().join("a").to_string_lossy().into_owned();
    let (answer, ()) = tokio::join!(root.identify(&path), tokio::time::advance(Duration::from_secs(6)));
    let error = answer.expect_err("all permits are taken");
    assert_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, Retry::After(None)),
        "{error}"
    );
    drop(go);
    for call in hung {
        call.await.expect("no panic").expect("it comes back");
    }
    assert!(root.identify(&path).await.expect("free again").is_none());
}

/// Whose data it is says the directory itself, by an attribute that most file systems of a test machine keep.
#[tokio::test]
async fn data_is_found_by_its_owner_whatever_its_name_and_kept_from_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id, other) = (root(dir.path()), InstanceId::random(), InstanceId::random());
    let path = dir.path().join("renamed");
    std::fs::create_dir(&path).expect("a directory");
    std::fs::write(path.join("data"), "x").expect("a file");
    let text = path.to_string_lossy().into_owned();
    root.retain(&text, id, false, Writer::Runs, 0).await;

    // Under the name of today there is nothing, and still the instance has data.
    let error = root.make("a".to_owned(), id, SIZE).await.expect_err("there is data");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.message().contains("renamed"), "{error}");
    assert_eq!(
        root.free("a".to_owned(), id).await.expect_err("as planned").kind(),
        ErrorKind::Conflict
    );
    assert!(!dir.path().join("a").exists());
    let left = root
        .find_left(id, Some("a".to_owned()))
        .await
        .expect("read")
        .expect("found");
    assert_eq!(left.path, path);
    assert!(
        root.find_left(other, Some("renamed".to_owned()))
            .await
            .expect("read")
            .is_none()
    );

    let error = root
        .adopt(path.clone(), other, SIZE, false)
        .await
        .expect_err("another's");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.message().contains(&id.to_string()), "{error}");
    root.retain(&text, other, true, Writer::Runs, 0).await;
    let left = root.find_left(id, None).await.expect("read").expect("still its own");
    assert!(!left.adopted);

    // An adoption gives a mark, and its failure takes it back.
    std::fs::create_dir(dir.path().join("plain")).expect("a directory");
    std::fs::write(dir.path().join("plain/data"), "x").expect("a file");
    let adopted = root
        .adopt(dir.path().join("plain"), other, SIZE, false)
        .await
        .expect("adopted");
    assert!(root.find_left(other, None).await.expect("read").is_some());
    root.undo(adopted).await;
    assert!(root.find_left(other, None).await.expect("read").is_none());
}

/// Marks and quotas that this library sets move the time by which a purge knows that something else writes.
#[tokio::test]
async fn an_adoption_that_was_taken_back_is_nobody_elses_use_of_the_data() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id) = (root(dir.path()), InstanceId::random());
    let path = dir.path().join("a");
    std::fs::create_dir(&path).expect("a directory");
    std::fs::write(path.join("data"), "x").expect("a file");
    let retained = || {
        let value = xattr::get(&path, "user.saasodoo.retained").expect("read");
        value.map(|value| {
            String::from_utf8(value)
                .expect("UTF-8")
                .parse::<i64>()
                .expect("seconds")
        })
    };
    // Nothing says since when it is left behind, and nothing does afterwards.
    let adopted = root.adopt(path.clone(), id, SIZE, true).await.expect("adopted");
    root.undo(adopted).await;
    assert_eq!(retained(), None);
    xattr::set(&path, "user.saasodoo.retained", b"1000").expect("a mark");
    let adopted = root.adopt(path.clone(), id, SIZE, true).await.expect("adopted");
    assert_eq!(retained(), Some(1000));
    root.undo(adopted).await;
    assert!(retained().is_some_and(|retained| retained > 1000), "{:?}", retained());
    assert_eq!(xattr::get(&path, "user.saasodoo.instance").expect("read"), None);
}

#[tokio::test]
async fn a_mark_that_is_there_is_not_set_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id) = (root(dir.path()), InstanceId::random());
    let path = dir.path().join("a");
    std::fs::create_dir(&path).expect("a directory");
    xattr::set(&path, "user.saasodoo.instance", id.to_string().as_bytes()).expect("a mark");
    let changed = |path: &Path| {
        let meta = std::fs::metadata(path).expect("there");
        (meta.ctime(), meta.ctime_nsec())
    };
    let before = changed(&path);
    // Until the file system's clock has made a step.
    let probe = dir.path().join("probe");
    while std::fs::write(&probe, "x").is_err() || changed(&probe) == before {}
    let adopted = root.adopt(path.clone(), id, SIZE, true).await.expect("adopted");
    root.undo(adopted).await;
    assert_eq!(changed(&path), before);
}

#[test]
fn a_mark_that_cannot_be_read_is_not_absent() {
    for (error, absent) in [
        (Errno::NOENT, true),
        (Errno::NODATA, true),
        (Errno::OPNOTSUPP, true),
        (Errno::ACCESS, false),
        (Errno::IO, false),
        (Errno::STALE, false),
    ] {
        assert_eq!(is_no_mark(&error.into()), absent, "{error}");
    }
}

/// A migrated instance runs on the directory that it has left here, and its quota is raised here all the same.
#[tokio::test]
async fn a_larger_quota_does_not_hide_who_wrote_before_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id) = (root(dir.path()), InstanceId::random());
    for (name, changed, fine) in [("own", 900, true), ("foreign", 5000, false)] {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).expect("a directory");
        std::fs::write(path.join("data"), "x").expect("a file");
        let written = |at: i64| xattr::set(&path, CHANGED, format!("{at}.090000000").as_bytes()).expect("a time");
        written(changed);
        let (text, stopped) = (path.to_string_lossy(), Writer::StoppedBy(1000));
        root.set_quota(&text, SIZE, stopped).await.expect("raised");
        // The file system's own doing.
        written(Timestamp::now().as_second());
        let left = root.identify(&text).await.expect("read").expect("there");
        assert_eq!(left.check(id, stopped).is_ok(), fine, "{name}");
    }
}

#[tokio::test]
async fn a_purge_itself_refuses_what_was_written_since() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id) = (root(dir.path()), InstanceId::random());
    let path = dir.path().join("a");
    std::fs::create_dir(&path).expect("a directory");
    std::fs::write(path.join("data"), "x").expect("a file");
    let text = path.to_string_lossy();
    root.retain(&text, id, false, Writer::Runs, 0).await;
    let target = root.identify(&text).await.expect("read").expect("there").identity;
    let later = Timestamp::now().as_second() + 3600;
    for (changed, kind) in [
        (format!("{later}.090000000"), ErrorKind::Conflict),
        ("odd".to_owned(), ErrorKind::Unexpected),
    ] {
        xattr::set(&path, CHANGED, changed.as_bytes()).expect("a time");
        let error = root
            .purge(target.clone(), Writer::Gone, LONG)
            .await
            .expect_err("in use");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(path.join("data").exists());
    }
    xattr::set(&path, CHANGED, b"1000.090000000").expect("a time");
    assert!(root.purge(target, Writer::Gone, LONG).await.expect("purged"));
}

/// Whose the data is, whether it was there before, its size and what was written last: an error is none of these.
#[test]
fn a_directory_whose_marks_cannot_be_read_is_not_free_and_not_its_makers() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path();
    // What was opened for its name alone gives no attributes.
    let flags = OFlags::DIRECTORY | OFlags::PATH;
    let open = openat(CWD, path, flags, Mode::empty()).map(std::fs::File::from);
    let (open, id) = (open.expect("opened"), InstanceId::random());
    for (what, answer) in [
        ("owner", check_owner(&open, path, id)),
        ("free", check_free(&open, path, id)),
        ("purged", is_purged(&open, path).map(drop)),
        ("changed", changed(&open, path).map(drop)),
        ("marks", Left::read(&open, path.to_owned()).map(drop)),
        ("number", number::<u64>(&open, path, "ceph.quota.max_bytes").map(drop)),
    ] {
        let error = answer.expect_err(what);
        assert!(error.message().contains("does not give its attribute"), "{error}");
        assert!(matches!(error.retry(), Retry::After(_)), "{error}");
    }
    assert_eq!(seconds("1764000000.09123456789", path).expect("a time"), 1_764_000_000);
    assert!(seconds("yesterday", path).is_err(), "a purge would do without it");
}

#[test]
fn of_two_owners_at_once_only_one_gets_a_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path();
    let open = std::fs::File::open(path).expect("opened");
    let ids: Vec<InstanceId> = (0..8).map(|_| InstanceId::random()).collect();
    let claims: Vec<_> = std::thread::scope(|scope| {
        let claims: Vec<_> = ids.iter().map(|id| scope.spawn(|| claim(&open, path, *id))).collect();
        claims
            .into_iter()
            .map(|claim| claim.join().expect("no panic"))
            .collect()
    });
    let winner = claims.iter().position(Result::is_ok).expect("one");
    for (id, claim) in ids.iter().zip(&claims) {
        match claim {
            Ok(new) => assert!(*new && *id == ids[winner]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
        }
    }
    assert!(!claim(&open, path, ids[winner]).expect("its own"), "it had it already");
}

/// The label of its service says so as well, and goes with a service that somebody removes by hand.
#[tokio::test]
async fn adopted_data_says_itself_that_it_was_there_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, id) = (root(dir.path()), InstanceId::random());
    let path = dir.path().join("a");
    std::fs::create_dir(&path).expect("a directory");
    std::fs::write(path.join("data"), "x").expect("a file");
    let adopted = root.adopt(path.clone(), id, SIZE, false).await.expect("adopted");
    let left = root.find_left(id, None).await.expect("read").expect("found");
    assert!(left.adopted, "a purge without a service would take it");
    root.undo(adopted).await;
    let marks: Vec<_> = xattr::list(&path)
        .expect("read")
        .filter(|name| name.to_string_lossy().contains("saasodoo"))
        .collect();
    assert!(marks.is_empty(), "{marks:?}");
    // A mark that was there before stays.
    root.retain(&path.to_string_lossy(), id, true, Writer::Runs, 0).await;
    let again = root.adopt(path.clone(), id, SIZE, false).await.expect("adopted");
    root.undo(again).await;
    assert!(root.find_left(id, None).await.expect("read").expect("found").adopted);
}

/// Looks at thousands of directories that hang keep nobody else out.
#[tokio::test(start_paused = true)]
async fn scans_have_their_own_threads() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = root(dir.path());
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Arc::new(std::sync::Mutex::new(gate));
    let hung: Vec<_> = (0..20)
        .map(|_| {
            let (root, gate) = (root.clone(), std::sync::Arc::clone(&gate));
            tokio::spawn(async move {
                root.scanning(move |_| {
                    let _ = gate.lock().map(|gate| gate.recv());
                    Ok(())
                })
                .await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    let path = dir.path().join("a").to_string_lossy().into_owned();
    assert!(root.identify(&path).await.expect("not kept out").is_none());
    drop(go);
    for call in hung {
        call.await.expect("no panic").expect("it comes back");
    }
}
