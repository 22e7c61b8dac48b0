//! Fundamental types and state spaces of PTX.

/// A fundamental or packed type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ty {
    U8,
    S8,
    B8,
    U16,
    S16,
    B16,
    U32,
    S32,
    B32,
    U64,
    S64,
    B64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    E4m3x2,
    F32,
    F64,
    Pred,
}

impl Ty {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "u8" => Ty::U8,
            "s8" => Ty::S8,
            "b8" => Ty::B8,
            "u16" => Ty::U16,
            "s16" => Ty::S16,
            "b16" => Ty::B16,
            "u32" => Ty::U32,
            "s32" => Ty::S32,
            "b32" => Ty::B32,
            "u64" => Ty::U64,
            "s64" => Ty::S64,
            "b64" => Ty::B64,
            "f16" => Ty::F16,
            "bf16" => Ty::Bf16,
            "f16x2" => Ty::F16x2,
            "bf16x2" => Ty::Bf16x2,
            "e4m3x2" => Ty::E4m3x2,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            "pred" => Ty::Pred,
            _ => return None,
        })
    }

    /// Size in memory; 0 for predicates, which have none.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Ty::U8 | Ty::S8 | Ty::B8 => 1,
            Ty::U16 | Ty::S16 | Ty::B16 | Ty::F16 | Ty::Bf16 | Ty::E4m3x2 => 2,
            Ty::U32 | Ty::S32 | Ty::B32 | Ty::F32 | Ty::F16x2 | Ty::Bf16x2 => 4,
            Ty::U64 | Ty::S64 | Ty::B64 | Ty::F64 => 8,
            Ty::Pred => 0,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    pub(crate) fn is_integer(self) -> bool {
        !self.is_float() && self != Ty::Pred
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(
            self,
            Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 | Ty::E4m3x2 | Ty::F32 | Ty::F64
        )
    }
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Space {
    /// Any of the others, told apart by address.
    Generic,
    /// Memory of the device.
    Global,
    /// Memory of a block of threads.
    Shared,
    /// Memory of a thread.
    Local,
    /// Parameters of the kernel.
    Param,
    /// Constants of the module.
    Const,
}

impl Space {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "global" => Space::Global,
            "shared" | "shared::cta" => Space::Shared,
            "local" => Space::Local,
            "param" | "param::entry" | "param::func" => Space::Param,
            "const" => Space::Const,
            _ => return None,
        })
    }

    /// Where the space lies among generic addresses. Global addresses are generic ones.
    pub(crate) fn window(self) -> u64 {
        match self {
            Space::Generic | Space::Global => 0,
            Space::Shared => 0x7f00_0000_0000,
            Space::Local => 0x7e00_0000_0000,
            Space::Param => 0x7d00_0000_0000,
            Space::Const => 0x7c00_0000_0000,
        }
    }

    /// The space and the address in it of a generic address.
    pub(crate) fn resolve(generic: u64) -> (Self, u64) {
        let window = generic & !(WINDOW_BYTES - 1);
        for space in [Space::Shared, Space::Local, Space::Param, Space::Const] {
            if window == space.window() {
                return (space, generic - window);
            }
        }
        (Space::Global, generic)
    }
}

/// Bytes of generic addresses that each space but the global one takes.
const WINDOW_BYTES: u64 = 1 << 32;

/// Address of the module's own `.global` variables.
pub(crate) const MODULE_GLOBALS: u64 = 0x7b00_0000_0000;
