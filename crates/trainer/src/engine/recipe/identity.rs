//! What is trained, and what a run is named by.

use crate::engine::{Setup, TrainError, data::Corpus, lora, model::CausalLm};
use sha2::{Digest, Sha256};
use wire::config::{LoraConfig, TargetModules, TrainingConfig};

/// Puts the adapter to train on the model: a fresh one, or the one to continue from. Returns what it is like and
/// the names of its targets.
pub(super) fn put_adapter(setup: &Setup, model: &mut dyn CausalLm) -> Result<(LoraConfig, Vec<String>), TrainError> {
    let wanted = &setup.config.lora;
    let Some(dir) = &setup.adapter else {
        return Ok((wanted.clone(), lora::attach(model, wanted, setup.config.training.seed)?));
    };
    let found = lora::load(model, dir)?;
    let TargetModules::Names(targets) = found.target_modules.clone() else {
        return Err(TrainError::internal("a loaded adapter has no list of targets"));
    };
    Ok((LoraConfig { lora_dropout: wanted.lora_dropout, init_from: wanted.init_from.clone(), ..found }, targets))
}

/// Names everything that decides the run's numbers, so that a checkpoint is not continued by another one.
pub(super) fn digest(setup: &Setup, train: &Corpus, eval: Option<&Corpus>) -> Result<String, TrainError> {
    let mut config = setup.config.clone();
    let neutral = TrainingConfig::default();
    config.name = None;
    if config.training.early_stopping_patience == 0 && !config.training.load_best_model_at_end {
        config.training.eval_steps = neutral.training.eval_steps;
    }
    config.training.save_steps = neutral.training.save_steps;
    config.training.save_total_limit = neutral.training.save_total_limit;
    config.training.gradient_checkpointing = neutral.training.gradient_checkpointing;
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&config).unwrap_or_default());
    if let Some(dir) = &setup.adapter {
        let file = dir.join(lora::ADAPTER_FILE);
        hash.update(std::fs::read(&file).map_err(|e| TrainError::io("read", &file, e))?);
    }
    for part in [
        setup.model_name.clone(),
        setup.model_revision.clone(),
        train.digest(),
        eval.map(Corpus::digest).unwrap_or_default(),
    ] {
        hash.update(part);
        hash.update([0]);
    }
    Ok(hex::encode(hash.finalize()))
}
