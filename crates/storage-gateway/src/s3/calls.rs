//! The calls themselves.

use super::{QUICK, REARRANGE, S3Store, SILENCE, TRANSFER};
use crate::store::{
    ByteRange, ByteStream, Download, Head, Listed, Listing, Metadata, ObjectStore, OpenMultipart, Part, Place, Presign,
    StoreError, StoreResult,
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use rusoto_core::{ByteStream as Body, RusotoError};
use rusoto_s3::{
    AbortMultipartUploadRequest, CompleteMultipartUploadRequest, CompletedMultipartUpload, CompletedPart,
    CopyObjectRequest, CreateBucketRequest, CreateMultipartUploadRequest, DeleteObjectRequest, GetObjectRequest,
    HeadBucketRequest, HeadObjectRequest, ListMultipartUploadsRequest, ListObjectsV2Request, ListPartsRequest,
    PutObjectRequest, S3 as _, UploadPartCopyRequest, UploadPartRequest, util::encode_key,
};
use std::{collections::HashMap, io, ops::Range, time::Duration};

#[async_trait::async_trait]
impl ObjectStore for S3Store {
    async fn ensure_bucket(&self, bucket: &str) -> StoreResult<()> {
        let look = || self.client.head_bucket(HeadBucketRequest { bucket: bucket.into(), ..Default::default() });
        match self.call("look for bucket", QUICK, look).await {
            Err(StoreError::NotFound { .. }) => {}
            other => return other,
        }
        self.call("create bucket", QUICK, || async move {
            let request = CreateBucketRequest { bucket: bucket.into(), ..Default::default() };
            match self.client.create_bucket(request).await {
                // It exists: another replica was faster.
                Ok(_) | Err(RusotoError::Service(_)) => Ok(()),
                Err(e) => Err(e),
            }
        })
        .await?;
        self.check_bucket(bucket).await
    }

    async fn check_bucket(&self, bucket: &str) -> StoreResult<()> {
        self.once("look for bucket", QUICK, &|| {
            self.client.head_bucket(HeadBucketRequest { bucket: bucket.into(), ..Default::default() })
        })
        .await
    }

    async fn put(&self, at: &Place, body: Bytes, metadata: &Metadata) -> StoreResult<()> {
        self.call("write object", TRANSFER, || {
            self.client.put_object(PutObjectRequest {
                bucket: at.bucket.clone(),
                key: at.key.clone(),
                body: Some(in_slices(body.clone())),
                metadata: Some(to_map(metadata)),
                ..Default::default()
            })
        })
        .await
        .map(drop)
    }

    async fn get(&self, at: &Place, range: Option<&ByteRange>) -> StoreResult<Download> {
        let op = "read object";
        let reply = self
            .call(op, QUICK, || {
                self.client.get_object(GetObjectRequest {
                    bucket: at.bucket.clone(),
                    key: at.key.clone(),
                    range: range.map(ToString::to_string),
                    ..Default::default()
                })
            })
            .await?;
        let length = unsigned(op, reply.content_length)?;
        let size = match &reply.content_range {
            Some(text) => total_of(text).unwrap_or(length),
            None => length,
        };
        let head = Head {
            size,
            last_modified: reply.last_modified.as_deref().and_then(http_date),
            metadata: from_map(reply.metadata),
        };
        let body = reply.body.map_or_else(|| stream::empty().boxed(), |body| guarded(body, length));
        Ok(Download { length, content_range: reply.content_range, head, body })
    }

    async fn head(&self, at: &Place) -> StoreResult<Head> {
        let op = "look for object";
        let reply = self
            .call(op, QUICK, || {
                self.client.head_object(HeadObjectRequest {
                    bucket: at.bucket.clone(),
                    key: at.key.clone(),
                    ..Default::default()
                })
            })
            .await?;
        Ok(Head {
            size: unsigned(op, reply.content_length)?,
            last_modified: reply.last_modified.as_deref().and_then(http_date),
            metadata: from_map(reply.metadata),
        })
    }

    async fn delete(&self, at: &Place) -> StoreResult<()> {
        let result = self
            .call("delete object", QUICK, || {
                self.client.delete_object(DeleteObjectRequest {
                    bucket: at.bucket.clone(),
                    key: at.key.clone(),
                    ..Default::default()
                })
            })
            .await;
        gone_is_fine(result.map(drop))
    }

    async fn list(&self, bucket: &str, prefix: &str, after: Option<&str>, limit: u16) -> StoreResult<Listing> {
        let op = "list objects";
        let reply = self
            .call(op, QUICK, || {
                self.client.list_objects_v2(ListObjectsV2Request {
                    bucket: bucket.into(),
                    prefix: Some(prefix.into()),
                    start_after: after.map(Into::into),
                    max_keys: Some(limit.into()),
                    ..Default::default()
                })
            })
            .await?;
        let objects = reply.contents.unwrap_or_default().into_iter().map(|object| {
            Ok(Listed {
                key: object.key.ok_or_else(|| incomplete(op, "Key"))?,
                size: unsigned(op, object.size)?,
                last_modified: object.last_modified.as_deref().and_then(iso_date),
            })
        });
        Ok(Listing { objects: objects.collect::<StoreResult<_>>()?, more: reply.is_truncated.unwrap_or(false) })
    }

    async fn copy(&self, from: &Place, to: &Place, size: u64, metadata: &Metadata) -> StoreResult<()> {
        if size > self.access.copy_limit {
            let upload_id = self.create_multipart(to, metadata).await?;
            let result = self.copy_parts(from, to, size, &upload_id).await;
            if result.is_err() {
                // What a crash leaves here is the sweeper's.
                let _ = self.abort_multipart(to, &upload_id).await;
            }
            return result;
        }
        let op = "copy object";
        self.call(op, REARRANGE, || async {
            let request = CopyObjectRequest {
                bucket: to.bucket.clone(),
                key: to.key.clone(),
                copy_source: source(from),
                metadata: Some(to_map(metadata)),
                metadata_directive: Some("REPLACE".into()),
                ..Default::default()
            };
            let reply = self.client.copy_object(request).await?;
            named(reply.copy_object_result.and_then(|r| r.e_tag)).map(drop)
        })
        .await
    }

    async fn create_multipart(&self, at: &Place, metadata: &Metadata) -> StoreResult<String> {
        self.call("open upload", QUICK, || async {
            let request = CreateMultipartUploadRequest {
                bucket: at.bucket.clone(),
                key: at.key.clone(),
                metadata: Some(to_map(metadata)),
                ..Default::default()
            };
            named(self.client.create_multipart_upload(request).await?.upload_id)
        })
        .await
    }

    async fn put_part(&self, at: &Place, upload_id: &str, number: u32, body: Bytes) -> StoreResult<Part> {
        let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let reply = self
            .call("write part", TRANSFER, || {
                self.client.upload_part(UploadPartRequest {
                    bucket: at.bucket.clone(),
                    key: at.key.clone(),
                    upload_id: upload_id.into(),
                    part_number: number.into(),
                    body: Some(in_slices(body.clone())),
                    ..Default::default()
                })
            })
            .await?;
        Ok(Part { number, size, etag: reply.e_tag })
    }

    async fn list_parts(&self, at: &Place, upload_id: &str) -> StoreResult<Vec<Part>> {
        let op = "list parts";
        let mut parts = Vec::new();
        let mut marker = None;
        loop {
            let reply = self
                .call(op, QUICK, || {
                    self.client.list_parts(ListPartsRequest {
                        bucket: at.bucket.clone(),
                        key: at.key.clone(),
                        upload_id: upload_id.into(),
                        part_number_marker: marker,
                        ..Default::default()
                    })
                })
                .await?;
            for part in reply.parts.unwrap_or_default() {
                let number = part.part_number.and_then(|n| u32::try_from(n).ok());
                let number = number.ok_or_else(|| incomplete(op, "PartNumber"))?;
                parts.push(Part { number, size: unsigned(op, part.size)?, etag: part.e_tag });
            }
            let next = reply.next_part_number_marker;
            // A store that repeats its marker must not keep us here for ever.
            if !reply.is_truncated.unwrap_or(false) || next.is_none() || next == marker {
                break;
            }
            marker = next;
        }
        parts.sort_unstable_by_key(|part| part.number);
        Ok(parts)
    }

    async fn complete_multipart(&self, at: &Place, upload_id: &str, parts: &[Part]) -> StoreResult<()> {
        let op = "complete upload";
        self.call(op, REARRANGE, || async {
            let parts = parts
                .iter()
                .map(|part| CompletedPart { e_tag: part.etag.clone(), part_number: Some(part.number.into()) });
            let request = CompleteMultipartUploadRequest {
                bucket: at.bucket.clone(),
                key: at.key.clone(),
                upload_id: upload_id.into(),
                multipart_upload: Some(CompletedMultipartUpload { parts: Some(parts.collect()) }),
                ..Default::default()
            };
            named(self.client.complete_multipart_upload(request).await?.e_tag).map(drop)
        })
        .await
    }

    async fn abort_multipart(&self, at: &Place, upload_id: &str) -> StoreResult<()> {
        let result = self
            .call("abort upload", QUICK, || {
                self.client.abort_multipart_upload(AbortMultipartUploadRequest {
                    bucket: at.bucket.clone(),
                    key: at.key.clone(),
                    upload_id: upload_id.into(),
                    ..Default::default()
                })
            })
            .await;
        gone_is_fine(result.map(drop))
    }

    async fn list_multiparts(&self, bucket: &str, prefix: &str) -> StoreResult<Vec<OpenMultipart>> {
        let mut open = Vec::new();
        let mut after: (Option<String>, Option<String>) = (None, None);
        loop {
            let reply = self
                .call("list uploads", QUICK, || {
                    self.client.list_multipart_uploads(ListMultipartUploadsRequest {
                        bucket: bucket.into(),
                        prefix: Some(prefix.into()),
                        key_marker: after.0.clone(),
                        upload_id_marker: after.1.clone(),
                        ..Default::default()
                    })
                })
                .await?;
            open.extend(reply.uploads.unwrap_or_default().into_iter().filter_map(|upload| {
                let initiated = upload.initiated.as_deref().and_then(iso_date);
                Some(OpenMultipart { key: upload.key?, upload_id: upload.upload_id?, initiated })
            }));
            let next = (reply.next_key_marker, reply.next_upload_id_marker);
            // A store that repeats its marker must not keep us here for ever.
            if !reply.is_truncated.unwrap_or(false) || next.0.is_none() || next == after {
                return Ok(open);
            }
            after = next;
        }
    }

    fn presign(&self, at: &Place, what: &Presign<'_>, expires_in: Duration) -> String {
        super::presign::url(&self.access, at, what, expires_in, Utc::now())
    }
}

impl S3Store {
    pub(super) async fn copy_part(
        &self,
        from: &Place,
        to: &Place,
        upload_id: &str,
        number: u32,
        range: Range<u64>,
    ) -> StoreResult<Part> {
        let op = "copy part";
        let size = range.end.saturating_sub(range.start);
        let range = ByteRange::Bounded(range).to_string();
        let reply = self
            .call(op, REARRANGE, || {
                self.client.upload_part_copy(UploadPartCopyRequest {
                    bucket: to.bucket.clone(),
                    key: to.key.clone(),
                    upload_id: upload_id.into(),
                    part_number: number.into(),
                    copy_source: source(from),
                    copy_source_range: Some(range.clone()),
                    ..Default::default()
                })
            })
            .await?;
        let etag = reply.copy_part_result.and_then(|r| r.e_tag).ok_or_else(|| incomplete(op, "ETag"))?;
        Ok(Part { number, size, etag: Some(etag) })
    }
}

fn source(from: &Place) -> String {
    format!("{}/{}", from.bucket, encode_key(&from.key))
}

/// A body in memory, handed out in slices: the HTTP client copies whatever it is given at once.
fn in_slices(body: Bytes) -> Body {
    const SLICE: usize = 64 << 10;
    let length = body.len();
    let slices = stream::unfold(body, |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        let slice = rest.split_to(rest.len().min(SLICE));
        Some((Ok(slice), rest))
    });
    Body::new_with_size(slices, length)
}

