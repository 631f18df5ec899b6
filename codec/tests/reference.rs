//! The reference decoder (`tests/oracles/codec_reference.py`) reads our buffers and agrees. Needs a Python 3; without one
//! (and with `SPARSE_TEST_PYTHON` unset) the test says so and passes.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

use std::{path::Path, process::Command};

use sparse_codec::{
    DType, Effort, EncodeOptions, TensorEncoder, TensorView, cast, decode_buffer, encode_buffer,
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
}

fn values(x: &[f64], dtype: DType) -> Vec<u8> {
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    cast(DType::F64, &bytes, dtype).unwrap()
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
            });
        }
    }
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
    });
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
        let buffer = encode_buffer(target, base, &options).unwrap();
        assert_eq!(
            decode_buffer(&buffer, base).unwrap().data,
            case.target,
            "{}",
            case.name
        );
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
