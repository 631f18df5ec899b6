//! One model of a catalog.

use std::path::PathBuf;

use serde::Serialize;

/// Where an entry was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A folder on this machine.
    Directory,
    /// The local cache of the Hub.
    HfCache,
    /// The Hub.
    Hub,
    /// A table.
    Table,
    /// MLflow's model registry.
    Mlflow,
}

impl Source {
    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::HfCache => "hf_cache",
            Self::Hub => "hub",
            Self::Table => "table",
            Self::Mlflow => "mlflow",
        }
    }
}

/// Where a model says what its base is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeclaredIn {
    /// The front matter of its README.
    Readme,
    /// Its `adapter_config.json`.
    AdapterConfig,
    /// `_name_or_path` of its `config.json`: the model it was loaded from.
    Config,
    /// The catalog itself: a table, or a registry's tags.
    Catalog,
}

impl DeclaredIn {
    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Readme => "readme",
            Self::AdapterConfig => "adapter_config",
            Self::Config => "config",
            Self::Catalog => "catalog",
        }
    }
}

/// A model and what it says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelEntry {
    /// The reference that other functions take: a path or a Hub id.
    pub model: String,
    /// The base it names.
    pub base: Option<String>,
    /// How it comes from the base: finetune, adapter, quantized, merge or what else its README says.
    pub relation: Option<String>,
    /// Where the base is named.
    pub declared_in: Option<DeclaredIn>,
    /// Where the entry was found.
    pub source: Source,
    /// The class of the model (`architectures` of `config.json`), or the kind of adapter.
    pub architecture: Option<String>,
    /// `model_type` of `config.json`.
    pub model_type: Option<String>,
    /// The dtype of most parameters, as safetensors names it.
    pub dtype: Option<String>,
    /// Parameters, counted in the safetensors headers.
    pub params: Option<u64>,
    /// Tensors.
    pub tensors: Option<u64>,
    /// Bytes of the weight files.
    pub bytes: Option<u64>,
    /// The commit, for models of the Hub.
    pub revision: Option<String>,
    /// What keeps the model from being used, if anything.
    pub problem: Option<String>,
    /// Where it is on this machine.
    #[serde(skip)]
    pub path: Option<PathBuf>,
}

impl ModelEntry {
    /// An entry of which nothing is known but its reference.
    #[must_use]
    pub fn new(model: impl Into<String>, source: Source) -> Self {
        Self {
            model: model.into(),
            base: None,
            relation: None,
            declared_in: None,
            source,
            architecture: None,
            model_type: None,
            dtype: None,
            params: None,
            tensors: None,
            bytes: None,
            revision: None,
            problem: None,
            path: None,
        }
    }

    /// Whether this is the model that `name` means: the same reference, or the same last part where `name` has only one.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let last = |text: &str| {
            text.trim_end_matches('/')
                .rsplit('/')
                .next()
                .map(str::to_owned)
        };
        self.model == name || (!name.contains('/') && last(&self.model).as_deref() == Some(name))
    }
}
