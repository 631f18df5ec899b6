//! `adapter_config.json`, as far as merging needs it.

use std::collections::BTreeMap;

use regex::Regex;
use serde::Deserialize;

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
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, u64>,
    /// Other alphas, likewise.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// The model the adapter was trained on.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
}

fn eight() -> u64 {
    8
}

fn default_alpha() -> f64 {
    8.0
}

impl AdapterConfig {
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
fn matching<'a, T>(
    patterns: &'a BTreeMap<String, T>,
    module: &str,
) -> Result<Option<&'a T>, String> {
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
}
