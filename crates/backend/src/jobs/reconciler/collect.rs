//! Events that a trainer left in storage because no callback got through. They go the way of callbacks.

use super::{Next, Reconciler};
use crate::{
    error::Result,
    jobs::{
        decide::Observed,
        ingest::{self, Identity, Submission, parse},
        rows::Situation,
    },
};
use futures::StreamExt;
use service::{ClientError, fail_point, token::JobGrant};
use wire::{event::MAX_BATCH_BYTES, layout, problem::Code};

/// Objects per listing.
const PAGE: usize = 200;

impl Reconciler {
    /// Ingests and deletes every event object of the current attempt.
    pub(super) async fn collect(&self, at: &Situation, seen: &mut Observed) -> Result<Next> {
        let Some(attempt) = &at.attempt else { return Ok(Next::Rest) };
        let (user, job, number) = (at.job.user(), at.job.id(), at.job.attempt());
        let prefix = layout::attempt_prefix(user, job, number);
        let grant = JobGrant { user, job, attempt: number, epoch: attempt.epoch, read: Vec::new(), write: Vec::new() };
        let events = format!("{prefix}{}", layout::EVENTS);
        loop {
            // Every object of a page is deleted, so the next page starts over.
            let page = self.state.gateway.list(&events, None, PAGE).await?;
            if page.objects.is_empty() {
                break;
            }
            for object in page.objects {
                let body = self.download(&object.key).await?;
                match self.ingest_object(&grant, &prefix, &body).await {
                    Ok(stored) => tracing::info!(job.id = %job, key = %object.key, "took {stored} events from storage"),
                    Err(reason) => self.bury_object(&grant, &object.key, &body, reason?).await?,
                }
                fail_point!("collect.after_ingest");
                self.state.gateway.delete(&object.key).await?;
            }
        }
        seen.events_collected = true;
        Ok(Next::Again)
    }

    /// How many events were new; or why the object cannot be used, or why nothing can be done now.
    async fn ingest_object(&self, grant: &JobGrant, prefix: &str, body: &[u8]) -> Result<usize, Result<String>> {
        let batch = parse::batch(body, prefix).map_err(Ok)?;
        if batch.job != grant.job || batch.attempt != grant.attempt {
            return Err(Ok("the object names another job or attempt than its key".into()));
        }
        let submission = Submission { whose: Identity::of(grant), batch };
        match ingest::ingest(&self.state.db, &submission, &self.policy).await {
            Ok(applied) => Ok(applied.stored),
            Err(error) if error.code() == Some(Code::StaleAttempt) => Err(Ok(error.to_string())),
            Err(error) => Err(Err(error)),
        }
    }

    async fn bury_object(&self, grant: &JobGrant, key: &str, body: &[u8], reason: String) -> Result<()> {
        let mut letter = serde_json::from_slice(body)
            .unwrap_or_else(|_| serde_json::Value::String(String::from_utf8_lossy(body).into_owned()));
        crate::jobs::transition::storable(&mut letter);
        let rejected = parse::Rejected { seq: None, reason: format!("{key}: {reason}"), body: letter };
        let identity = Identity::of(grant);
        self.state.db.system(async move |conn| ingest::bury(conn, identity, &[rejected]).await).await
    }

    /// At most what a callback may hold; of a larger object, its beginning.
    async fn download(&self, key: &str) -> Result<Vec<u8>> {
        let mut stream = self.state.gateway.get(key, None).await?.bytes_stream();
        let mut body = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|source| ClientError::Transport { service: "the storage gateway", source })?;
            body.extend_from_slice(&chunk);
            if body.len() > MAX_BATCH_BYTES {
                body.truncate(MAX_BATCH_BYTES);
                break;
            }
        }
        Ok(body)
    }
}
