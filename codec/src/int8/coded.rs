//! INT8 as the artifact stores it: scales in the tensor's header, codes in its blocks.

use std::ops::Range;

use super::{Granularity, Int8, Scales, quantisable, rebuild, segments::Segments};
use crate::{
    CodecError, DType, Int8Coding, Scratch,
    bits::take_byte,
    error::corrupt,
    rans::{self, LANES, Stream},
    standalone::{put_table, take_table},
    tables::TOKENS,
};

/// The codes of a block as they are, and coded with one table.
const PLAIN: u8 = 0;
const TABLE: u8 = 1;

/// What a decoder knows of a quantised tensor from its header.
#[derive(Clone, Debug)]
pub(crate) struct Coded {
    dtype: DType,
    base: DType,
    segments: Segments,
    scales: Scales,
}

impl Coded {
    /// Appends what [`Self::take`] reads: the granularity's number, then the scales.
    pub(crate) fn put(int8: &Int8<'_>, out: &mut Vec<u8>) {
        let number = Granularity::ALL
            .iter()
            .position(|g| *g == int8.granularity())
            .unwrap_or(0);
        out.push(u8::try_from(number).unwrap_or(0));
        out.extend_from_slice(&int8.scales().to_bytes());
    }

    /// Reads a header to its end.
    pub(crate) fn take(
        mut data: &[u8],
        dtype: Option<DType>,
        shape: &[u64],
        base: Option<(Option<DType>, &[u64])>,
    ) -> Result<Self, CodecError> {
        let granularity = Granularity::ALL
            .get(usize::from(take_byte(&mut data)?))
            .ok_or_else(|| corrupt("an unknown granularity: a newer version may read it"))?;
        let fits = |dtype: Option<DType>| {
            dtype
                .filter(|dtype| quantisable(*dtype))
                .ok_or_else(|| corrupt("INT8 in a tensor of no float type"))
        };
        let (base_dtype, base_shape) =
            base.ok_or_else(|| corrupt("INT8 in a tensor without a base"))?;
        if base_shape != shape {
            return Err(corrupt("INT8 in a tensor of another shape than its base"));
        }
        let (dtype, base) = (fits(dtype)?, fits(base_dtype)?);
        let elements = shape
            .iter()
            .try_fold(1u64, |n, d| n.checked_mul(*d))
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| corrupt("dtype and shape make no tensor"))?;
        let segments = Segments::new(shape, elements, *granularity);
        let wide = dtype == DType::F64 || base == DType::F64;
        let scales = Scales::from_bytes(data, segments.count(), wide)?;
        Ok(Self {
            dtype,
            base,
            segments,
            scales,
        })
    }

    /// What is to be done with codes, for a decoder elsewhere; `None` where it is in `f64` or between dtypes.
    pub(crate) fn coding(&self) -> Option<Int8Coding<'_>> {
        let Scales::F32(scales) = &self.scales else {
            return None;
        };
        (self.dtype == self.base).then_some(Int8Coding {
            row: self.segments.row,
            group: self.segments.group,
            scales,
        })
    }

    /// Decodes the codes of some elements and rebuilds them.
    pub(crate) fn decode(
        &self,
        elements: Range<usize>,
        data: &[u8],
        base: Option<&[u8]>,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), CodecError> {
        let base = base
            .filter(|base| {
                let width = self.base.word_bytes();
                base.len().is_multiple_of(width) && base.len() / width == self.segments.elements
            })
            .ok_or(CodecError::Base {
                what: "none was given, or one of another length",
            })?;
        let codes = Self::codes(elements.len(), data, scratch)?;
        rebuild(
            self.dtype,
            Some((self.base, base)),
            &self.segments,
            &self.scales,
            elements,
            &codes,
            out,
        );
        Ok(())
    }

    /// So many codes.
    pub(crate) fn codes(
        count: usize,
        mut data: &[u8],
        scratch: &mut Scratch,
    ) -> Result<Vec<i8>, CodecError> {
        let Scratch { tables, tokens, .. } = scratch;
        match take_byte(&mut data)? {
            PLAIN if data.len() == count => {
                tokens.clear();
                tokens.extend_from_slice(data);
            }
            TABLE => {
                let set = take_table(&mut data)?;
                tables.clear();
                tables.resize(count, 1);
                tokens.clear();
                tokens.resize(count, 0);
                let mut stream = Stream::new(data, LANES)?;
                rans::decode(&mut stream, tables, &set, LANES, tokens);
                stream.finish(LANES)?;
            }
            _ => return Err(corrupt("INT8 codes of an unknown form or another number")),
        }
        let codes: Vec<i8> = tokens.iter().map(|token| token.cast_signed()).collect();
        if codes.contains(&i8::MIN) {
            return Err(corrupt("an INT8 code is out of range"));
        }
        Ok(codes)
    }
}

impl Int8<'_> {
    /// Appends the stored codes of some elements.
    pub(crate) fn encode(&self, elements: Range<usize>, scratch: &mut Scratch, out: &mut Vec<u8>) {
        let mut codes = Vec::new();
        self.codes(elements, &mut codes);
        let Scratch {
            tables,
            tokens,
            words,
            missing,
            ..
        } = scratch;
        tokens.clear();
        tokens.extend(codes.iter().map(|code| code.cast_unsigned()));
        let mut counts = [0u32; TOKENS];
        for token in &*tokens {
            counts[usize::from(*token)] += 1;
        }
        let start = out.len();
        out.push(TABLE);
        let set = put_table(&counts, out);
        tables.clear();
        tables.resize(tokens.len(), 1);
        // Every code that occurs has a frequency.
        rans::encode(tables, tokens, &set, LANES, words, missing, out);
        if out.len() - start > tokens.len() {
            out.truncate(start);
            out.push(PLAIN);
            out.extend_from_slice(tokens);
        }
    }
}
