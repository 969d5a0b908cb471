//! How the pods of a GPU configuration run: the part of `CATALOG_FILE` that only Kubernetes reads.

use k8s_openapi::api::core::v1::Toleration;
use serde::Deserialize;
use std::collections::BTreeMap;

/// By the id of the GPU configuration.
pub type Placements = BTreeMap<String, Placement>;

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Placement {
    /// Instead of `TRAINER_IMAGE`.
    pub image: Option<String>,
    /// Requests and limits: `{cpu: "8", memory: 64Gi, nvidia.com/gpu: "1"}`. The processor is requested and not limited.
    pub resources: BTreeMap<String, String>,
    pub node_selector: BTreeMap<String, String>,
    /// As in a pod.
    pub tolerations: Vec<Toleration>,
    pub priority_class: Option<String>,
    pub runtime_class: Option<String>,
    /// Kueue's local queue; without one a Job starts at once.
    pub queue: Option<String>,
    /// Seconds that one attempt may run.
    pub deadline_seconds: Option<u32>,
}

impl Placement {
    /// On any machine, with so much of it.
    #[must_use]
    pub fn of(cpu: Option<&str>, memory: Option<&str>) -> Self {
        let given = [("cpu", cpu), ("memory", memory)];
        let resources = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        Self { resources: resources.collect(), ..Self::default() }
    }

    /// What it leaves out is as in `base`.
    #[must_use]
    pub fn or(self, base: &Self) -> Self {
        let map = |own: BTreeMap<String, String>, base: &BTreeMap<String, String>| {
            if own.is_empty() { base.clone() } else { own }
        };
        Self {
            image: self.image.or_else(|| base.image.clone()),
            resources: map(self.resources, &base.resources),
            node_selector: map(self.node_selector, &base.node_selector),
            tolerations: if self.tolerations.is_empty() { base.tolerations.clone() } else { self.tolerations },
            priority_class: self.priority_class.or_else(|| base.priority_class.clone()),
            runtime_class: self.runtime_class.or_else(|| base.runtime_class.clone()),
            queue: self.queue.or_else(|| base.queue.clone()),
            deadline_seconds: self.deadline_seconds.or(base.deadline_seconds),
        }
    }

    /// Limits: everything but the processor.
    #[must_use]
    pub fn limits(&self) -> BTreeMap<&str, &str> {
        self.requests().into_iter().filter(|(name, _)| *name != "cpu").collect()
    }

    #[must_use]
    pub fn requests(&self) -> BTreeMap<&str, &str> {
        self.resources.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}
