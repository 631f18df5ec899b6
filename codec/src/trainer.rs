//! One pass over a model's tensor pairs before encoding: the tables that all of them share.

use rayon::prelude::*;

use crate::{
    CodecError, EncodeOptions, SharedTables, TensorView,
    encoder::{Analysis, table_limit},
    tables::{Histogram, TableSet},
};

/// Collects statistics of tensor pairs, then makes the tables.
pub struct TablesTrainer {
    options: EncodeOptions,
    histograms: [Option<Histogram>; 4],
}

impl TablesTrainer {
    /// A trainer for tensors that will be encoded with `options`.
    pub fn new(options: &EncodeOptions) -> Self {
        Self {
            options: EncodeOptions {
                shared: None,
                ..options.clone()
            },
            histograms: [const { None }; 4],
        }
    }

    /// Adds pairs of target and base; reads at most some millions of words of each.
    pub fn add_all(
        &mut self,
        pairs: &[(TensorView<'_>, Option<TensorView<'_>>)],
    ) -> Result<(), CodecError> {
        let counted: Vec<_> = pairs
            .par_iter()
            .map(|(target, base)| {
                let Some(base) = base else { return Ok(None) };
                let analysis = Analysis::new(*target, Some(*base), &self.options)?;
                Ok(analysis.histogram.map(|h| (analysis.geometry.width, h)))
            })
            .collect::<Result<Vec<_>, CodecError>>()?;
        for (width, histogram) in counted.into_iter().flatten() {
            let slot = &mut self.histograms[width.trailing_zeros() as usize & 3];
            match slot {
                Some(sum) => sum.merge(&histogram),
                None => *slot = Some(histogram),
            }
        }
        Ok(())
    }

    /// The tables.
    pub fn finish(self) -> SharedTables {
        let limit = table_limit(self.options.effort);
        SharedTables {
            sets: self.histograms.map(|h| {
                h.filter(|h| h.total() > 0)
                    .map(|h| TableSet::train(&h, limit))
            }),
        }
    }
}
