//! In-memory codec throughput and ratio against memcpy and the peer, on one thread and on two.
//! `cargo bench -p sparse-benches --bench codec -- BASE FINETUNE [--effort fast|default|max] [--runs N]`

use std::{error::Error, hint::black_box, sync::Arc};

use rayon::prelude::*;
use sparse_benches::{
    clock::{best_of, rate},
    peer,
    subject::Subject,
};
use sparse_codec::{
    EncodeOptions, Scratch, SharedTables, TablesTrainer, TensorDecoder, TensorEncoder, TensorView,
    TrainingPair,
};
use sparse_store::{Model, pair};

type Failure = Box<dyn Error + Send + Sync>;

/// A model pair, encoded in memory.
struct Encoded<'a> {
    shared: Arc<SharedTables>,
    tensors: Vec<EncodedTensor<'a>>,
}

struct EncodedTensor<'a> {
    target: TensorView<'a>,
    base: Option<TensorView<'a>>,
    header: Vec<u8>,
    blocks: Vec<Vec<u8>>,
}

impl Encoded<'_> {
    fn bytes(&self) -> usize {
        self.shared.to_bytes().len()
            + self
                .tensors
                .iter()
                .map(|t| t.header.len() + t.blocks.iter().map(Vec::len).sum::<usize>())
                .sum::<usize>()
    }
}

