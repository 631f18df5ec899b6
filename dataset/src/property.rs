//! Random pairs of splits, over nested schemas and every oddity, made again and compared value by value: not by the crate's
//! own hash, but as Arrow compares arrays, bit for bit.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a failed step is a failed test"
)]

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, RecordBatch, RecordBatchOptions, StringArray};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{
    DataType, Field, FieldRef, Fields, IntervalUnit, Schema, SchemaRef, TimeUnit,
};

use crate::artifact;
use crate::canonical::{canonical, describe, has_cast};
use crate::cell::{Builder, Cells, Reader, write_leb};
use crate::column::Limits;
use crate::effort::limits;
use crate::pair::{Pair, load_splits};
use crate::split;
use crate::table::{Batches, Room, plain_types};
use crate::{Dataset, DatasetError, Rows};

const CASES: u64 = 10_000;
const MEMORY: u64 = 1 << 30;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

fn plain_type(random: &mut Random) -> DataType {
    let units = [
        TimeUnit::Second,
        TimeUnit::Millisecond,
        TimeUnit::Microsecond,
        TimeUnit::Nanosecond,
    ];
    let unit = units[random.below(4)];
    match random.below(34) {
        0 => DataType::Null,
        1 | 2 => DataType::Boolean,
        3 => DataType::Int8,
        4 => DataType::Int16,
        5 => DataType::Int32,
        6 | 7 => DataType::Int64,
        8 => DataType::UInt8,
        9 => DataType::UInt16,
        10 => DataType::UInt32,
        11 => DataType::UInt64,
        12 => DataType::Float16,
        13 => DataType::Float32,
        14 => DataType::Float64,
        15 | 16 => DataType::Utf8,
        17 => DataType::LargeUtf8,
        18 => DataType::Utf8View,
        19 => DataType::Binary,
        20 => DataType::LargeBinary,
        21 => DataType::BinaryView,
        22 => DataType::FixedSizeBinary(1 + random.below(20) as i32),
        23 => DataType::Decimal128(30, random.below(10) as i8),
        24 => DataType::Decimal256(60, 7),
        25 => DataType::Date32,
        26 => DataType::Date64,
        27 => DataType::Timestamp(unit, Some("Europe/Berlin".into())),
        28 => DataType::Timestamp(unit, None),
        29 => DataType::Duration(unit),
        30 => DataType::Interval(IntervalUnit::MonthDayNano),
        31 => DataType::Interval(IntervalUnit::DayTime),
        32 => DataType::Time64(TimeUnit::Nanosecond),
        _ => DataType::Dictionary(
            Box::new([DataType::Int8, DataType::Int32, DataType::UInt16][random.below(3)].clone()),
            Box::new([DataType::Utf8, DataType::Int64][random.below(2)].clone()),
        ),
    }
}

fn some_type(random: &mut Random, depth: usize) -> DataType {
    if depth == 0 || !random.one_in(3) {
        return plain_type(random);
    }
    let child = |name: &str, random: &mut Random| field(name, random, depth - 1);
    match random.below(8) {
        0 | 1 => DataType::List(child("element", random)),
        2 => DataType::LargeList(child("item", random)),
        3 => DataType::FixedSizeList(child("item", random), 1 + random.below(3) as i32),
        4 | 5 => {
            let count = 1 + random.below(3);
            let fields: Vec<FieldRef> = (0..count)
                .map(|at| child(&format!("part {at}"), random))
                .collect();
            DataType::Struct(fields.into())
        }
        6 => {
            let key = Field::new("keys", DataType::Utf8, false);
            let entries = Fields::from(vec![
                Arc::new(key),
                Arc::new(child("values", random).as_ref().clone().with_nullable(true)),
            ]);
            DataType::Map(
                Arc::new(Field::new("entries", DataType::Struct(entries), false)),
                false,
            )
        }
        _ => DataType::RunEndEncoded(
            Arc::new(Field::new("run_ends", DataType::Int32, false)),
            Arc::new(Field::new("values", DataType::Utf8, true)),
        ),
    }
}

