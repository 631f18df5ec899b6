//! Coding a column by its plan, in both directions by the same code.

use arrow::array::{Array as _, ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use std::sync::Arc;

use super::derived::{Derivation, count};
use super::{Budget, Items, Method, Others, Plan, Source, Target, missing};
use crate::DatasetError;
use crate::cell::{Builder, Cells, Reader, Shape};
use crate::coding::{Bit, CellModel, Coder, Decoder, Encoder, Learn, Room};
use crate::gate::Gate;
use crate::matching::sampled;
use crate::output::parquet_keeps;
use crate::quoted;
use crate::table::Column;

/// The lines of a column's models are between 2^12 for every part and 2^22 for all.
const LEAST_LINES: u32 = 12;
const MOST_LINES: u32 = 22;
/// Level of zstd for what is put into values, where time matters.
const QUICK_LEVEL: i32 = 12;
/// Rows of the base that are learned there.
const QUICK_LEARNED: u64 = 4096;
/// No more is taken into the cells that may be quoted once they have so many bytes.
const MOST_KNOWN: usize = 1 << 24;
/// Rows of every array of stored cells but the last: as in a table.
const BATCH: usize = 1 << 13;

/// A column of a derivative, as decoded: the cells stored, and which items they are of.
pub(crate) struct Rebuilt {
    pub(crate) stored: Column,
    has: Ranked,
}

impl Rebuilt {
    /// The number of the stored cell of an item; `None` if it has its base's value.
    pub(crate) fn stored_at(&self, item: usize) -> Option<usize> {
        self.has.rank(item)
    }
}

/// A set of items that knows how many come before each.
#[derive(Default)]
struct Ranked {
    words: Vec<u64>,
    before: Vec<u32>,
    count: u32,
}

impl Ranked {
    fn push(&mut self, item: usize, is_in: bool) {
        if item.is_multiple_of(64) {
            self.words.push(0);
            self.before.push(self.count);
        }
        if is_in {
            self.words[item / 64] |= 1 << (item % 64);
            self.count += 1;
        }
    }

    fn rank(&self, item: usize) -> Option<usize> {
        let word = self.words[item / 64];
        if word >> (item % 64) & 1 == 0 {
            return None;
        }
        let below = (word & ((1 << (item % 64)) - 1)).count_ones();
        Some((self.before[item / 64] + below) as usize)
    }
}

/// Where decoded cells go.
struct Sink<'a> {
    ty: DataType,
    gate: &'a Gate,
    /// Bytes of cells that room was not taken for yet.
    unpaid: u64,
    /// Bytes of cells that may still come.
    left: u64,
    builder: Builder,
    arrays: Vec<ArrayRef>,
    has: Ranked,
}

impl Sink<'_> {
    fn push(&mut self, cell: &[u8]) -> Result<(), DatasetError> {
        /// Columns are decoded at the same time: they do not meet for less.
        const TOGETHER: u64 = 1 << 16;
        self.unpaid += cell.len() as u64;
        if self.unpaid >= TOGETHER {
            self.gate.keep(std::mem::take(&mut self.unpaid))?;
        }
        self.builder.push(&mut Reader::within(cell, self.gate))?;
        if self.builder.len() == BATCH {
            let full = std::mem::replace(&mut self.builder, Builder::new(&self.ty)?);
            self.arrays.push(full.finish()?);
        }
        Ok(())
    }
}

/// What both directions need to know of a column.
struct Job<'a> {
    plan: &'a Plan,
    ty: &'a DataType,
    items: &'a Items<'a>,
    base: Option<&'a Column>,
    others: &'a Others<'a>,
}

/// What there is to tell of a column: of cells that resemble what was expected, the part that differs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weight {
    pub(crate) told: usize,
    /// Bytes of the cells of which something was expected.
    edited: u64,
    /// Whether most cells are stored.
    is_mostly_new: bool,
    /// What of that comes before each of the items' marks.
    pub(crate) at_marks: Vec<usize>,
}

/// Adds up what cells weigh.
struct Tally(usize);

impl Coder for Tally {
    const ENCODES: bool = true;

    fn bit(&mut self, bit: bool, _: u32) -> bool {
        bit
    }

    fn is_exhausted(&self) -> bool {
        false
    }

    fn written(&self) -> usize {
        self.0
    }
}

