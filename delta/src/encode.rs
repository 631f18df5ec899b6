//! The encoding of all tensors of a pair of models: the analysis and blocks on all cores, the artifact's parts in order.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::ThreadPool;
use rayon::prelude::*;
use sparse_adapter::PeftAdapter;
use sparse_codec::{
    BlockInfo, CodecError, Distortion, EncodeOptions, Int8, LowRank, Method, Scratch,
    TablesTrainer, TensorDecoder, TensorEncoder, TensorView, TrainingPair,
};
use sparse_gpu::{Blocks, Encoded as Strips, ForEncoding, GpuError, Int8Streamed, OnDevice};
use sparse_store::hash::Sha256;
use sparse_store::{Model, Pair, TensorHandle};

use crate::artifact::FRAME_SIZE;
use crate::index::{BaseRef, BlockRow, Source, TensorRow, checksum};
use crate::manifest::{Blob, Lossy};
use crate::mode::Mode;
use crate::payload::PayloadWriter;
use crate::pipeline::{self, Sink, Stage};
use crate::progress::{Stop, Ticker};
use crate::residency;
use crate::tensor::{Form, base_ref};
use crate::{DeltaError, Progress, blobs};

/// Bytes compared at a time when a tensor may equal its base.
const COMPARE: usize = 4 << 20;
/// Elements of a quantised tensor that are rebuilt at a time to be hashed.
const WINDOW: usize = 4 << 20;
/// Bytes of tensors whose statistics and predictions are found at a time.
const TRAIN: u64 = 64 << 20;

/// Where INT8 is computed, and blocks are encoded and decoded again to check them.
pub(crate) struct Elsewhere {
    pub(crate) int8: Int8Streamed,
    pub(crate) blocks: Blocks,
    pub(crate) encoding: sparse_gpu::Encoding,
}

/// What the encoding of all tensors leaves, beside the blocks in the payload.
pub(crate) struct Encoded {
    pub(crate) tensors: Vec<TensorRow>,
    pub(crate) tables: Option<Blob>,
    pub(crate) frames: Vec<Blob>,
    pub(crate) block_bytes: u64,
    pub(crate) blocks: u64,
    /// What is lost, and the SHA-256 of each file that will be rebuilt, where that is not the fine-tune's.
    pub(crate) lossy: Option<(Lossy, Vec<String>)>,
}

/// Encodes every pair into `writer`; an adapter's updates are tried as predictions.
#[expect(clippy::too_many_arguments, reason = "two models and where to and how")]
pub(crate) fn encode(
    base: &Model,
    finetune: &Model,
    pairs: &[Pair<'_>],
    mode: Mode,
    device: &Elsewhere,
    adapter: Option<&PeftAdapter>,
    options: &EncodeOptions,
    writer: &mut PayloadWriter,
    pool: &ThreadPool,
    stop: &Stop,
    progress: &Option<Progress>,
) -> Result<Encoded, DeltaError> {
    let forms: Vec<(Form, Option<Form>)> = pairs
        .iter()
        .map(|p| (Form::of(p.target), p.base.map(Form::of)))
        .collect();
    let mut stage = Encoding {
        pairs,
        forms: &forms,
        mode,
        device,
        adapter,
        low_ranks: (0..pairs.len()).map(|_| None).collect(),
        wholes: (0..pairs.len()).map(|_| OnceLock::new()).collect(),
        options: options.clone(),
        scratch: Mutex::default(),
        buffers: Mutex::default(),
    };
    let bytes = pairs.iter().map(|pair| pair.target.entry.bytes()).sum();
    let ticker = Ticker::new(progress.clone(), "looking for predictions", bytes);
    let trained = stage.train(pool, stop, &ticker)?;
    let ticker = Ticker::new(progress.clone(), "compressing", bytes);
    let mut sink = Writing {
        base,
        stage: &stage,
        writer,
        ticker: &ticker,
        tensors: Vec::with_capacity(pairs.len()),
        frame: Vec::new(),
        frames: Vec::new(),
        block_bytes: 0,
        blocks: 0,
    };
    pipeline::run(pool, &stage, &mut sink, stop)?;
    sink.close_frame()?;
    ticker.finish();
    let lossy = pipeline::guarded(|| pool.install(|| stage.lossy(finetune, stop)))?;
    let Writing {
        tensors,
        frames,
        block_bytes,
        blocks,
        writer,
        ..
    } = sink;
    let tables = match trained {
        Some(bytes) if tensors.iter().any(|t| t.header > 0) => {
            Some(blobs::store(writer, &bytes, &[])?)
        }
        _ => None,
    };
    Ok(Encoded {
        tensors,
        tables,
        frames,
        block_bytes,
        blocks,
        lossy,
    })
}

struct Encoding<'a> {
    pairs: &'a [Pair<'a>],
    forms: &'a [(Form, Option<Form>)],
    mode: Mode,
    device: &'a Elsewhere,
    adapter: Option<&'a PeftAdapter>,
    /// Low-rank predictions, as training found them.
    low_ranks: Vec<Option<LowRank>>,
    /// Which tensors are stored nowhere, once it was found out: training asks first, encoding again.
    wholes: Vec<OnceLock<Option<Source>>>,
    options: EncodeOptions,
    scratch: Mutex<Vec<Scratch>>,
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// A tensor ready to be encoded.
enum Ready<'a> {
    /// Nothing to encode: no bytes, its base's bytes, or another tensor's.
    Whole(Source),
    Encode {
        encoder: Box<TensorEncoder<'a>>,
        decoder: Box<TensorDecoder>,
        base: Option<&'a [u8]>,
        on_device: (ForEncoding, OnDevice),
    },
}

