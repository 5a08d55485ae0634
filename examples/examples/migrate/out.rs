//! Where output goes. Whoever reads it may be gone, and a disk may be full: neither ends a wave half-way.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

/// The standard output. After the first write that fails nothing more is written, and [`end`](Self::end) tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct Out(Arc<Mutex<Option<io::Error>>>);

impl Out {
    pub(crate) fn line(&self, text: impl Display) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_none() {
            *failed = writeln!(io::stdout(), "{text}").err();
        }
    }

    /// A reader that wants no more, as `head`, is no error.
    pub(crate) fn end(&self) -> Result<()> {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = failed.take().or_else(|| io::stdout().flush().err());
        match failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(error).context("writing to the standard output")
            }
            _ => Ok(()),
        }
    }
}

/// A line on the standard error; a terminal that is gone is no reason to stop.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