fn field(name: &str, random: &mut Random, depth: usize) -> FieldRef {
    let ty = loop {
        let ty = some_type(random, depth);
        let plain = canonical(&ty).unwrap();
        if plain == ty || (can_cast_types(&ty, &plain) && can_cast_types(&plain, &ty)) {
            break ty;
        }
    };
    let nullable = ty == DataType::Null || !random.one_in(4);
    let mut field = Field::new(name, ty, nullable);
    if random.one_in(10) {
        field = field.with_metadata(HashMap::from([(
            "ARROW:extension:name".to_owned(),
            format!("test.ext{}", random.below(3)),
        )]));
    }
    Arc::new(field)
}

/// A random cell of a plain type.
fn cell(ty: &DataType, nullable: bool, random: &mut Random, out: &mut Vec<u8>) {
    if *ty == DataType::Null || (nullable && random.one_in(6)) {
        out.push(0);
        return;
    }
    out.push(1);
    match ty {
        DataType::Boolean => out.push(random.below(2) as u8),
        DataType::Utf8 | DataType::LargeUtf8 => {
            let text = text(random);
            write_leb(out, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        }
        DataType::Binary | DataType::LargeBinary => {
            let count = random.below(12);
            write_leb(out, count as u64);
            out.extend((0..count).map(|_| random.next() as u8 & 3));
        }
        DataType::List(field) | DataType::LargeList(field) | DataType::Map(field, _) => {
            let count = random.below(4);
            write_leb(out, count as u64);
            for _ in 0..count {
                cell(field.data_type(), field.is_nullable(), random, out);
            }
        }
        DataType::FixedSizeList(field, size) => {
            for _ in 0..*size {
                cell(field.data_type(), field.is_nullable(), random, out);
            }
        }
        DataType::Struct(fields) => {
            for field in fields {
                cell(field.data_type(), field.is_nullable(), random, out);
            }
        }
        DataType::FixedSizeBinary(width) => out.extend((0..*width).map(|_| random.next() as u8)),
        DataType::Float64 if random.one_in(3) => {
            let odd = [
                0x8000_0000_0000_0000,
                0x7ff8_0000_0000_0001,
                0xfff8_0000_0000_0000,
                0x7ff0_0000_0000_0000,
                0x7ff0_0000_0000_0001_u64,
            ];
            out.extend(odd[random.below(5)].to_be_bytes());
        }
        DataType::Float32 if random.one_in(3) => {
            let odd = [0x8000_0000, 0x7fc0_1234, 0xffc0_0000, 0x7f80_0001_u32];
            out.extend(odd[random.below(4)].to_be_bytes());
        }
        DataType::Decimal128(_, _) => out.extend((random.next() as i64 as i128).to_be_bytes()),
        DataType::Decimal256(_, _) => {
            let value = random.next() as i64;
            out.extend([if value < 0 { 255_u8 } else { 0 }; 24]);
            out.extend(value.to_be_bytes());
        }
        ty => {
            let width = ty.primitive_width().unwrap();
            let small = random.one_in(2);
            for at in 0..width {
                let byte = random.next() as u8;
                out.push(if small && at + 1 < width { 0 } else { byte });
            }
        }
    }
}

fn text(random: &mut Random) -> String {
    const WORDS: [&str; 12] = [
        "",
        "a",
        "the",
        "Ünïcödé",
        "\u{0}",
        "\u{1}\u{0}",
        "日本",
        "row",
        "long-ish word",
        "x y z",
        "\n",
        "🦀",
    ];
    (0..random.below(8))
        .map(|_| WORDS[random.below(WORDS.len())])
        .collect::<Vec<_>>()
        .join(" ")
}

/// A table as cells.
#[derive(Clone)]
struct Cellular {
    schema: SchemaRef,
    rows: Vec<Vec<Vec<u8>>>,
}

impl Cellular {
    fn random(random: &mut Random) -> Self {
        let count = if random.one_in(50) {
            0
        } else {
            1 + random.below(5)
        };
        let fields: Vec<FieldRef> = (0..count)
            .map(|at| field(&format!("c{at}"), random, 2))
            .collect();
        let schema = Arc::new(Schema::new_with_metadata(fields, metadata(random)));
        let rows = match random.below(12) {
            0 => 0,
            1 => 1,
            2 => 200,
            _ => random.below(40),
        };
        let pool: Vec<Vec<Vec<u8>>> = (0..rows).map(|_| row(&schema, random)).collect();
        // Rows that occur twice.
        let rows = (0..rows)
            .map(|at| {
                pool[if random.one_in(8) {
                    random.below(rows)
                } else {
                    at
                }]
                .clone()
            })
            .collect();
        Self { schema, rows }
    }

    fn types(&self) -> Vec<DataType> {
        plain_types(&self.schema).unwrap()
    }

    /// The table as batches with offsets in them.
    fn batches(&self, random: &mut Random) -> Vec<RecordBatch> {
        let mut batches = Vec::new();
        let mut start = 0;
        while start < self.rows.len() {
            let mut end = (start + 1 + random.below(60)).min(self.rows.len());
            // A dictionary has only so many keys.
            let columns = loop {
                match self.columns(start, end) {
                    Some(columns) => break columns,
                    None => end = start + (end - start) / 2,
                }
            };
            let options = RecordBatchOptions::new().with_row_count(Some(end - start));
            batches.push(
                RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
                    .unwrap(),
            );
            start = end;
        }
        batches
    }

    /// Columns of some rows, if they have their types.
    fn columns(&self, start: usize, end: usize) -> Option<Vec<ArrayRef>> {
        assert!(start < end, "a row does not fit a batch");
        // One row too many before and after: the arrays are slices.
        let (from, to) = (start.saturating_sub(1), (end + 1).min(self.rows.len()));
        self.types()
            .iter()
            .zip(self.schema.fields())
            .enumerate()
            .map(|(at, (plain, field))| {
                let mut builder = Builder::new(plain).unwrap();
                for row in &self.rows[from..to] {
                    builder.push(&mut Reader::new(&row[at])).unwrap();
                }
                let array = builder.finish().unwrap();
                let array = if plain == field.data_type() {
                    array
                } else {
                    cast(&array, field.data_type()).ok()?
                };
                Some(array.slice(start - from, end - start))
            })
            .collect()
    }

    /// Something made of it, as people do.
    fn derivative(&self, random: &mut Random) -> Self {
        let mut made = self.clone();
        if random.one_in(12) {
            return made;
        }
        if random.one_in(15) {
            return Self::random(random);
        }
        let types = self.types();
        let (edits, removals) = (2 + random.below(20), 2 + random.below(20));
        made.rows.retain(|_| !random.one_in(removals));
        for at in 0..made.rows.len() {
            for column in 0..types.len() {
                if random.one_in(edits * types.len()) {
                    let nullable = self.schema.field(column).is_nullable();
                    made.rows[at][column].clear();
                    let mut new = Vec::new();
                    cell(&types[column], nullable, random, &mut new);
                    made.rows[at][column] = new;
                }
            }
        }
        for _ in 0..random.below(6) {
            let place = random.below(made.rows.len() + 1);
            let new = if random.one_in(2) || self.rows.is_empty() {
                row(&self.schema, random)
            } else {
                self.rows[random.below(self.rows.len())].clone()
            };
            made.rows.insert(place, new);
        }
        match random.below(6) {
            0 => {
                for at in (1..made.rows.len()).rev() {
                    let other = random.below(at + 1);
                    made.rows.swap(at, other);
                }
            }
            1 if !types.is_empty() => {
                let column = random.below(types.len());
                made.rows.sort_by(|a, b| a[column].cmp(&b[column]));
            }
            2 => made.rows.reverse(),
            _ => {}
        }
        for _ in 0..random.below(3) {
            made.change_columns(random);
        }
        if random.one_in(4) {
            let schema = made.schema.as_ref().clone();
            made.schema = Arc::new(schema.with_metadata(metadata(random)));
        }
        made
    }

    fn change_columns(&mut self, random: &mut Random) {
        let mut fields: Vec<FieldRef> = self.schema.fields().to_vec();
        let count = fields.len();
        match random.below(6) {
            // Another type.
            0 | 1 if count > 0 => {
                let at = random.below(count);
                let plain = self.types()[at].clone();
                let to = field(fields[at].name(), random, 1);
                let to_plain = canonical(to.data_type()).unwrap();
                if plain == to_plain || !has_cast(&plain, &to_plain) {
                    return;
                }
                let mut builder = Builder::new(&plain).unwrap();
                for row in &self.rows {
                    builder.push(&mut Reader::new(&row[at])).unwrap();
                }
                let Ok(array) = cast(&builder.finish().unwrap(), &to_plain) else {
                    return;
                };
                let cells = Cells::new(array.as_ref()).unwrap();
                for (k, row) in self.rows.iter_mut().enumerate() {
                    row[at].clear();
                    cells.write(k, &mut row[at]);
                }
                fields[at] = Arc::new(to.as_ref().clone().with_nullable(true));
            }
            // One more.
            2 => {
                let field = field(&format!("new{count}"), random, 1);
                let ty = canonical(field.data_type()).unwrap();
                let how = random.below(3);
                let mut value = Vec::new();
                cell(&ty, field.is_nullable(), random, &mut value);
                for (at, row) in self.rows.iter_mut().enumerate() {
                    if how == 0 {
                        value.clear();
                        cell(&ty, field.is_nullable(), random, &mut value);
                    } else if how == 1 && ty == DataType::Int64 {
                        value = vec![1];
                        value.extend((10 + 3 * at as i64).to_be_bytes());
                    }
                    row.push(value.clone());
                }
                fields.push(field);
            }
            // One less.
            3 if count > 0 => {
                let at = random.below(count);
                fields.remove(at);
                for row in &mut self.rows {
                    row.remove(at);
                }
            }
            // Another name.
            4 if count > 0 => {
                let at = random.below(count);
                let field = fields[at].as_ref().clone();
                fields[at] = Arc::new(field.with_name(format!("renamed{at}")));
            }
            // Another order.
            _ if count > 1 => {
                let (a, b) = (random.below(count), random.below(count));
                fields.swap(a, b);
                for row in &mut self.rows {
                    row.swap(a, b);
                }
            }
            _ => {}
        }
        let metadata = self.schema.metadata().clone();
        self.schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    }
}

fn metadata(random: &mut Random) -> HashMap<String, String> {
    (0..random.below(3))
        .map(|at| (format!("key {at}"), text(random)))
        .collect()
}

fn row(schema: &Schema, random: &mut Random) -> Vec<Vec<u8>> {
    schema
        .fields()
        .iter()
        .map(|field| {
            let mut value = Vec::new();
            let ty = canonical(field.data_type()).unwrap();
            cell(&ty, field.is_nullable(), random, &mut value);
            value
        })
        .collect()
}

struct Memory(SchemaRef, Vec<RecordBatch>);

impl Rows for Memory {
    fn schema(&self) -> Result<SchemaRef, DatasetError> {
        Ok(Arc::clone(&self.0))
    }

    fn read(&self) -> Result<Batches, DatasetError> {
        Ok(Box::new(self.1.clone().into_iter().map(Ok)))
    }

    fn bytes(&self) -> u64 {
        0
    }
}

/// Rows one by one: what arrays they lie in does not matter.
fn rows_of(batches: &[RecordBatch]) -> Vec<Vec<ArrayRef>> {
    batches
        .iter()
        .flat_map(|batch| {
            (0..batch.num_rows()).map(|at| {
                batch
                    .columns()
                    .iter()
                    .map(|column| column.slice(at, 1))
                    .collect()
            })
        })
        .collect()
}

fn assert_same(case: u64, schema: &Schema, expected: &[RecordBatch], found: &[RecordBatch]) {
    let (expected, found) = (rows_of(expected), rows_of(found));
    assert_eq!(expected.len(), found.len(), "case {case}: rows");
    for (at, (expected, found)) in expected.iter().zip(&found).enumerate() {
        for (column, (a, b)) in expected.iter().zip(found).enumerate() {
            assert!(
                a.data_type() == b.data_type() && a.to_data() == b.to_data(),
                "case {case}, row {at}, column {}: {a:?} became {b:?}",
                schema.field(column)
            );
        }
    }
}

/// Limits that lead to every way of storing.
fn some_limits(random: &mut Random) -> Limits {
    let mut limits = limits(Default::default());
    match random.below(5) {
        0 => limits.mixed = 64,
        1 => limits.deep = 0,
        2 => limits.quick = 0,
        _ => {}
    }
    limits
}

struct Stored {
    payload: Vec<u8>,
    plan: sparse_delta::Blob,
    hash: String,
}

fn encode(case: u64, base: &Dataset, rows: &Arc<dyn Rows>, random: &mut Random) -> Stored {
    let scratch = std::env::temp_dir();
    let room = Room {
        mapped: u64::MAX,
        joined: 1 << 20,
        scratch: &scratch,
        // Now and then all goes to a file.
        held: if case.is_multiple_of(500) { 0 } else { 1 << 20 },
    };
    let pair = Pair::load(base, "train", rows, &room, &|| Ok(())).unwrap();
    let coded = split::encode(&pair, some_limits(random), MEMORY, &|| Ok(())).unwrap();
    let plan = &coded.plan;
    assert_eq!(plan.kept + plan.new, pair.derivative.rows as u64);
    let same = describe(&pair.base.schema) == describe(&pair.derivative.schema);
    let schema = (!same).then_some(&pair.derivative.schema);
    let mut payload = b"before".to_vec();
    Stored {
        plan: artifact::append(&mut payload, &coded, schema).unwrap(),
        payload,
        hash: pair.hash().to_owned(),
    }
}

/// The batches, if they are what they should be by their own hash.
fn decode(base: &Dataset, stored: &Stored) -> Result<(SchemaRef, Vec<RecordBatch>), DatasetError> {
    let scratch = std::env::temp_dir();
    let room = Room {
        mapped: u64::MAX,
        joined: 1 << 20,
        scratch: &scratch,
        held: 1 << 20,
    };
    let (plan, schema, streams) = artifact::read(&stored.payload, stored.plan)?;
    let splits: Vec<_> = base.splits().iter().collect();
    let schema = match schema {
        Some(schema) => schema,
        None => splits[0].1.schema()?,
    };
    let table = load_splits(&splits, &plan.pairs, &plain_types(&schema)?, &room)?;
    let decoded = split::decode(&plan, &streams, &table, &schema, MEMORY)?;
    let mut hash = crate::table::LogicalHash::new(&schema)?;
    let mut batches = Vec::new();
    for (start, end) in split::pieces(decoded.rows()) {
        for batch in decoded.batches(start, end)? {
            hash.update(&batch)?;
            batches.push(batch);
        }
    }
    if hash.finish() != stored.hash {
        return Err(DatasetError::damaged("the hash is another"));
    }
    Ok((schema, batches))
}

fn one(case: u64) {
    let random = &mut Random(case);
    let base = Cellular::random(random);
    let derivative = base.derivative(random);
    let base_batches = base.batches(random);
    let batches = derivative.batches(random);
    let base = Dataset::of_rows("base", Arc::new(Memory(base.schema, base_batches)));
    let rows: Arc<dyn Rows> = Arc::new(Memory(Arc::clone(&derivative.schema), batches.clone()));
    let mut stored = encode(case, &base, &rows, random);
    let (schema, found) = decode(&base, &stored).unwrap_or_else(|error| {
        panic!("case {case}: {error}");
    });
    assert_eq!(schema, derivative.schema, "case {case}");
    assert_same(case, &schema, &batches, &found);
    // Damage: an error, or the same rows (what was damaged said nothing).
    if case.is_multiple_of(4) {
        let (sound, plan) = (stored.payload.clone(), stored.plan);
        for _ in 0..3 {
            stored.payload.clone_from(&sound);
            stored.plan = plan;
            damage(&mut stored, random);
            let result = sparse_delta::support::guarded(|| Ok(decode(&base, &stored)));
            if let Ok(Ok((_, found))) = result {
                assert_same(case, &schema, &batches, &found);
            }
        }
    }
}

/// Flips, cuts, and numbers of the plan that lie.
fn damage(stored: &mut Stored, random: &mut Random) {
    let start = stored.plan.offset as usize;
    match random.below(4) {
        0 => {
            let at = start + random.below(stored.payload.len() - start);
            stored.payload[at] ^= 1 << random.below(8);
        }
        1 => {
            let end = start + random.below(stored.payload.len() - start);
            stored.payload.truncate(end);
        }
        _ => {
            let end = start + stored.plan.size as usize;
            let raw = stored.plan.raw as usize;
            let Ok(mut plan) = zstd::bulk::decompress(&stored.payload[start..end], raw) else {
                return;
            };
            let digits: Vec<usize> = (0..plan.len())
                .filter(|&at| plan[at].is_ascii_digit())
                .collect();
            if let Some(&at) = digits.get(random.below(digits.len())) {
                match random.below(3) {
                    0 => plan[at] = b'0' + random.below(10) as u8,
                    1 => {
                        plan.splice(at..at, b"9999999".iter().copied());
                    }
                    _ => {
                        plan.remove(at);
                    }
                }
            }
            let packed = zstd::bulk::compress(&plan, 1).unwrap();
            stored.payload.splice(start..end, packed.iter().copied());
            stored.plan.size = packed.len() as u64;
            stored.plan.raw = plan.len() as u64;
        }
    }
}

/// Changes the plan, as text, and packs it again.
fn with_plan(stored: &mut Stored, change: impl Fn(&str) -> String) {
    let (start, size) = (stored.plan.offset as usize, stored.plan.size as usize);
    let raw = stored.plan.raw as usize;
    let plan = zstd::bulk::decompress(&stored.payload[start..start + size], raw).unwrap();
    // No schema before it: it is the base's.
    let (head, json) = plan.split_at(8);
    assert_eq!(head, [0_u8; 8]);
    let changed = change(std::str::from_utf8(json).unwrap());
    assert_ne!(changed.as_bytes(), json);
    let plan = [head, changed.as_bytes()].concat();
    let packed = zstd::bulk::compress(&plan, 1).unwrap();
    stored
        .payload
        .splice(start..start + size, packed.iter().copied());
    stored.plan.size = packed.len() as u64;
    stored.plan.raw = plan.len() as u64;
}

#[test]
fn a_cell_is_no_longer_than_the_column() {
    let random = &mut Random(1);
    let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)]));
    let table = |texts: &[&str]| {
        let column: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap()
    };
    let rows = |batch: RecordBatch| Arc::new(Memory(Arc::clone(&schema), vec![batch]));
    let base = Dataset::of_rows("base", rows(table(&["one", "two"])));
    let derivative: Arc<dyn Rows> = rows(table(&["one", "something else", "two"]));
    let mut stored = encode(1, &base, &derivative, random);
    assert!(decode(&base, &stored).is_ok());
    // The cell is a byte, a length of one byte, and 14 bytes.
    with_plan(&mut stored, |plan| {
        plan.replace("\"longest\":16", "\"longest\":16000000000")
    });
    let problem = decode(&base, &stored).map(|_| ()).unwrap_err();
    assert!(problem.to_string().contains("longer"), "{problem}");
}

#[test]
fn arrow_tells_bits_apart() {
    let same = |a: f64, b: f64| {
        Float64Array::from(vec![a]).to_data() == Float64Array::from(vec![b]).to_data()
    };
    assert!(!same(0.0, -0.0));
    assert!(!same(f64::from_bits(0x7ff8_0000_0000_0001), f64::NAN));
    assert!(same(f64::NAN, f64::NAN));
}

#[test]
fn random_derivatives_come_back_bit_for_bit() {
    use rayon::prelude::*;
    let first = std::env::var("SPARSE_TEST_CASE").ok();
    match first.and_then(|case| case.parse().ok()) {
        Some(case) => one(case),
        None => (0..CASES).into_par_iter().for_each(one),
    }
}