struct Block {
    bytes: Vec<u8>,
    info: BlockInfo,
    checksum: u64,
}

impl<'a> Encoding<'a> {
    fn views(&self, unit: usize) -> Option<(TensorView<'a>, Option<TensorView<'a>>)> {
        let (pair, (form, base_form)) = (self.pairs.get(unit)?, self.forms.get(unit)?);
        let base = match (pair.base, base_form) {
            (Some(base), Some(form)) => Some(form.view(base.data())),
            _ => None,
        };
        Some((form.view(pair.target.data()), base))
    }

    /// Whether the tensor's bytes are stored nowhere.
    fn whole(&self, unit: usize) -> Option<Source> {
        let known = self.wholes.get(unit)?;
        known.get_or_init(|| self.find_whole(unit)).clone()
    }

    fn find_whole(&self, unit: usize) -> Option<Source> {
        let pair = self.pairs.get(unit)?;
        let target = pair.target;
        if target.entry.bytes() == 0 {
            return Some(Source::Empty);
        }
        if let Some(base) = pair.base
            && same_tensor(base, target)
        {
            return Some(Source::Same);
        }
        // A twin of a twin is a twin of the first, which is stored as blocks, for it does not equal its base.
        let mut of = pair.same_as?;
        while let Some(next) = self.pairs.get(of)?.same_as {
            of = next;
        }
        let first = self.pairs.get(of)?.target;
        let alike = of < unit
            && first.entry.dtype == target.entry.dtype
            && first.shape() == target.shape()
            && same_tensor(first, target);
        // The first may equal *its* base: then it has no blocks to share, and this one is encoded.
        let coded = alike && !matches!(self.whole(of), Some(Source::Same | Source::Empty));
        coded.then_some(Source::Twin(of))
    }

