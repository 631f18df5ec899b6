//! An adapter's folder, opened and checked.

use std::collections::BTreeMap;

use sparse_codec::{Adapter, LowRank, TensorView};
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
        if config.peft_type != "LORA" || config.use_dora {
            let kind = if config.use_dora {
                "DoRA"
            } else {
                &config.peft_type
            };
            return Err(unusable(format!(
                "it is of type {kind}, and only LoRA adapters are updates of low rank: merge it with PEFT and compress the \
                 merged model"
            )));
        }
        let (modules, saved) = modules(&model, &config).map_err(unusable)?;
        Ok(Self {
            model,
            config,
            modules,
            saved,
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
        if let Some(module) = self.modules.get(tensor) {
            return Some(module);
        }
        let ends = |long: &str, short: &str| {
            long.strip_suffix(short)
                .is_some_and(|rest| rest.ends_with('.'))
        };
        let mut alike = self
            .modules
            .iter()
            .filter(|(name, _)| ends(name, tensor) || ends(tensor, name));
        match (alike.next(), alike.next()) {
            (Some((_, module)), None) => Some(module),
            _ => None,
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
        let factor = |key: &str| {
            self.model
                .tensor(&format!("{PREFIX}{}{key}", module.name))
                .ok_or_else(|| AdapterError::Unusable {
                    adapter: self.model.id().to_owned(),
                    what: format!("module {} has no {key}", module.name),
                })
        };
        let [a, b] = module.layout.keys();
        let (a, b) = (factor(a)?, factor(b)?);
        let flip = |tensor: TensorHandle<'_>| {
            let cols = tensor.shape().get(1).copied().unwrap_or(0);
            let size = tensor.dtype().map_or(1, |dtype| dtype.bits() / 8);
            let data = transposed(
                tensor.data(),
                usize::try_from(cols).unwrap_or(0),
                usize::try_from(size).unwrap_or(1),
            );
            (
                tensor.shape().iter().rev().copied().collect::<Vec<_>>(),
                data,
            )
        };
        let keep = |tensor: TensorHandle<'_>| (tensor.shape().to_vec(), tensor.data().to_vec());
        let (left, right) = if module.layout.is_transposed() {
            (flip(a), flip(b))
        } else {
            (keep(b), keep(a))
        };
        let cols: u64 = shape.iter().skip(1).product();
        if left.0.first() != shape.first() || right.0.get(1) != Some(&cols) {
            return Err(AdapterError::Unusable {
                adapter: self.model.id().to_owned(),
                what: format!(
                    "module {} updates a weight of {:?} by {:?}, and the base's has the shape {shape:?}: it is an adapter of \
                     another model",
                    module.name,
                    left.0.first().unwrap_or(&0),
                    right.0.get(1).unwrap_or(&0),
                ),
            });
        }
        let (left_dtype, right_dtype) = if module.layout.is_transposed() {
            (a.dtype(), b.dtype())
        } else {
            (b.dtype(), a.dtype())
        };
        LowRank::adapter(Adapter {
            left: TensorView {
                dtype: left_dtype,
                shape: &left.0,
                data: &left.1,
            },
            right: TensorView {
                dtype: right_dtype,
                shape: &right.0,
                data: &right.1,
            },
            scale: module.scale,
            rounded,
        })
        .map_err(|source| AdapterError::Codec {
            adapter: self.model.id().to_owned(),
            module: module.name.clone(),
            source,
        })
    }
}

type Parts = (BTreeMap<String, Module>, BTreeMap<String, String>);

/// The modules of an adapter's tensors, every one of which must be accounted for.
fn modules(model: &Model, config: &AdapterConfig) -> Result<Parts, String> {
    let mut modules = BTreeMap::new();
    let mut saved = BTreeMap::new();
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
            if inner.contains(".lora_") || inner.starts_with("lora_") {
                return Err(format!(
                    "tensor {name}: a part of an adapter that this version does not know; merge it with PEFT and compress the \
                     merged model"
                ));
            }
            saved.insert(inner.to_owned(), name.to_owned());
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
    Ok((modules, saved))
}
