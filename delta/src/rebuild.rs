//! Rebuilds the weight files of an artifact: into files, or into nothing but their SHA-256 (verify, dry run).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::ThreadPool;
use rayon::prelude::*;
use sparse_codec::{CodecError, Scratch, SharedTables, TensorDecoder};
use sparse_gpu::{Blocks, Choice, OnDevice};
use sparse_store::hash::Sha256;
use sparse_store::{Header, Model, TensorHandle};

use crate::artifact::Artifact;
use crate::error::During;
use crate::index::{BlockRow, Source, TensorRow, checksum};
use crate::pipeline::{self, Sink, Stage};
use crate::progress::{Stop, Ticker};
use crate::tensor::{Form, find_base, header_prefix};
use crate::{DeltaError, blobs};

/// Bytes of a piece copied from the base.
const COPY: usize = 1 << 20;
/// No block of the codec is larger when decoded.
const MAX_BLOCK: usize = 64 << 20;

/// Everything that is needed to rebuild any weight file.
pub(crate) struct Rebuild<'a> {
    artifact: &'a Artifact,
    base: &'a Model,
    files: Vec<WeightPlan>,
    tables: Option<Arc<SharedTables>>,
    device: Option<Blocks>,
    scratch: Mutex<Vec<Scratch>>,
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// One weight file: its header, and which tensors of the index are in it.
struct WeightPlan {
    head: Vec<u8>,
    header: Header,
    first: usize,
}

/// Where a rebuilt file goes.
pub(crate) struct Target<'t> {
    pub(crate) file: &'t File,
    /// The path people know, not the temporary one.
    pub(crate) shown: &'t Path,
}

impl<'a> Rebuild<'a> {
    /// Reads the headers and checks them against the index: from here on sizes are known to agree.
    pub(crate) fn new(artifact: &'a Artifact, base: &'a Model) -> Result<Self, DeltaError> {
        let manifest = &artifact.manifest;
        let prefix = header_prefix(base);
        let heads = if manifest.headers.raw > 0 {
            blobs::unpack(&artifact.payload, &manifest.headers, &prefix)?
        } else {
            Vec::new()
        };
        let mut heads = heads.as_slice();
        let mut first = 0;
        let mut files = Vec::new();
        for file in &manifest.files {
            let size = usize::try_from(file.header)
                .map_err(|_| DeltaError::internal("a header larger than memory"))?;
            let (head, rest) = heads.split_at_checked(size).ok_or_else(|| {
                DeltaError::corrupt(
                    artifact.payload.path(manifest.headers.payload),
                    "the headers of the files are incomplete",
                )
            })?;
            heads = rest;
            let header = Header::parse(&file.path, head, file.size).map_err(|error| {
                DeltaError::corrupt(
                    artifact.payload.path(manifest.headers.payload),
                    error.to_string(),
                )
            })?;
            if header.data_start != file.header {
                return Err(DeltaError::corrupt(
                    artifact.dir.join(crate::manifest::MANIFEST),
                    format!("the header of {:?} has another size", file.path),
                ));
            }
            for (number, entry) in header.entries.iter().enumerate() {
                let fits = artifact.tensors.get(first + number).is_some_and(|row| {
                    *row.file == *file.path
                        && row.name == entry.name
                        && row.dtype == entry.dtype
                        && row.shape == entry.shape
                });
                if !fits {
                    let problem = format!(
                        "tensor {:?} of {:?} is not where it should be",
                        entry.name, file.path
                    );
                    return Err(DeltaError::corrupt(artifact.index_path(), problem));
                }
            }
            let count = header.entries.len();
            files.push(WeightPlan {
                head: head.to_vec(),
                header,
                first,
            });
            first += count;
        }
        if first != artifact.tensors.len() {
            return Err(DeltaError::corrupt(
                artifact.index_path(),
                "it has tensors that no file has",
            ));
        }
        let tables = match &manifest.tables {
            None => None,
            Some(blob) => {
                let bytes = blobs::unpack(&artifact.payload, blob, &[])?;
                let tables = SharedTables::from_bytes(&bytes).map_err(|error| {
                    DeltaError::corrupt(
                        artifact.payload.path(blob.payload),
                        format!("the tables: {error}"),
                    )
                })?;
                Some(Arc::new(tables))
            }
        };
        Ok(Self {
            artifact,
            base,
            files,
            tables,
            device: None,
            scratch: Mutex::default(),
            buffers: Mutex::default(),
        })
    }

