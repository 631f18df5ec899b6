//! Errors of the driver, at every call in turn: each comes back as an error, nothing is half-done, and the next device works.
//! For the stand-in only.

use std::ffi::{CString, c_char, c_int};
use std::sync::Arc;

use cudarc::driver::sys;
use sparse_codec::{DType, DeltaStats, EncodeOptions, Granularity, Int8, Matrices};
use sparse_gpu::{
    Blocks, Choice, Coded, Compute, Device, Encoding, GpuError, Int8Streamed, Ran, Resident,
    Restored, Ring, Segments, SvdStreamed, Update, predict_streamed,
};
use sparse_svd::Rank;

use crate::suite::blocks::{Kind, Pair, decode_in_runs, encode_all};
use crate::suite::{Numbers, matrices, svd, view};

fn inject(text: &str) {
    let text = CString::new(text).unwrap();
    // SAFETY: the symbol is the stand-in's, and the text a C string.
    unsafe {
        let set = sys::culib()
            .get::<unsafe extern "C" fn(*const c_char) -> c_int>(b"standin_inject\0")
            .unwrap();
        assert_eq!(set(text.as_ptr()), 0);
    }
}

/// 0, 1, 2, ..., then ever farther apart.
fn growing() -> impl Iterator<Item = usize> {
    std::iter::successors(Some(0), |n| Some(n + 1 + n / 16)).take_while(|n| *n < 5000)
}

fn clear() {
    inject("");
}

/// Does work with the Nth call of a kind failing, for N that grow, until it succeeds; how many such calls it makes, about.
fn at_every_call(kind: &str, mut work: impl FnMut() -> Result<(), GpuError>) -> usize {
    // The library must be there before it is told to fail.
    drop(Device::open().unwrap());
    for n in growing() {
        inject(&format!("{kind}:{n}"));
        let result = work();
        clear();
        match result {
            Ok(()) => return n,
            Err(error) => {
                let told = match kind {
                    "alloc" | "pinned" => matches!(error, GpuError::Memory { .. }),
                    _ => matches!(error, GpuError::Driver { .. } | GpuError::Blas { .. }),
                };
                assert!(told, "{kind}:{n}: {error:?}");
            }
        }
    }
    panic!("{kind}: it never succeeds");
}

#[test]
#[ignore = "needs the stand-in"]
fn statistics_and_int8_fail_cleanly() {
    let mut numbers = Numbers(3);
    let (base, target) = (
        numbers.words(DType::BF16, 3000, false),
        numbers.words(DType::BF16, 3000, false),
    );
    let shape = [30, 100];
    let (base, target) = (
        view(DType::BF16, &shape, &base),
        view(DType::BF16, &shape, &target),
    );
    let wanted = DeltaStats::of(target, base).unwrap();
    for (kind, least) in [("alloc", 5), ("launch", 4), ("lost", 40)] {
        let failed = at_every_call(kind, || {
            let device = Device::open()?;
            assert_eq!(device.delta_stats(target, base)?.unwrap(), wanted);
            let segments = Segments::rows(100);
            let quantised = device.int8_quantise(target, Some(base), segments)?;
            device.int8_apply(base, &quantised, segments)?;
            Ok(())
        });
        assert!(failed >= least, "{kind}: {failed}");
    }
}

struct Streamed {
    matrices: Matrices,
    words: Vec<u8>,
    wanted: Vec<u8>,
    classes: Vec<u8>,
}

impl Streamed {
    fn new() -> Self {
        let mut numbers = Numbers(9);
        let matrices = matrices(DType::BF16, 20, 60, 2, 1.0, false, &mut numbers);
        let words = numbers.words(DType::BF16, 1200, false);
        let (mut wanted, mut classes) = (words.clone(), Vec::new());
        matrices.predict(0, &mut wanted, &mut classes);
        Self {
            matrices,
            words,
            wanted,
            classes,
        }
    }

    /// What was written is the beginning of what is wanted, all of it on success.
    fn run(&self, choice: Choice) -> Result<Ran, GpuError> {
        let (mut out, mut places) = (Vec::new(), Vec::new());
        let result = predict_streamed(
            choice,
            &self.matrices,
            Ring {
                chunk: 130,
                slots: 3,
            },
            1200,
            |at, to| {
                to.copy_from_slice(&self.words[at..at + to.len()]);
                Ok(())
            },
            |words, classes| {
                out.extend_from_slice(words);
                places.extend_from_slice(classes);
                Ok::<_, GpuError>(())
            },
        );
        assert!(self.wanted.starts_with(&out) && self.classes.starts_with(&places));
        if result.is_ok() {
            assert_eq!((out.len(), places.len()), (2400, 1200));
        }
        result
    }
}

#[test]
#[ignore = "needs the stand-in"]
fn a_stream_that_must_have_a_gpu_fails_cleanly() {
    let streamed = Streamed::new();
    for (kind, least) in [("alloc", 11), ("pinned", 9), ("launch", 10), ("lost", 100)] {
        let failed = at_every_call(kind, || {
            let ran = streamed.run(Choice::Cuda)?;
            assert_eq!((ran.device, ran.cpu), (1200, 0));
            Ok(())
        });
        assert!(failed >= least, "{kind}: {failed}");
    }
}

