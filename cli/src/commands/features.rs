//! `sparse features`.

use std::io::Write as _;

use super::print_json;
use crate::context::Context;
use crate::failure::Failure;

pub(super) fn run(context: &Context) -> Result<u8, Failure> {
    let features: Vec<(&str, String)> = sparse_codec::features()
        .into_iter()
        .map(|feature| (feature.name, feature.value))
        .chain(sparse_gpu::features())
        .collect();
    if context.global.json {
        let document: serde_json::Map<String, serde_json::Value> = features
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        print_json(&document.into())?;
        return Ok(0);
    }
    let mut out = std::io::stdout().lock();
    for (name, value) in features {
        writeln!(out, "{name:<15} {value}")?;
    }
    Ok(0)
}
