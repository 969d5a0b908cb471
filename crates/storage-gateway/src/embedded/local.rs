//! [`LocalS3`]: s3s-fs with its gaps closed. What it keeps from s3s-fs: buckets, writing objects and parts,
//! reading. What it replaces, because s3s-fs 0.14
//!
//! - copies by truncating the target and writing into it, so readers see half an object and a crash leaves it;
//! - completes an upload by forgetting it first and deleting its parts while it copies them, so a crash or
//!   a full disk loses the upload;
//! - answers for unknown uploads with an empty part list or 403, and for directories as if they were objects;
//! - cannot list uploads, walks the whole bucket for every listing, and leaves sidecars behind on deletion;
//! - reads 4 KiB at a time; does not sync what it acknowledges, and fails after the write when a key is too long for a sidecar.

use super::{
    assembly,
    files::{self, Sidecar},
};
use crate::turns::Turns;
use s3s::{
    S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CompletedPart, CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource,
        CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput,
        DeleteObjectInput, DeleteObjectOutput, ETag, GetObjectInput, GetObjectOutput, HeadBucketInput,
        HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput,
        ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput, MetadataDirective, MultipartUpload,
        Object, Part, PutObjectInput, PutObjectOutput, Range, StreamingBlob, UploadPartCopyInput, UploadPartCopyOutput,
        UploadPartInput, UploadPartOutput,
    },
    s3_error,
};
use s3s_fs::FileSystem;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    error::Error,
    io,
    path::{Component, Path, PathBuf},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};
use tokio_util::io::ReaderStream;
use uuid::Uuid;

/// Smallest part but the last, as everywhere in S3.
const MIN_PART: u64 = 5 << 20;
/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct LocalS3 {
    fs: FileSystem,
    root: PathBuf,
    /// Who completes or aborts an upload.
    turns: Turns,
    /// Connections run without a subscriber, because s3s logs every 404 as an error; this one is for ours.
    log: tracing::Dispatch,
}

impl LocalS3 {
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let fs = FileSystem::new(root).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        files::remove_orphaned_parts(root)?;
        let log = tracing::dispatcher::get_default(Clone::clone);
        Ok(Self { fs, root: root.canonicalize()?, turns: Turns::default(), log })
    }

    fn object_path(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        let path = Path::new(bucket).join(key);
        if key.ends_with('/') || !path.components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(s3_error!(InvalidArgument, "the key is not a relative path"));
        }
        Ok(self.root.join(path))
    }

    /// The path of an object that exists, which a directory is not.
    fn existing(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        let path = self.object_path(bucket, key)?;
        if path.is_file() { Ok(path) } else { Err(s3_error!(NoSuchKey)) }
    }

    /// The path of an object that is going to be written.
    fn target(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        let path = self.object_path(bucket, key)?;
        if !files::key_fits(bucket, key) {
            return Err(s3_error!(KeyTooLongError, "the embedded store takes keys of about 150 bytes"));
        }
        let bucket_root = self.root.join(bucket);
        if !bucket_root.is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let above = path.ancestors().skip(1).take_while(|above| *above != bucket_root);
        if above.into_iter().any(Path::is_file) {
            return Err(s3_error!(InvalidArgument, "a part of the key's path is another object"));
        }
        if path.is_dir() {
            return Err(s3_error!(InvalidArgument, "the key is the directory of other keys"));
        }
        Ok(path)
    }

    fn sidecar(&self, bucket: &str, key: &str, kind: Sidecar) -> PathBuf {
        self.root.join(files::sidecar_name(bucket, key, kind))
    }

    /// Parts of an open upload; `NoSuchUpload` otherwise.
    async fn parts(&self, upload_id: &str) -> S3Result<(Uuid, BTreeMap<u32, files::FileInfo>)> {
        let upload: Uuid = upload_id.parse().map_err(|_| s3_error!(NoSuchUpload))?;
        let root = self.root.clone();
        let parts = self.blocking(move || files::parts(&root, &upload)).await?;
        Ok((upload, parts.ok_or_else(|| s3_error!(NoSuchUpload))?))
    }

    /// Runs file work off the async threads.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> S3Result<T> {
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => Err(self.explain(S3Error::internal_error(e))),
            Err(e) => Err(self.explain(S3Error::internal_error(e))),
        }
    }

    /// Logs internal errors, which clients see without a cause; says so when the disk is full.
    fn explain(&self, error: S3Error) -> S3Error {
        if *error.code() != S3ErrorCode::InternalError {
            return error;
        }
        let mut full = false;
        let mut text = String::from("embedded S3 failed");
        let mut cause: Option<&(dyn Error + 'static)> = match error.source() {
            Some(source) => Some(source),
            None => None,
        };
        while let Some(inner) = cause {
            full |= inner.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::StorageFull);
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        tracing::dispatcher::with_default(&self.log, || tracing::error!("{text}"));
        if full {
            s3_error!(ServiceUnavailable, "the disk of the data directory is full; free some space")
        } else {
            error
        }
    }

    fn check_upload(&self, upload_id: &str) -> S3Result<Uuid> {
        let upload: Uuid = upload_id.parse().map_err(|_| s3_error!(NoSuchUpload))?;
        let open = self.root.join(files::upload_info_name(&upload)).is_file();
        if open { Ok(upload) } else { Err(s3_error!(NoSuchUpload)) }
    }
}

