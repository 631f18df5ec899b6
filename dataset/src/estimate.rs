//! `Estimate`: what a delta would cost, without making it.
//!
//! Both sides are read and their rows matched, so that the counts, the order of the rows and what there is to store are exact.
//! Only the coding, where the time goes, is done on a sample: edited rows, as large a share of the others, and new ones. Models
//! learn while they code, so that what is told costs less and less: the curve of that is read off parts of the sample.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;
use sparse_codec::Effort;
use sparse_delta::support;
use sparse_delta::{CancelToken, DeltaError, Progress};
use sparse_store::OpenOptions;

use crate::DatasetError;
use crate::artifact;
use crate::carried;
use crate::column::{self, Budget, Items, Method, Plan, Priced, Source, Weight};
use crate::compress::{Input, MEMORY, MIN_MEMORY, Restore, named};
use crate::effort::limits;
use crate::exact::Offer;
use crate::gate::Gate;
use crate::input::{Dataset, Format, Rows};
use crate::manifest::{DatasetManifest, Restores, SizeStats, SplitEntry};
use crate::matching::sampled;
use crate::pair::{self, Pair};
use crate::places::MetadataPlaces;
use crate::split::{Coded, Split};

/// A column's plan and its stream.
type CodedColumn = (Plan, Vec<u8>);

/// What a delta of a dataset saves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DatasetDeltaStats {
    /// The base as it was given.
    pub base_dataset_id: String,
    /// The derivative as it was given.
    pub derivative_dataset_id: String,
    /// Bytes of the base's split.
    pub base_size_bytes: u64,
    /// Bytes of the derivative's split.
    pub derivative_size_bytes: u64,
    /// Bytes of the delta.
    pub delta_size_bytes: u64,
    /// What it saves of the derivative, in percent.
    pub savings_pct: f64,
    /// Rows that the base has, edited or not.
    pub num_shared_samples: u64,
    /// Rows that it has not.
    pub num_new_samples: u64,
}

/// An estimate.
#[derive(Clone, Debug)]
pub struct EstimateOutcome {
    /// What it says.
    pub stats: DatasetDeltaStats,
    /// The split it is about.
    pub split: String,
    /// Rows that were coded.
    pub sampled: u64,
    /// Whether these were all, so that the size is not estimated but known.
    pub exact: bool,
    /// How long it took.
    pub elapsed: Duration,
}