    /// The base's file that a weight file equals, header and every tensor of it.
    pub(crate) fn unchanged(&self, number: usize) -> Option<&'a Path> {
        let plan = self.files.get(number)?;
        let entry = self.artifact.manifest.files.get(number)?;
        let base = self.base.file(&entry.path)?;
        let alike = base.size == entry.size && base.header_bytes() == plan.head;
        let same = |(unit, place): (usize, &sparse_store::TensorEntry)| {
            let row = self.artifact.tensors.get(plan.first + unit)?;
            match row.source {
                Source::Empty => Some(()),
                Source::Same => {
                    let data = self.base_of(row).ok()??.data();
                    let start = usize::try_from(place.range.start).ok()?;
                    let there = base.bytes().get(start..start.checked_add(data.len())?)?;
                    std::ptr::eq(there, data).then_some(())
                }
                _ => None,
            }
        };
        let all = || plan.header.entries.iter().enumerate().try_for_each(same);
        (alike && all().is_some()).then(|| base.path())
    }

    /// Decodes blocks on a device, as far as it has kernels for them.
    pub(crate) fn on(mut self, device: Choice) -> Result<Self, DeltaError> {
        if device != Choice::Cpu {
            self.device = Some(Blocks::open(device)?);
        }
        Ok(self)
    }

    /// Blocks that a GPU decoded.
    pub(crate) fn device_blocks(&self) -> u64 {
        self.device.as_ref().map_or(0, |all| all.done().device)
    }

    /// Rebuilds one weight file. Returns its SHA-256.
    pub(crate) fn file(
        &self,
        number: usize,
        target: Option<&Target<'_>>,
        pool: &ThreadPool,
        stop: &Stop,
        ticker: &Ticker,
    ) -> Result<String, DeltaError> {
        let plan = self
            .files
            .get(number)
            .ok_or_else(|| DeltaError::internal("no such file"))?;
        let mut sink = Hashing {
            rebuild: self,
            plan,
            sha: Sha256::new(),
            ticker,
        };
        if let Some(target) = target {
            target
                .file
                .write_all_at(&plan.head, 0)
                .during("write", target.shown)?;
        }
        sink.sha.update(&plan.head);
        ticker.add(plan.head.len() as u64);
        pipeline::run(
            pool,
            &Decoding {
                rebuild: self,
                plan,
                target,
            },
            &mut sink,
            stop,
        )?;
        Ok(sink.sha.finish_hex())
    }

    /// The bytes of one tensor, by its number in the index.
    pub(crate) fn tensor(&self, number: usize) -> Result<Vec<u8>, DeltaError> {
        let plan = self
            .files
            .iter()
            .rfind(|plan| plan.first <= number && number < plan.first + plan.header.entries.len())
            .ok_or_else(|| DeltaError::internal("no such tensor"))?;
        let unit = number - plan.first;
        let decoding = Decoding {
            rebuild: self,
            plan,
            target: None,
        };
        let ready = decoding.prepare(unit)?;
        let pieces = (0..decoding.parts(unit, &ready))
            .into_par_iter()
            .map(|part| decoding.work(unit, &ready, part))
            .collect::<Result<Vec<_>, _>>()?;
        let mut bytes = Vec::new();
        for piece in &pieces {
            bytes.extend_from_slice(piece.bytes());
        }
        Ok(bytes)
    }

    fn corrupt(&self, row: &TensorRow, problem: impl std::fmt::Display) -> DeltaError {
        DeltaError::corrupt(
            self.artifact.index_path(),
            format!("tensor {:?} of {:?}: {problem}", row.name, &*row.file),
        )
    }

    /// The base tensor of a row. It was there when the delta was made, so a missing one means another base.
    fn base_of(&self, row: &TensorRow) -> Result<Option<TensorHandle<'a>>, DeltaError> {
        if row.base == crate::index::BaseRef::None {
            return Ok(None);
        }
        match find_base(self.base, &row.base, &row.file, &row.name) {
            Some(tensor) => Ok(Some(tensor)),
            None => Err(self.corrupt(row, "the base has no tensor for it")),
        }
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

struct Decoding<'r, 'a> {
    rebuild: &'r Rebuild<'a>,
    plan: &'r WeightPlan,
    target: Option<&'r Target<'r>>,
}

/// A tensor ready to be decoded.
enum Ready<'r, 'a> {
    Empty,
    Copy(&'a [u8]),
    Decode {
        row: &'r TensorRow,
        blocks: &'r [BlockRow],
        decoder: Box<TensorDecoder>,
        base: Option<&'a [u8]>,
        /// Blocks of a part: one, or as many as a device decodes together.
        together: usize,
        on_device: OnDevice,
    },
}

/// A decoded piece, in order: its own buffer, or a part of the base.
enum Piece<'a> {
    Own(Vec<u8>),
    Base(&'a [u8]),
}

impl Piece<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(buffer) => buffer,
            Self::Base(part) => part,
        }
    }
}

