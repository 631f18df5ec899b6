//! Blocks without a base: floats as entropy-coded exponents with raw signs and mantissas, the rest by zstd.

use crate::{
    CodecError, DType, Scratch,
    bits::{BitReader, BitWriter, put_varint, take_byte, take_bytes, take_size},
    block::Method,
    error::corrupt,
    options::Coded,
    rans,
    tables::{Histogram, TableSet},
    word::{load, store},
};

const LANES: usize = 32;

/// Appends the smaller of the stand-alone forms to `out` and says which.
pub(crate) fn encode(dtype: Option<DType>, target: &[u8], out: &mut Vec<u8>) -> Method {
    let split = match dtype.and_then(|d| d.layout().map(|l| (d, l))) {
        Some((d, layout)) if layout.exponent <= 8 && target.len() >= 256 => {
            match d.word_bytes() {
                1 => encode_split::<1>(layout.mantissa, layout.exponent, target, out),
                2 => encode_split::<2>(layout.mantissa, layout.exponent, target, out),
                _ => encode_split::<4>(layout.mantissa, layout.exponent, target, out),
            }
            true
        }
        _ => false,
    };
    if !split || out.len() * 8 > target.len() * 7 {
        if let Ok(small) = zstd::bulk::compress(target, 3)
            && small.len() < target.len()
            && (!split || small.len() < out.len())
        {
            out.clear();
            out.extend_from_slice(&small);
            return Method::Zstd;
        }
        if !split || out.len() >= target.len() {
            out.clear();
            out.extend_from_slice(target);
            return Method::Raw;
        }
    }
    Method::StandAlone
}

fn encode_split<const W: usize>(mantissa: u32, exponent: u32, target: &[u8], out: &mut Vec<u8>) {
    let words = target.len() / W;
    let mut histogram = Histogram::new();
    let mut symbols = Vec::with_capacity(words);
    let mut raw_bytes = Vec::with_capacity(words * W);
    let mut raw = BitWriter::new(&mut raw_bytes);
    for i in 0..words {
        let word = load::<W>(target, i);
        let symbol = u16::try_from(word >> mantissa & ((1 << exponent) - 1)).unwrap_or(0);
        histogram.add(0, symbol);
        symbols.push(Coded { table: 0, symbol });
        let sign = word >> (mantissa + exponent);
        raw.put(
            word & ((1 << mantissa) - 1) | sign << mantissa,
            mantissa + 1,
        );
    }
    raw.finish();
    let tables = TableSet::train(&histogram, 1);
    // The escape's number is an exponent too (infinities and NaN); a rare exponent is told apart by its raw bits.
    let mut escapes = Vec::new();
    let mut escape_bits = BitWriter::new(&mut escapes);
    for coded in &mut symbols {
        if !tables.has(0, coded.symbol) || coded.symbol == crate::token::ESCAPE {
            escape_bits.put(u64::from(coded.symbol), 8);
            coded.symbol = crate::token::ESCAPE;
        }
    }
    escape_bits.finish();
    out.extend_from_slice(&tables.to_bytes());
    put_varint(out, escapes.len() as u64);
    out.extend_from_slice(&escapes);
    out.extend_from_slice(&raw_bytes);
    rans::encode(&symbols, &tables, LANES, &mut Vec::new(), out);
}

/// Decodes what [`encode`] made.
pub(crate) fn decode(
    method: Method,
    dtype: Option<DType>,
    mut data: &[u8],
    out: &mut [u8],
    scratch: &mut Scratch,
) -> Result<(), CodecError> {
    match method {
        Method::Raw if data.len() == out.len() => out.copy_from_slice(data),
        Method::Zstd => {
            scratch.bytes.clear();
            scratch.bytes.resize(out.len(), 0);
            match zstd::bulk::decompress_to_buffer(data, scratch.bytes.as_mut_slice()) {
                Ok(n) if n == out.len() => out.copy_from_slice(&scratch.bytes),
                _ => return Err(corrupt("a zstd frame does not decode")),
            }
        }
        Method::StandAlone => {
            let d = dtype.ok_or_else(|| corrupt("a float block in a tensor of no float type"))?;
            let layout = d
                .layout()
                .filter(|l| l.exponent <= 8)
                .ok_or_else(|| corrupt("a float block in a tensor of no float type"))?;
            match d.word_bytes() {
                1 => decode_split::<1>(layout.mantissa, layout.exponent, &mut data, out)?,
                2 => decode_split::<2>(layout.mantissa, layout.exponent, &mut data, out)?,
                _ => decode_split::<4>(layout.mantissa, layout.exponent, &mut data, out)?,
            }
        }
        _ => return Err(corrupt("a raw block has another length")),
    }
    Ok(())
}

fn decode_split<const W: usize>(
    mantissa: u32,
    exponent: u32,
    data: &mut &[u8],
    out: &mut [u8],
) -> Result<(), CodecError> {
    let words = out.len() / W;
    let tables = TableSet::from_bytes(data)?;
    let escaped = take_size(data, words)?;
    let mut escapes = take_bytes(data, escaped)?;
    let raw_length = (words as u64 * u64::from(mantissa + 1)).div_ceil(8);
    let mut raw = BitReader::new(take_bytes(
        data,
        usize::try_from(raw_length).unwrap_or(usize::MAX),
    )?);
    let mut coder = rans::Decoder::new(data, LANES, &tables)?;
    for i in 0..words {
        let mut symbol = u64::from(coder.next(0));
        if symbol == u64::from(crate::token::ESCAPE) {
            symbol = u64::from(take_byte(&mut escapes)?);
        }
        let rest = raw.take(mantissa + 1);
        let word = (symbol & ((1 << exponent) - 1)) << mantissa
            | rest & ((1 << mantissa) - 1)
            | (rest >> mantissa) << (mantissa + exponent);
        store::<W>(out, i, word);
    }
    if !escapes.is_empty() {
        return Err(corrupt("escapes are left over"));
    }
    coder.finish()
}
