//! `Benchmark`: how fast models are rebuilt here, against the memory, the disk and the hash function they are bound by.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use rayon::ThreadPool;
use rayon::prelude::*;
use serde::Serialize;
use sparse_codec::{
    DType, Effort, EncodeOptions, Scratch, SharedTables, TablesTrainer, TensorDecoder,
    TensorEncoder, TensorView, TrainingPair,
};
use sparse_gpu::Choice;
use sparse_store::OpenOptions;
use sparse_store::hash::Sha256;

use crate::error::During;
use crate::progress::Stop;
use crate::{CancelToken, Compress, DeltaError, Progress, Reconstruct, pipeline};

/// Bytes that are copied, hashed, and written to disk.
const PROBE: usize = 128 << 20;
/// Elements of a row of the generated tensors.
const ROW: usize = 1024;
/// Tensors of the generated model.
const TENSORS: usize = 4;
/// The most elements of a generated tensor.
const MAX_ELEMENTS: u64 = 1 << 30;
/// The models that are estimated: name, parameters.
const MODELS: [(&str, f64); 6] = [
    ("1B_model", 1e9),
    ("3B_model", 3e9),
    ("7B_model", 7e9),
    ("13B_model", 13e9),
    ("34B_model", 34e9),
    ("70B_model", 70e9),
];

/// Measures how fast models are rebuilt on this machine.
///
/// ```no_run
/// # async fn example() -> Result<(), sparse_delta::DeltaError> {
/// let report = sparse_delta::Benchmark::new().tensor_size(1_000_000).iterations(10).run().await?;
/// for estimate in &report.estimated_times {
///     println!("{}: {:.0} s, bound by {}", estimate.model, estimate.seconds, estimate.bound_by);
/// }
/// # Ok(()) }
/// ```
#[must_use = "nothing happens until `run` is awaited"]
pub struct Benchmark {
    tensor_size: u64,
    iterations: u64,
    threads: Option<usize>,
    device: Choice,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

/// One thing that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// `memory_copy`, `disk_write`, `disk_read`, `sha256`, `decode` or `reconstruct`.
    pub name: &'static str,
    /// Bytes a second: the median of the iterations.
    pub bytes_per_second: f64,
    /// The fastest iteration.
    pub best: f64,
    /// The slowest iteration.
    pub worst: f64,
    /// `bytes_per_second` over that of `memory_copy`.
    pub of_memory: f64,
    /// What was done.
    pub detail: String,
}

/// How long a model of a size takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// `7B_model` and so on.
    pub model: &'static str,
    /// Bytes of the model: two for each parameter.
    pub bytes: f64,
    /// Seconds, of the step that bounds it.
    pub seconds: f64,
    /// `processor` (decoding and hashing, as measured from files to files), `disk_read` (of base and delta) or `disk_write`.
    pub bound_by: &'static str,
    /// Seconds if only the processor bounded it: base and delta in memory, and the model written at the speed of memory.
    pub processor_seconds: f64,
    /// Seconds to read base and delta from the disk.
    pub read_seconds: f64,
    /// Seconds to write the model.
    pub write_seconds: f64,
}

/// What was measured, and what follows from it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchmarkReport {
    /// Threads that decoded.
    pub threads: usize,
    /// Elements of a generated tensor.
    pub tensor_size: u64,
    /// Bytes of the generated model over those of its delta.
    pub ratio: f64,
    /// What was measured.
    pub measurements: Vec<Measurement>,
    /// What models of common sizes take by that.
    pub estimated_times: Vec<Estimate>,
}

impl Default for Benchmark {
    fn default() -> Self {
        Self::new()
    }
}

