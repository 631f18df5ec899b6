//! The reference decoder (`tests/oracles/codec_reference.py`) reads our buffers and agrees. Needs a Python 3; without one
//! (and with `SPARSE_TEST_PYTHON` unset) the test says so and passes.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

use std::{path::Path, process::Command};

use sparse_codec::{
    Adapter, DType, Effort, EncodeOptions, LowRank, Method, Scratch, TensorEncoder, TensorView,
    cast, decode_buffer, encode_buffer, encode_buffer_by,
};

/// Numbers without a pattern.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

struct Case {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    target: Vec<u8>,
    base: Option<(DType, Vec<u64>, Vec<u8>)>,
    effort: Effort,
    /// A given adapter: its factors, and whether the update is rounded first.
    adapter: Option<(Vec<f32>, Vec<f32>, bool)>,
}

fn values(x: &[f64], dtype: DType) -> Vec<u8> {
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    cast(DType::F64, &bytes, dtype).unwrap()
}

const MERGED: [u64; 2] = [44, 101];

/// A base, and that base with an adapter of rank 3 merged into it.
fn merged(
    random: &mut Random,
    dtype: DType,
    from: DType,
    left: &[f32],
    right: &[f32],
    rounded: bool,
) -> (Vec<u8>, Vec<u8>) {
    let [rows, cols] = MERGED.map(|d| d as usize);
    let mut base: Vec<f64> = (0..rows * cols).map(|_| random.normal() * 0.05).collect();
    base[3] = f64::NAN;
    base[4] = f64::INFINITY;
    base[5] = -0.0;
    base[6] = 1e-40;
    let base = values(&base, from);
    let mut known = Vec::new();
    sparse_codec::to_f32(from, &base, &mut known).unwrap();
    let mut cast = Vec::new();
    let known = values(
        &known.iter().map(|b| f64::from(*b)).collect::<Vec<_>>(),
        dtype,
    );
    sparse_codec::to_f32(dtype, &known, &mut cast).unwrap();
    let target: Vec<f64> = cast
        .iter()
        .enumerate()
        .map(|(at, b)| {
            let mut update = [product(left, right, at) * SCALE];
            if rounded {
                let bytes = values(&[f64::from(update[0])], dtype);
                let mut back = Vec::new();
                sparse_codec::to_f32(dtype, &bytes, &mut back).unwrap();
                update[0] = back[0];
            }
            f64::from(*b + update[0])
        })
        .collect();
    let mut target = values(&target, dtype);
    for _ in 0..2 {
        let at = random.next() as usize % target.len();
        target[at] ^= 1;
    }
    (base, target)
}

/// Of the adapters.
const SCALE: f32 = 2.0;

/// `44 x 3` and `3 x 101`.
fn factors(random: &mut Random) -> (Vec<f32>, Vec<f32>) {
    let [rows, cols] = MERGED.map(|d| d as usize);
    let mut factor = |n| (0..n).map(|_| (random.normal() * 0.03) as f32).collect();
    (factor(rows * 3), factor(3 * cols))
}

fn product(left: &[f32], right: &[f32], at: usize) -> f32 {
    let cols = MERGED[1] as usize;
    (0..3).fold(0.0, |sum, k| {
        left[at / cols * 3 + k].mul_add(right[k * cols + at % cols], sum)
    })
}

/// A base, and that base after updates that mostly round to nothing: half of a low rank, half noise.
fn nudged(random: &mut Random, dtype: DType, shape: &[u64], update: f64) -> (Vec<u8>, Vec<u8>) {
    let words = shape.iter().product::<u64>() as usize;
    let columns = *shape.last().unwrap() as usize;
    let sides: Vec<f64> = (0..words).map(|_| random.normal()).collect();
    let mut base: Vec<f64> = (0..words).map(|_| random.normal() * 0.05).collect();
    // One large weight that moves alone.
    base[7] = 3.0;
    let base = values(&base, dtype);
    let mut known = Vec::new();
    sparse_codec::to_f64(dtype, &base, &mut known).unwrap();
    let target: Vec<f64> = known
        .iter()
        .enumerate()
        .map(|(i, b)| {
            let shared = sides[i / columns].clamp(-1.5, 1.5) * sides[words - 1 - i % columns];
            b + update * (shared + random.normal())
        })
        .collect();
    let mut target = values(&target, dtype);
    target[7 * dtype.word_bytes()] ^= 1;
    (base, target)
}

