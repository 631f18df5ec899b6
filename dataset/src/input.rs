//! Datasets as they are given: files, folders of splits, or tables that something else reads.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::csv::ReaderBuilder as CsvReader;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::json::ReaderBuilder as JsonReader;
use arrow::json::reader::infer_json_schema;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};
use sparse_delta::{DeltaError, support};
use sparse_store::{Location, OpenOptions};

use crate::DatasetError;
use crate::canonical::describe_fields;
use crate::carried;
use crate::error::During;
use crate::table::Batches;

/// Rows per batch read from a file.
const BATCH: usize = 1 << 13;

/// How a file stores rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, the file form (the stream form is read too).
    Arrow,
    /// Arrow IPC, the stream form, as `datasets` stores it.
    ArrowStream,
    /// Comma-separated values with a header line. Every column is text, so that nothing is lost in reading.
    Csv,
    /// One JSON object per line.
    Jsonl,
}

impl Format {
    /// By the end of a file's name.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match ending.as_str() {
            "parquet" => Self::Parquet,
            "arrow" | "feather" | "ipc" => Self::Arrow,
            "csv" => Self::Csv,
            "jsonl" | "ndjson" | "json" => Self::Jsonl,
            _ => return None,
        })
    }

    /// The usual end of a file's name.
    #[must_use]
    pub fn ending(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Arrow | Self::ArrowStream => "arrow",
            Self::Csv => "csv",
            Self::Jsonl => "jsonl",
        }
    }
}

/// Rows that can be read, from the first to the last, more than once.
pub trait Rows: Send + Sync {
    /// The schema of every batch.
    ///
    /// # Errors
    /// What cannot be read.
    fn schema(&self) -> Result<SchemaRef, DatasetError>;

    /// The rows, in order.
    ///
    /// # Errors
    /// What cannot be read.
    fn read(&self) -> Result<Batches, DatasetError>;

    /// Bytes as stored.
    fn bytes(&self) -> u64;

    /// The files, where the rows are in files: path below the dataset, and rows.
    ///
    /// # Errors
    /// What cannot be read.
    fn files(&self) -> Result<Vec<(String, u64)>, DatasetError> {
        Ok(Vec::new())
    }

    /// How they are stored.
    fn format(&self) -> Format {
        Format::Parquet
    }
}

/// A split: its name and its rows.
pub(crate) type NamedRows = (String, Arc<dyn Rows>);

/// A dataset: named splits.
#[derive(Clone)]
pub struct Dataset {
    id: String,
    root: Option<PathBuf>,
    is_file: bool,
    splits: Vec<NamedRows>,
    /// Files beside the data, by relative path.
    carried: Vec<(String, PathBuf)>,
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.splits.iter().map(|(name, _)| name).collect();
        f.debug_struct("Dataset")
            .field("id", &self.id)
            .field("splits", &names)
            .finish_non_exhaustive()
    }
}

impl Dataset {
    /// A dataset of rows that something else reads (a query, for instance): one split, `train`.
    #[must_use]
    pub fn of_rows(id: impl Into<String>, rows: Arc<dyn Rows>) -> Self {
        Self {
            id: id.into(),
            root: None,
            is_file: false,
            splits: vec![("train".to_owned(), rows)],
            carried: Vec::new(),
        }
    }

    /// Opens a dataset by reference: a file or folder, an object store URL, or a dataset of the Hub.
    ///
    /// # Errors
    /// A reference that names nothing, a folder without data files, and files that cannot be read.
    pub async fn open(reference: &str, options: &OpenOptions) -> Result<Self, DatasetError> {
        let path = match Location::parse(reference)? {
            Location::Local(path) => path,
            Location::Url(url) => sparse_store::fetch_prefix(&url, options).await?,
            Location::Hub { repo, revision } => {
                sparse_store::fetch_dataset(&repo, revision.as_deref(), options).await?
            }
        };
        let id = reference.to_owned();
        tokio::task::spawn_blocking(move || Self::open_path(id, &path))
            .await
            .map_err(|error| DatasetError::internal(error.to_string()))?
    }

