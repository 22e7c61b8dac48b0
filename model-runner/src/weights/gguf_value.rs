use std::fmt;

/// Deepest nesting of arrays in arrays; no known file nests at all.
const MAX_ARRAY_DEPTH: u32 = 4;

/// Type numbers of metadata values.
mod kind {
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
}

/// Where a metadata value starts and its type number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) kind: u32,
    pub(super) offset: usize,
}

/// A metadata value, borrowed from the file. Integers and floats of all widths are widened.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum GgufValue<'a> {
    /// Unsigned integer.
    Uint(u64),
    /// Signed integer.
    Int(i64),
    /// Floating-point number.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// UTF-8 string.
    Str(&'a str),
    /// Array of values of one type.
    Array(GgufArray<'a>),
}

impl GgufValue<'_> {
    pub(super) fn kind_name(&self) -> &'static str {
        match self {
            GgufValue::Uint(_) => "an unsigned integer",
            GgufValue::Int(_) => "a signed integer",
            GgufValue::Float(_) => "a float",
            GgufValue::Bool(_) => "a boolean",
            GgufValue::Str(_) => "a string",
            GgufValue::Array(_) => "an array",
        }
    }
}

/// An array in the metadata; elements are decoded as they are asked for.
#[derive(Clone, Copy, PartialEq)]
pub struct GgufArray<'a> {
    kind: u32,
    len: usize,
    file: &'a [u8],
    offset: usize,
}

impl<'a> GgufArray<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = GgufValue<'a>> + use<'a> {
        let mut cursor = Cursor::at(self.file, self.offset);
        let kind = self.kind;
        (0..self.len).map_while(move |_| cursor.value(kind).ok())
    }

    /// The elements if they are strings.
    pub fn strings(&self) -> Option<impl Iterator<Item = &'a str> + use<'a>> {
        (self.kind == kind::STRING).then(|| {
            self.iter().filter_map(|value| match value {
                GgufValue::Str(s) => Some(s),
                _ => None,
            })
        })
    }

    /// The elements if they are integers.
    pub fn ints(&self) -> Option<impl Iterator<Item = i64> + use<'a>> {
        matches!(self.kind, 0..=5 | 10 | 11).then(|| {
            self.iter().map(|value| match value {
                GgufValue::Int(x) => x,
                GgufValue::Uint(x) => i64::try_from(x).unwrap_or(i64::MAX),
                _ => 0,
            })
        })
    }

    /// The elements if they are floats.
    pub fn floats(&self) -> Option<impl Iterator<Item = f64> + use<'a>> {
        matches!(self.kind, 6 | 12).then(|| {
            self.iter().map(|value| match value {
                GgufValue::Float(x) => x,
                _ => f64::NAN,
            })
        })
    }
}

impl fmt::Debug for GgufArray<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} values of type {}]", self.len, self.kind)
    }
}

/// Reads forward through the file; every read is checked against its end.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Cursor<'a> {
        Cursor::at(file, 0)
    }

    pub(super) fn at(file: &'a [u8], offset: usize) -> Cursor<'a> {
        Cursor { file, offset }
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], String> {
        let rest = self.file.get(self.offset..).unwrap_or_default();
        let bytes = rest
            .get(..len)
            .ok_or_else(|| format!("{len} bytes are expected, the file has {} more", rest.len()))?;
        self.offset += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn len(&mut self) -> Result<usize, String> {
        let len = self.u64()?;
        usize::try_from(len).map_err(|_| format!("length {len} is past the address space"))
    }

    /// Strings are UTF-8 by the specification, those of a vocabulary too: byte tokens are spelled
    /// with byte-level letters or as `<0xNN>`.
    pub(super) fn string(&mut self) -> Result<&'a str, String> {
        let len = self.len()?;
        let bytes = self.bytes(len)?;
        str::from_utf8(bytes).map_err(|error| format!("a string is not UTF-8: {error}"))
    }

    pub(super) fn value(&mut self, kind: u32) -> Result<GgufValue<'a>, String> {
        Ok(match kind {
            0 => GgufValue::Uint(self.array().map(u8::from_le_bytes)?.into()),
            1 => GgufValue::Int(self.array().map(i8::from_le_bytes)?.into()),
            2 => GgufValue::Uint(self.array().map(u16::from_le_bytes)?.into()),
            3 => GgufValue::Int(self.array().map(i16::from_le_bytes)?.into()),
            4 => GgufValue::Uint(self.u32()?.into()),
            5 => GgufValue::Int(self.array().map(i32::from_le_bytes)?.into()),
            6 => GgufValue::Float(self.array().map(f32::from_le_bytes)?.into()),
            kind::BOOL => match self.array::<1>()?[0] {
                0 => GgufValue::Bool(false),
                1 => GgufValue::Bool(true),
                byte => return Err(format!("a boolean is {byte}")),
            },
            kind::STRING => GgufValue::Str(self.string()?),
            kind::ARRAY => {
                let (kind, len) = (self.u32()?, self.len()?);
                let offset = self.offset;
                // Arrays of arrays have to be walked to find where the next value starts.
                self.skip_elements(kind, len, 1)?;
                GgufValue::Array(GgufArray {
                    kind,
                    len,
                    file: self.file,
                    offset,
                })
            }
            10 => GgufValue::Uint(self.u64()?),
            11 => GgufValue::Int(self.array().map(i64::from_le_bytes)?),
            12 => GgufValue::Float(self.array().map(f64::from_le_bytes)?),
            _ => return Err(format!("unknown value type {kind}")),
        })
    }

    /// Steps over a value and checks all of it: lengths, UTF-8, booleans, nesting.
    pub(super) fn skip_value(&mut self, kind: u32, depth: u32) -> Result<(), String> {
        if kind != kind::ARRAY {
            return self.value(kind).map(drop);
        }
        if depth == MAX_ARRAY_DEPTH {
            return Err(format!("arrays are nested deeper than {MAX_ARRAY_DEPTH}"));
        }
        let (kind, len) = (self.u32()?, self.len()?);
        self.skip_elements(kind, len, depth + 1)
    }

    fn skip_elements(&mut self, kind: u32, len: usize, depth: u32) -> Result<(), String> {
        let size = match kind {
            0 | 1 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            kind::BOOL | kind::STRING | kind::ARRAY => {
                for _ in 0..len {
                    self.skip_value(kind, depth)?;
                }
                return Ok(());
            }
            _ => return Err(format!("unknown type {kind} of an array's values")),
        };
        let bytes = len
            .checked_mul(size)
            .ok_or_else(|| format!("an array of {len} values"))?;
        self.bytes(bytes).map(drop)
    }
}