#[test]
#[ignore = "needs the stand-in"]
fn a_stream_goes_on_on_the_cpu() {
    let streamed = Streamed::new();
    drop(Device::open().unwrap());
    let mut midway = 0;
    for kind in ["alloc", "pinned", "launch", "lost"] {
        for n in growing() {
            inject(&format!("{kind}:{n}"));
            let ran = streamed.run(Choice::Auto).unwrap();
            clear();
            assert_eq!(ran.device + ran.cpu, 1200);
            midway += u32::from(ran.device > 0 && ran.cpu > 0);
            if ran.device == 1200 {
                break;
            }
            assert!(n < 4000);
        }
    }
    assert!(midway > 10, "{midway}");
}

#[test]
#[ignore = "needs the stand-in"]
fn a_switch_that_fails_leaves_no_mixture() {
    let mut numbers = Numbers(21);
    let shape = [20, 60];
    let base = numbers.words(DType::BF16, 1200, false);
    let base = [
        view(DType::BF16, &shape, &base),
        view(DType::BF16, &shape, &base),
    ];
    let update = matrices(DType::BF16, 20, 60, 2, 1.0, false, &mut numbers);
    let (mut wanted, mut classes) = (base[0].data.to_vec(), Vec::new());
    update.predict(0, &mut wanted, &mut classes);
    let updates = [(0, Update::LowRank(&update)), (1, Update::LowRank(&update))];
    drop(Device::open().unwrap());
    let mut mixed = 0;
    for kind in ["alloc", "launch", "lost"] {
        for n in growing() {
            let device = Device::open().unwrap();
            let mut resident = Resident::new(&device, &base).unwrap();
            inject(&format!("{kind}:{n}"));
            let result = resident.switch(&updates);
            clear();
            if result.is_ok() {
                assert_eq!(resident.read(1).unwrap(), wanted);
                break;
            }
            assert!(matches!(resident.read(0), Err(GpuError::Broken)));
            // Out of memory passes; another switch makes it whole.
            if kind == "alloc" {
                resident.switch(&updates[..1]).unwrap();
                assert_eq!(resident.read(0).unwrap(), wanted);
                assert_eq!(resident.read(1).unwrap(), base[1].data);
                mixed += 1;
            }
        }
    }
    assert!(mixed >= 2);
}

#[test]
#[ignore = "needs the stand-in"]
fn decoding_fails_cleanly() {
    let pair = Pair::new(DType::BF16, 20, 300, Kind::LowRank, 8);
    let options = EncodeOptions::default();
    let (header, blocks) = pair.encode(&options);
    let decoder = pair.decoder(&header, &options);
    let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
    let coded = Coded {
        decoder: &decoder,
        blocks: &blocks,
    };
    for (kind, least) in [("alloc", 8), ("launch", 2), ("lost", 30)] {
        let failed = at_every_call(kind, || {
            let (out, restored) = Device::open()?.decode(pair.base(), coded)?;
            assert_eq!((restored.device, restored.cpu), (1, 0));
            assert!(out == pair.target);
            Ok(())
        });
        assert!(failed >= least, "{kind}: {failed}");
    }
}

/// Tensors that are decoded through one ring on several threads: the targets, or an error.
struct Ringed(Vec<(Pair, Vec<u8>, Vec<Vec<u8>>)>);

impl Ringed {
    fn new() -> Self {
        let kinds = [Kind::Dense, Kind::LowRank, Kind::Decayed];
        let coded = kinds.iter().map(|kind| {
            let pair = Pair::new(DType::BF16, 20, 300, *kind, 12);
            let (header, blocks) = pair.encode(&EncodeOptions::default());
            (pair, header, blocks)
        });
        Self(coded.collect())
    }

