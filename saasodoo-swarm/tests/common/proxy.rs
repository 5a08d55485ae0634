//! A socket before the daemon's that can fail a request or lose its response. The client makes one connection for each
//! request, so connections are requests.
#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use saasodoo_testkit::contract::FaultGuard;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request does not reach the daemon.
    Fail,
    /// It does, and the response does not come back.
    Lose,
}

struct Pending {
    left: u32,
    fault: Fault,
    hit: Arc<AtomicBool>,
}

#[derive(Clone)]
pub struct Proxy {
    directory: Arc<tempfile::TempDir>,
    pending: Arc<Mutex<Option<Pending>>>,
}

impl Proxy {
    pub fn before(daemon: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("docker.sock")).expect("a socket");
        let pending: Arc<Mutex<Option<Pending>>> = Arc::default();
        let (faults, daemon) = (Arc::clone(&pending), daemon.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let fault = strike(&faults);
                tokio::spawn(pass(client, daemon.clone(), fault));
            }
        });
        Self {
            directory: Arc::new(directory),
            pending,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    pub fn fault(&self, n: u32, fault: Fault) -> FaultGuard {
        let hit = Arc::new(AtomicBool::new(false));
        *self.pending.lock().expect("no panic") = Some(Pending {
            left: n,
            fault,
            hit: Arc::clone(&hit),
        });
        let pending = Arc::clone(&self.pending);
        FaultGuard::new(hit, move || *pending.lock().expect("no panic") = None)
    }
}

fn strike(pending: &Mutex<Option<Pending>>) -> Option<Fault> {
    let mut pending = pending.lock().expect("no panic");
    let next = pending.as_mut()?;
    next.left -= 1;
    if next.left > 0 {
        return None;
    }
    next.hit.store(true, Ordering::SeqCst);
    let fault = next.fault;
    *pending = None;
    Some(fault)
}

async fn pass(mut client: UnixStream, daemon: PathBuf, fault: Option<Fault>) {
    if fault == Some(Fault::Fail) {
        return;
    }
    let Ok(mut server) = UnixStream::connect(&daemon).await else { return };
    if fault.is_none() {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        return;
    }
    let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    if server.write_all(&from_client[..count]).await.is_err() {
                        return;
                    }
                }
            },
            // The daemon answers when it has done what was asked.
            _ = server.read(&mut from_server) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                return;
            }
        }
    }
}
