//! `FindBase`: which model of a catalog a fine-tune descends from, by its weights.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::Serialize;
use sparse_store::{Location, Progress, StoreError};

use crate::CatalogError;
use crate::catalog::{Catalog, ListOptions, blocking};
use crate::distance::{Scaled, Summary, gaps, scale, summary, units};
use crate::entry::{ModelEntry, Source};
use crate::family::Family;
use crate::local::describe;
use crate::sample::{self, COARSE, Chunk, Mapping};
use crate::weights::Weights;

/// A relative scores at least this much...
const MIN_SCORE: f64 = 0.08;
/// ...and so many standard errors above strangers...
const MIN_SIGMAS: f64 = 6.0;
/// ...and has at least this share of the model's matrices, by parameters.
const MIN_COVERED: f64 = 0.25;
/// The most relatives whose distances from one another are measured: the nearest.
const MAX_FAMILY: usize = 32;
/// A centre of so many relatives is their base, not one of their fine-tunes.
const FAMILY_OF_BASE: usize = 3;
/// How sure it must be that the model itself is the centre.
const SURE: f64 = 0.9;

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A base was found by the weights.
    Found,
    /// The model names its base, the base is in the catalog, and the weights do not speak against it (an adapter has none in common).
    Declared,
    /// The model is itself the base of its relatives: they say so, or it is their centre.
    Root,
    /// The catalog holds the same weights under another name, and no base.
    Copy,
    /// No model of the catalog is a relative, or all of them name the same base as the model, which is not there.
    None,
}

impl Outcome {
    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Declared => "declared",
            Self::Root => "root",
            Self::Copy => "copy",
            Self::None => "none",
        }
    }
}

/// A model of the catalog against the model in question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CandidateScore {
    /// Its reference.
    pub model: String,
    /// 1 for the same weights, around 0 for strangers: 1 - bit distance / that of strangers. None where nothing could be compared.
    pub score: Option<f64>,
    /// Mean bit distance of the sampled weights.
    pub bit_distance: Option<f64>,
    /// The score in units of its standard error.
    pub sigmas: Option<f64>,
    /// The share of the model's matrices, by parameters, that it has too.
    pub covered: f64,
    /// Whether it is a relative.
    pub related: bool,
    /// Why it was not compared, if it was not.
    pub problem: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BaseFound {
    /// The model in question.
    pub model: String,
    /// Its base.
    pub base: Option<String>,
    /// How the search ended.
    pub outcome: Outcome,
    /// The base's score.
    pub score: Option<f64>,
    /// The share of repeated draws of the samples that give the same base; 1 where there is nothing to choose from.
    pub confidence: Option<f64>,
    /// The base's mean bit distance.
    pub bit_distance: Option<f64>,
    /// The base that the model names.
    pub declared: Option<String>,
    /// The relative with the least distance: the base, or a sibling.
    pub nearest: Option<String>,
    /// Relatives in the catalog.
    pub relatives: u64,
    /// Models of the catalog that were compared.
    pub compared: u64,
    /// Bytes of weights read, of all models together.
    pub bytes_read: u64,
    /// Every model of the catalog, the most related first.
    pub candidates: Vec<CandidateScore>,
}

