//! Trainable tensors and their gradients, by name and always in name order: every loop over them is
//! deterministic, unlike one over candle's `VarMap`.

use super::TrainError;
use candle_core::{Tensor, Var, backprop::GradStore};
use std::collections::BTreeMap;

/// Every trainable tensor of a run.
#[derive(Debug, Clone, Default)]
pub struct Params(BTreeMap<String, Var>);

impl Params {
    pub fn insert(&mut self, name: impl Into<String>, var: Var) {
        self.0.insert(name.into(), var);
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.0.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of trainable elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.0.values().map(|v| u64::try_from(v.elem_count()).unwrap_or(u64::MAX)).sum()
    }
}

/// Gradients summed over the micro-batches of one step.
#[derive(Debug, Clone, Default)]
pub struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    /// Takes every parameter's gradient out of `store`, adding to what is there.
    ///
    /// # Errors
    /// Tensor errors only.
    pub fn collect(&mut self, params: &Params, store: &mut GradStore) -> Result<(), TrainError> {
        for (name, var) in params.iter() {
            let Some(grad) = store.remove(var) else { continue };
            match self.0.get_mut(name) {
                Some(sum) => *sum = (&*sum + &grad)?,
                None => {
                    self.0.insert(name.to_owned(), grad);
                }
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(n, g)| (n.as_str(), g))
    }

    /// Names of `params` that got no gradient.
    #[must_use]
    pub fn missing<'a>(&self, params: &'a Params) -> Vec<&'a str> {
        params.iter().map(|(n, _)| n).filter(|n| !self.0.contains_key(*n)).collect()
    }
}
