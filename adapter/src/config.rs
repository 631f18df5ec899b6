//! `adapter_config.json`, as far as merging needs it.

use regex::Regex;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// The fields of PEFT's `LoraConfig` that decide what a merge does.
#[derive(Clone, Debug, Deserialize)]
pub struct AdapterConfig {
    /// "LORA"; nothing else is read.
    pub peft_type: String,
    /// The rank of modules without a pattern.
    #[serde(default = "eight")]
    pub r: u64,
    /// The numerator of the scale.
    #[serde(default = "default_alpha")]
    pub lora_alpha: f64,
    /// The scale is alpha over the root of the rank, not over the rank.
    #[serde(default)]
    pub use_rslora: bool,
    /// Weights are stored `[in, out]`, as GPT-2's are.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Weight-decomposed adaptation, which is no low-rank update.
    #[serde(default)]
    pub use_dora: bool,
    /// Other ranks, by the end of a module's name (a regular expression).
    #[serde(default, deserialize_with = "in_order")]
    pub rank_pattern: Vec<(String, u64)>,
    /// Other alphas, likewise.
    #[serde(default, deserialize_with = "in_order")]
    pub alpha_pattern: Vec<(String, f64)>,
    /// The model the adapter was trained on.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Every other field.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// Fields whose presence (not null, not false, not empty) makes an adapter more than low-rank updates of weights.
const BEYOND: [&str; 11] = [
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "use_qalora",
    "use_bdlora",
    "target_parameters",
    "trainable_token_indices",
];
/// Values of `init_lora_weights` (or how they begin) by which training changed the base's weights too.
const CHANGED_BASES: [&str; 6] = ["pissa", "corda", "olora", "loftq", "lora_ga", "mica"];

/// The first of equal patterns counts, so their order is kept.
fn in_order<'de, D, T>(deserializer: D) -> Result<Vec<(String, T)>, D::Error>
where
    D: Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    use serde::de::Error as _;
    let map = Option::<Map<String, Value>>::deserialize(deserializer)?.unwrap_or_default();
    map.into_iter()
        .map(|(key, value)| {
            Ok((
                key,
                serde_json::from_value(value).map_err(D::Error::custom)?,
            ))
        })
        .collect()
}

fn eight() -> u64 {
    8
}

fn default_alpha() -> f64 {
    8.0
}

impl AdapterConfig {
    /// Why adding the updates to the base's weights is not what PEFT's merge does; nothing where it is.
    #[must_use]
    pub fn beyond_merging(&self) -> Option<String> {
        if self.use_dora {
            return Some(
                "it is a DoRA adapter, which rescales whole rows of the weights".to_owned(),
            );
        }
        let is_set = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(all) => !all.is_empty(),
            Value::Object(all) => !all.is_empty(),
            _ => true,
        };
        if let Some(field) = BEYOND
            .iter()
            .find(|f| self.others.get(**f).is_some_and(is_set))
        {
            return Some(format!("its configuration sets {field}"));
        }
        let init = self
            .others
            .get("init_lora_weights")
            .and_then(Value::as_str)?;
        let changed = CHANGED_BASES
            .iter()
            .any(|name| init.to_lowercase().starts_with(name));
        changed.then(|| {
            format!("its initialisation ({init}) changed the base's weights, so it does not belong to the base as published")
        })
    }

    /// The rank that the configuration gives a module.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn rank(&self, module: &str) -> Result<u64, String> {
        Ok(matching(&self.rank_pattern, module)?
            .copied()
            .unwrap_or(self.r))
    }

    /// The factor of a module's update, as PEFT computes it and torch then uses it, in `f32`.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn scale(&self, module: &str, rank: u64) -> Result<f32, String> {
        let alpha = matching(&self.alpha_pattern, module)?
            .copied()
            .unwrap_or(self.lora_alpha);
        let rank = rank.max(1) as f64;
        let scale = if self.use_rslora {
            alpha / rank.sqrt()
        } else {
            alpha / rank
        };
        Ok(narrow(scale))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "to the nearest f32")]
fn narrow(x: f64) -> f32 {
    x as f32
}

/// The first pattern that matches the end of a module's name, as PEFT's `get_pattern_key` does.
fn matching<'a, T>(patterns: &'a [(String, T)], module: &str) -> Result<Option<&'a T>, String> {
    for (pattern, value) in patterns {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
            .map_err(|error| format!("the pattern {pattern:?} cannot be read: {error}"))?;
        if regex.is_match(module) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]
    use super::*;

    #[test]
    fn patterns_give_rank_and_scale() {
        let config: AdapterConfig = serde_json::from_str(
            r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4, "layers\\.1\\..*\\.k_proj": 2},
                "alpha_pattern": {"q_proj": 2}, "use_rslora": true}"#,
        )
        .unwrap();
        assert_eq!(config.beyond_merging(), None);
        assert_eq!(config.rank("model.layers.0.self_attn.q_proj").unwrap(), 4);
        assert_eq!(config.rank("model.layers.0.self_attn.k_proj").unwrap(), 8);
        assert_eq!(config.rank("model.layers.1.self_attn.k_proj").unwrap(), 2);
        assert_eq!(
            config.rank("model.layers.1.self_attn.my_q_proj").unwrap(),
            8
        );
        assert!((config.scale("a.q_proj", 4).unwrap() - 1.0).abs() < 1e-7);
        assert!((config.scale("a.v_proj", 4).unwrap() - 8.0).abs() < 1e-7);
    }

    /// As PEFT goes through them: the first that matches, whatever the names' order.
    #[test]
    fn the_first_pattern_counts() {
        let config: AdapterConfig = serde_json::from_str(
            r#"{"peft_type": "LORA", "rank_pattern": {"z\\.q": 3, "q": 5}, "alpha_pattern": null}"#,
        )
        .unwrap();
        assert_eq!(config.rank("z.q").unwrap(), 3);
        assert_eq!(config.rank("y.q").unwrap(), 5);
    }

    #[test]
    fn what_no_merge_adds_is_named() {
        for (field, needle) in [
            (r#""use_dora": true"#, "DoRA"),
            (r#""lora_bias": true"#, "lora_bias"),
            (r#""layer_replication": [[0, 2]]"#, "layer_replication"),
            (r#""init_lora_weights": "pissa_niter_4""#, "pissa_niter_4"),
        ] {
            let config = format!(r#"{{"peft_type": "LORA", {field}}}"#);
            let config: AdapterConfig = serde_json::from_str(&config).unwrap();
            let why = config.beyond_merging().unwrap();
            assert!(why.contains(needle), "{why}");
        }
        let plain = r#"{"peft_type": "LORA", "lora_bias": false, "layer_replication": null, "init_lora_weights": true}"#;
        let config: AdapterConfig = serde_json::from_str(plain).unwrap();
        assert_eq!(config.beyond_merging(), None);
    }
}
