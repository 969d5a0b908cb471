//! The backend's routes, typed.

use crate::{
    args::SearchArgs,
    error::{CliError, CliResult, Exit},
};
use reqwest::Method;
use service::Client;
use wire::{
    JobId, JobView, KeyId, PackageId, Page, VersionId,
    account::{CreateKey, CreatedKey, KeyView},
    artifact::{ArtifactDownload, ModelArtifactView},
    cost::{CostRecord, CostSummary, UpdateJob},
    dataset::{CreateDataset, CreatedDataset, DatasetPreview, DatasetView, Split, SplitDataset, SplitDatasets},
    dead_letter::{DeadLetter, ReplayDeadLetters, ReplayedDeadLetters},
    estimate::JobEstimate,
    event::StreamMessage,
    hub::{HubModel, PullModel, PullView},
    ids::{ArtifactId, DatasetId, DeliveryId, NotificationId, PullId, WebhookId},
    job::{ArtifactView, CreateJob, MetricPoint},
    model::{CreateModel, CreatedModel, ModelView},
    notification::{NotificationView, UnreadCount},
    package::{AutoSave, LaunchVersion, PackageView, Summary, VersionView},
    webhook::{CreateWebhook, DeliveryView, UpdateWebhook, WebhookSecret, WebhookView},
};

/// Rows asked for per page.
const PAGE: usize = 200;
/// Jobs looked through for a prefix.
const SEARCHED: usize = 2000;

#[derive(Debug, Clone)]
pub struct Api {
    pub client: Client,
}

impl Api {
    pub async fn models(&self) -> CliResult<Vec<ModelView>> {
        self.all("/api/models?").await
    }

    pub async fn model(&self, name: &str) -> CliResult<ModelView> {
        Ok(self.client.get(&format!("/api/models/{}", escape(name))).await?)
    }

    /// The files of a model with signed URLs.
    pub async fn model_files(&self, name: &str, revision: &str) -> CliResult<Vec<ArtifactView>> {
        let path = format!("/api/models/{}/{}/download", escape(name), escape(revision));
        Ok(self.client.get(&path).await?)
    }

    /// Models on the Hugging Face Hub.
    pub async fn search_models(&self, args: &SearchArgs) -> CliResult<Page<HubModel>> {
        let mut path = format!("/api/models/search?limit={}", args.limit);
        for (name, value) in [("search", &args.text), ("author", &args.author), ("pipeline_tag", &args.task)] {
            path += &value.as_ref().map(|v| format!("&{name}={}", escape(v))).unwrap_or_default();
        }
        Ok(self.client.get(&path).await?)
    }

    pub async fn pull_model(&self, body: &PullModel) -> CliResult<PullView> {
        Ok(self.client.post("/api/models/pull", body).await?)
    }

    pub async fn model_pull(&self, id: PullId) -> CliResult<PullView> {
        Ok(self.client.get(&format!("/api/models/pulls/{id}")).await?)
    }

    /// What jobs made.
    pub async fn model_artifacts(&self) -> CliResult<Vec<ModelArtifactView>> {
        self.all("/api/artifacts?").await
    }

    pub async fn download_artifact(&self, id: ArtifactId) -> CliResult<ArtifactDownload> {
        Ok(self.client.post(&format!("/api/artifacts/{id}/download"), &()).await?)
    }

    pub async fn create_model(&self, body: &CreateModel) -> CliResult<CreatedModel> {
        Ok(self.client.post("/api/models", body).await?)
    }

    pub async fn complete_model(&self, name: &str, revision: &str) -> CliResult<ModelView> {
        let path = format!("/api/models/{}/{}/complete", escape(name), escape(revision));
        // Hashing and inspecting gigabytes takes longer than an ordinary call.
        let request = || Ok(self.client.request(Method::POST, &path)?.timeout(std::time::Duration::from_secs(900)));
        self.reply(self.client.send_retrying(request).await?).await
    }

    pub async fn create_dataset(&self, body: &CreateDataset) -> CliResult<CreatedDataset> {
        Ok(self.client.post("/datasets", body).await?)
    }

    /// What is missing of an upload.
    pub async fn dataset_uploads(&self, name: &str) -> CliResult<CreatedDataset> {
        Ok(self.client.get(&format!("/datasets/{}/uploads", escape(name))).await?)
    }

    pub async fn complete_dataset(&self, id: DatasetId) -> CliResult<DatasetView> {
        let path = format!("/datasets/{id}/complete");
        // Half a gigabyte is validated.
        let request = || Ok(self.client.request(Method::POST, &path)?.timeout(std::time::Duration::from_secs(900)));
        self.reply(self.client.send_retrying(request).await?).await
    }

