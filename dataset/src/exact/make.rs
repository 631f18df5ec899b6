//! Files made from rows by a recipe: literal bytes, and pages that follow from the rows.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::hybrid::{self, leb, read_leb};
use super::leaves::{self, Leaf, Values};
use super::pack::Codec;
use super::thrift::zigzag;
use crate::DatasetError;

/// What a recipe is made of.
pub(super) mod op {
    pub(in super::super) const END: u8 = 0;
    pub(in super::super) const LITERAL: u8 = 1;
    pub(in super::super) const GROUP: u8 = 2;
    pub(in super::super) const CHUNK: u8 = 3;
    pub(in super::super) const PAGE: u8 = 4;
    pub(in super::super) const STORED: u8 = 5;
    pub(in super::super) const TEMPLATE: u8 = 6;
}

/// What a template may put in the place of literal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Part {
    Raw = 1,
    Packed = 2,
    Values = 3,
    Nulls = 4,
    Rows = 5,
    Least = 6,
    Most = 7,
    /// Where a chunk begins, and its data, and where it ends.
    Start = 8,
    Data = 9,
    End = 10,
    GroupRaw = 11,
    GroupPacked = 12,
    GroupStart = 13,
    AllRows = 14,
    NextChunk = 15,
    Base64 = 16,
}

impl Part {
    pub(super) const ALL: [Self; 16] = [
        Self::Raw,
        Self::Packed,
        Self::Values,
        Self::Nulls,
        Self::Rows,
        Self::Least,
        Self::Most,
        Self::Start,
        Self::Data,
        Self::End,
        Self::GroupRaw,
        Self::GroupPacked,
        Self::GroupStart,
        Self::AllRows,
        Self::NextChunk,
        Self::Base64,
    ];

    fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|part| *part as u64 == code)
    }
}

/// What is known about a page, or about the chunk and the group a template is at.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    numbers: Vec<(Part, u64)>,
    extremes: Option<(Vec<u8>, Vec<u8>)>,
}

impl Facts {
    pub(super) fn number(&self, part: Part) -> Option<u64> {
        let found = self.numbers.iter().find(|(own, _)| *own == part);
        found.map(|(_, number)| *number)
    }

    /// The part that is this number.
    pub(super) fn part_of(&self, number: u64) -> Option<Part> {
        let found = self.numbers.iter().find(|(_, own)| *own == number);
        found.map(|(part, _)| *part)
    }

    /// The part that is these bytes.
    pub(super) fn part_of_bytes(&self, bytes: &[u8]) -> Option<Part> {
        match &self.extremes {
            Some((least, _)) if least == bytes => Some(Part::Least),
            Some((_, most)) if most == bytes => Some(Part::Most),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Chunk {
    group: usize,
    start: u64,
    data: Option<u64>,
    end: u64,
    raw: u64,
    values: u64,
    nulls: u64,
    extremes: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, Default)]
struct Group {
    start: u64,
    rows: u64,
    raw: u64,
    packed: u64,
}

/// Kinds of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageKind {
    Dictionary,
    First,
    Second,
}

/// How the values of a page are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    /// By the dictionary, in so many bits.
    Indices(u8),
    /// Booleans in hybrid form.
    Runs,
}

/// A page as a recipe tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) kind: PageKind,
    pub(super) encoding: Encoding,
    pub(super) codec: Codec,
    pub(super) count: usize,
}

impl Page {
    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.push(match self.kind {
            PageKind::Dictionary => 0,
            PageKind::First => 1,
            PageKind::Second => 2,
        });
        out.push(match self.encoding {
            Encoding::Plain => 0,
            Encoding::Runs => 1,
            Encoding::Indices(width) => 2 + width,
        });
        out.push(self.codec.code());
        leb(self.count as u64, out);
    }

    fn read(recipe: &[u8], at: &mut usize) -> Option<Self> {
        let bytes = recipe.get(*at..)?.first_chunk::<3>()?;
        *at += 3;
        Some(Self {
            kind: match bytes[0] {
                0 => PageKind::Dictionary,
                1 => PageKind::First,
                2 => PageKind::Second,
                _ => return None,
            },
            encoding: match bytes[1] {
                0 => Encoding::Plain,
                1 => Encoding::Runs,
                code => Encoding::Indices((code - 2 <= 32).then_some(code - 2)?),
            },
            codec: Codec::from_code(bytes[2])?,
            count: usize::try_from(read_leb(recipe, at)?).ok()?,
        })
    }
}

