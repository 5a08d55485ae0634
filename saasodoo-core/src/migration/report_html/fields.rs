//! Fields of both sides: what a dual run found, and what the commit saw.

use super::super::report::{InstanceReport, Report};
use super::text::{cut, put};
use crate::dual::{DivergenceKind, Verdict};

/// So many divergences are on the page.
const LISTED: usize = 200;
/// So many characters of a value.
const VALUE: usize = 500;

pub(super) fn divergences(out: &mut String, report: &Report) {
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
        match report.counts {
            Some(counts) if counts.comparisons > 0 => {
                put!(out, "<p class=\"ok\">None in {} comparisons.</p>\n", counts.comparisons);
                if counts.unsettled > 0 {
                    put!(
                        out,
                        "<p class=\"bad\">{} fields differed in the last sample, but not in the same way all along: \
                         nothing can be said of them yet.</p>\n",
                        counts.unsettled
                    );
                }
            }
            _ => out.push_str("<p class=\"note\">Nothing was compared.</p>\n"),
        }
        return;
    }
    out.push_str(
        "<table class=\"stack\"><tr><th>instance</th><th>field</th><th>primary</th><th>secondary</th><th>seen</th></tr>\n",
    );
    for divergence in report.divergences.iter().take(LISTED) {
        let none = "(none)";
        let (field, primary, secondary) = match &divergence.kind {
            DivergenceKind::Field {
                field,
                primary,
                secondary,
            } => (
                field.as_str(),
                primary.as_deref().unwrap_or(none),
                secondary.as_deref().unwrap_or(none),
            ),
            DivergenceKind::NotMirrored { reason } => ("(write not mirrored)", "", reason.as_str()),
            DivergenceKind::NotChecked { reason } => ("(not checked)", "", reason.as_str()),
        };
        put!(
            out,
            "<tr><td>{}</td><td data-h=\"field\">{}</td><td data-h=\"primary\">{}</td><td data-h=\"secondary\">{}</td><td>{} times since {}</td></tr>\n",
            divergence.instance,
            cut(field, VALUE),
            cut(primary, VALUE),
            cut(secondary, VALUE),
            divergence.samples,
            super::text::when(divergence.first_seen)
        );
    }
    out.push_str("</table>\n");
    super::left_out(out, report.divergences.len(), LISTED);
}

pub(super) fn parity(out: &mut String, instance: &InstanceReport) {
    if instance.parity.is_empty() {
        return;
    }
    let differing: Vec<_> = instance
        .parity
        .iter()
        .filter(|field| field.verdict != Verdict::Matched)
        .collect();
    put!(
        out,
        "<p>{} of {} fields are the same on both sides.</p>\n",
        instance.parity.len() - differing.len(),
        instance.parity.len()
    );
    if differing.is_empty() {
        return;
    }
    out.push_str("<table class=\"stack\"><tr><th>field</th><th>source</th><th>target</th><th></th></tr>\n");
    for field in differing.iter().take(LISTED) {
        let show = |value: &Option<String>| cut(value.as_deref().unwrap_or("(none)"), VALUE);
        let verdict = match &field.verdict {
            Verdict::Ignored { reason } => format!("ignored: {}", cut(reason, VALUE)),
            Verdict::Unsettled => "<span class=\"bad\">not settled</span>".to_owned(),
            _ => "<span class=\"bad\">differs</span>".to_owned(),
        };
        put!(
            out,
            "<tr><td>{}</td><td data-h=\"source\">{}</td><td data-h=\"target\">{}</td><td>{verdict}</td></tr>\n",
            cut(&field.field, VALUE),
            show(&field.primary),
            show(&field.secondary)
        );
    }
    out.push_str("</table>\n");
    super::left_out(out, differing.len(), LISTED);
}