    /// Gathers the tables that all tensors share. Reads a sample of each tensor.
    fn train(
        &mut self,
        pool: &ThreadPool,
        stop: &Stop,
        ticker: &Ticker,
    ) -> Result<Option<Vec<u8>>, DeltaError> {
        let mut trainer = TablesTrainer::new(&self.options);
        let mut start = 0;
        while start < self.pairs.len() {
            stop.check()?;
            let (mut end, mut bytes) = (start, 0);
            while end < self.pairs.len() && bytes < TRAIN {
                bytes += self.pairs[end].target.entry.bytes();
                end += 1;
            }
            let (units, found) = pipeline::guarded(|| {
                pool.install(|| {
                    let units: Vec<usize> = (start..end)
                        .into_par_iter()
                        .filter(|&unit| {
                            self.pairs[unit].base.is_some()
                                && self.whole(unit).is_none()
                                && !self.suits_int8(unit)
                        })
                        .collect();
                    let candidates = units
                        .par_iter()
                        .map(|&unit| self.candidates(unit))
                        .collect::<Result<Vec<_>, _>>()?;
                    let pairs: Vec<_> = units
                        .iter()
                        .zip(&candidates)
                        .filter_map(|(&unit, candidates)| {
                            let (target, base) = self.views(unit)?;
                            Some(TrainingPair {
                                target,
                                base,
                                candidates,
                            })
                        })
                        .collect();
                    let found = trainer
                        .add_all(&pairs)
                        .map_err(|error| self.failed(start, error))?;
                    Ok((units, found))
                })
            })?;
            for (unit, found) in units.into_iter().zip(found) {
                self.low_ranks[unit] = found;
            }
            for pair in &self.pairs[start..end] {
                release(pair);
            }
            ticker.add(bytes);
            start = end;
        }
        let tables = trainer.finish();
        let bytes = tables.to_bytes();
        self.options.shared = Some(Arc::new(tables));
        Ok(Some(bytes))
    }

    /// The predictions that the given adapter makes of a tensor: merged at once, or rounded first.
    fn candidates(&self, unit: usize) -> Result<Vec<LowRank>, DeltaError> {
        let (Some(adapter), Some(pair)) = (self.adapter, self.pairs.get(unit)) else {
            return Ok(Vec::new());
        };
        let base = pair.base.map_or(pair.target, |base| base);
        let Some(module) = adapter.module_of(base.name()) else {
            return Ok(Vec::new());
        };
        [false, true]
            .into_iter()
            .map(|rounded| Ok(adapter.prediction(module, base.shape(), rounded)?))
            .collect()
    }

    /// Whether a tensor is one that the mode quantises, if its differences are finite.
    fn suits_int8(&self, unit: usize) -> bool {
        self.mode != Mode::Lossless
            && self
                .views(unit)
                .is_some_and(|(target, base)| Int8::suits(target, base))
    }

    /// The quantised difference of a tensor that the mode quantises; none of one that is kept exactly.
    fn int8(&self, unit: usize) -> Result<Option<Int8<'a>>, DeltaError> {
        let Mode::Int8(granularity) = self.mode else {
            return Ok(None);
        };
        match self.views(unit) {
            Some((target, base)) if Int8::suits(target, base) => {
                match self.device.int8.quantise(target, base, granularity) {
                    Ok(int8) => Ok(Some(int8)),
                    Err(GpuError::Codec(CodecError::NotFinite { .. })) => Ok(None),
                    Err(GpuError::Codec(error)) => Err(self.failed(unit, error)),
                    Err(error) => Err(error.into()),
                }
            }
            _ => Ok(None),
        }
    }

    /// What the mode loses, and the SHA-256 of each file that will be rebuilt.
    fn lossy(
        &self,
        finetune: &Model,
        stop: &Stop,
    ) -> Result<Option<(Lossy, Vec<String>)>, DeltaError> {
        let Mode::Int8(granularity) = self.mode else {
            return Ok(None);
        };
        let (mut tensors, mut error) = (0, Distortion::default());
        let mut hashes = Vec::new();
        let mut unit = 0;
        for file in finetune.files() {
            let mut sha = Sha256::new();
            sha.update(file.header_bytes());
            for _ in &file.header().entries {
                stop.check()?;
                let int8 = match self.whole(unit) {
                    None => self.int8(unit)?,
                    Some(Source::Twin(of)) => self.int8(of)?,
                    Some(_) => None,
                };
                if let Some(int8) = int8 {
                    if self.whole(unit).is_none() {
                        tensors += 1;
                        error.merge(&int8.measure());
                    }
                    for start in (0..int8.elements()).step_by(WINDOW) {
                        stop.check()?;
                        // On the CPU, as blocks are: no fault of a device may become a hash.
                        sha.update(&int8.rebuilt(start..start + WINDOW));
                    }
                } else if let Some(pair) = self.pairs.get(unit) {
                    sha.update(pair.target.data());
                }
                if let Some(pair) = self.pairs.get(unit) {
                    release(pair);
                }
                unit += 1;
            }
            hashes.push(sha.finish_hex());
        }
        Ok(Some((Lossy::new(granularity, tensors, &error), hashes)))
    }

    fn failed(&self, unit: usize, source: CodecError) -> DeltaError {
        let target = self.pairs.get(unit).map(|p| p.target);
        DeltaError::Codec {
            file: target.map(|t| t.file.name.clone()).unwrap_or_default(),
            tensor: target.map(|t| t.name().to_owned()).unwrap_or_default(),
            source,
        }
    }

    fn name(&self, unit: usize) -> &str {
        self.pairs.get(unit).map_or("", |p| p.target.name())
    }
}

