//! What the `.cu` files ask to be built.
//!
//! Two kinds of comments steer it, each at the beginning of a line:
//!
//! ```text
//! // variants: HEAD_DIM=64,128 KV=bf16,int8    every combination is built, with -DHEAD_DIM=64 -DKV=bf16
//! // targets: sm_90a                           a cubin for sm_90a; by default PTX and a cubin for sm_90
//! ```

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// What a source is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// PTX that every GPU since sm_80 takes, and a cubin of it for sm_90.
    Portable,
    /// A cubin for sm_90a alone: wgmma and tensor copies exist nowhere else.
    Sm90a,
}

/// One variant of one source.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// The source's name without `.cu`.
    pub(crate) stem: String,
    /// The stem and the variant's values: `attend_decode_64_bf16`.
    pub(crate) name: String,
    pub(crate) defines: Vec<(String, String)>,
    pub(crate) target: Target,
}

impl Unit {
    /// The files that are built of it, from the folder of the sources.
    pub(crate) fn files(&self) -> Vec<String> {
        let name = &self.name;
        match self.target {
            Target::Portable => vec![format!("ptx/{name}.ptx"), format!("sm_90/{name}.cubin")],
            Target::Sm90a => vec![format!("sm_90a/{name}.cubin")],
        }
    }

    /// The source and the values, for messages.
    pub(crate) fn label(&self) -> String {
        let values = self
            .defines
            .iter()
            .map(|(name, value)| format!(" {name}={value}"));
        format!("{}.cu{}", self.stem, values.collect::<String>())
    }
}

/// Everything to be built of the sources in `folder`, by name.
///
/// # Errors
/// If there is no source, one cannot be read or says something that is not understood, or two units
/// would have one name.
pub(crate) fn read(folder: &Path) -> Result<Vec<Unit>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut units = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let stem = stem.with_context(|| format!("a strange name: {}", path.display()))?;
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        units.extend(parse(stem, &text)?);
    }
    ensure!(!units.is_empty(), "no .cu file in {}", folder.display());
    units.sort_by(|a, b| a.name.cmp(&b.name));
    for pair in units.windows(2) {
        let [a, b] = [&pair[0], &pair[1]];
        ensure!(
            a.name != b.name,
            "{} and {} would both be {}",
            a.label(),
            b.label(),
            a.name
        );
    }
    Ok(units)
}

/// The units of one source.
fn parse(stem: &str, text: &str) -> Result<Vec<Unit>> {
    let mut variants = None;
    let mut target = None;
    for (number, line) in (1..).zip(text.lines()) {
        let at = || format!("{stem}.cu, line {number}");
        let Some((key, value)) = line
            .strip_prefix("// ")
            .and_then(|rest| rest.split_once(':'))
        else {
            continue;
        };
        match key {
            "variants" => {
                ensure!(variants.is_none(), "{}: variants again", at());
                variants = Some(parse_variants(value).with_context(at)?);
            }
            "targets" => {
                ensure!(target.is_none(), "{}: targets again", at());
                ensure!(
                    value.trim() == "sm_90a",
                    "{}: the only such target is sm_90a",
                    at()
                );
                target = Some(Target::Sm90a);
            }
            _ => {}
        }
    }
    let units = combinations(&variants.unwrap_or_default())
        .into_iter()
        .map(|defines| {
            let values = defines.iter().map(|(_, value)| format!("_{value}"));
            Unit {
                stem: stem.to_string(),
                name: format!("{stem}{}", values.collect::<String>()),
                defines,
                target: target.unwrap_or(Target::Portable),
            }
        });
    Ok(units.collect())
}

/// `HEAD_DIM=64,128 KV=bf16,int8`
fn parse_variants(text: &str) -> Result<Vec<(String, Vec<String>)>> {
    let word = |text: &str| {
        let ok = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match !text.is_empty() && text.chars().all(ok) {
            true => Ok(text.to_string()),
            false => bail!("`{text}` is neither name nor value"),
        }
    };
    let axes = text.split_whitespace().map(|axis| {
        let (name, values) = axis
            .split_once('=')
            .with_context(|| format!("`{axis}` has no `=`"))?;
        Ok((
            word(name)?,
            values.split(',').map(word).collect::<Result<_>>()?,
        ))
    });
    let axes: Vec<_> = axes.collect::<Result<_>>()?;
    ensure!(!axes.is_empty(), "no variants are named");
    Ok(axes)
}

/// The cross product; one empty combination if there are no axes.
fn combinations(axes: &[(String, Vec<String>)]) -> Vec<Vec<(String, String)>> {
    let mut all = vec![Vec::new()];
    for (name, values) in axes {
        let extend = |defines: &Vec<(String, String)>| {
            let each = values.iter().map(|value| {
                let mut longer = defines.clone();
                longer.push((name.clone(), value.clone()));
                longer
            });
            each.collect::<Vec<_>>()
        };
        all = all.iter().flat_map(extend).collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTEND: &str = "\
// Attends. q, out: [num_tokens, num_heads, head_dim]
// variants: HEAD_DIM=64,80 KV=bf16,int8
#include \"types.cuh\"
    // variants: of an inner line mean nothing
";

    #[test]
    fn every_combination_is_a_unit() {
        let units = parse("attend_decode", ATTEND).unwrap();
        let names: Vec<_> = units.iter().map(|unit| unit.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "attend_decode_64_bf16",
                "attend_decode_64_int8",
                "attend_decode_80_bf16",
                "attend_decode_80_int8"
            ]
        );
        assert_eq!(units[3].label(), "attend_decode.cu HEAD_DIM=80 KV=int8");
    }

    #[test]
    fn a_plain_source_is_one_unit_of_ptx_and_sm_90() {
        let units = parse("rope", "// x: [rows, dim]\nnamespace pageloom {}\n").unwrap();
        assert_eq!(units.len(), 1);
        assert_eq!(units[0].files(), ["ptx/rope.ptx", "sm_90/rope.cubin"]);
    }

    #[test]
    fn a_source_for_sm_90a_has_its_cubin_alone() {
        let units = parse("attend_sm90a", "// targets: sm_90a\n").unwrap();
        assert_eq!(units[0].files(), ["sm_90a/attend_sm90a.cubin"]);
    }

    #[test]
    fn mistakes_are_told_with_file_and_line() {
        for (text, reason) in [
            ("// variants: HEAD_DIM\n", "`HEAD_DIM` has no `=`"),
            ("// variants: HEAD_DIM=64,,80\n", "`` is neither"),
            ("// variants:\n", "no variants"),
            (
                "// variants: A=1\n// variants: B=1\n",
                "line 2: variants again",
            ),
            ("// targets: sm_80\n", "only such target"),
        ] {
            let error = format!("{:#}", parse("x", text).unwrap_err());
            assert!(
                error.contains(reason) && error.starts_with("x.cu, line "),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn two_units_of_one_name_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.cu"), "// variants: N=64\n").unwrap();
        assert_eq!(read(folder.path()).unwrap().len(), 1);
        fs::write(folder.path().join("a_64.cu"), "").unwrap();
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("would both be a_64"), "{error}");
    }
}
