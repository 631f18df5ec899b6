//! `Unmerge`: the adapter that was merged into a model, found again and written as PEFT stores adapters.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde::Serialize;
use sparse_adapter::Learned;
use sparse_codec::TensorView;
use sparse_store::{Model, OpenOptions, Pair, Replace, Staged};

use crate::modules::Modules;
use crate::paths::{self, Occupant, Output, root_of};
use crate::progress::{Stop, Ticker};
use crate::residency::Residency;
use crate::tensor::Form;
use crate::{CancelToken, DeltaError, Progress, Status, pipeline};

/// One tensor of a merged model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnmergedTensor {
    /// Its name.
    pub tensor: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// "adapter" (its update is in the adapter), "same" (it equals its base) or "left_out" (its update is not of low rank, so
    /// merging the adapter leaves the base's weights).
    pub status: String,
    /// The rank of its update, where it is in the adapter.
    pub rank: Option<u64>,
    /// Its weights.
    pub params: u64,
    /// Weights that base and adapter give exactly.
    pub exact: u64,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct UnmergeOutcome {
    /// Whether the adapter was written.
    pub status: Status,
    /// Where it is; nowhere without an output.
    pub path: Option<String>,
    /// Every tensor of the merged model.
    pub tensors: Vec<UnmergedTensor>,
    /// How long it took.
    pub elapsed: Duration,
}

impl UnmergeOutcome {
    /// Weights that merging the adapter into the base gives exactly, and all weights.
    #[must_use]
    pub fn exact(&self) -> (u64, u64) {
        self.tensors
            .iter()
            .fold((0, 0), |sum, t| (sum.0 + t.exact, sum.1 + t.params))
    }
}

