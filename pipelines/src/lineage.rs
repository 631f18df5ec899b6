//! OpenLineage events: a run of the pipeline, and within it one of each stage, with the files each reads and writes.
//!
//! The schema is version 2-0-2 of <https://openlineage.io/spec/2-0-2/OpenLineage.json>.

use std::io::Write as _;

use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};
use sparse_store::Location;

use crate::analysis::Template;
use crate::graph::Graph;
use crate::spec::{Lineage, Pipeline};

const PRODUCER: &str = concat!("urn:sparse:", env!("CARGO_PKG_VERSION"));
const SCHEMA: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent";
const PARENT: &str =
    "https://openlineage.io/spec/facets/1-0-1/ParentRunFacet.json#/$defs/ParentRunFacet";
const SQL: &str = "https://openlineage.io/spec/facets/1-0-1/SQLJobFacet.json#/$defs/SQLJobFacet";
const ERROR: &str = "https://openlineage.io/spec/facets/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet";

/// Sends one event of the run, or of a stage in it. What fails is logged.
pub(crate) async fn emit(
    pipeline: &Pipeline,
    graph: &Graph,
    run: &str,
    event: &str,
    stage: Option<&str>,
    error: Option<&str>,
) {
    let Some(lineage) = &pipeline.lineage else {
        return;
    };
    let document = document(pipeline, lineage, graph, run, event, stage, error);
    if let Some(file) = &lineage.file
        && let Err(error) = append(file, &document)
    {
        tracing::warn!(file = %file.display(), %error, "a lineage event could not be written");
    }
    if let Some(url) = &lineage.url
        && let Err(problem) = crate::notify::post(url, &document).await
    {
        tracing::warn!(run, "a lineage event could not be sent: {problem}");
    }
}

/// One line in one write, so that lines of several writers stay whole.
fn append(file: &std::path::Path, document: &Value) -> std::io::Result<()> {
    let line = format!("{document}\n");
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)?
        .write_all(line.as_bytes())
}

fn document(
    pipeline: &Pipeline,
    lineage: &Lineage,
    graph: &Graph,
    run: &str,
    event: &str,
    stage: Option<&str>,
    error: Option<&str>,
) -> Value {
    let mut run_facets = serde_json::Map::new();
    let mut job_facets = serde_json::Map::new();
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let mut name = pipeline.name.clone();
    let mut id = run.to_owned();
    if let Some(stage) = stage {
        name = format!("{name}.{stage}");
        id = stage_id(run, stage);
        run_facets.insert(
            "parent".into(),
            json!({
                "_producer": PRODUCER, "_schemaURL": PARENT,
                "run": { "runId": run },
                "job": { "namespace": lineage.namespace, "name": pipeline.name },
            }),
        );
        if let Some(spec) = pipeline.stage(stage) {
            job_facets.insert(
                "sql".into(),
                json!({ "_producer": PRODUCER, "_schemaURL": SQL, "query": pipeline.redact(&spec.sql) }),
            );
        }
        if let Some(analysis) = graph.analyses.get(stage) {
            let table = |table: &String| json!({ "namespace": lineage.namespace, "name": format!("{}.{table}", pipeline.name) });
            inputs.extend(analysis.inputs.iter().map(dataset));
            inputs.extend(analysis.reads.iter().chain(&analysis.item_reads).map(table));
            outputs.extend(analysis.outputs.iter().map(dataset));
            outputs.extend(analysis.makes.iter().map(table));
        }
    }
    if let Some(error) = error {
        run_facets.insert(
            "errorMessage".into(),
            json!({ "_producer": PRODUCER, "_schemaURL": ERROR, "message": error, "programmingLanguage": "SQL" }),
        );
    }
    json!({
        "eventType": event,
        "eventTime": Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
        "producer": PRODUCER,
        "schemaURL": SCHEMA,
        "run": { "runId": id, "facets": run_facets },
        "job": { "namespace": lineage.namespace, "name": name, "facets": job_facets },
        "inputs": inputs,
        "outputs": outputs,
    })
}

/// As OpenLineage names datasets: the store, and the path in it.
fn dataset(reference: &Template) -> Value {
    let text = reference.shown();
    match Location::parse(&text) {
        Ok(Location::Url(url)) => json!({
            "namespace": format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default()),
            "name": url.path().trim_start_matches('/'),
        }),
        Ok(Location::Hub { repo, revision }) => json!({
            "namespace": "hf://",
            "name": match revision { Some(revision) => format!("{repo}@{revision}"), None => repo },
        }),
        _ => {
            let path =
                std::path::absolute(&text).map_or(text, |path| path.to_string_lossy().into_owned());
            json!({ "namespace": "file", "name": path })
        }
    }
}

/// A UUID made of the run's and the stage's name: the same for START and COMPLETE.
fn stage_id(run: &str, stage: &str) -> String {
    let hex = crate::fingerprint::text(&format!("{run}/{stage}"));
    format!(
        "{}-{}-8{}-8{}-{}",
        &hex[0..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..32]
    )
}