impl<'a> Stage for Encoding<'a> {
    type Prepared = Ready<'a>;
    type Output = Block;

    fn units(&self) -> usize {
        self.pairs.len()
    }

    fn weight(&self, unit: usize) -> u64 {
        self.pairs
            .get(unit)
            .map_or(0, |pair| pair.target.entry.bytes())
    }

    fn prepare(&self, unit: usize) -> Result<Ready<'a>, DeltaError> {
        if let Some(source) = self.whole(unit) {
            return Ok(Ready::Whole(source));
        }
        let (target, base) = self
            .views(unit)
            .ok_or_else(|| DeltaError::internal("no such tensor"))?;
        let seen = |bytes: Range<usize>| {
            if let Some(pair) = self.pairs.get(unit) {
                release_pair(pair, bytes);
            }
            residency::relieve();
        };
        let encoder = match (self.int8(unit)?, base) {
            (Some(int8), Some(base)) => TensorEncoder::int8(target, base, int8),
            _ => TensorEncoder::watched(
                target,
                base,
                self.low_ranks.get(unit).and_then(Option::as_ref),
                &self.options,
                &seen,
            )
            .map_err(|error| self.failed(unit, error))?,
        };
        let shape = base.map(|b| (b.dtype, b.shape));
        let decoder = TensorDecoder::new(
            target.dtype,
            target.shape,
            encoder.header(),
            shape,
            self.options.shared.as_ref(),
        )
        .map_err(|error| self.failed(unit, error))?;
        if decoder.blocks() != encoder.blocks() {
            return Err(DeltaError::internal(format!(
                "encoder and decoder of tensor {:?} disagree on its blocks",
                self.name(unit)
            )));
        }
        Ok(Ready::Encode {
            encoder: Box::new(encoder),
            decoder: Box::new(decoder),
            base: base.map(|b| b.data),
            on_device: Default::default(),
        })
    }

    fn parts(&self, _unit: usize, ready: &Ready<'a>) -> usize {
        match ready {
            Ready::Whole(_) => 0,
            Ready::Encode { encoder, .. } => encoder.blocks(),
        }
    }

    /// Encodes a block and decodes it again: a fault of the codec must never become an artifact.
    fn work(&self, unit: usize, ready: &Ready<'a>, part: usize) -> Result<Block, DeltaError> {
        let Ready::Encode {
            encoder,
            decoder,
            base,
            on_device: (for_encoding, for_decoding),
        } = ready
        else {
            return Err(DeltaError::internal("a tensor without blocks has one"));
        };
        let mut scratch = take(&self.scratch);
        let mut bytes: Vec<u8> = take(&self.buffers);
        let mut again: Vec<u8> = take(&self.buffers);
        let range = encoder.target_range(part);
        let original = encoder.expected(part);
        again.resize(range.len(), 0);
        bytes.clear();
        // What one processor encodes another one decodes, where there are two.
        let made = self.encodes_elsewhere(
            unit,
            encoder,
            part,
            *base,
            for_encoding,
            &mut scratch,
            &mut bytes,
        )?;
        let mut decoded = Ok(());
        let info = match made {
            Some(info)
                if decoder
                    .decode_block(part, &bytes, *base, &mut again, &mut scratch)
                    .is_ok()
                    && *original == *again =>
            {
                info
            }
            _ => {
                bytes.clear();
                let info = encoder
                    .encode_block(part, &mut scratch, &mut bytes)
                    .map_err(|error| self.failed(unit, error))?;
                let elsewhere =
                    self.decodes_elsewhere(decoder, part, &bytes, *base, for_decoding, &mut again)?;
                if !elsewhere || *original != *again {
                    decoded = decoder.decode_block(part, &bytes, *base, &mut again, &mut scratch);
                }
                info
            }
        };
        if decoder.target_range(part) != range || *original != again || decoded.is_err() {
            let why = decoded
                .err()
                .map_or_else(|| "other bytes".into(), |error| error.to_string());
            let name = self.name(unit);
            return Err(DeltaError::internal(format!(
                "block {part} of tensor {name:?} does not decode to what it was ({why})"
            )));
        }
        give(&self.scratch, scratch);
        give(&self.buffers, again);
        let checksum = checksum(&bytes);
        Ok(Block {
            bytes,
            info,
            checksum,
        })
    }
}

