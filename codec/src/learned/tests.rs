#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

use proptest::prelude::*;

use crate::{
    DType, Effort, EncodeOptions, Granularity, Int8, Method, Scratch, TensorDecoder, TensorEncoder,
    TensorView, decode_buffer, encode_buffer,
};

const MAX: EncodeOptions = EncodeOptions {
    effort: Effort::Max,
    shared: None,
};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }
}

/// A base with small and large words, and a target of which about `share` in 256 words differ by up to `reach`, in directions
/// that rows and columns have in common.
fn pair(
    dtype: DType,
    [rows, columns]: [usize; 2],
    share: u64,
    reach: u64,
    seed: u64,
) -> (Vec<u8>, Vec<u8>) {
    let mut random = Random(seed << 1 | 1);
    let width = dtype.word_bytes();
    let words = rows * columns * dtype.bits() as usize / 8 / width;
    let top = 1u64 << (8 * width - 2);
    let (mut base, mut target) = (Vec::new(), Vec::new());
    for i in 0..words {
        // Octaves below one, as weights are.
        let word = (top - random.next() % (top / 8)) | ((random.next() & 1) << (8 * width - 1));
        let mut moved = word;
        if random.next() % 256 < share {
            let step = 1 + random.next() % reach;
            let row_up = (i / columns).is_multiple_of(3);
            let negative = word >> (8 * width - 1) == 1;
            let up = (row_up != (i % columns).is_multiple_of(2)) != negative;
            moved = if up {
                word.wrapping_add(step)
            } else {
                word.wrapping_sub(step)
            };
        }
        base.extend_from_slice(&word.to_le_bytes()[..width]);
        target.extend_from_slice(&moved.to_le_bytes()[..width]);
    }
    (base, target)
}

fn view<'a>(dtype: DType, shape: &'a [u64], data: &'a [u8]) -> TensorView<'a> {
    TensorView {
        dtype: Some(dtype),
        shape,
        data,
    }
}

/// The method of each block at effort max, after a round trip.
fn methods(dtype: DType, shape: &[u64], base: &[u8], target: &[u8]) -> Vec<Method> {
    let (target, base) = (view(dtype, shape, target), view(dtype, shape, base));
    let encoder = TensorEncoder::new(target, Some(base), &MAX).unwrap();
    let form = Some((base.dtype, shape));
    let decoder = TensorDecoder::new(target.dtype, shape, encoder.header(), form, None).unwrap();
    let mut scratch = Scratch::default();
    (0..encoder.blocks())
        .map(|block| {
            let (mut bytes, range) = (Vec::new(), encoder.target_range(block));
            let info = encoder
                .encode_block(block, &mut scratch, &mut bytes)
                .unwrap();
            let mut out = vec![0; range.len()];
            decoder
                .decode_block(block, &bytes, Some(base.data), &mut out, &mut scratch)
                .unwrap();
            assert!(
                out == target.data[range],
                "block {block} does not come back"
            );
            info.method
        })
        .collect()
}

#[test]
fn blocks_that_begin_within_a_row_come_back() {
    let (rows, columns) = (1500, 384);
    let shape = [rows as u64, columns as u64];
    let (base, target) = pair(DType::BF16, [rows, columns], 9, 3, 1);
    assert_eq!(
        methods(DType::BF16, &shape, &base, &target),
        [Method::Learned; 2]
    );
    // A block without a change costs a byte, wherever the others are.
    let mut target = target;
    let second = (1 << 19) * 2;
    target[second..].copy_from_slice(&base[second..]);
    assert_eq!(
        methods(DType::BF16, &shape, &base, &target),
        [Method::Learned, Method::Same]
    );
}

#[test]
fn what_is_learned_is_smaller_and_needs_no_header() {
    let shape = [400, 96];
    let (base, target) = pair(DType::BF16, [400, 96], 30, 2, 2);
    let (base, target) = (
        view(DType::BF16, &shape, &base),
        view(DType::BF16, &shape, &target),
    );
    let encoder = TensorEncoder::new(target, Some(base), &MAX).unwrap();
    assert!(encoder.header().is_empty());
    let learned = encode_buffer(target, Some(base), &MAX).unwrap();
    let coded = encode_buffer(target, Some(base), &EncodeOptions::default()).unwrap();
    assert!(
        learned.len() * 10 < coded.len() * 9,
        "{} of {}",
        learned.len(),
        coded.len()
    );
}

#[test]
fn many_changes_are_not_learned() {
    let shape = [100, 64];
    let (base, target) = pair(DType::BF16, [100, 64], 120, 2, 3);
    assert_eq!(
        methods(DType::BF16, &shape, &base, &target),
        [Method::Delta]
    );
}

