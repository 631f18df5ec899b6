//! `Diff`: what a fine-tune changed, tensor by tensor.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;
use sparse_codec::{DType, DeltaStats, TensorView};
use sparse_gpu::{Choice, Compute};
use sparse_store::{Model, OpenOptions, Pair, PairedBy, TensorHandle};

use crate::pipeline::{self, Sink, Stage};
use crate::progress::{Stop, Ticker};
use crate::residency::Residency;
use crate::tensor::Form;
use crate::{CancelToken, DeltaError, Progress};

/// Bytes of a fine-tuned tensor compared at a time.
const SLICE: usize = 4 << 20;

/// One tensor of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiffRow {
    /// Its name in the fine-tune; in the base, if it was removed.
    pub tensor: String,
    /// The file it is in.
    pub file: String,
    /// "same", "changed", "added", "removed", "reshaped" or "retyped".
    pub status: String,
    /// Its name in the base, where it was found under another one.
    pub base_tensor: Option<String>,
    /// Its dtype as written.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements.
    pub params: u64,
    /// Elements that differ; all of an added one; of a reshaped one those outside the common rows too.
    pub changed: u64,
    /// Norm of the difference. This and what follows: where both have numbers, over the common leading rows.
    pub l2: Option<f64>,
    /// Largest absolute difference.
    pub max_abs: Option<f64>,
    /// Mean difference.
    pub mean: Option<f64>,
    /// Standard deviation of the differences.
    pub std: Option<f64>,
    /// Share of unchanged elements.
    pub sparsity: Option<f64>,
    /// Cosine between base and fine-tune.
    pub cosine: Option<f64>,
}

/// Compares a fine-tune with its base.
#[must_use = "nothing happens until `run` is awaited"]
pub struct Diff {
    base: String,
    finetune: String,
    threads: Option<usize>,
    device: Choice,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

impl Diff {
    /// Compares `finetune` with `base`: each a path, an object store URL or a Hub id.
    pub fn new(base: impl Into<String>, finetune: impl Into<String>) -> Self {
        Self {
            base: base.into(),
            finetune: finetune.into(),
            threads: None,
            device: Choice::default(),
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    crate::operation_setters!();

    /// Where statistics are computed: the same ones to the last bit.
    pub fn device(mut self, device: Choice) -> Self {
        self.device = device;
        self
    }

    /// The tensors of the fine-tune in the order of its files, then those that only the base has.
    pub async fn run(self) -> Result<Vec<DiffRow>, DeltaError> {
        let (base, finetune) = futures::try_join!(
            Model::open(&self.base, &self.open),
            Model::open(&self.finetune, &self.open)
        )?;
        let (base, finetune) = (Arc::new(base), Arc::new(finetune));
        let stop = Stop::new(self.cancel.clone());
        let on_drop = stop.on_drop();
        let (threads, device, progress) = (self.threads, self.device, self.progress);
        let rows = tokio::task::spawn_blocking(move || {
            pipeline::guarded(|| diff(&base, &finetune, threads, device, progress, &stop))
        })
        .await
        .map_err(|error| DeltaError::internal(error.to_string()))?;
        drop(on_drop);
        rows
    }
}

fn diff(
    base: &Arc<Model>,
    finetune: &Arc<Model>,
    threads: Option<usize>,
    device: Choice,
    progress: Option<Progress>,
    stop: &Stop,
) -> Result<Vec<DiffRow>, DeltaError> {
    let compute = Compute::open(device)?;
    let pool = pipeline::pool(threads)?;
    let _residency = Residency::watch(vec![Arc::clone(base), Arc::clone(finetune)]);
    let pairs = pool.install(|| sparse_store::pair(base, finetune));
    let ticker = Ticker::new(progress, "comparing", finetune.weight_bytes());
    let comparing = Comparing {
        pairs: &pairs,
        compute,
    };
    let mut rows = Rows {
        pairs: &pairs,
        ticker: &ticker,
        sum: None,
        rows: Vec::with_capacity(pairs.len()),
    };
    pipeline::run(&pool, &comparing, &mut rows, stop)?;
    let mut rows = rows.rows;
    let used: HashSet<*const sparse_store::TensorEntry> = pairs
        .iter()
        .filter_map(|pair| pair.base)
        .map(|base| std::ptr::from_ref(base.entry))
        .collect();
    let removed = base
        .tensors()
        .filter(|tensor| !used.contains(&std::ptr::from_ref(tensor.entry)));
    rows.extend(removed.map(|tensor| DiffRow {
        status: "removed".into(),
        changed: tensor.params(),
        ..blank(tensor)
    }));
    ticker.finish();
    Ok(rows)
}

fn blank(tensor: TensorHandle<'_>) -> DiffRow {
    DiffRow {
        tensor: tensor.name().to_owned(),
        file: tensor.file.name.clone(),
        status: String::new(),
        base_tensor: None,
        dtype: tensor.entry.dtype.clone(),
        shape: tensor.shape().to_vec(),
        params: tensor.params(),
        changed: 0,
        l2: None,
        max_abs: None,
        mean: None,
        std: None,
        sparsity: None,
        cosine: None,
    }
}

/// Leading elements of both that correspond: all, or the rows in common where only the first dimension differs.
fn common_elements(target: &Form, base: &Form) -> Option<u64> {
    let count = |shape: &[u64]| shape.iter().product::<u64>();
    if target.shape == base.shape {
        return Some(count(&target.shape));
    }
    match (target.shape.split_first(), base.shape.split_first()) {
        (Some((t, t_rest)), Some((b, b_rest))) if t_rest == b_rest => {
            Some(t.min(b) * count(t_rest))
        }
        _ => None,
    }
}

struct Comparing<'a> {
    pairs: &'a [Pair<'a>],
    compute: Compute,
}

/// The comparable parts of a pair.
struct Ready<'a> {
    target: (DType, &'a [u8]),
    base: (DType, &'a [u8]),
    /// Elements of a slice.
    step: u64,
    elements: u64,
    /// The bytes of the whole tensors are equal.
    same: bool,
    comparable: bool,
}

fn bytes_of(dtype: DType, elements: u64) -> usize {
    usize::try_from(elements.saturating_mul(u64::from(dtype.bits())) / 8).unwrap_or(usize::MAX)
}

impl<'a> Stage for Comparing<'a> {
    type Prepared = Ready<'a>;
    type Output = Option<DeltaStats>;

    fn units(&self) -> usize {
        self.pairs.len()
    }

    fn weight(&self, unit: usize) -> u64 {
        self.pairs
            .get(unit)
            .map_or(0, |pair| pair.target.entry.bytes())
    }

    fn prepare(&self, unit: usize) -> Result<Ready<'a>, DeltaError> {
        let pair = self
            .pairs
            .get(unit)
            .ok_or_else(|| DeltaError::internal("no such tensor"))?;
        let nothing = Ready {
            target: (DType::U8, &[]),
            base: (DType::U8, &[]),
            step: 1,
            elements: 0,
            same: false,
            comparable: false,
        };
        let Some(base) = pair.base else {
            return Ok(nothing);
        };
        let (form, base_form) = (Form::of(pair.target), Form::of(base));
        let same = pair.target.entry.dtype == base.entry.dtype
            && pair.target.shape() == base.shape()
            && pair.target.data() == base.data();
        let (Some(dtype), Some(base_dtype), Some(elements)) = (
            form.dtype,
            base_form.dtype,
            common_elements(&form, &base_form),
        ) else {
            return Ok(Ready { same, ..nothing });
        };
        // A multiple of 8, so that slices of packed elements fall on whole bytes.
        let step = (SLICE as u64 * 8 / u64::from(dtype.bits())).next_multiple_of(8);
        let (target_data, base_data) = (pair.target.data(), base.data());
        let clip = |data: &'a [u8], dtype| data.get(..bytes_of(dtype, elements)).unwrap_or(data);
        Ok(Ready {
            target: (dtype, clip(target_data, dtype)),
            base: (base_dtype, clip(base_data, base_dtype)),
            step,
            elements,
            same,
            comparable: true,
        })
    }

    fn parts(&self, _unit: usize, ready: &Ready<'a>) -> usize {
        usize::try_from(ready.elements.div_ceil(ready.step)).unwrap_or(usize::MAX)
    }

    fn work(
        &self,
        _unit: usize,
        ready: &Ready<'a>,
        part: usize,
    ) -> Result<Option<DeltaStats>, DeltaError> {
        let from = part as u64 * ready.step;
        let count = ready.step.min(ready.elements - from);
        let shape = [count];
        let view = |(dtype, data): (DType, &'a [u8])| {
            let start = bytes_of(dtype, from);
            let end = start.saturating_add(bytes_of(dtype, count)).min(data.len());
            (dtype, data.get(start..end).unwrap_or_default())
        };
        let (target, base) = (view(ready.target), view(ready.base));
        let view = |(dtype, data)| TensorView {
            dtype: Some(dtype),
            shape: &shape,
            data,
        };
        Ok(self.compute.delta_stats(view(target), view(base))?)
    }
}

struct Rows<'r, 'a> {
    pairs: &'r [Pair<'a>],
    ticker: &'r Ticker,
    sum: Option<DeltaStats>,
    rows: Vec<DiffRow>,
}

