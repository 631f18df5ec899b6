//! The recipe of a file that is there.

use std::io::Write;
use std::path::Path;

use arrow::datatypes::SchemaRef;
use parquet::basic::Compression;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use sparse_delta::DeltaError;
use sparse_store::Map;

use super::hybrid::leb;
use super::leaves::Kind;
use super::make::{Encoding, Facts, Maker, Page, PageKind, Part, Supply, from_base64, op};
use super::pack::Codec;
use super::thrift::{self, PageHeader, Value, Visit};
use crate::DatasetError;
use crate::error::During as _;

/// Why a file does not come back byte for byte.
pub(super) type Why = String;

/// A recipe as it grows.
struct Writer {
    recipe: Vec<u8>,
    /// What is stored of pages, which no compression makes smaller.
    stored: u64,
}

impl Writer {
    fn literal(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.recipe.push(op::LITERAL);
            sized(bytes, &mut self.recipe);
        }
    }
}

fn sized(bytes: &[u8], out: &mut Vec<u8>) {
    leb(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Takes what is made only if it is what the file has.
struct Same<'a>(&'a [u8]);

impl Write for Same<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.strip_prefix(bytes) {
            Some(rest) => {
                self.0 = rest;
                Ok(bytes.len())
            }
            None => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The recipe that makes a Parquet file of its rows, or why there is none that stores at most `most` bytes of pages.
pub(super) fn recipe(
    path: &Path,
    schema: &SchemaRef,
    supply: &mut Supply<'_>,
    most: u64,
    memory: u64,
) -> Result<Result<Vec<u8>, Why>, DatasetError> {
    let map = Map::open(path)?;
    let bytes = map.bytes();
    let file = std::fs::File::open(path).during("open", path)?;
    let metadata = ParquetMetaDataReader::new()
        .parse_and_finish(&file)
        .map_err(|error| DatasetError::data(path.display().to_string(), error))?;
    for group in metadata.row_groups() {
        // The group's rows, the plain file made of them, its leaves, a page: each about as large.
        let bytes = u64::try_from(group.total_byte_size()).unwrap_or(u64::MAX);
        if bytes.saturating_mul(4) > memory {
            return Ok(Err(format!(
                "a row group of {} MiB takes more memory than is allowed (`memory`)",
                bytes >> 20
            )));
        }
    }
    let mut same = Same(bytes);
    let work = Work {
        bytes,
        metadata: &metadata,
        maker: Maker::new(schema, path, &mut same),
        writer: Writer {
            recipe: Vec::new(),
            stored: 0,
        },
        codec: Codec::Plain,
        most,
    };
    match work.run(supply) {
        Ok(recipe) => Ok(Ok(recipe)),
        Err(Stop::Why(why)) => Ok(Err(why)),
        Err(Stop::Error(error)) => Err(error),
    }
}

enum Stop {
    Why(Why),
    Error(DatasetError),
}

impl From<DatasetError> for Stop {
    /// What cannot be made as the file has it is no failure: its rows can be had.
    fn from(error: DatasetError) -> Self {
        match error {
            DatasetError::Damaged { .. } => odd(),
            DatasetError::Artifact(DeltaError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::InvalidData =>
            {
                odd()
            }
            error => Self::Error(error),
        }
    }
}

fn odd() -> Stop {
    Stop::Why("the file is laid out in a way that this program does not know".to_owned())
}

struct Work<'a> {
    bytes: &'a [u8],
    metadata: &'a ParquetMetaData,
    maker: Maker<'a>,
    writer: Writer,
    /// The codec that gave the last page's bytes.
    codec: Codec,
    most: u64,
}

impl Work<'_> {
    fn at(&self) -> usize {
        usize::try_from(self.maker.at).unwrap_or(usize::MAX)
    }

    fn literal_to(&mut self, end: usize) -> Result<(), Stop> {
        let literal = self.bytes.get(self.at()..end).ok_or_else(odd)?;
        self.writer.literal(literal);
        self.maker.put(literal)?;
        Ok(())
    }

    fn run(mut self, supply: &mut Supply<'_>) -> Result<Vec<u8>, Stop> {
        let metadata = self.metadata;
        for (group, own) in metadata.row_groups().iter().enumerate() {
            let mut chunks = Vec::new();
            for (column, chunk) in own.columns().iter().enumerate() {
                known(chunk.compression(), chunk.column_descr().name())?;
                let (start, length) = chunk.byte_range();
                let start = usize::try_from(start).map_err(|_| odd())?;
                let length = usize::try_from(length).map_err(|_| odd())?;
                chunks.push((start, start.checked_add(length).ok_or_else(odd)?, column));
            }
            chunks.sort_unstable();
            let start = chunks.first().map_or(self.at(), |&(start, _, _)| start);
            self.literal_to(start)?;
            let rows = usize::try_from(own.num_rows()).map_err(|_| odd())?;
            self.writer.recipe.push(op::GROUP);
            leb(rows as u64, &mut self.writer.recipe);
            self.maker.group(rows, supply)?;
            if group == 0 {
                self.compare_leaves()?;
            }
            for (start, end, column) in chunks {
                self.literal_to(start)?;
                self.writer.recipe.push(op::CHUNK);
                leb(column as u64, &mut self.writer.recipe);
                self.maker.chunk(column)?;
                while self.at() < end {
                    self.page(end, own.column(column).compression())?;
                }
            }
        }
        self.footer()?;
        self.writer.recipe.push(op::END);
        Ok(self.writer.recipe)
    }

    /// Whether the file stores the values in the types that this program would.
    fn compare_leaves(&self) -> Result<(), Stop> {
        let columns = self.metadata.file_metadata().schema_descr().columns();
        let different = columns
            .iter()
            .zip(&self.maker.leaves)
            .find(|(column, leaf)| Kind::of(column) != leaf.kind);
        match different {
            Some((column, _)) => Err(Stop::Why(format!(
                "the file stores column {} as {}, which is not what its type in Arrow says",
                column.path().string(),
                column.physical_type()
            ))),
            None if columns.len() != self.maker.leaves.len() => Err(odd()),
            None => Ok(()),
        }
    }

    fn page(&mut self, end: usize, compression: Compression) -> Result<(), Stop> {
        let rest = self.bytes.get(self.at()..end).ok_or_else(odd)?;
        let header = thrift::page_header(rest).ok_or_else(odd)?;
        let size = usize::try_from(header.packed).map_err(|_| odd())?;
        let raw_size = usize::try_from(header.raw).map_err(|_| odd())?;
        let (of_header, after) = rest.split_at(header.bytes);
        let packed = after.get(..size).ok_or_else(odd)?;
        let (kind, levels) = match header.kind {
            2 => (PageKind::Dictionary, 0),
            0 => (PageKind::First, 0),
            3 => (
                PageKind::Second,
                usize::try_from(header.definition.saturating_add(header.repetition))
                    .map_err(|_| odd())?,
            ),
            _ => return Err(odd()),
        };
        let (levels, packed_values) = packed.split_at_checked(levels).ok_or_else(odd)?;
        let raw = unpack(
            compression,
            packed_values,
            raw_size.checked_sub(levels.len()).ok_or_else(odd)?,
        );
        let raw = raw.as_deref().unwrap_or(packed_values);
        let page = Page {
            kind,
            encoding: self.encoding(header, kind, raw).ok_or_else(|| {
                Stop::Why("a page is encoded in a way that this program does not write".to_owned())
            })?,
            codec: Codec::Plain,
            count: usize::try_from(header.values).map_err(|_| odd())?,
        };
        let facts = self.maker.facts(page, raw_size as u64, size as u64)?;
        let mut template = Vec::new();
        page_template(of_header, &facts, &mut template);
        let body = self.maker.body(page)?;
        let is_same = body
            .as_ref()
            .is_some_and(|body| body.levels == levels && body.raw == raw);
        let codec = match is_same {
            true => self.codec_of(raw, packed_values)?,
            false => None,
        };
        let recipe = &mut self.writer.recipe;
        let dictionary: &[u8] = match kind {
            PageKind::Dictionary => raw,
            _ => &[],
        };
        if let Some(codec) = codec {
            self.codec = codec;
            let page = Page { codec, ..page };
            recipe.push(op::PAGE);
            page.write(recipe);
            recipe.extend_from_slice(&template);
        } else {
            recipe.push(op::STORED);
            page.write(recipe);
            leb(raw_size as u64, recipe);
            recipe.extend_from_slice(&template);
            sized(packed, recipe);
            self.writer.stored += size as u64;
            if kind == PageKind::Dictionary {
                sized(dictionary, recipe);
            }
            if self.writer.stored > self.most {
                let why = if is_same {
                    "its pages are compressed otherwise than the writers do that are known here"
                } else {
                    "its pages are encoded otherwise than the writers do that are known here"
                };
                return Err(Stop::Why(why.to_owned()));
            }
        }
        self.maker
            .page(page, &facts, &template, [&[], packed], dictionary)?;
        Ok(())
    }

    fn encoding(&self, header: PageHeader, kind: PageKind, raw: &[u8]) -> Option<Encoding> {
        match header.encoding {
            _ if kind == PageKind::Dictionary => Some(Encoding::Plain),
            0 => Some(Encoding::Plain),
            3 => Some(Encoding::Runs),
            2 | 8 => {
                let leaf = self.maker.leaves.get(self.maker.leaf())?;
                let mut at = 0_usize;
                if kind == PageKind::First {
                    for most in [leaf.kind.most_repeated, leaf.kind.most_defined] {
                        if most > 0 {
                            let length = raw.get(at..)?.first_chunk::<4>()?;
                            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
                            at = at.checked_add(4)?.checked_add(length)?;
                        }
                    }
                }
                // A page without values may end here.
                let width = raw.get(at).copied().unwrap_or(0);
                (width <= 32).then_some(Encoding::Indices(width))
            }
            _ => None,
        }
    }

    /// The codec that makes these bytes of those.
    fn codec_of(&self, raw: &[u8], packed: &[u8]) -> Result<Option<Codec>, DatasetError> {
        for codec in std::iter::once(self.codec).chain(Codec::all()) {
            // Zstandard and Snappy are told apart by the metadata; a frame's first bytes do, too.
            let is_frame = packed.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
            let fits = match codec {
                Codec::Plain => raw.len() == packed.len(),
                Codec::Zstd(_) => is_frame,
                Codec::Snappy(_) => !is_frame,
            };
            if fits && codec.compress(raw)? == packed {
                return Ok(Some(codec));
            }
        }
        Ok(None)
    }

    fn footer(&mut self) -> Result<(), Stop> {
        let end = self.bytes.len().checked_sub(8).ok_or_else(odd)?;
        let length = self
            .bytes
            .get(end..)
            .and_then(<[u8]>::first_chunk::<4>)
            .ok_or_else(odd)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| odd())?;
        let start = end.checked_sub(length).ok_or_else(odd)?;
        self.literal_to(start)?;
        let mut visit = Footer {
            template: Template::new(&self.bytes[start..]),
            maker: &self.maker,
            chunk: None,
            facts: self.maker.facts_of_chunk(None),
        };
        thrift::walk(&self.bytes[start..end], &mut visit).ok_or_else(odd)?;
        let mut template = Vec::new();
        visit.template.finish(&mut template);
        self.maker.footer(&template, &mut 0)?;
        if self.at() != self.bytes.len() {
            return Err(odd());
        }
        self.writer.recipe.push(op::TEMPLATE);
        self.writer.recipe.extend_from_slice(&template);
        Ok(())
    }
}

