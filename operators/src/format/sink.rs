//! The sink of COPY: one file, which appears whole or not at all.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{Result, exec_datafusion_err, internal_datafusion_err};
use datafusion::datasource::physical_plan::FileSinkConfig;
use datafusion::datasource::sink::DataSink;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::metrics::{
    Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet,
};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType};
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use sparse_store::{Replace, Staged};
use tokio::sync::mpsc;

use super::writer::TensorWriter;
use crate::error;

/// Bytes of one part of an upload.
const PART: usize = 8 << 20;

/// Writes a safetensors file.
#[derive(Debug)]
pub(super) struct SafetensorsSink {
    config: FileSinkConfig,
    metadata: Vec<(String, String)>,
    metrics: ExecutionPlanMetricsSet,
    tensors: Count,
}

impl SafetensorsSink {
    pub(super) fn new(config: FileSinkConfig, metadata: Vec<(String, String)>) -> Self {
        let metrics = ExecutionPlanMetricsSet::new();
        let tensors = MetricBuilder::new(&metrics).global_counter("tensors");
        Self {
            config,
            metadata,
            metrics,
            tensors,
        }
    }
}

impl DisplayAs for SafetensorsSink {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafetensorsSink(file={}", self.config.original_url)?;
        for (key, value) in &self.metadata {
            write!(f, ", metadata.{key}={value}")?;
        }
        write!(f, ")")
    }
}

/// What the writing thread is told.
enum Message {
    Rows(RecordBatch),
    /// There are no more rows, and none was lost.
    Finish,
}

#[async_trait]
impl DataSink for SafetensorsSink {
    fn schema(&self) -> &SchemaRef {
        self.config.output_schema()
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    async fn write_all(
        &self,
        mut rows: SendableRecordBatchStream,
        context: &Arc<TaskContext>,
    ) -> Result<u64> {
        let url = self
            .config
            .table_paths
            .first()
            .ok_or_else(|| internal_datafusion_err!("COPY has no target"))?;
        let path = url.prefix().clone();
        let local = self.config.object_store_url.as_str().starts_with("file:");
        let target = if local {
            Target::Local(LocalFileSystem::new().path_to_filesystem(&path)?)
        } else {
            Target::Remote
        };
        // One batch in flight: what is written is bounded by the disk, not by memory.
        let (send, receive) = mpsc::channel(1);
        let metadata = self.metadata.clone();
        let writing = SpawnedTask::spawn_blocking(move || write(receive, target, metadata));
        while let Some(batch) = rows.try_next().await? {
            if send.send(Message::Rows(batch)).await.is_err() {
                // The thread has ended; its error is told below.
                break;
            }
        }
        let _ = send.send(Message::Finish).await;
        drop(send);
        let (count, upload) = writing
            .join_unwind()
            .await
            .map_err(|error| exec_datafusion_err!("COPY was stopped: {error}"))??;
        if let Some(file) = upload {
            let store = context
                .runtime_env()
                .object_store(&self.config.object_store_url)?;
            put(store.as_ref(), &path, file).await?;
        }
        self.tensors.add(count);
        Ok(count as u64)
    }
}

enum Target {
    Local(PathBuf),
    Remote,
}

/// The blocking part: the number of tensors, and the finished file where it is still to be uploaded.
fn write(
    mut rows: mpsc::Receiver<Message>,
    target: Target,
    metadata: Vec<(String, String)>,
) -> Result<(usize, Option<File>)> {
    let staged = match &target {
        Target::Local(path) => Some(Staged::file(path).map_err(error::store)?),
        Target::Remote => None,
    };
    let folder = match &staged {
        Some(staged) => staged
            .path()
            .parent()
            .unwrap_or(FsPath::new("."))
            .to_path_buf(),
        None => std::env::temp_dir(),
    };
    let mut writer = TensorWriter::new(&folder, metadata)?;
    let mut whole = false;
    while let Some(message) = rows.blocking_recv() {
        match message {
            Message::Rows(batch) => writer.push(&batch)?,
            Message::Finish => whole = true,
        }
    }
    if !whole {
        // The query failed or was dropped; its own error is the one to tell.
        return Err(exec_datafusion_err!(
            "COPY ended early; nothing was written"
        ));
    }
    let count = writer.len();
    let failed = |path: &FsPath, e: std::io::Error| {
        exec_datafusion_err!(
            "COPY: cannot write {}: {e}; nothing was written",
            path.display()
        )
    };
    match staged {
        Some(staged) => {
            let shown = staged.target().to_path_buf();
            let file = File::create(staged.path()).map_err(|e| failed(&shown, e))?;
            writer.finish(file).map_err(|e| failed(&shown, e))?;
            staged.commit(Replace::Allow).map_err(error::store)?;
            Ok((count, None))
        }
        None => {
            let mut file = tempfile::tempfile().map_err(|e| failed(&folder, e))?;
            let clone = file.try_clone().map_err(|e| failed(&folder, e))?;
            writer.finish(clone).map_err(|e| failed(&folder, e))?;
            file.seek(SeekFrom::Start(0))
                .map_err(|e| failed(&folder, e))?;
            Ok((count, Some(file)))
        }
    }
}

/// Uploads in parts; the object appears when the last is confirmed.
async fn put(store: &dyn ObjectStore, path: &Path, file: File) -> Result<()> {
    let mut upload = WriteMultipart::new_with_chunk_size(store.put_multipart(path).await?, PART);
    let mut file = Some(file);
    while let Some(mut source) = file.take() {
        let read = SpawnedTask::spawn_blocking(move || {
            let mut part = Vec::with_capacity(PART);
            let read = Read::by_ref(&mut source)
                .take(PART as u64)
                .read_to_end(&mut part);
            read.map(|_| (source, part))
        });
        let part = read
            .join_unwind()
            .await
            .map_err(|error| exec_datafusion_err!("COPY was stopped: {error}"))?;
        let (source, part) = match part {
            Ok(read) => read,
            Err(error) => {
                upload.abort().await?;
                return Err(error.into());
            }
        };
        if !part.is_empty() {
            upload.wait_for_capacity(4).await?;
            upload.put(part.into());
            file = Some(source);
        }
    }
    upload.finish().await?;
    Ok(())
}
