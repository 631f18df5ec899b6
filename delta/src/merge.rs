//! An adapter merged into its base: what PEFT's `merge_and_unload` gives, bit for bit, tensor by tensor, never the whole model in
//! memory.

use std::os::unix::fs::FileExt as _;

use rayon::ThreadPool;
use rayon::prelude::*;
use sparse_adapter::{AdapterError, Layout, Module, PeftAdapter};
use sparse_codec::{DType, MergeWork};
use sparse_store::{CarriedFile, Model, TensorHandle, WeightFile};

use crate::DeltaError;
use crate::error::During;
use crate::identity::hash_file;
use crate::modules::Modules;
use crate::place::Place;
use crate::progress::{Stop, Ticker};
use crate::rebuild::Target;
use crate::report::FileReport;

/// Bytes of a weight that are merged at a time, about.
const PIECE: usize = 1 << 20;

/// How an update joins a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MergeRule {
    /// The sum is rounded once, as PEFT's `merge_and_unload()` does.
    #[default]
    Default,
    /// The update is rounded before it is added, as `merge_and_unload(safe_merge=True)` does.
    Safe,
}

impl MergeRule {
    /// "default" or "safe".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Safe => "safe",
        }
    }

    /// The rule of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Default, Self::Safe]
            .into_iter()
            .find(|rule| rule.name() == name)
    }
}

/// Files that an adapter brings for the tokenizer it was trained with; the merged model takes them over.
const TOKENIZER: [&str; 9] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// What becomes of a tensor of the base.
#[derive(Clone, Copy, Debug)]
struct Step<'a> {
    base: TensorHandle<'a>,
    /// Replaces the base's values, in the base's dtype.
    saved: Option<TensorHandle<'a>>,
    update: Option<(&'a Module, Layout)>,
}

fn unusable(adapter: &PeftAdapter, what: String) -> DeltaError {
    DeltaError::from(AdapterError::Unusable {
        adapter: adapter.model().id().to_owned(),
        what,
    })
}

/// Holds an adapter against a base: every module has its weight there, of the shape that its factors update.
pub(crate) fn check(adapter: &PeftAdapter, base: &Model) -> Result<(), DeltaError> {
    steps(adapter, base).map(|_| ())
}

/// One step for each tensor of the base, in order.
fn steps<'a>(adapter: &'a PeftAdapter, base: &'a Model) -> Result<Vec<Step<'a>>, DeltaError> {
    let modules = Modules::of(base, adapter.model());
    let mut missing: std::collections::BTreeSet<&str> =
        adapter.modules().map(|m| m.name.as_str()).collect();
    let mut steps = Vec::new();
    for tensor in base.tensors() {
        let mut step = Step {
            base: tensor,
            saved: adapter.saved_for(tensor.name()),
            update: None,
        };
        if let Some(saved) = step.saved.filter(|s| s.shape() != tensor.shape()) {
            return Err(unusable(
                adapter,
                format!(
                    "its {} has the shape {:?}, and the base's {} has {:?}: give the base the adapter was trained on, resized as \
                     it was for the training",
                    saved.name(),
                    saved.shape(),
                    tensor.name(),
                    tensor.shape(),
                ),
            ));
        }
        if let Some(module) = adapter.module_of(tensor.name()) {
            missing.remove(module.name.as_str());
            step.update = Some((module, layout(adapter, module, &modules, tensor)?));
        }
        steps.push(step);
    }
    if let Some(module) = missing.first() {
        return Err(unusable(
            adapter,
            format!(
                "it adapts the module {module}, and {} has no tensor {module}.weight: it is an adapter of another model",
                base.id()
            ),
        ));
    }
    Ok(steps)
}

/// How a module's weight lies: an embedding by its keys, otherwise by its shape, and where that is square, by what the model's
/// and the adapter's configurations say.
fn layout(
    adapter: &PeftAdapter,
    module: &Module,
    modules: &Modules,
    tensor: TensorHandle<'_>,
) -> Result<Layout, DeltaError> {
    let shape = tensor.shape();
    let candidates = match module.layout {
        Layout::Embedding => vec![Layout::Embedding],
        // PEFT goes by the class of the module, which is in the model's code; its configuration holds what it found last.
        configured => match modules.layout(&module.name) {
            Layout::Transposed => vec![Layout::Transposed, Layout::Linear],
            _ if configured == Layout::Transposed && !modules.is_transposed() => {
                vec![Layout::Transposed, Layout::Linear]
            }
            _ => vec![Layout::Linear, Layout::Transposed],
        },
    };
    for candidate in &candidates {
        if adapter.fits(module, *candidate, shape)? {
            return Ok(*candidate);
        }
    }
    Err(unusable(
        adapter,
        format!(
            "its module {} updates no weight of the shape {shape:?}, which the base's {} has: it is an adapter of another model",
            module.name,
            tensor.name(),
        ),
    ))
}