impl<'r, 'a> Stage for Decoding<'r, 'a> {
    type Prepared = Ready<'r, 'a>;
    type Output = Piece<'a>;

    fn units(&self) -> usize {
        self.plan.header.entries.len()
    }

    fn weight(&self, unit: usize) -> u64 {
        self.plan
            .header
            .entries
            .get(unit)
            .map_or(0, |entry| entry.bytes())
    }

    fn prepare(&self, unit: usize) -> Result<Ready<'r, 'a>, DeltaError> {
        let (artifact, number) = (self.rebuild.artifact, self.plan.first + unit);
        let (Some(row), Some(entry)) = (
            artifact.tensors.get(number),
            self.plan.header.entries.get(unit),
        ) else {
            return Err(DeltaError::internal("no such tensor"));
        };
        let form = Form::new(&entry.dtype, &entry.shape, entry.bytes());
        // A twin is decoded from the blocks of the tensor it equals.
        let (source, number) = match row.source {
            Source::Twin(of) => match artifact.tensors.get(of) {
                Some(twin) if twin.dtype == row.dtype && twin.shape == row.shape => (twin, of),
                _ => {
                    return Err(self.rebuild.corrupt(
                        row,
                        "it is said to equal a tensor of another dtype or shape",
                    ));
                }
            },
            _ => (row, number),
        };
        let blocks = match &source.source {
            Source::Empty if entry.bytes() == 0 => return Ok(Ready::Empty),
            Source::Empty => return Err(self.rebuild.corrupt(row, "it has no data")),
            Source::Same => {
                let data = self
                    .rebuild
                    .base_of(source)?
                    .map(|base| base.data())
                    .unwrap_or_default();
                if data.len() as u64 != entry.bytes() {
                    return Err(self
                        .rebuild
                        .corrupt(row, "it is said to equal a base tensor of another size"));
                }
                return Ok(Ready::Copy(data));
            }
            Source::Coded(blocks) => blocks,
            Source::Twin(_) => {
                return Err(self
                    .rebuild
                    .corrupt(row, "it is said to equal one that equals another"));
            }
        };
        let header = artifact.header(number)?;
        let base = self.rebuild.base_of(source)?;
        let base_form = base.map(Form::of);
        let shape = base_form
            .as_ref()
            .map(|form| (form.dtype, form.shape.as_slice()));
        let decoder = TensorDecoder::new(
            form.dtype,
            &form.shape,
            &header,
            shape,
            self.rebuild.tables.as_ref(),
        )
        .map_err(|error| self.rebuild.corrupt(row, error))?;
        if decoder.blocks() != blocks.len() {
            return Err(self.rebuild.corrupt(
                row,
                format!(
                    "it has {} blocks where {} are due",
                    blocks.len(),
                    decoder.blocks()
                ),
            ));
        }
        let chunk = self.rebuild.device.as_ref().and_then(|d| d.chunk(&decoder));
        let together = chunk.map_or(1, |chunk| chunk / decoder.target_range(0).len().max(1));
        Ok(Ready::Decode {
            row,
            blocks,
            decoder: Box::new(decoder),
            base: base.map(|base| base.data()),
            together: together.max(1),
            on_device: OnDevice::default(),
        })
    }

    fn parts(&self, _unit: usize, ready: &Ready<'r, 'a>) -> usize {
        match ready {
            Ready::Empty => 0,
            Ready::Copy(data) => data.len().div_ceil(COPY),
            Ready::Decode {
                blocks, together, ..
            } => blocks.len().div_ceil(*together),
        }
    }

    fn work(
        &self,
        unit: usize,
        ready: &Ready<'r, 'a>,
        part: usize,
    ) -> Result<Piece<'a>, DeltaError> {
        let start = self
            .plan
            .header
            .entries
            .get(unit)
            .map_or(0, |entry| entry.range.start);
        match ready {
            Ready::Empty => Ok(Piece::Base(&[])),
            Ready::Copy(data) => {
                let from = part * COPY;
                let piece = data
                    .get(from..data.len().min(from + COPY))
                    .unwrap_or_default();
                self.write(piece, start + from as u64)?;
                Ok(Piece::Base(piece))
            }
            Ready::Decode {
                row,
                blocks,
                decoder,
                base,
                together,
                on_device,
            } => {
                let first = part * together;
                let blocks = blocks
                    .get(first..blocks.len().min(first + together))
                    .ok_or_else(|| DeltaError::internal("no such block"))?;
                let run = Run {
                    row,
                    first,
                    blocks,
                    decoder,
                    base: *base,
                };
                let range = self.bounds(unit, &run)?;
                let mut buffer: Vec<u8> = take(&self.rebuild.buffers);
                buffer.resize(range.len(), 0);
                self.decode(&run, on_device, &mut buffer)?;
                self.write(&buffer, start + range.start as u64)?;
                Ok(Piece::Own(buffer))
            }
        }
    }
}