fn cases() -> Vec<Case> {
    let mut random = Random(88);
    let mut cases = Vec::new();
    let floats = [
        DType::BF16,
        DType::F16,
        DType::F32,
        DType::F64,
        DType::F8E4M3,
        DType::F8E5M2,
    ];
    for dtype in floats {
        for (update, share) in [(1e-3, 1.0), (3e-2, 0.6), (1e-3, 0.004)] {
            let shape = vec![30, 111];
            let mut base: Vec<f64> = (0..30 * 111).map(|_| random.normal() * 0.05).collect();
            base[3] = f64::NAN;
            base[4] = f64::INFINITY;
            base[5] = -0.0;
            base[6] = 1e-40;
            let target: Vec<f64> = base
                .iter()
                .map(|b| {
                    if random.unit() < share {
                        b + random.normal() * update
                    } else {
                        *b
                    }
                })
                .collect();
            let mut target = values(&target, dtype);
            // Payloads of NaNs and other surprises.
            for _ in 0..9 {
                let at = random.next() as usize % target.len();
                target[at] = random.next() as u8;
            }
            for from in [dtype, DType::F32, DType::BF16] {
                if from == dtype || share > 0.5 {
                    cases.push(Case {
                        name: format!("{dtype:?}-{from:?}-{update}-{share}"),
                        dtype,
                        shape: shape.clone(),
                        target: target.clone(),
                        base: Some((from, vec![28, 111], values(&base[..28 * 111], from))),
                        effort: [Effort::Fast, Effort::Default, Effort::Max][cases.len() % 3],
                        adapter: None,
                    });
                }
            }
            cases.push(Case {
                name: format!("{dtype:?}-alone-{update}-{share}"),
                dtype,
                shape,
                target,
                base: None,
                effort: Effort::Default,
                adapter: None,
            });
        }
    }
    // Enough bits for all lanes.
    let shape = vec![400, 111];
    let base: Vec<f64> = (0..400 * 111).map(|_| random.normal() * 0.05).collect();
    let tuned: Vec<f64> = base.iter().map(|b| b + random.normal() * 3e-3).collect();
    cases.push(Case {
        name: "long".to_owned(),
        dtype: DType::BF16,
        shape: shape.clone(),
        target: values(&tuned, DType::BF16),
        base: Some((DType::BF16, shape, values(&base, DType::BF16))),
        effort: Effort::Default,
        adapter: None,
    });
    // Weight decay moves most rows by steps of the mantissa.
    let base: Vec<f64> = (0..90 * 111)
        .map(|_| f64::from((random.normal() * 0.05) as f32))
        .collect();
    let decayed: Vec<f64> = base
        .iter()
        .enumerate()
        .map(|(i, b)| {
            let noise = if i % 999 < 111 {
                random.normal() * 1e-4
            } else {
                0.0
            };
            f64::from((0..40).fold(*b as f32, |x, _| x * (1.0 - 2e-7))) + noise
        })
        .collect();
    cases.push(Case {
        name: "decayed".to_owned(),
        dtype: DType::F32,
        shape: vec![90, 111],
        target: values(&decayed, DType::F32),
        base: Some((DType::F32, vec![90, 111], values(&base, DType::F32))),
        effort: Effort::Default,
        adapter: None,
    });
    for (dtype, from) in [
        (DType::BF16, DType::BF16),
        (DType::F16, DType::F16),
        (DType::F32, DType::F32),
        (DType::F32, DType::BF16),
    ] {
        let (left, right) = factors(&mut random);
        let (base, target) = merged(&mut random, dtype, from, &left, &right, false);
        for effort in [Effort::Default, Effort::Max] {
            cases.push(Case {
                name: format!("merged-{dtype:?}-{from:?}-{effort}"),
                dtype,
                shape: MERGED.to_vec(),
                target: target.clone(),
                base: Some((from, MERGED.to_vec(), base.clone())),
                effort,
                adapter: None,
            });
        }
        for rounded in [false, true] {
            let (base, target) = merged(&mut random, dtype, from, &left, &right, rounded);
            cases.push(Case {
                name: format!("given-{dtype:?}-{from:?}-{rounded}"),
                dtype,
                shape: MERGED.to_vec(),
                target,
                base: Some((from, MERGED.to_vec(), base)),
                effort: Effort::Default,
                adapter: Some((left.clone(), right.clone(), rounded)),
            });
        }
    }
    for (dtype, update) in [
        (DType::BF16, 3e-5),
        (DType::F16, 4e-6),
        (DType::F32, 5e-10),
        (DType::F64, 4e-19),
        (DType::F8E4M3, 4e-4),
        (DType::F8E5M2, 8e-4),
    ] {
        for shape in [vec![130, 72], vec![90, 16], vec![9_000]] {
            let (base, target) = nudged(&mut random, dtype, &shape, update);
            cases.push(Case {
                name: format!("learned-{dtype:?}-{shape:?}"),
                dtype,
                target,
                base: Some((dtype, shape.clone(), base)),
                shape,
                effort: Effort::Max,
                adapter: None,
            });
        }
    }
    for dtype in [DType::I8, DType::I32, DType::U64] {
        let bytes = 6000 * dtype.bits() as usize / 8;
        let base: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
        let mut target = base.clone();
        for _ in 0..400 {
            let at = random.next() as usize % bytes;
            target[at] ^= 1 << (random.next() % 3);
        }
        cases.push(Case {
            name: format!("learned-{dtype:?}"),
            dtype,
            shape: vec![60, 100],
            target,
            base: Some((dtype, vec![60, 100], base)),
            effort: Effort::Max,
            adapter: None,
        });
    }
    for dtype in [DType::I8, DType::I32, DType::U64, DType::Bool, DType::F4] {
        let bytes = 6000 * dtype.bits() as usize / 8;
        let base: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
        let target = base
            .iter()
            .map(|b| b.wrapping_add(u8::from(random.unit() < 0.1)))
            .collect();
        cases.push(Case {
            name: format!("{dtype:?}"),
            dtype,
            shape: vec![6000],
            target,
            base: Some((dtype, vec![6000], base)),
            effort: Effort::Default,
            adapter: None,
        });
    }
    for shape in [vec![], vec![0, 4], vec![1, 1, 3]] {
        let words = shape.iter().product::<u64>() as usize;
        cases.push(Case {
            name: format!("shape{}", shape.len()),
            dtype: DType::BF16,
            target: vec![1; 2 * words],
            base: Some((DType::BF16, shape.clone(), vec![2; 2 * words])),
            shape,
            effort: Effort::Default,
            adapter: None,
        });
    }
    cases
}