impl Encoding<'_> {
    /// Encodes a block with strips from a device, where it does them.
    #[expect(
        clippy::too_many_arguments,
        reason = "a block and what is known of its tensor"
    )]
    fn encodes_elsewhere(
        &self,
        unit: usize,
        encoder: &TensorEncoder<'_>,
        part: usize,
        base: Option<&[u8]>,
        needs: &ForEncoding,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<Option<BlockInfo>, DeltaError> {
        let (Some(base), Some((target, _))) = (base, self.views(unit)) else {
            return Ok(None);
        };
        let encoding = &self.device.encoding;
        let Some(strips) = encoding.strips(needs, encoder, part, target.data, base)? else {
            return Ok(None);
        };
        let codes: Vec<_> = strips.iter().map(Strips::code).collect();
        encoder
            .encode_coded(part, &codes, scratch, out)
            .map(Some)
            .map_err(|error| self.failed(unit, error))
    }

    /// Whether a device decoded a block; what it makes of it may still be wrong.
    fn decodes_elsewhere(
        &self,
        decoder: &TensorDecoder,
        part: usize,
        bytes: &[u8],
        base: Option<&[u8]>,
        needs: &OnDevice,
        out: &mut [u8],
    ) -> Result<bool, DeltaError> {
        let blocks = &self.device.blocks;
        let (Some(base), Some(_)) = (base, blocks.chunk(decoder)) else {
            return Ok(false);
        };
        let left = blocks.decode(needs, decoder, part, &[bytes], base, out)?;
        Ok(left.is_empty())
    }
}

fn take<T: Default>(pool: &Mutex<Vec<T>>) -> T {
    pool.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop()
        .unwrap_or_default()
}

fn give<T>(pool: &Mutex<Vec<T>>, value: T) {
    pool.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(value);
}

/// Whether two tensors have the same bytes. What was found equal is not looked at again, so its pages are let go.
fn same_tensor(a: TensorHandle<'_>, b: TensorHandle<'_>) -> bool {
    let (left, right) = (a.data(), b.data());
    left.len() == right.len()
        && left
            .par_chunks(COMPARE)
            .zip(right.par_chunks(COMPARE))
            .enumerate()
            .all(|(chunk, (x, y))| {
                let same = x == y;
                residency::relieve();
                if same {
                    let range = chunk * COMPARE..chunk * COMPARE + x.len();
                    release_part(a, range.clone());
                    release_part(b, range);
                }
                same
            })
}

/// Lets go of the pages behind some bytes of a target, and behind those of its base that predict them.
fn release_pair(pair: &Pair<'_>, bytes: Range<usize>) {
    if let Some(base) = pair.base
        && base.entry.dtype == pair.target.entry.dtype
    {
        release_part(base, bytes.clone());
    }
    release_part(pair.target, bytes);
}

/// Lets go of the pages behind some bytes of a tensor.
fn release_part(tensor: TensorHandle<'_>, bytes: Range<usize>) {
    let start = tensor.entry.range.start;
    tensor
        .file
        .release(start + bytes.start as u64..start + bytes.end as u64);
}

fn release(pair: &Pair<'_>) {
    pair.target.release();
    if let Some(base) = pair.base {
        base.release();
    }
}

