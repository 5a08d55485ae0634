//! What the operator orders while tenants are being moved: Ctrl-C, and the signals by which a machine or a terminal ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use saasodoo_core::migration::Control;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

/// The signals that would end the process. From [`listen`](Self::listen) on they do not.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` under `nohup`, which wants it ignored.
    hang_up: Option<Signal>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Ctrl-C.
    Interrupt,
    /// The machine or the terminal goes.
    End,
}

impl Signals {
    fn listen() -> Result<Self> {
        let open = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
            hang_up: match is_ignored(SignalKind::hangup()) {
                true => None,
                false => Some(open(SignalKind::hangup())?),
            },
        })
    }

    async fn next(&mut self) -> Order {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Order::Interrupt,
            _ = self.terminate.recv() => Order::End,
            _ = hang_up => Order::End,
        }
    }
}

/// Whether the process was started with that signal ignored; where the system does not tell, it was not.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}

/// The first order pauses the wave; a Ctrl-C after it takes back those under way.
pub(crate) fn steer(control: &Control, say: impl Fn(&str) + Send + 'static) -> Result<JoinHandle<()>> {
    let mut signals = Signals::listen()?;
    let control = control.clone();
    Ok(tokio::spawn(async move {
        // Who is at a terminal can order more; what ends a machine orders this only.
        let order = signals.next().await;
        say(match order {
            Order::Interrupt => "pausing where tenants are up; Ctrl-C again takes those under way back",
            Order::End => "pausing where tenants are up",
        });
        control.pause();
        // What ends a machine may be sent more than once, and is no order to take tenants back.
        while signals.next().await != Order::Interrupt {}
        say("taking those under way back; those that are paused already stay so: `rollback` takes them back");
        control.abort();
        loop {
            signals.next().await;
        }
    }))
}

/// Becomes true with the first order: the tenant in hand is brought to its end, and no other is begun.
pub(crate) fn stop_after_this(say: impl Fn(&str) + Send + 'static) -> Result<Arc<AtomicBool>> {
    let mut signals = Signals::listen()?;
    let stop = Arc::new(AtomicBool::new(false));
    let ordered = Arc::clone(&stop);
    tokio::spawn(async move {
        loop {
            signals.next().await;
            ordered.store(true, Ordering::SeqCst);
            say("stopping after the tenant in hand, which is not left half-way");
        }
    });
    Ok(stop)
}
