//! `sparse features`.

use std::io::Write as _;

use super::print_json;
use crate::context::Context;
use crate::failure::Failure;

pub(super) fn run(context: &Context) -> Result<u8, Failure> {
    let features = sparse_codec::features();
    if context.global.json {
        let document: serde_json::Map<String, serde_json::Value> = features
            .into_iter()
            .map(|feature| (feature.name.to_owned(), feature.value.into()))
            .collect();
        print_json(&document.into())?;
        return Ok(0);
    }
    let mut out = std::io::stdout().lock();
    for feature in features {
        writeln!(out, "{:<15} {}", feature.name, feature.value)?;
    }
    Ok(0)
}