/// Estimates how large the delta of a split would be.
#[must_use = "nothing happens until `run` is awaited"]
pub struct Estimate {
    base: Input,
    derivative: Input,
    split: String,
    sample_size: u64,
    effort: Effort,
    threads: Option<usize>,
    memory: u64,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

impl Estimate {
    /// The delta of `derivative` against `base`.
    pub fn new(base: impl Into<Input>, derivative: impl Into<Input>) -> Self {
        Self {
            base: base.into(),
            derivative: derivative.into(),
            split: "train".to_owned(),
            sample_size: 1000,
            effort: Effort::Default,
            threads: None,
            memory: MEMORY,
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// The split of the derivative. Default: train.
    pub fn split(mut self, split: impl Into<String>) -> Self {
        self.split = split.into();
        self
    }

    /// How many edited rows, and how many new ones, are coded to know what they cost. Default: 1000.
    pub fn sample_size(mut self, rows: u64) -> Self {
        self.sample_size = rows;
        self
    }

    /// The effort the delta would be made with.
    pub fn effort(mut self, effort: Effort) -> Self {
        self.effort = effort;
        self
    }

    sparse_delta::operation_setters!();

    /// How many bytes of memory may be used, about; what is larger goes to temporary files. Default: 1 GiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes.max(MIN_MEMORY);
        self
    }

    /// Reads both sides and estimates.
    ///
    /// # Errors
    /// A sample of no rows, a split that is not there, datasets that cannot be read, columns of types that cannot be stored.
    pub async fn run(mut self) -> Result<EstimateOutcome, DatasetError> {
        let started = Instant::now();
        if self.sample_size == 0 {
            return Err(DatasetError::usage("sample_size is 0; give at least 1"));
        }
        if self.open.progress.is_none() {
            self.open.progress.clone_from(&self.progress);
        }
        let (base, derivative) =
            futures::try_join!(self.base.open(&self.open), self.derivative.open(&self.open))?;
        let (name, rows) = derivative
            .select(std::slice::from_ref(&self.split))?
            .swap_remove(0);
        let job = Job {
            base,
            derivative,
            name,
            rows,
            sample: usize::try_from(self.sample_size).unwrap_or(usize::MAX),
            effort: self.effort,
            memory: self.memory,
            progress: self.progress,
            cancel: self.cancel,
        };
        let threads = self.threads;
        let mut outcome = tokio::task::spawn_blocking(move || {
            let pool = support::pool(threads)?;
            support::guarded(|| Ok(pool.install(|| job.run())))?
        })
        .await
        .map_err(|error| DatasetError::internal(error.to_string()))??;
        outcome.elapsed = started.elapsed();
        Ok(outcome)
    }
}

struct Job {
    base: Dataset,
    derivative: Dataset,
    name: String,
    rows: Arc<dyn Rows>,
    sample: usize,
    effort: Effort,
    memory: u64,
    progress: Option<Progress>,
    cancel: CancelToken,
}

impl Job {
    fn check(&self) -> Result<(), DatasetError> {
        if self.cancel.is_cancelled() {
            return Err(DeltaError::Cancelled.into());
        }
        Ok(())
    }

    fn tell(&self, message: &str, fraction: f64) {
        if let Some(progress) = &self.progress {
            progress(message, fraction);
        }
    }

    fn run(self) -> Result<EstimateOutcome, DatasetError> {
        let scratch = pair::scratch();
        let room = pair::room(&scratch, self.memory);
        self.tell(&format!("reading {}", self.name), 0.0);
        let pair = Pair::load(&self.base, &self.name, &self.rows, &room, &|| self.check())
            .map_err(|error| named(error, &self.derivative, &self.name))?;
        let split = Split::new(&pair, self.memory)?;
        let items = split.items();
        let sources = split.with_others(&items, |others| split.sources(others))?;
        let sample = Sample::take(&split, &sources, self.sample);
        self.tell(&format!("coding a sample of {}", self.name), 0.5);
        let (coded, bytes) = self.columns(&split, &sources, &sample)?;
        let mut coded = split.finish(&split.targets(), coded)?;
        coded.plan.edited = sample.edited;
        let counts = coded.plan.row_counts();
        let sizes = self.sizes(&pair, &coded, bytes)?;
        Ok(EstimateOutcome {
            stats: DatasetDeltaStats {
                base_dataset_id: self.base.id().to_owned(),
                derivative_dataset_id: self.derivative.id().to_owned(),
                base_size_bytes: sizes.base_size_bytes,
                derivative_size_bytes: sizes.derivative_size_bytes,
                delta_size_bytes: sizes.delta_size_bytes,
                savings_pct: sizes.savings_pct,
                num_shared_samples: counts.shared + counts.edited,
                num_new_samples: counts.new,
            },
            split: self.name.clone(),
            sampled: sample.rows.len() as u64,
            exact: sample.is_whole,
            elapsed: Duration::ZERO,
        })
    }

