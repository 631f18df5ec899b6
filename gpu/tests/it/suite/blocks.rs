//! Coded blocks: what the kernels make of them and of bytes that no encoder wrote, against the CPU.

use std::sync::Arc;

use proptest::prelude::*;
use sparse_codec::{
    Adapter, BlockForm, DType, Effort, EncodeOptions, Granularity, Int8, LowRank, Moved, Scratch,
    SharedTables, StripCode, TablesTrainer, TensorDecoder, TensorEncoder, TensorView, TrainingPair,
};
use sparse_gpu::{
    Blocks, Choice, Coded, Compute, Encoded, Encoding, ForEncoding, GpuError, OnDevice, Resident,
    Restored, Update,
};

use super::{DTYPES, Numbers, device, dtypes, view};

/// What the update of a tensor looks like.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Every word moves a little, rows by different amounts.
    Dense,
    /// One word in so many moves, here and there by a lot.
    Sparse(u64),
    /// Every word shrinks a little.
    Decayed,
    /// An adapter, merged, and some words more.
    LowRank,
    /// Any bits at all, here and there.
    Wild,
    /// Nothing of the base.
    Other,
    /// Nothing.
    None,
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::Dense),
        2 => (2u64..400).prop_map(Kind::Sparse),
        1 => Just(Kind::Decayed),
        2 => Just(Kind::LowRank),
        1 => Just(Kind::Wild),
        1 => Just(Kind::Other),
        1 => Just(Kind::None),
    ]
}

/// All blocks, encoded on the CPU.
fn blocks_of(encoder: &TensorEncoder<'_>) -> Vec<Vec<u8>> {
    let mut scratch = Scratch::default();
    let encode = |block| {
        let mut out = Vec::new();
        encoder.encode_block(block, &mut scratch, &mut out).unwrap();
        out
    };
    (0..encoder.blocks()).map(encode).collect()
}

fn value(dtype: DType, word: &[u8]) -> f32 {
    match dtype {
        DType::BF16 => half::bf16::from_le_bytes([word[0], word[1]]).to_f32(),
        DType::F16 => half::f16::from_le_bytes([word[0], word[1]]).to_f32(),
        _ => f32::from_le_bytes([word[0], word[1], word[2], word[3]]),
    }
}

