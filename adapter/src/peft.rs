//! An adapter's folder, opened and checked.

use std::collections::BTreeMap;

use sparse_codec::{Adapter, CodecError, DType, LowRank, Merge, TensorView};
use sparse_store::{Model, OpenOptions, TensorHandle};

use crate::layout::transposed;
use crate::{AdapterConfig, AdapterError, Layout};

/// The file with an adapter's configuration.
pub const CONFIG: &str = "adapter_config.json";
/// The file with its factors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What every key of an adapter begins with.
const PREFIX: &str = "base_model.model.";
/// A configuration this large is not one.
const MAX_CONFIG: u64 = 16 << 20;

/// One adapted module.
#[derive(Clone, Debug)]
pub struct Module {
    /// The module's name in the base model.
    pub name: String,
    /// How its factors lie to its weight.
    pub layout: Layout,
    /// The rank.
    pub rank: u64,
    /// What the product of the factors is multiplied by.
    pub scale: f32,
}

impl Module {
    /// The name of the weight that is adapted.
    #[must_use]
    pub fn tensor(&self) -> String {
        format!("{}.weight", self.name)
    }
}

/// A LoRA adapter in PEFT's layout.
#[derive(Debug)]
pub struct PeftAdapter {
    model: Model,
    config: AdapterConfig,
    /// By the name of the weight.
    modules: BTreeMap<String, Module>,
    /// Weights that replace the base's: key in the adapter by name of the weight.
    saved: BTreeMap<String, String>,
    /// Tensors that belong to no low-rank update and replace no weight.
    beyond: Vec<String>,
}

impl PeftAdapter {
    /// Opens a path, URL or Hub id.
    ///
    /// # Errors
    /// What is no LoRA adapter, or one whose keys, ranks and shapes do not agree.
    pub async fn open(reference: &str, options: &OpenOptions) -> Result<Self, AdapterError> {
        Self::new(Model::open(reference, options).await?)
    }

