//! Reading: one file is opened, its header becomes rows. Local files are mapped; of remote ones the header is fetched, and
//! data only where it is wanted.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, exec_datafusion_err};
use datafusion::config::ConfigOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{
    FileOpenFuture, FileOpener, FileScanConfig, FileSource,
};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::filter_pushdown::{FilterPushdownPropagation, PushedDown};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::{DisplayFormatType, PhysicalExpr};
use futures::stream::{self, BoxStream, StreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sparse_store::{Header, Model};

use datafusion::datasource::projection::{ProjectionOpener, SplitProjection};

use crate::tensors::{self, DATA, DATA_ROWS, Listing};
use crate::{columns, error};

/// The rows of safetensors files.
#[derive(Clone, Debug)]
pub(super) struct SafetensorsSource {
    table_schema: TableSchema,
    projection: SplitProjection,
    filters: Vec<Arc<dyn PhysicalExpr>>,
    batch_size: usize,
    metrics: ExecutionPlanMetricsSet,
}

impl SafetensorsSource {
    pub(super) fn new(table_schema: TableSchema) -> Self {
        Self {
            projection: SplitProjection::unprojected(&table_schema),
            table_schema,
            filters: Vec::new(),
            batch_size: 8192,
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }
}

impl FileSource for SafetensorsSource {
    fn create_file_opener(
        &self,
        object_store: Arc<dyn ObjectStore>,
        base_config: &FileScanConfig,
        _partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        let columns = self.projection.file_indices.clone();
        let file_schema = Arc::clone(self.table_schema.file_schema());
        let opener = Opener {
            store: object_store,
            local: base_config.object_store_url.as_str().starts_with("file:"),
            schema: Arc::new(file_schema.project(&columns)?),
            columns,
            filters: self.filters.clone(),
            batch_size: self.batch_size.max(1),
        };
        ProjectionOpener::try_new(self.projection.clone(), Arc::new(opener), &file_schema)
    }

    fn table_schema(&self) -> &TableSchema {
        &self.table_schema
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        Arc::new(Self {
            batch_size,
            ..self.clone()
        })
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        Some(&self.projection.source)
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        &self.metrics
    }

    fn file_type(&self) -> &str {
        super::EXTENSION
    }

    fn fmt_extra(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.filters.is_empty() {
            return Ok(());
        }
        let filters: Vec<String> = self.filters.iter().map(ToString::to_string).collect();
        write!(f, ", filters=[{}]", filters.join(" AND "))
    }

    fn supports_repartitioning(&self) -> bool {
        false
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn FileSource>>> {
        let mut source = self.clone();
        let mut taken = Vec::with_capacity(filters.len());
        for filter in filters {
            taken.push(if over_headers(&filter) {
                source.filters.push(filter);
                PushedDown::Yes
            } else {
                PushedDown::No
            });
        }
        Ok(
            FilterPushdownPropagation::with_parent_pushdown_result(taken)
                .with_updated_node(Arc::new(source)),
        )
    }

    fn try_pushdown_projection(
        &self,
        projection: &ProjectionExprs,
    ) -> Result<Option<Arc<dyn FileSource>>> {
        let mut source = self.clone();
        source.projection = SplitProjection::new(
            self.table_schema.file_schema(),
            &source.projection.source.try_merge(projection)?,
        );
        Ok(Some(Arc::new(source)))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let filters = self.filters.iter();
        let outputs = self
            .projection
            .source
            .iter()
            .map(|projection| &projection.expr);
        datafusion::physical_plan::apply_expression_roots(filters.chain(outputs), f)
    }
}

/// Whether a condition can be decided from headers alone.
fn over_headers(filter: &Arc<dyn PhysicalExpr>) -> bool {
    let touches_more = filter.exists(|expr| {
        Ok(expr
            .downcast_ref::<Column>()
            .is_some_and(|column| column.index() >= DATA))
    });
    !touches_more.unwrap_or(true)
        && !datafusion::physical_expr_common::physical_expr::is_volatile(filter)
}

#[derive(Clone)]
struct Opener {
    store: Arc<dyn ObjectStore>,
    local: bool,
    columns: Vec<usize>,
    schema: SchemaRef,
    filters: Vec<Arc<dyn PhysicalExpr>>,
    batch_size: usize,
}

impl FileOpener for Opener {
    fn open(&self, file: PartitionedFile) -> Result<FileOpenFuture> {
        let this = self.clone();
        Ok(Box::pin(async move {
            let path = file.object_meta.location;
            let rows = match this.columns.contains(&DATA) {
                true => this.batch_size.min(DATA_ROWS),
                false => this.batch_size,
            };
            if this.local {
                this.mapped(&path, rows).await
            } else {
                this.fetched(path, file.object_meta.size, rows).await
            }
        }))
    }
}

type Batches = BoxStream<'static, Result<RecordBatch>>;

impl Opener {
    async fn mapped(self, path: &Path, rows: usize) -> Result<Batches> {
        let path = LocalFileSystem::new().path_to_filesystem(path)?;
        let open = SpawnedTask::spawn_blocking(move || Model::open_local(&path));
        let model = open
            .join_unwind()
            .await
            .map_err(|error| exec_datafusion_err!("opening a file was stopped: {error}"))?
            .map_err(error::store)?;
        let listing = Listing::of(Arc::new(model)).filter(&super::schema(), &self.filters)?;
        let starts: Vec<usize> = (0..listing.len()).step_by(rows).collect();
        let batches = stream::iter(starts).map(move |start| {
            let end = (start + rows).min(listing.len());
            listing.batch(start..end, &self.columns, Arc::clone(&self.schema))
        });
        Ok(batches.boxed())
    }

    async fn fetched(self, path: Path, size: u64, rows: usize) -> Result<Batches> {
        let name = path.to_string();
        let first = self.store.get_range(&path, 0..size.min(8)).await?;
        let needed = Header::needed(&name, &first, size).map_err(error::store)?;
        let start = self.store.get_range(&path, 0..needed.min(size)).await?;
        let header = Header::parse(&name, &start, size).map_err(error::store)?;
        let kept = self.kept(&header, &path)?;
        let chunks: Vec<Vec<usize>> = kept.chunks(rows).map(<[usize]>::to_vec).collect();
        let shared = Arc::new((self, header, path));
        let batches = stream::iter(chunks).then(move |chunk| {
            let shared = Arc::clone(&shared);
            async move {
                let (this, header, path) = shared.as_ref();
                let file = path.filename().unwrap_or_default();
                let entries: Vec<_> = chunk
                    .iter()
                    .filter_map(|at| Some((file, header.entries.get(*at)?)))
                    .collect();
                let mut data = Vec::new();
                if this.columns.contains(&DATA) {
                    for (_, entry) in &entries {
                        tensors::value_length(&entry.name, entry.bytes())?;
                    }
                    let ranges: Vec<_> = entries.iter().map(|(_, e)| e.range.clone()).collect();
                    let bytes = this.store.get_ranges(path, &ranges).await?;
                    data = bytes.into_iter().map(Buffer::from).collect();
                }
                let columns = tensors::to_columns(&entries, &this.columns, || Ok(data.clone()))?;
                columns::batch(Arc::clone(&this.schema), columns, entries.len())
            }
        });
        Ok(batches.boxed())
    }

    /// The entries that meet all conditions.
    fn kept(&self, header: &Header, path: &Path) -> Result<Vec<usize>> {
        let file = path.filename().unwrap_or_default();
        let entries: Vec<_> = header.entries.iter().map(|entry| (file, entry)).collect();
        tensors::matching(&entries, &super::schema(), &self.filters)
    }
}
