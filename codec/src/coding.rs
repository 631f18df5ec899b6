//! What a coder elsewhere, on a GPU, needs to know to make the same words of the same bytes: the one place where it is told.

use std::ops::Range;

use crate::{
    DType, Matrices,
    block::Method,
    context::{CONTEXTS, Exponent},
    tables::{TOKENS, TableSet},
};

/// The scale of a row whose words are not coded.
pub const UNCHANGED_ROW: i16 = crate::scales::UNCHANGED;

/// How the strips of one tensor are coded.
#[derive(Clone, Debug)]
pub struct Coding<'a> {
    /// Of words and predictions: a float of two or four bytes.
    pub dtype: DType,
    /// Where predictions come from: of the base's words in the tensor's dtype.
    pub moved: Moved<'a>,
    /// Words of a row.
    pub row: usize,
    /// The scale of every row, or [`UNCHANGED_ROW`].
    pub scales: &'a [i16],
    /// Frequencies and which contexts they are for.
    pub tables: CodingTables<'a>,
}

impl Coding<'_> {
    /// Where the exponent sits in a word: shift and mask.
    pub fn exponent(&self) -> (u32, u64) {
        Exponent::of(Some(self.dtype)).parts()
    }
}

/// How codes of INT8 become words of one tensor: by the arithmetic of [`crate::Int8`], from a base of the same dtype.
#[derive(Clone, Copy, Debug)]
pub struct Int8Coding<'a> {
    /// Elements of a row, and of those of its segments that are whole.
    pub row: usize,
    /// See `row`.
    pub group: usize,
    /// The scale of each segment, row after row.
    pub scales: &'a [f32],
}

/// What is done to the base's words to make predictions.
#[derive(Clone, Debug)]
pub enum Moved<'a> {
    /// Nothing.
    No,
    /// A step for every value of the mantissa's top bits is added to words that are neither zero or denormal nor infinite.
    Steps(&'a [i32]),
    /// A low-rank update is added, which gives each word a class too.
    LowRank(Matrices),
}

/// A set of frequency tables.
#[derive(Clone, Copy, Debug)]
pub struct CodingTables<'a>(pub(crate) &'a TableSet);

impl<'a> CodingTables<'a> {
    /// log2 of what each table's frequencies add up to.
    pub fn precision(self) -> u32 {
        self.0.precision()
    }

    /// The lowest context, in the unit of row scales.
    pub fn first(self) -> i32 {
        self.0.first()
    }

    /// The table of each context, from 1, or 0 for none; a map for each class, or one.
    pub fn maps(self) -> &'a [[u8; CONTEXTS]] {
        self.0.maps()
    }

    /// For each table, for each token by its byte: the frequency, and in the upper half where its interval starts.
    pub fn intervals(self) -> &'a [[u32; TOKENS]] {
        self.0.codes().as_chunks().0
    }

    /// Whether two are the same set, not only equal ones.
    pub fn is(self, other: CodingTables<'_>) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

/// The stored form of a block.
#[derive(Clone, Debug)]
pub enum BlockForm<'a> {
    /// The prediction, nothing else.
    Same,
    /// The words as they are.
    Raw(&'a [u8]),
    /// Strips, in order.
    Strips(Vec<StripForm<'a>>),
    /// A code of INT8 for each word, for [`crate::TensorDecoder::int8_codes`].
    Int8(&'a [u8]),
    /// What only this crate decodes.
    Other(Method),
}

/// A strip as an encoder elsewhere makes it.
#[derive(Clone, Copy, Debug)]
pub struct StripCode<'a> {
    /// Words that differ from their predictions.
    pub changed: u64,
    /// Lanes of the coder: 1, 2, 4, ..., 64.
    pub lanes: usize,
    /// States (32 bits a lane) and words (16 bits) of the coder; `None` where every token is 0.
    pub coded: Option<(&'a [u8], &'a [u8])>,
    /// Raw bits.
    pub raw: &'a [u8],
    /// Patches: places in the strip, which ascend, and differences other than zero.
    pub patches: &'a [(u32, i64)],
}

/// A strip's parts; their sizes agree with the block's, and nothing else of them is known to be sound.
#[derive(Clone, Debug)]
pub struct StripForm<'a> {
    /// The tensor's words that it holds.
    pub words: Range<usize>,
    /// Lanes of the coder: 1, 2, 4, ..., 64.
    pub lanes: usize,
    /// States (32 bits a lane) and words (16 bits) of the coder; `None` where every token is 0.
    pub coded: Option<&'a [u8]>,
    /// Raw bits.
    pub raw: &'a [u8],
    /// Patches.
    pub patches: &'a [u8],
}
