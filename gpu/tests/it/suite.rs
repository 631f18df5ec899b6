//! The kernels against the CPU, bit for bit. Runs on any device.

use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use sparse_codec::{Adapter, DType, DeltaStats, Granularity, Int8, LowRank, Matrices, TensorView};
use sparse_gpu::{
    Choice, Device, DeviceMatrices, GpuError, Int8Streamed, Quantised, Resident, Ring, Segments,
    Update, predict_streamed,
};

use crate::reference;

pub(crate) mod blocks;
pub(crate) mod svd;

pub(crate) fn device() -> Arc<Device> {
    static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();
    Arc::clone(DEVICE.get_or_init(|| Device::open().unwrap()))
}

pub(crate) fn view<'a>(dtype: DType, shape: &'a [u64], data: &'a [u8]) -> TensorView<'a> {
    TensorView {
        dtype: Some(dtype),
        shape,
        data,
    }
}

/// Numbers that look random.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }

    /// Words of a model: values about 2^-4, now and then any bits at all.
    pub(crate) fn words(&mut self, dtype: DType, count: usize, wild: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for _ in 0..count {
            let any = self.next();
            let value = self.unit() / 8.0;
            let bits = match dtype {
                DType::BF16 => u32::from(half::bf16::from_f32(value).to_bits()),
                DType::F16 => u32::from(half::f16::from_f32(value).to_bits()),
                _ => value.to_bits(),
            };
            let bits = if wild && any.is_multiple_of(7) {
                (any >> 32) as u32
            } else {
                bits
            };
            out.extend_from_slice(&bits.to_le_bytes()[..dtype.word_bytes()]);
        }
        out
    }
}

/// A low-rank update of a matrix.
pub(crate) fn matrices(
    dtype: DType,
    rows: usize,
    cols: usize,
    rank: usize,
    scale: f32,
    rounded: bool,
    numbers: &mut Numbers,
) -> Matrices {
    let mut factor = |count: usize| -> Vec<u8> {
        (0..count)
            .flat_map(|_| (numbers.unit() / 4.0).to_le_bytes())
            .collect()
    };
    let (left, right) = (factor(rows * rank), factor(rank * cols));
    LowRank::adapter(Adapter {
        left: view(DType::F32, &[rows as u64, rank as u64], &left),
        right: view(DType::F32, &[rank as u64, cols as u64], &right),
        scale,
        rounded,
    })
    .unwrap()
    .matrices(dtype, &[rows as u64, cols as u64])
    .unwrap()
}

const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