/// An adapter and its base, ready to be merged.
pub(crate) struct Merging<'a> {
    base: &'a Model,
    adapter: &'a PeftAdapter,
    rule: MergeRule,
    steps: Vec<Step<'a>>,
}

impl<'a> Merging<'a> {
    pub(crate) fn new(
        base: &'a Model,
        adapter: &'a PeftAdapter,
        rule: MergeRule,
    ) -> Result<Self, DeltaError> {
        adapter.check_mergeable()?;
        let merging = Self {
            base,
            adapter,
            rule,
            steps: steps(adapter, base)?,
        };
        merging.check_saved()?;
        Ok(merging)
    }

    /// Every tensor that replaces one has one to replace, and nothing else is tied to it.
    fn check_saved(&self) -> Result<(), DeltaError> {
        let replaced: Vec<&str> = self
            .steps
            .iter()
            .filter_map(|step| step.saved.map(|saved| saved.name()))
            .collect();
        let modules = Modules::of(self.base, self.adapter.model());
        let headless = !self.base.tensors().any(|t| {
            [".lm_head.weight", ".embed_out.weight", ".output.weight"]
                .iter()
                .any(|end| format!(".{}", t.name()).ends_with(end))
        });
        for (name, saved) in self.adapter.saved() {
            if !replaced.contains(&saved.name()) {
                return Err(unusable(
                    self.adapter,
                    format!(
                        "it replaces {name}, which {} does not store (it may be tied to another tensor): merge it with PEFT and \
                         compress the merged model",
                        self.base.id()
                    ),
                ));
            }
            let module = name.strip_suffix(".weight").unwrap_or(name);
            // The weight below an adapted embedding is the one that the head is tied to: both change.
            if saved.name().contains(".base_layer.") {
                continue;
            }
            if headless && modules.task().is_some() && modules.layout(module) == Layout::Embedding {
                return Err(unusable(
                    self.adapter,
                    format!(
                        "it replaces the embedding {name}, to which the head of {} is tied, and PEFT replaces one of the two \
                         only: merge it with PEFT and compress the merged model",
                        self.base.id()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The paths of the merged model's files.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        let weights = self.base.files().iter().map(|f| f.name.as_str());
        weights.chain(self.carried().map(|(file, _)| file.name.as_str()))
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> u64 {
        self.base.weight_bytes() + self.carried().map(|(file, _)| file.size).sum::<u64>()
    }

    /// The files beside the weights, and whether they are the base's.
    fn carried(&self) -> impl Iterator<Item = (&CarriedFile, bool)> {
        let brought: Vec<&CarriedFile> = self
            .adapter
            .model()
            .carried()
            .iter()
            .filter(|file| TOKENIZER.contains(&file.name.as_str()))
            .collect();
        let names: Vec<&str> = brought.iter().map(|f| f.name.as_str()).collect();
        let own = self.base.carried().iter();
        let own = own.filter(move |file| !names.contains(&file.name.as_str()));
        own.map(|file| (file, true))
            .chain(brought.into_iter().map(|file| (file, false)))
    }

    /// Makes every file at `place`, or nowhere.
    pub(crate) fn files(
        &self,
        place: Option<&Place<'_>>,
        pool: &ThreadPool,
        stop: &Stop,
        ticker: &Ticker,
    ) -> Result<Vec<FileReport>, DeltaError> {
        let mut reports = Vec::new();
        let mut rest = self.steps.as_slice();
        for file in self.base.files() {
            let count = file.header().entries.len().min(rest.len());
            let (steps, others) = rest.split_at(count);
            rest = others;
            let sha256 = self.weights(file, steps, place, pool, stop, ticker)?;
            reports.push(FileReport {
                file: file.name.clone(),
                bytes: file.size,
                sha256,
                status: "merged".into(),
            });
        }
        for (file, is_base) in self.carried() {
            stop.check()?;
            let same_as = is_base.then_some(file.path());
            if let Some((mut to, shown)) = Place::open(place, &file.name, 0, same_as)? {
                let mut from = std::fs::File::open(file.path()).during("open", file.path())?;
                std::io::copy(&mut from, &mut to).during("write", shown)?;
            }
            ticker.add(file.size);
            reports.push(FileReport {
                file: file.name.clone(),
                bytes: file.size,
                sha256: hash_file(file.path(), stop)?,
                status: if is_base { "copied" } else { "carried" }.into(),
            });
        }
        Ok(reports)
    }

    /// One file of weights: the base's header, and every tensor in its place.
    fn weights(
        &self,
        file: &WeightFile,
        steps: &[Step<'_>],
        place: Option<&Place<'_>>,
        pool: &ThreadPool,
        stop: &Stop,
        ticker: &Ticker,
    ) -> Result<String, DeltaError> {
        let opened = place
            .map(|place| place.create(&file.name, file.size))
            .transpose()?;
        let target = opened.as_ref().map(|(file, shown)| Target { file, shown });
        write(target.as_ref(), file.header_bytes(), 0)?;
        ticker.add(file.header_bytes().len() as u64);
        pool.install(|| {
            steps
                .par_iter()
                .zip(&file.header().entries)
                .try_for_each(|(step, entry)| {
                    self.tensor(step, target.as_ref(), entry.range.start, stop)?;
                    ticker.add(entry.bytes());
                    step.base.release();
                    Ok::<_, DeltaError>(())
                })
        })?;
        match place {
            Some(place) => hash_file(&place.root.join(&file.name), stop),
            None => Ok(String::new()),
        }
    }

    /// Writes one tensor from byte `at` of its file on.
    fn tensor(
        &self,
        step: &Step<'_>,
        target: Option<&Target<'_>>,
        at: u64,
        stop: &Stop,
    ) -> Result<(), DeltaError> {
        stop.check()?;
        let replaced = step
            .saved
            .map(|saved| self.replacement(step, saved))
            .transpose()?;
        let data = replaced.as_deref().unwrap_or_else(|| step.base.data());
        let Some((module, layout)) = step.update else {
            for (number, piece) in data.chunks(PIECE).enumerate() {
                stop.check()?;
                write(target, piece, at + (number * PIECE) as u64)?;
            }
            return Ok(());
        };
        let (dtype, shape) = (step.base.dtype(), step.base.shape());
        let safe = self.rule == MergeRule::Safe;
        let merge = self.adapter.merge(module, layout, dtype, shape, safe)?;
        let width = dtype.map_or(1, |dtype| dtype.bits() as usize / 8).max(1);
        let cols: u64 = shape.iter().skip(1).product();
        let row = usize::try_from(cols).unwrap_or(1).max(1) * width;
        // Whole rows are merged four at a time.
        let piece = row * (PIECE / row).max(4).next_multiple_of(4);
        let (mut words, mut work) = (Vec::new(), MergeWork::default());
        for (number, part) in data.chunks(piece).enumerate() {
            stop.check()?;
            words.clear();
            words.extend_from_slice(part);
            let first = number * piece;
            merge
                .apply(first / width, &mut words, &mut work)
                .map_err(|source| AdapterError::Codec {
                    adapter: self.adapter.model().id().to_owned(),
                    module: module.name.clone(),
                    source,
                })?;
            write(target, &words, at + first as u64)?;
        }
        Ok(())
    }

    /// A saved tensor in the dtype of the base's, as loading it gives it.
    fn replacement(&self, step: &Step<'_>, saved: TensorHandle<'_>) -> Result<Vec<u8>, DeltaError> {
        let dtypes: Option<(DType, DType)> = saved.dtype().zip(step.base.dtype());
        let (from, to) = dtypes.ok_or_else(|| {
            unusable(
                self.adapter,
                format!(
                    "its {} has the dtype {}, which is not known",
                    saved.name(),
                    saved.entry.dtype
                ),
            )
        })?;
        sparse_codec::cast(from, saved.data(), to).map_err(|source| {
            DeltaError::from(AdapterError::Codec {
                adapter: self.adapter.model().id().to_owned(),
                module: step.base.name().to_owned(),
                source,
            })
        })
    }
}

fn write(target: Option<&Target<'_>>, bytes: &[u8], at: u64) -> Result<(), DeltaError> {
    match target {
        Some(target) => target
            .file
            .write_all_at(bytes, at)
            .during("write", target.shown),
        None => Ok(()),
    }
}
