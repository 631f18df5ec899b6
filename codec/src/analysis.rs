//! One tensor beside its base: how they fit together, samples of it, the scales of its rows.

use std::{
    borrow::Cow,
    ops::{Deref, Range},
    sync::{Arc, Mutex, PoisonError},
};

use rayon::prelude::*;

use crate::{
    CodecError, DType, Effort, TensorView,
    block::Method,
    context::Exponent,
    geometry::{BLOCK, Geometry, Relation},
    learned,
    lowrank::{CLASSES, LowRank, Update},
    predictor::{Adjust, Prediction, Predictor},
    rc::Learner,
    rows::{self, Counter, Glance, Row},
    scales::Model,
    shift::Shift,
    train::{Histogram, Lengths},
    trainer::Sample,
};

/// Bytes of a target that a sample goes over before it says so.
const PIECE: usize = 1 << 20;
/// Words from which a tensor may be moved, and the runs of words that are looked at for it.
const LEAST_SHIFTED: usize = 1 << 13;
const RUN: usize = 256;
const FIRST_RUN: usize = 128;
const FIRST_RUNS: usize = 8;
const RUNS: usize = 256;

/// Told the bytes of a target that were read.
pub type Seen<'s> = dyn Fn(Range<usize>) + Sync + 's;

/// A target, its base and how they fit together.
pub(crate) struct Analysis<'a> {
    pub(crate) target: TensorView<'a>,
    pub(crate) base: Option<TensorView<'a>>,
    pub(crate) predictor: Predictor,
    pub(crate) geometry: Geometry,
}

impl<'a> Analysis<'a> {
    /// `low_rank` is the prediction that was found for this tensor.
    pub(crate) fn new(
        target: TensorView<'a>,
        base: Option<TensorView<'a>>,
        low_rank: Option<&LowRank>,
    ) -> Result<Self, CodecError> {
        target.check()?;
        if let Some(base) = &base {
            base.check()?;
        }
        let relation = Relation::of(
            target.dtype,
            target.shape,
            base.as_ref().map(|b| (b.dtype, b.shape)),
        );
        let geometry = Geometry::of(target, relation);
        let mut this = Self {
            target,
            base,
            predictor: Predictor {
                relation,
                dtype: target.dtype,
                adjust: Adjust::None,
            },
            geometry,
        };
        if base.is_some() && this.geometry.common > 0 {
            if let Some(low_rank) = low_rank {
                let common = this.geometry.common;
                let update = Update::open(low_rank, target.dtype, target.shape, common)?;
                this.predictor.adjust = Adjust::LowRank(Arc::new(update));
            } else if let Some(shift) = this.fit()? {
                this.predictor.adjust = Adjust::Shift(shift);
            }
        }
        Ok(this)
    }

    /// A step by mantissa, where a sample of the words shows one.
    fn fit(&self) -> Result<Option<Shift>, CodecError> {
        let g = &self.geometry;
        if g.common < LEAST_SHIFTED {
            return Ok(None);
        }
        let runs = g.common.div_ceil(RUN);
        // A few runs tell most tensors, which are not moved.
        for (some, length) in [(FIRST_RUNS, FIRST_RUN), (RUNS, RUN)] {
            let step = (runs / some).max(1);
            let pairs = (0..runs)
                .step_by(step)
                .map(|run| {
                    let words = run * RUN..g.common.min(run * RUN + length);
                    let bytes = words.start * g.width..words.end * g.width;
                    let prediction = self.base_words(words)?;
                    Ok((self.target.data.get(bytes).unwrap_or_default(), prediction))
                })
                .collect::<Result<Vec<_>, CodecError>>()?;
            if some == RUNS {
                return Ok(Shift::fit(self.target.dtype, &pairs));
            }
            if !Shift::seems(self.target.dtype, &pairs) {
                break;
            }
        }
        Ok(None)
    }