fn dtypes() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::BF16), Just(DType::F16), Just(DType::F32)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    #[ignore = "needs a device"]
    fn predictions_are_those_of_the_cpu(
        dtype in dtypes(),
        (rows, rank, cols) in (1..30usize, 1..7usize, 1..300usize)
            .prop_filter("small ranks", |(m, r, n)| r * (m + n) <= 4 * m * n),
        (from, to) in (0.0..1.0f64, 0.0..1.0f64),
        scale in prop_oneof![Just(1.0f32), Just(-0.75), Just(1e38), Just(1e-38), Just(0.0)],
        rounded in any::<bool>(),
        seed in 1u64..,
    ) {
        let mut numbers = Numbers(seed);
        let matrices = matrices(dtype, rows, cols, rank, scale, rounded, &mut numbers);
        let place = |part: f64| (part * (rows * cols) as f64) as usize;
        let (first, end) = (place(from.min(to)), place(from.max(to)));
        let words = numbers.words(dtype, end - first, true);
        let (mut slow, mut classes) = (words.clone(), Vec::new());
        matrices.predict(first, &mut slow, &mut classes);
        let mut fast = words;
        let on_device = DeviceMatrices::new(&device(), &matrices).unwrap();
        let places = on_device.predict(first, &mut fast).unwrap();
        prop_assert_eq!(fast, slow);
        prop_assert_eq!(places, classes);
    }

    #[test]
    #[ignore = "needs a device"]
    fn statistics_are_those_of_the_cpu(
        (t, b) in (dtypes(), dtypes()),
        count in prop_oneof![0..5000usize, Just(65536), Just(65537), Just(140_000)],
        wild in any::<bool>(),
        seed in 1u64..,
    ) {
        let mut numbers = Numbers(seed);
        let (target, base) = (numbers.words(t, count, wild), numbers.words(b, count, wild));
        let shape = [count as u64];
        let (target, base) = (view(t, &shape, &target), view(b, &shape, &base));
        let slow = DeltaStats::of(target, base).unwrap();
        let fast = device().delta_stats(target, base).unwrap().unwrap();
        // NaNs would not be equal: finite elements alone are summed, but their squares may pass what f64 holds.
        prop_assert_eq!(format!("{fast:?}"), format!("{slow:?}"));
    }

    #[test]
    #[ignore = "needs a device"]
    fn int8_is_that_of_the_cpu(
        dtype in dtypes(),
        (rows, row) in prop_oneof![(1..20usize, 1..300usize), (1..3usize, 4000..9000usize)],
        group in prop_oneof![Just(0usize), Just(1usize), Just(128), Just(3), Just(usize::MAX)],
        (with_base, wild) in (any::<bool>(), any::<bool>()),
        tiny in any::<bool>(),
        seed in 1u64..,
    ) {
        let mut numbers = Numbers(seed);
        let count = rows * row;
        let mut target = numbers.words(dtype, count, wild && seed.is_multiple_of(2));
        let mut base = numbers.words(dtype, count, wild);
        if tiny {
            // Denormal differences, whose scales underflow; a row that does not differ.
            target.fill(0);
            base.fill(0);
            for i in 0..count / 3 {
                target[i * 3 * dtype.word_bytes()] = (numbers.next() % 5) as u8;
            }
        }
        let base = with_base.then_some(&base[..]);
        // 0: one scale for all; the largest: rows.
        let (row, segments) = match group {
            0 => (count, Segments::tensor(count as u64)),
            usize::MAX => (row, Segments::rows(row as u64)),
            _ => (row, Segments::groups(row as u64, group as u64)),
        };
        let group = if group == 0 { row } else { group.min(row) };
        let shape = [count as u64];
        let view = |data| view(dtype, &shape, data);
        let slow = reference::quantise(dtype, &target, base, row, group);
        let fast = device().int8_quantise(view(&target), base.map(view), segments);
        let (codes, scales) = match (slow, fast) {
            (Ok(slow), Ok(fast)) => {
                prop_assert_eq!(&fast.codes, &slow.0);
                prop_assert_eq!(&fast.scales, &slow.1);
                slow
            }
            (Err(bad), Err(GpuError::NotFinite { element })) => {
                prop_assert_eq!(element, bad);
                return Ok(());
            }
            (slow, fast) => return Err(TestCaseError::fail(format!("{slow:?} {fast:?}"))),
        };
        let slow = reference::rebuild(dtype, base, &codes, &scales, row, group);
        let quantised = Quantised { codes, scales };
        let fast = match base {
            Some(base) => device().int8_apply(view(base), &quantised, segments).unwrap(),
            None => device().int8_dequantise(dtype, &quantised, segments).unwrap(),
        };
        prop_assert_eq!(fast, slow);
    }

    #[test]
    #[ignore = "needs a device"]
    fn int8_of_any_base_is_that_of_the_cpu(
        dtype in dtypes(),
        count in 1..2000usize,
        seed in 1u64..,
    ) {
        // Codes that no encoder pairs with such a base: NaNs and infinities in it stay what they are.
        let mut numbers = Numbers(seed);
        let base = numbers.words(dtype, count, true);
        let codes: Vec<i8> = (0..count).map(|_| (numbers.next() % 255) as u8 as i8).map(|c| c.max(-127)).collect();
        let scales = vec![2f32.powi((numbers.next() % 40) as i32 - 30)];
        let slow = reference::rebuild(dtype, Some(&base), &codes, &scales, count, count);
        let shape = [count as u64];
        let fast = device()
            .int8_apply(view(dtype, &shape, &base), &Quantised { codes, scales }, Segments::tensor(count as u64))
            .unwrap();
        prop_assert_eq!(fast, slow);
    }

    #[test]
    #[ignore = "needs a device"]
    fn streamed_int8_is_that_of_the_cpu(
        dtype in dtypes(),
        (rows, cols) in prop_oneof![(1..20u64, 1..300u64), (1..400u64, 1..5u64), (1..3u64, 2000..3000u64)],
        granularity in prop_oneof![Just(Granularity::Tensor), Just(Granularity::Row), Just(Granularity::Group)],
        (with_base, wild) in (any::<bool>(), any::<bool>()),
        (chunk, slots) in (1..700usize, 1..4usize),
        (from, to) in (0.0..1.0f64, 0.0..1.0f64),
        seed in 1u64..,
    ) {
        let mut numbers = Numbers(seed);
        let count = (rows * cols) as usize;
        // Pieces of few elements of a large tensor would be many.
        let chunk = chunk.max(count / 40);
        let target = numbers.words(dtype, count, wild && seed.is_multiple_of(3));
        let base = numbers.words(dtype, count, wild && seed.is_multiple_of(3));
        let shape = [rows, cols];
        let (target, base) = (view(dtype, &shape, &target), view(dtype, &shape, &base));
        let base = with_base.then_some(base);
        let streamed = Int8Streamed::with_ring(Choice::Cuda, chunk, slots).unwrap();
        let slow = Int8::new(target, base, granularity);
        let fast = streamed.quantise(target, base, granularity);
        match (slow, fast) {
            (Ok(slow), Ok(fast)) => {
                prop_assert_eq!(fast.scales(), slow.scales());
                let place = |part: f64| (part * count as f64) as usize;
                for range in [0..count, place(from.min(to))..place(from.max(to))] {
                    let words = streamed.rebuilt(&fast, range.clone()).unwrap();
                    prop_assert!(words == slow.rebuilt(range));
                }
            }
            (Err(slow), Err(GpuError::Codec(fast))) => prop_assert_eq!(fast, slow),
            (slow, fast) => return Err(TestCaseError::fail(format!("{slow:?} {fast:?}"))),
        }
    }

    #[test]
    #[ignore = "needs a device"]
    fn streams_give_what_one_call_gives(
        dtype in dtypes(),
        (rows, cols) in (4..30usize, 4..90usize),
        (chunk, slots) in (1..900usize, 1..5usize),
        seed in 1u64..,
    ) {
        let mut numbers = Numbers(seed);
        let matrices = matrices(dtype, rows, cols, 2, 1.0, false, &mut numbers);
        let words = numbers.words(dtype, rows * cols, true);
        let (mut whole, mut classes) = (words.clone(), Vec::new());
        matrices.predict(0, &mut whole, &mut classes);
        let (mut out, mut places) = (Vec::new(), Vec::new());
        let ran = predict_streamed::<GpuError>(
            Choice::Cuda,
            &matrices,
            Ring { chunk, slots },
            rows * cols,
            |at, to| {
                to.copy_from_slice(&words[at..at + to.len()]);
                Ok(())
            },
            |words, classes| {
                out.extend_from_slice(words);
                places.extend_from_slice(classes);
                Ok(())
            },
        )
        .unwrap();
        prop_assert_eq!((ran.device, ran.cpu), ((rows * cols) as u64, 0));
        prop_assert_eq!(out, whole);
        prop_assert_eq!(places, classes);
    }
}