/// Finds the base of a fine-tune in a catalog.
///
/// Of each model up to 128 samples of 512 weights are read, at the same places; 32 of them tell strangers from relatives. A model is
/// compared by the tensors it has in common: names may differ by leading components, dtypes and the number of rows (added vocabulary)
/// may differ. Relatives are then compared with one another, since fine-tunes of one base often move alike: the base is the one from
/// which all of them are nearest (the 32 nearest are looked at; copies count once, checkpoints of one run less each). A relative that names another relative as its base is not the base, nor one with more rows than the
/// model where there is one without.
///
/// ```no_run
/// # async fn example() -> Result<(), sparse_catalog::CatalogError> {
/// use sparse_catalog::{Catalog, FindBase};
///
/// let found = FindBase::new("./my-finetune", Catalog::parse("./models")?).run().await?;
/// println!("{:?} {:?}", found.base, found.confidence);
/// # Ok(()) }
/// ```
#[must_use = "nothing happens until `run` is awaited"]
pub struct FindBase {
    model: String,
    catalog: Catalog,
    options: ListOptions,
    progress: Option<Progress>,
    cancel: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl FindBase {
    /// The base of `model` (a path, or a model of the Hub's local cache) in `catalog`.
    pub fn new(model: impl Into<String>, catalog: Catalog) -> Self {
        Self {
            model: model.into(),
            catalog,
            options: ListOptions {
                headers: false,
                ..ListOptions::default()
            },
            progress: None,
            cancel: Arc::new(|| false),
        }
    }

    /// How remote places are reached, and where caches are.
    pub fn open_options(mut self, options: sparse_store::OpenOptions) -> Self {
        self.options.open = options;
        self
    }

    /// Told what is being done and how far it is.
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Asked between two models whether to stop.
    pub fn cancel(mut self, cancelled: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.cancel = Arc::new(cancelled);
        self
    }

    /// Looks for the base.
    ///
    /// # Errors
    /// A model or catalog that cannot be read. A model in the catalog that cannot is a candidate with a `problem`.
    pub async fn run(self) -> Result<BaseFound, CatalogError> {
        let subject = self.subject().await?;
        let entries = self.catalog.list(&self.options).await?;
        blocking(move || {
            Search {
                subject: &subject,
                progress: self.progress.as_ref(),
                cancelled: &*self.cancel,
                bytes: AtomicU64::new(0),
            }
            .run(entries)
        })
        .await
    }

    /// The model in question as an entry.
    async fn subject(&self) -> Result<ModelEntry, CatalogError> {
        let location = Location::parse(&self.model)?;
        let path = match &location {
            Location::Local(path) => path.clone(),
            _ => sparse_store::Model::open(&self.model, &self.options.open)
                .await?
                .path()
                .to_path_buf(),
        };
        if !path.exists() {
            return Err(StoreError::NotFound {
                what: format!("the model {}", path.display()),
                remedy: "check the path; a Hub model is written org/name[@revision]".to_owned(),
            }
            .into());
        }
        let mut entry = ModelEntry::new(self.model.clone(), Source::Directory);
        describe(&mut entry, &path, false);
        Ok(entry)
    }
}

struct Search<'a> {
    subject: &'a ModelEntry,
    progress: Option<&'a Progress>,
    cancelled: &'a (dyn Fn() -> bool + Send + Sync),
    bytes: AtomicU64,
}

/// The model in question, and what is compared of it.
struct Subject {
    weights: Weights,
    chunks: Vec<Chunk>,
    units: Vec<Option<f32>>,
    scaled: Scaled,
}

/// A model of the catalog that was compared.
struct Compared {
    weights: Weights,
    mapping: Mapping,
    /// The samples read so far.
    scaled: Scaled,
    summary: Summary,
}

/// A relative, all of its samples read.
struct Relative {
    /// Its number in the catalog.
    entry: usize,
    scaled: Scaled,
    summary: Summary,
    more_rows: bool,
    /// The same weights as the model in question.
    copy: bool,
}

