//! Methods and hyperparameters: what may be asked for, and what it means for a training configuration.
//!
//! `docs/API-openai.md` has the table; change both.

use crate::openai::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wire::{
    TrainingConfig,
    config::{DpoConfig, Method as Recipe, TrainingParams},
};

/// Learning rates a `learning_rate_multiplier` of 1 stands for.
const SUPERVISED_RATE: f64 = 2e-4;
const DPO_RATE: f64 = 2e-5;
/// `n_epochs: auto` is this …
const USUAL_EPOCHS: u64 = 3;
/// … but more of few rows, and fewer of many.
const FEWEST_ROWS_SEEN: u64 = 100;
const MOST_ROWS_SEEN: u64 = 25_000;
const MOST_AUTO_EPOCHS: u64 = 25;
/// `batch_size: auto` is 0.2 % of the rows, within these.
const AUTO_BATCH: std::ops::RangeInclusive<u64> = 4..=256;
/// Rows in memory at once; larger batches are accumulated.
const LARGEST_MICRO_BATCH: u64 = 8;
/// Longer rows are cut.
const LONGEST_ROW: u64 = 4096;
/// Checkpoints that are kept, and the most steps between two of them.
const CHECKPOINTS: usize = 3;
const CHECKPOINT_EVERY: u64 = 50;

/// `"auto"`, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, utoipa::ToSchema)]
#[serde(untagged, expecting = "must be 'auto' or a number")]
enum Wish<T> {
    Auto(Auto),
    Number(T),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
enum Auto {
    Auto,
}

impl<T> Wish<T> {
    fn number(self) -> Option<T> {
        match self {
            Self::Auto(Auto::Auto) => None,
            Self::Number(number) => Some(number),
        }
    }
}

/// `hyperparameters` of a request.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, utoipa::ToSchema)]
#[schema(as = FineTuningHyperparametersWish)]
#[serde(deny_unknown_fields)]
pub struct HyperparametersWish {
    n_epochs: Option<Wish<u64>>,
    batch_size: Option<Wish<u64>>,
    learning_rate_multiplier: Option<Wish<f64>>,
    beta: Option<Wish<f64>>,
}

/// `method` of a request.
#[derive(Debug, Clone, PartialEq, Deserialize, utoipa::ToSchema)]
#[schema(as = FineTuningMethodWish)]
#[serde(deny_unknown_fields)]
pub struct MethodWish {
    #[serde(rename = "type")]
    #[schema(pattern = "^(supervised|dpo)$")]
    kind: String,
    supervised: Option<BodyWish>,
    dpo: Option<BodyWish>,
    reinforcement: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, utoipa::ToSchema)]
#[schema(as = FineTuningMethodBodyWish)]
#[serde(deny_unknown_fields)]
struct BodyWish {
    hyperparameters: Option<HyperparametersWish>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = FineTuningMethodType)]
pub enum Kind {
    Supervised,
    Dpo,
}

/// Hyperparameters with every `auto` resolved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = FineTuningHyperparameters)]
pub struct Hyperparameters {
    pub n_epochs: u64,
    /// Rows (or pairs) per optimizer step.
    pub batch_size: u64,
    pub learning_rate_multiplier: f64,
    /// DPO only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = FineTuningMethodBody)]
pub struct MethodBody {
    pub hyperparameters: Hyperparameters,
}

/// The method of a job.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = FineTuningMethod)]
pub struct Method {
    #[serde(rename = "type")]
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervised: Option<MethodBody>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpo: Option<MethodBody>,
}

/// A method that is served, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    kind: Kind,
    wish: HyperparametersWish,
    /// Where the hyperparameters stood.
    path: &'static str,
}