impl<'a> Sink<Comparing<'a>> for Rows<'_, 'a> {
    fn begin(&mut self, _unit: usize, ready: &Ready<'a>) -> Result<(), DeltaError> {
        self.sum = ready.comparable.then(DeltaStats::default);
        Ok(())
    }

    fn part(
        &mut self,
        _unit: usize,
        _ready: &Ready<'a>,
        _part: usize,
        stats: Option<DeltaStats>,
    ) -> Result<(), DeltaError> {
        self.sum = match (self.sum.take(), stats) {
            (Some(mut sum), Some(stats)) => {
                sum.merge(&stats);
                Some(sum)
            }
            _ => None,
        };
        Ok(())
    }

    fn end(&mut self, unit: usize, ready: &Ready<'a>) -> Result<(), DeltaError> {
        let pair = self
            .pairs
            .get(unit)
            .ok_or_else(|| DeltaError::internal("no such tensor"))?;
        let target = pair.target;
        self.ticker.add(target.entry.bytes());
        let mut row = blank(target);
        row.base_tensor = pair
            .base
            .filter(|base| base.name() != target.name())
            .map(|base| base.name().to_owned());
        row.status = match pair.base {
            None => "added",
            Some(_) if pair.by == PairedBy::None => "added",
            Some(base) if base.shape() != target.shape() => "reshaped",
            Some(base) if base.entry.dtype != target.entry.dtype => "retyped",
            Some(_) if ready.same => "same",
            Some(_) => "changed",
        }
        .into();
        row.changed = match self.sum.take() {
            Some(sum) => {
                row.l2 = Some(sum.l2());
                row.max_abs = Some(sum.max_abs);
                row.mean = Some(sum.mean());
                row.std = Some(sum.std());
                row.sparsity = Some(sum.sparsity());
                row.cosine = Some(sum.cosine());
                sum.changed + (row.params - row.params.min(sum.count))
            }
            None if ready.same => 0,
            None => row.params,
        };
        target.release();
        if let Some(base) = pair.base {
            base.release();
        }
        self.rows.push(row);
        Ok(())
    }
}