/// A block as it must be written today and tomorrow, on every CPU.
#[test]
fn a_block_has_these_bytes() {
    const BLOCK: &str = include_str!("vector.txt");
    let shape = [24, 64];
    let (base, target) = pair(DType::BF16, [24, 64], 30, 2, 4);
    let (base, target) = (
        view(DType::BF16, &shape, &base),
        view(DType::BF16, &shape, &target),
    );
    let encoder = TensorEncoder::new(target, Some(base), &MAX).unwrap();
    let mut bytes = Vec::new();
    encoder
        .encode_block(0, &mut Scratch::default(), &mut bytes)
        .unwrap();
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(text, BLOCK.split_whitespace().collect::<String>());
}

#[test]
fn what_no_encoder_writes_is_refused() {
    let shape = [64, 64];
    let words = 64 * 64;
    let base = vec![0x3c; words * 2];
    let decode = |shape: &[u64], header: &[u8], block: &[u8]| {
        let form = Some((Some(DType::BF16), shape));
        let decoder = TensorDecoder::new(Some(DType::BF16), shape, header, form, None)?;
        let mut out = vec![0; decoder.target_range(0).len()];
        decoder.decode_block(0, block, Some(&base), &mut out, &mut Scratch::default())
    };
    // Nothing is coded, so nothing follows.
    decode(&shape, &[], &[6, 6, 0, 0]).unwrap();
    let refused = |shape: &[u64], header: &[u8], block: &[u8], why: &str| {
        let error = decode(shape, header, block).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(&shape, &[], &[6, 9, 0, 0], "rank");
    refused(
        &shape,
        &[],
        &[6, 6, 0xff, 0xff, 3, 0],
        "a size is out of range",
    );
    refused(
        &shape,
        &[],
        &[6, 6, 0, 0, 1, 1, 1, 1, 1],
        "bytes follow the last word",
    );
    refused(&shape, &[], &[6, 6, 0, 5, 1], "a size is out of range");
    refused(&shape, &[], &[6], "ends early");
    let noise = [0xff; 4096];
    refused(
        &shape,
        &[],
        &[&[6, 6, 0xff, 1, 0], &noise[..]].concat(),
        "too many words changed",
    );
    // A header whose rows are longer than any that learn; one of a quantised tensor.
    let long = [8, 17, 0x81, 0x80, 1];
    refused(&shape, &long, &[6, 6, 0, 0], "rows are too long");
    let target = vec![0x3d; words * 2];
    let (target, tensor) = (
        view(DType::BF16, &shape, &target),
        view(DType::BF16, &shape, &base),
    );
    let int8 = Int8::new(target, Some(tensor), Granularity::Tensor).unwrap();
    let encoder = TensorEncoder::int8(target, tensor, int8);
    refused(
        &shape,
        encoder.header(),
        &[6, 6, 0, 0],
        "a block lies past its base",
    );
    // Without a base there is nothing to learn from.
    let alone = TensorDecoder::new(Some(DType::BF16), &shape, &[], None, None).unwrap();
    let mut out = vec![0; words * 2];
    assert!(
        alone
            .decode_block(0, &[6, 6, 0, 0], None, &mut out, &mut Scratch::default())
            .is_err()
    );
}

fn dtype() -> impl Strategy<Value = DType> {
    (0..DType::ALL.len()).prop_map(|i| DType::ALL[i].0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn few_changes_come_back(
        dtype in dtype(),
        rows in 1..60usize,
        columns in 1..90usize,
        share in 1..90u64,
        reach in prop::sample::select(vec![1, 2, 9, 1 << 20, u64::MAX]),
        seed in any::<u32>(),
    ) {
        let (rows, shape) = (rows * 8, [rows as u64 * 8, columns as u64]);
        let (base, target) = pair(dtype, [rows, columns], share, reach, u64::from(seed));
        let buffer = encode_buffer(
            view(dtype, &shape, &target),
            Some(view(dtype, &shape, &base)),
            &MAX,
        ).unwrap();
        let back = decode_buffer(&buffer, Some(view(dtype, &shape, &base))).unwrap();
        prop_assert!(back.data == target);
    }

    #[test]
    fn noise_is_an_error_or_a_value(
        dtype in dtype(),
        rank in 0..10u8,
        limit in 0..300usize,
        rows in 1..40usize,
        patched in prop::collection::vec(any::<u8>(), 0..9),
        noise in prop::collection::vec(any::<u8>(), 0..900),
        quiet in any::<bool>(),
    ) {
        let shape = [rows as u64 * 8, 24];
        let (base, _) = pair(dtype, [rows * 8, 24], 0, 1, 5);
        let form = Some((Some(dtype), &shape[..]));
        let decoder = TensorDecoder::new(Some(dtype), &shape, &[], form, None).unwrap();
        let mut block = vec![Method::Learned as u8, rank];
        crate::bits::put_varint(&mut block, limit as u64);
        block.push(patched.len() as u8);
        block.extend_from_slice(&patched);
        // Small numbers say that little changed, and so are read for longer.
        block.extend(noise.iter().map(|byte| if quiet { byte & 3 } else { *byte }));
        let mut out = vec![0; decoder.target_range(0).len()];
        let _ = decoder.decode_block(0, &block, Some(&base), &mut out, &mut Scratch::default());
    }
}
