//! Compiled kernels, by name.

use super::CudaError;
use super::embedded::CODES;

/// One source file compiled for one choice of its variants.
#[derive(Debug)]
pub(crate) struct Code {
    /// The source's stem and the values of its variants: `attend_decode_64_bf16`.
    pub(crate) name: &'static str,
    /// For any GPU of capability 8.0 or more; the driver compiles it when it is loaded.
    pub(crate) ptx: &'static str,
    /// Machine code for capability 9.0.
    pub(crate) sm_90: &'static [u8],
}

/// The code of `stem` for the variants' values, in the order in which the source lists them.
///
/// # Errors
/// [`CudaError::NoKernel`] if it was not compiled for them.
pub(crate) fn find(stem: &str, variant: &[&str]) -> Result<&'static Code, CudaError> {
    let name = std::iter::once(&stem)
        .chain(variant)
        .copied()
        .collect::<Vec<_>>()
        .join("_");
    match CODES.binary_search_by(|code| code.name.cmp(&name)) {
        Ok(i) => Ok(&CODES[i]),
        Err(_) => Err(CudaError::NoKernel { name }),
    }
}

/// The PTX of a kernel for one choice of its variants, `attend_prefill_128_bf16` for example: what is
/// launched where there is no machine code for a device, to be read or emulated on its own.
pub fn ptx(name: &str) -> Option<&'static str> {
    find(name, &[]).map(|code| code.ptx).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_so_that_each_is_found() {
        assert!(CODES.is_sorted_by_key(|code| code.name));
        for code in CODES {
            assert_eq!(find(code.name, &[]).unwrap().name, code.name);
        }
        assert!(matches!(
            find("attend_decode", &["7", "bf16"]),
            Err(CudaError::NoKernel { name }) if name == "attend_decode_7_bf16"
        ));
    }
}