    /// The columns of the sample, coded, and what all of them cost for the whole.
    fn columns(
        &self,
        split: &Split<'_>,
        sources: &[Source],
        sample: &Sample,
    ) -> Result<(Vec<CodedColumn>, u64), DatasetError> {
        let targets = split.targets();
        let all = split.items();
        let kept = [all.kept.len()];
        let all = Items {
            marks: &kept,
            ..all
        };
        let weigh = |items: &Items<'_>| -> Result<Vec<(Plan, Weight)>, DatasetError> {
            split.with_others(items, |others| {
                sources
                    .par_iter()
                    .zip(&targets)
                    .map(|(source, target)| {
                        self.check()?;
                        column::weigh(source.clone(), target, items, others)
                    })
                    .collect()
            })
        };
        let items = sample.items();
        let (whole, some) = (weigh(&all)?, weigh(&items)?);
        let plans = whole.iter().map(|(plan, _)| plan);
        let budget = Budget::new(limits(self.effort), plans, all.len());
        let gate = Gate::new(self.memory);
        let priced: Vec<(Priced, f64)> = split.with_others(&items, |others| {
            whole
                .par_iter()
                .zip(some)
                .zip(&targets)
                .map(|(((all, whole), (plan, weight)), target)| {
                    self.check()?;
                    let share = all.bytes as f64 / plan.bytes.max(1) as f64;
                    // Models are as large, and learn as much, as for the whole.
                    let bytes = all.bytes;
                    let plan = Plan { bytes, ..plan };
                    let plan = (plan, whole);
                    let priced = column::price(plan, target, &items, others, &budget, &gate)?;
                    let cost = extrapolated(whole, &weight, &priced, share);
                    Ok((priced, cost))
                })
                .collect::<Result<_, DatasetError>>()
        })?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a size that is no more than that of the data"
        )]
        let bytes = priced
            .iter()
            .map(|(_, cost)| cost.max(0.0))
            .sum::<f64>()
            .round() as u64;
        let coded = priced
            .into_iter()
            .map(|(priced, _)| (priced.plan, priced.stream));
        Ok((coded.collect(), bytes))
    }

    /// The sizes of the delta whose columns cost `columns` bytes: plan, order and manifest are as they would be.
    fn sizes(&self, pair: &Pair, coded: &Coded, columns: u64) -> Result<SizeStats, DatasetError> {
        let same_schema = crate::canonical::describe(&pair.base.schema)
            == crate::canonical::describe(&pair.derivative.schema);
        let schema = (!same_schema).then_some(&pair.derivative.schema);
        let fixed = Coded {
            plan: coded.plan.clone(),
            streams: coded.streams.iter().take(1).cloned().collect(),
        };
        let mut payload = Vec::new();
        let plan = artifact::append(&mut payload, &fixed, schema)?;
        let rows = pair.derivative.rows as u64;
        let mut files = self.rows.files()?;
        if let [(_, count)] = files.as_mut_slice() {
            *count = rows;
        }
        if files.is_empty() {
            files.push((format!("{}.{}", self.name, Format::Parquet.ending()), rows));
        }
        let first = self.derivative.path_of(&files[0].0);
        let metadata = match first.filter(|_| self.rows.format() == Format::Parquet) {
            Some(path) => MetadataPlaces::of(&path)?,
            None => MetadataPlaces::default(),
        };
        let of_base = self.base.splits().iter();
        let sizes = SizeStats {
            base_size_bytes: of_base
                .filter(|(name, _)| pair.splits.contains(name))
                .map(|(_, rows)| rows.bytes())
                .sum(),
            derivative_size_bytes: self.rows.bytes(),
            ..SizeStats::default()
        };
        let counts = coded.plan.row_counts();
        let mut entry = SplitEntry {
            name: self.name.clone(),
            base: pair.base_splits(),
            rows,
            shared: counts.shared,
            edited: counts.edited,
            new: counts.new,
            removed: counts.removed,
            hash: pair.hash().to_owned(),
            format: self.rows.format(),
            restores: Restores::Rows,
            why: None,
            recipes: None,
            metadata,
            files,
            plan,
        };
        let offer = Offer {
            restore: Restore::Auto,
            memory: self.memory,
            coded: payload.len() as u64 + columns,
        };
        let files = (&self.derivative, &self.rows);
        offer.make(&mut entry, files, &pair.derivative.schema, &mut payload)?;
        let split = [(self.name.clone(), Arc::clone(&self.rows))];
        let carried = carried::append(&mut payload, &self.derivative.carried(&split)?)?;
        let hash = blake3::hash(&payload);
        let mut manifest = DatasetManifest::new(
            (&self.base, &self.derivative),
            self.effort,
            hash.to_hex().to_string(),
            vec![entry],
            sizes,
            hash,
        );
        manifest.carried = carried;
        manifest.sealed(payload.len() as u64 + columns)?;
        Ok(manifest.size_stats)
    }
}

