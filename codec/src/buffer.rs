//! A delta as one self-contained buffer: magic, version, dtype, shape, header, blocks.

use crate::{
    CodecError, DType, EncodeOptions, FORMAT_VERSION, LowRank, Scratch, TensorDecoder,
    TensorEncoder, TensorView,
    bits::{put_varint, take_byte, take_bytes, take_size, take_varint},
    error::corrupt,
};

const MAGIC: &[u8; 4] = b"SPDT";

/// A decoded tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedTensor {
    /// Element type; `None` for bytes of a type this version does not know.
    pub dtype: Option<DType>,
    /// Elements per dimension.
    pub shape: Vec<u64>,
    /// The elements, as safetensors stores them.
    pub data: Vec<u8>,
}

/// Encodes a tensor against `base`, or on its own, into one buffer.
///
/// # Errors
/// Data that does not have the length dtype and shape ask for.
pub fn encode_buffer(
    target: TensorView<'_>,
    base: Option<TensorView<'_>>,
    options: &EncodeOptions,
) -> Result<Vec<u8>, CodecError> {
    let low_rank = match base {
        Some(base) => LowRank::find(target, base, options.effort)?,
        None => None,
    };
    encode_buffer_by(target, base, low_rank.as_ref(), options)
}

/// As [`encode_buffer`], with a low-rank prediction that is known, or none.
///
/// # Errors
/// As [`encode_buffer`]; factors whose shape is not the tensor's.
pub fn encode_buffer_by(
    target: TensorView<'_>,
    base: Option<TensorView<'_>>,
    low_rank: Option<&LowRank>,
    options: &EncodeOptions,
) -> Result<Vec<u8>, CodecError> {
    let options = EncodeOptions {
        shared: None,
        ..options.clone()
    };
    let encoder = TensorEncoder::watched(target, base, low_rank, &options, &|_| ())?;
    let mut out = MAGIC.to_vec();
    put_varint(&mut out, u64::from(FORMAT_VERSION));
    let number = target
        .dtype
        .and_then(|d| DType::ALL.iter().position(|(dtype, _, _)| *dtype == d))
        .map_or(0, |p| p + 1);
    out.push(u8::try_from(number).unwrap_or(0));
    // An unknown dtype's shape does not give its length, so the length stands in for it.
    let bytes = [target.data.len() as u64];
    let shape = if target.dtype.is_some() {
        target.shape
    } else {
        &bytes
    };
    put_varint(&mut out, shape.len() as u64);
    shape.iter().for_each(|d| put_varint(&mut out, *d));
    put_varint(&mut out, encoder.header().len() as u64);
    out.extend_from_slice(encoder.header());
    let mut scratch = Scratch::default();
    let mut block = Vec::new();
    for number in 0..encoder.blocks() {
        block.clear();
        encoder.encode_block(number, &mut scratch, &mut block)?;
        put_varint(&mut out, block.len() as u64);
        out.extend_from_slice(&block);
    }
    Ok(out)
}

/// Dtype and shape of a buffer, and what follows.
#[expect(clippy::type_complexity, reason = "three parts, named above")]
fn form(buffer: &[u8]) -> Result<(Option<DType>, Vec<u64>, &[u8]), CodecError> {
    let mut data = buffer
        .strip_prefix(MAGIC)
        .ok_or_else(|| corrupt("it does not begin as a delta"))?;
    if take_varint(&mut data)? > u64::from(FORMAT_VERSION) {
        return Err(corrupt("it has a newer version: update Sparse"));
    }
    let dtype = match usize::from(take_byte(&mut data)?) {
        0 => None,
        number => Some(
            DType::ALL
                .get(number - 1)
                .ok_or_else(|| corrupt("an unknown dtype"))?
                .0,
        ),
    };
    let rank = take_size(&mut data, 64)?;
    let shape = (0..rank)
        .map(|_| take_varint(&mut data))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((dtype, shape, data))
}

/// The values of a buffer that holds a matrix of floats of this shape, made without a base.
pub(crate) fn decode_matrix(buffer: &[u8], expected: [usize; 2]) -> Result<Vec<f32>, CodecError> {
    let (dtype, shape, _) = form(buffer)?;
    // Checked before anything of that size is made.
    let dtype = dtype
        .filter(|dtype| dtype.is_float() && shape == expected.map(|n| n as u64))
        .ok_or_else(|| corrupt("an adapter's factor has another dtype or shape"))?;
    let mut values = Vec::new();
    crate::to_f32(dtype, &decode_buffer(buffer, None)?.data, &mut values)?;
    Ok(values)
}

