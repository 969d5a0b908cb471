//! Settings of direct preference optimisation.

use super::Require;
use serde::{Deserialize, Serialize};

/// Loss on the difference of the two answers' log-ratios (names of TRL's `DPOConfig.loss_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DpoLoss {
    /// `−log σ(β Δ)` (arXiv 2305.18290).
    #[default]
    Sigmoid,
    /// `max(0, 1 − β Δ)` (SLiC, arXiv 2305.10425).
    Hinge,
    /// `(Δ per token − 1 / 2β)²` (arXiv 2310.12036).
    Ipo,
    /// `sigmoid` for labels that are wrong with probability `label_smoothing` (arXiv 2403.00409).
    Robust,
}

/// DPO hyperparameters (names of TRL's `DPOConfig`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct DpoConfig {
    /// How strongly the model is held to the reference, which is the base model.
    pub beta: f64,
    pub loss_type: DpoLoss,
    /// Share of the pairs whose answers are the wrong way round (`loss_type: robust`).
    pub label_smoothing: f64,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self { beta: 0.1, loss_type: DpoLoss::default(), label_smoothing: 0.0 }
    }
}

impl DpoConfig {
    pub(super) fn check(&self, require: &mut Require<'_>) {
        require(
            self.beta > 0.0 && self.beta.is_finite(),
            "dpo.beta",
            format!("must be a positive number, not {}", self.beta),
        );
        require(
            (0.0..0.5).contains(&self.label_smoothing),
            "dpo.label_smoothing",
            format!("must be at least 0 and below 0.5, not {}", self.label_smoothing),
        );
        require(
            self.label_smoothing == 0.0 || self.loss_type == DpoLoss::Robust,
            "dpo.label_smoothing",
            "needs `dpo.loss_type: robust`; the other losses do not know it".into(),
        );
    }
}