    /// Checks an adapter that was opened as a model.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn new(model: Model) -> Result<Self, AdapterError> {
        let adapter = model.id().to_owned();
        let unusable = |what: String| AdapterError::Unusable {
            adapter: adapter.clone(),
            what,
        };
        let file = model
            .carried()
            .iter()
            .find(|file| file.name == CONFIG && file.size <= MAX_CONFIG)
            .ok_or_else(|| {
                unusable(
                    "there is no adapter_config.json: give the folder of a PEFT adapter".to_owned(),
                )
            })?;
        let config: AdapterConfig = serde_json::from_slice(&file.read()?)
            .map_err(|error| unusable(format!("adapter_config.json cannot be read: {error}")))?;
        if config.peft_type != "LORA" {
            return Err(unusable(format!(
                "it is of type {}, and only LoRA adapters are updates of low rank: merge it with PEFT and compress the merged \
                 model",
                config.peft_type
            )));
        }
        let (modules, saved, beyond) = modules(&model, &config).map_err(unusable)?;
        Ok(Self {
            model,
            config,
            modules,
            saved,
            beyond,
        })
    }

    /// The adapter as files.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The adapted modules, by the names of their weights.
    pub fn modules(&self) -> impl Iterator<Item = &Module> {
        self.modules.values()
    }

    /// Tensors that replace the base's (`modules_to_save`), by the base's name.
    pub fn saved(&self) -> impl Iterator<Item = (&str, TensorHandle<'_>)> {
        self.saved
            .iter()
            .filter_map(|(name, key)| self.model.tensor(key).map(|tensor| (name.as_str(), tensor)))
    }

    /// The module of a weight: of that name, or of a name that ends with it or that it ends with, where there is just one
    /// (checkpoints differ in the prefix of their names).
    #[must_use]
    pub fn module_of(&self, tensor: &str) -> Option<&Module> {
        named_like(&self.modules, tensor)
    }

    /// The tensor that replaces a tensor of the base, found by its name in the same way.
    #[must_use]
    pub fn saved_for(&self, tensor: &str) -> Option<TensorHandle<'_>> {
        let key = named_like(&self.saved, tensor)?;
        self.model.tensor(key)
    }

    /// Refuses an adapter that is more than low-rank updates of weights (DoRA and others).
    ///
    /// # Errors
    /// Such an adapter, and why.
    pub fn check_mergeable(&self) -> Result<(), AdapterError> {
        let why = self.config.beyond_merging().or_else(|| {
            let part = self.beyond.first()?;
            Some(format!("its tensor {part} is no part of a low-rank update"))
        });
        match why {
            None => Ok(()),
            Some(why) => Err(self.unusable(format!(
                "{why}: merge it with PEFT and compress the merged model"
            ))),
        }
    }

    fn unusable(&self, what: String) -> AdapterError {
        AdapterError::Unusable {
            adapter: self.model.id().to_owned(),
            what,
        }
    }

    /// The prediction of a weight of `shape` (rows by all columns); `rounded`: the update is rounded before it is added, as
    /// PEFT's `safe_merge` does.
    ///
    /// # Errors
    /// A weight of another shape than the module's.
    pub fn prediction(
        &self,
        module: &Module,
        shape: &[u64],
        rounded: bool,
    ) -> Result<LowRank, AdapterError> {
        let factors = self.factors(module, module.layout, shape)?;
        LowRank::adapter(factors.update(module, rounded))
            .map_err(|source| self.refused(module, source))
    }

    /// What merging a module adds to a weight of `dtype` and `shape`, to the bits that PEFT's merge gives; `safe` as its
    /// `safe_merge` does. `layout` is that of the weight, as the base has it.
    ///
    /// # Errors
    /// A weight of another shape than the module's, or of a dtype that no merge is known for; a rank above
    /// [`sparse_codec::MAX_MERGED_RANK`].
    pub fn merge(
        &self,
        module: &Module,
        layout: Layout,
        dtype: Option<DType>,
        shape: &[u64],
        safe: bool,
    ) -> Result<Merge, AdapterError> {
        let factors = self.factors(module, layout, shape)?;
        // PEFT rounds the update of an embedding always.
        let rounded = safe || layout == Layout::Embedding;
        Merge::new(factors.update(module, rounded), dtype, shape)
            .map_err(|source| self.refused(module, source))
    }

    /// Whether a module's factors make an update of `shape` where its weight lies like that.
    ///
    /// # Errors
    /// A factor that is not there.
    pub fn fits(
        &self,
        module: &Module,
        layout: Layout,
        shape: &[u64],
    ) -> Result<bool, AdapterError> {
        let (a, b) = self.stored(module)?;
        Ok(spans(a.shape(), b.shape(), layout) == extent(shape))
    }

    fn refused(&self, module: &Module, source: CodecError) -> AdapterError {
        AdapterError::Codec {
            adapter: self.model.id().to_owned(),
            module: module.name.clone(),
            source,
        }
    }

    /// The two factors of a module, A first.
    fn stored(
        &self,
        module: &Module,
    ) -> Result<(TensorHandle<'_>, TensorHandle<'_>), AdapterError> {
        let factor = |key: &str| {
            self.model
                .tensor(&format!("{PREFIX}{}{key}", module.name))
                .ok_or_else(|| self.unusable(format!("module {} has no {key}", module.name)))
        };
        let [a, b] = module.layout.keys();
        Ok((factor(a)?, factor(b)?))
    }

    /// The factors of a module as they multiply to an update of `shape`.
    fn factors(
        &self,
        module: &Module,
        layout: Layout,
        shape: &[u64],
    ) -> Result<Oriented, AdapterError> {
        let (a, b) = self.stored(module)?;
        let spans = spans(a.shape(), b.shape(), layout);
        if spans != extent(shape) {
            return Err(self.unusable(format!(
                "module {} updates a weight of {:?} by {:?}, and the base's has the shape {shape:?}: it is an adapter of \
                 another model",
                module.name, spans.0, spans.1,
            )));
        }
        Ok(if layout.is_transposed() {
            Oriented {
                left: Factor::flipped(a),
                right: Factor::flipped(b),
            }
        } else {
            Oriented {
                left: Factor::kept(b),
                right: Factor::kept(a),
            }
        })
    }
}

/// Rows and columns of the update that A (`[rank, in]`) and B (`[out, rank]`) make.
fn spans(a: &[u64], b: &[u64], layout: Layout) -> (u64, u64) {
    let inner = a.get(1).copied().unwrap_or(0);
    let outer = b.first().copied().unwrap_or(0);
    if layout.is_transposed() {
        (inner, outer)
    } else {
        (outer, inner)
    }
}

/// Rows and all columns of a shape.
fn extent(shape: &[u64]) -> (u64, u64) {
    let cols = shape
        .iter()
        .skip(1)
        .fold(1_u64, |n, d| n.saturating_mul(*d));
    (shape.first().copied().unwrap_or(0), cols)
}