#[test]
#[ignore = "needs a device"]
fn a_caller_that_stops_a_stream_gets_its_own_error() {
    let mut numbers = Numbers(5);
    let matrices = matrices(DType::BF16, 40, 40, 2, 1.0, false, &mut numbers);
    let words = numbers.words(DType::BF16, 1600, false);
    let mut written = 0;
    #[derive(Debug)]
    enum Stop {
        Gpu(#[expect(dead_code, reason = "shown")] GpuError),
        Full,
    }
    impl From<GpuError> for Stop {
        fn from(error: GpuError) -> Self {
            Self::Gpu(error)
        }
    }
    let result = predict_streamed(
        Choice::Auto,
        &matrices,
        Ring {
            chunk: 100,
            slots: 3,
        },
        1600,
        |at, to| {
            to.copy_from_slice(&words[at..at + to.len()]);
            Ok(())
        },
        |_, _| {
            written += 1;
            if written == 4 {
                Err(Stop::Full)
            } else {
                Ok(())
            }
        },
    );
    assert!(matches!(result, Err(Stop::Full)), "{result:?}");
    assert_eq!(written, 4);
}

#[test]
#[ignore = "needs a device"]
fn a_resident_base_is_switched_in_place() {
    let mut numbers = Numbers(11);
    let shapes = [[12u64, 20], [7, 33], [1, 5]];
    let data: Vec<Vec<u8>> = shapes
        .iter()
        .zip(DTYPES)
        .map(|(shape, dtype)| numbers.words(dtype, (shape[0] * shape[1]) as usize, false))
        .collect();
    let views: Vec<TensorView<'_>> = (0..3)
        .map(|i| view(DTYPES[i], &shapes[i], &data[i]))
        .collect();
    let mut resident = Resident::new(&device(), &views).unwrap();
    let reads = |resident: &Resident, wanted: [&[u8]; 3]| {
        for (i, wanted) in wanted.iter().enumerate() {
            assert_eq!(resident.read(i).unwrap(), *wanted, "tensor {i}");
        }
    };
    reads(&resident, [&data[0], &data[1], &data[2]]);

    let matrices = matrices(DType::BF16, 12, 20, 3, 0.5, false, &mut numbers);
    let (mut lifted, mut classes) = (data[0].clone(), Vec::new());
    matrices.predict(0, &mut lifted, &mut classes);
    let tuned = numbers.words(DType::F16, 7 * 33, false);
    let segments = Segments::rows(33);
    let quantised = device()
        .int8_quantise(
            view(DType::F16, &shapes[1], &tuned),
            Some(views[1]),
            segments,
        )
        .unwrap();
    let rebuilt = reference::rebuild(
        DType::F16,
        Some(&data[1]),
        &quantised.codes,
        &quantised.scales,
        33,
        33,
    );
    let int8 = Update::Int8 {
        quantised: &quantised,
        segments,
    };
    let pointer = |resident: &Resident| {
        use cudarc::driver::DevicePtr as _;
        resident.variant(1).unwrap().device_ptr(device().stream()).0
    };
    let address = pointer(&resident);
    resident
        .switch(&[(1, int8), (0, Update::LowRank(&matrices))])
        .unwrap();
    reads(&resident, [&lifted, &rebuilt, &data[2]]);

    // What does not fit is refused before anything changes.
    for wrong in [
        vec![(2, int8)],
        vec![(1, Update::LowRank(&matrices))],
        vec![(3, int8)],
        vec![(1, int8), (1, int8)],
        vec![(0, Update::Words(&data[1]))],
    ] {
        assert!(matches!(
            resident.switch(&wrong),
            Err(GpuError::Unsupported { .. })
        ));
        reads(&resident, [&lifted, &rebuilt, &data[2]]);
    }

    let other = numbers.words(DType::F32, 5, true);
    resident.switch(&[(2, Update::Words(&other))]).unwrap();
    reads(&resident, [&data[0], &data[1], &other]);
    resident.switch(&[]).unwrap();
    reads(&resident, [&data[0], &data[1], &data[2]]);
    assert_eq!(pointer(&resident), address);
}

#[test]
#[ignore = "needs a device"]
fn what_kernels_do_not_take_is_refused() {
    let device = device();
    let shape = [4];
    let bytes = [0u8; 8];
    let long = view(DType::I16, &shape, &bytes);
    assert!(matches!(
        device.delta_stats(long, long),
        Err(GpuError::Unsupported { .. })
    ));
    let short = view(DType::BF16, &shape, &bytes);
    assert!(matches!(
        device.int8_quantise(short, None, Segments::rows(3)),
        Err(GpuError::Unsupported { .. })
    ));
    let wrong = Quantised {
        codes: vec![1; 4],
        scales: vec![1.0; 3],
    };
    assert!(matches!(
        device.int8_apply(short, &wrong, Segments::rows(2)),
        Err(GpuError::Unsupported { .. })
    ));
    let wrong = Quantised {
        codes: vec![1; 3],
        scales: vec![1.0],
    };
    assert!(matches!(
        device.int8_apply(short, &wrong, Segments::tensor(3)),
        Err(GpuError::Unsupported { .. })
    ));
    // Nothing at all is no error.
    let none = view(DType::F16, &[0], &[]);
    assert_eq!(device.delta_stats(none, none).unwrap().unwrap().count, 0);
    let nothing = device
        .int8_quantise(none, Some(none), Segments::rows(8))
        .unwrap();
    assert!(nothing.codes.is_empty() && nothing.scales.is_empty());
    assert!(
        device
            .int8_apply(none, &nothing, Segments::rows(8))
            .unwrap()
            .is_empty()
    );
}

#[test]
#[ignore = "needs a device"]
fn everything_that_is_measured_runs() {
    let all = sparse_gpu::measure(&device(), 32, 40).unwrap();
    assert_eq!(all.len(), 10);
    let svd = sparse_gpu::measure_svd(&device(), 40, 50, 4).unwrap();
    assert!(
        all.iter()
            .chain([&svd])
            .all(|m| m.bytes > 0 && m.seconds > 0.0),
        "{all:?}"
    );
}
