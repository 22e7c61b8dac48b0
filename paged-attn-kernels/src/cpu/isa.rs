//! Which instruction set the kernels use, decided once at run time.

/// An instruction set the kernels are compiled for.
///
/// Every kernel exists for each of them; the widest the machine has is used
/// unless the environment variable `PAGELOOM_ISA` (`amx`, `avx512`, `avx2`, `scalar`)
/// asks for a narrower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512, and AMX tiles of bf16 for linear layers with packed weights.
    Amx,
    /// AVX-512 F, BW, DQ and VL: 16 floats an instruction.
    Avx512,
    /// AVX2, FMA and F16C: 8 floats an instruction.
    Avx2,
    /// Plain Rust, left to the compiler; also what other architectures run.
    Scalar,
}

impl Isa {
    /// All instruction sets, widest first.
    pub const ALL: [Isa; 4] = [Isa::Amx, Isa::Avx512, Isa::Avx2, Isa::Scalar];

    /// The widest instruction set of this machine, capped by `PAGELOOM_ISA`.
    ///
    /// An unknown or unsupported value of the variable leaves the choice to the machine.
    pub fn detect() -> Isa {
        let wanted = std::env::var("PAGELOOM_ISA").unwrap_or_default();
        Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == wanted && isa.is_supported())
            .or_else(|| Isa::ALL.into_iter().find(|isa| isa.is_supported()))
            .unwrap_or(Isa::Scalar)
    }

    /// As [`detect`](Self::detect) said when it was first asked.
    pub(crate) fn of_machine() -> Isa {
        static ISA: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *ISA.get_or_init(Isa::detect)
    }

    /// Whether this machine can run it.
    pub fn is_supported(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_supported()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Isa::Avx512.is_supported() && super::linear::has_matrix_unit(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Every instruction set this machine can run, widest first: what tests loop over.
    pub fn all_supported() -> Vec<Isa> {
        Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_supported())
            .collect()
    }

    /// The vector instructions that come with it.
    pub(crate) fn vectors(self) -> Isa {
        match self {
            Isa::Amx => Isa::Avx512,
            isa => isa,
        }
    }

    /// Name as `PAGELOOM_ISA` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Amx => "amx",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Scalar => "scalar",
        }
    }
}
