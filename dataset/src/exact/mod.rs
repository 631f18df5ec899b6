//! Parquet files byte for byte: a recipe says how a file is made of its rows. Pages are written as known writers write them
//! (Arrow's in C++, which pyarrow and `datasets` use, and parquet-rs), by the few choices a writer has; what is left of headers
//! and footer is literal, and small. A file by another writer has pages that come out otherwise; then there is no recipe.

mod find;
mod hybrid;
mod leaves;
mod make;
mod pack;
mod snappy;
mod thrift;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use sparse_delta::Blob;

use self::make::Maker;
pub(crate) use self::make::Supply;
use crate::DatasetError;
use crate::compress::Restore;
use crate::input::{Dataset, Format, Rows, open_file};
use crate::manifest::{Restores, SplitEntry};
use crate::output::hash_of;
use crate::quoted;

/// A recipe unpacked is never larger.
const MOST: u64 = 256 << 20;
const LEVEL: i32 = 19;

/// Files of a split that are larger than this together come back row for row unless more is asked for: it takes time to find
/// out how they were written, and to write them so.
const LARGE: u64 = 16 << 20;
/// What the bytes of a file may cost where the rows cost next to nothing; a quarter of that for each more.
const LITTLE: u64 = 3 << 9;

/// On which terms files come back byte for byte.
pub(crate) struct Offer {
    pub(crate) restore: Restore,
    pub(crate) memory: u64,
    /// What the rows cost.
    pub(crate) coded: u64,
}

impl Offer {
    /// Adds what it takes to make the Parquet files of a split again byte for byte, or says why that is not done.
    pub(crate) fn make(
        &self,
        entry: &mut SplitEntry,
        (dataset, rows): (&Dataset, &Arc<dyn Rows>),
        schema: &SchemaRef,
        payload: &mut Vec<u8>,
    ) -> Result<(), DatasetError> {
        let is_file = dataset.root().is_some() && rows.format() == Format::Parquet;
        if self.restore == Restore::Rows || !is_file || entry.format != Format::Parquet {
            return Ok(());
        }
        let bytes = rows.bytes();
        let most = match self.restore {
            Restore::Bytes => u64::MAX,
            _ if entry.is_base() => return Ok(()),
            _ if bytes > LARGE => {
                entry.why = Some(format!(
                    "it has more than {} MiB, of which that is not tried unasked (`restore`)",
                    LARGE >> 20
                ));
                return Ok(());
            }
            _ => {
                let more = (entry.files.len() as u64).saturating_sub(1) * LITTLE / 4;
                (bytes / 32).min((LITTLE + more).max(self.coded / 16))
            }
        };
        let files: Vec<PathBuf> = entry
            .files
            .iter()
            .filter_map(|(name, _)| dataset.path_of(name))
            .collect();
        match recipes(&files, schema, most, self.memory)? {
            Err(why) if self.restore == Restore::Bytes => Err(DatasetError::usage(format!(
                "split {:?} cannot come back byte for byte: {why}; leave it at its rows (`restore`)",
                entry.name
            ))),
            Err(why) => {
                entry.why = Some(why);
                Ok(())
            }
            Ok((recipes, raw)) => {
                let hashes: Result<_, _> = files.iter().map(|path| hash_of(path)).collect();
                entry.restores = Restores::Bytes(hashes?);
                entry.recipes = Some(Blob {
                    payload: 0,
                    offset: payload.len() as u64,
                    size: recipes.len() as u64,
                    raw,
                });
                payload.extend_from_slice(&recipes);
                Ok(())
            }
        }
    }
}

/// Recipes of files, packed, and how many bytes they are; or why there are none.
type Recipes = Result<(Vec<u8>, u64), String>;

