//! What somebody should look at, the most serious first.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Step;
use super::super::report::{InstanceReport, Report};
use super::text::{cut, millis, put, shown, when};
use super::{MANY, NAME, TIMELINES, left_out};

/// So many tenants are listed for each reason.
const LISTED: usize = 100;
/// So many of them at once, so that one long list does not hide the next.
const OPEN: usize = 10;
/// So many of the longest downtimes.
const LONGEST: usize = 10;
/// So many characters of a reason in a list.
const REASON: usize = 300;

/// Why a tenant should be looked at; the first that fits counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Halted,
    Down,
    Failed,
    Differs,
    UnderWay,
    TakenBack,
    Long,
    Nothing,
}

impl Need {
    fn of(instance: &InstanceReport) -> Self {
        if instance.halted.is_some() {
            Self::Halted
        } else if instance.down_since().is_some() {
            Self::Down
        } else if instance.step == Step::RolledBack {
            if instance.was_taken_back() {
                Self::TakenBack
            } else {
                Self::Failed
            }
        } else if differing(instance).next().is_some() {
            Self::Differs
        } else if instance.is_on_target() {
            Self::Nothing
        } else {
            Self::UnderWay
        }
    }
}

fn differing(instance: &InstanceReport) -> impl Iterator<Item = &str> {
    let fields = instance.parity.iter().filter(|field| field.is_divergence());
    fields.map(|field| field.field.as_str())
}

/// The tenants by how much they need attention.
#[derive(Debug)]
pub(super) struct Ranked {
    order: Vec<(Need, usize)>,
    /// Those with the longest downtimes, the longest first.
    longest: Vec<usize>,
    /// Those whose timeline is on the page.
    timelines: BTreeSet<usize>,
}

impl Ranked {
    pub(super) fn new(report: &Report) -> Self {
        let downtime = |at: &usize| report.instances.get(*at).map_or(0, |instance| instance.downtime_ms);
        let mut longest: Vec<usize> = (0..report.instances.len()).filter(|at| downtime(at) > 0).collect();
        longest.sort_by_key(|at| std::cmp::Reverse(downtime(at)));
        longest.truncate(LONGEST);
        let mut order: Vec<(Need, usize)> = report
            .instances
            .iter()
            .enumerate()
            .map(|(at, instance)| match Need::of(instance) {
                Need::Nothing if longest.contains(&at) => (Need::Long, at),
                need => (need, at),
            })
            .collect();
        order.sort_unstable();
        let few = order.len() <= MANY;
        let timelines = order
            .iter()
            .filter(|(need, _)| few || *need != Need::Nothing)
            .take(TIMELINES)
            .map(|(_, at)| *at)
            .collect();
        Self {
            order,
            longest,
            timelines,
        }
    }

    pub(super) fn has_timeline(&self, at: usize) -> bool {
        self.timelines.contains(&at)
    }

    /// There is no room for these.
    pub(super) fn without_timelines<'a>(&mut self, those: impl Iterator<Item = &'a usize>) {
        for at in those {
            self.timelines.remove(at);
        }
    }

    /// Those with a timeline: as they began when they are few, otherwise those that need attention most first.
    pub(super) fn timelines(&self) -> Vec<usize> {
        if self.order.len() <= MANY {
            return self.timelines.iter().copied().collect();
        }
        self.order
            .iter()
            .map(|(_, at)| *at)
            .filter(|at| self.has_timeline(*at))
            .collect()
    }

    fn with<'a>(&self, report: &'a Report, which: fn(&InstanceReport) -> bool) -> Vec<(usize, &'a InstanceReport)> {
        self.order
            .iter()
            .filter_map(|(_, at)| Some((*at, report.instances.get(*at)?)))
            .filter(|(_, instance)| which(instance))
            .collect()
    }
}

/// Where a tenant is, in a few words and with its colour. Ready for the page.
pub(super) fn state(instance: &InstanceReport) -> String {
    let mut out = match instance.step {
        step if instance.halted.is_some() => format!("<span class=\"halt\">halted in {step}</span>"),
        Step::RolledBack if instance.was_taken_back() => {
            "<span class=\"note\">taken back by the operator</span>".to_owned()
        }
        step if step.is_back() && instance.was_taken_back() => {
            format!("<span class=\"note\">{step}, taken back by the operator</span>")
        }
        step if step.is_back() => format!("<span class=\"bad\">{step}</span>"),
        step if instance.is_on_target() => format!("<span class=\"ok\">{step}</span>"),
        step => format!("<span class=\"note\">{step}</span>"),
    };
    if instance.down_since().is_some() {
        out.push_str(" <span class=\"halt\">down now</span>");
    }
    out
}

