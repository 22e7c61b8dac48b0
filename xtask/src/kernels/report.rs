//! A table of what each kernel occupies.

use std::fmt::{self, Display, Formatter, Write as _};

use anyhow::{Context, Result};

use super::compile::Built;
use super::occupancy::{Block, MAX_WARPS, Multiprocessor, SM_80, SM_90};
use super::source::Unit;
use super::usage::{Entry, Launch};

const BEGIN: &str = "<!-- kernel report -->";
const END: &str = "<!-- end -->";
/// Where a figure is missing: no code for an architecture, no `__launch_bounds__`, or dynamic shared
/// memory that the kernel does not tell.
const NONE: &str = "-";

/// Markdown, a line for every kernel of every unit; `A / B` are sm_80 and sm_90 where they differ.
pub(crate) fn table(built: &[(&Unit, Built)]) -> String {
    let mut text = format!(
        "| code | kernel | threads | registers | spilled bytes | shared bytes | warps of {MAX_WARPS} |\n\
         |---|---|---:|---:|---:|---:|---:|\n"
    );
    for (unit, built) in built {
        for (kernel, launch) in &built.launches {
            let on = |names: &[&str]| figures(built, kernel, names);
            let row = Row {
                kernel,
                launch,
                found: [on(&["sm_80"]), on(&["sm_90", "sm_90a"])],
            };
            writeln!(text, "| `{}` | {row} |", unit.name).expect("a string takes what is written");
        }
    }
    text
}

/// What `kernel` occupies on the first of the architectures `names` that it was built for, and how
/// many bytes it spills there.
fn figures(built: &Built, kernel: &str, names: &[&str]) -> Option<(Entry, u64)> {
    let (_, functions) = built.usage.iter().find(|(name, _)| names.contains(name))?;
    let function = functions.iter().find(|function| function.name == kernel)?;
    Some((function.entry?, function.spill_bytes))
}

/// A kernel's line, without its unit.
struct Row<'a> {
    kernel: &'a str,
    launch: &'a Launch,
    /// On sm_80 and sm_90.
    found: [Option<(Entry, u64)>; 2],
}

impl Display for Row<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [a, b] = self.found.map(|found| found.map(|(entry, _)| entry));
        let shared =
            |entry: Option<Entry>| Some(entry?.static_shared + self.launch.dynamic_shared?);
        let warps = |entry: Option<Entry>, multiprocessor: Multiprocessor| {
            Some(multiprocessor.warps(Block {
                threads: self.launch.threads?,
                registers: entry?.registers,
                shared: shared(entry)?,
            }))
        };
        write!(
            f,
            "`{}` | {} | {} | {} | {} | {}",
            self.kernel,
            number(self.launch.threads),
            pair([a, b].map(|entry| Some(entry?.registers))),
            pair(self.found.map(|found| Some(found?.1))),
            pair([shared(a), shared(b)]),
            pair([warps(a, SM_80), warps(b, SM_90)])
        )
    }
}

/// `A / B`, or one number if both are the same.
fn pair([a, b]: [Option<u64>; 2]) -> String {
    match a == b {
        true => number(a),
        false => format!("{} / {}", number(a), number(b)),
    }
}

fn number(number: Option<u64>) -> String {
    number.map_or(NONE.to_string(), |number| number.to_string())
}

/// `page` with `table` between the markers.
///
/// # Errors
/// If the markers are not there.
pub(crate) fn insert(page: &str, table: &str) -> Result<String> {
    let (before, rest) = page
        .split_once(BEGIN)
        .with_context(|| format!("no line {BEGIN}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("no line {END} after {BEGIN}"))?;
    Ok(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::source::Target;
    use crate::kernels::usage::Function;

    fn function(name: &str, registers: u64, static_shared: u64) -> Function {
        let entry = Some(Entry {
            registers,
            static_shared,
        });
        Function {
            name: name.to_string(),
            spill_bytes: 0,
            entry,
        }
    }

    fn launch(threads: Option<u64>, dynamic_shared: Option<u64>) -> Launch {
        Launch {
            threads,
            dynamic_shared,
        }
    }

    fn unit() -> Unit {
        Unit {
            stem: "attend".to_string(),
            name: "attend_64".to_string(),
            defines: vec![("HEAD_DIM".to_string(), "64".to_string())],
            target: Target::Portable,
        }
    }

    fn built() -> Built {
        let mut spilling = function("attend", 128, 512);
        spilling.spill_bytes = 8;
        Built {
            contents: Vec::new(),
            usage: vec![
                ("sm_80", vec![spilling, function("combine", 40, 0)]),
                (
                    "sm_90",
                    vec![function("attend", 120, 512), function("combine", 40, 0)],
                ),
            ],
            launches: [
                ("attend".to_string(), launch(Some(128), Some(48 << 10))),
                ("combine".to_string(), launch(Some(256), Some(0))),
                ("silent".to_string(), launch(None, None)),
            ]
            .into(),
            warnings: String::new(),
        }
    }

    #[test]
    fn a_kernel_has_a_line_with_both_architectures() {
        let table = table(&[(&unit(), built())]);
        let rows: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| `attend_64` | `attend` | 128 | 128 / 120 | 8 / 0 | 49664 | 12 / 16 |",
                "| `attend_64` | `combine` | 256 | 40 | 0 | 0 | 48 |",
                "| `attend_64` | `silent` | - | - | - | - | - |",
            ]
        );
    }

    #[test]
    fn a_kernel_for_sm_90a_has_no_figures_for_sm_80() {
        let mut built = built();
        built.usage = vec![("sm_90a", vec![function("attend", 168, 0)])];
        let table = table(&[(&unit(), built)]);
        let row = table.lines().nth(2).unwrap();
        assert_eq!(
            row,
            "| `attend_64` | `attend` | 128 | - / 168 | - / 0 | - / 49152 | - / 12 |"
        );
    }

    #[test]
    fn the_table_stands_between_the_markers_however_often_it_is_written() {
        let page = format!("# Kernels\n\n{BEGIN}\n{END}\n\nMore.\n");
        let once = insert(&page, "| a |\n").unwrap();
        assert_eq!(
            once,
            format!("# Kernels\n\n{BEGIN}\n\n| a |\n\n{END}\n\nMore.\n")
        );
        assert_eq!(insert(&once, "| a |\n").unwrap(), once);
        assert!(insert("# Kernels\n", "").is_err());
    }
}
