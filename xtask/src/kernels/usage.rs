//! What `ptxas -v` says of each function, and what the PTX says of its launches.
//!
//! Dynamic shared memory is known to the launch alone. A kernel that has some tells by a comment in
//! its PTX how much, which costs no instruction:
//!
//! ```text
//! asm("// dynamic shared: %0" ::"n"(SHARED_BYTES));
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// One function of a compiled unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Bytes stored because registers ran out, and loaded again.
    pub(crate) spill_bytes: u64,
    /// `None` for functions that were not inlined; theirs are part of their callers' figures.
    pub(crate) entry: Option<Entry>,
}

/// What a kernel occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Of each thread.
    pub(crate) registers: u64,
    /// Bytes of each block.
    pub(crate) static_shared: u64,
}

/// Reads what `ptxas -v` wrote; functions by name.
///
/// # Errors
/// If a line that should have figures has none, or no kernel is reported.
pub(crate) fn parse(text: &str) -> Result<Vec<Function>> {
    let mut functions: Vec<Function> = Vec::new();
    for line in text.lines() {
        let unreadable = || format!("ptxas says `{line}`, which is not understood");
        if let Some((_, name)) = line.split_once("Function properties for ") {
            let name = name.trim().to_string();
            functions.push(Function {
                name,
                spill_bytes: 0,
                entry: None,
            });
        } else if line.contains("bytes spill stores") {
            let function = functions.last_mut().with_context(unreadable)?;
            let spilled = |what| number_before(line, what).with_context(unreadable);
            function.spill_bytes = spilled(" bytes spill stores")? + spilled(" bytes spill loads")?;
        } else if line.contains(": Used ") {
            let function = functions.last_mut().with_context(unreadable)?;
            function.entry = Some(Entry {
                registers: number_before(line, " registers").with_context(unreadable)?,
                static_shared: number_before(line, " bytes smem").unwrap_or(0),
            });
        }
    }
    let reported = functions.iter().any(|function| function.entry.is_some());
    ensure!(reported, "ptxas reported no kernel:\n{text}");
    functions.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(functions)
}

/// Lines of nvcc or ptxas that its user should see even if all went well.
pub(crate) fn warnings(text: &str) -> impl Iterator<Item = &str> {
    // ptxas reports serialised wgmma as information with a code in parentheses.
    text.lines()
        .filter(|line| line.contains("warning") || line.contains("info    : (C"))
}

/// What the PTX says of a kernel's launches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Launch {
    /// The most threads of a block, from `__launch_bounds__`.
    pub(crate) threads: Option<u64>,
    /// Bytes of dynamic shared memory; `None` if there is some and the kernel does not tell.
    pub(crate) dynamic_shared: Option<u64>,
}

/// The launches of all kernels in `ptx`, by name.
pub(crate) fn launches(ptx: &str) -> BTreeMap<String, Launch> {
    let mut launches = BTreeMap::new();
    let mut arrays: Vec<&str> = Vec::new();
    let mut kernel: Option<&mut Launch> = None;
    let mut told = false;
    for line in ptx.lines().map(str::trim) {
        if let Some(array) = line.strip_prefix(".extern .shared ") {
            let name = array
                .split_whitespace()
                .find_map(|word| word.strip_suffix("[];"));
            arrays.extend(name);
        } else if let Some((_, rest)) = line.split_once(".entry ") {
            let name = rest
                .split(|c: char| c == '(' || c.is_whitespace())
                .next()
                .unwrap_or(rest);
            let launch = launches
                .entry(name.to_string())
                .or_insert(Launch::default());
            launch.dynamic_shared = Some(0);
            (kernel, told) = (Some(launch), false);
        } else if line.contains(".func ") {
            kernel = None;
        } else if let Some(launch) = &mut kernel {
            let uses = |array: &&str| {
                line.split([' ', '\t', ',', ';', '[', ']', '+'])
                    .any(|word| word == *array)
            };
            if let Some(sizes) = line.strip_prefix(".maxntid ") {
                launch.threads = sizes.split(',').try_fold(1, |product, size| {
                    size.trim().parse::<u64>().ok().map(|size| product * size)
                });
            } else if let Some(bytes) = line.strip_prefix("// dynamic shared: ") {
                launch.dynamic_shared = bytes.parse().ok();
                told = true;
            } else if !told && arrays.iter().any(uses) {
                launch.dynamic_shared = None;
            }
        }
    }
    launches
}

/// The number that stands before `what`.
fn number_before(line: &str, what: &str) -> Option<u64> {
    let before = &line[..line.find(what)?];
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // ptxas 13.0.88.
    const SAMPLE: &str = "\
ptxas info    : 16 bytes gmem, 8 bytes cmem[4]
ptxas info    : Compiling entry function 'fill' for 'sm_80'
ptxas info    : Function properties for fill
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 376 bytes cmem[0]
ptxas info    : Compile time = 2.476 ms
ptxas info    : Compiling entry function 'copy' for 'sm_80'
ptxas info    : Function properties for copy
    56 bytes stack frame, 56 bytes spill stores, 48 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 256 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 3.740 ms
ptxas info    : Function properties for _ZN8pageloom5twiceEf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
";

    #[test]
    fn registers_spills_and_shared_memory_are_read() {
        let function = |name: &str, spill_bytes, entry| Function {
            name: name.to_string(),
            spill_bytes,
            entry,
        };
        let entry = |registers, static_shared| {
            Some(Entry {
                registers,
                static_shared,
            })
        };
        assert_eq!(
            parse(SAMPLE).unwrap(),
            [
                function("_ZN8pageloom5twiceEf", 0, None),
                function("copy", 104, entry(10, 256)),
                function("fill", 0, entry(8, 0)),
            ]
        );
    }

    #[test]
    fn output_without_a_kernel_is_an_error() {
        let error = parse("ptxas info    : 0 bytes gmem\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("no kernel"), "{error}");
        let error = parse("ptxas info    : Used 8 registers\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("not understood"), "{error}");
    }

    #[test]
    fn warnings_are_what_ptxas_marks_so() {
        let text = "ptxas warning : Stack size is unknown\n\
                    ptxas info    : (C7510) Potential Performance Loss: wgmma are serialized\n";
        assert_eq!(warnings(text).count(), 2);
        assert_eq!(warnings(SAMPLE).count(), 0);
    }

    // nvcc 13.0.88, shortened.
    const PTX: &str = "\
.extern .shared .align 16 .b8 ring[];
.visible .entry attend(
\t.param .align 8 .b8 attend_param_0[24]
)
.maxntid 16, 8, 1
{
\t// begin inline asm
\t// dynamic shared: 512
\t// end inline asm
\tmov.u32 \t%r2, ring;
}
.entry silent (
)
.maxntid 256
.minnctapersm 2
{
\tst.shared.f32 \t[ring+4], %f1;
}
.visible .entry unbounded(
)
{
\tst.shared.f32 \t[rings], %f1;
}
.func _ZN8pageloom5twiceEf(
)
{
\tst.shared.f32 \t[ring], %f1;
}
";

    #[test]
    fn threads_come_from_launch_bounds_and_dynamic_shared_memory_from_the_comment() {
        let launch = |threads, dynamic_shared| Launch {
            threads,
            dynamic_shared,
        };
        let expected = [
            ("attend".to_string(), launch(Some(128), Some(512))),
            ("silent".to_string(), launch(Some(256), None)),
            ("unbounded".to_string(), launch(None, Some(0))),
        ];
        assert_eq!(launches(PTX), expected.into());
    }
}