fn word(dtype: DType, value: f32) -> Vec<u8> {
    match dtype {
        DType::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

/// A tensor and its base, and how the one is predicted by the other.
pub(crate) struct Pair {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) base: Vec<u8>,
    pub(crate) target: Vec<u8>,
    low_rank: Option<LowRank>,
}

impl Pair {
    pub(crate) fn new(dtype: DType, rows: usize, cols: usize, kind: Kind, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let count = rows * cols;
        let base = numbers.words(dtype, count, matches!(kind, Kind::Wild));
        let mut low_rank = None;
        let mut target = base.clone();
        if matches!(kind, Kind::LowRank) && rows >= 4 && cols >= 4 {
            let bytes = |n: usize, numbers: &mut Numbers| -> Vec<u8> {
                (0..n)
                    .flat_map(|_| (numbers.unit() / 16.0).to_le_bytes())
                    .collect()
            };
            let (left, right) = (bytes(rows * 2, &mut numbers), bytes(2 * cols, &mut numbers));
            let adapter = LowRank::adapter(Adapter {
                left: view(DType::F32, &[rows as u64, 2], &left),
                right: view(DType::F32, &[2, cols as u64], &right),
                scale: 0.5,
                rounded: seed.is_multiple_of(2),
            })
            .unwrap();
            let matrices = adapter
                .matrices(dtype, &[rows as u64, cols as u64])
                .unwrap();
            matrices.predict(0, &mut target, &mut Vec::new());
            low_rank = Some(adapter);
        }
        let width = dtype.word_bytes();
        for (i, to) in target.chunks_exact_mut(width).enumerate() {
            let (any, unit, old) = (numbers.next(), numbers.unit(), value(dtype, to));
            let row_scale = 2f32.powi(-6 - (i / cols % 9) as i32);
            let new = match kind {
                Kind::Dense => old + unit * row_scale * 0.1,
                Kind::Sparse(n) if any.is_multiple_of(n) => {
                    if any % 5 == 0 {
                        unit * 30.0
                    } else {
                        old * (1.0 + unit / 64.0)
                    }
                }
                Kind::Decayed => old * 0.985,
                Kind::LowRank if any.is_multiple_of(50) => old + unit * 0.01,
                Kind::Wild if any.is_multiple_of(3) => {
                    to.copy_from_slice(&any.to_le_bytes()[..width]);
                    continue;
                }
                Kind::Other => unit,
                _ => continue,
            };
            to.copy_from_slice(&word(dtype, new));
        }
        let shape = vec![rows as u64, cols as u64];
        Self {
            dtype,
            shape,
            base,
            target,
            low_rank,
        }
    }

    pub(crate) fn base(&self) -> TensorView<'_> {
        view(self.dtype, &self.shape, &self.base)
    }

    pub(crate) fn target(&self) -> TensorView<'_> {
        view(self.dtype, &self.shape, &self.target)
    }

    pub(crate) fn encoder<'p>(&'p self, options: &EncodeOptions) -> TensorEncoder<'p> {
        let (target, base) = (self.target(), Some(self.base()));
        TensorEncoder::watched(target, base, self.low_rank.as_ref(), options, &|_| ()).unwrap()
    }

    /// Header and blocks.
    pub(crate) fn encode(&self, options: &EncodeOptions) -> (Vec<u8>, Vec<Vec<u8>>) {
        let encoder = self.encoder(options);
        (encoder.header().to_vec(), blocks_of(&encoder))
    }

    pub(crate) fn decoder(&self, header: &[u8], options: &EncodeOptions) -> TensorDecoder {
        let (dtype, shape) = (Some(self.dtype), &self.shape[..]);
        TensorDecoder::new(
            dtype,
            shape,
            header,
            Some((dtype, shape)),
            options.shared.as_ref(),
        )
        .unwrap()
    }

    /// Tables as a model shares them, made of this tensor.
    pub(crate) fn options(&self, effort: Effort, shared: bool) -> EncodeOptions {
        let shared = shared.then(|| {
            let mut trainer = TablesTrainer::new(&EncodeOptions {
                effort,
                shared: None,
            });
            let pair = TrainingPair {
                target: self.target(),
                base: Some(self.base()),
                candidates: self.low_rank.as_slice(),
            };
            trainer.add_all(&[pair]).unwrap();
            let tables = trainer.finish();
            Arc::new(SharedTables::from_bytes(&tables.to_bytes()).unwrap())
        });
        EncodeOptions { effort, shared }
    }
}

pub(crate) fn efforts() -> impl Strategy<Value = Effort> {
    prop_oneof![Just(Effort::Fast), Just(Effort::Default), Just(Effort::Max)]
}

/// Small tensors, and some that use all lanes or have short rows.
fn sizes() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        4 => (1..30usize, 1..120usize),
        2 => (2..20usize, 200..1000usize),
        1 => Just((50usize, 700usize)),
        1 => (1000..3000usize, 1..5usize),
    ]
}

