//! Tables and plots, as data.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// A value of a table or a parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    /// Not measured, or not given by the paper.
    Missing,
    Integer(i64),
    Number(f64),
    Text(String),
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Cell::Number(number)
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        i64::try_from(number).map_or(Cell::Number(number as f64), Cell::Integer)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell::Text(text)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::Missing, Into::into)
    }
}

/// Rows of cells; a row has as many as there are columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Vec<Cell>>,
}

/// Heads a column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Column {
    /// With its unit, like "rate, req/s".
    pub(crate) name: String,
    /// Digits that numbers are shown with.
    pub(crate) decimals: u8,
}

impl Table {
    /// Columns are names and decimals.
    pub(crate) fn new(title: impl Into<String>, columns: &[(&str, u8)]) -> Self {
        let column = |&(name, decimals): &(&str, u8)| Column {
            name: name.to_owned(),
            decimals,
        };
        Self {
            title: title.into(),
            columns: columns.iter().map(column).collect(),
            rows: Vec::new(),
        }
    }

    /// # Errors
    /// If a row has more cells than there are columns, or fewer.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let ragged = self.rows.iter().find(|r| r.len() != self.columns.len());
        ensure!(
            ragged.is_none(),
            "{}: {ragged:?} does not fit the columns",
            self.title
        );
        Ok(())
    }
}

/// A picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plot {
    /// Of the file, after the experiment's name: `NAME-PLOT.svg`.
    pub(crate) name: String,
    pub(crate) title: String,
    /// Below the picture. Where the data comes from is added to it.
    pub(crate) caption: String,
    pub(crate) kind: PlotKind,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
    /// Horizontal lines: a name, and where.
    pub(crate) thresholds: Vec<(String, f64)>,
}

/// How series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PlotKind {
    /// A line each; the paper's are dashed.
    Lines,
    /// At each category of the x axis a bar each, side by side. A point's x is the category's index.
    Bars,
    /// At each category of the x axis one bar, in layers, the first series lowest.
    Stacked,
}

/// An axis.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Axis {
    /// With its unit, like "request rate (req/s)".
    pub(crate) label: String,
    pub(crate) scale: Scale,
    /// Names of places 0, 1, ...: of bars; none for numbers.
    pub(crate) categories: Vec<String>,
    /// Ends here even if values go beyond, which then leave the picture.
    pub(crate) max: Option<f64>,
}

impl Axis {
    pub(crate) fn linear(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            ..Self::default()
        }
    }

    pub(crate) fn log(label: &str) -> Self {
        Self {
            scale: Scale::Log,
            ..Self::linear(label)
        }
    }

    pub(crate) fn categories(label: &str, names: &[&str]) -> Self {
        Self {
            categories: names.iter().map(|&name| name.to_owned()).collect(),
            ..Self::linear(label)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scale {
    #[default]
    Linear,
    Log,
}

/// A curve, or the bars of one colour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Series {
    /// Of the system. The paper's series of the same name has the same colour.
    pub(crate) name: String,
    pub(crate) source: Source,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Where a series comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Source {
    /// Of this figure, like "Fig 12a".
    Paper(String),
    Simulated,
    Measured,
}

const SIMULATED: &str = "simulated";
const MEASURED: &str = "measured on this machine";

impl From<Source> for String {
    fn from(source: Source) -> Self {
        match source {
            Source::Paper(figure) => format!("paper, {figure}"),
            Source::Simulated => SIMULATED.to_owned(),
            Source::Measured => MEASURED.to_owned(),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match (text.as_str(), text.strip_prefix("paper, ")) {
            (SIMULATED, _) => Ok(Source::Simulated),
            (MEASURED, _) => Ok(Source::Measured),
            (_, Some(figure)) => Ok(Source::Paper(figure.to_owned())),
            _ => Err(format!("{text:?} is no source of data")),
        }
    }
}