impl Benchmark {
    /// Measures with four BF16 tensors of 4 million elements, five times each.
    pub fn new() -> Self {
        Self {
            tensor_size: 4_000_000,
            iterations: 5,
            threads: None,
            device: Choice::default(),
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// Elements of each generated tensor, rounded up to rows of 1024.
    pub fn tensor_size(mut self, elements: u64) -> Self {
        self.tensor_size = elements;
        self
    }

    /// How often everything is measured.
    pub fn iterations(mut self, iterations: u64) -> Self {
        self.iterations = iterations;
        self
    }

    /// How many threads decode. Default: as many as there are cores.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = (threads > 0).then_some(threads);
        self
    }

    /// Where files are rebuilt, as for [`Reconstruct`]; tensors in memory are measured on the CPU.
    pub fn device(mut self, device: Choice) -> Self {
        self.device = device;
        self
    }

    /// Where the cache folder is: the disk that is measured.
    pub fn open_options(mut self, options: OpenOptions) -> Self {
        self.open = options;
        self
    }

    /// Told what is being done and how far it is.
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Stops the operation from outside.
    pub fn cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Measures. What it writes, below the cache folder, is gone afterwards.
    ///
    /// # Errors
    /// No iterations or elements, too many elements, a disk that is full.
    pub async fn run(self) -> Result<BenchmarkReport, DeltaError> {
        if self.iterations == 0 || self.tensor_size == 0 || self.tensor_size > MAX_ELEMENTS {
            return Err(DeltaError::usage(format!(
                "a benchmark needs at least one iteration, and tensors of 1 to {MAX_ELEMENTS} elements"
            )));
        }
        let cache = self.open.cache();
        std::fs::create_dir_all(&cache).during("create", &cache)?;
        let dir = tempfile::Builder::new()
            .prefix(".bench.sparse-tmp-")
            .tempdir_in(&cache)
            .during("create a folder in", &cache)?;
        let stop = Stop::new(self.cancel.clone());
        let on_drop = stop.on_drop();
        let bench = Bench {
            rows: usize::try_from(self.tensor_size.div_ceil(ROW as u64)).unwrap_or(1),
            iterations: self.iterations,
            threads: self.threads,
            progress: self.progress.clone(),
            stop: stop.clone(),
        };
        let folder = dir.path().to_path_buf();
        let measured =
            tokio::task::spawn_blocking(move || pipeline::guarded(|| bench.run(&folder)))
                .await
                .map_err(|error| DeltaError::internal(error.to_string()))?;
        let (threads, mut measurements) = measured?;
        let (times, ratio, bytes) = self.files(dir.path(), &stop).await?;
        drop(on_drop);
        measurements.push(Measurement::new(
            "reconstruct",
            bytes,
            times,
            format!("from files to files: {TENSORS} tensors decoded, checked, hashed and written; all in the page cache"),
        ));
        let memory = rate(&measurements, "memory_copy");
        for measurement in &mut measurements {
            measurement.of_memory = measurement.bytes_per_second / memory;
        }
        Ok(BenchmarkReport {
            threads,
            tensor_size: self.tensor_size.div_ceil(ROW as u64) * ROW as u64,
            ratio,
            estimated_times: estimate(&measurements, ratio),
            measurements,
        })
    }

    /// Files to files: the times, the ratio, and the bytes.
    async fn files(
        &self,
        dir: &Path,
        stop: &Stop,
    ) -> Result<(Vec<Duration>, f64, u64), DeltaError> {
        let path = |name: &str| dir.join(name).display().to_string();
        let compress = Compress::new(path("base"), path("finetune"))
            .output(path("delta"))
            .effort(Effort::Fast)
            .open_options(self.open.clone())
            .cancel(self.cancel.clone());
        let (manifest, _) = compress.run().await?;
        let mut times = Vec::new();
        for iteration in 0..self.iterations {
            stop.check()?;
            self.tell("rebuilding files", iteration);
            let model = dir.join(format!("rebuilt-{iteration}"));
            let mut reconstruct = Reconstruct::new(path("base"), path("delta"))
                .output(model.display().to_string())
                .device(self.device)
                .open_options(self.open.clone())
                .cancel(self.cancel.clone());
            if let Some(threads) = self.threads {
                reconstruct = reconstruct.threads(threads);
            }
            let (_, metrics) = reconstruct.run().await?;
            // Up to the commit: making it durable is the disk's part.
            times.push(metrics.decode);
            std::fs::remove_dir_all(&model).during("remove", &model)?;
        }
        let ratio = manifest.compression_ratio;
        Ok((times, ratio, manifest.original_bytes))
    }

    fn tell(&self, what: &str, iteration: u64) {
        if let Some(progress) = &self.progress {
            #[expect(clippy::cast_precision_loss, reason = "a fraction for people")]
            progress(what, iteration as f64 / self.iterations as f64);
        }
    }
}

impl Measurement {
    fn new(name: &'static str, bytes: u64, mut times: Vec<Duration>, detail: String) -> Self {
        times.sort();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = |time: Option<&Duration>| {
            bytes as f64 / time.map_or(f64::INFINITY, |time| time.as_secs_f64().max(1e-9))
        };
        Self {
            name,
            bytes_per_second: rate(times.get(times.len() / 2)),
            best: rate(times.first()),
            worst: rate(times.last()),
            of_memory: 0.0,
            detail,
        }
    }
}

fn rate(measurements: &[Measurement], name: &str) -> f64 {
    measurements
        .iter()
        .find(|measurement| measurement.name == name)
        .map_or(f64::NAN, |measurement| measurement.bytes_per_second)
}

/// Time grows with bytes: blocks are independent and memory is bounded by them. The disk is worked while blocks are decoded, so the
/// slowest of the three bounds the whole.
fn estimate(measurements: &[Measurement], ratio: f64) -> Vec<Estimate> {
    MODELS
        .iter()
        .map(|&(model, params)| {
            let bytes = params * 2.0;
            let processor_seconds = bytes / rate(measurements, "reconstruct");
            let read_seconds = (bytes + bytes / ratio) / rate(measurements, "disk_read");
            let write_seconds = bytes / rate(measurements, "disk_write");
            let steps = [
                ("processor", processor_seconds),
                ("disk_read", read_seconds),
                ("disk_write", write_seconds),
            ];
            let (bound_by, seconds) = steps
                .into_iter()
                .max_by(|a, b| a.1.total_cmp(&b.1))
                .unwrap_or(("processor", processor_seconds));
            Estimate {
                model,
                bytes,
                seconds,
                bound_by,
                processor_seconds,
                read_seconds,
                write_seconds,
            }
        })
        .collect()
}

/// What is measured off the async threads.
struct Bench {
    rows: usize,
    iterations: u64,
    threads: Option<usize>,
    progress: Option<Progress>,
    stop: Stop,
}

impl Bench {
    fn run(&self, dir: &Path) -> Result<(usize, Vec<Measurement>), DeltaError> {
        let pool = pipeline::pool(self.threads)?;
        let probe = noise(7, PROBE / 2);
        let mut measurements = vec![self.memory(&probe, &pool)?];
        measurements.extend(self.disk(dir, &probe)?);
        measurements.push(self.sha256(&probe)?);
        drop(probe);
        let base: Vec<Vec<u8>> = (0..TENSORS as u64)
            .map(|n| noise(n, self.rows * ROW))
            .collect();
        let tuned: Vec<Vec<u8>> = base
            .iter()
            .zip(0..)
            .map(|(base, n)| step(base, n))
            .collect();
        measurements.push(self.decode(&base, &tuned, &pool)?);
        for (name, tensors) in [("base", &base), ("finetune", &tuned)] {
            save(&dir.join(name), self.rows, tensors)?;
        }
        Ok((pool.current_num_threads(), measurements))
    }