/// What is asked for by `method`, or by the older `hyperparameters` of the job.
pub fn plan(method: Option<MethodWish>, older: Option<HyperparametersWish>) -> Result<Plan> {
    const OLDER: &str = "hyperparameters";
    let Some(method) = method else {
        return Ok(Plan { kind: Kind::Supervised, wish: older.unwrap_or_default(), path: OLDER });
    };
    let refuse = |param: &str, code: &'static str, message: String| Err(Error::invalid(param, code, message));
    let (kind, body, other, path) = match method.kind.as_str() {
        "supervised" => (Kind::Supervised, method.supervised, method.dpo, "method.supervised.hyperparameters"),
        "dpo" => (Kind::Dpo, method.dpo, method.supervised, "method.dpo.hyperparameters"),
        "reinforcement" => {
            let message = "reinforcement fine-tuning is not served here; use 'supervised' or 'dpo'";
            return refuse("method.type", "unsupported_value", message.into());
        }
        unknown => {
            let message = format!("'{unknown}' is not a method; use 'supervised' or 'dpo'");
            return refuse("method.type", "invalid_value", message);
        }
    };
    if other.is_some() || method.reinforcement.is_some() {
        let message = format!("method has settings of another method than its type, '{}'", method.kind);
        return refuse("method", "invalid_value", message);
    }
    match (body.and_then(|b| b.hyperparameters), older) {
        (Some(wish), _) => Ok(Plan { kind, wish, path }),
        (None, older) => Ok(Plan { kind, wish: older.unwrap_or_default(), path: OLDER }),
    }
}

impl Plan {
    /// Resolves every `auto` for a file of `rows` rows.
    pub fn resolve(self, rows: u64) -> Result<Method> {
        let wish = self.wish;
        if wish.beta.is_some() && self.kind == Kind::Supervised {
            return Err(self.refuse("beta", "belongs to the method 'dpo'".into()));
        }
        let n_epochs = match wish.n_epochs.and_then(Wish::number) {
            Some(n) if (1..=10_000).contains(&n) => n,
            Some(n) => return Err(self.refuse("n_epochs", format!("must be between 1 and 10000, not {n}"))),
            None => auto_epochs(rows),
        };
        let batch_size = match wish.batch_size.and_then(Wish::number) {
            Some(n) if (1..=4096).contains(&n) => n,
            Some(n) => return Err(self.refuse("batch_size", format!("must be between 1 and 4096, not {n}"))),
            None => (rows / 500).clamp(*AUTO_BATCH.start(), *AUTO_BATCH.end()).min(rows.max(1)),
        };
        let multiplier = self.positive("learning_rate_multiplier", wish.learning_rate_multiplier, 1.0)?;
        let beta = match self.kind {
            Kind::Supervised => None,
            Kind::Dpo => Some(self.positive("beta", wish.beta, DpoConfig::default().beta)?),
        };
        let hyperparameters = Hyperparameters { n_epochs, batch_size, learning_rate_multiplier: multiplier, beta };
        let body = |kind| (kind == self.kind).then_some(MethodBody { hyperparameters });
        Ok(Method { kind: self.kind, supervised: body(Kind::Supervised), dpo: body(Kind::Dpo) })
    }

    fn positive(self, name: &str, wish: Option<Wish<f64>>, auto: f64) -> Result<f64> {
        match wish.and_then(Wish::number) {
            None => Ok(auto),
            Some(value) if value > 0.0 && value <= 1000.0 => Ok(value),
            Some(value) => Err(self.refuse(name, format!("must be above 0 and at most 1000, not {value}"))),
        }
    }

    fn refuse(self, name: &str, why: String) -> Error {
        Error::invalid(&format!("{}.{name}", self.path), "invalid_value", format!("{name} {why}"))
    }
}

/// The rule of OpenAI's cookbook: three epochs, but at least 100 and at most 25000 rows seen.
fn auto_epochs(rows: u64) -> u64 {
    let rows = rows.max(1);
    let seen = rows.saturating_mul(USUAL_EPOCHS);
    if seen < FEWEST_ROWS_SEEN {
        (FEWEST_ROWS_SEEN / rows).min(MOST_AUTO_EPOCHS)
    } else if seen > MOST_ROWS_SEEN {
        (MOST_ROWS_SEEN / rows).max(1)
    } else {
        USUAL_EPOCHS
    }
}

impl Method {
    #[must_use]
    pub fn hyperparameters(&self) -> Option<Hyperparameters> {
        self.supervised.or(self.dpo).map(|body| body.hyperparameters)
    }

