//! The payload of an artifact: for each split its plan (one zstd frame of schema and JSON) and the streams it names.

use std::io::Cursor;
use std::path::Path;

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Serialize};
use sparse_delta::{Blob, DeltaError, support};
use sparse_store::Map;

use crate::DatasetError;
use crate::carried;
use crate::error::During as _;
use crate::exact;
use crate::manifest::{DatasetManifest, PAYLOAD, SplitEntry};
use crate::split::{Coded, SplitPlan};

/// No plan is larger than this.
const MAX_PLAN: u64 = 256 << 20;

/// What the plan of a split says, besides its schema.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    split: SplitPlan,
    /// Bytes of each stream.
    streams: Vec<u64>,
}

/// Appends a coded split to a payload; where its plan is.
pub(crate) fn append(
    payload: &mut Vec<u8>,
    coded: &Coded,
    schema: Option<&SchemaRef>,
) -> Result<Blob, DatasetError> {
    let ipc = match schema {
        Some(schema) => StreamWriter::try_new(Vec::new(), schema)?.into_inner()?,
        None => Vec::new(),
    };
    let stored = Stored {
        split: coded.plan.clone(),
        streams: coded
            .streams
            .iter()
            .map(|stream| stream.len() as u64)
            .collect(),
    };
    let mut plan = (ipc.len() as u64).to_le_bytes().to_vec();
    plan.extend_from_slice(&ipc);
    serde_json::to_writer(&mut plan, &stored)
        .map_err(|error| DatasetError::internal(error.to_string()))?;
    let packed = zstd::bulk::compress(&plan, 19)
        .map_err(|error| DatasetError::internal(error.to_string()))?;
    let blob = Blob {
        payload: 0,
        offset: payload.len() as u64,
        size: packed.len() as u64,
        raw: plan.len() as u64,
    };
    payload.extend_from_slice(&packed);
    for stream in &coded.streams {
        payload.extend_from_slice(stream);
    }
    Ok(blob)
}

/// An artifact opened for reading.
pub(crate) struct Artifact {
    pub(crate) manifest: DatasetManifest,
    payload: Map,
}

impl Artifact {
    /// Opens the artifact in a folder and checks its payload against its hash.
    pub(crate) fn open(folder: &Path) -> Result<Self, DatasetError> {
        let manifest = DatasetManifest::read(folder)?;
        let path = folder.join(PAYLOAD);
        let payload = Map::open(&path)?;
        let found = blake3::hash(payload.bytes()).to_hex();
        if found.as_str() != manifest.payload {
            return Err(DeltaError::corrupt(
                path,
                format!(
                    "its hash is {found}, the manifest says {}",
                    manifest.payload
                ),
            )
            .into());
        }
        Ok(Self { manifest, payload })
    }

    /// The recipes of the files of a split.
    pub(crate) fn recipes(
        &self,
        entry: &SplitEntry,
        schema: &SchemaRef,
    ) -> Result<Option<Vec<u8>>, DatasetError> {
        let Some(blob) = entry.recipes else {
            return Ok(None);
        };
        let outside = || DatasetError::damaged("recipes of files lie outside the payload");
        let packed = within(self.payload.bytes(), blob.offset, blob.size).ok_or_else(outside)?;
        exact::unpack(packed, blob.raw, schema).map(Some)
    }

    /// The files beside the data.
    pub(crate) fn carried(&self) -> Result<Vec<(String, Vec<u8>)>, DatasetError> {
        match &self.manifest.carried {
            Some(carried) => carried::read(self.payload.bytes(), carried),
            None => Ok(Vec::new()),
        }
    }

    /// The plan of a split, its schema (`None`: the base's), and its streams.
    pub(crate) fn split(&self, entry: &SplitEntry) -> Result<Parts<'_>, DatasetError> {
        read(self.payload.bytes(), entry.plan)
    }
}

/// The plan of a split, its schema (`None`: the base's), and its streams.
type Parts<'a> = (SplitPlan, Option<SchemaRef>, Vec<&'a [u8]>);

/// Some bytes of a payload; `None` if they lie outside.
pub(crate) fn within(payload: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    payload.get(start..end)
}

/// What [`append`] has written.
pub(crate) fn read(bytes: &[u8], plan: Blob) -> Result<Parts<'_>, DatasetError> {
    let outside = || DatasetError::damaged("a split lies outside the payload");
    let range = |start: u64, size: u64| within(bytes, start, size);
    let Blob {
        offset, size, raw, ..
    } = plan;
    if raw > MAX_PLAN {
        return Err(DatasetError::damaged("a plan is too large"));
    }
    let packed = range(offset, size).ok_or_else(outside)?;
    let plan = zstd::bulk::decompress(packed, usize::try_from(raw).unwrap_or(0))
        .map_err(|error| DatasetError::damaged(format!("a plan cannot be unpacked: {error}")))?;
    let short = || DatasetError::damaged("a plan ends early");
    let (length, rest) = plan.split_first_chunk::<8>().ok_or_else(short)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (ipc, json) = rest.split_at_checked(length).ok_or_else(short)?;
    let schema = if ipc.is_empty() {
        None
    } else {
        let bad = |problem: &dyn std::fmt::Display| {
            DatasetError::damaged(format!("a schema cannot be read: {problem}"))
        };
        // The reader of a schema that is none may panic rather than say so.
        let reader = support::guarded(|| Ok(StreamReader::try_new(Cursor::new(ipc), None)))
            .map_err(|_| bad(&"it is none of Arrow's"))?
            .map_err(|error| bad(&error))?;
        Some(reader.schema())
    };
    let stored: Stored = serde_json::from_slice(json)
        .map_err(|error| DatasetError::damaged(format!("a plan cannot be read: {error}")))?;
    let mut at = offset.checked_add(size).ok_or_else(outside)?;
    let mut streams = Vec::new();
    for size in stored.streams {
        streams.push(range(at, size).ok_or_else(outside)?);
        at += size;
    }
    Ok((stored.split, schema, streams))
}

/// The bytes of the payload that belong to each split: its plan and the streams behind it.
pub(crate) fn stored_bytes(
    folder: &Path,
    manifest: &DatasetManifest,
) -> Result<Vec<u64>, DatasetError> {
    let path = folder.join(PAYLOAD);
    let whole = std::fs::metadata(&path).during("read", &path)?.len();
    let carried = manifest.carried.as_ref();
    let end = carried.map_or(whole, |carried| carried.blob.offset);
    let starts: Vec<u64> = manifest.splits.iter().map(|s| s.plan.offset).collect();
    Ok(starts
        .iter()
        .enumerate()
        .map(|(at, &start)| {
            let next = starts.get(at + 1).copied().unwrap_or(end);
            next.saturating_sub(start)
        })
        .collect())
}
