//! Plots as SVG: curves and bars, the paper's beside ours, with a legend and where the data comes from.
//!
//! Text is left to the viewer's fonts, so no font is needed to draw. The background is white, so that a
//! plot can be read on a dark page too.

mod names;
mod ruler;
mod shapes;

use anyhow::{anyhow, ensure};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use self::names::Names;
use self::ruler::Ruler;
use super::experiment::{Plot, PlotKind, Series, Source};

const WIDTH: u32 = 900;
const HEIGHT: u32 = 520;
const LEGEND_WIDTH: u32 = 190;
const LINE_HEIGHT: i32 = 17;
const MARGIN_LEFT: u32 = 12;
const MARGIN_RIGHT: u32 = 24;
/// Width of the numbers and the name of the y axis.
const Y_LABELS: u32 = 68;
/// Letters of a line of the caption.
const CAPTION_LEN: usize = 130;
/// Letters of a line of the legend.
const LEGEND_LEN: usize = 21;

/// Told apart by colour-blind readers too (Okabe and Ito 2008), yellow left out.
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
    RGBColor(140, 86, 75),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Ruler, Ruler>>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// The picture.
///
/// # Errors
/// If a point of bars lies at no category.
pub(crate) fn draw(plot: &Plot) -> anyhow::Result<String> {
    let categories = plot.x.categories.len();
    if plot.kind != PlotKind::Lines {
        let mut points = plot.series.iter().flat_map(|series| &series.points);
        let wrong = points.find(|(x, _)| x.fract() != 0.0 || !(0.0..categories as f64).contains(x));
        ensure!(
            wrong.is_none(),
            "a bar at {wrong:?}, of {categories} categories"
        );
    }
    let mut svg = String::new();
    draw_to(plot, &mut svg).map_err(|error| anyhow!("{error}"))?;
    Ok(svg)
}

fn draw_to(plot: &Plot, svg: &mut String) -> Drawn {
    let caption = wrapped(&caption(plot), CAPTION_LEN);
    let footer = caption.len() as u32 * LINE_HEIGHT as u32 + 14;
    let root = SVGBackend::with_string(svg, (WIDTH, HEIGHT + footer)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(plot.title.clone(), (16, 12), text(22, INK)))?;
    for (i, line) in caption.into_iter().enumerate() {
        let place = (16, HEIGHT as i32 + i as i32 * LINE_HEIGHT);
        root.draw(&Text::new(line, place, text(15, RGBColor(90, 90, 90))))?;
    }
    let (above, _) = root.split_vertically(HEIGHT);
    let (left, right) = above.split_horizontally(WIDTH - LEGEND_WIDTH);
    let mut chart = frame(plot, &left)?;
    match plot.kind {
        PlotKind::Lines => shapes::lines(plot, &mut chart)?,
        PlotKind::Bars => shapes::bars(plot, &mut chart)?,
        PlotKind::Stacked => shapes::stacked(plot, &mut chart)?,
    }
    thresholds(plot, &mut chart)?;
    legend(plot, &right)?;
    root.present()
}

fn text(size: i32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color)
}

/// Axes and grid.
fn frame<'a, 'b>(
    plot: &Plot,
    area: &Area<'b>,
) -> Result<Chart<'a, 'b>, DrawingAreaErrorKind<std::io::Error>> {
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let xs: Vec<f64> = points().map(|(x, _)| *x).collect();
    let mut ys: Vec<f64> = match plot.kind {
        PlotKind::Stacked => (0..plot.x.categories.len())
            .map(|i| shapes::stack(plot, i).sum())
            .collect(),
        _ => points().map(|(_, y)| *y).collect(),
    };
    ys.extend(plot.thresholds.iter().map(|(_, y)| *y));
    let y = Ruler::new(&plot.y, &ys);
    let y = match plot.kind {
        // Nothing is written above them, and they often end at 100 %.
        PlotKind::Stacked => y,
        _ => y.with_room(),
    };
    let names = Names::of(plot);
    let mut chart = ChartBuilder::on(area)
        .margin_top(52)
        .margin_right(MARGIN_RIGHT)
        .margin_bottom(14)
        .margin_left(MARGIN_LEFT)
        .x_label_area_size(52 + names.as_ref().map_or(0, Names::extra_height))
        .y_label_area_size(Y_LABELS)
        .build_cartesian_2d(Ruler::new(&plot.x, &xs).with_room(), y)?;
    let mut mesh = chart.configure_mesh();
    let nothing = |_: &f64| String::new();
    if names.is_some() {
        mesh.x_label_formatter(&nothing);
    }
    if plot.kind != PlotKind::Lines {
        mesh.disable_x_mesh();
    }
    mesh.bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(RGBColor(120, 120, 120))
        .x_desc(&plot.x.label)
        .y_desc(&plot.y.label)
        .label_style(text(16, INK))
        .axis_desc_style(text(18, INK))
        .x_labels(50)
        .y_labels(50)
        .draw()?;
    if let Some(names) = names {
        names.draw(area, &chart)?;
    }
    Ok(chart)
}

/// Of a series: that of its name's first appearance.
fn color(plot: &Plot, name: &str) -> RGBColor {
    let mut names: Vec<&str> = Vec::new();
    for series in &plot.series {
        if !names.contains(&series.name.as_str()) {
            names.push(&series.name);
        }
    }
    let place = names.iter().position(|&other| other == name);
    COLORS[place.unwrap_or(0) % COLORS.len()]
}

fn is_papers(series: &Series) -> bool {
    matches!(series.source, Source::Paper(_))
}

