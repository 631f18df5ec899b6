//! `sparse catalog`.

use std::io::Write as _;

use sparse_catalog::{BaseFound, Catalog, ListOptions, ModelEntry, Outcome};

use super::{json, print_json};
use crate::args::catalog::{CatalogCommand, CatalogList, FindBase};
use crate::context::Context;
use crate::failure::Failure;
use crate::format;

pub(super) async fn run(command: &CatalogCommand, context: &Context) -> Result<u8, Failure> {
    match command {
        CatalogCommand::List(args) => list(args, context).await,
        CatalogCommand::FindBase(args) => find_base(args, context).await,
    }
}

async fn list(args: &CatalogList, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let options = ListOptions {
        open: context.open_options(&bar),
        headers: true,
    };
    let entries = Catalog::parse(&args.catalog)?.list(&options).await?;
    drop(bar);
    if context.global.json {
        print_json(&json(&entries))?;
        return Ok(0);
    }
    let mut out = std::io::stdout().lock();
    if !entries.is_empty() {
        write!(out, "{}", table(&entries))?;
    }
    if context.talks() {
        for entry in &entries {
            if let Some(problem) = &entry.problem {
                writeln!(out, "{}: {problem}", entry.model)?;
            }
        }
        writeln!(out, "{} models", entries.len())?;
    }
    Ok(0)
}

fn table(entries: &[ModelEntry]) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            vec![
                entry.model.clone(),
                text(&entry.base),
                text(&entry.relation),
                text(&entry.architecture),
                text(&entry.dtype),
                entry.params.map_or_else(|| "-".to_owned(), format::count),
                entry.bytes.map_or_else(|| "-".to_owned(), format::bytes),
            ]
        })
        .collect();
    let header = [
        "model",
        "base",
        "relation",
        "architecture",
        "dtype",
        "params",
        "size",
    ];
    format::table(&header, &[5, 6], &rows)
}

async fn find_base(args: &FindBase, context: &Context) -> Result<u8, Failure> {
    let bar = context.bar();
    let cancel = context.cancel();
    let found = sparse_catalog::FindBase::new(&args.model, Catalog::parse(&args.catalog)?)
        .open_options(context.open_options(&bar))
        .progress(bar.callback())
        .cancel(move || cancel.is_cancelled())
        .run()
        .await?;
    drop(bar);
    if context.global.json {
        let mut document = json(&found);
        if !args.candidates
            && let Some(fields) = document.as_object_mut()
        {
            fields.shift_remove("candidates");
        }
        print_json(&document)?;
    } else {
        show(&found, args.candidates, context)?;
    }
    Ok(if found.base.is_some() { 0 } else { 3 })
}

fn show(found: &BaseFound, candidates: bool, context: &Context) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if candidates {
        let number =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
        let rows: Vec<Vec<String>> = found
            .candidates
            .iter()
            .map(|candidate| {
                vec![
                    candidate.model.clone(),
                    number(candidate.score),
                    number(candidate.bit_distance),
                    if candidate.related { "yes" } else { "no" }.to_owned(),
                    candidate.problem.clone().unwrap_or_default(),
                ]
            })
            .collect();
        let header = ["model", "score", "bits", "related", "not compared"];
        write!(out, "{}", format::table(&header, &[1, 2], &rows))?;
    }
    match (&found.base, context.talks()) {
        (Some(base), false) => writeln!(out, "{base}")?,
        (None, false) => {}
        (Some(base), true) => {
            let how = match found.outcome {
                Outcome::Declared if found.score.is_some() => {
                    "named by the model, and its weights agree"
                }
                Outcome::Declared => "named by the model",
                Outcome::Copy => "the same weights",
                _ => "found by its weights",
            };
            writeln!(out, "base: {base} ({how})")?;
            if let (Some(score), Some(confidence)) = (found.score, found.confidence) {
                writeln!(out, "  score {score:.3}, confidence {confidence:.2}")?;
            }
        }
        (None, true) if found.outcome == Outcome::Root => {
            writeln!(
                out,
                "none: the model is the base of its relatives in the catalog"
            )?;
        }
        (None, true) => writeln!(out, "none: no model of the catalog is a relative")?,
    }
    if context.talks() {
        writeln!(
            out,
            "  {} relatives among {} compared models, {} of weights read",
            found.relatives,
            found.compared,
            format::bytes(found.bytes_read)
        )?;
    }
    Ok(())
}