/// Takes the blocks in order and writes them down.
struct Writing<'w, 'a> {
    base: &'w Model,
    stage: &'w Encoding<'a>,
    writer: &'w mut PayloadWriter,
    ticker: &'w Ticker,
    tensors: Vec<TensorRow>,
    frame: Vec<u8>,
    frames: Vec<Blob>,
    block_bytes: u64,
    blocks: u64,
}

impl Writing<'_, '_> {
    fn close_frame(&mut self) -> Result<(), DeltaError> {
        if !self.frame.is_empty() {
            self.frames
                .push(blobs::store(self.writer, &self.frame, &[])?);
            self.frame.clear();
        }
        Ok(())
    }
}

impl<'a> Sink<Encoding<'a>> for Writing<'_, 'a> {
    fn begin(&mut self, unit: usize, ready: &Ready<'a>) -> Result<(), DeltaError> {
        let pair = self
            .stage
            .pairs
            .get(unit)
            .ok_or_else(|| DeltaError::internal("no such tensor"))?;
        let target = pair.target;
        let file: Arc<str> = match self.tensors.last() {
            Some(last) if *last.file == *target.file.name => Arc::clone(&last.file),
            _ => target.file.name.as_str().into(),
        };
        let mut base = pair.base.map_or(BaseRef::None, |base| {
            base_ref(self.base, base, &file, target.name())
        });
        let (source, predictor, header, changed) = match ready {
            Ready::Whole(Source::Same) => (Source::Same, "base", &[][..], 0),
            Ready::Whole(Source::Twin(of)) => {
                base = BaseRef::None;
                let twin = self
                    .tensors
                    .get(*of)
                    .map_or(target.params(), TensorRow::changed);
                (Source::Twin(*of), "none", &[][..], twin)
            }
            Ready::Whole(source) => {
                base = BaseRef::None;
                (source.clone(), "none", &[][..], 0)
            }
            Ready::Encode { encoder, .. } => (
                Source::Coded(Vec::with_capacity(encoder.blocks())),
                encoder.predictor(),
                encoder.header(),
                0,
            ),
        };
        if !self.frame.is_empty() && self.frame.len() + header.len() > FRAME_SIZE {
            self.close_frame()?;
        }
        self.frame.extend_from_slice(header);
        self.tensors.push(TensorRow {
            file,
            name: target.name().to_owned(),
            dtype: target.entry.dtype.clone(),
            shape: target.shape().to_vec(),
            base,
            predictor: predictor.to_owned(),
            header: header.len() as u64,
            source,
            changed,
        });
        Ok(())
    }

    fn part(
        &mut self,
        unit: usize,
        ready: &Ready<'a>,
        part: usize,
        block: Block,
    ) -> Result<(), DeltaError> {
        let (payload, offset) = self.writer.append(&block.bytes)?;
        let length = u32::try_from(block.bytes.len())
            .map_err(|_| DeltaError::internal("a block of over 4 GiB"))?;
        self.block_bytes += u64::from(length);
        self.blocks += 1;
        let row = BlockRow {
            method: method_name(block.info.method),
            changed: block.info.changed,
            payload,
            offset,
            length,
            checksum: block.checksum,
        };
        let current = self.tensors.len() == unit + 1;
        match self.tensors.last_mut().map(|tensor| &mut tensor.source) {
            Some(Source::Coded(blocks)) if blocks.len() == part && current => blocks.push(row),
            _ => return Err(DeltaError::internal("a block arrived out of order")),
        }
        if let (Ready::Encode { encoder, .. }, Some(pair)) = (ready, self.stage.pairs.get(unit)) {
            let range = encoder.target_range(part);
            self.ticker.add(range.len() as u64);
            release_pair(pair, range);
        }
        give(&self.stage.buffers, block.bytes);
        Ok(())
    }

    fn end(&mut self, unit: usize, ready: &Ready<'a>) -> Result<(), DeltaError> {
        if let Some(pair) = self.stage.pairs.get(unit) {
            release(pair);
        }
        if matches!(ready, Ready::Whole(_)) {
            self.ticker.add(self.stage.weight(unit));
        }
        Ok(())
    }
}

fn method_name(method: Method) -> Arc<str> {
    method.name().into()
}