    /// The times of `iterations` runs, after one that is not counted.
    fn times(
        &self,
        what: &str,
        mut work: impl FnMut() -> Result<Duration, DeltaError>,
    ) -> Result<Vec<Duration>, DeltaError> {
        work()?;
        (0..self.iterations)
            .map(|iteration| {
                self.stop.check()?;
                if let Some(progress) = &self.progress {
                    #[expect(clippy::cast_precision_loss, reason = "a fraction for people")]
                    progress(what, iteration as f64 / self.iterations as f64);
                }
                work()
            })
            .collect()
    }

    fn memory(&self, probe: &[u8], pool: &ThreadPool) -> Result<Measurement, DeltaError> {
        let mut out = vec![0_u8; probe.len()];
        let chunk = (probe.len() / pool.current_num_threads()).max(1);
        let times = self.times("copying in memory", || {
            let began = Instant::now();
            pool.install(|| {
                out.par_chunks_mut(chunk)
                    .zip(probe.par_chunks(chunk))
                    .for_each(|(out, probe)| out.copy_from_slice(probe));
            });
            std::hint::black_box(&out);
            Ok(began.elapsed())
        })?;
        let detail = format!("{} MiB copied, on all threads", PROBE >> 20);
        Ok(Measurement::new(
            "memory_copy",
            probe.len() as u64,
            times,
            detail,
        ))
    }