    fn open_path(id: String, path: &Path) -> Result<Self, DatasetError> {
        let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => DeltaError::NotFound {
                what: format!("the dataset {id}"),
                remedy: "give a file, a folder, a URL or a Hub id (org/name)".to_owned(),
            }
            .into(),
            _ => DatasetError::io("read", path, error),
        })?;
        let mut splits: BTreeMap<(usize, String), Vec<(String, PathBuf)>> = BTreeMap::new();
        let mut beside = Vec::new();
        let root = if meta.is_dir() {
            let (data, carried) = data_files(path)?;
            beside = carried;
            for (relative, file) in data {
                let name = split_of(&relative);
                splits
                    .entry((rank(&name), name))
                    .or_default()
                    .push((relative, file));
            }
            if splits.is_empty() {
                return Err(DeltaError::NotFound {
                    what: format!("a data file in {}", path.display()),
                    remedy: "a dataset has .parquet, .arrow, .csv or .jsonl files".to_owned(),
                }
                .into());
            }
            path.to_path_buf()
        } else {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            if Format::of(path).is_none() {
                return Err(DatasetError::usage(format!(
                    "{}: the name does not say what is in it; a dataset is a .parquet, .arrow, .csv or .jsonl file, or a folder of \
                     them",
                    path.display()
                )));
            }
            let split = match split_of(&name) {
                split if rank(&split) < KNOWN.len() => split,
                _ => "train".to_owned(),
            };
            splits.insert((0, split), vec![(name, path.to_path_buf())]);
            path.to_path_buf()
        };
        let splits = splits
            .into_iter()
            .map(|((_, name), files)| Ok((name, Arc::new(Files::new(files)?) as Arc<dyn Rows>)))
            .collect::<Result<_, DatasetError>>()?;
        Ok(Self {
            id,
            root: Some(root),
            is_file: !meta.is_dir(),
            splits,
            carried: beside,
        })
    }

    /// The reference it was opened by.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where its files are, if it has files.
    pub(crate) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// Where one of its files is, if it has files.
    pub(crate) fn path_of(&self, relative: &str) -> Option<PathBuf> {
        let root = self.root.as_deref()?;
        Some(if self.is_file {
            root.to_path_buf()
        } else {
            root.join(relative)
        })
    }

    /// Whether it is one file rather than a folder.
    pub(crate) fn is_file(&self) -> bool {
        self.is_file
    }

    /// The splits, by name.
    #[must_use]
    pub fn splits(&self) -> &[(String, Arc<dyn Rows>)] {
        &self.splits
    }

    /// The files beside the data; of some splits only those that lie in a folder with their files.
    pub(crate) fn carried(
        &self,
        splits: &[NamedRows],
    ) -> Result<Vec<(String, PathBuf)>, DatasetError> {
        if splits.len() == self.splits.len() {
            return Ok(self.carried.clone());
        }
        let mut folders = std::collections::HashSet::new();
        for (_, rows) in splits {
            folders.extend(rows.files()?.iter().map(|(path, _)| folder_of(path)));
        }
        let mut carried = self.carried.clone();
        carried.retain(|(path, _)| folders.contains(&folder_of(path)));
        Ok(carried)
    }

    /// The split that `name` of a derivative comes from: the one of the same name, the only one, or the first.
    pub(crate) fn counterpart(&self, name: &str) -> Option<&(String, Arc<dyn Rows>)> {
        self.splits
            .iter()
            .find(|(own, _)| own == name)
            .or_else(|| self.splits.first())
    }

    /// The splits of these names; all if none are named.
    pub(crate) fn select(&self, names: &[String]) -> Result<Vec<NamedRows>, DatasetError> {
        if names.is_empty() {
            return Ok(self.splits.clone());
        }
        names
            .iter()
            .map(|name| {
                self.splits
                    .iter()
                    .find(|(own, _)| own == name)
                    .cloned()
                    .ok_or_else(|| {
                        let known: Vec<&str> =
                            self.splits.iter().map(|(n, _)| n.as_str()).collect();
                        DatasetError::usage(format!(
                            "{} has no split {name:?}; its splits are {}",
                            self.id,
                            known.join(", ")
                        ))
                    })
            })
            .collect()
    }
}

/// Names of splits as they are usual, in their usual order.
const KNOWN: [&str; 5] = ["train", "validation", "valid", "dev", "test"];

fn rank(name: &str) -> usize {
    KNOWN
        .iter()
        .position(|known| *known == name)
        .unwrap_or(KNOWN.len())
}

fn folder_of(relative: &str) -> String {
    let folder = relative.rsplit_once('/').map_or("", |(folder, _)| folder);
    folder.to_owned()
}