/// Measures a column, and weighs what there is to tell.
pub(crate) fn weigh(
    source: Source,
    target: &Target<'_>,
    items: &Items<'_>,
    others: &Others<'_>,
) -> Result<(Plan, Weight), DatasetError> {
    let mut plan = Plan {
        source,
        method: Method::Nothing,
        cells: 0,
        bytes: 0,
        longest: 0,
        shallow: false,
        log_lines: 0,
        learned: 0,
        remembered: 0,
    };
    let (mut cells, mut bytes, mut longest, mut edited) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut tally = Tally(0);
    let at_marks = walk(
        &job_of(&plan, target, items, others),
        &mut tally,
        target,
        &mut |tally, cell, expected| {
            cells += 1;
            bytes += cell.len() as u64;
            edited += expected.map_or(0, |_| cell.len() as u64);
            longest = longest.max(cell.len() as u64);
            tally.0 += expected.map_or(cell.len() + 2, |expected| differing(expected, cell) + 6);
            Ok(())
        },
    )?;
    (plan.cells, plan.bytes, plan.longest) = (cells, bytes, longest);
    let weight = Weight {
        told: tally.0,
        edited,
        is_mostly_new: cells > items.len() as u64 / 2,
        at_marks,
    };
    Ok((plan, weight))
}

/// Bytes of a cell between what it begins and ends with like another.
fn differing(expected: &[u8], cell: &[u8]) -> usize {
    let pairs = cell.iter().zip(expected);
    let front = pairs.take_while(|(a, b)| a == b).count();
    let most = cell.len().min(expected.len()) - front;
    let pairs = cell.iter().rev().zip(expected.iter().rev()).take(most);
    cell.len() - front - pairs.take_while(|(a, b)| a == b).count()
}

/// A coded column, and how long the stream was at each of the items' marks.
pub(crate) struct Priced {
    pub(crate) plan: Plan,
    pub(crate) stream: Vec<u8>,
    pub(crate) at_marks: Vec<usize>,
}

/// Codes a measured column by the method that suits what there is to store, and tells what was written where. Of a sample, the
/// plan says how many bytes the whole has, and the weight is that of the whole.
pub(crate) fn price(
    (plan, weight): (Plan, &Weight),
    target: &Target<'_>,
    items: &Items<'_>,
    others: &Others<'_>,
    budget: &Budget,
    gate: &Gate,
) -> Result<Priced, DatasetError> {
    let limits = budget.limits;
    if plan.cells == 0 {
        return Ok(Priced {
            plan,
            stream: Vec::new(),
            at_marks: vec![0; items.marks.len()],
        });
    }
    // Edited cells are told by their edits, however many they are.
    let is_edited = plan.source == Source::Base && weight.edited >= plan.bytes / 4;
    let by_edits = budget.quick && is_edited;
    let in_parquet = parquet_keeps(&in_parquet(&target.column.ty));
    let price_in_parquet = |plan: Plan| price_in_parquet(plan, target, items, others, limits.zstd);
    if in_parquet && !by_edits && plan.bytes > limits.mixed {
        return price_in_parquet(plan);
    }
    if in_parquet && budget.quick && weight.is_mostly_new {
        // Nothing quick is always as good.
        let parquet = price_in_parquet(plan.clone())?;
        let coded = price_by_model(plan, target, items, others, budget, gate)?;
        let is_smaller = parquet.stream.len() < coded.stream.len();
        return Ok(if is_smaller { parquet } else { coded });
    }
    price_by_model(plan, target, items, others, budget, gate)
}

/// Stores the cells in a Parquet file.
fn price_in_parquet(
    mut plan: Plan,
    target: &Target<'_>,
    items: &Items<'_>,
    others: &Others<'_>,
    level: i32,
) -> Result<Priced, DatasetError> {
    plan.method = Method::Parquet;
    let mut stored = Vec::new();
    let mut builder = Builder::new(&target.column.ty)?;
    let mut encoder = Encoder::new();
    let at_marks = walk(
        &job_of(&plan, target, items, others),
        &mut encoder,
        target,
        &mut |_, cell, _| {
            builder.push(&mut Reader::new(cell))?;
            if builder.len() == BATCH {
                let full = std::mem::replace(&mut builder, Builder::new(&target.column.ty)?);
                stored.push(full.finish()?);
            }
            Ok(())
        },
    )?;
    stored.push(builder.finish()?);
    let cells = to_parquet(&target.column.ty, &stored, level)?;
    Ok(Priced {
        plan,
        stream: joined(&encoder.finish(), &cells)?,
        at_marks,
    })
}

