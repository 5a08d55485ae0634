//! The report as a page: a summary, what needs attention, how the downtimes are spread, and tenant by tenant. It stays
//! small with many tenants: then only those that need attention have their whole timeline on it.

mod attention;
mod charts;
mod fields;
#[cfg(test)]
mod tests;
mod text;
mod timeline;

use super::Step;
use super::report::{InstanceReport, Report};
use attention::{Ranked, state};
use text::{cut, escape, instant, millis, put, shown, when};

const STYLE: &str = include_str!("report_html/style.css");

/// More tenants than this are many: a histogram instead of one bar each, and rows instead of timelines.
const MANY: usize = 50;
/// So many tenants have their timeline on the page when they are many.
const TIMELINES: usize = 200;
/// Or fewer, when together they are longer than so many bytes.
const TIMELINE_BYTES: usize = 2_000_000;
/// So many rows are in one part of the table of the others.
const ROWS: usize = 500;
/// So many notes of one tenant are on the page.
const NOTES: usize = 20;
/// So many characters of a name and of a message.
const NAME: usize = 80;
const MESSAGE: usize = 2000;

pub(super) fn page(report: &Report) -> String {
    let mut out = String::new();
    put!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Migration report</title><style>\n{STYLE}</style></head><body>\n\
         <h1>Migration report</h1>\n<p class=\"note\">Made {}. All times are UTC.</p>\n",
        when(report.made)
    );
    let mut ranked = Ranked::new(report);
    let timelines = timelines(report, &mut ranked);
    tiles(&mut out, report);
    windows(&mut out, report);
    attention::section(&mut out, report, &ranked);
    charts::downtimes(&mut out, report);
    charts::latencies(&mut out, &report.latencies);
    fields::divergences(&mut out, report);
    tenants(&mut out, report, &ranked, &timelines);
    out.push_str("</body></html>\n");
    out
}

fn tile(out: &mut String, value: &str, name: &str, alarm: bool) {
    put!(
        out,
        "<div class=\"tile{}\"><b>{}</b>{}</div>\n",
        if alarm { " alarm" } else { "" },
        escape(value),
        escape(name)
    );
}

fn tiles(out: &mut String, report: &Report) {
    let count = |wanted: fn(&InstanceReport) -> bool| report.instances.iter().filter(|one| wanted(one)).count();
    let number = |out: &mut String, count: usize, name: &str, alarm: bool| {
        tile(out, &count.to_string(), name, alarm && count > 0);
    };
    out.push_str("<div class=\"tiles\">\n");
    number(out, report.instances.len(), "instances", false);
    number(out, count(InstanceReport::is_on_target), "on the target", false);
    let under_way = |one: &InstanceReport| !one.step.is_rest() && !one.is_on_target() && one.halted.is_none();
    number(out, count(under_way), "under way", false);
    number(out, count(|one| one.step == Step::RolledBack), "rolled back", false);
    number(out, count(|one| one.halted.is_some()), "halted", true);
    number(out, count(|one| one.down_since().is_some()), "down now", true);
    let spread = report.downtimes();
    let mut time = |value: Option<u64>, name| {
        tile(out, &value.map_or_else(|| "–".to_owned(), shown), name, false);
    };
    time(spread.map(|spread| spread.median), "median downtime");
    time(spread.map(|spread| spread.p95), "p95 downtime");
    time(spread.map(|spread| spread.longest), "longest downtime");
    match &report.counts {
        Some(counts) if counts.comparisons > 0 => {
            tile(out, &counts.matched.to_string(), "fields matched", false);
            tile(out, &counts.ignored.to_string(), "fields ignored", false);
            tile(
                out,
                &counts.diverged.to_string(),
                "fields diverged",
                counts.diverged > 0,
            );
        }
        Some(_) => tile(out, "–", "nothing compared", false),
        None => {}
    }
    out.push_str("</div>\n");
    if spread.is_some() {
        out.push_str("<p class=\"note\">Downtimes of the tenants on the target.</p>\n");
    }
}

/// Until when committed tenants can be taken back.
fn windows(out: &mut String, report: &Report) {
    let committed = report.instances.iter().filter(|one| one.step == Step::Committed);
    let mut ends: Vec<_> = committed.filter_map(|one| one.window_until).collect();
    ends.sort_unstable();
    let (Some(first), Some(last)) = (ends.first(), ends.last()) else {
        return;
    };
    put!(
        out,
        "<p>Rollback windows: {} of {} are open; the first ends {}, the last {}.</p>\n",
        ends.iter().filter(|end| **end > report.made).count(),
        ends.len(),
        when(*first),
        when(*last)
    );
}

/// Says that a list was cut.
fn left_out(out: &mut String, all: usize, shown: usize) {
    if all > shown {
        put!(
            out,
            "<p class=\"note\">{} more are left out here; the JSON report has all.</p>\n",
            all - shown
        );
    }
}

