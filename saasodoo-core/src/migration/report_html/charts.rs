//! Downtimes and latencies as bars.

use super::super::Step;
use super::super::report::{InstanceReport, LatencyRow, Report, Spread};
use super::text::{cut, micros, percent, put, share, shown, shown_call};
use super::{MANY, NAME};
use crate::dual::LatencySummary;

/// How the downtimes of those are drawn that live on the target, are back on the source, or are under way or halted.
const ON_TARGET: &str = "t";
const BACK: &str = "x";
const UNDER_WAY: &str = "w";

fn class(instance: &InstanceReport) -> &'static str {
    match instance.step {
        Step::RolledBack => BACK,
        _ if instance.is_on_target() => ON_TARGET,
        _ => UNDER_WAY,
    }
}

pub(super) fn downtimes(out: &mut String, report: &Report) {
    let mut down: Vec<&InstanceReport> = report
        .instances
        .iter()
        .filter(|instance| !instance.outages.is_empty())
        .collect();
    if down.is_empty() {
        return;
    }
    down.sort_by_key(|instance| std::cmp::Reverse(instance.downtime_ms));
    put!(
        out,
        "<h2>Downtime</h2>\n<p class=\"note\">{} of {} tenants were down; p95: 95 of 100 were down for at most that long. \
         <span class=\"k\"><i class=\"key t\"></i>on the target</span> \
         <span class=\"k\"><i class=\"key x\"></i>rolled back</span> \
         <span class=\"k\"><i class=\"key w\"></i>under way or halted</span></p>\n",
        down.len(),
        report.instances.len()
    );
    spreads(out, &down);
    if down.len() > MANY {
        histogram(out, &down);
        return;
    }
    bars(out, &down);
}

/// One bar for each; `down` is sorted, the longest first.
fn bars(out: &mut String, down: &[&InstanceReport]) {
    let longest = down.first().map_or(0, |instance| instance.downtime_ms);
    let median = down.get(down.len() / 2).map_or(0, |instance| instance.downtime_ms);
    // One that was down for hours must not make ticks of all others.
    let full = if longest / 8 > median {
        median.max(1) * 4
    } else {
        longest
    };
    if full < longest {
        put!(
            out,
            "<p class=\"note\">⋯: longer than its bar; the bars end at {}.</p>\n",
            shown(full)
        );
    }
    for instance in down {
        put!(
            out,
            "<div class=\"r\"><span>{}</span><span class=\"v\">{}{}</span><span class=\"b\"><i class=\"{}\" style=\"width:{}\"></i></span></div>\n",
            cut(&instance.name, NAME),
            if instance.downtime_ms > full { "⋯ " } else { "" },
            shown(instance.downtime_ms),
            class(instance),
            percent(share(instance.downtime_ms, full))
        );
    }
}

fn spreads(out: &mut String, down: &[&InstanceReport]) {
    out.push_str(
        "<table class=\"spread\"><tr><th></th><th>count</th><th>median</th><th>p95</th><th>longest</th></tr>\n",
    );
    for (of, name) in [
        (ON_TARGET, "on the target"),
        (BACK, "rolled back"),
        (UNDER_WAY, "under way or halted"),
    ] {
        let of: Vec<u64> = down
            .iter()
            .filter(|instance| class(instance) == of)
            .map(|instance| instance.downtime_ms)
            .collect();
        let count = of.len();
        if let Some(spread) = Spread::of(of) {
            put!(
                out,
                "<tr><td>{name}</td><td>{count}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                shown(spread.median),
                shown(spread.p95),
                shown(spread.longest)
            );
        }
    }
    out.push_str("</table>\n");
}

/// Widths that are round to read, in milliseconds.
const WIDTHS: &[u64] = &[
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000,
    1_800_000, 3_600_000, 14_400_000, 43_200_000, 86_400_000,
];

/// Bins of one width up to a little beyond the p95, and one for the few far out: a single tenant that was down
/// for hours must not press all others into one bin.
struct Bins {
    first: u64,
    width: u64,
    /// Without the one for all beyond.
    count: u64,
}

impl Bins {
    fn new(shortest: u64, p95: u64) -> Self {
        let wanted = (p95 - shortest).max(1).div_ceil(14);
        let width = WIDTHS
            .iter()
            .copied()
            .find(|width| *width >= wanted)
            .unwrap_or_else(|| wanted.next_multiple_of(86_400_000));
        let first = shortest / width * width;
        Self {
            first,
            width,
            count: (p95 - first) / width + 2,
        }
    }

    fn edge(&self, at: u64) -> u64 {
        self.first + at * self.width
    }