    pub async fn datasets(&self) -> CliResult<Vec<DatasetView>> {
        self.all("/datasets?").await
    }

    pub async fn dataset(&self, name: &str) -> CliResult<DatasetView> {
        Ok(self.client.get(&format!("/datasets/{}", escape(name))).await?)
    }

    pub async fn preview(&self, name: &str, limit: u16, split: Split) -> CliResult<DatasetPreview> {
        let split = match split {
            Split::Train => "train",
            Split::Validation => "validation",
        };
        Ok(self.client.get(&format!("/datasets/{}/preview?limit={limit}&split={split}", escape(name))).await?)
    }

    /// Sent once: a second request would find the names taken.
    pub async fn split_dataset(&self, name: &str, body: &SplitDataset) -> CliResult<SplitDatasets> {
        let request = self.client.request(Method::POST, &format!("/datasets/{}/split", escape(name)))?;
        // Copying and validating half a gigabyte takes longer than an ordinary call.
        let request = request.timeout(std::time::Duration::from_secs(900)).json(body);
        self.reply(self.client.send(request).await?).await
    }

    pub async fn delete_dataset(&self, name: &str) -> CliResult {
        Ok(self.client.delete(&format!("/datasets/{}", escape(name))).await?)
    }

    /// What a job would need. A trainer may have to stage the model first.
    pub async fn estimate(&self, body: &CreateJob) -> CliResult<JobEstimate> {
        let request = || {
            let request = self.client.request(Method::POST, "/training/estimate")?;
            Ok(request.timeout(std::time::Duration::from_secs(330)).json(body))
        };
        self.reply(self.client.send_retrying(request).await?).await
    }

    pub async fn dead_letters(&self, job: JobId) -> CliResult<Vec<DeadLetter>> {
        self.all(&format!("/training/jobs/{job}/dead-letters?")).await
    }

    pub async fn replay_dead_letters(&self, job: JobId, body: &ReplayDeadLetters) -> CliResult<ReplayedDeadLetters> {
        Ok(self.client.post(&format!("/training/jobs/{job}/dead-letters/replay"), body).await?)
    }

    /// Creates one job, however often the request has to be sent.
    pub async fn create_job(&self, body: &CreateJob) -> CliResult<JobView> {
        self.create_once("/training/jobs", body).await
    }