    /// Some of the base's words, cast where dtypes differ.
    pub(crate) fn base_words(&self, words: Range<usize>) -> Result<Cow<'a, [u8]>, CodecError> {
        self.predictor.base_words(self.base.map(|b| b.data), words)
    }

    /// The prediction of some words.
    pub(crate) fn prediction(&self, words: Range<usize>) -> Result<Prediction<'a>, CodecError> {
        self.predictor.predict(self.base.map(|b| b.data), words)
    }

    /// Layers of contexts that its words have.
    pub(crate) fn layers(&self) -> usize {
        if self.predictor.is_layered() {
            CLASSES
        } else {
            1
        }
    }

    /// The words of the row of this number, and their prediction.
    fn row(&self, number: usize) -> Result<(&'a [u8], Prediction<'a>), CodecError> {
        let g = &self.geometry;
        let words = number * g.row..g.common.min((number + 1) * g.row);
        let bytes = words.start * g.width..words.end * g.width;
        let target = self.target.data.get(bytes).unwrap_or_default();
        Ok((target, self.prediction(words)?))
    }

    /// Fills `row` with the row of this number.
    fn fill(&self, number: usize, row: &mut Row, counter: &mut Counter) -> Result<(), CodecError> {
        let (target, prediction) = self.row(number)?;
        let (p, classes) = (&prediction.words, &prediction.classes);
        let exponent = Exponent::of(self.target.dtype);
        let (float, mantissa) = self.numbers();
        match self.geometry.width {
            1 => row.fill::<1>((target, p), classes, exponent, mantissa, float, counter),
            2 => row.fill::<2>((target, p), classes, exponent, mantissa, float, counter),
            4 => row.fill::<4>((target, p), classes, exponent, mantissa, float, counter),
            _ => row.fill::<8>((target, p), classes, exponent, mantissa, float, counter),
        };
        Ok(())
    }

    /// Rows of about `words` words in all, spread evenly. `seen` is told what was read, a piece at a time.
    pub(crate) fn sample(
        &self,
        words: usize,
        effort: Effort,
        seen: &Seen<'_>,
    ) -> Result<Sample, CodecError> {
        self.sample_by(&mut Counter::new(effort), words, effort, seen)
    }

    /// [`Self::sample`] with a counter that others were made with.
    pub(crate) fn sample_by(
        &self,
        counter: &mut Counter,
        words: usize,
        effort: Effort,
        seen: &Seen<'_>,
    ) -> Result<Sample, CodecError> {
        let rows = self.geometry.rows();
        let row_bytes = self.geometry.row * self.geometry.width;
        let mut told = 0;
        let mut step = rows
            .div_ceil((words / self.geometry.row.max(1)).max(1))
            .max(1);
        let mut look = |number: usize| {
            let mut row = Row::default();
            self.fill(number, &mut row, counter)?;
            let start = number * row_bytes;
            // The second time through, it begins at the first row again.
            told = if start < told { start } else { told };
            if start + row_bytes - told >= PIECE {
                seen(told..self.target.data.len().min(start + row_bytes));
                told = start + row_bytes;
            }
            Ok(row)
        };
        // Every other one first: where rows change all over they say enough.
        let mut found = (0..rows)
            .step_by(2 * step)
            .map(&mut look)
            .collect::<Result<Vec<_>, CodecError>>()?;
        if effort == Effort::Default && found.iter().all(Row::is_settled) {
            step *= 2;
        } else {
            let others = (step..rows)
                .step_by(2 * step)
                .map(look)
                .collect::<Result<Vec<_>, CodecError>>()?;
            let mut others = others.into_iter();
            found = found
                .into_iter()
                .flat_map(|row| std::iter::once(row).chain(others.next()))
                .collect();
        }
        if effort != Effort::Max && rows::are_mixed(found.iter().map(Row::changes)) {
            found.iter_mut().for_each(Row::set_apart);
        }
        Ok(Sample {
            rows: found,
            layers: self.layers(),
            weight: u32::try_from(step).unwrap_or(u32::MAX),
        })
    }

    /// The scale of every row, and what is known of their changes.
    pub(crate) fn scales(
        &self,
        lengths: &(impl Deref<Target = Lengths> + Sync),
        effort: Effort,
        seen: &Seen<'_>,
    ) -> Result<(Vec<i16>, Changes), CodecError> {
        let rows = self.geometry.rows();
        // Rows in groups of about a block, so that there is work for every core.
        let group = (BLOCK / self.geometry.row.max(1)).max(1);
        // At max every token is counted. Else rows are only measured, where that tells them apart.
        let counted = effort == Effort::Max;
        let glanced =
            !counted && !self.predictor.is_layered() && matches!(self.geometry.width, 2 | 4);
        let told = |g: usize| {
            let end = self
                .geometry
                .common
                .min((g + 1) * group * self.geometry.row);
            let start = g * group * self.geometry.row;
            seen(start * self.geometry.width..end * self.geometry.width);
        };
        let mut mixed = false;
        let numbers = |g: usize| g * group..rows.min((g + 1) * group);
        if glanced {
            let glances = (0..rows.div_ceil(group))
                .into_par_iter()
                .map(|g| {
                    let glances = numbers(g)
                        .map(|number| self.glance(number))
                        .collect::<Result<Vec<_>, CodecError>>()?;
                    told(g);
                    Ok(glances)
                })
                .collect::<Result<Vec<_>, CodecError>>()?;
            mixed = rows::are_mixed(glances.iter().flatten().map(Glance::changes));
            if !mixed {
                let mut scales = Vec::with_capacity(rows);
                glances.iter().for_each(|g| rows::settle(g, &mut scales));
                let changed = glances.iter().flatten().map(|g| g.changed).sum();
                return Ok((
                    scales,
                    Changes {
                        histogram: None,
                        changed,
                    },
                ));
            }
        }
        let sum = Mutex::new(None::<Histogram>);
        let parts = (0..rows.div_ceil(group))
            .into_par_iter()
            .map(|g| {
                let mut counter = Counter::new(effort);
                let mut row = Row::default();
                let mut model = Model::new();
                let mut histogram = counted.then(|| Histogram::new(self.layers()));
                let mut scales = Vec::with_capacity(group.min(rows));
                let mut changed = 0;
                for number in numbers(g) {
                    self.fill(number, &mut row, &mut counter)?;
                    if mixed {
                        row.set_apart();
                    }
                    changed += row.changed;
                    let scale = row.choose(lengths, &model);
                    let _infallible = model.code(&mut Learner, scale);
                    if let Some(histogram) = &mut histogram {
                        row.count(scale, 1, histogram);
                    }
                    scales.push(scale);
                }
                told(g);
                // Summed at once, for a large tensor has thousands of groups.
                if let Some(more) = histogram {
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    match &mut *sum {
                        Some(sum) => sum.merge(&more),
                        none => *none = Some(more),
                    }
                }
                Ok((scales, changed))
            })
            .collect::<Result<Vec<_>, CodecError>>()?;
        let histogram = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
        let changed = parts.iter().map(|(_, changed)| changed).sum();
        let scales = parts.into_iter().flat_map(|(scales, _)| scales).collect();
        Ok((scales, Changes { histogram, changed }))
    }

    /// Looks at the row of this number.
    fn glance(&self, number: usize) -> Result<Glance, CodecError> {
        let (target, prediction) = self.row(number)?;
        let exponent = Exponent::of(self.target.dtype);
        let (float, mantissa) = self.numbers();
        Ok(if self.geometry.width == 2 {
            Glance::at::<2>(target, &prediction.words, exponent, mantissa, float)
        } else {
            Glance::at::<4>(target, &prediction.words, exponent, mantissa, float)
        })
    }

    /// A block coded word by word, with its method; nothing where too many words changed.
    pub(crate) fn learn(&self, block: usize) -> Result<Option<Learned>, CodecError> {
        match self.geometry.width {
            1 => self.learn_words::<1>(block),
            2 => self.learn_words::<2>(block),
            4 => self.learn_words::<4>(block),
            _ => self.learn_words::<8>(block),
        }
    }

    fn learn_words<const W: usize>(&self, block: usize) -> Result<Option<Learned>, CodecError> {
        let words = self.geometry.block(block);
        let bytes = words.start * W..words.end * W;
        let target = self.target.data.get(bytes).unwrap_or_default();
        let prediction = self.prediction(words.clone())?.words;
        let changed = differing::<W>(target, &self.base_words(words.clone())?);
        let mut bytes = vec![Method::Same as u8];
        if *prediction != *target {
            bytes[0] = Method::Learned as u8;
            let plan = learned::Plan::new(self.target.dtype, self.geometry.row);
            if !learned::encode::<W>(plan, words, target, &prediction, &mut bytes) {
                return Ok(None);
            }
        }
        Ok(Some(Learned { changed, bytes }))
    }

    /// Whether words are floats, and bits of their mantissas.
    pub(crate) fn numbers(&self) -> (bool, u32) {
        self.target
            .dtype
            .and_then(DType::layout)
            .map_or((false, 0), |l| (true, l.mantissa))
    }
}

/// How many words differ.
pub(crate) fn differing<const W: usize>(target: &[u8], base: &[u8]) -> u64 {
    let pairs = target
        .as_chunks::<W>()
        .0
        .iter()
        .zip(base.as_chunks::<W>().0);
    pairs.map(|(t, b)| u64::from(t != b)).sum()
}

/// What is known of the changes of a tensor.
pub(crate) struct Changes {
    /// All tokens by their contexts, where they were counted.
    pub(crate) histogram: Option<Histogram>,
    /// Changed words.
    pub(crate) changed: usize,
}

/// A block that is already coded.
pub(crate) struct Learned {
    pub(crate) changed: u64,
    pub(crate) bytes: Vec<u8>,
}