/// Finds the adapter that was merged into a model.
#[must_use = "nothing happens until `stage` is awaited"]
pub struct Unmerge {
    base: String,
    merged: String,
    output: Option<String>,
    overwrite: bool,
    threads: Option<usize>,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

impl Unmerge {
    /// The adapter that was merged into `base` to give `merged`: each a path, an object store URL or a Hub id.
    pub fn new(base: impl Into<String>, merged: impl Into<String>) -> Self {
        Self {
            base: base.into(),
            merged: merged.into(),
            output: None,
            overwrite: false,
            threads: None,
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// The folder the adapter goes to. Without one nothing is written.
    pub fn output(mut self, output: impl Into<String>) -> Self {
        self.output = Some(output.into());
        self
    }

    /// Whether another adapter at the output may be replaced. Nothing but an adapter ever is.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    crate::operation_setters!();

    /// Finds the adapter and writes it under a temporary name; nothing is visible until it is committed.
    ///
    /// # Errors
    /// Models that cannot be opened, an output that is taken, and models that differ by no low-rank update at all.
    pub async fn stage(mut self) -> Result<StagedAdapter, DeltaError> {
        let started = Instant::now();
        if self.open.progress.is_none() {
            self.open.progress.clone_from(&self.progress);
        }
        let output = match self.output.as_deref().map(Output::parse).transpose()? {
            Some(Output::Url(url)) => {
                return Err(DeltaError::usage(format!(
                    "{url}: an adapter is written into a folder; give one, then upload it"
                )));
            }
            Some(Output::Local(path)) => Some(path),
            None => None,
        };
        let (base, merged) = futures::try_join!(
            Model::open(&self.base, &self.open),
            Model::open(&self.merged, &self.open)
        )?;
        let stop = Stop::new(self.cancel.clone());
        let on_drop = stop.on_drop();
        let job = Job {
            base: Arc::new(base),
            merged: Arc::new(merged),
            output,
            overwrite: self.overwrite,
            threads: self.threads,
            progress: self.progress,
            stop,
            started,
        };
        let staged = tokio::task::spawn_blocking(move || pipeline::guarded(|| job.run()))
            .await
            .map_err(|error| DeltaError::internal(error.to_string()))?;
        drop(on_drop);
        staged
    }
}

/// An adapter that is complete and not yet visible. Dropped, it leaves nothing.
pub struct StagedAdapter {
    staged: Option<(Staged, Replace)>,
    outcome: UnmergeOutcome,
    started: Instant,
}

impl StagedAdapter {
    /// Makes the adapter visible, in one step.
    ///
    /// # Errors
    /// An output that was taken in the meantime, or a disk that fails.
    pub async fn commit(mut self) -> Result<UnmergeOutcome, DeltaError> {
        if let Some((staged, replace)) = self.staged.take() {
            let committed = tokio::task::spawn_blocking(move || staged.commit(replace))
                .await
                .map_err(|error| DeltaError::internal(error.to_string()))??;
            self.outcome.path = Some(committed.path.display().to_string());
        }
        self.outcome.elapsed = self.started.elapsed();
        Ok(self.outcome)
    }
}

struct Job {
    base: Arc<Model>,
    merged: Arc<Model>,
    output: Option<PathBuf>,
    overwrite: bool,
    threads: Option<usize>,
    progress: Option<Progress>,
    stop: Stop,
    started: Instant,
}

impl Job {
    fn run(self) -> Result<StagedAdapter, DeltaError> {
        let pool = pipeline::pool(self.threads)?;
        let _residency = Residency::watch(vec![Arc::clone(&self.base), Arc::clone(&self.merged)]);
        if let Some(path) = &self.output {
            paths::refuse_inputs(
                path,
                &[
                    ("base model", root_of(&self.base)),
                    ("merged model", root_of(&self.merged)),
                ],
            )?;
        }
        let replace = self
            .output
            .as_deref()
            .map_or(Ok(Replace::Never), |path| look(path, self.overwrite))?;
        let ticker = Ticker::new(
            self.progress.clone(),
            "looking for the adapter",
            self.merged.weight_bytes(),
        );
        let modules = Modules::of(&self.base, &self.merged);
        let found = pool.install(|| {
            sparse_store::pair(&self.base, &self.merged)
                .par_iter()
                .map(|pair| {
                    self.stop.check()?;
                    let found = tensor(pair, &modules);
                    ticker.add(pair.target.entry.bytes());
                    pair.target.release();
                    found
                })
                .collect::<Result<Vec<_>, DeltaError>>()
        })?;
        ticker.finish();
        let (tensors, learned): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let learned: Vec<Learned> = learned.into_iter().flatten().collect();
        if learned.is_empty() {
            return Err(DeltaError::usage(format!(
                "no tensor of {} differs from {} by an update of low rank: no adapter was merged into it; use `sparse compress`, \
                 or give the base the adapter was trained on",
                self.merged.id(),
                self.base.id(),
            )));
        }
        let mut outcome = UnmergeOutcome {
            status: Status::DryRun,
            path: None,
            tensors,
            elapsed: Duration::ZERO,
        };
        let mut staged = None;
        if let Some(path) = &self.output {
            let folder = Staged::dir(path)?;
            let task = modules.task();
            sparse_adapter::write(folder.path(), self.base.id(), task, &learned)?;
            outcome.path = Some(path.display().to_string());
            outcome.status = if same_files(path, folder.path()) {
                Status::Exists
            } else if replace == Replace::Never && path.exists() {
                return Err(DeltaError::Exists {
                    path: path.clone(),
                    what: "it holds another adapter".into(),
                });
            } else {
                staged = Some((folder, Replace::Allow));
                Status::Created
            };
        }
        Ok(StagedAdapter {
            staged,
            outcome,
            started: self.started,
        })
    }
}

/// Whether what is at the output may be replaced: an adapter where that was asked for, an empty folder always.
fn look(path: &Path, overwrite: bool) -> Result<Replace, DeltaError> {
    match paths::occupant(path)? {
        Occupant::Nothing | Occupant::EmptyDir => return Ok(Replace::Allow),
        Occupant::File => {
            return Err(DeltaError::Refused {
                path: path.into(),
                why: "it is a file, and an adapter is a folder".into(),
            });
        }
        Occupant::Dir => {}
    }
    let ours = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|e| {
            sparse_adapter::FILES
                .iter()
                .any(|name| e.file_name() == *name)
        })
    };
    let all = std::fs::read_dir(path)
        .map_err(|error| DeltaError::io("read", path, error))?
        .all(ours);
    if !all {
        return Err(DeltaError::Refused {
            path: path.into(),
            why: "it is a folder that holds something other than an adapter".into(),
        });
    }
    Ok(if overwrite {
        Replace::Allow
    } else {
        Replace::Never
    })
}

fn same_files(a: &Path, b: &Path) -> bool {
    sparse_adapter::FILES.iter().all(|name| {
        matches!((std::fs::read(a.join(name)), std::fs::read(b.join(name))), (Ok(a), Ok(b)) if a == b)
    })
}

/// Looks at one tensor.
fn tensor(
    pair: &Pair<'_>,
    modules: &Modules,
) -> Result<(UnmergedTensor, Option<Learned>), DeltaError> {
    let target = pair.target;
    let mut row = UnmergedTensor {
        tensor: target.name().to_owned(),
        shape: target.shape().to_vec(),
        status: "left_out".to_owned(),
        rank: None,
        params: target.params(),
        exact: 0,
    };
    let Some(base) = pair.base else {
        return Ok((row, None));
    };
    if base.entry.dtype == target.entry.dtype && base.data() == target.data() {
        row.status = "same".to_owned();
        row.exact = row.params;
        return Ok((row, None));
    }
    let module = target.name().strip_suffix(".weight");
    let found = match module {
        Some(module) if base.name() == target.name() && target.shape().len() == 2 => {
            let (form, base_form) = (Form::of(target), Form::of(base));
            let views: [TensorView<'_>; 2] =
                [form.view(target.data()), base_form.view(base.data())];
            sparse_codec::unmerge(views[0], views[1])
                .map_err(|source| DeltaError::Codec {
                    file: target.file.name.clone(),
                    tensor: row.tensor.clone(),
                    source,
                })?
                .map(|found| (module, found))
        }
        _ => None,
    };
    let Some((module, found)) = found else {
        row.exact = unchanged(target.data(), base.data(), row.params);
        return Ok((row, None));
    };
    row.status = "adapter".to_owned();
    row.rank = Some(found.rank as u64);
    row.exact = found.exact.0;
    let learned = Learned {
        module: module.to_owned(),
        layout: modules.layout(module),
        rank: found.rank,
        left: found.left,
        right: found.right,
    };
    Ok((row, Some(learned)))
}

/// Elements of equal bits, for elements of whole bytes.
fn unchanged(a: &[u8], b: &[u8], params: u64) -> u64 {
    let size = usize::try_from(a.len() as u64 / params.max(1)).unwrap_or(0);
    if size == 0 || a.len() != b.len() {
        return 0;
    }
    a.chunks_exact(size)
        .zip(b.chunks_exact(size))
        .map(|(a, b)| u64::from(a == b))
        .sum()
}
