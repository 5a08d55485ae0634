//! The report as a page.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use super::report::{InstanceReport, LatencyRow, Report};
use super::{Signal, Step};
use crate::dual::{DivergenceKind, Verdict};

const STYLE: &str = "\
:root{color-scheme:light}*{box-sizing:border-box}\
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;background:#fff;color:#1b1f24}\
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem;margin:0;overflow-wrap:anywhere}\
.tiles{display:flex;flex-wrap:wrap;gap:.75rem}.tile{border:1px solid #d0d7de;border-radius:.5rem;padding:.5rem 1rem;min-width:7rem}\
.tile b{display:block;font-size:1.5rem}.scroll{overflow-x:auto}\
table{border-collapse:collapse;width:100%;font-size:.9rem}th,td{border-bottom:1px solid #d0d7de;padding:.3rem .5rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}\
details{border:1px solid #d0d7de;border-radius:.5rem;margin:.5rem 0;padding:.5rem .75rem}summary{cursor:pointer}\
.ok{color:#116329}.bad{color:#a40e26}.note{color:#57606a}svg{display:block;width:100%;min-width:640px;height:auto}\
text{font:12px system-ui,sans-serif;fill:#1b1f24}";

/// Text that can stand anywhere in a page, in an attribute too.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Writing to a string cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {
        let _ = write!($out, $($arg)*);
    };
}

pub(super) fn page(report: &Report) -> String {
    let mut out = String::new();
    put!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Migration report</title><style>{STYLE}</style></head><body>\n\
         <h1>Migration report</h1>\n<p class=\"note\">Made {}</p>\n",
        report.made
    );
    tiles(&mut out, report);
    downtimes(&mut out, report);
    latencies(&mut out, &report.latencies);
    divergences(&mut out, report);
    put!(out, "<h2>Instances</h2>\n");
    for instance in &report.instances {
        details(&mut out, instance, report.made);
    }
    out.push_str("</body></html>\n");
    out
}

fn tile(out: &mut String, value: &str, name: &str) {
    put!(
        out,
        "<div class=\"tile\"><b>{}</b>{}</div>\n",
        escape(value),
        escape(name)
    );
}

fn tiles(out: &mut String, report: &Report) {
    let count = |wanted: fn(Step) -> bool| {
        report
            .instances
            .iter()
            .filter(|instance| wanted(instance.step))
            .count()
            .to_string()
    };
    out.push_str("<div class=\"tiles\">\n");
    tile(out, &report.instances.len().to_string(), "instances");
    tile(
        out,
        &count(|step| matches!(step, Step::Committed | Step::RemoveSource | Step::Finished)),
        "on the target",
    );
    tile(out, &count(|step| step == Step::RolledBack), "rolled back");
    tile(
        out,
        &count(|step| !step.is_rest() && step != Step::RemoveSource),
        "under way",
    );
    let median = report.median_downtime().map_or_else(|| "–".to_owned(), shown);
    tile(out, &median, "median downtime");
    if let Some(counts) = &report.counts {
        tile(out, &counts.matched.to_string(), "fields matched");
        tile(out, &counts.ignored.to_string(), "fields ignored");
        tile(out, &counts.diverged.to_string(), "fields diverged");
    }
    out.push_str("</div>\n");
}

fn shown(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        format!("{millis} ms")
    } else if millis < 120_000 {
        format!("{}.{} s", millis / 1000, millis % 1000 / 100)
    } else {
        format!("{} min {} s", millis / 60_000, millis / 1000 % 60)
    }
}

/// A horizontal bar of `value` out of `most`, in units of the drawing.
fn width(value: u64, most: u64, full: u64) -> u64 {
    value.saturating_mul(full).checked_div(most).unwrap_or(0)
}