/// What follows the header of a page.
pub(super) struct Body {
    /// Levels that are not compressed.
    pub(super) levels: Vec<u8>,
    pub(super) raw: Vec<u8>,
}

/// Gives the next rows: all of a row group.
pub(crate) type Supply<'a> = dyn FnMut(usize) -> Result<Vec<RecordBatch>, DatasetError> + 'a;

/// Makes files by recipes.
pub(super) struct Maker<'a> {
    schema: &'a SchemaRef,
    /// The file, for messages.
    shown: &'a Path,
    out: &'a mut dyn Write,
    /// Bytes written.
    pub(super) at: u64,
    pub(super) leaves: Vec<Leaf>,
    groups: Vec<Group>,
    chunks: Vec<Chunk>,
    rows: u64,
    /// Bytes that parts of templates stood for.
    made: u64,
    leaf: usize,
    /// How far the chunk has come, in levels and in values.
    level: usize,
    value: usize,
    /// The place of each value in the dictionary.
    places: HashMap<Box<[u8]>, u32, ahash::RandomState>,
    /// The chunk a template is at.
    chunk: Option<usize>,
}

fn damaged() -> DatasetError {
    DatasetError::damaged("the recipe of a file does not fit its rows")
}

impl<'a> Maker<'a> {
    pub(super) fn new(schema: &'a SchemaRef, shown: &'a Path, out: &'a mut dyn Write) -> Self {
        Self {
            schema,
            shown,
            out,
            at: 0,
            leaves: Vec::new(),
            groups: Vec::new(),
            chunks: Vec::new(),
            rows: 0,
            made: 0,
            leaf: 0,
            level: 0,
            value: 0,
            places: HashMap::with_hasher(crate::matching::hasher()),
            chunk: None,
        }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), DatasetError> {
        self.out
            .write_all(bytes)
            .map_err(|error| DatasetError::io("write", self.shown, error))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Begins a row group.
    pub(super) fn group(
        &mut self,
        rows: usize,
        supply: &mut Supply<'_>,
    ) -> Result<(), DatasetError> {
        // Groups, chunks and pages of nothing could go on for ever.
        if rows == 0 && !self.groups.is_empty() {
            return Err(damaged());
        }
        // The leaves of the last group are not needed any more.
        self.leaves = Vec::new();
        self.leaves = leaves::leaves(self.schema, &supply(rows)?)?;
        self.rows += rows as u64;
        self.groups.push(Group {
            start: self.at,
            rows: rows as u64,
            ..Group::default()
        });
        Ok(())
    }

    /// Begins a column chunk.
    pub(super) fn chunk(&mut self, leaf: usize) -> Result<(), DatasetError> {
        let group = self.groups.len();
        let in_group = self.chunks.iter().rev();
        let in_group = in_group
            .take_while(|chunk| chunk.group + 1 == group)
            .count();
        if group == 0 || leaf >= self.leaves.len() || in_group >= self.leaves.len() {
            return Err(damaged());
        }
        (self.leaf, self.level, self.value) = (leaf, 0, 0);
        self.places.clear();
        self.chunks.push(Chunk {
            group: group - 1,
            start: self.at,
            end: self.at,
            ..Chunk::default()
        });
        Ok(())
    }

    /// The leaf of the chunk.
    pub(super) fn leaf(&self) -> usize {
        self.leaf
    }

    /// How many values the next levels of the chunk have.
    fn present(&self, page: Page) -> Result<usize, DatasetError> {
        let leaf = self.leaves.get(self.leaf).ok_or_else(damaged)?;
        let end = self.level.checked_add(page.count);
        let end = end.filter(|&end| end <= leaf.count).ok_or_else(damaged)?;
        let present = leaf.present(self.level, end);
        if self.value + present > leaf.values.len() {
            return Err(damaged());
        }
        Ok(present)
    }

    /// What is in a page, by its rows; `None` where they have no such page.
    pub(super) fn body(&self, page: Page) -> Result<Option<Body>, DatasetError> {
        let leaf = self.leaves.get(self.leaf).ok_or_else(damaged)?;
        let mut raw = Vec::new();
        if page.kind == PageKind::Dictionary {
            let mut known = std::collections::HashSet::with_hasher(crate::matching::hasher());
            for at in 0..leaf.values.len() {
                if known.len() == page.count {
                    break;
                }
                if known.insert(leaf.values.get(at)) {
                    raw.extend_from_slice(leaf.values.get(at));
                }
            }
            let is_whole = known.len() == page.count && page.encoding == Encoding::Plain;
            return Ok(is_whole.then_some(Body {
                levels: Vec::new(),
                raw,
            }));
        }
        let (from, to) = (self.value, self.value + self.present(page)?);
        let ends = self.level + page.count;
        let mut levels = Vec::new();
        if page.kind == PageKind::First {
            leaf.write_levels(self.level, ends, true, &mut raw);
        } else {
            leaf.write_levels(self.level, ends, false, &mut levels);
        }
        match page.encoding {
            Encoding::Plain => leaf.values.write(from, to, &mut raw),
            Encoding::Runs => {
                let mut runs = Vec::new();
                let bits = (from..to).map(|at| u32::from(leaf.values.get(at)[0] & 1));
                hybrid::write(bits, 1, &mut runs);
                let length = u32::try_from(runs.len()).map_err(|_| damaged())?;
                raw.extend_from_slice(&length.to_le_bytes());
                raw.extend_from_slice(&runs);
            }
            Encoding::Indices(width) => {
                let mut indices = Vec::with_capacity(to - from);
                for at in from..to {
                    let Some(&place) = self.places.get(leaf.values.get(at)) else {
                        return Ok(None);
                    };
                    if u64::from(place) >> width > 0 {
                        return Ok(None);
                    }
                    indices.push(place);
                }
                raw.push(width);
                hybrid::write(indices.into_iter(), width.into(), &mut raw);
            }
        }
        Ok(Some(Body { levels, raw }))
    }

    /// What the header of a page may say.
    pub(super) fn facts(&self, page: Page, raw: u64, packed: u64) -> Result<Facts, DatasetError> {
        let mut numbers = vec![
            (Part::Raw, raw),
            (Part::Packed, packed),
            (Part::Values, page.count as u64),
        ];
        let mut extremes = None;
        if page.kind != PageKind::Dictionary {
            let leaf = self.leaves.get(self.leaf).ok_or_else(damaged)?;
            let present = self.present(page)?;
            numbers.push((Part::Nulls, (page.count - present) as u64));
            let ends = self.level + page.count;
            numbers.push((Part::Rows, leaf.rows(self.level, ends) as u64));
            extremes = leaf.values.extremes(self.value, self.value + present);
        }
        Ok(Facts { numbers, extremes })
    }

    /// Writes a page and goes on behind it. `dictionary` are the plain values of a dictionary.
    pub(super) fn page(
        &mut self,
        page: Page,
        facts: &Facts,
        header: &[u8],
        body: [&[u8]; 2],
        dictionary: &[u8],
    ) -> Result<(), DatasetError> {
        let (start, mut at) = (self.at, 0);
        self.template(header, &mut at, Some(facts))?;
        let of_header = self.at - start;
        for part in body {
            self.put(part)?;
        }
        let packed = self.at - start;
        let raw = of_header + facts.number(Part::Raw).unwrap_or(0);
        let leaf = self.leaves.get(self.leaf).ok_or_else(damaged)?;
        let kind = leaf.kind;
        let chunk = self.chunks.last().ok_or_else(damaged)?;
        let is_one_more = match page.kind {
            PageKind::Dictionary => chunk.end > chunk.start,
            _ => page.count == 0 && chunk.data.is_some(),
        };
        if is_one_more {
            return Err(damaged());
        }
        let present = match page.kind {
            PageKind::Dictionary => 0,
            _ => self.present(page)?,
        };
        let chunk = self.chunks.last_mut().ok_or_else(damaged)?;
        chunk.end = self.at;
        chunk.raw += raw;
        if let Some(group) = self.groups.last_mut() {
            group.raw += raw;
            group.packed += packed;
        }
        if page.kind == PageKind::Dictionary {
            let mut values = Values::new(kind);
            values.append(dictionary, page.count).ok_or_else(damaged)?;
            self.places.clear();
            for at in 0..values.len() {
                let place = u32::try_from(at).map_err(|_| damaged())?;
                self.places.entry(values.get(at).into()).or_insert(place);
            }
            return Ok(());
        }
        chunk.data.get_or_insert(start);
        chunk.values += page.count as u64;
        chunk.nulls += (page.count - present) as u64;
        if let Some((least, most)) = &facts.extremes {
            let (old, new) = chunk
                .extremes
                .get_or_insert_with(|| (least.clone(), most.clone()));
            if kind.is_less(least, old) {
                old.clone_from(least);
            }
            if kind.is_less(new, most) {
                new.clone_from(most);
            }
        }
        self.level += page.count;
        self.value += present;
        Ok(())
    }

    /// What a template of the footer may say.
    pub(super) fn facts_of_chunk(&self, chunk: Option<usize>) -> Facts {
        let mut facts = Facts {
            numbers: vec![(Part::AllRows, self.rows)],
            extremes: None,
        };
        let Some(chunk) = chunk.and_then(|at| self.chunks.get(at)) else {
            return facts;
        };
        facts.numbers = vec![
            (Part::Start, chunk.start),
            (Part::Data, chunk.data.unwrap_or(chunk.start)),
            (Part::Raw, chunk.raw),
            (Part::Packed, chunk.end - chunk.start),
            (Part::Values, chunk.values),
            (Part::End, chunk.end),
            (Part::Nulls, chunk.nulls),
        ];
        if let Some(group) = self.groups.get(chunk.group) {
            facts.numbers.extend([
                (Part::Rows, group.rows),
                (Part::GroupRaw, group.raw),
                (Part::GroupPacked, group.packed),
                (Part::GroupStart, group.start),
            ]);
        }
        facts.numbers.push((Part::AllRows, self.rows));
        facts.extremes.clone_from(&chunk.extremes);
        facts
    }

    /// Writes a template; `facts` are those of a page, or else of the chunk that it is at.
    fn template(
        &mut self,
        bytes: &[u8],
        at: &mut usize,
        facts: Option<&Facts>,
    ) -> Result<(), DatasetError> {
        let mut own = match facts {
            Some(_) => Facts::default(),
            None => self.facts_of_chunk(self.chunk),
        };
        loop {
            let literal = take(bytes, at)?;
            self.put(literal)?;
            let code = read_leb(bytes, at).ok_or_else(damaged)?;
            if code == 0 {
                return Ok(());
            }
            let part = Part::from_code(code).ok_or_else(damaged)?;
            let facts = facts.unwrap_or(&own);
            let mut made = Vec::new();
            match part {
                Part::NextChunk => {
                    self.chunk = Some(self.chunk.map_or(0, |at| at + 1));
                    own = self.facts_of_chunk(self.chunk);
                }
                Part::Base64 => {
                    let text = base64(take(bytes, at)?);
                    leb(text.len() as u64, &mut made);
                    made.extend_from_slice(&text);
                }
                Part::Least | Part::Most => {
                    let (least, most) = facts.extremes.as_ref().ok_or_else(damaged)?;
                    let value = if part == Part::Least { least } else { most };
                    leb(value.len() as u64, &mut made);
                    made.extend_from_slice(value);
                }
                _ => {
                    let number = facts.number(part).ok_or_else(damaged)?;
                    let number = i64::try_from(number).map_err(|_| damaged())?;
                    leb(zigzag(number), &mut made);
                }
            }
            self.made += made.len() as u64;
            if self.made > super::MOST {
                return Err(damaged());
            }
            self.put(&made)?;
        }
    }

    /// Writes the literal bytes and what follows from all pages.
    pub(super) fn footer(&mut self, template: &[u8], at: &mut usize) -> Result<(), DatasetError> {
        self.chunk = None;
        self.template(template, at, None)
    }

    /// Makes the file of the recipe that begins at `at`.
    pub(super) fn run(
        mut self,
        recipe: &[u8],
        at: &mut usize,
        supply: &mut Supply<'_>,
    ) -> Result<(), DatasetError> {
        loop {
            let code = *recipe.get(*at).ok_or_else(damaged)?;
            *at += 1;
            match code {
                op::END => return Ok(()),
                op::LITERAL => self.put(take(recipe, at)?)?,
                op::GROUP => self.group(size(recipe, at)?, supply)?,
                op::CHUNK => self.chunk(size(recipe, at)?)?,
                op::TEMPLATE => self.footer(recipe, at)?,
                op::PAGE => {
                    let page = Page::read(recipe, at).ok_or_else(damaged)?;
                    let header = template_at(recipe, at)?;
                    let body = self.body(page)?.ok_or_else(damaged)?;
                    let packed = page.codec.compress(&body.raw)?;
                    let levels = body.levels.len();
                    let facts = self.facts(
                        page,
                        (levels + body.raw.len()) as u64,
                        (levels + packed.len()) as u64,
                    )?;
                    self.page(page, &facts, header, [&body.levels, &packed], &body.raw)?;
                }
                op::STORED => {
                    let page = Page::read(recipe, at).ok_or_else(damaged)?;
                    let raw = size(recipe, at)?;
                    let header = template_at(recipe, at)?;
                    let stored = take(recipe, at)?;
                    let dictionary = match page.kind {
                        PageKind::Dictionary => take(recipe, at)?,
                        _ => &[],
                    };
                    let facts = self.facts(page, raw as u64, stored.len() as u64)?;
                    self.page(page, &facts, header, [&[], stored], dictionary)?;
                }
                _ => return Err(damaged()),
            }
        }
    }
}

fn size(bytes: &[u8], at: &mut usize) -> Result<usize, DatasetError> {
    let size = read_leb(bytes, at).and_then(|size| usize::try_from(size).ok());
    size.ok_or_else(damaged)
}

/// Bytes after their number.
fn take<'b>(bytes: &'b [u8], at: &mut usize) -> Result<&'b [u8], DatasetError> {
    let size = size(bytes, at)?;
    let end = at.checked_add(size).ok_or_else(damaged)?;
    let taken = bytes.get(*at..end).ok_or_else(damaged)?;
    *at = end;
    Ok(taken)
}