impl Search<'_> {
    fn run(&self, entries: Vec<ModelEntry>) -> Result<BaseFound, CatalogError> {
        let path = self.subject.path.clone().unwrap_or_default();
        let me = real(&path);
        let entries: Vec<ModelEntry> = entries
            .into_iter()
            .filter(|entry| entry.path.as_deref().is_none_or(|path| real(path) != me))
            .collect();
        let subject = self.open_subject(&path)?;
        let results = self.compare_all(&subject, &entries)?;
        let mut scores: Vec<CandidateScore> = Vec::with_capacity(entries.len());
        let mut related = Vec::new();
        for (at, (entry, result)) in entries.iter().zip(results).enumerate() {
            let (score, compared) = match result {
                Ok(compared) => (scored(entry, &compared), Some(compared)),
                Err(problem) => (not_compared(entry, problem), None),
            };
            if let Some(compared) = compared.filter(|_| score.related) {
                related.push((at, compared));
            }
            scores.push(score);
        }
        let compared = scores.iter().filter(|score| score.score.is_some()).count() as u64;
        let relatives = related.len() as u64;
        let declared = self.declared(&entries);
        let family = self.read_rest(&subject, related, declared, &mut scores)?;
        let mut found = self.decide(&subject, &entries, &family, &scores);
        scores.sort_by(|a, b| {
            let key = |score: &CandidateScore| score.score.unwrap_or(f64::MIN);
            key(b)
                .total_cmp(&key(a))
                .then_with(|| a.model.cmp(&b.model))
        });
        found.relatives = relatives;
        found.compared = compared;
        found.bytes_read = self.bytes.load(Ordering::Relaxed);
        found.candidates = scores;
        Ok(found)
    }

    fn open_subject(&self, path: &Path) -> Result<Subject, CatalogError> {
        let weights = Weights::open(path)?;
        let chunks = sample::choose(&weights);
        let (values, bytes) = sample::own(&weights, &chunks)?;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let units = units(&values);
        let scaled = scale(&values, &units);
        Ok(Subject {
            weights,
            chunks,
            units,
            scaled,
        })
    }

    /// Every entry against the model in question, by the first samples.
    fn compare_all(
        &self,
        subject: &Subject,
        entries: &[ModelEntry],
    ) -> Result<Vec<Result<Compared, String>>, CatalogError> {
        let done = AtomicUsize::new(0);
        let compare = |entry: &ModelEntry| {
            if (self.cancelled)() {
                return Err(CatalogError::Cancelled);
            }
            let result = match &entry.path {
                Some(path) => self
                    .compare(subject, path)
                    .map_err(|error| error.to_string()),
                None => Err("its weights are not on this machine".to_owned()),
            };
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(progress) = self.progress {
                #[expect(clippy::cast_precision_loss, reason = "a fraction for people")]
                progress(
                    &format!("comparing, {done} of {} models", entries.len()),
                    done as f64 / entries.len() as f64,
                );
            }
            Ok(result)
        };
        entries.par_iter().map(compare).collect()
    }

    fn compare(&self, subject: &Subject, path: &Path) -> Result<Compared, StoreError> {
        let weights = Weights::open(path)?;
        let mapping = Mapping::new(&subject.weights, &weights);
        let mut scaled = Scaled::new();
        if mapping.covered >= MIN_COVERED {
            let chunks = subject.chunks.get(..COARSE).unwrap_or(&subject.chunks);
            let (values, bytes) = sample::others(&subject.weights, &weights, &mapping, chunks)?;
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            scaled = scale(&values, &subject.units);
        }
        let summary = summary(&gaps(&subject.scaled, &scaled));
        Ok(Compared {
            weights,
            mapping,
            scaled,
            summary,
        })
    }

    /// Reads the other samples of the nearest relatives, whose scores they make more exact.
    fn read_rest(
        &self,
        subject: &Subject,
        mut related: Vec<(usize, Compared)>,
        declared: Option<usize>,
        scores: &mut [CandidateScore],
    ) -> Result<Vec<Relative>, CatalogError> {
        // The base that the model names comes first among copies of it.
        let rank = |at: usize| (Some(at) != declared, at);
        related.sort_by(|a, b| {
            let score = |of: &(usize, Compared)| of.1.summary.score;
            score(b)
                .total_cmp(&score(a))
                .then(rank(a.0).cmp(&rank(b.0)))
        });
        // Copies of one model: the first of them stands for all.
        related.dedup_by(|later, first| {
            let bits = |of: &Compared| (of.summary.score.to_bits(), of.summary.bits.to_bits());
            bits(&later.1) == bits(&first.1) && later.1.scaled == first.1.scaled
        });
        if let Some(far) = related.iter().position(|(at, _)| Some(*at) == declared)
            && far >= MAX_FAMILY
        {
            related.swap(far, MAX_FAMILY - 1);
        }
        related.truncate(MAX_FAMILY);
        // In the catalog's order, so that ties do not depend on noise.
        related.sort_by_key(|(at, _)| *at);
        let read = |(entry, compared): (usize, Compared)| {
            if (self.cancelled)() {
                return Err(CatalogError::Cancelled);
            }
            let rest = subject.chunks.get(COARSE..).unwrap_or(&[]);
            let (values, bytes) =
                sample::others(&subject.weights, &compared.weights, &compared.mapping, rest)?;
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            let units = subject.units.get(COARSE..).unwrap_or(&[]);
            let mut scaled = compared.scaled;
            scaled.extend(scale(&values, units));
            let gaps = gaps(&subject.scaled, &scaled);
            let copy = compared.mapping.covered >= 1.0
                && !compared.mapping.more_rows
                && gaps.iter().all(|gap| gap.bits == 0.0);
            Ok(Relative {
                entry,
                summary: summary(&gaps),
                scaled,
                more_rows: compared.mapping.more_rows,
                copy,
            })
        };
        let relatives: Vec<Relative> = related
            .into_par_iter()
            .map(read)
            .collect::<Result<_, _>>()?;
        for relative in &relatives {
            if let Some(score) = scores.get_mut(relative.entry) {
                score.score = Some(relative.summary.score);
                score.bit_distance = Some(relative.summary.bits);
                score.sigmas = Some(relative.summary.sigmas);
            }
        }
        Ok(relatives)
    }

    fn decide(
        &self,
        subject: &Subject,
        entries: &[ModelEntry],
        family: &[Relative],
        scores: &[CandidateScore],
    ) -> BaseFound {
        let mut found = BaseFound {
            model: self.subject.model.clone(),
            base: None,
            outcome: Outcome::None,
            score: None,
            confidence: None,
            bit_distance: None,
            declared: self.subject.base.clone(),
            nearest: None,
            relatives: 0,
            compared: 0,
            bytes_read: 0,
            candidates: Vec::new(),
        };
        let name =
            |relative: &Relative| entries.get(relative.entry).map(|entry| entry.model.clone());
        let take = |found: &mut BaseFound, relative: &Relative, outcome, confidence| {
            found.base = name(relative);
            found.score = Some(relative.summary.score);
            found.bit_distance = Some(relative.summary.bits);
            found.confidence = Some(confidence);
            found.outcome = outcome;
        };
        let others: Vec<usize> = (0..family.len())
            .filter(|at| !is_copy(family, *at))
            .collect();
        found.nearest = others
            .iter()
            .filter_map(|at| family.get(*at))
            .min_by(|a, b| a.summary.bits.total_cmp(&b.summary.bits))
            .and_then(name);
        // What the model says of itself, where the weights agree or have nothing to say.
        if let Some(declared) = self.declared(entries) {
            if let Some(relative) = family.iter().find(|relative| relative.entry == declared) {
                take(&mut found, relative, Outcome::Declared, 1.0);
                return found;
            }
            // An adapter has no weights in common with its base, and those of a base elsewhere are not seen: the word stands. A whole
            // model that has none in common with what it names speaks against it.
            let is_adapter = self.subject.relation.as_deref() == Some("adapter");
            let elsewhere = entries
                .get(declared)
                .is_some_and(|entry| entry.path.is_none());
            let unseen = scores
                .get(declared)
                .is_some_and(|score| score.score.is_none());
            if unseen && (is_adapter || elsewhere) {
                found.base = entries.get(declared).map(|entry| entry.model.clone());
                found.outcome = Outcome::Declared;
                return found;
            }
        }
        if others.is_empty() {
            if let Some(copy) = family.first() {
                take(&mut found, copy, Outcome::Copy, 1.0);
            }
            return found;
        }
        // Relatives that name this model as their base are not its base.
        let (children, others): (Vec<usize>, Vec<usize>) = others.into_iter().partition(|at| {
            let entry = family
                .get(*at)
                .and_then(|relative| entries.get(relative.entry));
            let base = entry.and_then(|entry| entry.base.as_deref());
            base.is_some_and(|base| self.is_called(base))
        });
        if others.is_empty() && !children.is_empty() {
            found.outcome = Outcome::Root;
            return found;
        }
        // Nor are those that name the same base as this model: siblings.
        let is_sibling = |at: &usize| {
            let entry = family
                .get(*at)
                .and_then(|relative| entries.get(relative.entry));
            let base = entry.and_then(|entry| entry.base.as_deref());
            base.is_some() && base == self.subject.base.as_deref()
        };
        if !others.is_empty() && others.iter().all(is_sibling) {
            return found;
        }
        let members: Vec<&Scaled> = family
            .iter()
            .map(|relative| &relative.scaled)
            .chain([&subject.scaled])
            .collect();
        let distances = Family::new(&members);
        let me = family.len();
        if others.len() >= FAMILY_OF_BASE {
            let with_me: Vec<usize> = others.iter().copied().chain([me]).collect();
            if let Some(centre) = distances.plain_centre(&with_me)
                && centre.member == me
                && centre.confidence >= SURE
            {
                found.outcome = Outcome::Root;
                found.confidence = Some(centre.confidence);
                return found;
            }
        }
        let others = others.into_iter().filter(|at| !is_sibling(at)).collect();
        let allowed = possible_bases(family, entries, others);
        if let Some(centre) = distances.centre(&allowed)
            && let Some(relative) = family.get(centre.member)
        {
            take(&mut found, relative, Outcome::Found, centre.confidence);
        }
        found
    }

    fn is_called(&self, name: &str) -> bool {
        let folder = self.subject.path.as_deref().and_then(Path::file_name);
        self.subject.is_called(name) || folder.is_some_and(|folder| *folder == *name)
    }

    /// The entry that the model names as its base.
    fn declared(&self, entries: &[ModelEntry]) -> Option<usize> {
        let name = self.subject.base.as_deref()?;
        entries.iter().position(|entry| entry.is_called(name))
    }
}