    fn run(&self, choice: Choice) -> Result<Restored, GpuError> {
        let all = Blocks::with_ring(choice, 1 << 20, 2)?;
        let decode = |(pair, header, blocks): &(Pair, Vec<u8>, Vec<Vec<u8>>)| {
            let decoder = pair.decoder(header, &EncodeOptions::default());
            let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
            let out = decode_in_runs(&all, &decoder, &blocks, &pair.base, pair.target.len())?;
            assert!(out == pair.target);
            Ok(())
        };
        let ended: Vec<Result<(), GpuError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = self.0.iter().map(|t| scope.spawn(|| decode(t))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for one in ended {
            one?;
        }
        Ok(all.done())
    }
}

/// Scales and words of INT8, on two threads through one ring of three slots.
fn int8(choice: Choice) -> Result<(), GpuError> {
    let mut numbers = Numbers(31);
    let shape = [20, 60];
    let (base, target) = (
        numbers.words(DType::BF16, 1200, false),
        numbers.words(DType::BF16, 1200, false),
    );
    let (base, target) = (
        view(DType::BF16, &shape, &base),
        view(DType::BF16, &shape, &target),
    );
    let streamed = Int8Streamed::with_ring(choice, 300, 3)?;
    let work = || {
        for granularity in [Granularity::Tensor, Granularity::Row] {
            let slow = Int8::new(target, Some(base), granularity)?;
            let fast = streamed.quantise(target, Some(base), granularity)?;
            assert_eq!(fast.scales(), slow.scales());
            assert!(streamed.rebuilt(&fast, 0..1200)? == slow.rebuilt(0..1200));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work().and(other.join().unwrap())
    })
}

#[test]
#[ignore = "needs the stand-in"]
fn streamed_int8_fails_cleanly_or_goes_on() {
    for (kind, least) in [("alloc", 7), ("pinned", 6), ("launch", 20), ("lost", 200)] {
        let failed = at_every_call(kind, || int8(Choice::Cuda));
        assert!(failed >= least, "{kind}: {failed}");
        for n in growing().take_while(|n| *n <= failed).step_by(3) {
            inject(&format!("{kind}:{n}"));
            int8(Choice::Auto).unwrap();
            clear();
        }
    }
}

/// Matrices on two threads through one ring: how many were decomposed on the device. None of it is half a decomposition.
fn decompose(choice: Choice) -> Result<u64, GpuError> {
    let pair = svd::Pair::new(
        [DType::BF16; 2],
        20,
        &svd::decaying(24, 20, 9, 0.8, 41),
        &[0.25; 480],
    );
    let all = SvdStreamed::with_ring(choice, 200)?;
    let work = || -> Result<(), GpuError> {
        for rank in [3, 0] {
            let found = all.decompose(pair.tuned(), pair.base(), Rank::Fixed(rank), &|| Ok(()))?;
            assert!(found.is_none_or(|svd| svd.rank() == rank));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work().and(other.join().unwrap())
    })?;
    Ok(all.done())
}

#[test]
#[ignore = "needs the stand-in"]
fn decompositions_fail_cleanly_or_go_on() {
    let mut midway = 0;
    for (kind, least) in [
        ("alloc", 40),
        ("pinned", 6),
        ("launch", 20),
        ("blas", 30),
        ("lost", 300),
    ] {
        let failed = at_every_call(kind, || {
            assert_eq!(decompose(Choice::Cuda)?, 4);
            Ok(())
        });
        assert!(failed >= least, "{kind}: {failed}");
        for n in growing().take_while(|n| *n <= failed).step_by(3) {
            inject(&format!("{kind}:{n}"));
            let done = decompose(Choice::Auto).unwrap();
            clear();
            midway += u32::from(done > 0 && done < 4);
        }
    }
    for n in [0, 5, 17] {
        inject(&format!("wrong:{n}"));
        let wrong = decompose(Choice::Cuda);
        assert!(matches!(wrong, Err(GpuError::Wrong { .. })), "{wrong:?}");
        inject(&format!("wrong:{n}"));
        assert!(decompose(Choice::Auto).unwrap() < 4);
        clear();
    }
    assert!(midway > 3, "{midway}");
}

#[test]
#[ignore = "needs the stand-in"]
fn encoding_fails_cleanly_or_goes_on() {
    let pair = Pair::new(DType::BF16, 20, 300, Kind::LowRank, 8);
    let run = |choice: Choice| {
        let compute = Arc::new(Compute::open(choice)?);
        encode_all(&Encoding::on(&compute)?, &pair, &EncodeOptions::default())
    };
    for (kind, least) in [("alloc", 9), ("pinned", 6), ("launch", 2), ("lost", 80)] {
        let failed = at_every_call(kind, || {
            assert_eq!(run(Choice::Cuda)?, 1);
            Ok(())
        });
        assert!(failed >= least, "{kind}: {failed}");
        for n in growing().take_while(|n| *n <= failed).step_by(3) {
            inject(&format!("{kind}:{n}"));
            run(Choice::Auto).unwrap();
            clear();
        }
    }
}

#[test]
#[ignore = "needs the stand-in"]
fn a_ring_that_must_have_a_gpu_fails_cleanly() {
    let ringed = Ringed::new();
    for (kind, least) in [("alloc", 10), ("pinned", 5), ("launch", 3), ("lost", 100)] {
        let failed = at_every_call(kind, || {
            let done = ringed.run(Choice::Cuda)?;
            assert_eq!(done, Restored { device: 3, cpu: 0 });
            Ok(())
        });
        assert!(failed >= least, "{kind}: {failed}");
    }
}

#[test]
#[ignore = "needs the stand-in"]
fn a_ring_goes_on_on_the_cpu() {
    let ringed = Ringed::new();
    drop(Device::open().unwrap());
    let mut midway = 0;
    for kind in ["alloc", "pinned", "launch", "lost"] {
        for n in growing() {
            inject(&format!("{kind}:{n}"));
            let done = ringed.run(Choice::Auto).unwrap();
            clear();
            assert_eq!(done.device + done.cpu, 3);
            midway += u32::from(done.device > 0 && done.device < 3);
            if done.device == 3 {
                break;
            }
        }
    }
    assert!(midway > 0);
}