/// The recipes of the Parquet files of a split, one after another, packed. `most` is how many bytes they may take, `memory` what
/// may be used to find them and, later, to make a file by them.
fn recipes(
    files: &[PathBuf],
    schema: &SchemaRef,
    most: u64,
    memory: u64,
) -> Result<Recipes, DatasetError> {
    let mut all = Vec::new();
    for path in files {
        let (_, mut batches) = open_file(path, Format::Parquet)?;
        let mut left = None;
        let mut supply = |rows: usize| {
            let mut found = Vec::new();
            let mut missing = rows;
            while missing > 0 {
                let batch = match left.take().map(Ok).or_else(|| batches.next()) {
                    Some(batch) => batch?,
                    None => break,
                };
                let taken = missing.min(batch.num_rows());
                if taken < batch.num_rows() {
                    left = Some(batch.slice(taken, batch.num_rows() - taken));
                }
                missing -= taken;
                found.push(batch.slice(0, taken));
            }
            Ok(found)
        };
        match find::recipe(path, schema, &mut supply, most, memory)? {
            Ok(recipe) => all.extend_from_slice(&recipe),
            Err(why) => return Ok(Err(why)),
        }
    }
    if all.len() as u64 > MOST {
        return Ok(Err("too much of it is its writer's own".to_owned()));
    }
    let packed = pack(&all, schema)?;
    Ok(if packed.len() as u64 > most {
        Err(format!(
            "what its writer chose takes {} bytes, more than it is worth",
            packed.len()
        ))
    } else {
        Ok((packed, all.len() as u64))
    })
}

/// Makes a file, which people know as `shown`, by the recipe at `at`.
pub(crate) fn make(
    recipe: &[u8],
    at: &mut usize,
    schema: &SchemaRef,
    supply: &mut Supply<'_>,
    (shown, out): (&Path, &mut dyn Write),
) -> Result<(), DatasetError> {
    Maker::new(schema, shown, out).run(recipe, at, supply)
}

/// The texts of a schema, which recipes quote.
fn texts(schema: &Schema) -> Vec<u8> {
    fn fields<'a>(all: impl Iterator<Item = &'a Field>, out: &mut Vec<u8>) {
        for field in all {
            out.extend_from_slice(field.name().as_bytes());
            metadata(field.metadata(), out);
            match field.data_type() {
                DataType::List(inner)
                | DataType::LargeList(inner)
                | DataType::FixedSizeList(inner, _)
                | DataType::Map(inner, _) => fields(std::iter::once(inner.as_ref()), out),
                DataType::Struct(inner) => fields(inner.iter().map(AsRef::as_ref), out),
                _ => {}
            }
        }
    }
    fn metadata(all: &std::collections::HashMap<String, String>, out: &mut Vec<u8>) {
        let mut all: Vec<_> = all.iter().collect();
        all.sort();
        for (key, value) in all {
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
    }
    let mut out = Vec::new();
    fields(schema.fields().iter().map(AsRef::as_ref), &mut out);
    metadata(schema.metadata(), &mut out);
    out
}

fn pack(recipes: &[u8], schema: &Schema) -> Result<Vec<u8>, DatasetError> {
    quoted::pack(recipes, &texts(schema), LEVEL)
}