/// Whether a compression is one of which the bytes can be made again.
fn known(compression: Compression, column: &str) -> Result<(), Stop> {
    match compression {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) => Ok(()),
        other => {
            let name = other.to_string();
            let name = name.split('(').next().unwrap_or_default();
            Err(Stop::Why(format!(
                "column {column} is compressed by {name}, which every writer does in its own way"
            )))
        }
    }
}

fn unpack(compression: Compression, packed: &[u8], size: usize) -> Option<Vec<u8>> {
    // What a page may unpack to at most: its size is the file's word alone.
    const MOST: usize = 1 << 30;
    let size = (size <= MOST).then_some(size)?;
    match compression {
        Compression::ZSTD(_) => zstd::bulk::decompress(packed, size).ok(),
        Compression::SNAPPY => super::snappy::decompress(packed, size),
        _ => None,
    }
}

/// Literal bytes, and parts in between.
struct Template<'a> {
    bytes: &'a [u8],
    done: usize,
    out: Vec<u8>,
}

impl<'a> Template<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            done: 0,
            out: Vec::new(),
        }
    }

    /// A part stands for the bytes from `start` to `end`.
    fn part(&mut self, start: usize, end: usize, part: Part) {
        sized(&self.bytes[self.done..start], &mut self.out);
        leb(part as u64, &mut self.out);
        self.done = end;
    }

    fn finish(mut self, out: &mut Vec<u8>) {
        sized(&self.bytes[self.done..], &mut self.out);
        leb(0, &mut self.out);
        out.extend_from_slice(&self.out);
    }
}

