//! Directories on a file system without quotas: what is made, taken back and deleted, and what never is.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use saasodoo_core::{Bytes, ErrorKind, InstanceId, ObjectIdentity};

use crate::config::QuotaPolicy;
use crate::storage::DataRoot;

fn root(path: &Path) -> DataRoot {
    DataRoot::new(path.to_owned(), QuotaPolicy::BestEffort, Duration::from_secs(10))
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
    let made = root.make("b".to_owned(), id, SIZE).await.expect("made");
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
    assert!(root.adopt(path.clone(), SIZE, false).await.is_err());
    let target = ObjectIdentity::new("Directory", path.to_string_lossy(), "1");
    assert!(root.purge(target, LONG).await.is_err());

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
    assert!(root.purge(left.identity, LONG).await.expect("purged"));
    assert!(!path.exists());
    assert!(outside.path().join("precious").exists());
    for elsewhere in ["/etc", "/", "relative", &format!("{}/../x", dir.path().display())] {
        let target = ObjectIdentity::new("Directory", elsewhere, "1");
        let error = root.purge(target, LONG).await.expect_err(elsewhere);
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
    let error = root.purge(planned, LONG).await.expect_err("replaced");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(path.join("data").exists());
}

#[tokio::test]
async fn a_quota_that_is_required_and_missing_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let strict = DataRoot::new(dir.path().to_owned(), QuotaPolicy::Required, LONG);
    let error = strict
        .make("a".to_owned(), InstanceId::random(), SIZE)
        .await
        .expect_err("no quotas here");
    assert_eq!(
        (error.kind(), error.field()),
        (ErrorKind::MissingPrerequisite, Some("storage"))
    );
    assert!(!dir.path().join("a").exists());
    assert!(!strict.probe().await.expect("writable"));
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