fn downtimes(out: &mut String, report: &Report) {
    let mut down: Vec<&InstanceReport> = report
        .instances
        .iter()
        .filter(|instance| !instance.outages.is_empty())
        .collect();
    if down.is_empty() {
        return;
    }
    down.sort_by_key(|instance| std::cmp::Reverse(instance.downtime_ms));
    let most = down.first().map_or(0, |instance| instance.downtime_ms);
    let height = down.len() * 22;
    put!(
        out,
        "<h2>Downtime of each tenant</h2>\n<div class=\"scroll\"><svg viewBox=\"0 0 640 {height}\" role=\"img\" aria-label=\"Downtime of each tenant\">\n"
    );
    for (row, instance) in down.iter().enumerate() {
        let (y, w) = (row * 22, width(instance.downtime_ms, most, 300).max(1));
        put!(
            out,
            "<text x=\"0\" y=\"{}\">{}</text><rect x=\"240\" y=\"{}\" width=\"{w}\" height=\"16\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{}</text>\n",
            y + 14,
            escape(&cut(&instance.name, 36)),
            y + 2,
            if instance.step == Step::RolledBack {
                "#cf222e"
            } else {
                "#0969da"
            },
            246 + w,
            y + 14,
            shown(Duration::from_millis(instance.downtime_ms))
        );
    }
    out.push_str("</svg></div>\n");
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

fn latencies(out: &mut String, rows: &[LatencyRow]) {
    if rows.is_empty() {
        return;
    }
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let most = rows
        .iter()
        .flat_map(|row| [&row.primary, &row.secondary])
        .flatten()
        .map(|summary| micros(summary.p95))
        .max()
        .unwrap_or(0);
    let height = rows.len() * 48 + 20;
    put!(
        out,
        "<h2>Latency of both sides</h2>\n<p class=\"note\">Dark: median; light: 95 of 100. \
         <span style=\"color:#0969da\">■</span> primary <span style=\"color:#bf8700\">■</span> secondary</p>\n\
         <div class=\"scroll\"><svg viewBox=\"0 0 640 {height}\" role=\"img\" aria-label=\"Latency of both sides\">\n"
    );
    for (at, row) in rows.iter().enumerate() {
        let y = at * 48;
        put!(out, "<text x=\"0\" y=\"{}\">{}</text>\n", y + 24, row.operation);
        for (line, (summary, dark, light)) in [
            (&row.primary, "#0969da", "#b6d7ff"),
            (&row.secondary, "#bf8700", "#f5dc9b"),
        ]
        .into_iter()
        .enumerate()
        {
            let Some(summary) = summary else { continue };
            let (top, p95, median) = (
                y + 4 + line * 20,
                width(micros(summary.p95), most, 360).max(1),
                width(micros(summary.median), most, 360).max(1),
            );
            put!(
                out,
                "<rect x=\"100\" y=\"{top}\" width=\"{p95}\" height=\"16\" fill=\"{light}\"/><rect x=\"100\" y=\"{top}\" width=\"{median}\" height=\"16\" fill=\"{dark}\"/><text x=\"{}\" y=\"{}\">{:.1?} / {:.1?} · {} calls, {} errors</text>\n",
                106 + p95,
                top + 12,
                summary.median,
                summary.p95,
                summary.calls,
                summary.errors
            );
        }
    }
    out.push_str("</svg></div>\n");
}

fn divergences(out: &mut String, report: &Report) {
    if report.counts.is_none() && report.divergences.is_empty() && report.not_compared == 0 {
        return;
    }
    out.push_str("<h2>Divergences</h2>\n");
    if report.not_compared > 0 {
        put!(
            out,
            "<p class=\"bad\">{} instances were not compared: nothing is known of them.</p>\n",
            report.not_compared
        );
    }
    if report.divergences.is_empty() {
        let compared = report.counts.as_ref().map_or(0, |counts| counts.comparisons);
        put!(out, "<p class=\"ok\">None in {compared} comparisons.</p>\n");
        return;
    }
    out.push_str(
        "<div class=\"scroll\"><table><tr><th>instance</th><th>field</th><th>primary</th><th>secondary</th><th>seen</th></tr>\n",
    );
    for divergence in &report.divergences {
        let none = "(none)".to_owned();
        let (field, primary, secondary) = match &divergence.kind {
            DivergenceKind::Field {
                field,
                primary,
                secondary,
            } => (
                field.clone(),
                primary.clone().unwrap_or_else(|| none.clone()),
                secondary.clone().unwrap_or(none),
            ),
            DivergenceKind::NotMirrored { reason } => {
                ("(write not mirrored)".to_owned(), String::new(), reason.clone())
            }
            DivergenceKind::NotChecked { reason } => ("(not checked)".to_owned(), String::new(), reason.clone()),
        };
        put!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{} times since {}</td></tr>\n",
            divergence.instance,
            escape(&field),
            escape(&primary),
            escape(&secondary),
            divergence.samples,
            divergence.first_seen
        );
    }
    out.push_str("</table></div>\n");
}