/// The timelines of those that need attention most, as long as there is room; keeps the others out of the ranks.
fn timelines(report: &Report, ranked: &mut Ranked) -> String {
    let mut out = String::new();
    let wanted = ranked.timelines();
    for (place, at) in wanted.iter().enumerate() {
        let end = out.len();
        if let Some(instance) = report.instances.get(*at) {
            details(&mut out, *at, instance, report);
        }
        if out.len() > TIMELINE_BYTES {
            out.truncate(end);
            ranked.without_timelines(wanted.iter().skip(place));
            break;
        }
    }
    out
}

fn tenants(out: &mut String, report: &Report, ranked: &Ranked, timelines: &str) {
    if report.instances.is_empty() {
        return;
    }
    out.push_str("<h2>Tenant by tenant</h2>\n");
    let shown = ranked.timelines().len();
    let rest = report.instances.len() - shown;
    if rest > 0 {
        put!(
            out,
            "<p>Timelines of the {shown} that need attention most are on this page. The other {rest} have one row each, \
             <a href=\"#others\">further down</a>; the JSON report has the timeline of all.</p>\n"
        );
    }
    out.push_str(
        "<p class=\"note\"><span class=\"k\"><i class=\"key g\"></i>done</span> \
         <span class=\"k\"><i class=\"key x\"></i>failed or given up</span> \
         <span class=\"k\"><i class=\"key down\"></i>the tenant is down</span> \
         <span class=\"k\"><i class=\"key\"></i>⋯ a long time, drawn short</span></p>\n",
    );
    out.push_str(timelines);
    let others: Vec<&InstanceReport> = (0..)
        .zip(&report.instances)
        .filter(|(at, _)| !ranked.has_timeline(*at))
        .map(|(_, instance)| instance)
        .collect();
    if !others.is_empty() {
        out.push_str("<h3 id=\"others\">The others</h3>\n");
    }
    for (part, rows) in others.chunks(ROWS).enumerate() {
        put!(
            out,
            "<details><summary>Others {} to {}, as they began</summary>\n<table class=\"rows\"><tr><th>tenant<th>where<th>down<th>began\n",
            part * ROWS + 1,
            part * ROWS + rows.len()
        );
        for instance in rows {
            row(out, instance);
        }
        out.push_str("</table></details>\n");
    }
}

/// Without the end tags that HTML lets one omit: there may be ten thousand rows.
fn row(out: &mut String, instance: &InstanceReport) {
    put!(out, "<tr><td>{}<td>{}", cut(&instance.name, NAME), state(instance));
    if let (Step::Committed, Some(until)) = (instance.step, instance.window_until) {
        put!(out, " until {}", instant(until));
    }
    put!(out, "<td>{}<td>{}\n", downtime(instance), instant(instance.began));
}

fn downtime(instance: &InstanceReport) -> String {
    if instance.outages.is_empty() {
        return "–".to_owned();
    }
    shown(instance.downtime_ms)
}

fn details(out: &mut String, at: usize, instance: &InstanceReport, report: &Report) {
    put!(
        out,
        "<details id=\"t{at}\"><summary><b>{}</b> {} · down {}</summary>\n<p class=\"note\">{} · {} → {} · began {}</p>\n",
        cut(&instance.name, NAME),
        state(instance),
        downtime(instance),
        instance.instance,
        instance.source,
        instance.target,
        when(instance.began)
    );
    if let Some(halted) = &instance.halted {
        put!(
            out,
            "<p class=\"bad\"><span class=\"halt\">halted in {}</span> since {}: {}</p>\n",
            halted.step,
            when(halted.at),
            cut(&halted.message, MESSAGE)
        );
    }
    if let Some(since) = instance.down_since() {
        put!(
            out,
            "<p class=\"bad\">Down now, since {}: {}.</p>\n",
            when(since),
            shown(millis(since, report.made))
        );
    }
    if let Some(failure) = &instance.failure {
        put!(out, "<p class=\"bad\">Went back: {}</p>\n", cut(failure, MESSAGE));
    }
    if let Some(at) = instance.taken_back {
        put!(out, "<p>Taken back by the operator on {}.</p>\n", when(at));
    }
    if let (Step::Committed, Some(until)) = (instance.step, instance.window_until) {
        let open = if until > report.made {
            format!("ends {}, in {}", when(until), shown(millis(report.made, until)))
        } else {
            format!("ended {}", when(until))
        };
        put!(out, "<p>The rollback window {open}.</p>\n");
    }
    timeline::timeline(out, instance, report.made);
    if !instance.notes.is_empty() {
        out.push_str("<ul>\n");
        for note in instance.notes.iter().take(NOTES) {
            put!(out, "<li>{}</li>\n", cut(note, MESSAGE));
        }
        out.push_str("</ul>\n");
        left_out(out, instance.notes.len(), NOTES);
    }
    fields::parity(out, instance);
    out.push_str("</details>\n");
}