    fn disk(&self, dir: &Path, probe: &[u8]) -> Result<[Measurement; 2], DeltaError> {
        let path = dir.join("probe");
        let written = self.times("writing to the disk", || {
            let began = Instant::now();
            let mut file = File::create(&path).during("create", &path)?;
            file.write_all(probe).during("write", &path)?;
            file.sync_all().during("write", &path)?;
            Ok(began.elapsed())
        })?;
        let mut buffer = vec![0_u8; 4 << 20];
        let read = self.times("reading from the disk", || {
            let mut file = File::open(&path).during("open", &path)?;
            // What is durable can be dropped from memory; where the system does not, memory is what is measured.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            let began = Instant::now();
            while file.read(&mut buffer).during("read", &path)? > 0 {}
            Ok(began.elapsed())
        })?;
        std::fs::remove_file(&path).during("remove", &path)?;
        let size = probe.len() as u64;
        let mib = PROBE >> 20;
        Ok([
            Measurement::new(
                "disk_write",
                size,
                written,
                format!("a file of {mib} MiB written and made durable"),
            ),
            Measurement::new(
                "disk_read",
                size,
                read,
                format!(
                    "a file of {mib} MiB read after the system was asked to drop it from memory"
                ),
            ),
        ])
    }

    fn sha256(&self, probe: &[u8]) -> Result<Measurement, DeltaError> {
        let part = probe.get(..PROBE / 4).unwrap_or(probe);
        let times = self.times("hashing", || {
            let began = Instant::now();
            let mut sha = Sha256::new();
            sha.update(part);
            std::hint::black_box(sha.finish());
            Ok(began.elapsed())
        })?;
        let detail =
            "SHA-256 in memory, on one thread: each rebuilt file is compared by it".to_owned();
        Ok(Measurement::new("sha256", part.len() as u64, times, detail))
    }