#[async_trait::async_trait]
impl S3 for LocalS3 {
    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        self.fs.create_bucket(req).await
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.fs.head_bucket(req).await
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let path = self.target(&req.input.bucket, &req.input.key)?;
        let reply = self.fs.put_object(req).await.map_err(|e| self.explain(e))?;
        self.blocking(move || files::sync(&path)).await?;
        Ok(reply)
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let path = self.existing(&req.input.bucket, &req.input.key)?;
        let range = req.input.range;
        let head =
            |input: GetObjectInput| HeadObjectInput { bucket: input.bucket, key: input.key, ..Default::default() };
        let described = self.fs.head_object(req.map_input(head)).await?.output;
        let (file, length, content_range) = open_range(&path, range).await.map_err(|e| self.explain(e))?;
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(ReaderStream::with_capacity(file.take(length), CHUNK))),
            content_length: i64::try_from(length).ok(),
            content_range,
            last_modified: described.last_modified,
            metadata: described.metadata,
            content_type: described.content_type,
            e_tag: described.e_tag,
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.existing(&req.input.bucket, &req.input.key)?;
        self.fs.head_object(req).await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let DeleteObjectInput { bucket, key, .. } = req.input;
        if let Ok(path) = self.existing(&bucket, &key) {
            let sidecars = [Sidecar::Info, Sidecar::Attributes].map(|kind| self.sidecar(&bucket, &key, kind));
            self.blocking(move || {
                files::remove_if_there(&path)?;
                sidecars.iter().try_for_each(|sidecar| files::remove_if_there(sidecar))
            })
            .await?;
        }
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = req.input;
        let CopySource::Bucket { bucket, key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let from = self.existing(bucket, key)?;
        let to = self.target(&input.bucket, &input.key)?;
        let replace = input.metadata_directive.as_ref().is_some_and(|d| d.as_str() == MetadataDirective::REPLACE);
        let attributes = replace.then(|| json!({ "user_metadata": input.metadata.unwrap_or_default() }));
        let old = [Sidecar::Info, Sidecar::Attributes].map(|kind| self.sidecar(bucket, key, kind));
        let new = [Sidecar::Info, Sidecar::Attributes].map(|kind| self.sidecar(&input.bucket, &input.key, kind));
        let root = self.root.clone();
        let etag = self
            .blocking(move || {
                let ([old_info, old_attributes], [new_info, new_attributes]) = (old, new);
                // The object first: its metadata must never announce an object that is not there.
                files::link(&root, &from, &to)?;
                let attributes = match attributes {
                    Some(attributes) => serde_json::to_vec(&attributes)?,
                    None => std::fs::read(old_attributes).unwrap_or_else(|_| b"{}".to_vec()),
                };
                files::write_atomically(&root, &new_attributes, &attributes)?;
                let etag = std::fs::read(old_info).ok().and_then(|info| {
                    let info: Value = serde_json::from_slice(&info).ok()?;
                    info.get("e_tag")?.as_str().map(str::to_owned)
                });
                let etag = etag.unwrap_or_else(|| Uuid::new_v4().simple().to_string());
                files::write_atomically(&root, &new_info, &serde_json::to_vec(&json!({ "e_tag": etag }))?)?;
                Ok(etag)
            })
            .await?;
        let result = CopyObjectResult { e_tag: Some(ETag::Strong(etag)), ..Default::default() };
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let bucket_root = self.root.join(&input.bucket);
        if !bucket_root.is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented, "the embedded store has no delimiter listings"));
        }
        let limit = usize::try_from(input.max_keys.unwrap_or(1000)).unwrap_or(0).min(1000);
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().max(input.start_after.clone()).unwrap_or_default();
        let (found, more) = self.blocking(move || files::list(&bucket_root, &prefix, &after, limit)).await?;
        let next = found.keys().next_back().cloned().filter(|_| more);
        let contents: Vec<Object> = found
            .into_iter()
            .map(|(key, info)| Object {
                key: Some(key),
                size: i64::try_from(info.size).ok(),
                last_modified: Some(info.modified.into()),
                ..Default::default()
            })
            .collect();
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: i32::try_from(contents.len()).ok(),
            max_keys: i32::try_from(limit).ok(),
            contents: Some(contents),
            is_truncated: Some(more),
            next_continuation_token: next,
            name: Some(input.bucket),
            prefix: input.prefix,
            start_after: input.start_after,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.target(&req.input.bucket, &req.input.key)?;
        self.fs.create_multipart_upload(req).await.map_err(|e| self.explain(e))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let upload = self.check_upload(&req.input.upload_id)?;
        if assembly::has_begun(&self.root, &upload).unwrap_or(false) {
            return Err(s3_error!(
                OperationAborted,
                "the upload is being completed; its parts cannot be replaced any more"
            ));
        }
        self.fs.upload_part(req).await.map_err(|e| self.explain(e))
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        self.check_upload(&req.input.upload_id)?;
        self.fs.upload_part_copy(req).await.map_err(|e| self.explain(e))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let ListPartsInput { bucket, key, upload_id, part_number_marker, .. } = req.input;
        let (_, parts) = self.parts(&upload_id).await?;
        let after = part_number_marker.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let parts = parts.into_iter().filter(|(number, _)| *number > after).map(|(number, info)| Part {
            part_number: i32::try_from(number).ok(),
            size: i64::try_from(info.size).ok(),
            last_modified: Some(info.modified.into()),
            ..Default::default()
        });
        Ok(S3Response::new(ListPartsOutput {
            parts: Some(parts.collect()),
            is_truncated: Some(false),
            bucket: Some(bucket),
            key: Some(key),
            upload_id: Some(upload_id),
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let CompleteMultipartUploadInput { bucket, key, upload_id, multipart_upload, .. } = req.input;
        let to = self.target(&bucket, &key)?;
        // A caller that lost patience asks again while the first call still works.
        let turn = self.turns.take(self.check_upload(&upload_id)?).await;
        let (upload, stored) = self.parts(&upload_id).await?;
        let wanted = multipart_upload.and_then(|m| m.parts).unwrap_or_default();
        let numbers = check_parts(&wanted, &stored)?;
        let attributes = self.sidecar(&bucket, &key, Sidecar::Attributes);
        let info = self.sidecar(&bucket, &key, Sidecar::Info);
        let etag = format!("{}-{}", upload.simple(), numbers.len());
        let (root, tag, name, object) = (self.root.clone(), etag.clone(), bucket.clone(), key.clone());
        self.blocking(move || {
            let _turn = turn;
            assembly::assemble(&root, &upload, &numbers, &to)?;
            let given = std::fs::read(root.join(files::upload_attributes_name(&name, &object, &upload)));
            files::write_atomically(&root, &attributes, &given.unwrap_or_else(|_| b"{}".to_vec()))?;
            files::write_atomically(&root, &info, &serde_json::to_vec(&json!({ "e_tag": tag }))?)?;
            files::forget_upload(&root, &name, &object, &upload)
        })
        .await?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            e_tag: Some(ETag::Strong(etag)),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let AbortMultipartUploadInput { bucket, key, upload_id, .. } = req.input;
        let turn = self.turns.take(self.check_upload(&upload_id)?).await;
        let (upload, _) = self.parts(&upload_id).await?;
        let root = self.root.clone();
        self.blocking(move || {
            let _turn = turn;
            files::forget_upload(&root, &bucket, &key, &upload)
        })
        .await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let (root, bucket) = (self.root.clone(), req.input.bucket.clone());
        let prefix = req.input.prefix.clone().unwrap_or_default();
        let uploads = self.blocking(move || files::uploads(&root, &bucket, &prefix)).await?;
        let uploads = uploads.into_iter().map(|(key, upload, opened)| MultipartUpload {
            key: Some(key),
            upload_id: Some(upload.to_string()),
            initiated: Some(opened.into()),
            ..Default::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(req.input.bucket),
            prefix: req.input.prefix,
            uploads: Some(uploads.collect()),
            is_truncated: Some(false),
            ..Default::default()
        }))
    }
}