/// What [`recipes`] has packed: `length` bytes.
pub(crate) fn unpack(packed: &[u8], length: u64, schema: &Schema) -> Result<Vec<u8>, DatasetError> {
    let damaged = || DatasetError::damaged("the recipes of files cannot be unpacked");
    if length > MOST {
        return Err(damaged());
    }
    quoted::unpack(packed, &texts(schema), length)?
        .filter(|all| all.len() as u64 == length)
        .ok_or_else(damaged)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use arrow::array::{Int64Array, ListArray, RecordBatch, StringArray};
    use arrow::datatypes::Int32Type;
    use parquet::arrow::ArrowWriter;
    use parquet::basic::Compression;
    use parquet::file::properties::WriterProperties;

    use super::*;

    fn rows() -> RecordBatch {
        let words = (0..200).map(|row| (row % 7 > 0).then(|| format!("word {}", row % 13)));
        let lists = (0..200).map(|row| (row % 5 > 0).then(|| vec![Some(row), None, Some(row / 2)]));
        RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from_iter_values(0..200)) as _),
            ("word", Arc::new(words.collect::<StringArray>()) as _),
            (
                "list",
                Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists)) as _,
            ),
        ])
        .unwrap()
    }

    /// A Parquet file of [`rows`] in two row groups, and its recipe.
    fn file(folder: &std::path::Path, compression: Compression) -> (PathBuf, Vec<u8>) {
        let path = folder.join("rows.parquet");
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_max_row_group_row_count(Some(120))
            .build();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, rows().schema(), Some(properties)).unwrap();
        writer.write(&rows()).unwrap();
        writer.close().unwrap();
        let (packed, length) = recipe(&path).unwrap().unwrap();
        let recipe = unpack(&packed, length, &rows().schema()).unwrap();
        (path, recipe)
    }

    fn recipe(path: &std::path::Path) -> Result<Recipes, DatasetError> {
        recipes(&[path.to_owned()], &rows().schema(), u64::MAX, 1 << 30)
    }

    fn made(recipe: &[u8]) -> Result<Vec<u8>, DatasetError> {
        let (all, mut from, mut out) = (rows(), 0, Vec::new());
        let mut supply = |count: usize| {
            let count = count.min(all.num_rows() - from);
            from += count;
            Ok(vec![all.slice(from - count, count)])
        };
        let to = (
            std::path::Path::new("rows.parquet"),
            &mut out as &mut dyn Write,
        );
        make(recipe, &mut 0, &all.schema(), &mut supply, to)?;
        Ok(out)
    }

    /// Calls `each` with some bytes in which a few are other ones, or the end is missing.
    fn damaged_many(bytes: &[u8], each: impl Fn(&[u8])) {
        let mut state = 5_u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).unwrap() % n
        };
        for round in 0..1500 {
            let mut damaged = bytes.to_vec();
            if round % 5 == 0 {
                damaged.truncate(below(bytes.len()));
            }
            for _ in 0..=below(3) {
                if !damaged.is_empty() {
                    let at = below(damaged.len());
                    damaged[at] =
                        [0, 1, 127, 128, 255, u8::try_from(below(256)).unwrap()][below(6)];
                }
            }
            each(&damaged);
        }
    }

    #[test]
    fn damaged_recipes_are_an_error_or_another_file() {
        for compression in [Compression::SNAPPY, Compression::ZSTD(Default::default())] {
            let folder = tempfile::tempdir().unwrap();
            let (path, recipe) = file(folder.path(), compression);
            assert_eq!(made(&recipe).unwrap(), std::fs::read(path).unwrap());
            damaged_many(&recipe, |recipe| {
                let _ = made(recipe);
            });
        }
    }

    /// Groups, chunks and pages of nothing would go on as long as the recipe, which packs well.
    #[test]
    fn recipes_do_not_repeat_what_costs_them_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (_, recipe) = file(folder.path(), Compression::SNAPPY);
        let group = recipe
            .iter()
            .position(|&code| code == make::op::GROUP)
            .unwrap();
        for more in [vec![make::op::GROUP, 0], [make::op::CHUNK, 0].repeat(4)] {
            let mut recipe = recipe.clone();
            recipe.splice(group + 2..group + 2, more);
            assert!(made(&recipe).is_err());
        }
    }

    /// What a reader of Parquet may still read, and a writer made otherwise, comes back by its rows: that is no failure.
    #[test]
    fn damaged_files_have_no_recipe_or_another() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = file(folder.path(), Compression::SNAPPY);
        let whole = std::fs::read(&path).unwrap();
        damaged_many(&whole, |bytes| {
            std::fs::write(&path, bytes).unwrap();
            let _ = recipe(&path);
        });
    }
}
