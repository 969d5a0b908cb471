//! What still refers to a dataset or an adapter.

use crate::{db::Conn, error::Result};
use diesel::{
    prelude::*,
    sql_types::{BigInt, Bool, Text, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;
use wire::{
    JobId, VersionId,
    dataset::{DatasetUsage, JobUse, VersionUse},
    ids::DatasetId,
};

/// Things of a kind that are listed at most.
const LISTED: i64 = 200;

#[derive(QueryableByName)]
struct Use {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Bool)]
    blocks: bool,
}

/// The jobs and versions of the tenant that name a dataset: those that hold it first, then the newest.
pub async fn of_dataset(conn: &mut Conn, dataset: DatasetId) -> Result<DatasetUsage> {
    let jobs = "SELECT id, name, state, state NOT IN ('succeeded', 'failed', 'cancelled') AS blocks FROM training_jobs
        WHERE $1 IN (dataset_id, validation_dataset_id) AND deleted_at IS NULL ORDER BY blocks DESC, created_at DESC LIMIT $2";
    let versions = "SELECT v.id, v.name, v.status AS state, v.status = 'draft' AS blocks
        FROM training_package_versions v JOIN training_configs p ON p.id = v.package_id AND p.deleted_at IS NULL
        WHERE v.dataset_snapshot @> jsonb_build_object('datasets', jsonb_build_array(jsonb_build_object('id', $1)))
        ORDER BY blocks DESC, v.created_at DESC LIMIT $2";
    let read = async |conn: &mut Conn, query: &str| -> Result<Vec<Use>> {
        let query = diesel::sql_query(query).bind::<SqlUuid, _>(dataset.0).bind::<BigInt, _>(LISTED);
        Ok(query.load(conn).await?)
    };
    let jobs = read(conn, jobs).await?.into_iter();
    let jobs = jobs.map(|u| JobUse { id: JobId(u.id), name: u.name, state: u.state, blocks_deletion: u.blocks });
    let jobs = jobs.collect();
    let versions = read(conn, versions).await?.into_iter();
    let version = |u: Use| VersionUse { id: VersionId(u.id), name: u.name, status: u.state, blocks_deletion: u.blocks };
    Ok(DatasetUsage { jobs, versions: versions.map(version).collect() })
}

/// What continues from the adapter that `job` made: unfinished jobs, drafts and published versions, ten at most of each.
pub async fn continuing_from(conn: &mut Conn, job: JobId) -> Result<Vec<String>> {
    #[derive(QueryableByName)]
    struct Named {
        #[diesel(sql_type = Text)]
        name: String,
    }
    let rows: Vec<Named> = diesel::sql_query(
        "(SELECT 'job ' || id AS name FROM training_jobs
             WHERE spec #>> '{adapter,job_id}' = $1::text AND deleted_at IS NULL
             AND state NOT IN ('succeeded', 'failed', 'cancelled') ORDER BY created_at LIMIT 10)
         UNION ALL
         (SELECT 'version ' || v.name AS name FROM training_package_versions v
             JOIN training_configs p ON p.id = v.package_id AND p.deleted_at IS NULL
             WHERE v.config_snapshot @> jsonb_build_object('lora', jsonb_build_object('init_from', $1::text))
             AND v.status <> 'archived' ORDER BY v.created_at LIMIT 10)",
    )
    .bind::<SqlUuid, _>(job.0)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}
