//! Calls a function as DataFusion would: through SQL.

use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::Result;
use datafusion::prelude::SessionContext;

fn context() -> SessionContext {
    let context = SessionContext::new();
    for function in crate::functions() {
        context.register_udf(function.as_ref().clone());
    }
    context
}

async fn run(sql: &str) -> Result<Vec<String>> {
    let batches = context().sql(sql).await?.collect().await?;
    let options = FormatOptions::default();
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
            .collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let values: Vec<String> = columns.iter().map(|c| c.value(row).to_string()).collect();
            rows.push(values.join("|"));
        }
    }
    Ok(rows)
}

/// The rows of a query, columns joined by `|`.
pub(crate) async fn query(sql: &str) -> Vec<String> {
    match run(sql).await {
        Ok(rows) => rows,
        Err(error) => vec![format!("error: {error}")],
    }
}

/// The error of a query.
pub(crate) async fn error(sql: &str) -> String {
    match run(sql).await {
        Ok(rows) => format!("no error: {rows:?}"),
        Err(error) => error.to_string(),
    }
}