fn is_copy(family: &[Relative], at: usize) -> bool {
    family.get(at).is_some_and(|relative| relative.copy)
}

/// The relatives that may be the base: not those that name another of them, nor, where there are others, those with more rows than
/// the model in question: fine-tunes gain tokens and hardly ever lose some.
fn possible_bases(family: &[Relative], entries: &[ModelEntry], others: Vec<usize>) -> Vec<usize> {
    let entry = |at: &usize| {
        family
            .get(*at)
            .and_then(|relative| entries.get(relative.entry))
    };
    let names: HashMap<usize, String> = others
        .iter()
        .filter_map(|at| Some((*at, entry(at)?.base.clone()?)))
        .collect();
    let derived = |at: &usize| {
        names.get(at).is_some_and(|base| {
            others
                .iter()
                .any(|other| other != at && entry(other).is_some_and(|entry| entry.is_called(base)))
        })
    };
    let more_rows = |at: &usize| family.get(*at).is_some_and(|relative| relative.more_rows);
    let narrow = |from: Vec<usize>, out: &dyn Fn(&usize) -> bool| {
        let left: Vec<usize> = from.iter().copied().filter(|at| !out(at)).collect();
        if left.is_empty() { from } else { left }
    };
    let left = narrow(others.clone(), &derived);
    narrow(left, &more_rows)
}