/// The numbers of the parts to assemble, which must exist, ascend and be large enough.
fn check_parts(wanted: &[CompletedPart], stored: &BTreeMap<u32, files::FileInfo>) -> S3Result<Vec<u32>> {
    let numbers: Option<Vec<u32>> = wanted.iter().map(|p| u32::try_from(p.part_number?).ok()).collect();
    let numbers = numbers.filter(|n| !n.is_empty()).ok_or_else(|| s3_error!(InvalidPart))?;
    if !numbers.is_sorted_by(|a, b| a < b) {
        return Err(s3_error!(InvalidPartOrder));
    }
    let last = numbers.last().copied();
    for number in &numbers {
        let part = stored.get(number).ok_or_else(|| s3_error!(InvalidPart, "part {number} was not uploaded"))?;
        if part.size < MIN_PART && Some(*number) != last {
            return Err(s3_error!(EntityTooSmall, "part {number} has {} bytes", part.size));
        }
    }
    Ok(numbers)
}

/// The file positioned at the start of the range, the bytes to send, and `Content-Range`.
async fn open_range(path: &Path, range: Option<Range>) -> S3Result<(File, u64, Option<String>)> {
    let mut file = File::open(path).await.map_err(|_| s3_error!(NoSuchKey))?;
    let size = file.metadata().await.map_err(S3Error::internal_error)?.len();
    let Some(range) = range else { return Ok((file, size, None)) };
    let range = range.check(size)?;
    file.seek(io::SeekFrom::Start(range.start)).await.map_err(S3Error::internal_error)?;
    let content_range = format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1));
    Ok((file, range.end.saturating_sub(range.start), Some(content_range)))
}
