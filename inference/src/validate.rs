//! `Validate`: what a lossy delta does to a fine-tune, layer by layer and in behaviour.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use serde::Serialize;
use sparse_delta::support::{self, Residency};
use sparse_delta::{CancelToken, DeltaError, DeltaTensors, Device, Progress};
use sparse_gpu::Int8Streamed;
use sparse_store::{Model, OpenOptions};

use crate::behaviour::{Behaviour, score};
use crate::candidate::{Candidate, Rebuilt};
use crate::config::Config;
use crate::decoder::Decoder;
use crate::layers::{self, LayerMetrics, Sample};
use crate::prompts::DEFAULT_PROMPTS;
use crate::tokens::Tokens;
use crate::weights::Weights;
use crate::{InferenceError, run};

/// Positions whose logits are in memory at a time.
const ROWS: usize = 64;
/// Texts longer than any model reads at once.
const MAX_LENGTH: usize = 1 << 20;

/// Judges what stands in for a fine-tune.
///
/// ```no_run
/// # async fn example() -> Result<(), sparse_inference::InferenceError> {
/// use sparse_inference::Validate;
/// let found = Validate::int8("org/base", "./my-finetune").run().await?;
/// if let Some(behaviour) = &found.behaviour {
///     println!("mean KL divergence {:.2e}", behaviour.divergence.mean);
/// }
/// # Ok(()) }
/// ```
#[must_use = "nothing happens until `run` is awaited"]
pub struct Validate {
    base: String,
    finetune: String,
    candidate: Candidate,
    sample: Sample,
    prompts: Option<Vec<String>>,
    max_length: usize,
    threads: Option<usize>,
    device: Device,
    open: OpenOptions,
    progress: Option<Progress>,
    cancel: CancelToken,
}

/// What was found on one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptMetrics {
    /// The text.
    pub prompt: String,
    /// Its tokens, cut to the length asked for.
    pub tokens: u64,
    /// How the candidate behaves; absent for a text of fewer than two tokens.
    pub behaviour: Option<Behaviour>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Validation {
    /// What was judged, for people.
    pub candidate: String,
    /// The instruction sets that computed.
    pub acceleration: String,
    /// Tensors, the largest first.
    pub layer_metrics: Vec<LayerMetrics>,
    /// One for each prompt, in order; none where behaviour is not judged.
    pub prompts: Vec<PromptMetrics>,
    /// How the candidate behaves on all prompts together.
    pub behaviour: Option<Behaviour>,
    /// What a reader must know: why behaviour is not judged, what was cut.
    pub notes: Vec<String>,
    /// Wall time.
    #[serde(skip)]
    pub elapsed: Duration,
}

impl Validate {
    /// Judges what `candidate` makes of `base` beside `finetune`: models by path, URL or Hub id.
    pub fn new(base: impl Into<String>, finetune: impl Into<String>, candidate: Candidate) -> Self {
        Self {
            base: base.into(),
            finetune: finetune.into(),
            candidate,
            sample: Sample::default(),
            prompts: None,
            max_length: 128,
            threads: None,
            device: Device::default(),
            open: OpenOptions::default(),
            progress: None,
            cancel: CancelToken::default(),
        }
    }

    /// Judges INT8 with a scale for each row.
    pub fn int8(base: impl Into<String>, finetune: impl Into<String>) -> Self {
        Self::new(base, finetune, Candidate::Int8(Default::default()))
    }

    /// Which tensors are measured. Default: the two largest.
    pub fn sample_layers(mut self, sample: Sample) -> Self {
        self.sample = sample;
        self
    }

    /// The texts both models are run on; none of them, and neither model is run. Default: [`DEFAULT_PROMPTS`].
    pub fn prompts(mut self, prompts: Vec<String>) -> Self {
        self.prompts = Some(prompts);
        self
    }

    /// Tokens of a text that are looked at. Default: 128; never more than the model's positions.
    pub fn max_length(mut self, max_length: usize) -> Self {
        self.max_length = max_length;
        self
    }

    sparse_delta::operation_setters!();