/// Files by relative path.
type Found = Vec<(String, PathBuf)>;

/// The data files below a folder by relative path, sorted, and the files beside them that are carried. Hidden files are none.
fn data_files(root: &Path) -> Result<(Found, Found), DatasetError> {
    const DEPTH: usize = 4;
    let mut files = Vec::new();
    let mut beside = Vec::new();
    let mut folders = vec![(String::new(), root.to_path_buf(), 0)];
    while let Some((prefix, folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).during("read", &folder)? {
            let path = entry.during("read", &folder)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if name.starts_with('.') || name.starts_with('_') {
                continue;
            }
            let relative = format!("{prefix}{name}");
            if path.is_dir() {
                if depth < DEPTH {
                    folders.push((relative + "/", path, depth + 1));
                }
            } else if Format::of(&path)
                .is_some_and(|f| f != Format::Jsonl || !name.ends_with(".json"))
            {
                files.push((relative, path));
            } else if carried::is_carried(name, bytes_of(&path)?) {
                beside.push((relative, path));
            }
        }
    }
    files.sort();
    beside.sort();
    Ok((files, beside))
}

fn bytes_of(path: &Path) -> Result<u64, DatasetError> {
    Ok(std::fs::metadata(path).during("read", path)?.len())
}

/// The split a file belongs to: `train.parquet`, `train-00000-of-00003.parquet`, `data/train-...`, `train/0000.parquet`.
fn split_of(relative: &str) -> String {
    let (folder, name) = relative.rsplit_once('/').unwrap_or(("", relative));
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    let plain = stem
        .split(['-', '_'])
        .take_while(|part| {
            !part.is_empty() && !part.bytes().all(|b| b.is_ascii_digit()) && *part != "of"
        })
        .collect::<Vec<_>>()
        .join("-");
    if !plain.is_empty() && plain != "part" && plain != "data" {
        return plain;
    }
    match folder.rsplit('/').next().unwrap_or_default() {
        "" | "data" => "train".to_owned(),
        folder => folder.to_owned(),
    }
}

/// Files of one split, in order.
struct Files {
    files: Vec<(String, PathBuf)>,
    format: Format,
    bytes: u64,
}

impl Files {
    fn new(files: Vec<(String, PathBuf)>) -> Result<Self, DatasetError> {
        let mut bytes = 0;
        let mut format = None;
        for (relative, path) in &files {
            bytes += bytes_of(path)?;
            let own = Format::of(path);
            if format.is_some() && format != own {
                return Err(DatasetError::usage(format!(
                    "{relative}: the files of one split are of different formats; give a folder with one of them"
                )));
            }
            format = own;
        }
        let mut format = format.unwrap_or(Format::Parquet);
        if let (Format::Arrow, Some((_, path))) = (format, files.first()) {
            let mut start = Vec::new();
            let file = File::open(path).during("open", path)?;
            file.take(6).read_to_end(&mut start).during("read", path)?;
            if start != b"ARROW1" {
                format = Format::ArrowStream;
            }
        }
        Ok(Self {
            files,
            format,
            bytes,
        })
    }
}

/// What `read` finds in a file. The libraries that read files panic on some damaged ones rather than say so.
pub(crate) fn guarded<T>(
    path: &Path,
    read: impl FnOnce() -> Result<T, DatasetError>,
) -> Result<T, DatasetError> {
    support::guarded(|| Ok(read())).unwrap_or_else(|_| {
        Err(DatasetError::data(
            path.display().to_string(),
            "it is damaged, or written in a way that cannot be read here",
        ))
    })
}

/// The schema and the batches of one file.
pub(crate) fn open_file(path: &Path, format: Format) -> Result<(SchemaRef, Batches), DatasetError> {
    let (schema, mut batches) = guarded(path, || open(path, format))?;
    let path = path.to_owned();
    let batches =
        std::iter::from_fn(move || guarded(&path, || batches.next().transpose()).transpose());
    Ok((schema, Box::new(batches)))
}

