//! An axis: where a value lies, and where numbers are written.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::bench::experiment::{Axis, Scale};

/// Marks with a number on a linear axis, about.
const NUM_MARKS: f64 = 6.0;
/// A logarithmic axis writes each value that occurs if they are this few.
const MAX_OWN_MARKS: usize = 10;

/// Of an axis, what a mark's number takes.
const MARK_WIDTH: f64 = 0.07;

/// One axis of a plot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ruler {
    scale: Scale,
    low: f64,
    high: f64,
    marks: Vec<f64>,
    /// Of the values, on a linear axis whose end is not given.
    highest: Option<f64>,
    categories: Vec<String>,
}

impl Ruler {
    /// `values`: all that lie on it.
    pub(super) fn new(axis: &Axis, values: &[f64]) -> Self {
        let values = values
            .iter()
            .copied()
            .filter(|v| axis.max.is_none_or(|max| *v <= max));
        let mut values: Vec<f64> = values.chain(axis.max).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.dedup();
        let mut ruler = match axis.scale {
            _ if !axis.categories.is_empty() => Self::categories(axis.categories.len()),
            Scale::Linear => Self::linear(&values, axis.max),
            Scale::Log => Self::log(&values),
        };
        ruler.categories = axis.categories.clone();
        ruler
    }

    fn categories(num: usize) -> Self {
        Self {
            scale: Scale::Linear,
            low: -0.5,
            high: num as f64 - 0.5,
            marks: (0..num).map(|i| i as f64).collect(),
            highest: None,
            categories: Vec::new(),
        }
    }

    /// From 0, so that lengths compare.
    fn linear(values: &[f64], max: Option<f64>) -> Self {
        let lowest = values.first().copied().unwrap_or(0.0).min(0.0);
        let highest = values.last().copied().unwrap_or(1.0).max(0.0);
        let span = if highest > lowest {
            highest - lowest
        } else {
            1.0
        };
        let step = nice(span / NUM_MARKS);
        let low = (lowest / step).floor() * step;
        // What addition leaves in the last digits is no reason for another mark.
        let high = max.unwrap_or(((lowest + span) / step - 1e-3).ceil() * step);
        let num = ((high - low) / step + 1e-9).floor() as usize;
        Self {
            scale: Scale::Linear,
            low,
            high,
            marks: (0..=num).map(|i| low + i as f64 * step).collect(),
            highest: (max.is_none()).then_some(highest),
            categories: Vec::new(),
        }
    }

    /// On a linear axis that ends where it may, another mark if the highest value would touch the end.
    pub(super) fn with_room(mut self) -> Self {
        if let (Some(highest), [.., before, last]) = (self.highest, self.marks.as_slice()) {
            let step = last - before;
            if highest + 0.02 * (highest - self.low) > self.high {
                self.high = last + step;
                self.marks.push(self.high);
            }
        }
        self
    }

    /// Values that are not above 0 have no place on it, and are left out.
    fn log(values: &[f64]) -> Self {
        let values: Vec<f64> = values.iter().copied().filter(|&v| v > 0.0).collect();
        let (Some(&lowest), Some(&highest)) = (values.first(), values.last()) else {
            return Self::log(&[1.0, 10.0]);
        };
        if lowest == highest {
            return Self::log(&[lowest / 2.0, highest * 2.0]);
        }
        let whole = |v: f64| v.fract() == 0.0;
        let marks = if values.len() <= MAX_OWN_MARKS && values.iter().copied().all(whole) {
            spaced(&values)
        } else {
            let wide = (highest / lowest).log10() > 3.0;
            let digits: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let decades = lowest.log10().floor() as i32..=highest.log10().ceil() as i32;
            let all = decades.flat_map(|d| digits.iter().map(move |m| m * 10f64.powi(d)));
            let all: Vec<f64> = all.collect();
            // The marks next to the values on both sides are the ends.
            let first = all.iter().rposition(|&m| m <= lowest * 1.0001).unwrap_or(0);
            let last = all.iter().position(|&m| m >= highest * 0.9999);
            all[first..=last.unwrap_or(all.len() - 1)].to_vec()
        };
        Self {
            scale: Scale::Log,
            low: lowest.min(marks[0]),
            high: highest.max(marks[marks.len() - 1]),
            marks,
            highest: None,
            categories: Vec::new(),
        }
    }