#[test]
fn the_reference_decoder_agrees() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracles/codec_reference.py");
    let given = std::env::var("SPARSE_TEST_PYTHON").ok();
    let python = given.clone().unwrap_or_else(|| "python3".to_owned());
    if given.is_none() && Command::new(&python).arg("-V").output().is_err() {
        eprintln!("skipped: no python3 here");
        return;
    }
    let zstd = Command::new(&python)
        .args(["-c", "import zstandard"])
        .output()
        .is_ok_and(|o| o.status.success());
    let folder = std::env::temp_dir().join(format!("sparse-codec-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut compared = 0;
    for case in cases() {
        let target = TensorView {
            dtype: Some(case.dtype),
            shape: &case.shape,
            data: &case.target,
        };
        let base = case.base.as_ref().map(|(dtype, shape, data)| TensorView {
            dtype: Some(*dtype),
            shape,
            data,
        });
        let options = EncodeOptions {
            effort: case.effort,
            ..EncodeOptions::default()
        };
        let adapter = case.adapter.as_ref().map(|(left, right, rounded)| {
            let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
            let view = |shape, data| TensorView {
                dtype: Some(DType::F32),
                shape,
                data,
            };
            LowRank::adapter(Adapter {
                left: view(&[MERGED[0], 3], &bytes(left)),
                right: view(&[3, MERGED[1]], &bytes(right)),
                scale: SCALE,
                rounded: *rounded,
            })
            .unwrap()
        });
        let buffer = match &adapter {
            Some(adapter) => encode_buffer_by(target, base, Some(adapter), &options).unwrap(),
            None => encode_buffer(target, base, &options).unwrap(),
        };
        if let Some((left, right, _)) = &case.adapter {
            // Little more than the adapter.
            let limit = (left.len() + right.len()) * 4 + 300;
            assert!(
                buffer.len() < limit,
                "{}: {} bytes",
                case.name,
                buffer.len()
            );
        }
        assert_eq!(
            decode_buffer(&buffer, base).unwrap().data,
            case.target,
            "{}",
            case.name
        );
        if case.name.starts_with("learned") {
            let encoder = TensorEncoder::new(target, base, &options).unwrap();
            let info = encoder.encode_block(0, &mut Scratch::default(), &mut Vec::new());
            assert_eq!(info.unwrap().method, Method::Learned, "{}", case.name);
            for at in (0..buffer.len()).step_by(7) {
                let mut damaged = buffer.clone();
                damaged[at] ^= 1 << (at % 8);
                let _ = decode_buffer(&damaged, base);
                let _ = decode_buffer(&buffer[..at], base);
            }
        }
        if case.name.starts_with("merged") {
            let base = base.unwrap();
            let found = LowRank::find(target, base, case.effort).unwrap();
            assert!(found.is_some(), "{}", case.name);
            if case.dtype == DType::BF16 {
                assert!(
                    buffer.len() < case.target.len() / 5,
                    "{} bytes",
                    buffer.len()
                );
            }
            for at in (0..buffer.len()).step_by(11) {
                let mut damaged = buffer.clone();
                damaged[at] ^= 1 << (at % 8);
                let _ = decode_buffer(&damaged, Some(base));
                let _ = decode_buffer(&buffer[..at], Some(base));
            }
        }
        if case.name == "decayed" {
            let encoder = TensorEncoder::new(target, base, &options).unwrap();
            assert_eq!(encoder.predictor(), "scaled");
            assert!(
                buffer.len() < case.target.len() / 8,
                "{} bytes",
                buffer.len()
            );
            // Damage is an error or a value, here too.
            for at in 0..buffer.len().min(900) {
                let mut damaged = buffer.clone();
                damaged[at] ^= 1 << (at % 8);
                let _ = decode_buffer(&damaged, base);
                let _ = decode_buffer(&buffer[..at], base);
            }
        }
        let file = folder.join("buffer");
        std::fs::write(&file, &buffer).unwrap();
        let mut command = Command::new(&python);
        command.arg(&script).arg(&file);
        if let Some((dtype, shape, data)) = &case.base {
            let file = folder.join("base");
            std::fs::write(&file, data).unwrap();
            let shape: Vec<_> = shape.iter().map(u64::to_string).collect();
            command.arg(file).arg(dtype.name()).arg(shape.join("x"));
        }
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() && !zstd && errors.contains("zstandard") {
            continue;
        }
        assert!(output.status.success(), "{}: {errors}", case.name);
        assert!(
            output.stdout == case.target,
            "{}: the reference decoder disagrees",
            case.name
        );
        compared += 1;
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(compared > 40, "only {compared} cases were compared");
}
