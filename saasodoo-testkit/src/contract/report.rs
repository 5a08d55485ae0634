//! Results of a run: JSON, a table, and several backends side by side.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// How a clause ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed,
    /// It could not be tried here.
    Skipped,
    /// The backend cannot do it, says so, and answers `Unsupported`.
    Unsupported,
}

impl Outcome {
    /// The outcome's name, as result files have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Unsupported => "unsupported",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The result of one clause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The clause's name.
    pub clause: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, unless it passed.
    pub reason: Option<String>,
    /// How long it took, by the clock it ran under.
    pub seconds: f64,
}

/// The results of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The subject's name.
    pub subject: String,
    /// One result for each clause that was selected.
    pub records: Vec<Record>,
    /// Only some clauses were asked for.
    pub filtered: bool,
}

impl Report {
    /// How many clauses ended this way.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> usize {
        self.records.iter().filter(|record| record.outcome == outcome).count()
    }

    /// How many clauses ran to their end.
    #[must_use]
    pub fn ran(&self) -> usize {
        self.count(Outcome::Passed) + self.count(Outcome::Failed)
    }

    /// The result of a clause.
    #[must_use]
    pub fn record(&self, clause: &str) -> Option<&Record> {
        self.records.iter().find(|record| record.clause == clause)
    }

    /// The results as one line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "contract on {}: {} ran, {} passed, {} failed, {} skipped, {} unsupported",
            self.subject,
            self.ran(),
            self.count(Outcome::Passed),
            self.count(Outcome::Failed),
            self.count(Outcome::Skipped),
            self.count(Outcome::Unsupported)
        )
    }

    /// Demands that nothing failed and that at least so many clauses ran. A run of nothing never passes; a run that was
    /// filtered by name needs one clause.
    ///
    /// # Panics
    /// When that is not so, with the table.
    pub fn assert_passed(&self, least: usize) {
        let least = if self.filtered { 1 } else { least.max(1) };
        assert!(
            self.count(Outcome::Failed) == 0 && self.ran() >= least,
            "{self}\nexpected no failure and at least {least} clauses"
        );
    }

    /// The file of the results: `contract/<subject>.json` in the target directory of the package that runs the suite; `<subject>.filtered.json` when
    /// only some clauses were asked for.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map(PathBuf::from)
            .or_else(|| target_of(&std::env::current_exe().ok()?))
            .unwrap_or_else(|| PathBuf::from("target"));
        let suffix = if self.filtered { ".filtered" } else { "" };
        target.join("contract").join(format!("{}{suffix}.json", self.subject))
    }

    /// Writes the results to [`path`](Self::path).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self) -> io::Result<PathBuf> {
        let path = self.path();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut text = serde_json::to_string_pretty(&self.records)?;
        text.push('\n');
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Reads a file that [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// When it cannot be read or is something else.
    pub fn read(path: &Path) -> io::Result<Self> {
        let records = serde_json::from_str(&fs::read_to_string(path)?)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let subject = stem.strip_suffix(".filtered");
        Ok(Self {
            subject: subject.unwrap_or(&stem).to_owned(),
            records,
            filtered: subject.is_some(),
        })
    }
}

/// A table of all clauses, and the line of totals.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.records.iter().map(|record| record.clause.len()).max().unwrap_or(0);
        for record in &self.records {
            let Record {
                clause,
                outcome,
                reason,
                seconds,
            } = record;
            write!(f, "{outcome:11} {clause:width$} {seconds:7.1} s")?;
            match reason {
                Some(reason) => writeln!(f, "  {reason}")?,
                None => writeln!(f)?,
            }
        }
        f.write_str(&self.summary())
    }
}

/// Several runs in one table: a row for each clause, a column for each subject, and below it the reason of everything
/// that is not the same everywhere.
#[must_use]
pub fn side_by_side(reports: &[Report]) -> String {
    let mut rows: BTreeMap<&str, Vec<Option<&Record>>> = BTreeMap::new();
    for (column, report) in reports.iter().enumerate() {
        for record in &report.records {
            let row = rows.entry(&record.clause).or_insert_with(|| vec![None; reports.len()]);
            row[column] = Some(record);
        }
    }
    let width = rows.keys().map(|clause| clause.len()).max().unwrap_or(0);
    let mut table = format!("{:width$}", "clause");
    for report in reports {
        let _ = write!(table, "  {:15}", report.subject);
    }
    table.push('\n');
    let mut differences = String::new();
    for (clause, row) in &rows {
        let _ = write!(table, "{clause:width$}");
        for cell in row {
            let _ = write!(
                table,
                "  {:15}",
                cell.map_or("(not run)", |record| record.outcome.as_str())
            );
        }
        table.push('\n');
        let first = row[0].map(|record| record.outcome);
        if row.iter().any(|cell| cell.map(|record| record.outcome) != first) {
            for (report, cell) in reports.iter().zip(row) {
                let why = match cell {
                    None => "not run",
                    Some(record) => record.reason.as_deref().unwrap_or(""),
                };
                if !why.is_empty() {
                    let _ = writeln!(differences, "{clause} on {}: {why}", report.subject);
                }
            }
        }
    }
    for report in reports {
        let _ = writeln!(table, "{}", report.summary());
    }
    if !differences.is_empty() {
        let _ = write!(table, "differences:\n{differences}");
    }
    table
}

/// The target directory that a binary was built into: the nearest one above it with what cargo keeps there. It marks
/// only those that it made itself.
fn target_of(binary: &Path) -> Option<PathBuf> {
    let marks = [".rustc_info.json", "CACHEDIR.TAG"];
    let marked = |folder: &&Path| marks.iter().any(|mark| folder.join(mark).is_file());
    binary.ancestors().skip(1).find(marked).map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_go_to_the_target_directory_of_the_binary() {
        let here = std::env::current_exe().expect("a test has a binary");
        let target = target_of(&here).expect("cargo built it");
        assert!(here.starts_with(&target) && !target.ends_with("deps") && !target.ends_with("debug"));
        assert_eq!(target_of(Path::new("/nowhere/debug/deps/x")), None);
    }
}