struct OfPage<'a> {
    template: Template<'a>,
    facts: &'a Facts,
}

impl Visit for OfPage<'_> {
    fn enter(&mut self, _path: &[u64], _at: usize) {}

    fn value(&mut self, value: &Value<'_>) {
        let part = match (value.path, value.kind) {
            ([2], _) => Some(Part::Raw),
            ([3], _) => Some(Part::Packed),
            ([5 | 7 | 8, 1], _) => Some(Part::Values),
            ([8, 2] | [5, 5, 3] | [8, 8, 3], _) => Some(Part::Nulls),
            ([8, 3], _) => Some(Part::Rows),
            (_, thrift::Kind::Bytes(length)) => {
                let bytes = &self.template.bytes[value.end - length..value.end];
                self.facts.part_of_bytes(bytes)
            }
            _ => None,
        };
        let is_it = |part: Part| match value.kind {
            thrift::Kind::Integer(number, _) => {
                u64::try_from(number).ok() == self.facts.number(part)
            }
            _ => true,
        };
        if let Some(part) = part.filter(|&part| is_it(part)) {
            self.template.part(value.start, value.end, part);
        }
    }
}

fn page_template(header: &[u8], facts: &Facts, out: &mut Vec<u8>) {
    let mut visit = OfPage {
        template: Template::new(header),
        facts,
    };
    thrift::walk(header, &mut visit);
    visit.template.finish(out);
}