/// Parts of the kept items, and of the new ones, after which it is noted what they cost.
const KEPT_PARTS: usize = 4;
const NEW_PARTS: usize = 2;

/// What a column costs, by what its sample costs.
fn extrapolated(whole: &Weight, sample: &Weight, priced: &Priced, share: f64) -> f64 {
    let total = priced.stream.len() as f64;
    match priced.plan.method {
        // One file of all cells: as many times larger as there is more in it.
        Method::Parquet => return total * share,
        Method::Quick => return total * whole.told as f64 / sample.told.max(1) as f64,
        Method::Nothing | Method::Mixed => {}
    }
    let point = |at: usize| {
        let told = sample.at_marks.get(at).copied().unwrap_or(sample.told);
        let cost = priced
            .at_marks
            .get(at)
            .copied()
            .unwrap_or(priced.stream.len());
        (told as f64, cost as f64)
    };
    let kept: Vec<(f64, f64)> = (0..KEPT_PARTS).map(point).collect();
    let (kept_told, kept_cost) = point(KEPT_PARTS - 1);
    let new: Vec<(f64, f64)> = (KEPT_PARTS..KEPT_PARTS + NEW_PARTS)
        .map(point)
        .map(|(told, cost)| (told - kept_told, cost - kept_cost))
        .collect();
    let whole_kept = whole.at_marks.first().copied().unwrap_or(0) as f64;
    let whole_new = whole.told as f64 - whole_kept;
    let rest = rest(&kept, whole_kept) + rest(&new, whole_new);
    tracing::debug!(
        ?kept,
        whole_kept,
        ?new,
        whole_new,
        total,
        rest,
        "priced a column"
    );
    total + rest
}

/// How much faster the cost grows than it would if nothing was learned, as a power: what columns of edited text have shown.
const USUAL_POWER: f64 = 0.88;
/// How many times the spread of the points that is trusted as much as they are.
const TRUST: f64 = 1.5;

/// What is still to be paid for telling `whole`, by a curve `cost = a * told ^ power` through points of the sample.
fn rest(points: &[(f64, f64)], whole: f64) -> f64 {
    let Some(&(told, cost)) = points.last() else {
        return 0.0;
    };
    if whole <= told {
        return 0.0;
    }
    if told < 1.0 || cost <= 0.0 {
        // Nothing of it was in the sample.
        return 0.5 * (whole - told);
    }
    let logs: Vec<(f64, f64)> = points
        .iter()
        .filter(|(told, cost)| *told >= 1.0 && *cost >= 1.0)
        .map(|(told, cost)| (told.ln(), cost.ln()))
        .collect();
    let count = logs.len().max(1) as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = logs.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope: f64 = logs.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let power = (slope + TRUST * USUAL_POWER) / (spread + TRUST);
    cost * ((whole / told).powf(power.clamp(0.6, 1.0)) - 1.0)
}

/// The items that are coded: kept ones in parts, then new ones in parts.
struct Sample {
    kept: Vec<u32>,
    rows: Vec<u32>,
    /// Where each part ends, but for the last.
    marks: Vec<usize>,
    edited: u64,
    is_whole: bool,
}