    /// Writes the method into `config`, for `rows` rows and a model that reads `context` tokens.
    pub fn apply(&self, config: &mut TrainingConfig, rows: u64, context: u64) {
        let Some(chosen) = self.hyperparameters() else { return };
        let rate = match self.kind {
            Kind::Supervised => SUPERVISED_RATE,
            Kind::Dpo => DPO_RATE,
        };
        config.method = match self.kind {
            Kind::Supervised => Recipe::Sft,
            Kind::Dpo => Recipe::Dpo,
        };
        if let Some(beta) = chosen.beta {
            config.dpo = DpoConfig { beta, ..DpoConfig::default() };
        }
        let micro = (1..=LARGEST_MICRO_BATCH).rev().find(|n| chosen.batch_size % n == 0).unwrap_or(1);
        let steps = rows.div_ceil(chosen.batch_size.max(1)).clamp(1, CHECKPOINT_EVERY);
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        config.training = TrainingParams {
            num_train_epochs: f64::from(u32::try_from(chosen.n_epochs).unwrap_or(u32::MAX)),
            per_device_train_batch_size: size(micro),
            gradient_accumulation_steps: size(chosen.batch_size / micro),
            learning_rate: rate * chosen.learning_rate_multiplier,
            max_seq_length: size(context.min(LONGEST_ROW)),
            eval_steps: steps,
            save_steps: steps,
            save_total_limit: CHECKPOINTS,
            // Rows are held out only when a file of them is given.
            val_set_size: 0.0,
            ..config.training.clone()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(method: Value, rows: u64) -> std::result::Result<Hyperparameters, String> {
        let method: MethodWish = serde_json::from_value(method).map_err(|e| e.to_string())?;
        let method = plan(Some(method), None).and_then(|p| p.resolve(rows)).map_err(|e| e.to_string())?;
        Ok(method.hyperparameters().unwrap())
    }

    #[test]
    fn auto_follows_the_number_of_rows() {
        let auto = |rows| {
            let h = asked(json!({"type": "supervised"}), rows).unwrap();
            (h.n_epochs, h.batch_size)
        };
        assert_eq!(auto(1), (25, 1));
        assert_eq!(auto(10), (10, 4));
        assert_eq!(auto(64), (3, 4));
        assert_eq!(auto(5_000), (3, 10));
        assert_eq!(auto(10_000), (2, 20));
        assert_eq!(auto(1_000_000), (1, 256));
    }

    #[test]
    fn what_is_given_counts_and_beta_is_for_dpo() {
        let given = json!({"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5, "beta": 0.3});
        let dpo = asked(json!({"type": "dpo", "dpo": {"hyperparameters": given}}), 10).unwrap();
        let wanted = Hyperparameters { n_epochs: 2, batch_size: 4, learning_rate_multiplier: 0.5, beta: Some(0.3) };
        assert_eq!(dpo, wanted);
        let refused = |method| asked(method, 10).unwrap_err();
        assert_eq!(
            refused(json!({"type": "supervised", "supervised": {"hyperparameters": {"beta": 1}}})),
            "beta belongs to the method 'dpo'"
        );
        assert_eq!(
            refused(json!({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}})),
            "n_epochs must be between 1 and 10000, not 0"
        );
        assert!(refused(json!({"type": "reinforcement", "reinforcement": {}})).contains("not served"));
        assert!(refused(json!({"type": "supervised", "dpo": {}})).contains("another method"));
    }

    #[test]
    fn a_batch_is_accumulated_from_what_fits() {
        let params = |batch| {
            let method =
                asked(json!({"type": "supervised", "supervised": {"hyperparameters": {"batch_size": batch}}}), 640);
            let body = MethodBody { hyperparameters: method.unwrap() };
            let mut config = TrainingConfig::default();
            Method { kind: Kind::Supervised, supervised: Some(body), dpo: None }.apply(&mut config, 640, 8192);
            let t = config.training;
            (t.per_device_train_batch_size, t.gradient_accumulation_steps, t.save_steps, t.max_seq_length)
        };
        assert_eq!(params(4), (4, 1, 50, 4096));
        assert_eq!(params(48), (8, 6, 14, 4096));
        assert_eq!(params(7), (7, 1, 50, 4096));
        assert_eq!(params(11), (1, 11, 50, 4096));
    }
}
