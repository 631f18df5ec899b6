#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::{Scratch, TensorDecoder, TensorEncoder};

fn view<'a>(dtype: DType, shape: &'a [u64], data: &'a [u8]) -> TensorView<'a> {
    TensorView {
        dtype: Some(dtype),
        shape,
        data,
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Encodes and decodes, and holds both to what is rebuilt at once.
fn through_blocks(
    target: TensorView<'_>,
    base: TensorView<'_>,
    granularity: Granularity,
) -> Vec<u8> {
    let int8 = Int8::new(target, Some(base), granularity).unwrap();
    let all = int8.rebuilt(0..int8.elements());
    let encoder = TensorEncoder::int8(target, base, int8.clone());
    let shape = Some((base.dtype, base.shape));
    let decoder =
        TensorDecoder::new(target.dtype, target.shape, encoder.header(), shape, None).unwrap();
    let mut scratch = Scratch::default();
    let mut decoded = Vec::new();
    for block in 0..encoder.blocks() {
        let mut stored = Vec::new();
        encoder
            .encode_block(block, &mut scratch, &mut stored)
            .unwrap();
        let mut out = vec![0; decoder.target_range(block).len()];
        decoder
            .decode_block(block, &stored, Some(base.data), &mut out, &mut scratch)
            .unwrap();
        assert_eq!(*encoder.expected(block), *out);
        decoded.extend(out);
        for cut in [0, 1, stored.len() / 2, stored.len() - 1] {
            let mut out = vec![0; decoder.target_range(block).len()];
            let found = decoder.decode_block(
                block,
                &stored[..cut],
                Some(base.data),
                &mut out,
                &mut scratch,
            );
            assert!(found.is_err() || out == decoded);
        }
    }
    assert_eq!(decoded, all);
    let codes = int8.all_codes();
    let again = int8_dequantize(
        &codes,
        &int8.scales().to_bytes(),
        target.dtype.unwrap(),
        target.shape,
        base.dtype.map(|dtype| (dtype, base.data)),
        granularity,
    );
    assert_eq!(again.unwrap(), all);
    all
}

#[test]
fn what_does_not_differ_has_scale_zero_and_no_error() {
    let data = floats(&[1.0, -0.0, f32::INFINITY, 4.0]);
    let shape = [2, 2];
    let same = view(DType::F32, &shape, &data);
    for granularity in Granularity::ALL {
        let int8 = Int8::new(same, Some(same), granularity).unwrap();
        let Scales::F32(scales) = int8.scales() else {
            unreachable!()
        };
        assert!(scales.iter().all(|s| *s == 0.0));
        let error = int8.measure();
        assert_eq!(
            (error.max_abs, error.mean_abs(), error.relative()),
            (0.0, 0.0, 0.0)
        );
        assert_eq!((error.cosine(), error.exact_share()), (1.0, 1.0));
        // The sign of a zero stays.
        assert_eq!(through_blocks(same, same, granularity), data);
    }
}

#[test]
fn codes_are_rounded_to_even_and_end_at_127() {
    let base = floats(&[0.0; 4]);
    let data = floats(&[127.0, 0.5, 1.5, -126.5]);
    let shape = [1, 4];
    let int8 = Int8::new(
        view(DType::F32, &shape, &data),
        Some(view(DType::F32, &shape, &base)),
        Granularity::Row,
    )
    .unwrap();
    let mut codes = Vec::new();
    int8.codes(0..4, &mut codes);
    assert_eq!(codes, [127, 0, 2, -126]);
    assert_eq!(int8.measure().max_abs, 0.5);
}

#[test]
fn scales_that_underflow_and_differences_that_overflow() {
    let shape = [1, 2];
    let base = floats(&[0.0, 0.0]);
    let tiny = floats(&[f32::from_bits(3), 0.0]);
    let found = through_blocks(
        view(DType::F32, &shape, &tiny),
        view(DType::F32, &shape, &base),
        Granularity::Row,
    );
    assert_eq!(found, tiny);
    let (low, high) = (floats(&[f32::MIN, 0.0]), floats(&[f32::MAX, 0.0]));
    let found = Int8::new(
        view(DType::F32, &shape, &high),
        Some(view(DType::F32, &shape, &low)),
        Granularity::Row,
    );
    assert_eq!(found.err(), Some(CodecError::NotFinite { element: 0 }));
}

#[test]
fn only_matrices_with_a_base_of_their_shape_suit() {
    let data = [0u8; 16];
    let suits = |dtype, shape: &[u64], base: Option<(DType, &[u64])>| {
        let base = base.map(|(dtype, shape)| TensorView {
            dtype: Some(dtype),
            shape,
            data: &data,
        });
        Int8::suits(view(dtype, shape, &data), base)
    };
    assert!(suits(DType::F32, &[2, 2], Some((DType::F32, &[2, 2]))));
    assert!(suits(DType::BF16, &[2, 4], Some((DType::F16, &[2, 4]))));
    assert!(!suits(DType::F32, &[4], Some((DType::F32, &[4]))));
    assert!(!suits(DType::F32, &[2, 2], Some((DType::F32, &[1, 4]))));
    assert!(!suits(DType::F32, &[2, 2], None));
    assert!(!suits(DType::I32, &[2, 2], Some((DType::I32, &[2, 2]))));
}

#[test]
fn hostile_headers_are_refused() {
    let shape = [2u64, 4];
    let base = Some((Some(DType::BF16), &shape[..]));
    let header = |tail: &[u8]| [&[16u8][..], tail].concat();
    let mut sound = vec![1];
    sound.extend(floats(&[0.5, 0.0]));
    assert!(TensorDecoder::new(Some(DType::BF16), &shape, &header(&sound), base, None).is_ok());
    let mut negative = vec![1];
    negative.extend(floats(&[-0.5, 0.0]));
    let mut infinite = vec![1];
    infinite.extend(floats(&[f32::INFINITY, 0.0]));
    for bad in [&[][..], &[3], &sound[..5], &negative, &infinite] {
        assert!(TensorDecoder::new(Some(DType::BF16), &shape, &header(bad), base, None).is_err());
    }
    let header = header(&sound);
    assert!(TensorDecoder::new(Some(DType::BF16), &shape, &header, None, None).is_err());
    assert!(TensorDecoder::new(Some(DType::I16), &shape, &header, base, None).is_err());
    let other = Some((Some(DType::BF16), &[4u64, 2][..]));
    assert!(TensorDecoder::new(Some(DType::BF16), &shape, &header, other, None).is_err());
}

proptest! {
    #[test]
    fn errors_are_within_half_a_step_whatever_the_type(
        rows in 1u64..5,
        cols in 1u64..300,
        seed in any::<u64>(),
        kind in 0usize..6,
        base_kind in 0usize..6,
        granularity in 0usize..3,
    ) {
        let types = [DType::BF16, DType::F16, DType::F32, DType::F64, DType::F8E4M3, DType::F8E5M2];
        let granularity = Granularity::ALL[granularity];
        let shape = [rows, cols];
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f64 / f64::from(1 << 24) - 0.5) * 4.0
        };
        let mut make = |dtype: DType| -> Vec<u8> {
            let wide: Vec<u8> = (0..rows * cols).flat_map(|_| next().to_le_bytes()).collect();
            cast_words(DType::F64, &wide, dtype)
        };
        let (target, base) = (make(types[kind]), make(types[base_kind]));
        let (target, base) = (view(types[kind], &shape, &target), view(types[base_kind], &shape, &base));
        let rebuilt = through_blocks(target, base, granularity);
        let int8 = Int8::new(target, Some(base), granularity).unwrap();
        let error = int8.measure();
        // No difference exceeds 4, so no scale exceeds 4/127.
        prop_assert!(error.max_abs <= 4.0 / 127.0 / 2.0 * 1.0001);
        prop_assert!(error.cosine() > 0.99);
        let after = Distortion::of_rebuilt(target, Some(base), &rebuilt).unwrap();
        prop_assert_eq!(after.exact, error.exact);
        prop_assert_eq!(after.count, rows * cols);
    }
}

#[test]
fn large_tensors_are_cut_into_pieces_that_agree() {
    // Several pieces and blocks, rows that straddle them.
    let (rows, cols) = (700u64, 1001u64);
    let shape = [rows, cols];
    let value = |i: u64, k: u64| bf16::from_f32(((i * k) % 1013) as f32 / 1013.0 - 0.5);
    let make = |k: u64| -> Vec<u8> {
        (0..rows * cols)
            .flat_map(|i| value(i, k).to_bits().to_le_bytes())
            .collect()
    };
    let (target, base) = (make(7), make(11));
    let (target, base) = (
        view(DType::BF16, &shape, &target),
        view(DType::BF16, &shape, &base),
    );
    for granularity in Granularity::ALL {
        let all = through_blocks(target, base, granularity);
        let int8 = Int8::new(target, Some(base), granularity).unwrap();
        let mut part = vec![0; 2 * 5000];
        int8.rebuild(65_000..70_000, &mut part);
        assert_eq!(part, all[130_000..140_000]);
    }
}
