//! The one place where functions, planner, formats and options meet.

use std::sync::Arc;

use datafusion::catalog::{CatalogProviderList, MemoryCatalogProviderList};
use datafusion::common::Result;
use datafusion::datasource::listing_table_factory::ListingTableFactory;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::config::SparseConfig;
use crate::format::SafetensorsFormatFactory;
use crate::functions;
use crate::planner::SparsePlanner;
use crate::provider::TableFunction;

/// The name of the format in `STORED AS`.
const FORMAT: &str = "SAFETENSORS";

/// A session with every function, format and option of this crate, and with files as tables (`SELECT * FROM 'x.safetensors'`).
pub fn session() -> SessionContext {
    session_with(SparseConfig::default())
}

/// The same, with options set.
pub fn session_with(config: SparseConfig) -> SessionContext {
    let settings = SessionConfig::new()
        .with_information_schema(true)
        .with_option_extension(config);
    let catalogs: Arc<dyn CatalogProviderList> = Arc::new(MemoryCatalogProviderList::new());
    let mut builder = SessionStateBuilder::new()
        .with_config(settings)
        .with_default_features()
        .with_catalog_list(Arc::clone(&catalogs))
        .with_relation_planners(vec![Arc::new(SparsePlanner::new(catalogs))])
        .with_table_factory(FORMAT.to_owned(), Arc::new(ListingTableFactory::new()));
    builder
        .file_formats()
        .get_or_insert_default()
        .push(Arc::new(SafetensorsFormatFactory));
    let context = SessionContext::new_with_state(builder.build()).enable_url_table();
    register_functions(&context);
    context
}

/// Adds the functions, the planner and the file format to a session that has been made elsewhere. `STORED AS SAFETENSORS`
/// needs the session's table factory too, which only a session builder can add.
pub fn register(context: &SessionContext) -> Result<()> {
    register_functions(context);
    let state = context.state_ref();
    let mut state = state.write();
    let catalogs = Arc::clone(state.catalog_list());
    state.register_relation_planner(Arc::new(SparsePlanner::new(catalogs)))?;
    state.register_file_format(Arc::new(SafetensorsFormatFactory), true)?;
    let extensions = &mut state.config_mut().options_mut().extensions;
    if extensions.get::<SparseConfig>().is_none() {
        extensions.insert(SparseConfig::default());
    }
    Ok(())
}

fn register_functions(context: &SessionContext) {
    for function in sparse_udfs::functions() {
        context.register_udf(function.as_ref().clone());
    }
    for function in functions::all() {
        let name = function.spec().name;
        context.register_udtf(name, Arc::new(TableFunction(function)));
    }
}