struct Footer<'a, 'b> {
    template: Template<'a>,
    maker: &'a Maker<'b>,
    chunk: Option<usize>,
    facts: Facts,
}

impl Visit for Footer<'_, '_> {
    fn enter(&mut self, path: &[u64], at: usize) {
        // A column chunk of a row group.
        if path == [4, 1] {
            self.template.part(at, at, Part::NextChunk);
            self.chunk = Some(self.chunk.map_or(0, |chunk| chunk + 1));
            self.facts = self.maker.facts_of_chunk(self.chunk);
        }
    }

    fn value(&mut self, value: &Value<'_>) {
        /// Shorter texts are no schema.
        const SCHEMA: usize = 64;
        match value.kind {
            thrift::Kind::Integer(number, 64) => {
                let number = u64::try_from(number).ok();
                if let Some(part) = number.and_then(|number| self.facts.part_of(number)) {
                    self.template.part(value.start, value.end, part);
                }
            }
            thrift::Kind::Bytes(length) => {
                let bytes = &self.template.bytes[value.end - length..value.end];
                if let Some(part) = self.facts.part_of_bytes(bytes).filter(|_| length > 0) {
                    self.template.part(value.start, value.end, part);
                } else if length >= SCHEMA
                    && let Some(whole) = from_base64(bytes)
                {
                    self.template.part(value.start, value.end, Part::Base64);
                    sized(&whole, &mut self.template.out);
                }
            }
            _ => {}
        }
    }
}
