//! The steps of one migration in time.

use jiff::Timestamp;

use super::super::report::InstanceReport;
use super::super::{Signal, Step, StepRun};
use super::text::{cut, millis, percent, put, shown};

/// So many runs of steps at the beginning and at the end are shown of a migration that was tried again very often.
const FIRST_RUNS: usize = 20;
const LAST_RUNS: usize = 40;

/// One run of a step, in milliseconds since the migration began.
struct Span<'a> {
    run: &'a StepRun,
    from: u64,
    to: u64,
}

/// A piece of time between two changes, and where it is drawn, in hundredths of a percent.
#[derive(Debug)]
struct Piece {
    from: u64,
    to: u64,
    busy: bool,
    cut: bool,
    at: u64,
    width: u64,
}

impl Piece {
    fn len(&self) -> u64 {
        self.to - self.from
    }
}

/// Time as it is drawn: what would press everything else together is cut short.
#[derive(Debug)]
struct Scale(Vec<Piece>);

impl Scale {
    fn new(spans: &[Span<'_>], outages: &[(u64, u64)]) -> Self {
        let mut points: Vec<u64> = spans
            .iter()
            .map(|span| (span.from, span.to))
            .chain(outages.iter().copied())
            .flat_map(|(from, to)| [from, to])
            .collect();
        points.sort_unstable();
        points.dedup();
        let mut pieces: Vec<Piece> = points
            .iter()
            .zip(points.iter().skip(1))
            .map(|(from, to)| Piece {
                from: *from,
                to: *to,
                busy: spans.iter().any(|span| span.from <= *from && span.to >= *to),
                cut: false,
                at: 0,
                width: 0,
            })
            .collect();
        cut_short(&mut pieces);
        let cuts = pieces.iter().filter(|piece| piece.cut).count();
        let cuts = u64::try_from(cuts).unwrap_or(u64::MAX);
        let of_cut = 800.min(5000 / cuts.max(1));
        let room = 10_000 - of_cut * cuts;
        let drawn: u64 = pieces.iter().filter(|piece| !piece.cut).map(Piece::len).sum();
        // Positions from sums, so that rounding does not add up.
        let (mut passed, mut passed_cuts) = (0, 0);
        let place = |passed: u64, cuts: u64| super::text::share(passed, drawn) * room / 10_000 + cuts * of_cut;
        for piece in &mut pieces {
            piece.at = place(passed, passed_cuts);
            if piece.cut {
                passed_cuts += 1;
            } else {
                passed += piece.len();
            }
            piece.width = place(passed, passed_cuts) - piece.at;
        }
        Self(pieces)
    }

    fn at(&self, time: u64) -> u64 {
        match self.0.iter().find(|piece| piece.to >= time) {
            Some(piece) => {
                let into = time.saturating_sub(piece.from);
                piece.at + super::text::share(into, piece.len()) * piece.width / 10_000
            }
            None => 10_000,
        }
    }

    /// Outages and cuts as a background that all lines of the timeline have.
    fn background(&self, outages: &[(u64, u64)]) -> String {
        let mut out = String::new();
        let mut band = |from: u64, to: u64, colour: &str| {
            let (from, to) = (percent(from), percent(to));
            put!(
                out,
                "linear-gradient(90deg,#0000 {from},{colour} {from} {to},#0000 {to}),"
            );
        };
        for piece in self.0.iter().filter(|piece| piece.cut) {
            band(piece.at, piece.at + piece.width, "#6e778166");
        }
        for (from, to) in outages {
            let (from, to) = (self.at(*from), self.at(*to));
            band(from, to.max(from + 40).min(10_000), "#ffc1ba");
        }
        out.push_str("#eef1f4");
        out
    }
}

fn cut_short(pieces: &mut [Piece]) {
    let mut busy: u64 = pieces.iter().filter(|piece| piece.busy).map(Piece::len).sum();
    // A step that takes longer than four times all others.
    while let Some(longest) = pieces
        .iter_mut()
        .filter(|piece| piece.busy && !piece.cut)
        .max_by_key(|piece| piece.len())
    {
        let others = busy - longest.len();
        if others == 0 || longest.len() / 4 <= others {
            break;
        }
        longest.cut = true;
        busy = others;
    }
    for piece in pieces.iter_mut().filter(|piece| !piece.busy) {
        piece.cut = busy > 0 && piece.len() > busy / 2;
    }
}

/// What is shown of the runs, and how many are left out in the middle.
fn kept(runs: &[StepRun]) -> (&[StepRun], usize, &[StepRun]) {
    if runs.len() <= FIRST_RUNS + LAST_RUNS {
        return (runs, 0, &[]);
    }
    let (first, rest) = runs.split_at(FIRST_RUNS);
    let left_out = rest.len() - LAST_RUNS;
    let (_, last) = rest.split_at(left_out);
    (first, left_out, last)
}

pub(super) fn timeline(out: &mut String, instance: &InstanceReport, now: Timestamp) {
    let (first, left_out, last) = kept(&instance.timeline);
    let until = instance.halted.as_ref().map_or(now, |halted| halted.at);
    let since = |at: Timestamp| millis(instance.began, at);
    let total = first.len() + last.len();
    let spans: Vec<Span<'_>> = first
        .iter()
        .chain(last)
        .enumerate()
        .map(|(at, run)| {
            let from = since(run.began);
            let to = match run.ended {
                Some(ended) => since(ended),
                // The process ended in it, nobody knows when.
                None if at + 1 < total || instance.step.is_rest() => from,
                None => since(until),
            };
            Span {
                run,
                from,
                to: to.max(from),
            }
        })
        .collect();
    let outages: Vec<(u64, u64)> = instance
        .outages
        .iter()
        .map(|outage| (since(outage.from), since(outage.to.unwrap_or(now))))
        .filter(|(from, to)| from <= to)
        .collect();
    let scale = Scale::new(&spans, &outages);
    put!(
        out,
        "<div class=\"time\" style=\"--times:{}\">\n",
        scale.background(&outages)
    );
    let mut rests = scale.0.iter().filter(|piece| piece.cut && !piece.busy).peekable();
    for (row, span) in spans.iter().enumerate() {
        while let Some(rest) = rests.next_if(|rest| rest.to <= span.from) {
            let before = row.checked_sub(1).and_then(|row| spans.get(row));
            gap(out, rest, before);
        }
        if row == FIRST_RUNS && left_out > 0 {
            put!(
                out,
                "<div class=\"gap\">⋯ {left_out} runs of steps left out; the JSON report has them</div>\n"
            );
        }
        let fate = match instance.halted {
            _ if row + 1 < total || instance.step.is_rest() => Fate::Interrupted,
            Some(_) => Fate::Halted,
            None => Fate::UnderWay,
        };
        line(out, &scale, span, fate);
    }
    for rest in rests {
        gap(out, rest, spans.last());
    }
    out.push_str("</div>\n");
}

fn gap(out: &mut String, rest: &Piece, before: Option<&Span<'_>>) {
    let committed = before.is_some_and(|span| span.run.step == Step::Commit && span.run.signal == Some(Signal::Done));
    put!(
        out,
        "<div class=\"gap\">⋯ {} {}</div>\n",
        shown(rest.len()),
        if committed { "committed" } else { "in no step" }
    );
}

/// What became of a step that has no end.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Interrupted,
    Halted,
    UnderWay,
}

fn line(out: &mut String, scale: &Scale, span: &Span<'_>, fate: Fate) {
    let (class, took) = match (span.run.ended, span.run.signal) {
        (None, _) => match fate {
            Fate::Interrupted => ("", "interrupted".to_owned()),
            Fate::Halted => (" x", format!("halted after {}", shown(span.to - span.from))),
            Fate::UnderWay => ("", format!("{} so far", shown(span.to - span.from))),
        },
        (_, Some(Signal::Failed | Signal::Abort | Signal::Rollback)) => (" x", shown(span.to - span.from)),
        _ => (" g", shown(span.to - span.from)),
    };
    let (from, to) = (scale.at(span.from), scale.at(span.to));
    put!(
        out,
        "<div class=\"r\"><span>{} <small class=\"note\">{}</small></span><span class=\"v\">{took}</span><span class=\"b\"><i class=\"p{class}\" style=\"left:{};width:{}\"></i></span></div>\n",
        span.run.step,
        cut(&span.run.note, 300),
        percent(from.min(9_950)),
        percent(to - from)
    );
}
