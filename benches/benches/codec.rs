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
    let tensors = views
        .iter()
        .zip(&low_ranks)
        .map(|((target, base), low_rank)| {
            let encoder =
                TensorEncoder::watched(*target, *base, low_rank.as_ref(), &options, &|_| ())?;
            let blocks = (0..encoder.blocks())
                .into_par_iter()
                .map_init(Scratch::default, |scratch, block| {
                    let mut out = Vec::new();
                    encoder.encode_block(block, scratch, &mut out)?;
                    Ok(out)
                })
                .collect::<Result<_, sparse_codec::CodecError>>()?;
            Ok(EncodedTensor {
                target: *target,
                base: *base,
                header: encoder.header().to_vec(),
                blocks,
            })
        })
        .collect::<Result<_, Failure>>()?;
    Ok(Encoded { shared, tensors })
}

/// Decodes every tensor into one long output, blocks in parallel on the current pool.
fn decode(encoded: &Encoded<'_>, out: &mut [u8]) -> Result<(), Failure> {
    let decoders = encoded
        .tensors
        .iter()
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
    println!(
        "{:<34}{:>8}{:>14}{:>9}{:>14}{:>9}",
        "", "ratio", "encode GB/s", "memcpy", "decode GB/s", "memcpy"
    );
    let line = |name: &str, ratio: f64, encode: f64, decode: f64| {
        println!(
            "{name:<34}{ratio:>8.3}{encode:>14.3}{:>9.3}{decode:>14.3}{:>9.3}",
            encode / copy,
            decode / copy
        );
    };
    line("memcpy", 1.0, copy, copy);

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
    line(
        "ord + planes + zstd -1",
        bytes as f64 / small.len().max(1) as f64,
        rate(bytes, encode_time),
        rate(bytes, decode_time),
    );

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
        line(
            &format!("sparse --effort {}, {threads} thread(s)", subject.effort),
            bytes as f64 / encoded.bytes().max(1) as f64,
            rate(bytes, encode_time),
            rate(bytes, decode_time),
        );
    }
    Ok(())
}
