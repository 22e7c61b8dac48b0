use std::fmt;

/// How a tensor's elements are stored.
///
/// The quantised types store blocks of consecutive elements of one row:
///
/// | type | elements | bytes | a block holds |
/// |---|---|---|---|
/// | `Q4_0` | 32 | 18 | d: f16, 32 x 4 bits |
/// | `Q4_1` | 32 | 20 | d, m: f16, 32 x 4 bits |
/// | `Q5_0` | 32 | 22 | d: f16, 32 fifth bits, 32 x 4 bits |
/// | `Q5_1` | 32 | 24 | d, m: f16, 32 fifth bits, 32 x 4 bits |
/// | `Q8_0` | 32 | 34 | d: f16, 32 x i8 |
/// | `Q4K` | 256 | 144 | d, dmin: f16, 8 x (6-bit scale, 6-bit min), 256 x 4 bits |
/// | `Q5K` | 256 | 176 | as `Q4K` with 256 fifth bits before the nibbles |
/// | `Q6K` | 256 | 210 | 256 x 4 bits, 256 x 2 bits, 16 x i8 scales, d: f16 |
///
/// Source: the block structs of ggml's `ggml-common.h`; type numbers from the GGUF specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// 4 bits, scale.
    Q4_0,
    /// 4 bits, scale and minimum.
    Q4_1,
    /// 5 bits, scale.
    Q5_0,
    /// 5 bits, scale and minimum.
    Q5_1,
    /// 8 bits, scale.
    Q8_0,
    /// 4 bits in a super-block of 256.
    Q4K,
    /// 5 bits in a super-block of 256.
    Q5K,
    /// 6 bits in a super-block of 256.
    Q6K,
}

impl WeightType {
    /// Every type.
    pub const ALL: [WeightType; 11] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::Bf16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q8_0,
        WeightType::Q4K,
        WeightType::Q5K,
        WeightType::Q6K,
    ];

    /// Elements in a block; 1 for the types that are not quantised.
    pub const fn block_len(self) -> usize {
        match self {
            WeightType::F32 | WeightType::F16 | WeightType::Bf16 => 1,
            WeightType::Q4K | WeightType::Q5K | WeightType::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            WeightType::F32 => 4,
            WeightType::F16 | WeightType::Bf16 => 2,
            WeightType::Q4_0 => 18,
            WeightType::Q4_1 => 20,
            WeightType::Q5_0 => 22,
            WeightType::Q5_1 => 24,
            WeightType::Q8_0 => 34,
            WeightType::Q4K => 144,
            WeightType::Q5K => 176,
            WeightType::Q6K => 210,
        }
    }

    /// Bytes of a row of `cols` elements; `None` if `cols` is not a whole number of blocks or
    /// the size overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Converts one stored row to f32, bit for bit as ggml's reference does.
    ///
    /// # Panics
    /// If `bytes` is not `row_bytes(out.len())` long.
    pub fn dequantise(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            self.row_bytes(out.len()),
            Some(bytes.len()),
            "bytes of a {self} row"
        );
        super::dequant::dequantise(self, bytes, out);
    }

    /// The type GGUF numbers `id`.
    pub(crate) const fn from_ggml(id: u32) -> Option<WeightType> {
        Some(match id {
            0 => WeightType::F32,
            1 => WeightType::F16,
            2 => WeightType::Q4_0,
            3 => WeightType::Q4_1,
            6 => WeightType::Q5_0,
            7 => WeightType::Q5_1,
            8 => WeightType::Q8_0,
            12 => WeightType::Q4K,
            13 => WeightType::Q5K,
            14 => WeightType::Q6K,
            30 => WeightType::Bf16,
            _ => return None,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            WeightType::F32 => "F32",
            WeightType::F16 => "F16",
            WeightType::Bf16 => "BF16",
            WeightType::Q4_0 => "Q4_0",
            WeightType::Q4_1 => "Q4_1",
            WeightType::Q5_0 => "Q5_0",
            WeightType::Q5_1 => "Q5_1",
            WeightType::Q8_0 => "Q8_0",
            WeightType::Q4K => "Q4_K",
            WeightType::Q5K => "Q5_K",
            WeightType::Q6K => "Q6_K",
        }
    }

    /// All supported types, for messages.
    pub(crate) fn names() -> String {
        Self::ALL.map(WeightType::name).join(", ")
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What GGUF calls a type number that this crate does not read, for messages.
pub(crate) fn ggml_type_name(id: u32) -> String {
    let name = match id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {id}"),
    };
    format!("{name} (number {id})")
}