/// Codes the cells by a model.
fn price_by_model(
    mut plan: Plan,
    target: &Target<'_>,
    items: &Items<'_>,
    others: &Others<'_>,
    budget: &Budget,
    gate: &Gate,
) -> Result<Priced, DatasetError> {
    let limits = budget.limits;
    if budget.quick {
        plan.method = Method::Quick;
    } else {
        plan.method = Method::Mixed;
        plan.shallow = !budget.is_deep();
    }
    let mut bytes = plan.bytes;
    if let Some(base) = target.base {
        let base_rows = base.rows();
        let average = {
            let mut sample = Vec::new();
            let count = sampled(base_rows, 1000)
                .map(|row| base.write(row, &mut sample))
                .count();
            ((sample.len() / count.max(1)) as u64).max(1)
        };
        let all = base_rows as u64;
        plan.learned = (budget.learned(&plan) / average).min(all);
        if budget.quick {
            plan.learned = plan.learned.min(QUICK_LEARNED);
        }
        if holds_text(&target.column.shape) {
            let most = limits.remembered / if budget.quick { 16 } else { 1 };
            let remembered = most.min(64 * plan.bytes + (64 << 10));
            plan.remembered = (remembered / average).min(all);
        } else {
            plan.learned = plan.learned.min(20_000);
        }
        bytes += plan.learned * average;
    }
    let leaves = target.column.shape.leaves();
    plan.log_lines = (u64::BITS - (8 * bytes).leading_zeros())
        .saturating_sub(leaves.ilog2())
        .clamp(LEAST_LINES, MOST_LINES);
    if leaves > 1 << (MOST_LINES - plan.log_lines) {
        plan.log_lines = LEAST_LINES;
    }
    let _held = gate.take(memory_of(&plan, &target.column.shape));
    let mut encoder = Encoder::new();
    let mut model = model(&plan, &target.column.shape, target.base)?;
    let room = room(&plan);
    let mut again = Vec::new();
    let at_marks = walk(
        &job_of(&plan, target, items, others),
        &mut encoder,
        target,
        &mut |coder, cell, expected| {
            again.clear();
            let mut expected = expected.map(Reader::new);
            model.code(
                coder,
                &mut Reader::new(cell),
                expected.as_mut(),
                &mut again,
                room,
            )
        },
    )?;
    let (mut stream, literals) = encoder.finish_both();
    if plan.method == Method::Quick {
        let known = known(&plan, &target.column.shape, target.base);
        let level = limits.zstd.min(QUICK_LEVEL);
        stream = joined(&stream, &quoted::pack(&literals, &known, level)?)?;
    }
    Ok(Priced {
        plan,
        stream,
        at_marks,
    })
}

/// A coded stream and what comes after it, and where that begins.
fn joined(stream: &[u8], rest: &[u8]) -> Result<Vec<u8>, DatasetError> {
    let length =
        u32::try_from(stream.len()).map_err(|_| DatasetError::internal("too much is coded"))?;
    Ok([&length.to_le_bytes(), stream, rest].concat())
}

/// The inverse of [`joined`].
fn parted(stream: &[u8]) -> Result<(&[u8], &[u8]), DatasetError> {
    let (length, rest) = stream
        .split_first_chunk::<4>()
        .ok_or_else(|| missing("a column"))?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
        .ok_or_else(|| missing("a column"))
}