/// The template at a place.
fn template_at<'b>(bytes: &'b [u8], at: &mut usize) -> Result<&'b [u8], DatasetError> {
    let start = *at;
    loop {
        take(bytes, at)?;
        match read_leb(bytes, at).ok_or_else(damaged)? {
            0 => return bytes.get(start..*at).ok_or_else(damaged),
            code if code == Part::Base64 as u64 => {
                take(bytes, at)?;
            }
            _ => {}
        }
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with padding.
pub(super) fn base64(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let mut word = 0_usize;
        for at in 0..3 {
            word = word << 8 | usize::from(three.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            text.push(if at <= three.len() {
                DIGITS[word >> (18 - 6 * at) & 63]
            } else {
                b'='
            });
        }
    }
    text
}

/// What [`base64`] would make these of; `None` if there is no such thing.
pub(super) fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for four in text.chunks(4) {
        let mut word = 0_u32;
        let mut digits = 0;
        for &letter in four {
            word <<= 6;
            if letter != b'=' {
                let digit = DIGITS.iter().position(|&digit| digit == letter)?;
                word |= u32::try_from(digit).ok()?;
                digits += 1;
            }
        }
        let whole = word.to_be_bytes();
        bytes.extend_from_slice(whole.get(1..digits)?);
    }
    (base64(&bytes) == text).then_some(bytes)
}
