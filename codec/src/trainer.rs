//! One pass over a model's tensor pairs before encoding: the tables that all of them share.

use rayon::prelude::*;

use crate::{
    CodecError, Effort, EncodeOptions, SharedTables, TensorView,
    analysis::Analysis,
    lowrank::{self, LowRank},
    rc::Learner,
    rows::{Counter, Row},
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
        Effort::Fast => 1 << 13,
        Effort::Default => 1 << 15,
        Effort::Max => 1 << 18,
    }
}

/// Rows of one tensor, standing for all of them.
pub(crate) struct Sample {
    pub(crate) rows: Vec<Row>,
    /// Layers of contexts that their words have.
    pub(crate) layers: usize,
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
    let mut histogram = count(samples, None);
    if histogram.total() == 0 {
        return None;
    }
    // Scales that follow from means need no tables.
    let rounds = if samples.iter().flat_map(|s| &s.rows).all(Row::is_settled) {
        0
    } else {
        rounds
    };
    for _ in 0..rounds {
        let set = train::train(&histogram, limit);
        histogram = count(samples, Some(&Lengths::new(&set)));
    }
    Some(train::train(&histogram, limit))
}

/// Bits of the sampled rows, about, the rows weighing what they stand for: enough to compare predictions of one tensor by.
pub(crate) fn estimate(sample: &Sample, width: usize) -> f64 {
    let histogram = count(std::slice::from_ref(sample), None);
    histogram.entropy() + histogram.raw_bits(width)
}

/// The tokens of all rows by their contexts, with the scales that `lengths` choose or with those of the mean update.
fn count(samples: &[Sample], lengths: Option<&Lengths>) -> Histogram {
    let layers = samples.first().map_or(1, |s| s.layers);
    let counted = |mut histogram: Histogram, sample: &Sample| {
        let mut model = Model::new();
        for row in &sample.rows {
            let scale = lengths.map_or(row.mean, |l| row.choose(l, &model));
            if scale != UNCHANGED {
                // The cost of a scale is that of its distance to the one before, as it will be.
                let _infallible = model.code(&mut Learner, scale);
                row.count(scale, sample.weight, &mut histogram);
            }
        }
        histogram
    };
    let some = samples.len().div_ceil(rayon::current_num_threads()).max(1);
    samples
        .par_chunks(some)
        .map(|samples| samples.iter().fold(Histogram::new(layers), counted))
        .reduce_with(|mut all, more| {
            all.merge(&more);
            all
        })
        .unwrap_or_else(|| Histogram::new(layers))
}

/// A tensor that tables are made for.
#[derive(Clone, Copy, Debug)]
pub struct TrainingPair<'a> {
    /// The tensor.
    pub target: TensorView<'a>,
    /// What predicts it.
    pub base: Option<TensorView<'a>>,
    /// Low-rank predictions that may be right, such as those a given adapter makes.
    pub candidates: &'a [LowRank],
}

/// Collects statistics of tensor pairs, then makes the tables.
pub struct TablesTrainer {
    options: EncodeOptions,
    /// By log2 of the word's bytes, without and with a low-rank prediction.
    samples: [[Vec<Sample>; 4]; 2],
}

impl TablesTrainer {
    /// A trainer for tensors that will be encoded with `options`.
    pub fn new(options: &EncodeOptions) -> Self {
        Self {
            options: EncodeOptions {
                shared: None,
                ..options.clone()
            },
            samples: [const { [const { Vec::new() }; 4] }; 2],
        }
    }

    /// Adds pairs of target and base, and looks at a sample of the rows of each. Returns the low-rank predictions to encode them
    /// with: the best candidate if one pays, else one that [`LowRank::find`] finds.
    ///
    /// # Errors
    /// Data that does not have the length dtype and shape ask for.
    pub fn add_all(
        &mut self,
        pairs: &[TrainingPair<'_>],
    ) -> Result<Vec<Option<LowRank>>, CodecError> {
        let analyses = pairs
            .par_iter()
            .map(|pair| Analysis::new(pair.target, pair.base, None))
            .collect::<Result<Vec<_>, CodecError>>()?;
        let effort = self.options.effort;
        let words = sample_words(effort);
        // What few models need is found out while the rows are looked at that all but those need.
        let (sought, plain) = rayon::join(
            || match effort {
                Effort::Fast => Ok(false),
                Effort::Default => lowrank::promising(&analyses),
                Effort::Max => Ok(true),
            },
            || match effort {
                // Looked at in vain, mostly.
                Effort::Max => Ok(analyses.iter().map(|_| None).collect()),
                _ => analyses
                    .par_iter()
                    .map_init(
                        || Counter::new(effort),
                        |counter, analysis| {
                            let sample = |_| analysis.sample_by(counter, words, effort, &|_| ());
                            analysis.base.map(sample).transpose()
                        },
                    )
                    .collect::<Result<Vec<_>, CodecError>>(),
            },
        );
        let (sought, plain) = (sought?, plain?);
        let counted: Vec<_> = pairs
            .par_iter()
            .zip(analyses)
            .zip(plain)
            .map(|((pair, analysis), plain)| {
                let sample = |analysis: &Analysis<'_>| analysis.sample(words, effort, &|_| ());
                if pair.base.is_none() {
                    return Ok((None, None));
                }
                let found = LowRank::best(&analysis, pair.candidates, effort, sought)?;
                let sample = match (&found, plain) {
                    (None, Some(plain)) => plain,
                    (None, None) => sample(&analysis)?,
                    (Some(_), _) => {
                        sample(&Analysis::new(pair.target, pair.base, found.as_ref())?)?
                    }
                };
                Ok((Some((analysis.geometry.width, sample)), found))
            })
            .collect::<Result<Vec<_>, CodecError>>()?;
        let (samples, found): (Vec<_>, Vec<_>) = counted.into_iter().unzip();
        for (width, sample) in samples.into_iter().flatten() {
            if sample.rows.iter().any(|r| r.mean != scales::UNCHANGED) {
                let layered = usize::from(sample.layers > 1);
                self.samples[layered][width.trailing_zeros() as usize & 3].push(sample);
            }
        }
        Ok(found)
    }

    /// The tables.
    pub fn finish(self) -> SharedTables {
        let effort = self.options.effort;
        let [sets, layered] = self
            .samples
            .map(|widths| widths.map(|samples| tables(&samples, effort)));
        SharedTables { sets, layered }
    }
}