impl Sample {
    fn take(split: &Split<'_>, sources: &[Source], size: usize) -> Self {
        let items = split.items();
        let kept = items.kept.len();
        let targets: Vec<_> = sources
            .iter()
            .zip(split.targets())
            .filter(|(source, _)| **source == Source::Base)
            .map(|(_, target)| target)
            .collect();
        let is_edited: Vec<bool> = (0..kept)
            .into_par_iter()
            .map_init(Default::default, |room, item| {
                !targets
                    .iter()
                    .all(|target| target.is_same(&items, item, room))
            })
            .collect();
        let some = |wanted: bool| -> Vec<usize> {
            let all = is_edited.iter().enumerate();
            all.filter(|(_, edited)| **edited == wanted)
                .map(|(item, _)| item)
                .collect()
        };
        let (edited, others) = (some(true), some(false));
        let share = size.min(edited.len()) as f64 / edited.len().max(1) as f64;
        // Where nothing was edited, the rows that stayed are a sample of what else is stored of them.
        let count = if edited.is_empty() {
            size.min(others.len())
        } else {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a length"
            )]
            let count = (others.len() as f64 * share).ceil() as usize;
            count
        };
        let pick = |from: &[usize], count: usize| -> Vec<usize> {
            sampled(from.len(), count).map(|at| from[at]).collect()
        };
        let new: Vec<usize> = (kept..items.len()).collect();
        let mut picked_kept = pick(&edited, size);
        picked_kept.extend(pick(&others, count));
        picked_kept.sort_unstable();
        let picked_new = pick(&new, size);
        let is_whole = picked_kept.len() + picked_new.len() == items.len();
        let (kept_items, mut marks) = in_parts(&picked_kept, KEPT_PARTS, is_whole);
        let (new_items, of_new) = in_parts(&picked_new, NEW_PARTS, is_whole);
        marks.extend(of_new.iter().map(|end| kept_items.len() + end));
        marks.pop();
        let row = |&item: &usize| items.rows[item];
        Self {
            kept: kept_items.iter().map(|&item| items.kept[item]).collect(),
            rows: kept_items.iter().chain(&new_items).map(row).collect(),
            marks,
            edited: edited
                .iter()
                .filter(|&&item| !split.is_unlike(item))
                .count() as u64,
            is_whole,
        }
    }

    fn items(&self) -> Items<'_> {
        Items {
            kept: &self.kept,
            new: self.rows.len() - self.kept.len(),
            rows: &self.rows,
            marks: &self.marks,
        }
    }
}

/// Items in parts that are alike, each in order, and where each part ends; in one order where that is that of the whole.
fn in_parts(picked: &[usize], parts: usize, is_whole: bool) -> (Vec<usize>, Vec<usize>) {
    if is_whole {
        let ends = (1..=parts).map(|part| picked.len() * part / parts);
        return (picked.to_vec(), ends.collect());
    }
    let (mut items, mut ends) = (Vec::with_capacity(picked.len()), Vec::new());
    for part in 0..parts {
        items.extend(picked.iter().copied().skip(part).step_by(parts));
        ends.push(items.len());
    }
    (items, ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_is_followed() {
        let curve = |told: f64| 3.0 * told.powf(USUAL_POWER);
        let points: Vec<(f64, f64)> = [100.0, 200.0, 300.0, 400.0]
            .map(|told| (told, curve(told)))
            .to_vec();
        let expected = curve(4000.0) - curve(400.0);
        assert!((rest(&points, 4000.0) / expected - 1.0).abs() < 1e-9);
        assert!(rest(&points, 400.0).abs() < f64::EPSILON);
        assert!(rest(&[(0.0, 0.0); 2], 10.0) > 0.0);
    }

    #[test]
    fn parts_hold_every_item_once() {
        let picked: Vec<usize> = (10..21).collect();
        let (mut items, ends) = in_parts(&picked, 4, false);
        assert_eq!((ends.last(), ends.len()), (Some(&11), 4));
        assert_eq!(items[..3], [10, 14, 18]);
        items.sort_unstable();
        assert_eq!(items, picked);
        assert_eq!(in_parts(&picked, 4, true).0, picked);
    }
}