/// Half way to white.
fn paler(RGBColor(r, g, b): RGBColor) -> RGBColor {
    let half = |c: u8| 255 - (255 - c) / 2;
    RGBColor(half(r), half(g), half(b))
}

fn thresholds(plot: &Plot, chart: &mut Chart<'_, '_>) -> Drawn {
    let ends = chart.x_range();
    for (name, y) in &plot.thresholds {
        let gray = RGBColor(110, 110, 110);
        let line = [(ends.start, *y), (ends.end, *y)];
        chart.draw_series(DashedLineSeries::new(line, 2, 3, gray.stroke_width(1)))?;
        // To the right, where rising curves have left; what is below it stays visible, the name readable.
        let (right, below) = chart.backend_coord(&(ends.end, *y));
        let width = (name.chars().count() as f64 * 7.2) as i32;
        let area = chart.plotting_area().strip_coord_spec();
        let (base_x, base_y) = area.get_base_pixel();
        let (x, y) = (right - base_x - 6, below - base_y - 2);
        let corners = [(x - width - 3, y - 15), (x + 3, y)];
        area.draw(&Rectangle::new(corners, WHITE.mix(0.8).filled()))?;
        let style = text(14, gray).pos(Pos::new(HPos::Right, VPos::Bottom));
        area.draw(&Text::new(name.clone(), (x, y), style))?;
    }
    Ok(())
}

fn legend(plot: &Plot, area: &Area<'_>) -> Drawn {
    let mut y = 60;
    // Layers from top to bottom, as they lie.
    let order: Vec<&Series> = match plot.kind {
        PlotKind::Stacked => plot.series.iter().rev().collect(),
        _ => plot.series.iter().collect(),
    };
    for series in order {
        let is_ours = |other: &&Series| other.name == series.name && !is_papers(other);
        if plot.kind == PlotKind::Stacked
            && is_papers(series)
            && plot.series.iter().any(|other| is_ours(&other))
        {
            continue;
        }
        let color = color(plot, &series.name);
        let ends = [(0, y + 7), (24, y + 7)];
        match (plot.kind, is_papers(series)) {
            (PlotKind::Lines, false) => {
                area.draw(&PathElement::new(ends, color.stroke_width(2)))?;
                area.draw(&Circle::new((12, y + 7), 3, color.filled()))?;
            }
            (PlotKind::Lines, true) => {
                for x in [0, 9, 18] {
                    let dash = [(x, y + 7), (x + 6, y + 7)];
                    area.draw(&PathElement::new(dash, color.stroke_width(2)))?;
                }
            }
            (_, papers) => {
                let color = if papers { paler(color) } else { color };
                area.draw(&Rectangle::new([(6, y), (20, y + 14)], color.filled()))?;
            }
        }
        let name = match is_papers(series) && plot.kind != PlotKind::Stacked {
            true => format!("{}, paper", series.name),
            false => series.name.clone(),
        };
        for line in wrapped(&name, LEGEND_LEN) {
            area.draw(&Text::new(line, (32, y + 1), text(16, INK)))?;
            y += LINE_HEIGHT;
        }
        y += 6;
    }
    Ok(())
}

/// The caption, and where the series come from.
pub(crate) fn caption(plot: &Plot) -> String {
    let mut sources: Vec<String> = Vec::new();
    for series in &plot.series {
        let source = match (&series.source, plot.kind) {
            (Source::Paper(figure), PlotKind::Lines) => format!("the paper's {figure} (dashed)"),
            (Source::Paper(figure), PlotKind::Bars) => format!("the paper's {figure} (paler)"),
            (Source::Paper(figure), PlotKind::Stacked) => format!("the paper's {figure}"),
            (other, _) => String::from(other.clone()),
        };
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    let text = format!("{} Data: {}.", plot.caption, sources.join("; "));
    text.trim_start().to_owned()
}

/// Lines of at most `len` letters, but for words that are longer.
fn wrapped(text: &str, len: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= len => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::experiment::Axis;
    use super::*;

    fn plot(kind: PlotKind) -> Plot {
        let series = |name: &str, source, points: &[(f64, f64)]| Series {
            name: name.to_owned(),
            source,
            points: points.to_vec(),
        };
        Plot {
            name: "a".to_owned(),
            title: "Waste & <rate>".to_owned(),
            caption: "Of all.".to_owned(),
            kind,
            x: match kind {
                PlotKind::Lines => Axis::linear("rate (req/s)"),
                _ => Axis::categories("system", &["Max", "Pow2"]),
            },
            y: Axis::linear("share (%)"),
            series: vec![
                series("tokens", Source::Simulated, &[(0.0, 20.0), (1.0, 27.0)]),
                series("tokens", Source::Paper("Fig 2".to_owned()), &[(0.0, 21.0)]),
            ],
            thresholds: vec![("half".to_owned(), 13.5)],
        }
    }

    #[test]
    fn every_kind_is_drawn_with_its_text() {
        for kind in [PlotKind::Lines, PlotKind::Bars, PlotKind::Stacked] {
            let svg = draw(&plot(kind)).unwrap();
            assert_eq!(svg, draw(&plot(kind)).unwrap());
            for part in [
                "Waste &amp; &lt;rate&gt;",
                "share (%)",
                "half",
                "the paper&apos;s Fig 2",
            ] {
                assert!(svg.contains(part), "{kind:?}: {part}: {svg}");
            }
            assert!(!svg.contains("NaN"), "{svg}");
        }
    }

    #[test]
    fn bars_that_lie_nowhere_are_refused() {
        let mut plot = plot(PlotKind::Bars);
        plot.series[0].points.push((2.0, 1.0));
        assert!(draw(&plot).is_err());
    }
}
