//! Decoded instructions: operands are indices of registers, branch targets are positions.
//!
//! Immediates and special registers are registers too, filled before a warp starts, so that an
//! operand is always an index.

use super::lanes::{Compare, Fn1, Fn2, Fn3, Fn4};
use super::ty::{Space, Ty};

/// Index of a register of a warp.
pub(crate) type Reg = u32;
/// Index of a predicate of a warp.
pub(crate) type Pred = u32;

/// A predicate, possibly negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cond {
    pub(crate) pred: Pred,
    pub(crate) negated: bool,
}

/// An instruction with its guard and the line it came from.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub(crate) guard: Option<Cond>,
    pub(crate) op: Op,
    pub(crate) line: u32,
}

/// `[base + offset]` in a space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) space: Space,
    pub(crate) base: Reg,
    pub(crate) offset: i64,
}

/// Up to four registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vector {
    pub(crate) regs: [Reg; 4],
    pub(crate) len: usize,
}

impl Vector {
    pub(crate) fn as_slice(&self) -> &[Reg] {
        &self.regs[..self.len]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BoolOp {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReduxOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// What a barrier does besides counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    /// Counts the thread and lets it go on.
    Arrive,
    /// Combines a predicate; a predicate out.
    Reduce(BoolOp, Cond, Pred),
    /// Counts a predicate; a register out.
    Count(Cond, Reg),
}

/// How carries flow through an integer instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryOp {
    Add,
    Sub,
    MadLo,
    MadHi,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Carry {
    pub(crate) op: CarryOp,
    pub(crate) ty: Ty,
    pub(crate) dst: Reg,
    pub(crate) src: [Reg; 3],
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) address: Address,
    pub(crate) ty: Ty,
    pub(crate) regs: Vector,
    /// `.volatile` or `.relaxed` and stronger: exempt from race checks.
    pub(crate) strong: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Atom {
    pub(crate) address: Address,
    pub(crate) op: AtomOp,
    pub(crate) ty: Ty,
    /// None for `red`.
    pub(crate) dst: Option<Reg>,
    pub(crate) value: Reg,
    /// The new value of a compare-and-swap.
    pub(crate) swap: Reg,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    pub(crate) kind: BarrierKind,
    pub(crate) id: Reg,
    pub(crate) count: Option<Reg>,
    pub(crate) aligned: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy16 {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: usize,
    /// Bytes to read; the rest of the destination becomes zeros.
    pub(crate) source_bytes: Option<Reg>,
    /// Where it holds, nothing is read.
    pub(crate) ignore: Option<Cond>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Mma {
    pub(crate) ty: Ty,
    /// 16, or 8 with half as many registers of A and B.
    pub(crate) depth: usize,
    pub(crate) d: Vector,
    pub(crate) a: Vector,
    pub(crate) b: Vector,
    pub(crate) c: Vector,
}

/// An instruction in which several lanes of a warp take part.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Collective {
    Shfl {
        mode: ShflMode,
        dst: Reg,
        valid: Option<Pred>,
        src: Reg,
        lane: Reg,
        clamp: Reg,
    },
    Vote {
        mode: VoteMode,
        src: Cond,
        dst: Reg,
        pred: Pred,
    },
    Match {
        ty: Ty,
        all: bool,
        dst: Reg,
        same: Option<Pred>,
        src: Reg,
    },
    Redux {
        op: ReduxOp,
        ty: Ty,
        dst: Reg,
        src: Reg,
    },
    Sync,
    Mma(Mma),
    LdMatrix {
        address: Address,
        trans: bool,
        dst: Vector,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Map1(Fn1, Reg, Reg),
    Map2(Fn2, Reg, [Reg; 2]),
    Map3(Fn3, Reg, [Reg; 3]),
    Map4(Fn4, Reg, [Reg; 4]),
    Carry(Carry),
    /// `setp`: the comparison combined with a predicate, into a predicate and its complement's.
    Setp {
        test: Compare,
        src: [Reg; 2],
        combine: Option<(BoolOp, Cond)>,
        to: [Option<Pred>; 2],
    },
    /// `set`: `ones` where the comparison holds, 0 elsewhere.
    Set {
        test: Compare,
        src: [Reg; 2],
        combine: Option<(BoolOp, Cond)>,
        ones: u64,
        dst: Reg,
    },
    Select {
        dst: Reg,
        src: [Reg; 2],
        cond: Cond,
    },
    Logic {
        op: BoolOp,
        dst: Pred,
        src: [Cond; 2],
    },
    SetPred {
        dst: Pred,
        src: Cond,
    },
    /// Registers side by side, `bits` each, the first lowest.
    Pack {
        dst: Reg,
        src: Vector,
        bits: u32,
    },
    Unpack {
        dst: Vector,
        src: Reg,
        bits: u32,
    },
    Load(Access),
    Store(Access),
    Atom(Atom),
    /// Copies within local memory: arguments of a function.
    CopyLocal {
        to: usize,
        from: usize,
        bytes: usize,
    },
    CopyAsync(Copy16),
    CommitGroup,
    /// Waits until at most this many groups are under way; None: for all copies.
    WaitGroup(Option<usize>),
    Branch(usize),
    /// Index of a table in the program, and the register that chooses.
    BranchTable(usize, Reg),
    /// Target, and the register that keeps where to go on.
    Call(usize, Reg),
    Return(Reg),
    Exit,
    Trap,
    ActiveMask(Reg),
    /// Instructions of warps executed so far: time, as it is here.
    Clock(Reg),
    /// With the members' mask; None: `.aligned`, every lane.
    Collective(Collective, Option<Reg>),
    Barrier(Barrier),
    /// Orders memory accesses, which here happen in order.
    Nop,
}