fn details(out: &mut String, instance: &InstanceReport, now: Timestamp) {
    let class = match instance.step {
        Step::Committed | Step::Finished | Step::RemoveSource => "ok",
        Step::RolledBack => "bad",
        _ => "note",
    };
    put!(
        out,
        "<details><summary><b>{}</b> <span class=\"{class}\">{}</span> · down {}</summary>\n<p class=\"note\">{} · {} → {}</p>\n",
        escape(&instance.name),
        instance.step,
        shown(Duration::from_millis(instance.downtime_ms)),
        instance.instance,
        instance.source,
        instance.target
    );
    if let Some(failure) = &instance.failure {
        put!(out, "<p class=\"bad\">{}</p>\n", escape(failure));
    }
    timeline(out, instance, now);
    if !instance.notes.is_empty() {
        out.push_str("<ul>\n");
        for note in &instance.notes {
            put!(out, "<li>{}</li>\n", escape(note));
        }
        out.push_str("</ul>\n");
    }
    parity(out, instance);
    out.push_str("</details>\n");
}

fn timeline(out: &mut String, instance: &InstanceReport, now: Timestamp) {
    let millis = |at: Timestamp| u64::try_from(at.as_millisecond() - instance.began.as_millisecond()).unwrap_or(0);
    let end = instance
        .timeline
        .iter()
        .map(|run| millis(run.ended.unwrap_or(now)))
        .max()
        .unwrap_or(0)
        .max(1);
    let height = instance.timeline.len() * 20 + 16;
    put!(
        out,
        "<div class=\"scroll\"><svg viewBox=\"0 0 640 {height}\" role=\"img\" aria-label=\"Timeline of {}\">\n",
        escape(&instance.name)
    );
    for outage in &instance.outages {
        let (from, to) = (millis(outage.from), millis(outage.to.unwrap_or(now)));
        put!(
            out,
            "<rect x=\"{}\" y=\"0\" width=\"{}\" height=\"{height}\" fill=\"#ffebe9\"><title>the tenant is down</title></rect>\n",
            130 + width(from, end, 400),
            width(to.saturating_sub(from), end, 400).max(1)
        );
    }
    for (row, run) in instance.timeline.iter().enumerate() {
        let (from, to) = (millis(run.began), millis(run.ended.unwrap_or(now)));
        let colour = match run.signal {
            Some(Signal::Failed | Signal::Abort) => "#cf222e",
            Some(_) => "#1a7f37",
            None => "#8c959f",
        };
        let (x, w, y) = (
            130 + width(from, end, 400),
            width(to.saturating_sub(from), end, 400).max(2),
            row * 20,
        );
        put!(
            out,
            "<text x=\"0\" y=\"{}\">{}</text><rect x=\"{x}\" y=\"{}\" width=\"{w}\" height=\"12\" fill=\"{colour}\"><title>{}</title></rect><text x=\"{}\" y=\"{}\">{}</text>\n",
            y + 14,
            run.step,
            y + 4,
            escape(&run.note),
            x + w + 6,
            y + 14,
            shown(Duration::from_millis(to.saturating_sub(from)))
        );
    }
    out.push_str("</svg></div>\n");
}

fn parity(out: &mut String, instance: &InstanceReport) {
    if instance.parity.is_empty() {
        return;
    }
    let matched = instance
        .parity
        .iter()
        .filter(|field| field.verdict == Verdict::Matched)
        .count();
    put!(
        out,
        "<p>{matched} of {} fields are the same on both sides.</p>\n",
        instance.parity.len()
    );
    let differing: Vec<_> = instance
        .parity
        .iter()
        .filter(|field| field.verdict != Verdict::Matched)
        .collect();
    if differing.is_empty() {
        return;
    }
    out.push_str("<div class=\"scroll\"><table><tr><th>field</th><th>source</th><th>target</th><th></th></tr>\n");
    for field in differing {
        let show = |value: &Option<String>| escape(value.as_deref().unwrap_or("(none)"));
        let verdict = match &field.verdict {
            Verdict::Ignored { reason } => format!("ignored: {}", escape(reason)),
            _ => "<span class=\"bad\">differs</span>".to_owned(),
        };
        put!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{verdict}</td></tr>\n",
            escape(&field.field),
            show(&field.primary),
            show(&field.secondary)
        );
    }
    out.push_str("</table></div>\n");
}
