//! The `lora` section: the names and meanings of PEFT's `LoraConfig`.

use super::Require;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `lora.target_modules`: every linear projection of the decoder blocks, or a list of module names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum TargetModules {
    /// The string `all-linear`.
    Preset(String),
    /// Suffixes of module paths, as in PEFT: `["q_proj", "v_proj"]`.
    Names(Vec<String>),
}

/// PEFT's name for every linear projection except the head.
pub const ALL_LINEAR: &str = "all-linear";

impl Default for TargetModules {
    fn default() -> Self {
        Self::Preset(ALL_LINEAR.into())
    }
}

impl TargetModules {
    /// Whether a module whose last path segment is `name` gets an adapter.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Preset(_) => true,
            Self::Names(names) => names.iter().any(|n| n == name),
        }
    }
}

/// LoRA hyperparameters (PEFT `LoraConfig` names).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct LoraConfig {
    pub r: usize,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    pub target_modules: TargetModules,
    /// Scale by `alpha / sqrt(r)` instead of `alpha / r` (rsLoRA, arXiv 2312.03732).
    pub use_rslora: bool,
    /// Train each output's magnitude apart from its direction (DoRA, arXiv 2402.09353).
    pub use_dora: bool,
    /// Ranks of some modules instead of `r`: a regular expression that matches a module's path or its end → rank.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of some modules instead of `lora_alpha`, named like those of `rank_pattern`.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Continue from this adapter instead of a fresh one; it decides everything here but `lora_dropout`. For a job the
    /// id of an earlier job that trained it, for a run on local files its directory.
    pub init_from: Option<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::default(),
            use_rslora: false,
            use_dora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            init_from: None,
        }
    }
}

impl LoraConfig {
    /// Factor on `B·A·x` of an adapter of rank `r`.
    #[must_use]
    pub fn scale_of(&self, r: usize, alpha: f64) -> f64 {
        #[expect(clippy::as_conversions, reason = "a rank fits in f64 exactly")]
        let r = r as f64;
        alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    pub(super) fn check(&self, require: &mut Require<'_>) {
        match &self.target_modules {
            TargetModules::Preset(p) => require(
                p == ALL_LINEAR,
                "lora.target_modules",
                format!("must be `{ALL_LINEAR}` or a list of module names, not `{p}`"),
            ),
            TargetModules::Names(names) => {
                require(!names.is_empty(), "lora.target_modules", "must name at least one module".into());
            }
        }
        let rank = |r: usize| ((1..=1024).contains(&r), format!("must be between 1 and 1024, not {r}"));
        let alpha = |a: f64| (a > 0.0 && a.is_finite(), format!("must be positive, not {a}"));
        let (ok, message) = rank(self.r);
        require(ok, "lora.r", message);
        let (ok, message) = alpha(self.lora_alpha);
        require(ok, "lora.lora_alpha", message);
        require(
            (0.0..1.0).contains(&self.lora_dropout),
            "lora.lora_dropout",
            format!("must be at least 0 and below 1, not {}", self.lora_dropout),
        );
        for (pattern, r) in &self.rank_pattern {
            let (ok, message) = rank(*r);
            require(ok, &format!("lora.rank_pattern.{pattern}"), message);
        }
        for (pattern, a) in &self.alpha_pattern {
            let (ok, message) = alpha(*a);
            require(ok, &format!("lora.alpha_pattern.{pattern}"), message);
        }
    }
}