fn decode_slowly(
    decoder: &TensorDecoder,
    blocks: &[&[u8]],
    base: &[u8],
    bytes: usize,
) -> Result<Vec<u8>, sparse_codec::CodecError> {
    let mut out = vec![0; bytes];
    let mut scratch = Scratch::default();
    for (block, payload) in blocks.iter().enumerate() {
        let range = decoder.target_range(block);
        decoder.decode_block(block, payload, Some(base), &mut out[range], &mut scratch)?;
    }
    Ok(out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    #[ignore = "needs a device"]
    fn blocks_decode_to_the_target(
        dtype in dtypes(),
        (rows, cols) in sizes(),
        kind in kinds(),
        effort in efforts(),
        shared in any::<bool>(),
        seed in 1u64..,
    ) {
        let pair = Pair::new(dtype, rows, cols, kind, seed);
        let options = pair.options(effort, shared);
        let (header, blocks) = pair.encode(&options);
        let decoder = pair.decoder(&header, &options);
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        let coded = Coded { decoder: &decoder, blocks: &blocks };
        let (out, restored) = device().decode(pair.base(), coded).unwrap();
        prop_assert!(out == pair.target);
        // Methods 0, 1 and 2 are done by the device, the others are not.
        let on_device = blocks.iter().filter(|b| b[0] < 3).count() as u64;
        let all = blocks.len() as u64;
        prop_assert_eq!(restored, Restored { device: on_device, cpu: all - on_device });
    }

    #[test]
    #[ignore = "needs a device"]
    fn hostile_blocks_end_as_on_the_cpu(
        dtype in dtypes(),
        (rows, cols) in (1..30usize, 1..200usize),
        kind in prop_oneof![Just(Kind::Dense), (2u64..100).prop_map(Kind::Sparse), Just(Kind::LowRank)],
        damages in proptest::collection::vec((any::<u64>(), any::<u8>(), 0..4u8), 1..4),
        seed in 1u64..,
    ) {
        let pair = Pair::new(dtype, rows, cols, kind, seed);
        let options = EncodeOptions::default();
        let (header, mut blocks) = pair.encode(&options);
        let decoder = pair.decoder(&header, &options);
        for (place, byte, how) in damages {
            let block = &mut blocks[0];
            // The method mostly stays, so that more than it is looked at.
            let at = 1 + place as usize % block.len().max(2);
            match how {
                0 => block.truncate(at),
                1 if at < block.len() => block[at] ^= byte,
                2 if at < block.len() => block.insert(at, byte),
                3 if at < block.len() => {
                    block.remove(at);
                }
                _ => block.push(byte),
            }
        }
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        let slow = decode_slowly(&decoder, &blocks, &pair.base, pair.target.len());
        let coded = Coded { decoder: &decoder, blocks: &blocks };
        match (slow, device().decode(pair.base(), coded)) {
            (Ok(slow), Ok((fast, _))) => prop_assert!(fast == slow),
            (Err(slow), Err(GpuError::Codec(fast))) => prop_assert_eq!(fast, slow),
            (slow, fast) => return Err(TestCaseError::fail(format!("{:?} {fast:?}", slow.map(|_| ())))),
        }
    }
}

/// Many blocks of a tensor, and a tail that has no base.
#[test]
#[ignore = "needs a device"]
fn a_tensor_of_several_blocks_and_a_tail_is_decoded() {
    let (rows, cols) = (700, 1000);
    let pair = Pair::new(DType::BF16, rows, cols, Kind::Sparse(900), 77);
    let options = EncodeOptions::default();
    let mut target = pair.target.clone();
    target.extend_from_slice(&pair.target[..50 * cols * 2]);
    let shape = [750, 1000];
    let tuned = view(DType::BF16, &shape, &target);
    let encoder = TensorEncoder::new(tuned, Some(pair.base()), &options).unwrap();
    let mut scratch = Scratch::default();
    let blocks: Vec<Vec<u8>> = (0..encoder.blocks())
        .map(|block| {
            let mut out = Vec::new();
            encoder.encode_block(block, &mut scratch, &mut out).unwrap();
            out
        })
        .collect();
    assert_eq!(blocks.len(), 3);
    let dtype = Some(DType::BF16);
    let decoder = TensorDecoder::new(
        dtype,
        &shape,
        encoder.header(),
        Some((dtype, &pair.shape)),
        None,
    )
    .unwrap();
    let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
    let coded = Coded {
        decoder: &decoder,
        blocks: &blocks,
    };
    let (out, restored) = device().decode(pair.base(), coded).unwrap();
    assert!(out == target);
    assert_eq!(restored, Restored { device: 2, cpu: 1 });
    // A base that is too short is told, not read past.
    let half = view(DType::BF16, &pair.shape, &pair.base[..pair.base.len() / 2]);
    assert!(matches!(
        device().decode(half, coded),
        Err(GpuError::Codec(_))
    ));
}

#[test]
#[ignore = "needs a device"]
fn a_base_of_another_dtype_is_left_to_the_cpu() {
    let pair = Pair::new(DType::BF16, 30, 100, Kind::Dense, 5);
    let wide: Vec<u8> = pair
        .base
        .chunks_exact(2)
        .flat_map(|w| value(DType::BF16, w).to_le_bytes())
        .collect();
    let base = view(DType::F32, &pair.shape, &wide);
    let encoder = TensorEncoder::new(pair.target(), Some(base), &EncodeOptions::default()).unwrap();
    let mut block = Vec::new();
    encoder
        .encode_block(0, &mut Scratch::default(), &mut block)
        .unwrap();
    let decoder = TensorDecoder::new(
        Some(DType::BF16),
        &pair.shape,
        encoder.header(),
        Some((Some(DType::F32), &pair.shape)),
        None,
    )
    .unwrap();
    let coded = Coded {
        decoder: &decoder,
        blocks: &[&block],
    };
    let (out, restored) = device().decode(base, coded).unwrap();
    assert!(out == pair.target);
    assert_eq!(restored, Restored { device: 0, cpu: 1 });
}

/// A model's tensors, some of which share tables, switched to one variant after another in place.
#[test]
#[ignore = "needs a device"]
fn a_resident_base_takes_coded_variants() {
    let sizes = [(12, 300), (40, 64), (5, 700), (30, 90)];
    let kinds = [Kind::Dense, Kind::LowRank, Kind::Decayed, Kind::Other];
    let pairs: Vec<Pair> = (0..4)
        .map(|i| {
            let (rows, cols) = sizes[i];
            Pair::new(DTYPES[i % 3], rows, cols, kinds[i], 40 + i as u64)
        })
        .collect();
    let views: Vec<TensorView<'_>> = pairs.iter().map(Pair::base).collect();
    let mut resident = Resident::new(&device(), &views).unwrap();
    let shared = pairs[0].options(Effort::Default, true);
    let own = EncodeOptions::default();
    let options = [&shared, &own, &own, &shared];
    let coded: Vec<(TensorDecoder, Vec<Vec<u8>>)> = pairs
        .iter()
        .zip(options)
        .map(|(pair, options)| {
            let (header, blocks) = pair.encode(options);
            (pair.decoder(&header, options), blocks)
        })
        .collect();
    let blocks: Vec<Vec<&[u8]>> = coded
        .iter()
        .map(|(_, blocks)| blocks.iter().map(Vec::as_slice).collect())
        .collect();
    let update = |i: usize| {
        let (decoder, _) = &coded[i];
        let blocks = &blocks[i];
        (i, Update::Coded(Coded { decoder, blocks }))
    };
    let reads = |resident: &Resident, switched: &[usize]| {
        for (i, pair) in pairs.iter().enumerate() {
            let wanted = if switched.contains(&i) {
                &pair.target
            } else {
                &pair.base
            };
            assert!(resident.read(i).unwrap() == *wanted, "tensor {i}");
        }
    };
    let restored = resident
        .switch(&[update(3), update(0), update(2), update(1)])
        .unwrap();
    assert_eq!(restored.device + restored.cpu, 4);
    assert!(restored.device >= 3);
    reads(&resident, &[0, 1, 2, 3]);
    resident.switch(&[update(2)]).unwrap();
    reads(&resident, &[2]);
    // For another tensor: refused before anything changes.
    let wrong = (0, update(1).1);
    assert!(matches!(
        resident.switch(&[wrong]),
        Err(GpuError::Unsupported { .. })
    ));
    reads(&resident, &[2]);
    // Bytes that no encoder wrote: the variant is not whole until it is switched again.
    let mut bad = coded[0].1[0].clone();
    bad.truncate(bad.len() - 3);
    let bad = Coded {
        decoder: &coded[0].0,
        blocks: &[&bad],
    };
    assert!(matches!(
        resident.switch(&[(0, Update::Coded(bad))]),
        Err(GpuError::Codec(_))
    ));
    assert!(matches!(resident.read(1), Err(GpuError::Broken)));
    resident.switch(&[update(1)]).unwrap();
    reads(&resident, &[1]);
}

/// Strips of every number of lanes that the encoder uses.
#[test]
#[ignore = "needs a device"]
fn strips_of_all_lanes_are_decoded() {
    let mut seen = Vec::new();
    for (rows, cols) in [(2, 70), (4, 150), (10, 280), (20, 300), (130, 1000)] {
        let pair = Pair::new(DType::BF16, rows, cols, Kind::Dense, 3);
        let options = EncodeOptions::default();
        let (header, blocks) = pair.encode(&options);
        let decoder = pair.decoder(&header, &options);
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        if let Ok(BlockForm::Strips(strips)) = decoder.block_form(0, blocks[0]) {
            seen.extend(strips.iter().map(|strip| strip.lanes));
        }
        let coded = Coded {
            decoder: &decoder,
            blocks: &blocks,
        };
        let (out, restored) = device().decode(pair.base(), coded).unwrap();
        assert!(out == pair.target);
        assert_eq!(restored, Restored { device: 1, cpu: 0 });
    }
    assert_eq!(seen, [1, 4, 8, 32, 64]);
}

/// Decodes a tensor as a caller does: in runs of so many bytes, on several threads, the CPU what is left.
pub(crate) fn decode_in_runs(
    all: &Blocks,
    decoder: &TensorDecoder,
    blocks: &[&[u8]],
    base: &[u8],
    bytes: usize,
) -> Result<Vec<u8>, GpuError> {
    let each = decoder.target_range(0).len().max(1);
    let per = all.chunk(decoder).map_or(1, |chunk| (chunk / each).max(1));
    let tensor = OnDevice::default();
    let run = |number: usize| {
        let (first, run) = (number * per, blocks.chunks(per).nth(number).unwrap());
        let end = decoder.target_range(first + run.len() - 1).end;
        let mut out = vec![0; end - decoder.target_range(first).start];
        let left = all.decode(&tensor, decoder, first, run, base, &mut out)?;
        let mut scratch = Scratch::default();
        for block in left {
            let range = decoder.target_range(first + block);
            let start = decoder.target_range(first).start;
            let out = &mut out[range.start - start..range.end - start];
            decoder.decode_block(first + block, run[block], Some(base), out, &mut scratch)?;
        }
        Ok(out)
    };
    let numbers: Vec<usize> = (0..blocks.len().div_ceil(per)).collect();
    let mut out = Vec::with_capacity(bytes);
    for three in numbers.chunks(3) {
        let parts: Vec<Result<Vec<u8>, GpuError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = three.iter().map(|n| scope.spawn(|| run(*n))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for part in parts {
            out.extend(part?);
        }
    }
    Ok(out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    #[ignore = "needs a device"]
    fn the_ring_decodes_to_the_target(
        dtype in dtypes(),
        (rows, cols) in sizes(),
        kind in kinds(),
        effort in efforts(),
        shared in any::<bool>(),
        seed in 1u64..,
    ) {
        let pair = Pair::new(dtype, rows, cols, kind, seed);
        let options = pair.options(effort, shared);
        let (header, blocks) = pair.encode(&options);
        let decoder = pair.decoder(&header, &options);
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        let all = Blocks::with_ring(Choice::Cuda, 1 << 21, 2).unwrap();
        let out = decode_in_runs(&all, &decoder, &blocks, &pair.base, pair.target.len()).unwrap();
        prop_assert!(out == pair.target);
        // Those of strips, and those that are a moved base; the rest is copied or has no kernel.
        let moved = !matches!(decoder.moved(), Some(Moved::No));
        let on_device = blocks.iter().filter(|b| b[0] == 2 || b[0] == 0 && moved).count() as u64;
        let cpu = blocks.len() as u64 - on_device;
        prop_assert_eq!(all.done(), Restored { device: on_device, cpu });
    }
}

/// A tensor's decoder and blocks, against any base.
fn coded_against(
    target: TensorView<'_>,
    base: TensorView<'_>,
    encoder: &TensorEncoder<'_>,
) -> (TensorDecoder, Vec<Vec<u8>>) {
    let blocks = blocks_of(encoder);
    let form = Some((base.dtype, base.shape));
    let header = encoder.header();
    let decoder = TensorDecoder::new(target.dtype, target.shape, header, form, None).unwrap();
    (decoder, blocks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A base of another dtype is cast on the device: NaNs, infinities and denormals too.
    #[test]
    #[ignore = "needs a device"]
    fn the_ring_casts_bases_of_other_dtypes(
        (dtype, other) in (dtypes(), dtypes()).prop_filter("two dtypes", |(a, b)| a != b),
        (rows, cols) in sizes(),
        kind in kinds(),
        wild in any::<bool>(),
        seed in 1u64..,
    ) {
        let pair = Pair::new(dtype, rows, cols, kind, seed);
        let mut base = sparse_codec::cast(dtype, &pair.base, other).unwrap();
        if wild {
            base = Numbers(seed).words(other, rows * cols, true);
        }
        let base = view(other, &pair.shape, &base);
        let options = EncodeOptions::default();
        let encoder = TensorEncoder::new(pair.target(), Some(base), &options).unwrap();
        let (decoder, blocks) = coded_against(pair.target(), base, &encoder);
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        let all = Blocks::with_ring(Choice::Cuda, 1 << 22, 2).unwrap();
        let out = decode_in_runs(&all, &decoder, &blocks, base.data, pair.target.len()).unwrap();
        prop_assert!(out == pair.target);
        // What is equal after the cast, and what is coded against it.
        let device = blocks.iter().filter(|b| b[0] == 2 || b[0] == 0).count() as u64;
        prop_assert_eq!(all.done(), Restored { device, cpu: blocks.len() as u64 - device });
    }

    /// Codes of INT8 become the words that the CPU makes of them.
    #[test]
    #[ignore = "needs a device"]
    fn the_ring_rebuilds_int8(
        dtype in dtypes(),
        (rows, cols) in sizes(),
        kind in kinds().prop_filter("numbers", |kind| !matches!(kind, Kind::Wild)),
        granularity in prop_oneof![Just(Granularity::Tensor), Just(Granularity::Row), Just(Granularity::Group)],
        seed in 1u64..,
    ) {
        let pair = Pair::new(dtype, rows, cols, kind, seed);
        int8_comes_back(&pair, granularity, pair.base())?;
    }
}

/// The number of the method of codes.
const METHOD_INT8: u8 = 5;

fn int8_comes_back(
    pair: &Pair,
    granularity: Granularity,
    base: TensorView<'_>,
) -> Result<(), TestCaseError> {
    let int8 = Int8::new(pair.target(), Some(base), granularity).unwrap();
    let encoder = TensorEncoder::int8(pair.target(), base, int8);
    let (decoder, mut blocks) = coded_against(pair.target(), base, &encoder);
    let bytes = pair.target.len();
    let kept = blocks.clone();
    let views: Vec<&[u8]> = kept.iter().map(Vec::as_slice).collect();
    let slow = decode_slowly(&decoder, &views, base.data, bytes).unwrap();
    let all = Blocks::with_ring(Choice::Cuda, 1 << 22, 2).unwrap();
    let fast = decode_in_runs(&all, &decoder, &views, base.data, bytes).unwrap();
    prop_assert!(fast == slow);
    // What equals the base is a copy; between dtypes the CPU computes.
    let same = base.dtype == Some(pair.dtype);
    let device = views.iter().filter(|b| same && b[0] == METHOD_INT8).count();
    let done = Restored {
        device: device as u64,
        cpu: (views.len() - device) as u64,
    };
    prop_assert_eq!(all.done(), done);
    // One that no encoder wrote is left for the CPU to refuse.
    let last = blocks.len() - 1;
    let of_device = usize::from(same && blocks[last][0] == METHOD_INT8);
    blocks[last].push(0);
    let views: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
    let (tensor, mut out) = (OnDevice::default(), vec![0; bytes]);
    let left = all
        .decode(&tensor, &decoder, 0, &views, base.data, &mut out)
        .unwrap();
    prop_assert_eq!(left.last(), Some(&last));
    prop_assert_eq!(left.len(), views.len() - device + of_device);
    let end = decoder.target_range(last).start;
    prop_assert!(device < blocks.len() || out[..end] == slow[..end]);
    Ok(())
}

/// Several blocks, which begin in the midst of rows and groups; and a base of another dtype, whose INT8 is the CPU's.
#[test]
#[ignore = "needs a device"]
fn the_ring_rebuilds_int8_of_several_blocks() {
    let pair = Pair::new(DType::BF16, 360, 1500, Kind::Dense, 83);
    for granularity in [Granularity::Row, Granularity::Group] {
        int8_comes_back(&pair, granularity, pair.base()).unwrap();
    }
    let small = Pair::new(DType::BF16, 20, 150, Kind::Dense, 85);
    let wide = sparse_codec::cast(DType::BF16, &small.base, DType::F32).unwrap();
    let base = view(DType::F32, &small.shape, &wide);
    int8_comes_back(&small, Granularity::Row, base).unwrap();
}

/// Runs of a tensor whose base has wider words hold as many as fit of those, and narrower ones no more than of the tensor's.
#[test]
#[ignore = "needs a device"]
fn the_ring_casts_tensors_of_several_blocks() {
    for (dtype, other) in [(DType::BF16, DType::F32), (DType::F32, DType::BF16)] {
        let pair = Pair::new(dtype, 540, 1000, Kind::Sparse(900), 87);
        let base = sparse_codec::cast(dtype, &pair.base, other).unwrap();
        let base = view(other, &pair.shape, &base);
        let options = EncodeOptions::default();
        let encoder = TensorEncoder::new(pair.target(), Some(base), &options).unwrap();
        let (decoder, blocks) = coded_against(pair.target(), base, &encoder);
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        for (chunk, device) in [(2 << 20, 2), (1 << 19, 1)] {
            let all = Blocks::with_ring(Choice::Cuda, chunk, 2).unwrap();
            let out = decode_in_runs(&all, &decoder, &blocks, base.data, pair.target.len());
            assert!(out.unwrap() == pair.target, "{dtype:?} {chunk}");
            let cpu = 2 - device;
            assert_eq!(all.done(), Restored { device, cpu }, "{dtype:?} {chunk}");
        }
    }
}

/// Blocks of many runs, through fewer slots than threads; a run of blocks longer than a slot is left to the CPU.
#[test]
#[ignore = "needs a device"]
fn the_ring_decodes_tensors_larger_than_it_is() {
    for kind in [Kind::Sparse(900), Kind::LowRank] {
        let (rows, cols) = (1100, 1000);
        let pair = Pair::new(DType::BF16, rows, cols, kind, 78);
        let options = EncodeOptions::default();
        let (header, blocks) = pair.encode(&options);
        let decoder = pair.decoder(&header, &options);
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        assert_eq!(blocks.len(), 3);
        for (chunk, device) in [(1 << 20, 3), (4 << 20, 3), (1000, 0)] {
            let all = Blocks::with_ring(Choice::Cuda, chunk, 2).unwrap();
            let out = decode_in_runs(&all, &decoder, &blocks, &pair.base, pair.target.len());
            assert!(out.unwrap() == pair.target, "{kind:?}, {chunk}");
            let cpu = 3 - device;
            assert_eq!(all.done(), Restored { device, cpu }, "{kind:?}, {chunk}");
        }
    }
}

/// A block that no encoder wrote among sound ones: they are decoded, and it is left for the CPU to refuse.
#[test]
#[ignore = "needs a device"]
fn the_ring_leaves_unsound_blocks() {
    let pair = Pair::new(DType::BF16, 700, 1500, Kind::Sparse(900), 79);
    let options = EncodeOptions::default();
    let (header, blocks) = pair.encode(&options);
    let decoder = pair.decoder(&header, &options);
    assert_eq!(blocks.len(), 3);
    let mut bad = blocks[1].clone();
    let at = bad.len() / 2;
    bad[at] ^= 0x5a;
    let mut short = blocks[1].clone();
    short.truncate(at);
    for unsound in [&bad, &short] {
        let blocks: Vec<&[u8]> = vec![&blocks[0], unsound, &blocks[2]];
        let all = Blocks::with_ring(Choice::Cuda, 4 << 20, 2).unwrap();
        let mut out = vec![0; pair.target.len()];
        let tensor = OnDevice::default();
        let left = all.decode(&tensor, &decoder, 0, &blocks, &pair.base, &mut out);
        let left = left.unwrap();
        let range = decoder.target_range(1);
        if !left.is_empty() {
            assert_eq!(left, [1]);
            out[range.clone()].copy_from_slice(&pair.target[range.clone()]);
        }
        // What a changed bit makes of a block may be sound, and is not the target then: a checksum is the caller's.
        assert!(out[..range.start] == pair.target[..range.start]);
        assert!(out[range.end..] == pair.target[range.end..]);
    }
    // A base that is too short for some.
    let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
    let all = Blocks::with_ring(Choice::Cuda, 4 << 20, 2).unwrap();
    let mut out = vec![0; pair.target.len()];
    let half = &pair.base[..decoder.target_range(1).start + 5];
    let tensor = OnDevice::default();
    let left = all.decode(&tensor, &decoder, 0, &blocks, half, &mut out);
    assert_eq!(left.unwrap(), [1, 2]);
}

/// Encodes every block of a tensor with strips from the device, to the CPU's bytes. How many blocks the device did.
pub(crate) fn encode_all(
    encoding: &Encoding,
    pair: &Pair,
    options: &EncodeOptions,
) -> Result<usize, GpuError> {
    let encoder = pair.encoder(options);
    let (tensor, mut scratch) = (ForEncoding::default(), Scratch::default());
    let mut done = 0;
    for block in 0..encoder.blocks() {
        let (mut slow, mut fast) = (Vec::new(), Vec::new());
        let wanted = encoder.encode_block(block, &mut scratch, &mut slow)?;
        let strips = encoding.strips(&tensor, &encoder, block, &pair.target, &pair.base)?;
        let Some(strips) = strips else {
            continue;
        };
        let codes: Vec<StripCode<'_>> = strips.iter().map(Encoded::code).collect();
        let found = encoder.encode_coded(block, &codes, &mut scratch, &mut fast)?;
        assert_eq!(
            (found.method, found.changed),
            (wanted.method, wanted.changed)
        );
        assert!(fast == slow, "block {block}");
        done += 1;
    }
    Ok(done)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    #[ignore = "needs a device"]
    fn blocks_are_encoded_to_the_bytes_of_the_cpu(
        dtype in dtypes(),
        (rows, cols) in sizes(),
        kind in kinds(),
        effort in efforts(),
        shared in any::<bool>(),
        seed in 1u64..,
    ) {
        let pair = Pair::new(dtype, rows, cols, kind, seed);
        let options = pair.options(effort, shared);
        let compute = Arc::new(Compute::open(Choice::Cuda).unwrap());
        let encoding = Encoding::on(&compute).unwrap();
        let done = encode_all(&encoding, &pair, &options).unwrap();
        let coded = pair.encoder(&options).coding().is_some();
        prop_assert_eq!(done, usize::from(coded));
    }
}

/// Strips of every number of lanes, several blocks, and rows that strips cut.
#[test]
#[ignore = "needs a device"]
fn strips_of_all_lanes_are_encoded() {
    let compute = Arc::new(Compute::open(Choice::Cuda).unwrap());
    let encoding = Encoding::on(&compute).unwrap();
    let options = EncodeOptions::default();
    for (rows, cols) in [(2, 70), (4, 150), (10, 280), (20, 300), (130, 1000)] {
        let pair = Pair::new(DType::BF16, rows, cols, Kind::Dense, 3);
        assert_eq!(encode_all(&encoding, &pair, &options).unwrap(), 1);
    }
    let pair = Pair::new(DType::F32, 600, 1000, Kind::Sparse(700), 5);
    assert_eq!(encode_all(&encoding, &pair, &options).unwrap(), 2);
    // Tables of another tensor: tokens that have no frequency are patched.
    let tame = Pair::new(DType::BF16, 40, 300, Kind::Decayed, 6);
    let wild = Pair::new(DType::BF16, 40, 300, Kind::Sparse(3), 7);
    let options = tame.options(Effort::Default, true);
    assert_eq!(encode_all(&encoding, &wild, &options).unwrap(), 1);
}
