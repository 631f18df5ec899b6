//! Blocks without a base: floats as entropy-coded exponents with raw signs and mantissas, the rest by zstd.

use crate::{
    CodecError, DType, Scratch,
    bits::{BitReader, BitWriter, take_bytes, take_size},
    block::Method,
    context::CONTEXTS,
    dtype::FloatLayout,
    error::corrupt,
    rans::{self, LANES, Stream},
    tables::{TOKENS, TableSet},
    train,
    word::{load, store},
};

/// Level of zstd where it is all there is: the bytes are integers or of unknown kind.
const LEVEL: i32 = 3;

/// The smallest stand-alone form of `target`, written to `out`.
pub(crate) fn encode(
    dtype: Option<DType>,
    target: &[u8],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Method {
    out.clear();
    if let Some((width, layout)) = split(dtype)
        && target.len() >= 256
    {
        match width {
            1 => encode_split::<1>(layout, target, scratch, out),
            2 => encode_split::<2>(layout, target, scratch, out),
            _ => encode_split::<4>(layout, target, scratch, out),
        }
        if out.len() * 8 < target.len() * 7 {
            return Method::StandAlone;
        }
    }
    if let Ok(small) = zstd::bulk::compress(target, LEVEL)
        && small.len() < target.len()
        && (out.is_empty() || small.len() < out.len())
    {
        out.clear();
        out.extend_from_slice(&small);
        return Method::Zstd;
    }
    if out.is_empty() || out.len() >= target.len() {
        out.clear();
        out.extend_from_slice(target);
        return Method::Raw;
    }
    Method::StandAlone
}

/// Words to each whose exponent is looked at to tell what [`encode`] would come to; no divisor of a usual row's length.
const STRIDE: usize = 7;
/// Words below which nobody needs to be told.
const FEW: usize = 1 << 14;

/// About how many bytes [`encode`] makes of floats whose exponents say enough; `None` where that is to be tried.
pub(crate) fn estimate(dtype: Option<DType>, target: &[u8]) -> Option<usize> {
    let (width, FloatLayout { exponent, mantissa }) = split(dtype)?;
    let words = target.len() / width;
    if words < FEW {
        return None;
    }
    let mut counts = [0u32; TOKENS];
    for i in (0..words).step_by(STRIDE) {
        let word = match width {
            1 => load::<1>(target, i),
            2 => load::<2>(target, i),
            _ => load::<4>(target, i),
        };
        counts[usize::from((word >> mantissa).to_le_bytes()[0]) & ((1 << exponent) - 1)] += 1;
    }
    let bits = train::entropy(&counts) * STRIDE as f64 + f64::from(mantissa + 1) * words as f64;
    let bytes = bytes_of(bits);
    (bytes * 8 < target.len() * 7).then_some(bytes)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "of a block at most"
)]
fn bytes_of(bits: f64) -> usize {
    (bits / 8.0) as usize
}

/// Floats whose exponents are bytes at most.
fn split(dtype: Option<DType>) -> Option<(usize, FloatLayout)> {
    let dtype = dtype?;
    dtype
        .layout()
        .filter(|l| l.exponent <= 8)
        .map(|l| (dtype.word_bytes(), l))
}

/// Appends the one table that tokens of these counts are coded with: varint length, a table set.
pub(crate) fn put_table(counts: &[u32; TOKENS], out: &mut Vec<u8>) -> TableSet {
    let frequencies = train::normalise_all(counts);
    let set = TableSet::build(12, 0, vec![[1; CONTEXTS]], &[frequencies]);
    let mut table = Vec::new();
    set.put(&mut table);
    crate::bits::put_varint(out, table.len() as u64);
    out.extend_from_slice(&table);
    set
}

/// The inverse of [`put_table`].
pub(crate) fn take_table(data: &mut &[u8]) -> Result<TableSet, CodecError> {
    let left = data.len();
    let length = take_size(data, left)?;
    let mut table = take_bytes(data, length)?;
    let set = TableSet::take(&mut table, 1)?;
    if table.is_empty() && set.tables() == 1 {
        Ok(set)
    } else {
        Err(corrupt("a single table has another form"))
    }
}

/// Table, states and words of the exponents, then signs and mantissas.
fn encode_split<const W: usize>(
    layout: FloatLayout,
    target: &[u8],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) {
    let FloatLayout { exponent, mantissa } = layout;
    let words = target.len() / W;
    let Scratch {
        tables,
        tokens,
        words: coder_words,
        missing,
        bytes,
        ..
    } = scratch;
    let mut counts = [0u32; TOKENS];
    tokens.clear();
    bytes.clear();
    let mut raw = BitWriter::new(bytes);
    for i in 0..words {
        let word = load::<W>(target, i);
        let token = u8::try_from(word >> mantissa & ((1 << exponent) - 1)).unwrap_or(0);
        counts[usize::from(token)] += 1;
        tokens.push(token);
        let sign = word >> (mantissa + exponent) & 1;
        raw.put(
            word & ((1 << mantissa) - 1) | sign << mantissa,
            mantissa + 1,
        );
    }
    raw.finish();
    tables.clear();
    tables.resize(words, 1);
    let set = put_table(&counts, out);
    out.extend_from_slice(bytes);
    // Every exponent that occurs has a frequency.
    rans::encode(tables, tokens, &set, LANES, coder_words, missing, out);
}

/// Decodes what [`encode`] made.
pub(crate) fn decode(
    method: Method,
    dtype: Option<DType>,
    data: &[u8],
    out: &mut [u8],
    scratch: &mut Scratch,
) -> Result<(), CodecError> {
    match method {
        Method::Raw if data.len() == out.len() => out.copy_from_slice(data),
        Method::Zstd => match zstd::bulk::decompress_to_buffer(data, out) {
            Ok(n) if n == out.len() => {}
            _ => return Err(corrupt("a zstd frame does not decode")),
        },
        Method::StandAlone => {
            let (width, layout) = split(dtype)
                .ok_or_else(|| corrupt("a float block in a tensor of no float type"))?;
            match width {
                1 => decode_split::<1>(layout, data, out, scratch)?,
                2 => decode_split::<2>(layout, data, out, scratch)?,
                _ => decode_split::<4>(layout, data, out, scratch)?,
            }
        }
        _ => return Err(corrupt("a raw block has another length")),
    }
    Ok(())
}

fn decode_split<const W: usize>(
    layout: FloatLayout,
    mut data: &[u8],
    out: &mut [u8],
    scratch: &mut Scratch,
) -> Result<(), CodecError> {
    let FloatLayout { exponent, mantissa } = layout;
    let words = out.len() / W;
    let set = take_table(&mut data)?;
    let raw_length = (words as u64 * u64::from(mantissa + 1)).div_ceil(8);
    let mut raw = BitReader::new(take_bytes(
        &mut data,
        usize::try_from(raw_length).unwrap_or(usize::MAX),
    )?);
    let mut stream = Stream::new(data, LANES)?;
    let Scratch { tables, tokens, .. } = scratch;
    tables.clear();
    tables.resize(words, 1);
    tokens.clear();
    tokens.resize(words, 0);
    rans::decode(&mut stream, tables, &set, LANES, tokens);
    stream.finish(LANES)?;
    for (i, token) in tokens.iter().enumerate() {
        let rest = raw.take(mantissa + 1);
        let word = (u64::from(*token) & ((1 << exponent) - 1)) << mantissa
            | rest & ((1 << mantissa) - 1)
            | (rest >> mantissa) << (mantissa + exponent);
        store::<W>(out, i, word);
    }
    Ok(())
}