    /// Where INT8's scales and rebuilt tensors are computed: to the same bits. Errors are measured, and models run, on the CPU.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Measures and runs.
    ///
    /// # Errors
    /// Models or a delta that cannot be read or do not belong together; files of the fine-tune that contradict one another. A
    /// model that cannot be run is no error: [`Validation::notes`] says why.
    pub async fn run(mut self) -> Result<Validation, InferenceError> {
        let started = Instant::now();
        if self.max_length < 2 || self.max_length > MAX_LENGTH {
            return Err(InferenceError::usage(format!(
                "max_length is {}: give 2 to {MAX_LENGTH} tokens, for a prediction needs one and is compared with the next",
                self.max_length
            )));
        }
        if let Some(at) = self
            .prompts
            .iter()
            .flatten()
            .position(|p| p.trim().is_empty())
        {
            return Err(InferenceError::usage(format!(
                "prompt {} is empty: leave it out, or give a text",
                at + 1
            )));
        }
        if self.open.progress.is_none() {
            self.open.progress.clone_from(&self.progress);
        }
        let delta = match &self.candidate {
            Candidate::Delta { path, .. } => Some(support::artifact_dir(path, &self.open).await?),
            _ => None,
        };
        let base = Arc::new(Model::open(&self.base, &self.open).await?);
        let finetune = Arc::new(Model::open(&self.finetune, &self.open).await?);
        let dropped = Arc::new(AtomicBool::new(false));
        let _on_drop = SetOnDrop(Arc::clone(&dropped));
        let job = Job {
            base,
            finetune,
            delta,
            dropped,
            options: self,
        };
        let mut found = tokio::task::spawn_blocking(move || {
            let pool = support::pool(job.options.threads)?;
            // What panics inside is an internal error, as everywhere.
            let mut failed = None;
            let found = support::guarded(|| {
                pool.install(|| job.run(&pool)).map_err(|error| {
                    failed = Some(error);
                    DeltaError::Cancelled
                })
            });
            match (found, failed) {
                (_, Some(error)) => Err(error),
                (found, None) => found.map_err(InferenceError::from),
            }
        })
        .await
        .map_err(|error| InferenceError::Compute {
            message: error.to_string(),
        })??;
        found.elapsed = started.elapsed();
        Ok(found)
    }
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Job {
    base: Arc<Model>,
    finetune: Arc<Model>,
    delta: Option<PathBuf>,
    dropped: Arc<AtomicBool>,
    options: Validate,
}

/// A model that can be run, and the tokens it is run on.
struct Runnable {
    config: Config,
    tokens: Vec<Vec<u32>>,
}

impl Job {
    fn check(&self) -> Result<(), InferenceError> {
        if self.options.cancel.is_cancelled() || self.dropped.load(Ordering::Relaxed) {
            Err(DeltaError::Cancelled.into())
        } else {
            Ok(())
        }
    }

    fn run(&self, pool: &ThreadPool) -> Result<Validation, InferenceError> {
        let _residency = Residency::watch(vec![Arc::clone(&self.base), Arc::clone(&self.finetune)]);
        let pairs = sparse_store::pair(&self.base, &self.finetune);
        let rebuilt = match (&self.options.candidate, &self.delta) {
            (Candidate::Delta { path, rank }, Some(dir)) => Rebuilt::Delta {
                tensors: DeltaTensors::open(dir, &self.base, *rank, pool)?,
                id: path.clone(),
            },
            (Candidate::Int8(granularity), _) => {
                let streamed = Int8Streamed::open(self.options.device).map_err(DeltaError::from)?;
                Rebuilt::int8(&pairs, *granularity, streamed, self.finetune.id())
            }
            _ => Rebuilt::Base(&self.base),
        };
        let mut notes = Vec::new();
        self.tell("measuring layers", 0.0);
        let layer_metrics = layers::measure(
            &self.options.candidate,
            &rebuilt,
            &pairs,
            self.options.sample,
            &|| self.check(),
        )?;
        if layer_metrics.is_empty() && self.options.sample != Sample::Largest(0) {
            notes
                .push("no tensor differs from the fine-tune's: there is nothing to measure".into());
        }
        let prompts = self.prompts();
        let (mut each, mut all) = (Vec::new(), Vec::new());
        if !prompts.is_empty() {
            let found = self
                .runnable(&prompts, &mut notes)
                .and_then(|runnable| self.behave(&runnable, &rebuilt));
            match found {
                Ok(found) => {
                    for (prompt, scored) in prompts.iter().zip(found) {
                        each.push(PromptMetrics {
                            prompt: prompt.clone(),
                            tokens: scored.tokens,
                            behaviour: Behaviour::of(&scored.positions),
                        });
                        all.extend(scored.positions);
                    }
                    if all.is_empty() {
                        notes.push(
                            "every prompt has fewer than two tokens: behaviour is not judged"
                                .into(),
                        );
                    }
                }
                Err(InferenceError::Unsupported { what }) => {
                    notes.push(format!("behaviour is not judged: {what}"));
                }
                Err(error) => return Err(error),
            }
        }
        self.tell("done", 1.0);
        Ok(Validation {
            candidate: match &rebuilt {
                Rebuilt::Int8 { granularity, .. } => {
                    format!("INT8, a scale for each {granularity}")
                }
                Rebuilt::Delta { tensors, .. } => tensors.describe(),
                Rebuilt::Base(_) => "the base itself".into(),
            },
            acceleration: acceleration(),
            layer_metrics,
            prompts: each,
            behaviour: Behaviour::of(&all),
            notes,
            elapsed: Duration::ZERO,
        })
    }