/// Decodes what [`encode_buffer`] made; `base` must be the tensor it was encoded against.
///
/// # Errors
/// [`CodecError::Corrupt`] for anything else, [`CodecError::Base`] for a missing or shorter base. A base of the right form
/// with other values goes unnoticed: hash the result where that matters, as artifacts do.
pub fn decode_buffer(
    buffer: &[u8],
    base: Option<TensorView<'_>>,
) -> Result<DecodedTensor, CodecError> {
    let (dtype, shape, mut data) = form(buffer)?;
    let left = data.len();
    let header_length = take_size(&mut data, left)?;
    let header = take_bytes(&mut data, header_length)?;
    let base_form = base.as_ref().map(|b| (b.dtype, b.shape));
    let decoder = TensorDecoder::new(dtype, &shape, header, base_form, None)?;
    let mut out = Vec::new();
    let mut scratch = Scratch::default();
    for number in 0..decoder.blocks() {
        let left = data.len();
        let length = take_size(&mut data, left)?;
        let block = take_bytes(&mut data, length)?;
        // Grown block by block: a hostile shape without blocks to back it allocates nothing.
        let start = out.len();
        out.resize(start + decoder.target_range(number).len(), 0);
        decoder.decode_block(
            number,
            block,
            base.map(|b| b.data),
            &mut out[start..],
            &mut scratch,
        )?;
    }
    if data.is_empty() {
        Ok(DecodedTensor {
            dtype,
            shape,
            data: out,
        })
    } else {
        Err(corrupt("it is too long"))
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests stop at the first surprise"
    )]

    use proptest::prelude::*;

    use super::*;
    use crate::Effort;

    fn dtype() -> impl Strategy<Value = DType> {
        (0..DType::ALL.len()).prop_map(|i| DType::ALL[i].0)
    }

    /// A base of some bytes and a target that shares most of them.
    fn pair() -> impl Strategy<Value = (DType, Vec<u64>, Vec<u8>, Vec<u8>)> {
        (
            dtype(),
            0..40u64,
            0..90u64,
            any::<u64>(),
            0..100u8,
            1..60u32,
        )
            .prop_map(|(dtype, rows, columns, seed, share, step)| {
                let shape = vec![rows * 4, columns];
                let bytes = (rows * 4 * columns * u64::from(dtype.bits()) / 8) as usize;
                let mut state = seed | 1;
                let mut next = move || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state
                };
                let base: Vec<u8> = (0..bytes).map(|_| next() as u8).collect();
                let target = base
                    .iter()
                    .map(|b| {
                        if next() % 100 < u64::from(share) {
                            b.wrapping_add((next() % u64::from(step)) as u8)
                        } else {
                            *b
                        }
                    })
                    .collect();
                (dtype, shape, base, target)
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn every_pair_comes_back((dtype, shape, base, target) in pair(), effort in 0..3usize) {
            let options = EncodeOptions { effort: [Effort::Fast, Effort::Default, Effort::Max][effort], ..Default::default() };
            let view = |data| TensorView { dtype: Some(dtype), shape: &shape, data };
            let delta = encode_buffer(view(&target), Some(view(&base)), &options).unwrap();
            prop_assert_eq!(&decode_buffer(&delta, Some(view(&base))).unwrap().data, &target);
            let alone = encode_buffer(view(&target), None, &options).unwrap();
            prop_assert_eq!(&decode_buffer(&alone, None).unwrap().data, &target);
            prop_assert!(alone.len() <= target.len() + 40);
        }

        #[test]
        fn other_rows_and_types((dtype, shape, base, target) in pair(), other in dtype(), fewer in 0..5u64) {
            let view = TensorView { dtype: Some(dtype), shape: &shape, data: &target };
            let base_shape = [shape[0] - fewer.min(shape[0] / 4) * 4, shape[1]];
            let bytes = (base_shape[0] * base_shape[1] * u64::from(other.bits()) / 8) as usize;
            let mut base = base;
            base.resize(bytes, 77);
            let base = TensorView { dtype: Some(other), shape: &base_shape, data: &base };
            let delta = encode_buffer(view, Some(base), &EncodeOptions::default()).unwrap();
            prop_assert_eq!(&decode_buffer(&delta, Some(base)).unwrap().data, &target);
        }

        #[test]
        fn damage_is_an_error_or_a_value((dtype, shape, base, target) in pair(), at in any::<prop::sample::Index>(), flip in 1..=255u8, cut in any::<bool>(), effort in 0..3usize) {
            let view = |data| TensorView { dtype: Some(dtype), shape: &shape, data };
            let options = EncodeOptions { effort: [Effort::Fast, Effort::Default, Effort::Max][effort], ..Default::default() };
            let mut delta = encode_buffer(view(&target), Some(view(&base)), &options).unwrap();
            let at = at.index(delta.len());
            if cut { delta.truncate(at) } else { delta[at] ^= flip }
            let _ = decode_buffer(&delta, Some(view(&base)));
        }

        #[test]
        fn noise_is_an_error_or_a_value(mut noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            if noise.len() > 5 { noise[..5].copy_from_slice(b"SPDT\x01"); }
            let _ = decode_buffer(&noise, None);
        }
    }

    /// An embedding of which an eighth of the rows was trained on: what every row costs is near the entropy of its own changes.
    #[test]
    fn rows_of_many_changes_and_of_next_to_none() {
        const ROWS: u64 = 2048;
        const COLUMNS: u64 = 384;
        let mut state = 1_u64;
        let mut below = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 20) % n
        };
        let (mut base, mut target) = (Vec::new(), Vec::new());
        for at in 0..ROWS * COLUMNS {
            // Two exponents, random mantissas.
            let word = 0x3c00_u16 + u16::try_from(below(256)).unwrap();
            let step = match at / COLUMNS % 8 {
                0 => i16::try_from(below(9)).unwrap() - 4,
                _ => i16::from(below(100) == 0),
            };
            base.extend(word.to_le_bytes());
            target.extend(word.wrapping_add_signed(step).to_le_bytes());
        }
        let shape = [ROWS, COLUMNS];
        let view = |data| TensorView {
            dtype: Some(DType::BF16),
            shape: &shape,
            data,
        };
        let options = EncodeOptions::default();
        let delta = encode_buffer(view(&target), Some(view(&base)), &options).unwrap();
        let found = decode_buffer(&delta, Some(view(&base))).unwrap();
        assert_eq!(found.data, target);
        let few = -(0.01_f64 * 0.01_f64.log2() + 0.99 * 0.99_f64.log2());
        let bits = (9.0_f64.log2() + 7.0 * few) / 8.0;
        let least = (ROWS * COLUMNS) as f64 * bits / 8.0;
        assert!(
            (delta.len() as f64) < 1.25 * least,
            "{} bytes, {least} of entropy",
            delta.len()
        );
    }
}