/// A download with a limit on silence, which fails when it ends early.
fn guarded(body: Body, length: u64) -> ByteStream {
    stream::try_unfold((body, length), |(mut body, left)| async move {
        match tokio::time::timeout(SILENCE, body.next()).await {
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the object store sent nothing for {} s", SILENCE.as_secs()),
            )),
            Ok(Some(chunk)) => {
                let chunk = chunk?;
                let left = left.saturating_sub(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
                Ok(Some((chunk, (body, left))))
            }
            Ok(None) if left == 0 => Ok(None),
            Ok(None) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the object store stopped {left} bytes before the end"),
            )),
        }
    })
    .boxed()
}

/// What every good reply names. S3 may answer 200 with an error in the body; rusoto reads that as a result without
/// fields. It means "try again".
fn named<E>(value: Option<String>) -> Result<String, RusotoError<E>> {
    value.ok_or_else(|| RusotoError::ParseError("200 without a result, which is an error in disguise".into()))
}

fn gone_is_fine(result: StoreResult<()>) -> StoreResult<()> {
    match result {
        Err(StoreError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

fn incomplete(op: &'static str, field: &str) -> StoreError {
    StoreError::Unavailable { op, reason: format!("the reply has no {field}") }
}

fn unsigned(op: &'static str, value: Option<i64>) -> StoreResult<u64> {
    value.and_then(|v| u64::try_from(v).ok()).ok_or_else(|| incomplete(op, "size"))
}

/// `size` of `bytes a-b/size`.
fn total_of(content_range: &str) -> Option<u64> {
    content_range.rsplit('/').next()?.parse().ok()
}

fn http_date(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc2822(text).ok().map(Into::into)
}

fn iso_date(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).ok().map(Into::into)
}

fn to_map(metadata: &Metadata) -> HashMap<String, String> {
    metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn from_map(metadata: Option<HashMap<String, String>>) -> Metadata {
    metadata.unwrap_or_default().into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect()
}
