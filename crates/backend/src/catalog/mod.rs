//! Presets and GPU configurations: the ones built in, or those of the file that `CATALOG_FILE` names.

use crate::{jobs::launcher::kubernetes::placement::Placements, packages::check::parse};
use serde::Deserialize;
use service::{Env, EnvError};
use std::{collections::BTreeSet, path::PathBuf};
use wire::{
    catalog::{GpuConfig, Preset},
    model::is_valid_name,
};

const VARIABLE: &str = "CATALOG_FILE";
const BUILT_IN: &str = include_str!("built_in.yaml");

/// What there is to choose from. A list the file leaves out is the built-in one.
#[derive(Debug, Clone)]
pub struct Catalog {
    pub presets: Vec<Preset>,
    pub gpu_configs: Vec<GpuConfig>,
    /// How jobs with a GPU configuration run in Kubernetes.
    pub placements: Placements,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    presets: Option<Vec<Preset>>,
    gpu_configs: Option<Vec<GpuConfig>>,
    #[serde(default)]
    placements: Placements,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error("{VARIABLE}: {0}")]
    Content(String),
}

impl Catalog {
    pub fn from_env(env: &Env) -> Result<Self, CatalogError> {
        let built_in = Self::read(BUILT_IN, None)?;
        let Some(path) = env.get(VARIABLE).map(PathBuf::from) else { return Ok(built_in) };
        let text =
            std::fs::read_to_string(&path).map_err(|source| EnvError::File { name: VARIABLE.into(), path, source })?;
        Self::read(&text, Some(built_in))
    }

    /// `rest` has what the text leaves out.
    fn read(text: &str, rest: Option<Self>) -> Result<Self, CatalogError> {
        let file: File = serde_yaml_ng::from_str(text).map_err(|e| CatalogError::Content(e.to_string()))?;
        let (presets, gpu_configs) = rest.map(|r| (r.presets, r.gpu_configs)).unwrap_or_default();
        let (presets, gpu_configs) = (file.presets.unwrap_or(presets), file.gpu_configs.unwrap_or(gpu_configs));
        let catalog = Self { presets, gpu_configs, placements: file.placements };
        catalog.check().map_err(CatalogError::Content)?;
        Ok(catalog)
    }

    fn check(&self) -> Result<(), String> {
        check_ids("preset", self.presets.iter().map(|p| p.id.as_str()))?;
        check_ids("GPU configuration", self.gpu_configs.iter().map(|g| g.id.as_str()))?;
        for preset in &self.presets {
            parse(&preset.config).map_err(|problem| format!("preset `{}`: {}", preset.id, problem.detail))?;
        }
        for gpu in &self.gpu_configs {
            // What numeric(10, 4) holds.
            if !(0.0..1_000_000.0).contains(&gpu.price_per_hour) {
                return Err(format!("GPU configuration `{}`: price_per_hour is {}", gpu.id, gpu.price_per_hour));
            }
        }
        match self.placements.keys().find(|id| self.gpu_config(id).is_none()) {
            Some(id) => Err(format!("there is a placement for `{id}`, which is no GPU configuration")),
            None => Ok(()),
        }
    }

    #[must_use]
    pub fn gpu_config(&self, id: &str) -> Option<&GpuConfig> {
        self.gpu_configs.iter().find(|g| g.id == id)
    }
}

fn check_ids<'a>(what: &str, ids: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !is_valid_name(id) {
            return Err(format!("the id `{id}` of a {what} may have letters, digits, `.`, `_` and `-` only"));
        }
        if !seen.insert(id) {
            return Err(format!("there are two {what}s with the id `{id}`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Catalog, String> {
        Catalog::read(text, Some(Catalog::read(BUILT_IN, None).unwrap())).map_err(|e| e.to_string())
    }

    #[test]
    fn the_built_in_lists_are_valid_and_a_file_replaces_one_at_a_time() {
        let built_in = Catalog::from_env(&Env::default()).unwrap();
        assert!(built_in.presets.len() >= 3 && built_in.gpu_configs.len() >= 3);
        assert_eq!(built_in.gpu_config("local").map(|g| g.price_per_hour), Some(0.0));
        let own =
            "gpu_configs: [{id: mine, name: Mine, gpu_count: 0, memory_gb: 8, price_per_hour: 0.25, currency: EUR}]";
        let changed = read(own).unwrap();
        assert_eq!(changed.presets, built_in.presets);
        assert_eq!(changed.gpu_configs.len(), 1);
        assert!(changed.gpu_config("local").is_none());
    }

    #[test]
    fn a_wrong_file_is_refused_with_the_place() {
        let gpu = |id: &str, price: &str| {
            format!("{{id: {id}, name: x, gpu_count: 1, memory_gb: 8, price_per_hour: {price}, currency: USD}}")
        };
        assert_eq!(
            read(&format!("gpu_configs: [{}, {}]", gpu("a", "1"), gpu("a", "1"))).unwrap_err(),
            "CATALOG_FILE: there are two GPU configurations with the id `a`"
        );
        assert_eq!(
            read(&format!("gpu_configs: [{}]", gpu("a", "-1"))).unwrap_err(),
            "CATALOG_FILE: GPU configuration `a`: price_per_hour is -1"
        );
        assert_eq!(
            read("presets: [{id: p, name: P, description: d, config: {training: {learning_rat: 1}}}]").unwrap_err(),
            "CATALOG_FILE: preset `p`: training configuration: training.learning_rat: is not a configuration key (did you mean `training.learning_rate`?)"
        );
        assert_eq!(
            read("placements: {a101: {queue: all}}").unwrap_err(),
            "CATALOG_FILE: there is a placement for `a101`, which is no GPU configuration"
        );
        assert!(read("preset: []").unwrap_err().contains("unknown field `preset`"));
        let missing: Env = [("CATALOG_FILE", "/nowhere/catalog.yaml")].into_iter().collect();
        let error = Catalog::from_env(&missing).unwrap_err().to_string();
        assert_eq!(error, "cannot read the file /nowhere/catalog.yaml that CATALOG_FILE names");
    }
}