    fn of(&self, value: u64) -> u64 {
        (value.saturating_sub(self.first) / self.width).min(self.count)
    }

    /// An edge, as exactly as the width asks for.
    fn label(&self, at: u64) -> String {
        let edge = self.edge(at);
        if edge >= 120_000 && self.width.is_multiple_of(1000) {
            return shown(edge);
        }
        let (whole, rest) = (edge / 1000, edge % 1000);
        match self.width {
            width if width.is_multiple_of(1000) => format!("{whole} s"),
            width if width.is_multiple_of(100) => format!("{whole}.{} s", rest / 100),
            width if width.is_multiple_of(10) => format!("{whole}.{:02} s", rest / 10),
            _ => format!("{whole}.{rest:03} s"),
        }
    }
}

/// `down` is sorted, the longest first.
fn histogram(out: &mut String, down: &[&InstanceReport]) {
    let Some(all) = Spread::of(down.iter().map(|instance| instance.downtime_ms).collect()) else {
        return;
    };
    let shortest = down.last().map_or(0, |instance| instance.downtime_ms);
    let bins = Bins::new(shortest, all.p95);
    let counts: Vec<[(&str, u64); 3]> = (0..=bins.count)
        .map(|bin| {
            [ON_TARGET, BACK, UNDER_WAY].map(|of| {
                let those = down
                    .iter()
                    .filter(|instance| bins.of(instance.downtime_ms) == bin && class(instance) == of);
                (of, u64::try_from(those.count()).unwrap_or(u64::MAX))
            })
        })
        .collect();
    let total = |bin: &[(&str, u64); 3]| bin.iter().map(|(_, count)| count).sum::<u64>();
    let most = counts.iter().map(total).max().unwrap_or(0);
    out.push_str("<h3>How many were down for how long</h3>\n");
    for (at, bin) in (0..).zip(&counts) {
        if at == bins.count && total(bin) == 0 {
            break;
        }
        let label = if at < bins.count {
            format!("{} – {}", bins.label(at), bins.label(at + 1))
        } else {
            format!("{} and longer", bins.label(at))
        };
        put!(
            out,
            "<div class=\"r\"><span>{label}</span><span class=\"v\">{}{}</span><span class=\"b\">",
            total(bin),
            [(all.median, " · median"), (all.p95, " · p95")]
                .iter()
                .filter(|(value, _)| bins.of(*value) == at)
                .map(|(_, name)| *name)
                .collect::<String>()
        );
        for (class, count) in bin.iter().filter(|(_, count)| *count > 0) {
            put!(
                out,
                "<i class=\"{class}\" style=\"width:{}\"></i>",
                percent(share(*count, most))
            );
        }
        out.push_str("</span></div>\n");
    }
}

pub(super) fn latencies(out: &mut String, rows: &[LatencyRow]) {
    if rows.is_empty() {
        return;
    }
    let most = rows
        .iter()
        .flat_map(|row| [&row.primary, &row.secondary])
        .flatten()
        .map(|summary| micros(summary.p95))
        .max()
        .unwrap_or(0);
    out.push_str(
        "<h2>Latency of both sides</h2>\n<p class=\"note\">Median / p95: 95 of 100 calls took at most that. Dark: the median; light: p95. \
         <span class=\"k\"><i class=\"key t\"></i>primary</span> \
         <span class=\"k\"><i class=\"key w\"></i>secondary</span></p>\n<div class=\"calls\">\n",
    );
    for row in rows {
        for (summary, side, class) in [(&row.primary, "primary", "t"), (&row.secondary, "secondary", "w")] {
            if let Some(summary) = summary {
                latency(out, summary, side, class, most);
            }
        }
    }
    out.push_str("</div>\n");
}

fn latency(out: &mut String, summary: &LatencySummary, side: &str, class: &str, most: u64) {
    let took = if summary.calls == 0 {
        "no calls".to_owned()
    } else {
        format!(
            "{} / {} · {} calls, {} errors",
            shown_call(summary.median),
            shown_call(summary.p95),
            summary.calls,
            summary.errors
        )
    };
    let (median, p95) = (share(micros(summary.median), most), share(micros(summary.p95), most));
    put!(
        out,
        "<div class=\"r\"><span>{} · {side}</span><span class=\"v\">{took}</span><span class=\"b\"><i class=\"{class}\" style=\"width:{}\"></i><i class=\"{class}l\" style=\"width:{}\"></i></span></div>\n",
        summary.operation,
        percent(median),
        percent(p95.saturating_sub(median))
    );
}