/// Two factors that multiply to an update.
struct Oriented {
    left: Factor,
    right: Factor,
}

impl Oriented {
    fn update(&self, module: &Module, rounded: bool) -> Adapter<'_> {
        Adapter {
            left: self.left.view(),
            right: self.right.view(),
            scale: module.scale,
            rounded,
        }
    }
}

struct Factor {
    dtype: Option<DType>,
    shape: Vec<u64>,
    data: Vec<u8>,
}

impl Factor {
    fn kept(tensor: TensorHandle<'_>) -> Self {
        Self {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            data: tensor.data().to_vec(),
        }
    }

    fn flipped(tensor: TensorHandle<'_>) -> Self {
        let cols = tensor.shape().get(1).copied().unwrap_or(0);
        let size = tensor.dtype().map_or(1, |dtype| dtype.bits() / 8);
        Self {
            dtype: tensor.dtype(),
            shape: tensor.shape().iter().rev().copied().collect(),
            data: transposed(
                tensor.data(),
                usize::try_from(cols).unwrap_or(0),
                usize::try_from(size).unwrap_or(1),
            ),
        }
    }

    fn view(&self) -> TensorView<'_> {
        TensorView {
            dtype: self.dtype,
            shape: &self.shape,
            data: &self.data,
        }
    }
}

type Parts = (
    BTreeMap<String, Module>,
    BTreeMap<String, String>,
    Vec<String>,
);

/// What has a name, or just one name that ends with it or that it ends with.
fn named_like<'m, T>(all: &'m BTreeMap<String, T>, name: &str) -> Option<&'m T> {
    if let Some(found) = all.get(name) {
        return Some(found);
    }
    let ends = |long: &str, short: &str| {
        long.strip_suffix(short)
            .is_some_and(|rest| rest.ends_with('.'))
    };
    let mut alike = all
        .iter()
        .filter(|(other, _)| ends(other, name) || ends(name, other));
    match (alike.next(), alike.next()) {
        (Some((_, found)), None) => Some(found),
        _ => None,
    }
}

/// The modules of an adapter's tensors, every one of which must be accounted for.
fn modules(model: &Model, config: &AdapterConfig) -> Result<Parts, String> {
    let mut modules = BTreeMap::new();
    let mut saved = BTreeMap::new();
    let mut beyond = Vec::new();
    let tensors: Vec<TensorHandle<'_>> = model.tensors().collect();
    for tensor in &tensors {
        let name = tensor.name();
        let inner = name
            .strip_prefix(PREFIX)
            .ok_or_else(|| format!("tensor {name}: its name does not begin with {PREFIX}"))?;
        let linear = if config.fan_in_fan_out {
            Layout::Transposed
        } else {
            Layout::Linear
        };
        let found = [linear, Layout::Embedding].into_iter().find_map(|layout| {
            let [a, b] = layout.keys();
            if let Some(module) = inner.strip_suffix(a) {
                return Some((module, layout, b, true));
            }
            inner
                .strip_suffix(b)
                .map(|module| (module, layout, a, false))
        });
        let Some((module, layout, other, is_a)) = found else {
            let foreign = [".lora_", ".token_adapter.", ".trainable_tokens"];
            if foreign.iter().any(|part| inner.contains(part)) || inner.starts_with("lora_") {
                beyond.push(name.to_owned());
            } else {
                // The weights and biases of adapted modules are stored one level down.
                saved.insert(inner.replace(".base_layer.", "."), name.to_owned());
            }
            continue;
        };
        let twin = model
            .tensor(&format!("{PREFIX}{module}{other}"))
            .ok_or_else(|| format!("module {module}: {name} has no counterpart {other}"))?;
        if !is_a {
            continue;
        }
        let (&[rank, _], &[_, other_rank]) = (tensor.shape(), twin.shape()) else {
            return Err(format!("module {module}: its factors are no matrices"));
        };
        let expected = config.rank(module)?;
        if rank != other_rank || rank != expected {
            return Err(format!(
                "module {module}: factors of rank {rank} and {other_rank}, and adapter_config.json says {expected}"
            ));
        }
        let module = Module {
            name: module.to_owned(),
            layout,
            rank,
            scale: config.scale(module, rank)?,
        };
        modules.insert(module.tensor(), module);
    }
    if modules.is_empty() && saved.is_empty() {
        return Err("it has no tensors".to_owned());
    }
    Ok((modules, saved, beyond))
}