/// Consecutive blocks of a tensor.
struct Run<'r> {
    row: &'r TensorRow,
    first: usize,
    blocks: &'r [BlockRow],
    decoder: &'r TensorDecoder,
    base: Option<&'r [u8]>,
}

impl Decoding<'_, '_> {
    /// The bytes of a tensor that blocks make, none of them too many.
    fn bounds(&self, unit: usize, run: &Run<'_>) -> Result<Range<usize>, DeltaError> {
        let size = self.weight(unit);
        let mut all = run.decoder.target_range(run.first);
        for block in run.first..run.first + run.blocks.len() {
            let range = run.decoder.target_range(block);
            if range.len() > MAX_BLOCK || range.end as u64 > size {
                return Err(self.rebuild.corrupt(run.row, "a block lies outside of it"));
            }
            all.end = range.end;
        }
        Ok(all)
    }

    /// Decodes blocks whose checksums are right into `out`: on a device what it does, the rest here.
    fn decode(
        &self,
        run: &Run<'_>,
        on_device: &OnDevice,
        out: &mut [u8],
    ) -> Result<(), DeltaError> {
        let Run {
            row,
            first,
            decoder,
            base,
            ..
        } = *run;
        let mut stored: Vec<Vec<u8>> = Vec::with_capacity(run.blocks.len());
        for (number, block) in run.blocks.iter().enumerate() {
            let mut bytes = take(&self.rebuild.buffers);
            self.rebuild.artifact.payload.read(
                block.payload,
                block.offset,
                u64::from(block.length),
                &mut bytes,
            )?;
            if checksum(&bytes) != block.checksum {
                let problem = "its checksum is wrong".into();
                return Err(self.damaged(row, first + number, block, problem));
            }
            stored.push(bytes);
        }
        let left = match (&self.rebuild.device, base) {
            (Some(device), Some(base)) => {
                let blocks: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
                device.decode(on_device, decoder, first, &blocks, base, out)?
            }
            _ => (0..stored.len()).collect(),
        };
        let mut scratch = take(&self.rebuild.scratch);
        let start = decoder.target_range(first).start;
        for number in left {
            let range = decoder.target_range(first + number);
            let (Some(bytes), Some(block), Some(to)) = (
                stored.get(number),
                run.blocks.get(number),
                out.get_mut(range.start - start..range.end - start),
            ) else {
                return Err(DeltaError::internal("no such block"));
            };
            decoder
                .decode_block(first + number, bytes, base, to, &mut scratch)
                .map_err(|error| match error {
                    CodecError::Base { .. } => self.rebuild.corrupt(row, error),
                    other => self.damaged(row, first + number, block, other.to_string()),
                })?;
        }
        give(&self.rebuild.scratch, scratch);
        for bytes in stored {
            give(&self.rebuild.buffers, bytes);
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), DeltaError> {
        match self.target {
            Some(target) => target
                .file
                .write_all_at(bytes, at)
                .during("write", target.shown),
            None => Ok(()),
        }
    }

    fn damaged(
        &self,
        row: &TensorRow,
        part: usize,
        block: &BlockRow,
        problem: String,
    ) -> DeltaError {
        let problem = format!(
            "block {part} of tensor {:?} ({} bytes at {}): {problem}",
            row.name, block.length, block.offset
        );
        DeltaError::corrupt(self.rebuild.artifact.payload.path(block.payload), problem)
    }
}

/// Takes the pieces in order and hashes them while they are still in the cache.
struct Hashing<'r, 'a> {
    rebuild: &'r Rebuild<'a>,
    plan: &'r WeightPlan,
    sha: Sha256,
    ticker: &'r Ticker,
}

impl<'r, 'a> Sink<Decoding<'r, 'a>> for Hashing<'r, 'a> {
    fn part(
        &mut self,
        _unit: usize,
        _ready: &Ready<'r, 'a>,
        _part: usize,
        piece: Piece<'a>,
    ) -> Result<(), DeltaError> {
        let bytes = piece.bytes();
        self.sha.update(bytes);
        self.ticker.add(bytes.len() as u64);
        if let Piece::Own(buffer) = piece {
            give(&self.rebuild.buffers, buffer);
        }
        Ok(())
    }

    fn end(&mut self, unit: usize, _ready: &Ready<'r, 'a>) -> Result<(), DeltaError> {
        if let Some(row) = self.rebuild.artifact.tensors.get(self.plan.first + unit)
            && let Some(base) = find_base(self.rebuild.base, &row.base, &row.file, &row.name)
        {
            base.release();
        }
        Ok(())
    }
}