    fn decode(
        &self,
        base: &[Vec<u8>],
        tuned: &[Vec<u8>],
        pool: &ThreadPool,
    ) -> Result<Measurement, DeltaError> {
        let shape = [self.rows as u64, ROW as u64];
        let view = |data| TensorView {
            dtype: Some(DType::BF16),
            shape: &shape,
            data,
        };
        let pairs: Vec<TrainingPair<'_>> = base
            .iter()
            .zip(tuned)
            .map(|(base, tuned)| TrainingPair {
                target: view(tuned),
                base: Some(view(base)),
                candidates: &[],
            })
            .collect();
        let encoded = pool.install(|| encode(&pairs)).map_err(codec)?;
        let mut out = vec![0_u8; tuned.iter().map(Vec::len).sum()];
        let times = self.times("decoding", || {
            let began = Instant::now();
            pool.install(|| decode(&encoded, &pairs, &shape, &mut out))
                .map_err(codec)?;
            Ok(began.elapsed())
        })?;
        let whole = out.chunks(tuned.first().map_or(1, Vec::len)).zip(tuned);
        if !whole
            .into_iter()
            .all(|(out, tuned)| out == tuned.as_slice())
        {
            return Err(DeltaError::internal(
                "the benchmark decoded other bytes than it encoded",
            ));
        }
        let detail = "blocks of a fine-tune's update decoded in memory, on all threads".to_owned();
        Ok(Measurement::new("decode", out.len() as u64, times, detail))
    }
}

fn codec(error: sparse_codec::CodecError) -> DeltaError {
    DeltaError::internal(error.to_string())
}

/// A generated model, encoded.
struct Encoded {
    shared: Arc<SharedTables>,
    tensors: Vec<(Vec<u8>, Vec<Vec<u8>>)>,
}

fn encode(pairs: &[TrainingPair<'_>]) -> Result<Encoded, sparse_codec::CodecError> {
    let options = EncodeOptions {
        effort: Effort::Fast,
        ..EncodeOptions::default()
    };
    let mut trainer = TablesTrainer::new(&options);
    trainer.add_all(pairs)?;
    let shared = Arc::new(trainer.finish());
    let options = EncodeOptions {
        shared: Some(Arc::clone(&shared)),
        ..options
    };
    let tensors = pairs
        .iter()
        .map(|pair| {
            let encoder = TensorEncoder::watched(pair.target, pair.base, None, &options, &|_| ())?;
            let blocks = (0..encoder.blocks())
                .into_par_iter()
                .map_init(Scratch::default, |scratch, block| {
                    let mut out = Vec::new();
                    encoder.encode_block(block, scratch, &mut out)?;
                    Ok(out)
                })
                .collect::<Result<_, _>>()?;
            Ok((encoder.header().to_vec(), blocks))
        })
        .collect::<Result<_, sparse_codec::CodecError>>()?;
    Ok(Encoded { shared, tensors })
}

fn decode(
    encoded: &Encoded,
    pairs: &[TrainingPair<'_>],
    shape: &[u64],
    out: &mut [u8],
) -> Result<(), sparse_codec::CodecError> {
    let bf16 = Some(DType::BF16);
    let decoders = encoded
        .tensors
        .iter()
        .map(|(header, _)| {
            TensorDecoder::new(
                bf16,
                shape,
                header,
                Some((bf16, shape)),
                Some(&encoded.shared),
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut work = Vec::new();
    let mut rest = out;
    for (((_, blocks), decoder), pair) in encoded.tensors.iter().zip(&decoders).zip(pairs) {
        for (number, block) in blocks.iter().enumerate() {
            let here;
            (here, rest) = rest.split_at_mut(decoder.target_range(number).len());
            work.push((decoder, number, block, pair.base, here));
        }
    }
    work.into_par_iter().try_for_each_init(
        Scratch::default,
        |scratch, (decoder, number, block, base, here)| {
            decoder.decode_block(number, block, base.map(|base| base.data), here, scratch)
        },
    )
}

/// A number that looks random (SplitMix64's finish), from -1 to 1 and bell-shaped.
fn bell(seed: u64, at: usize) -> f32 {
    let mut sum = 0_i64;
    let mut z = (seed << 48 ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    for bytes in z.to_le_bytes().chunks_exact(2) {
        sum += i64::from(u16::from_le_bytes([bytes[0], bytes[1]])) - 0x8000;
    }
    #[expect(clippy::cast_precision_loss, reason = "noise")]
    let value = sum as f32 / 131_072.0;
    value
}

/// BF16 weights: bell-shaped, each row with a scale of its own.
fn noise(seed: u64, elements: usize) -> Vec<u8> {
    let mut out = vec![0_u8; elements * 2];
    out.par_chunks_mut(ROW * 2)
        .enumerate()
        .for_each(|(row, bytes)| {
            let scale = 0.05 * bell(seed + 100, row).exp();
            for (column, bytes) in bytes.chunks_exact_mut(2).enumerate() {
                let value = bf16::from_f32(bell(seed, row * ROW + column) * scale);
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        });
    out
}

/// The weights after a fine-tune: steps of one size per row, rounded to BF16.
fn step(base: &[u8], seed: u64) -> Vec<u8> {
    let mut out = base.to_vec();
    out.par_chunks_mut(ROW * 2)
        .enumerate()
        .for_each(|(row, bytes)| {
            let size = 3e-4 * bell(seed + 200, row).exp();
            for (column, bytes) in bytes.chunks_exact_mut(2).enumerate() {
                let old = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                let new = bf16::from_f32(old + bell(seed + 300, row * ROW + column) * size);
                bytes.copy_from_slice(&new.to_le_bytes());
            }
        });
    out
}

/// Writes tensors as a model of one safetensors file.
fn save(folder: &Path, rows: usize, tensors: &[Vec<u8>]) -> Result<(), DeltaError> {
    std::fs::create_dir_all(folder).during("create", folder)?;
    let mut entries = serde_json::Map::new();
    let mut start = 0_usize;
    for (number, data) in tensors.iter().enumerate() {
        let end = start + data.len();
        let entry = serde_json::json!({"dtype": "BF16", "shape": [rows, ROW], "data_offsets": [start, end]});
        entries.insert(format!("layers.{number}.weight"), entry);
        start = end;
    }
    let header = serde_json::Value::Object(entries).to_string();
    let path = folder.join("model.safetensors");
    let mut file = File::create(&path).during("create", &path)?;
    let length = (header.len() as u64).to_le_bytes();
    for part in [&length[..], header.as_bytes()]
        .into_iter()
        .chain(tensors.iter().map(Vec::as_slice))
    {
        file.write_all(part).during("write", &path)?;
    }
    Ok(())
}
