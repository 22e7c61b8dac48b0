//! A module and its entries, decoded.

use std::sync::Arc;

use super::decode::Builder;
use super::error::ParseError;
use super::inst::{Inst, Pred, Reg};
use super::{lex, parse};

/// Parsed PTX: a list of kernels.
#[derive(Debug)]
pub struct Module {
    entries: Vec<Entry>,
}

impl Module {
    /// Parses and decodes every kernel of a PTX text, as `nvcc -ptx` writes it.
    ///
    /// # Errors
    /// [`ParseError`] with the line, at the first thing that is no PTX or that the emulator does
    /// not know: nothing is skipped silently.
    pub fn parse(ptx: &str) -> Result<Self, ParseError> {
        let tokens = lex::tokens(ptx)?;
        let items = parse::items(&tokens)?;
        let images = Images {
            constants: items.constants.clone().into(),
            globals: items.globals.clone().into(),
        };
        let entries = items.functions.iter().filter(|function| function.is_entry);
        let entries = entries
            .map(|function| Builder::new(&tokens, &items).entry(function, images.clone()))
            .collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }

    /// The kernel of a name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// All kernels, in the order of the text.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}

/// A module's variables as they are when it is loaded.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    pub(crate) constants: Arc<[u8]>,
    pub(crate) globals: Arc<[u8]>,
}

/// A kernel, ready to be launched.
#[derive(Debug)]
pub struct Entry {
    pub(crate) name: String,
    pub(crate) code: Vec<Inst>,
    pub(crate) tables: Vec<Vec<usize>>,
    pub(crate) num_regs: usize,
    pub(crate) num_preds: usize,
    pub(crate) constants: Vec<(Reg, u64)>,
    pub(crate) specials: Vec<(Reg, Special)>,
    /// A predicate that always holds, where one is named.
    pub(crate) always: Option<Pred>,
    pub(crate) param_bytes: usize,
    pub(crate) shared_bytes: usize,
    pub(crate) local_bytes: usize,
    pub(crate) max_threads: Option<u32>,
    pub(crate) images: Images,
}

impl Entry {
    /// Name in the module.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of its parameters, padded as their types demand.
    pub fn param_bytes(&self) -> usize {
        self.param_bytes
    }

    /// Bytes of shared memory that every block has besides what a launch asks for.
    pub fn static_shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// The most threads a block may have, where the kernel says so (`__launch_bounds__`).
    pub fn max_threads(&self) -> Option<u32> {
        self.max_threads
    }
}

/// Special registers that stay the same as long as a block runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// Index in the block, of a dimension.
    Thread(usize),
    BlockThreads(usize),
    Block(usize),
    GridBlocks(usize),
    Lane,
    Warp,
    Warps,
    /// Lanes equal to, below or above this one.
    LaneMask {
        equal: bool,
        less: bool,
        greater: bool,
    },
    DynamicSharedBytes,
}

impl Special {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        let mask = |equal, less, greater| Special::LaneMask {
            equal,
            less,
            greater,
        };
        Some(match word {
            "%laneid" => Special::Lane,
            "%warpid" => Special::Warp,
            "%nwarpid" => Special::Warps,
            "%lanemask_eq" => mask(true, false, false),
            "%lanemask_lt" => mask(false, true, false),
            "%lanemask_le" => mask(true, true, false),
            "%lanemask_gt" => mask(false, false, true),
            "%lanemask_ge" => mask(true, false, true),
            "%dynamic_smem_size" => Special::DynamicSharedBytes,
            _ => {
                let (name, dimension) = word.rsplit_once('.')?;
                let dimension = ["x", "y", "z"].iter().position(|d| *d == dimension)?;
                match name {
                    "%tid" => Special::Thread(dimension),
                    "%ntid" => Special::BlockThreads(dimension),
                    "%ctaid" => Special::Block(dimension),
                    "%nctaid" => Special::GridBlocks(dimension),
                    _ => return None,
                }
            }
        })
    }
}