fn encode<'a>(
    views: &[(TensorView<'a>, Option<TensorView<'a>>)],
    options: &EncodeOptions,
) -> Result<Encoded<'a>, Failure> {
    let mut trainer = TablesTrainer::new(options);
    let pairs: Vec<_> = views
        .iter()
        .map(|(target, base)| TrainingPair {
            target: *target,
            base: *base,
            candidates: &[],
        })
        .collect();
    let low_ranks = trainer.add_all(&pairs)?;
    let shared = Arc::new(trainer.finish());
    let options = EncodeOptions {
        shared: Some(shared.clone()),
        ..options.clone()
    };
    // As the artifact's writer does it: tensors are looked at in parallel, and their blocks are one queue.
    let encoders = views
        .par_iter()
        .zip(&low_ranks)
        .with_max_len(1)
        .map(|((target, base), low_rank)| {
            TensorEncoder::watched(*target, *base, low_rank.as_ref(), &options, &|_| ())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let work: Vec<_> = encoders
        .iter()
        .flat_map(|encoder| (0..encoder.blocks()).map(move |block| (encoder, block)))
        .collect();
    let mut blocks = work
        .par_iter()
        .with_max_len(1)
        .map_init(Scratch::default, |scratch, (encoder, block)| {
            let mut out = Vec::new();
            encoder.encode_block(*block, scratch, &mut out)?;
            Ok(out)
        })
        .collect::<Result<Vec<_>, sparse_codec::CodecError>>()?
        .into_iter();
    let tensors = views
        .iter()
        .zip(&encoders)
        .map(|((target, base), encoder)| EncodedTensor {
            target: *target,
            base: *base,
            header: encoder.header().to_vec(),
            blocks: blocks.by_ref().take(encoder.blocks()).collect(),
        })
        .collect();
    Ok(Encoded { shared, tensors })
}

/// Decodes every tensor into one long output, blocks in parallel on the current pool.
fn decode(encoded: &Encoded<'_>, out: &mut [u8]) -> Result<(), Failure> {
    let decoders = encoded
        .tensors
        .par_iter()
        .map(|t| {
            TensorDecoder::new(
                t.target.dtype,
                t.target.shape,
                &t.header,
                t.base.map(|b| (b.dtype, b.shape)),
                Some(&encoded.shared),
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut work = Vec::new();
    let mut rest = out;
    for (tensor, decoder) in encoded.tensors.iter().zip(&decoders) {
        for (block, payload) in tensor.blocks.iter().enumerate() {
            let (here, after) = rest.split_at_mut(decoder.target_range(block).len());
            rest = after;
            work.push((tensor, decoder, block, payload, here));
        }
    }
    work.into_par_iter().try_for_each_init(
        Scratch::default,
        |scratch, (tensor, decoder, block, payload, here)| {
            decoder.decode_block(block, payload, tensor.base.map(|b| b.data), here, scratch)
        },
    )?;
    Ok(())
}

fn main() -> Result<(), Failure> {
    let subject = Subject::from_args()?;
    let base = Model::open_local(&subject.base)?;
    let finetune = Model::open_local(&subject.finetune)?;
    let views: Vec<_> = pair(&base, &finetune)
        .iter()
        .map(|p| (p.target.view(), p.base.map(|b| b.view())))
        .collect();
    let options = EncodeOptions {
        effort: subject.effort,
        ..EncodeOptions::default()
    };

    let target: Vec<u8> = views
        .iter()
        .flat_map(|(target, _)| target.data)
        .copied()
        .collect();
    let aligned: Vec<u8> = views
        .iter()
        .flat_map(|(target, base)| match base {
            Some(b) if b.data.len() == target.data.len() => b.data.to_vec(),
            _ => vec![0; target.data.len()],
        })
        .collect();
    let bytes = target.len();
    let mut out = vec![0u8; bytes];
    let copy = rate(
        bytes,
        best_of(subject.runs * 2, || out.copy_from_slice(black_box(&target))),
    );
    println!(
        "{}: {:.1} MB, best of {} runs, one thread unless said otherwise",
        subject.finetune.display(),
        bytes as f64 / 1e6,
        subject.runs
    );
    // As `f.copy()` in Python does it, and any program that gets its output's memory from the system: pages are made as they are
    // written. The other memcpy finds its pages there and, where the model is small, both sides in the cache.
    let fresh = rate(
        bytes,
        best_of(subject.runs * 2, || {
            black_box(black_box(&target).clone());
        }),
    );
    println!(
        "memcpy into new memory {fresh:.3} GB/s; shares of memcpy below are of the one into memory that is there"
    );
    println!(
        "{:<34}{:>8}{:>14}{:>9}{:>9}{:>14}{:>9}{:>9}",
        "", "ratio", "encode GB/s", "memcpy", "peer", "decode GB/s", "memcpy", "peer"
    );
    let line = |name: &str, ratio: f64, encode: f64, decode: f64, peer: [f64; 2]| {
        println!(
            "{name:<34}{ratio:>8.3}{encode:>14.3}{:>9.3}{:>9.3}{decode:>14.3}{:>9.3}{:>9.3}",
            encode / copy,
            encode / peer[0],
            decode / copy,
            decode / peer[1]
        );
    };

    let width = views
        .iter()
        .find_map(|(target, _)| target.dtype)
        .map_or(2, |d| if d.bits() == 32 { 4 } else { 2 });
    let mut small = Vec::new();
    let encode_time = best_of(subject.runs, || {
        small = peer::compress(&target, &aligned, width).unwrap_or_default()
    });
    let mut rebuilt = Vec::new();
    let decode_time = best_of(subject.runs, || {
        if peer::decompress(&small, &aligned, width, &mut rebuilt).is_err() {
            rebuilt.clear();
        }
    });
    assert!(rebuilt == target, "the peer is exact");
    let peer = [rate(bytes, encode_time), rate(bytes, decode_time)];
    line("memcpy", 1.0, copy, copy, peer);
    line(
        "ord + planes + zstd -1",
        bytes as f64 / small.len().max(1) as f64,
        peer[0],
        peer[1],
        peer,
    );
    let mut speeds = Vec::new();

    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        let mut encoded = pool.install(|| encode(&views, &options))?;
        let mut failure = None;
        let encode_time = best_of(subject.runs, || {
            match pool.install(|| encode(&views, &options)) {
                Ok(done) => encoded = done,
                Err(error) => failure = Some(error),
            }
        });
        let decode_time = best_of(subject.runs, || {
            if let Err(error) = pool.install(|| decode(&encoded, &mut out)) {
                failure = Some(error);
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
        assert!(out == target, "decoded bytes equal the fine-tune's");
        let speed = [rate(bytes, encode_time), rate(bytes, decode_time)];
        line(
            &format!("sparse --effort {}, {threads} thread(s)", subject.effort),
            bytes as f64 / encoded.bytes().max(1) as f64,
            speed[0],
            speed[1],
            peer,
        );
        speeds.push(speed);
    }
    let [one, two] = speeds[..] else {
        return Ok(());
    };
    let bar = |what: &str, seen: f64, least: f64| {
        let verdict = if seen >= least { "reached" } else { "missed" };
        println!("{what:<52}{seen:>8.3}  bar {least:.2}: {verdict}");
    };
    // The bars of a supervised fine-tune; where few weights change, decoding is to reach half of memcpy.
    bar("decode, one thread, to the peer", one[1] / peer[1], 1.5);
    bar("decode, one thread, to memcpy", one[1] / copy, 0.2);
    bar(
        "decode, one thread, to memcpy into new memory",
        one[1] / fresh,
        0.2,
    );
    bar(
        "decode, one thread, to memcpy, where few change",
        one[1] / copy,
        0.5,
    );
    bar("encode, one thread, to the peer", one[0] / peer[0], 1.0);
    bar("encode, two threads to one", two[0] / one[0], 1.8);
    bar("decode, two threads to one", two[1] / one[1], 1.8);
    Ok(())
}
