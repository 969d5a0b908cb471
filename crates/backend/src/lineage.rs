//! Where an artifact comes from, from what was stored with its job.

use crate::{
    db::Conn,
    error::{Error, Result},
    schema::{training_configs as packages, training_jobs as jobs, training_package_versions as versions},
    store::{Artifact, Json, job::SpecSnapshot},
};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use uuid::Uuid;
use wire::{
    JobId, PackageId, TrainingConfig, VersionId,
    artifact::{Lineage, LineageAdapter, LineageDataset, LineageJob, LineageModel, LineageVersion},
    dataset::Split,
    ids::ArtifactId,
    storage::FileRef,
};

pub async fn of(conn: &mut Conn, id: ArtifactId) -> Result<Lineage> {
    let artifact = Artifact::find(conn, id).await?;
    let row = jobs::table.find(artifact.job_id).select((jobs::name, jobs::config, jobs::spec, jobs::version_id));
    let (name, Json(config), Json(spec), version): (String, Json<TrainingConfig>, Json<SpecSnapshot>, Option<Uuid>) =
        row.first(conn).await?;
    let SpecSnapshot { model, dataset, adapter } = spec;
    let file = |split, f: FileRef| LineageDataset { split, sha256: f.sha256, size: f.size, key: f.key };
    let held_out = dataset.validation.map(|f| file(Split::Validation, f));
    Ok(Lineage {
        artifact_id: id,
        kind: artifact.kind.0,
        files: artifact.files.0,
        job: LineageJob {
            id: JobId(artifact.job_id),
            name,
            attempt: u32::try_from(artifact.attempt).map_err(Error::defect)?,
            config,
        },
        version: match version {
            Some(version) => find_version(conn, version).await?,
            None => None,
        },
        datasets: [file(Split::Train, dataset.train)].into_iter().chain(held_out).collect(),
        base_model: LineageModel { name: model.name, revision: model.revision, files: model.files },
        continued_from: adapter.map(|a| LineageAdapter { job_id: a.job_id, files: a.files }),
    })
}

async fn find_version(conn: &mut Conn, id: Uuid) -> Result<Option<LineageVersion>> {
    let row = versions::table
        .inner_join(packages::table.on(packages::id.eq(versions::package_id)))
        .filter(versions::id.eq(id))
        .select((versions::name, packages::id, packages::name));
    let found: Option<(String, Uuid, String)> = row.first(conn).await.optional()?;
    let view = |(name, package, title)| LineageVersion {
        id: VersionId(id),
        name,
        package_id: PackageId(package),
        package: title,
    };
    Ok(found.map(view))
}
