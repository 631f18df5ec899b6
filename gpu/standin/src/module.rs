//! A parsed module: functions as lists of instructions.

/// The type that an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) kind: Kind,
    /// 1, 2, 4 or 8.
    pub(crate) bytes: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Signed,
    Unsigned,
    Bits,
    Float,
    Predicate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Lane,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Register(u32),
    Immediate(u64),
    Special(Special),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Global or generic; shared memory has its own addresses.
    Global,
    Shared,
    Param,
}

/// `[base + offset]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) space: Space,
    pub(crate) base: Operand,
    pub(crate) offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Move,
    Negate,
    Absolute,
    Not,
    Population,
    LeadingZeros,
    Reverse,
    Root,
    Reciprocal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Subtract,
    Multiply,
    MultiplyHigh,
    MultiplyWide,
    Divide,
    Remainder,
    Minimum,
    Maximum,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
    Exchange,
    Increment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ternary {
    MultiplyAdd,
    MultiplyAddWide,
    Select,
    Extract,
    Permute,
    FunnelLeft,
    FunnelRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    Ballot,
    Any,
    All,
    Uniform,
}

/// What threads of a warp do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Together {
    Shuffle {
        way: Shuffle,
        to: u32,
        within: Option<u32>,
        value: Operand,
        by: Operand,
        clamp: Operand,
    },
    Vote {
        vote: Vote,
        to: u32,
        value: Operand,
        negated: bool,
    },
    Reduce {
        op: Binary,
        ty: Type,
        to: u32,
        value: Operand,
    },
    Barrier,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Unary(Unary, Type, u32, Operand),
    Binary(Binary, Type, u32, Operand, Operand),
    Ternary(Ternary, Type, u32, Operand, Operand, Operand),
    /// `d = insert a into b at c, of length d`.
    Insert(Type, u32, [Operand; 4]),
    Logic(u32, [Operand; 3], u8),
    Pack(Vec<Operand>, u8, u32),
    Unpack(Vec<Option<u32>>, u8, Operand),
    Convert {
        to: Type,
        from: Type,
        integer: Option<Rounding>,
        saturate: bool,
        dst: u32,
        src: Operand,
    },
    Compare {
        by: Compare,
        unordered: bool,
        ty: Type,
        dst: u32,
        opposite: Option<u32>,
        a: Operand,
        b: Operand,
        /// Combined with a predicate, perhaps negated.
        with: Option<(Binary, Operand, bool)>,
    },
    Load(Type, Vec<u32>, Address),
    Store(Type, Address, Vec<Operand>),
    Atomic {
        op: Option<Binary>,
        ty: Type,
        dst: Option<u32>,
        at: Address,
        value: Operand,
        /// Compare-and-swap: `value` is what is expected.
        swap: Option<Operand>,
    },
    Branch(usize),
    Return,
    Warp(Together, Operand),
    Barrier,
    Nothing,
}

#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    /// A predicate register and whether it is negated.
    pub(crate) guard: Option<(u32, bool)>,
    pub(crate) op: Op,
    /// As it stands in the file, for messages.
    pub(crate) text: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) code: Vec<Instruction>,
    pub(crate) registers: usize,
    /// Bytes of shared memory of fixed size.
    pub(crate) shared: usize,
    /// Threads a block may have.
    pub(crate) max_threads: u32,
}

/// The first address of shared memory.
pub(crate) const SHARED: u64 = 0x100_0000;