/// Decodes a column.
pub(crate) fn decode(
    plan: &Plan,
    stream: &[u8],
    ty: &DataType,
    items: &Items<'_>,
    base: Option<&Column>,
    others: &Others<'_>,
    gate: &Gate,
) -> Result<Rebuilt, DatasetError> {
    let shape = Shape::of(ty)?;
    let fits = (LEAST_LINES..=MOST_LINES).contains(&plan.log_lines)
        && (plan.log_lines == LEAST_LINES || shape.leaves() <= 1 << (MOST_LINES - plan.log_lines));
    let has_model = matches!(plan.method, Method::Mixed | Method::Quick);
    if has_model && !fits {
        return Err(DatasetError::damaged("a model is too large"));
    }
    if plan.longest > plan.bytes {
        return Err(DatasetError::damaged(
            "a column has a cell longer than all of them",
        ));
    }
    let job = Job {
        plan,
        ty,
        items,
        base,
        others,
    };
    let sink = Sink {
        ty: ty.clone(),
        gate,
        unpaid: 0,
        left: plan.bytes,
        builder: Builder::new(ty)?,
        arrays: Vec::new(),
        has: Ranked::default(),
    };
    let (coded, rest) = match plan.method {
        Method::Parquet | Method::Quick => parted(stream)?,
        Method::Nothing | Method::Mixed => (stream, &[][..]),
    };
    let _held = has_model.then(|| gate.take(memory_of(plan, &shape)));
    let mut literals = Vec::new();
    if plan.method == Method::Quick {
        let known = known(plan, &shape, base);
        literals = quoted::unpack(rest, &known, plan.bytes)?
            .ok_or_else(|| DatasetError::damaged("what is put into values cannot be unpacked"))?;
    }
    let mut decoder = Decoder::with_literals(coded, &literals);
    let sink = match plan.method {
        Method::Nothing => rebuild(&job, &mut decoder, sink, |_, _, _| {
            Err(DatasetError::damaged(
                "a column has cells that are not stored",
            ))
        })?,
        Method::Parquet => {
            let arrays = from_parquet(rest, ty, plan)?;
            let cells: Vec<Cells> = arrays
                .iter()
                .map(|array| Cells::new(array.as_ref()))
                .collect::<Result<_, _>>()?;
            let ends: Vec<usize> = arrays.iter().map(|array| array.len()).collect();
            let (mut at, mut row) = (0, 0);
            rebuild(&job, &mut decoder, sink, |_, _, out| {
                while at < ends.len() && row == ends[at] {
                    (at, row) = (at + 1, 0);
                }
                let cells = cells.get(at).ok_or_else(|| missing("a stored cell"))?;
                cells.write(row, out);
                row += 1;
                Ok(())
            })?
        }
        Method::Mixed | Method::Quick => {
            let mut model = model(plan, &shape, base)?;
            let room = room(plan);
            rebuild(&job, &mut decoder, sink, |coder, expected, out| {
                let mut expected = expected.map(Reader::new);
                model.code(coder, &mut Reader::new(&[]), expected.as_mut(), out, room)
            })?
        }
    };
    if plan.method != Method::Nothing {
        decoder.finish()?;
    }
    let Sink {
        builder,
        mut arrays,
        has,
        ..
    } = sink;
    arrays.push(builder.finish()?);
    Ok(Rebuilt {
        stored: Column::of(ty, arrays)?,
        has,
    })
}

/// Bytes of memory that the model of a column takes.
fn memory_of(plan: &Plan, shape: &Shape) -> u64 {
    /// Of every part, besides lines and places: tables and weights.
    const PART: u64 = 2 << 20;
    shape.leaves() as u64 * ((20 << plan.log_lines) + PART) + plan.bytes
}

fn room(plan: &Plan) -> Room {
    Room {
        deep: !plan.shallow,
        quick: plan.method == Method::Quick,
        log_lines: plan.log_lines,
        history: 256 << 20,
        longest: usize::try_from(plan.longest).unwrap_or(usize::MAX).max(16),
    }
}

/// A model that knows the base's column: some rows by heart, some by their statistics too.
fn model(plan: &Plan, shape: &Shape, base: Option<&Column>) -> Result<CellModel, DatasetError> {
    let mut room = room(plan);
    let mut model = CellModel::new(shape, room);
    let Some(base) = base else {
        return Ok(model);
    };
    room.longest = usize::MAX;
    let base_rows = base.rows();
    let count = |rows: u64| usize::try_from(rows).unwrap_or(0).min(base_rows);
    let learned = count(plan.learned);
    let remembered = match plan.method {
        Method::Quick => 0,
        _ => count(plan.remembered),
    };
    let (mut cell, mut again) = (Vec::new(), Vec::new());
    let mut is_learned = sampled(base_rows, learned).peekable();
    for row in sampled(base_rows, remembered) {
        // A learned row is remembered by that.
        while is_learned.next_if(|&next| next < row).is_some() {}
        if is_learned.peek() == Some(&row) {
            continue;
        }
        cell.clear();
        base.write(row, &mut cell);
        model.remember(&mut Reader::new(&cell))?;
    }
    for row in sampled(base_rows, learned) {
        cell.clear();
        again.clear();
        base.write(row, &mut cell);
        model.code(&mut Learn, &mut Reader::new(&cell), None, &mut again, room)?;
    }
    Ok(model)
}