    async fn create_once<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl serde::Serialize + Sync),
    ) -> CliResult<T> {
        let key = uuid::Uuid::new_v4().to_string();
        let request = || {
            let request = self.client.request(Method::POST, path)?;
            Ok(request.header("idempotency-key", &key).timeout(std::time::Duration::from_secs(30)).json(body))
        };
        self.reply(self.client.send_retrying(request).await?).await
    }

    pub async fn keys(&self) -> CliResult<Vec<KeyView>> {
        self.all("/api/keys?").await
    }

    /// Sent once: a key whose reply was lost would be one that nobody knows.
    pub async fn create_key(&self, body: &CreateKey) -> CliResult<CreatedKey> {
        let request = self.client.request(Method::POST, "/api/keys")?.json(body);
        self.reply(self.client.send(request).await?).await
    }

    pub async fn revoke_key(&self, key: KeyId) -> CliResult {
        Ok(self.client.delete(&format!("/api/keys/{key}")).await?)
    }

    pub async fn packages(&self) -> CliResult<Vec<PackageView>> {
        self.all("/api/training/packages?").await
    }

    /// What each attempt has cost, newest first. `filter`: `name=value&` for each parameter.
    pub async fn costs(&self, filter: &str) -> CliResult<Vec<CostRecord>> {
        self.all(&format!("/api/costs?{filter}")).await
    }

    /// `filter`: `name=value&` for each parameter.
    pub async fn cost_summary(&self, filter: &str) -> CliResult<CostSummary> {
        Ok(self.client.get(&format!("/api/costs/summary?{filter}")).await?)
    }

    /// The newest `limit` notifications.
    pub async fn notifications(&self, unread: bool, limit: usize) -> CliResult<Vec<NotificationView>> {
        let filter = if unread { "unread=true&" } else { "" };
        self.up_to(&format!("/api/notifications?{filter}"), limit).await
    }

    pub async fn read_notification(&self, id: NotificationId) -> CliResult<NotificationView> {
        Ok(self.client.post(&format!("/api/notifications/{id}/read"), &()).await?)
    }

    pub async fn read_notifications(&self) -> CliResult<UnreadCount> {
        Ok(self.client.post("/api/notifications/read", &()).await?)
    }

    pub async fn webhooks(&self) -> CliResult<Vec<WebhookView>> {
        self.all("/api/webhooks?").await
    }

    pub async fn webhook(&self, id: WebhookId) -> CliResult<WebhookView> {
        Ok(self.client.get(&format!("/api/webhooks/{id}")).await?)
    }

    /// Sent once: a secret whose reply was lost would be one that nobody knows.
    pub async fn create_webhook(&self, body: &CreateWebhook) -> CliResult<WebhookSecret> {
        let request = self.client.request(Method::POST, "/api/webhooks")?.json(body);
        self.reply(self.client.send(request).await?).await
    }

    pub async fn update_webhook(&self, id: WebhookId, body: &UpdateWebhook) -> CliResult<WebhookView> {
        Ok(self.client.call(Method::PATCH, &format!("/api/webhooks/{id}"), Some(body)).await?)
    }

    /// Sent once: a second rotation would drop the secret that receivers still have.
    pub async fn rotate_webhook(&self, id: WebhookId) -> CliResult<WebhookSecret> {
        let request = self.client.request(Method::POST, &format!("/api/webhooks/{id}/rotate"))?;
        self.reply(self.client.send(request).await?).await
    }

    pub async fn test_webhook(&self, id: WebhookId) -> CliResult<DeliveryView> {
        Ok(self.client.call::<(), _>(Method::POST, &format!("/api/webhooks/{id}/test"), None).await?)
    }

    pub async fn delete_webhook(&self, id: WebhookId) -> CliResult {
        Ok(self.client.delete(&format!("/api/webhooks/{id}")).await?)
    }

    /// The newest `limit` messages for a webhook.
    pub async fn deliveries(&self, id: WebhookId, status: Option<&str>, limit: usize) -> CliResult<Vec<DeliveryView>> {
        let filter = status.map(|s| format!("status={s}&")).unwrap_or_default();
        self.up_to(&format!("/api/webhooks/{id}/deliveries?{filter}"), limit).await
    }

    pub async fn redeliver(&self, id: WebhookId, delivery: DeliveryId) -> CliResult<DeliveryView> {
        let path = format!("/api/webhooks/{id}/deliveries/{delivery}/redeliver");
        Ok(self.client.call::<(), _>(Method::POST, &path, None).await?)
    }

    pub async fn package(&self, name: &str) -> CliResult<PackageView> {
        Ok(self.client.get(&format!("/api/training/packages/{}", escape(name))).await?)
    }

    /// Versions of a package, newest first.
    pub async fn versions(&self, package: PackageId) -> CliResult<Vec<VersionView>> {
        self.all(&format!("/api/training/versions?package_id={package}&")).await
    }

    pub async fn save_version(&self, body: &AutoSave) -> CliResult<VersionView> {
        Ok(self.client.post("/api/training/versions/auto-save", body).await?)
    }

    pub async fn publish_version(&self, id: VersionId, body: &Summary) -> CliResult<VersionView> {
        Ok(self.client.post(&format!("/api/training/versions/{id}/publish"), body).await?)
    }

    /// Creates one job, however often the request has to be sent.
    pub async fn launch_version(&self, id: VersionId, body: &LaunchVersion) -> CliResult<JobView> {
        self.create_once(&format!("/api/training/versions/{id}/launch"), body).await
    }

    /// The newest `limit` jobs.
    pub async fn jobs(&self, state: Option<&str>, limit: usize) -> CliResult<Vec<JobView>> {
        let filter = state.map(|s| format!("state={}&", escape(s))).unwrap_or_default();
        self.up_to(&format!("/training/jobs?{filter}"), limit).await
    }

    pub async fn job(&self, id: JobId) -> CliResult<JobView> {
        Ok(self.client.get(&format!("/training/jobs/{id}")).await?)
    }

    /// `action`: start, cancel, pause or resume.
    pub async fn job_action(&self, id: JobId, action: &str) -> CliResult<JobView> {
        Ok(self.client.call::<(), _>(Method::POST, &format!("/training/jobs/{id}/{action}"), None).await?)
    }

    pub async fn update_job(&self, id: JobId, body: &UpdateJob) -> CliResult<JobView> {
        Ok(self.client.call(Method::PATCH, &format!("/training/jobs/{id}"), Some(body)).await?)
    }

    pub async fn metrics(&self, id: JobId, after: Option<u64>) -> CliResult<Vec<MetricPoint>> {
        let after = after.map(|step| format!("after_step={step}&")).unwrap_or_default();
        self.all(&format!("/training/jobs/{id}/metrics?{after}")).await
    }

    pub async fn events(&self, id: JobId, after: i64) -> CliResult<Page<StreamMessage>> {
        Ok(self.client.get(&format!("/training/jobs/{id}/events?after={after}&limit={PAGE}")).await?)
    }

    pub async fn logs(&self, id: JobId) -> CliResult<String> {
        let path = format!("/training/jobs/{id}/logs");
        let response = self.client.send_retrying(|| self.client.request(Method::GET, &path)).await?;
        let text = response.text().await;
        text.map_err(|e| CliError::new(Exit::Unreachable, format!("the log broke off: {e}")))
    }

    pub async fn artifacts(&self, id: JobId) -> CliResult<Vec<ArtifactView>> {
        Ok(self.client.get(&format!("/training/jobs/{id}/artifacts")).await?)
    }

    /// The job that `text` names: a whole id, the unique beginning of one, or `latest`.
    pub async fn find_job(&self, text: &str) -> CliResult<JobView> {
        if text == "latest" {
            let newest = self.jobs(None, 1).await?.into_iter().next();
            return newest.ok_or_else(|| {
                CliError::new(Exit::NotFound, "there is no job yet").hint("`hone train CONFIG.yaml` creates one")
            });
        }
        if let Ok(id) = text.parse::<JobId>() {
            return self.job(id).await;
        }
        let usable = !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        if !usable {
            return Err(CliError::new(Exit::NotFound, format!("no job has an id that begins with `{text}`"))
                .hint("`hone jobs ls` lists them; `latest` names the newest one"));
        }
        let wanted = text.to_ascii_lowercase();
        let jobs = self.jobs(None, SEARCHED).await?;
        let mut found: Vec<JobView> = jobs.into_iter().filter(|j| j.id.to_string().starts_with(&wanted)).collect();
        match (found.len(), found.pop()) {
            (1, Some(job)) => Ok(job),
            (0, _) | (_, None) => {
                Err(CliError::new(Exit::NotFound, format!("no job has an id that begins with `{text}`"))
                    .hint("`hone jobs ls` lists them; `latest` names the newest one"))
            }
            (n, Some(one)) => {
                let ids: Vec<String> = found.iter().chain([&one]).take(5).map(|j| j.id.to_string()).collect();
                Err(CliError::invalid(format!("{n} jobs have an id that begins with `{text}`: {}", ids.join(", ")))
                    .hint("give more of the id"))
            }
        }
    }

    async fn all<T: serde::de::DeserializeOwned>(&self, path: &str) -> CliResult<Vec<T>> {
        self.up_to(path, usize::MAX).await
    }

    async fn up_to<T: serde::de::DeserializeOwned>(&self, path: &str, limit: usize) -> CliResult<Vec<T>> {
        let mut items: Vec<T> = Vec::new();
        let mut cursor = String::new();
        loop {
            let size = PAGE.min(limit.saturating_sub(items.len()));
            let page: Page<T> = self.client.get(&format!("{path}limit={size}{cursor}")).await?;
            items.extend(page.items);
            match page.next_cursor {
                Some(next) if items.len() < limit => cursor = format!("&cursor={}", escape(&next)),
                _ => break,
            }
        }
        items.truncate(limit);
        Ok(items)
    }

    async fn reply<T: serde::de::DeserializeOwned>(&self, response: reqwest::Response) -> CliResult<T> {
        let decoded = response.json().await;
        Ok(decoded.map_err(|source| service::ClientError::Decode { service: "hone", source })?)
    }
}

/// Percent-encodes everything but unreserved characters.
#[must_use]
pub fn percent_encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let c = char::from(*byte);
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~') {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

fn escape(text: &str) -> String {
    percent_encode(text.as_bytes())
}

/// The one of `items` whose id begins with `text`, which may be a whole id.
pub fn by_id<'a, T>(items: &'a [T], id: impl Fn(&T) -> String, text: &str, what: &str) -> CliResult<&'a T> {
    let wanted = text.trim_end_matches('…').to_ascii_lowercase();
    let mut found = items.iter().filter(|item| !wanted.is_empty() && id(item).starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(CliError::new(Exit::NotFound, format!("no {what} has an id that begins with `{text}`"))),
        (Some(_), Some(_)) => Err(CliError::invalid(format!("several {what}s have an id that begins with `{text}`"))
            .hint("give more of the id; `--json` shows it whole")),
    }
}

/// Enough of a job's id to tell it from others: its timestamp part.
#[must_use]
pub fn short(id: JobId) -> String {
    id.to_string().chars().take(13).collect()
}
