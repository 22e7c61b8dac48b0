//! Names of categories that have no room on one line.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{
    Area, Chart, Drawn, INK, LEGEND_WIDTH, MARGIN_LEFT, MARGIN_RIGHT, WIDTH, Y_LABELS, text,
};
use crate::bench::experiment::Plot;

/// Pixels of a letter, of a line of names and of one that is broken.
const LETTER: f64 = 6.8;
const SMALL_LETTER: f64 = 5.6;
const SMALL_SIZE: i32 = 11;
const SMALL_LINE: i32 = 13;

/// The names below the x axis, each in lines.
pub(super) struct Names(Vec<Vec<String>>);

impl Names {
    /// None if all have room as they are, or there are none.
    pub(super) fn of(plot: &Plot) -> Option<Self> {
        let names = &plot.x.categories;
        let longest = names.iter().map(|name| name.chars().count()).max()?;
        let width = WIDTH - LEGEND_WIDTH - MARGIN_LEFT - Y_LABELS - MARGIN_RIGHT;
        let each = f64::from(width) / names.len() as f64;
        let len = (each / SMALL_LETTER) as usize;
        (longest as f64 * LETTER > each)
            .then(|| Self(names.iter().map(|name| broken(name, len)).collect()))
    }

    /// Pixels that they need beyond a line.
    pub(super) fn extra_height(&self) -> u32 {
        let most = self.0.iter().map(Vec::len).max().unwrap_or(0);
        (most as u32).saturating_sub(2) * SMALL_LINE as u32
    }

    pub(super) fn draw(&self, area: &Area<'_>, chart: &Chart<'_, '_>) -> Drawn {
        let style = text(SMALL_SIZE, INK).pos(Pos::new(HPos::Center, VPos::Top));
        let foot = chart.y_range().start;
        for (place, lines) in self.0.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(place as f64, foot));
            for (line, below) in lines.iter().zip(0..) {
                let at = (x, y + 9 + below * SMALL_LINE);
                area.draw(&Text::new(line.clone(), at, style.clone()))?;
            }
        }
        Ok(())
    }
}

/// Lines of at most `len` letters, broken behind hyphens and at blanks; a part that is longer is one.
fn broken(name: &str, len: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in name.split_inclusive(['-', ' ']) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + part.trim_end().chars().count() <= len => {
                line.push_str(part);
            }
            _ => lines.push(part.to_owned()),
        }
    }
    lines
        .iter()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_broken_where_they_can_be() {
        assert_eq!(broken("paged", 3), ["paged"]);
        assert_eq!(broken("swap-or-recompute", 9), ["swap-or-", "recompute"]);
        assert_eq!(broken("a b cd", 3), ["a b", "cd"]);
    }
}
