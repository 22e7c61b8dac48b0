//! Curves and bars.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::ruler::Ruler;
use super::{Chart, Drawn, INK, color, is_papers, paler, text};
use crate::bench::experiment::{Plot, Series};

/// So many bars have a number above each.
const MAX_TOLD_BARS: usize = 16;

pub(super) fn lines(plot: &Plot, chart: &mut Chart<'_, '_>) -> Drawn {
    // The paper's lie below ours.
    let (papers, ours): (Vec<_>, Vec<_>) = plot.series.iter().partition(|s| is_papers(s));
    for series in papers.into_iter().chain(ours) {
        let color = color(plot, &series.name);
        let (x, y) = (
            chart.as_coord_spec().x_spec(),
            chart.as_coord_spec().y_spec(),
        );
        let pieces = inside(&series.points, x, y);
        for piece in pieces {
            if is_papers(series) {
                let style = color.stroke_width(2);
                chart.draw_series(DashedLineSeries::new(piece, 6, 5, style))?;
            } else {
                chart.draw_series(LineSeries::new(piece, color.stroke_width(2)))?;
            }
        }
        let (x, y) = (
            chart.as_coord_spec().x_spec(),
            chart.as_coord_spec().y_spec(),
        );
        let is_inside = |&&point: &&(f64, f64)| is_within(point, x, y);
        let dots: Vec<(f64, f64)> = series.points.iter().filter(is_inside).copied().collect();
        let style = match is_papers(series) {
            true => ShapeStyle::from(color),
            false => color.filled(),
        };
        chart.draw_series(dots.into_iter().map(|point| Circle::new(point, 3, style)))?;
    }
    Ok(())
}

fn is_within((px, py): (f64, f64), x: &Ruler, y: &Ruler) -> bool {
    let inside = |place: f64| (-1e-9..=1.0 + 1e-9).contains(&place);
    inside(x.place(px)) && inside(y.place(py))
}

/// The parts of a curve that lie inside the axes; cut where it leaves them.
fn inside(points: &[(f64, f64)], x: &Ruler, y: &Ruler) -> Vec<Vec<(f64, f64)>> {
    let places: Vec<(f64, f64)> = points
        .iter()
        .map(|p| (x.place(p.0), y.place(p.1)))
        .collect();
    let mut pieces: Vec<Vec<(f64, f64)>> = Vec::new();
    for pair in places.windows(2) {
        let Some((from, to)) = cut(pair[0], pair[1]) else {
            continue;
        };
        let [from, to] = [from, to].map(|(px, py)| (x.value(px), y.value(py)));
        match pieces.last_mut() {
            Some(piece) if piece.last() == Some(&from) => piece.push(to),
            _ => pieces.push(vec![from, to]),
        }
    }
    pieces
}

/// The part of a line inside the unit square (Liang and Barsky 1984).
fn cut(from: (f64, f64), to: (f64, f64)) -> Option<((f64, f64), (f64, f64))> {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let (mut begin, mut end) = (0.0f64, 1.0f64);
    for (along, room) in [
        (-dx, from.0),
        (dx, 1.0 - from.0),
        (-dy, from.1),
        (dy, 1.0 - from.1),
    ] {
        // Ends that lie on the border belong to it.
        let room = if room.abs() < 1e-9 { 0.0 } else { room };
        if along == 0.0 && room < 0.0 {
            return None;
        } else if along < 0.0 {
            begin = begin.max(room / along);
        } else if along > 0.0 {
            end = end.min(room / along);
        }
    }
    let at = |t: f64| (from.0 + t * dx, from.1 + t * dy);
    (begin < end).then(|| (at(begin), at(end)))
}

pub(super) fn bars(plot: &Plot, chart: &mut Chart<'_, '_>) -> Drawn {
    let width = 0.8 / plot.series.len().max(1) as f64;
    let num_bars = plot.series.len() * plot.x.categories.len();
    for (i, series) in plot.series.iter().enumerate() {
        let color = color(plot, &series.name);
        let color = if is_papers(series) {
            paler(color)
        } else {
            color
        };
        let left = -0.4 + i as f64 * width;
        let foot = chart.as_coord_spec().y_spec().foot();
        let bars = series.points.iter().map(|&(x, y)| {
            let corners = [(x + left, foot), (x + left + width * 0.92, y)];
            Rectangle::new(corners, color.filled())
        });
        chart.draw_series(bars)?;
        if num_bars <= MAX_TOLD_BARS {
            let style = text(14, INK).pos(Pos::new(HPos::Center, VPos::Bottom));
            let numbers = series.points.iter().map(|&(x, y)| {
                let digits = if y.abs() < 10.0 { 2 } else { 1 };
                let middle = x + left + width * 0.46;
                Text::new(format!("{y:.digits$}"), (middle, y), style.clone())
            });
            chart.draw_series(numbers)?;
        }
    }
    Ok(())
}

/// The layers' heights at a category, lowest first.
pub(super) fn stack(plot: &Plot, category: usize) -> impl Iterator<Item = f64> {
    let height = move |series: &Series| {
        let at = series.points.iter().find(|(x, _)| *x == category as f64);
        at.map_or(0.0, |(_, y)| *y)
    };
    plot.series.iter().map(height)
}

pub(super) fn stacked(plot: &Plot, chart: &mut Chart<'_, '_>) -> Drawn {
    for category in 0..plot.x.categories.len() {
        let mut foot = 0.0;
        for (series, height) in plot.series.iter().zip(stack(plot, category)) {
            let (left, right) = (category as f64 - 0.33, category as f64 + 0.33);
            let color = color(plot, &series.name);
            let corners = [(left, foot), (right, foot + height)];
            chart.draw_series([Rectangle::new(corners, color.filled())])?;
            let (_, y) = (
                chart.as_coord_spec().x_spec(),
                chart.as_coord_spec().y_spec(),
            );
            // A number where there is room for one.
            if y.place(foot + height) - y.place(foot) > 0.045 {
                let style = text(15, WHITE).pos(Pos::new(HPos::Center, VPos::Center));
                let middle = (category as f64, foot + height / 2.0);
                chart.draw_series([Text::new(format!("{height:.1}"), middle, style)])?;
            }
            foot += height;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::experiment::Axis;

    #[test]
    fn a_curve_is_cut_where_it_leaves_the_axes() {
        let unit = Ruler::new(
            &Axis {
                max: Some(1.0),
                ..Axis::linear("")
            },
            &[0.0],
        );
        let cut = inside(&[(0.0, 0.5), (0.5, 1.5), (1.0, 0.5)], &unit, &unit);
        assert_eq!(cut, [[(0.0, 0.5), (0.25, 1.0)], [(0.75, 1.0), (1.0, 0.5)]]);
        assert!(inside(&[(0.0, 2.0), (1.0, 3.0)], &unit, &unit).is_empty());
    }
}
