//! The codec's fuzz targets on stable: made-up and damaged inputs, a bounded number of them, and no more memory than they justify.
//! `fuzz/` runs the same functions under libFuzzer.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

#[path = "../../fuzz/src/codec.rs"]
#[expect(unreachable_pub, reason = "the fuzz crate exports it")]
mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use sparse_codec::{
    DType, Effort, EncodeOptions, Method, Scratch, TensorEncoder, TensorView, cast, encode_buffer,
};

/// Counts what is allocated, and the most at a time.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: as asked of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as asked of the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) as usize
    }
}

/// Buffers of all kinds of blocks and headers, against the base that the target has or against none.
fn corpus(random: &mut Random) -> Vec<Vec<u8>> {
    let shape = [64, 72];
    let values: Vec<u8> = (0..64 * 72 * 4u32).map(|i| ((i * 37) >> 3) as u8).collect();
    let mut corpus = Vec::new();
    let mut learned = 0;
    for dtype in [DType::BF16, DType::F32, DType::F8E4M3] {
        let bytes = 64 * 72 * dtype.bits() as usize / 8;
        let base = TensorView {
            dtype: Some(dtype),
            shape: &shape,
            data: &values[..bytes],
        };
        for share in [0, 1, 20, 100] {
            let mut target = base.data.to_vec();
            for byte in target.iter_mut().step_by(dtype.bits() as usize / 8) {
                if random.next() % 100 < share {
                    *byte = byte.wrapping_add((random.next() % 9) as u8);
                }
            }
            let target = TensorView {
                data: &target,
                ..base
            };
            for effort in [Effort::Fast, Effort::Default, Effort::Max] {
                let options = EncodeOptions {
                    effort,
                    ..EncodeOptions::default()
                };
                corpus.push(encode_buffer(target, Some(base), &options).unwrap());
                // A header and its block, as the target takes them apart.
                let encoder = TensorEncoder::new(target, Some(base), &options).unwrap();
                if let Ok(length) = u8::try_from(encoder.header().len()) {
                    let mut bytes = [&[length], encoder.header()].concat();
                    let info = encoder.encode_block(0, &mut Scratch::default(), &mut bytes);
                    learned += usize::from(info.unwrap().method == Method::Learned);
                    corpus.push(bytes);
                }
            }
            corpus.push(encode_buffer(target, None, &EncodeOptions::default()).unwrap());
        }
        // A low-rank update, for its header.
        let mut known = Vec::new();
        sparse_codec::to_f32(dtype, base.data, &mut known).unwrap();
        let moved: Vec<u8> = known
            .iter()
            .enumerate()
            .flat_map(|(i, b)| {
                (b + ((i / 72) as f32 - 30.0) * ((i % 72) as f32 - 30.0) * 1e-2).to_le_bytes()
            })
            .collect();
        let moved = cast(DType::F32, &moved, dtype).unwrap();
        let target = TensorView {
            data: &moved,
            ..base
        };
        let options = EncodeOptions {
            effort: Effort::Max,
            ..EncodeOptions::default()
        };
        corpus.push(encode_buffer(target, Some(base), &options).unwrap());
    }
    assert!(learned > 2, "{learned} learned blocks");
    corpus
}

/// One of the ways in which bytes go bad.
fn damage(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.next() % bytes.len().max(1);
    match random.next() % 7 {
        0 => bytes.truncate(at),
        1 => bytes.extend_from_slice(&other[at.min(other.len())..]),
        2 => bytes.splice(at..at, [0xff; 9]).for_each(drop),
        3 => {
            let end = (at + random.next() % 9).min(bytes.len());
            bytes.drain(at..end);
        }
        4 => bytes[at..].iter_mut().take(8).for_each(|b| *b = 0xff),
        _ => {
            // Most structure is near the front.
            let at = if random.next().is_multiple_of(2) {
                at
            } else {
                at % 64
            };
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (random.next() % 8);
            }
        }
    }
}

#[test]
fn targets_hold_on_made_up_and_damaged_inputs() {
    let mut random = Random(0x5eed);
    let corpus = corpus(&mut random);
    for _ in 0..4000 {
        let mut bytes = corpus[random.next() % corpus.len()].clone();
        let other = &corpus[random.next() % corpus.len()];
        for _ in 0..1 + random.next() % 4 {
            damage(&mut bytes, other, &mut random);
            if bytes.is_empty() {
                break;
            }
        }
        MOST.store(NOW.load(Relaxed), Relaxed);
        let before = NOW.load(Relaxed);
        targets::hostile(&bytes);
        // A block may say in a byte or two that it is its base, or noughts, of 2^19 words: nothing near this is due to them here.
        let most = MOST.load(Relaxed) - before;
        assert!(most < 256 << 20, "{most} bytes for {}", bytes.len());
    }
    for _ in 0..300 {
        let length = random.next() % 6000;
        let mask = [0xff, 0x3f, 0x03][random.next() % 3];
        let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8 & mask).collect();
        targets::round_trip(&bytes);
        targets::hostile(&bytes);
    }
}