/// The cells of the base's column that what is put into values may quote.
fn known(plan: &Plan, shape: &Shape, base: Option<&Column>) -> Vec<u8> {
    let mut known = Vec::new();
    if let Some(base) = base.filter(|_| holds_text(shape)) {
        let rows = usize::try_from(plan.remembered).unwrap_or(usize::MAX);
        for row in sampled(base.rows(), rows) {
            if known.len() >= MOST_KNOWN {
                break;
            }
            base.write(row, &mut known);
        }
    }
    known
}

fn holds_text(shape: &Shape) -> bool {
    match shape {
        Shape::Bytes => true,
        Shape::List(child) | Shape::FixedList(_, child) => holds_text(child),
        Shape::Struct(parts) => parts.iter().any(holds_text),
        _ => false,
    }
}

fn job_of<'a>(
    plan: &'a Plan,
    target: &Target<'a>,
    items: &'a Items<'a>,
    others: &'a Others<'a>,
) -> Job<'a> {
    Job {
        plan,
        ty: &target.column.ty,
        items,
        base: target.base,
        others,
    }
}

/// Takes a cell that is not as predicted, and what was expected of it.
type Store<'s, C> = dyn FnMut(&mut C, &[u8], Option<&[u8]>) -> Result<(), DatasetError> + 's;

/// The encoder's walk over all items: codes for each whether it is as predicted, and hands those that are not to `store`.
/// Returns what the coder had written at each mark.
fn walk<C: Coder>(
    job: &Job<'_>,
    coder: &mut C,
    target: &Target<'_>,
    store: &mut Store<'_, C>,
) -> Result<Vec<usize>, DatasetError> {
    let mut predictor = Predictor::new(job);
    let mut cell = Vec::new();
    let mut room = (Vec::new(), Vec::new());
    let mut marks = job.items.marks.iter().peekable();
    let mut at_marks = Vec::new();
    for item in 0..job.items.len() {
        while marks.next_if_eq(&&item).is_some() {
            at_marks.push(coder.written());
        }
        // The most common case by far, without writing cells.
        if job.plan.source == Source::Base && target.is_same(job.items, item, &mut room) {
            predictor.hit(coder, true);
            continue;
        }
        cell.clear();
        target
            .column
            .write(job.items.rows[item] as usize, &mut cell);
        let expects = predictor.expect(job, item)?;
        if expects {
            let hit = predictor.expected == cell;
            if predictor.hit(coder, hit) {
                continue;
            }
        }
        store(
            coder,
            &cell,
            expects.then_some(predictor.expected.as_slice()),
        )?;
        predictor.learn(&cell);
    }
    at_marks.resize(job.items.marks.len(), coder.written());
    Ok(at_marks)
}

/// The decoder's walk.
fn rebuild<'a, C: Coder>(
    job: &Job<'_>,
    coder: &mut C,
    mut sink: Sink<'a>,
    mut next: impl FnMut(&mut C, Option<&[u8]>, &mut Vec<u8>) -> Result<(), DatasetError>,
) -> Result<Sink<'a>, DatasetError> {
    let mut predictor = Predictor::new(job);
    let mut cell = Vec::new();
    let from_base = job.plan.source == Source::Base;
    // Without stored cells and with every cell its base's there is nothing to read.
    let none = job.plan.cells == 0;
    for item in 0..job.items.len() {
        let of_base = from_base && item < job.items.kept.len();
        let mut hit = of_base && (none || predictor.hit(coder, true));
        if hit {
            sink.has.push(item, false);
            continue;
        }
        // By far the fewest: only now it is looked at what the base has.
        let expects = predictor.expect(job, item)?;
        if expects && !of_base {
            hit = none || predictor.hit(coder, true);
        }
        sink.has.push(item, true);
        if hit {
            let expected = std::mem::take(&mut predictor.expected);
            sink.push(&expected)?;
            predictor.expected = expected;
            continue;
        }
        cell.clear();
        next(
            coder,
            expects.then_some(predictor.expected.as_slice()),
            &mut cell,
        )?;
        sink.left = sink
            .left
            .checked_sub(cell.len() as u64)
            .ok_or_else(|| DatasetError::damaged("a column has more cells than it says"))?;
        sink.push(&cell)?;
        predictor.learn(&cell);
    }
    Ok(sink)
}