pub(super) fn section(out: &mut String, report: &Report, ranked: &Ranked) {
    if report.instances.is_empty() {
        return;
    }
    out.push_str("<h2>What needs attention</h2>\n");
    let group = |out: &mut String,
                 class: &str,
                 title: &str,
                 of: &[(usize, &InstanceReport)],
                 what: &dyn Fn(&InstanceReport) -> String| {
        if of.is_empty() {
            return false;
        }
        put!(
            out,
            "<h3 class=\"{class}\">{title}: {}</h3>\n<ul class=\"list\">\n",
            of.len()
        );
        for (row, (at, instance)) in of.iter().take(LISTED).enumerate() {
            if row == OPEN {
                put!(
                    out,
                    "</ul>\n<details><summary>{} more</summary>\n<ul class=\"list\">\n",
                    of.len() - OPEN
                );
            }
            let name = cut(&instance.name, NAME);
            match ranked.has_timeline(*at) {
                true => put!(out, "<li><a href=\"#t{at}\">{name}</a> {}</li>\n", what(instance)),
                false => put!(out, "<li>{name} {}</li>\n", what(instance)),
            }
        }
        out.push_str("</ul>\n");
        left_out(out, of.len(), LISTED);
        if of.len() > OPEN {
            out.push_str("</details>\n");
        }
        true
    };
    let halted = ranked.with(report, |instance| instance.halted.is_some());
    let mut any = group(out, "bad", "Halted until somebody has looked", &halted, &|instance| {
        halt(instance)
    });
    let mut down = ranked.with(report, |instance| instance.down_since().is_some());
    down.sort_by_key(|(_, instance)| instance.down_since());
    any |= group(out, "bad", "Down now", &down, &|instance| {
        let since = instance.down_since().unwrap_or(report.made);
        format!(
            "since {}, {}, in {}",
            when(since),
            shown(millis(since, report.made)),
            instance.step
        )
    });
    let failed = ranked.with(report, |instance| {
        instance.step == Step::RolledBack && !instance.was_taken_back()
    });
    any |= group(out, "bad", "Rolled back", &failed, &|instance| {
        let reason = instance.failure.as_deref().unwrap_or_default();
        format!("<span class=\"bad\">{}</span>", cut(reason, REASON))
    });
    if failed.len() > 1 {
        by_step(out, &failed);
    }
    let differ = ranked.with(report, |instance| {
        instance.is_on_target() && differing(instance).next().is_some()
    });
    any |= group(
        out,
        "bad",
        "On the target although fields differ",
        &differ,
        &|instance| {
            let fields: Vec<&str> = differing(instance).collect();
            cut(&fields.join(", "), REASON)
        },
    );
    let taken_back = ranked.with(report, |instance| {
        instance.step == Step::RolledBack && instance.was_taken_back()
    });
    group(out, "note", "Taken back by the operator", &taken_back, &|instance| {
        instance
            .taken_back
            .map_or_else(String::new, |at| format!("on {}", when(at)))
    });
    if !any {
        out.push_str("<p class=\"ok\">Nothing halted, nothing is down, nothing was rolled back by a failure.</p>\n");
    }
    let longest: Vec<(usize, &InstanceReport)> = ranked
        .longest
        .iter()
        .filter_map(|at| Some((*at, report.instances.get(*at)?)))
        .collect();
    // When they are few their bars stand just below.
    if report.instances.len() > MANY {
        group(out, "note", "Longest downtimes", &longest, &|instance| {
            format!("<b>{}</b> {}", shown(instance.downtime_ms), state(instance))
        });
    }
}

/// Why and since when a halted tenant is halted.
pub(super) fn halt(instance: &InstanceReport) -> String {
    instance.halted.as_ref().map_or_else(String::new, |halted| {
        format!(
            "<span class=\"halt\">halted in {}</span> since {}: {}",
            halted.step,
            when(halted.at),
            cut(&halted.message, REASON)
        )
    })
}

/// In which steps they failed.
fn by_step(out: &mut String, failed: &[(usize, &InstanceReport)]) {
    let mut steps: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, instance) in failed {
        // A failure is written as "step: message".
        let reason = instance.failure.as_deref().unwrap_or_default();
        let step = reason.split(':').next().and_then(Step::from_name);
        *steps.entry(step.map_or("unknown", Step::as_str)).or_default() += 1;
    }
    let steps: Vec<String> = steps.iter().map(|(step, count)| format!("{step} {count}")).collect();
    put!(out, "<p class=\"note\">Failed in: {}</p>\n", steps.join(", "));
}