    /// 0 at one end, 1 at the other.
    pub(super) fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        }
    }

    /// The opposite of [`place`](Self::place).
    pub(super) fn value(&self, place: f64) -> f64 {
        match self.scale {
            Scale::Linear => self.low + place * (self.high - self.low),
            Scale::Log => self.low * (self.high / self.low).powf(place),
        }
    }

    /// Where bars begin.
    pub(super) fn foot(&self) -> f64 {
        match self.scale {
            Scale::Linear => self.low.max(0.0),
            Scale::Log => self.low,
        }
    }
}

/// Those whose numbers have room on a logarithmic axis, the first among them.
fn spaced(values: &[f64]) -> Vec<f64> {
    let width = (values[values.len() - 1] / values[0]).ln();
    let mut kept: Vec<f64> = Vec::new();
    for &value in values {
        let has_room = |last: &f64| (value / last).ln() > MARK_WIDTH * width;
        if kept.last().is_none_or(has_room) {
            kept.push(value);
        }
    }
    kept
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn nice(step: f64) -> f64 {
    let decade = 10f64.powf(step.log10().floor());
    let found = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|m| m * decade >= step * 0.9999);
    found.unwrap_or(10.0) * decade
}

impl Ranged for Ruler {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let place = self.place(*value).clamp(-0.01, 1.01);
        limit.0 + (place * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Ruler {
    fn format_ext(&self, value: &f64) -> String {
        if let Some(name) = self.categories.get(value.round() as usize) {
            return name.clone();
        }
        match value.abs() {
            n if n >= 1e9 => format!("{:e}", value),
            n if n >= 1e6 => format!("{}M", trimmed(short(value / 1e6))),
            n if n >= 1e4 => format!("{}k", trimmed(short(value / 1e3))),
            _ => trimmed(*value),
        }
    }
}

/// To three digits.
fn short(value: f64) -> f64 {
    let scale = if value.abs() >= 100.0 { 1.0 } else { 10.0 };
    (value * scale).round() / scale
}

/// Without what addition leaves in the last digits.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_numbers_and_enclose_the_values() {
        let ruler = Ruler::new(&Axis::linear("x"), &[0.3, 1.93]);
        assert_eq!((ruler.low, ruler.high), (0.0, 2.0));
        assert_eq!(ruler.format_ext(&ruler.marks[1]), "0.5");
        // A stack of 100 % ends at 100 %; curves and bars have room above.
        let ruler = Ruler::new(&Axis::linear("share (%)"), &[8.0, 100.0004]);
        assert_eq!((ruler.high, ruler.marks.len()), (100.0, 6));
        assert_eq!(ruler.with_room().marks[5..], [100.0, 120.0]);
        assert_eq!(
            Ruler::new(&Axis::linear("x"), &[182_790.0]).format_ext(&182_790.0),
            "183k"
        );
        let sizes: Vec<f64> = (0..9).map(|i| f64::from(1 << i)).collect();
        let ruler = Ruler::new(&Axis::log("block size"), &sizes);
        assert_eq!(ruler.marks, sizes);
        assert!((ruler.place(16.0) - 0.5).abs() < 1e-12);
        let ruler = Ruler::new(&Axis::log("pool"), &[1000.0, 40_000.0, 43_924.0]);
        assert_eq!(ruler.marks, [1000.0, 40_000.0]);
        assert_eq!(ruler.high, 43_924.0);
        let ruler = Ruler::new(&Axis::log("y"), &[0.03, 0.9, 0.0]);
        assert_eq!((ruler.low, ruler.high), (0.02, 1.0));
    }

    #[test]
    fn an_axis_of_nothing_or_of_one_value_has_a_width() {
        for axis in [Axis::linear("x"), Axis::log("x")] {
            for values in [&[][..], &[0.0], &[7.0]] {
                let ruler = Ruler::new(&axis, values);
                assert!(ruler.high > ruler.low, "{values:?}: {ruler:?}");
                assert!(!ruler.marks.is_empty());
            }
        }
    }
}