    fn prompts(&self) -> Vec<String> {
        match &self.options.prompts {
            Some(prompts) => prompts.clone(),
            None => DEFAULT_PROMPTS.iter().map(ToString::to_string).collect(),
        }
    }

    /// Reads configuration and tokenizer; [`InferenceError::Unsupported`] where the model cannot be run.
    fn runnable(
        &self,
        prompts: &[String],
        notes: &mut Vec<String>,
    ) -> Result<Runnable, InferenceError> {
        let config = match run::config(&self.finetune)? {
            Some(config) => config,
            None => run::config(&self.base)?.ok_or_else(|| {
                InferenceError::unsupported(
                    "neither model has a config.json; give the models' folders rather than single files",
                )
            })?,
        };
        let mut tokens = Tokens::of(&[&self.finetune, &self.base])?.ok_or_else(|| {
            InferenceError::unsupported(
                "neither model has a tokenizer.json; convert the tokenizer with transformers and save it beside the weights",
            )
        })?;
        let length = self.options.max_length.min(config.positions());
        if length < self.options.max_length {
            notes.push(format!(
                "prompts are cut to {length} tokens, the positions of the model"
            ));
        }
        let tokens = tokens.encode(self.finetune.id(), prompts, length, config.vocabulary())?;
        Ok(Runnable { config, tokens })
    }

    /// Runs both models on all prompts.
    fn behave(
        &self,
        runnable: &Runnable,
        rebuilt: &Rebuilt<'_>,
    ) -> Result<Vec<ScoredPrompt>, InferenceError> {
        let (config, tokens) = (&runnable.config, &runnable.tokens);
        let reference = Decoder::new(config, &*self.finetune)?;
        let candidate = match rebuilt {
            // A base with fewer words cannot be asked about those the fine-tune added.
            Rebuilt::Base(base) => self.base_decoder(config, base)?,
            rebuilt => Decoder::new(config, rebuilt)?,
        };
        let steps = reference.steps() + candidate.steps();
        let done = AtomicUsize::new(0);
        let step = |what: &str| {
            let now = done.fetch_add(1, Ordering::Relaxed) + 1;
            self.tell(what, now as f64 / steps.max(1) as f64);
            self.check()
        };
        let reference = reference.run(tokens, &|| step("running the fine-tune"))?;
        let candidate = candidate.run(tokens, &|| step("running the rebuilt model"))?;
        let vocabulary = config.vocabulary();
        tokens
            .iter()
            .enumerate()
            .map(|(prompt, tokens)| {
                let mut positions = Vec::new();
                let count = tokens.len().saturating_sub(1);
                for start in (0..count).step_by(ROWS) {
                    self.check()?;
                    let range = start..count.min(start + ROWS);
                    let expected = reference.logits(prompt, range.clone())?;
                    let found = candidate.logits(prompt, range.clone())?;
                    if expected
                        .iter()
                        .chain(&found)
                        .any(|logit| !logit.is_finite())
                    {
                        return Err(InferenceError::model(
                            self.finetune.id(),
                            "its logits are not finite: the weights are damaged, or overflow f32",
                        ));
                    }
                    let next = tokens
                        .get(range.start + 1..range.end + 1)
                        .unwrap_or_default();
                    positions.extend(score(&expected, &found, vocabulary, next));
                }
                Ok(ScoredPrompt {
                    tokens: tokens.len() as u64,
                    positions,
                })
            })
            .collect()
    }

    fn base_decoder<'c>(
        &self,
        config: &'c Config,
        base: &'c Model,
    ) -> Result<Decoder<'c>, InferenceError> {
        let weights: &'c dyn Weights = base;
        Decoder::new(config, weights).map_err(|error| match error {
            InferenceError::Model { problem, .. } => InferenceError::usage(format!(
                "the base itself cannot be judged by the fine-tune's configuration ({problem}); give a delta"
            )),
            error => error,
        })
    }

    fn tell(&self, what: &str, fraction: f64) {
        if let Some(progress) = &self.options.progress {
            progress(what, fraction);
        }
    }
}

struct ScoredPrompt {
    tokens: u64,
    positions: Vec<crate::behaviour::Scored>,
}

/// The instruction sets that the arithmetic uses on this machine.
fn acceleration() -> String {
    sparse_codec::features()
        .into_iter()
        .find(|feature| feature.name == "simd")
        .map_or_else(String::new, |feature| feature.value)
}