/// What the next item is expected to be.
struct Predictor {
    derivation: Option<Derivation>,
    key: Option<super::derived::Key>,
    hits: [Bit; 4],
    last: usize,
    expected: Vec<u8>,
    read: Vec<u8>,
}

impl Predictor {
    fn new(job: &Job<'_>) -> Self {
        Self {
            derivation: match &job.plan.source {
                Source::Derived(feature) => Some(Derivation::new(feature.via, job.ty)),
                _ => None,
            },
            key: None,
            hits: [Bit::starting_at(64000); 4],
            last: 3,
            expected: Vec::new(),
            read: Vec::new(),
        }
    }

    /// Whether anything is expected; it is in `expected` then.
    fn expect(&mut self, job: &Job<'_>, item: usize) -> Result<bool, DatasetError> {
        self.expected.clear();
        match &job.plan.source {
            Source::None => Ok(false),
            Source::Base => {
                let base = job.base.ok_or_else(|| missing("a column of the base"))?;
                let Some(&row) = job.items.kept.get(item) else {
                    return Ok(false);
                };
                base.write(row as usize, &mut self.expected);
                Ok(true)
            }
            Source::Counter { start, step } => {
                let row = job
                    .items
                    .rows
                    .get(item)
                    .ok_or_else(|| missing("the order of the rows"))?;
                Ok(count(*start, *step, *row, job.ty, &mut self.expected))
            }
            Source::Derived(feature) => {
                let shape = job
                    .others
                    .shapes
                    .get(feature.column)
                    .ok_or_else(|| missing("a column"))?;
                self.read.clear();
                (job.others.read)(feature.column, item, &mut self.read);
                let key = feature.key(shape, &self.read);
                let expects = self
                    .derivation
                    .as_ref()
                    .is_some_and(|derivation| derivation.expect(&key, &mut self.expected));
                self.key = Some(key);
                Ok(expects)
            }
        }
    }

    fn hit<C: Coder>(&mut self, coder: &mut C, hit: bool) -> bool {
        let hit = self.hits[self.last].code(coder, hit);
        self.last = (self.last * 2 + usize::from(hit)) & 3;
        hit
    }

    fn learn(&mut self, cell: &[u8]) {
        if let (Some(derivation), Some(key)) = (&mut self.derivation, self.key.take()) {
            derivation.learn(key, cell);
        }
    }
}

/// The schema of stored cells.
fn in_parquet(ty: &DataType) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("c", ty.clone(), true)]))
}

fn to_parquet(ty: &DataType, arrays: &[ArrayRef], level: i32) -> Result<Vec<u8>, DatasetError> {
    let schema = in_parquet(ty);
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(level)?))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        // Large pages: what is alike is found further away.
        .set_data_page_size_limit(8 << 20)
        .set_data_page_row_count_limit(usize::MAX)
        .set_created_by("sparse".to_owned())
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))?;
    for array in arrays {
        writer.write(&RecordBatch::try_new(
            Arc::clone(&schema),
            vec![Arc::clone(array)],
        )?)?;
    }
    Ok(writer.into_inner()?)
}

fn from_parquet(bytes: &[u8], ty: &DataType, plan: &Plan) -> Result<Vec<ArrayRef>, DatasetError> {
    let damaged = |error: &dyn std::fmt::Display| {
        DatasetError::damaged(format!("stored cells cannot be read: {error}"))
    };
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::copy_from_slice(bytes))
        .and_then(|builder| builder.with_batch_size(BATCH).build())
        .map_err(|error| damaged(&error))?;
    let mut arrays = Vec::new();
    let mut rows = 0_u64;
    for batch in reader {
        let batch = batch.map_err(|error| damaged(&error))?;
        let column = batch.columns().first().ok_or_else(|| missing("a column"))?;
        if column.data_type() != ty {
            return Err(damaged(&"their type is another"));
        }
        rows += column.len() as u64;
        if rows > plan.cells {
            return Err(damaged(&"there are too many"));
        }
        arrays.push(Arc::clone(column));
    }
    Ok(arrays)
}