fn open(path: &Path, format: Format) -> Result<(SchemaRef, Batches), DatasetError> {
    let file = File::open(path).during("open", path)?;
    let name = path.display().to_string();
    let bad = |problem: String| DatasetError::data(name.clone(), problem);
    let named = name.clone();
    macro_rules! opened {
        ($schema:expr, $reader:expr) => {{
            let schema = $schema;
            let batches: Batches =
                Box::new($reader.map(move |batch| {
                    batch.map_err(|error| DatasetError::data(named.clone(), error))
                }));
            Ok((schema, batches))
        }};
    }
    match format {
        Format::Parquet => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file)
                .map_err(|error| bad(error.to_string()))?
                .with_batch_size(BATCH);
            let schema = Arc::clone(builder.schema());
            let reader = builder.build().map_err(|error| bad(error.to_string()))?;
            opened!(schema, reader)
        }
        Format::Arrow | Format::ArrowStream => {
            let again = file.try_clone().during("open", path)?;
            match FileReader::try_new(BufReader::new(file), None) {
                Ok(reader) => opened!(reader.schema(), reader),
                Err(_) => {
                    let mut file = again;
                    file.rewind().during("read", path)?;
                    let reader = StreamReader::try_new(BufReader::new(file), None)
                        .map_err(|error| bad(error.to_string()))?;
                    opened!(reader.schema(), reader)
                }
            }
        }
        Format::Csv => {
            let (inferred, _) = arrow::csv::reader::Format::default()
                .with_header(true)
                .infer_schema(&mut BufReader::new(&file), Some(1))
                .map_err(|error| bad(error.to_string()))?;
            let fields: Vec<Field> = inferred
                .fields()
                .iter()
                .map(|field| Field::new(field.name(), DataType::Utf8, true))
                .collect();
            let schema = Arc::new(Schema::new(fields));
            let mut file = file;
            file.rewind().during("read", path)?;
            let reader = CsvReader::new(Arc::clone(&schema))
                .with_header(true)
                .with_batch_size(BATCH)
                .build(file)
                .map_err(|error| bad(error.to_string()))?;
            opened!(schema, reader)
        }
        Format::Jsonl => {
            let (schema, _) = infer_json_schema(BufReader::new(&file), None)
                .map_err(|error| bad(error.to_string()))?;
            let schema = Arc::new(schema);
            let mut file = file;
            file.rewind().during("read", path)?;
            let reader = JsonReader::new(Arc::clone(&schema))
                .with_batch_size(BATCH)
                .build(BufReader::new(file))
                .map_err(|error| bad(error.to_string()))?;
            opened!(schema, reader)
        }
    }
}

impl Rows for Files {
    fn schema(&self) -> Result<SchemaRef, DatasetError> {
        let (_, first) = &self.files[0];
        Ok(open_file(first, self.format)?.0)
    }

    fn read(&self) -> Result<Batches, DatasetError> {
        let schema = self.schema()?;
        let fields = describe_fields(&schema);
        let format = self.format;
        let files = self.files.clone();
        let all = files.into_iter().flat_map(move |(relative, path)| {
            let opened = open_file(&path, format).and_then(|(own, batches)| {
                let found = describe_fields(&own);
                if found == fields {
                    Ok(batches)
                } else {
                    Err(DatasetError::data(
                        relative,
                        "its columns are not those of the split's first file",
                    ))
                }
            });
            match opened {
                Ok(batches) => batches,
                Err(error) => Box::new(std::iter::once(Err(error))) as Batches,
            }
        });
        let with = Arc::clone(&schema);
        Ok(Box::new(all.map(move |batch| {
            batch.and_then(|batch| Ok(batch.with_schema(Arc::clone(&with))?))
        })))
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn files(&self) -> Result<Vec<(String, u64)>, DatasetError> {
        if let [(relative, _)] = self.files.as_slice() {
            return Ok(vec![(relative.clone(), u64::MAX)]);
        }
        self.files
            .iter()
            .map(|(relative, path)| {
                let (_, batches) = open_file(path, self.format)?;
                let mut rows = 0;
                for batch in batches {
                    rows += batch?.num_rows() as u64;
                }
                Ok((relative.clone(), rows))
            })
            .collect()
    }

    fn format(&self) -> Format {
        self.format
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_to_the_split_their_name_says() {
        for (file, split) in [
            ("train.parquet", "train"),
            ("train-00000-of-00003.parquet", "train"),
            ("data/test-00000-of-00001-abc.parquet", "test"),
            ("train/0000.parquet", "train"),
            ("default/validation/0000.parquet", "validation"),
            ("part-0.parquet", "train"),
            ("data/00000.jsonl", "train"),
            ("my_words.csv", "my-words"),
        ] {
            assert_eq!(split_of(file), split, "{file}");
        }
    }
}
