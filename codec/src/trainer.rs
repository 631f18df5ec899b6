//! One pass over a model's tensor pairs before encoding: the tables that all of them share.

use rayon::prelude::*;

use crate::{
    CodecError, Effort, EncodeOptions, SharedTables, TensorView,
    encoder::Analysis,
    rows::Row,
    scales::{self, Model, UNCHANGED},
    tables::TableSet,
    train::{self, Histogram, Lengths},
};

/// Most tables of a set.
pub(crate) fn table_limit(effort: Effort) -> usize {
    match effort {
        Effort::Fast => 12,
        Effort::Default => 32,
        Effort::Max => 56,
    }
}

/// Words of a tensor that are looked at to make tables.
pub(crate) fn sample_words(effort: Effort) -> usize {
    match effort {
        Effort::Fast => 1 << 14,
        Effort::Default => 1 << 17,
        Effort::Max => 1 << 18,
    }
}

/// Rows of one tensor, standing for all of them.
pub(crate) struct Sample {
    pub(crate) rows: Vec<Row>,
    /// Rows of the tensor for each in `rows`.
    pub(crate) weight: u32,
}

/// Tables for `samples`, trained in rounds: tables from the rows' scales, then better scales from the tables.
pub(crate) fn tables(samples: &[Sample], effort: Effort) -> Option<TableSet> {
    let rounds = match effort {
        Effort::Fast => 0,
        Effort::Default => 1,
        Effort::Max => 3,
    };
    let limit = table_limit(effort);
    let count = |lengths: Option<&Lengths>| -> Histogram {
        let mut histogram = Histogram::new();
        for sample in samples {
            let mut model = Model::new();
            let mut coder = crate::rc::Encoder::new();
            for row in &sample.rows {
                let scale = lengths.map_or(row.mean, |l| row.choose(l, &model));
                if scale != UNCHANGED {
                    // The cost of a scale is that of its distance to the one before, as it will be.
                    let _infallible = model.code(&mut coder, scale);
                    row.count(scale, sample.weight, &mut histogram);
                }
            }
        }
        histogram
    };
    let mut histogram = count(None);
    if histogram.total() == 0 {
        return None;
    }
    for _ in 0..rounds {
        let set = train::train(&histogram, limit);
        histogram = count(Some(&Lengths::new(&set)));
    }
    Some(train::train(&histogram, limit))
}

/// Collects statistics of tensor pairs, then makes the tables.
pub struct TablesTrainer {
    options: EncodeOptions,
    samples: [Vec<Sample>; 4],
}

impl TablesTrainer {
    /// A trainer for tensors that will be encoded with `options`.
    pub fn new(options: &EncodeOptions) -> Self {
        Self {
            options: EncodeOptions {
                shared: None,
                ..options.clone()
            },
            samples: [const { Vec::new() }; 4],
        }
    }

    /// Adds pairs of target and base; looks at a sample of the rows of each.
    ///
    /// # Errors
    /// Data that does not have the length dtype and shape ask for.
    pub fn add_all(
        &mut self,
        pairs: &[(TensorView<'_>, Option<TensorView<'_>>)],
    ) -> Result<(), CodecError> {
        let counted: Vec<_> = pairs
            .par_iter()
            .map(|(target, base)| {
                let Some(base) = base else { return Ok(None) };
                let analysis = Analysis::new(*target, Some(*base))?;
                let sample =
                    analysis.sample(sample_words(self.options.effort), self.options.effort)?;
                Ok(Some((analysis.geometry.width, sample)))
            })
            .collect::<Result<Vec<_>, CodecError>>()?;
        for (width, sample) in counted.into_iter().flatten() {
            if sample.rows.iter().any(|r| r.mean != scales::UNCHANGED) {
                self.samples[width.trailing_zeros() as usize & 3].push(sample);
            }
        }
        Ok(())
    }

    /// The tables.
    pub fn finish(self) -> SharedTables {
        let effort = self.options.effort;
        SharedTables {
            sets: self.samples.map(|samples| tables(&samples, effort)),
        }
    }
}
