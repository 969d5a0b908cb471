//! Settings of `TRAINING_MODE=kubernetes`.

use super::placement::{Placement, Placements};
use secrecy::SecretString;
use service::{Env, EnvError};
use std::{collections::BTreeMap, num::NonZeroU32, path::PathBuf, time::Duration};

/// What a pod inherits of this process's environment, besides `OTEL_*`.
const INHERITED: [&str; 5] = ["RUST_LOG", "RUST_BACKTRACE", "LOG_FORMAT", "HONE_DEVICE", "HONE_THREADS"];
const INHERITED_PREFIX: &str = "OTEL_";
/// May hold credentials, and a pod's environment is no secret.
const NOT_INHERITED: &str = "OTEL_EXPORTER_OTLP_HEADERS";

#[derive(Debug, Clone)]
pub struct KubernetesConfig {
    /// Outside a cluster; the pod's service account when absent.
    pub kubeconfig: Option<PathBuf>,
    /// That of the service account or of the kubeconfig's context when absent.
    pub namespace: Option<String>,
    /// Tells apart several Hones in one namespace.
    pub instance: String,
    pub image: String,
    pub pull_policy: Option<String>,
    pub pull_secrets: Vec<String>,
    pub service_account: Option<String>,
    /// Numeric user that trainers run as.
    pub run_as: u32,
    /// For jobs whose GPU configuration has no placement of its own.
    pub base: Placement,
    /// Resource that stands for a GPU.
    pub gpu_resource: String,
    /// Size of the scratch directory.
    pub scratch: Option<String>,
    /// From the end of a Job to its removal.
    pub ttl: u32,
    /// From SIGTERM to SIGKILL.
    pub grace: NonZeroU32,
    /// How long a pod may wait for a machine and its image.
    pub start: Duration,
    /// How long its image may fail to be pulled.
    pub pull: Duration,
    /// Between two full lists.
    pub resync: Duration,
    pub inherited: BTreeMap<String, String>,
    /// A trainer service that rehearses jobs: its URL and its token.
    pub rehearsals: Option<(String, Option<SecretString>)>,
}

impl KubernetesConfig {
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let text = |value: Option<&str>| value.map(str::to_owned);
        let seconds = |value: Option<u32>, default: u32| Duration::from_secs(value.unwrap_or(default).into());
        let image =
            env.required("TRAINER_IMAGE", "give the image of hone-trainer, such as ghcr.io/hone-ml/hone-trainer:TAG")?;
        let instance = env.get("KUBE_INSTANCE").unwrap_or("hone");
        if !is_label(instance) {
            let reason = "it must be the value of a label: at most 63 letters, digits, `-`, `_` and `.`";
            return Err(EnvError::Invalid {
                name: "KUBE_INSTANCE".into(),
                value: instance.into(),
                reason: reason.into(),
            });
        }
        let allowed =
            |name: &str| INHERITED.contains(&name) || name.starts_with(INHERITED_PREFIX) && name != NOT_INHERITED;
        let secrets = env.get("KUBE_IMAGE_PULL_SECRETS").unwrap_or_default().split(',').map(str::trim);
        let service = env.get("TRAINER_SERVICE_URL").map(|url| url.trim_end_matches('/').to_owned());
        let token = env.secret("TRAINER_SERVICE_TOKEN")?;
        Ok(Self {
            kubeconfig: env.get("KUBECONFIG").map(PathBuf::from),
            namespace: text(env.get("KUBE_NAMESPACE")),
            instance: instance.to_owned(),
            image: image.to_owned(),
            pull_policy: text(env.get("KUBE_IMAGE_PULL_POLICY")),
            pull_secrets: secrets.filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            service_account: text(env.get("KUBE_TRAINER_SERVICE_ACCOUNT")),
            run_as: env.parse_or("KUBE_RUN_AS_USER", 65532)?,
            base: Placement {
                queue: text(env.get("KUBE_QUEUE")),
                priority_class: text(env.get("KUBE_PRIORITY_CLASS")),
                deadline_seconds: env.parse("KUBE_DEADLINE_SECONDS")?,
                ..Placement::of(env.get("KUBE_CPU"), env.get("KUBE_MEMORY"))
            },
            gpu_resource: env.get("KUBE_GPU_RESOURCE").unwrap_or("nvidia.com/gpu").to_owned(),
            scratch: text(env.get("KUBE_SCRATCH")),
            ttl: env.parse_or("KUBE_TTL_SECONDS", 3600)?,
            grace: env.parse_or("KUBE_GRACE_SECONDS", NonZeroU32::new(30).unwrap_or(NonZeroU32::MIN))?,
            start: seconds(env.parse("KUBE_START_SECONDS")?, 1800),
            pull: seconds(env.parse("KUBE_PULL_SECONDS")?, 60),
            resync: seconds(env.parse::<NonZeroU32>("KUBE_RESYNC_SECONDS")?.map(NonZeroU32::get), 30),
            inherited: env
                .iter()
                .filter(|(name, _)| allowed(name))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            rehearsals: service.map(|url| (url, token)),
        })
    }

    /// How a job with this GPU configuration runs.
    #[must_use]
    pub fn placement(&self, placements: &Placements, gpu: Option<&wire::catalog::GpuConfig>) -> Placement {
        let mut placement = match gpu.and_then(|gpu| placements.get(&gpu.id)) {
            Some(own) => own.clone().or(&self.base),
            None => self.base.clone(),
        };
        if let Some(gpu) = gpu.filter(|gpu| gpu.gpu_count > 0) {
            placement.resources.entry(self.gpu_resource.clone()).or_insert_with(|| gpu.gpu_count.to_string());
        }
        placement
    }
}