fn scored(entry: &ModelEntry, compared: &Compared) -> CandidateScore {
    let summary = compared.summary;
    let any = summary.chunks > 0;
    CandidateScore {
        model: entry.model.clone(),
        score: any.then_some(summary.score),
        bit_distance: any.then_some(summary.bits),
        sigmas: any.then_some(summary.sigmas),
        covered: compared.mapping.covered,
        related: any && summary.score >= MIN_SCORE && summary.sigmas >= MIN_SIGMAS,
        problem: (!any).then(|| "it has no matrices of the same names and shapes".to_owned()),
    }
}

fn not_compared(entry: &ModelEntry, problem: String) -> CandidateScore {
    CandidateScore {
        model: entry.model.clone(),
        score: None,
        bit_distance: None,
        sigmas: None,
        covered: 0.0,
        related: false,
        problem: Some(problem),
    }
}

/// The path with links resolved, as far as it can be.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a failed step is a failed test"
)]
mod tests {
    use half::{bf16, f16};
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::sample::mix;

    /// Weights of a small transformer: each tensor from noise of its own.
    fn weights(seed: u64, rows: usize) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let shapes = [
            ("model.embed_tokens.weight", vec![rows, 64]),
            ("model.layers.0.mlp.up_proj.weight", vec![256, 64]),
            ("model.layers.0.mlp.down_proj.weight", vec![64, 256]),
            ("model.norm.weight", vec![64]),
        ];
        let mut all = Vec::new();
        for (number, (name, shape)) in shapes.into_iter().enumerate() {
            let count: usize = shape.iter().product();
            let noise = |at: usize| {
                let seed = seed * 7_919 + number as u64;
                let unit = |k: u64| {
                    (mix(seed << 32 | (at as u64 * 4 + k)) >> 40) as f32 / (1_u32 << 24) as f32
                        - 0.5
                };
                (0..4).map(unit).sum::<f32>() * 0.05
            };
            let values = (0..count)
                .map(|at| if shape.len() == 1 { 1.0 } else { noise(at) })
                .collect();
            all.push((name.to_owned(), shape, values));
        }
        all
    }

    /// Moves every weight by noise of `size`.
    fn tuned(
        base: &[(String, Vec<usize>, Vec<f32>)],
        seed: u64,
        size: f32,
    ) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let step = |at: usize| {
            ((mix(seed << 40 | at as u64) >> 40) as f32 / (1_u32 << 24) as f32 - 0.5) * size
        };
        let mut all = base.to_vec();
        for (number, (_, _, values)) in all.iter_mut().enumerate() {
            for (at, value) in values.iter_mut().enumerate() {
                *value += step(number << 24 | at);
            }
        }
        all
    }

    fn save(path: &Path, dtype: Dtype, prefix: &str, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
        std::fs::create_dir_all(path).unwrap();
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, shape, values)| {
                let bytes = values
                    .iter()
                    .flat_map(|x| match dtype {
                        Dtype::BF16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
                        Dtype::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
                        _ => x.to_le_bytes().to_vec(),
                    })
                    .collect();
                (format!("{prefix}{name}"), shape.clone(), bytes)
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        std::fs::write(
            path.join("model.safetensors"),
            safetensors::serialize(views, None).unwrap(),
        )
        .unwrap();
        std::fs::write(path.join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    }

    fn find(model: &Path, catalog: &Path) -> BaseFound {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let search = FindBase::new(
            model.display().to_string(),
            Catalog::Directory(catalog.to_path_buf()),
        );
        runtime
            .block_on(
                search
                    .open_options(sparse_store::OpenOptions::empty())
                    .run(),
            )
            .unwrap()
    }

    #[test]
    fn a_base_is_found_across_dtypes_names_and_rows_and_a_stranger_of_the_same_shape_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = dir.path().join("catalog");
        let base = weights(1, 1000);
        save(&catalog.join("base"), Dtype::BF16, "", &base);
        save(
            &catalog.join("stranger"),
            Dtype::BF16,
            "",
            &weights(2, 1000),
        );
        save(
            &catalog.join("other-stranger"),
            Dtype::F32,
            "",
            &weights(3, 1000),
        );
        let wanted = catalog.join("base").display().to_string();
        let fine_tune = tuned(&base, 5, 0.002);
        for (dtype, prefix) in [
            (Dtype::BF16, ""),
            (Dtype::F32, "base_model.model."),
            (Dtype::F16, "module."),
        ] {
            save(&dir.path().join("ft"), dtype, prefix, &fine_tune);
            let found = find(&dir.path().join("ft"), &catalog);
            assert_eq!(found.base.as_ref(), Some(&wanted), "{found:?}");
            assert_eq!((found.outcome, found.relatives), (Outcome::Found, 1));
            assert!(found.score.unwrap() > 0.4, "{found:?}");
        }
        // Added tokens: the rows both have are compared.
        let mut grown = fine_tune.clone();
        grown[0].1[0] = 1064;
        grown[0].2.extend(vec![0.01; 64 * 64]);
        save(&dir.path().join("ft"), Dtype::BF16, "", &grown);
        assert_eq!(
            find(&dir.path().join("ft"), &catalog).base.as_ref(),
            Some(&wanted)
        );
        // No relative: neither of the same shapes nor of others.
        save(&dir.path().join("ft"), Dtype::BF16, "", &weights(4, 1000));
        let found = find(&dir.path().join("ft"), &catalog);
        assert_eq!(
            (found.base, found.outcome, found.compared),
            (None, Outcome::None, 3)
        );
        assert!(
            found
                .candidates
                .iter()
                .all(|candidate| candidate.score.unwrap().abs() < 0.05)
        );
    }

    #[test]
    fn siblings_copies_children_and_what_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = dir.path().join("catalog");
        let base = weights(1, 500);
        save(&catalog.join("base"), Dtype::BF16, "", &base);
        for (name, seed) in [("a", 11), ("b", 12), ("c", 13)] {
            save(
                &catalog.join(name),
                Dtype::BF16,
                "",
                &tuned(&base, seed, 0.004),
            );
        }
        std::fs::create_dir(catalog.join("broken")).unwrap();
        std::fs::write(catalog.join("broken/model.safetensors"), b"not a model").unwrap();
        let base_path = catalog.join("base").display().to_string();
        // A model of the catalog is not its own base.
        let found = find(&catalog.join("a"), &catalog);
        assert_eq!(found.base.as_ref(), Some(&base_path), "{found:?}");
        assert!(found.confidence.unwrap() > 0.9);
        let broken = found
            .candidates
            .iter()
            .find(|c| c.model.ends_with("broken"))
            .unwrap();
        assert!(
            broken
                .problem
                .as_ref()
                .unwrap()
                .contains("not a valid safetensors"),
            "{broken:?}"
        );
        // The centre of three others is their base.
        assert_eq!(find(&catalog.join("base"), &catalog).outcome, Outcome::Root);
        // Two that say whose fine-tunes they are.
        for name in ["a", "b", "c"] {
            std::fs::write(
                catalog.join(name).join("README.md"),
                "---\nbase_model: base\n---\n",
            )
            .unwrap();
        }
        assert_eq!(find(&catalog.join("base"), &catalog).outcome, Outcome::Root);
        assert_eq!(
            find(&catalog.join("a"), &catalog).outcome,
            Outcome::Declared
        );
        // A model that names one with which it has nothing in common is not believed.
        let stranger = dir.path().join("stranger");
        let tensors = [("x".to_owned(), vec![8, 8], vec![0.5; 64])];
        save(&stranger.join("base"), Dtype::F32, "", &tensors);
        let found = find(&catalog.join("a"), &stranger);
        assert_eq!((found.outcome, found.base), (Outcome::None, None));
        // The same weights elsewhere are no base.
        let copies = dir.path().join("copies");
        save(&copies.join("copy"), Dtype::BF16, "", &base);
        let found = find(&catalog.join("base"), &copies);
        assert_eq!(found.outcome, Outcome::Copy);
        assert_eq!(found.base, Some(copies.join("copy").display().to_string()));
    }
}