fn is_label(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    text.len() <= 63 && inner && edge(text.chars().next()) && edge(text.chars().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &[(&str, &str)]) -> Result<KubernetesConfig, String> {
        let env: Env = [("TRAINER_IMAGE", "hone-trainer:1")].iter().chain(changes).copied().collect();
        KubernetesConfig::from_env(&env).map_err(|e| e.to_string())
    }

    fn gpu(id: &str, gpu_count: u32) -> wire::catalog::GpuConfig {
        let (name, currency) = (id.to_owned(), "USD".to_owned());
        wire::catalog::GpuConfig {
            id: id.into(),
            name,
            gpu: None,
            gpu_count,
            memory_gb: 8,
            price_per_hour: 1.0,
            currency,
        }
    }

    #[test]
    fn the_image_is_required_and_labels_are_checked() {
        let error = KubernetesConfig::from_env(&Env::default()).unwrap_err().to_string();
        assert!(error.starts_with("TRAINER_IMAGE is not set; give the image of hone-trainer"), "{error}");
        assert!(config(&[("KUBE_INSTANCE", "-a")]).unwrap_err().contains("KUBE_INSTANCE is set to `-a`"));
        assert!(config(&[("KUBE_RESYNC_SECONDS", "0")]).unwrap_err().contains("KUBE_RESYNC_SECONDS"));
        let quiet =
            config(&[("OTEL_EXPORTER_OTLP_HEADERS", "secret"), ("OTEL_A", "b"), ("DATABASE_URL", "s")]).unwrap();
        assert_eq!(quiet.inherited.into_keys().collect::<Vec<_>>(), ["OTEL_A"]);
    }

    #[test]
    fn a_gpu_configuration_asks_for_its_gpus_and_its_own_placement_wins() {
        let config = config(&[("KUBE_CPU", "2"), ("KUBE_MEMORY", "4Gi"), ("KUBE_QUEUE", "all")]).unwrap();
        let own: Placements = serde_yaml_ng::from_str(
            "big: {resources: {memory: 64Gi, nvidia.com/gpu: '4'}, node_selector: {pool: gpu}}",
        )
        .unwrap();
        let plain = config.placement(&own, None);
        assert_eq!(plain.resources.get("memory").map(String::as_str), Some("4Gi"));
        let small = config.placement(&own, Some(&gpu("small", 2)));
        assert_eq!(small.resources.get("nvidia.com/gpu").map(String::as_str), Some("2"));
        let big = config.placement(&own, Some(&gpu("big", 8)));
        assert_eq!(big.resources.get("nvidia.com/gpu").map(String::as_str), Some("4"));
        assert_eq!(big.resources.get("memory").map(String::as_str), Some("64Gi"));
        assert!(!big.resources.contains_key("cpu"), "its own resources replace the base's");
        assert_eq!(big.queue.as_deref(), Some("all"));
    }
}
