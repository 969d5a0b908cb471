//! Cost records as the API reads them. They are written by `crate::costs::ledger`.

use super::{page::PageQuery, unsigned};
use crate::{db::Conn, error::Result};
use chrono::{DateTime, Utc};
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;
use wire::{
    cost::{CostFilter, CostGroup, CostRecord, CostSum, CostSummary, CostTotal},
    ids::{JobId, VersionId},
};

/// Parameters $1 to $5.
const FROM: &str = "
FROM cost_records c
JOIN training_jobs j ON j.id = c.job_id
LEFT JOIN training_package_versions v ON v.id = j.version_id
LEFT JOIN training_configs p ON p.id = v.package_id
JOIN users u ON u.id = c.user_id
WHERE ($1 IS NULL OR c.job_id = $1) AND ($2 IS NULL OR j.version_id = $2) AND ($3 IS NULL OR v.package_id = $3)
    AND ($4 IS NULL OR c.started_at >= $4) AND ($5 IS NULL OR c.started_at < $5)";

#[derive(Debug, Clone, QueryableByName)]
pub struct Cost {
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    pub created_at: DateTime<Utc>,
    #[diesel(sql_type = SqlUuid)]
    job_id: Uuid,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Integer)]
    attempt: i32,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    version_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<Text>)]
    gpu_config: Option<String>,
    #[diesel(sql_type = Double)]
    seconds: f64,
    #[diesel(sql_type = Double)]
    price_per_hour: f64,
    #[diesel(sql_type = Double)]
    amount: f64,
    #[diesel(sql_type = Text)]
    currency: String,
    #[diesel(sql_type = Timestamptz)]
    started_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    finished_at: Option<DateTime<Utc>>,
}

impl From<Cost> for CostRecord {
    fn from(row: Cost) -> Self {
        Self {
            job_id: JobId(row.job_id),
            job_name: row.name,
            attempt: u32::try_from(row.attempt).unwrap_or_default(),
            version_id: row.version_id.map(VersionId),
            gpu_config: row.gpu_config,
            seconds: row.seconds,
            price_per_hour: row.price_per_hour,
            amount: row.amount,
            currency: row.currency,
            started_at: row.started_at,
            finished_at: row.finished_at,
        }
    }
}

#[derive(Debug, QueryableByName)]
struct SumRow {
    #[diesel(sql_type = Bool)]
    is_total: bool,
    #[diesel(sql_type = Nullable<Text>)]
    key: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    label: Option<String>,
    #[diesel(sql_type = Text)]
    currency: String,
    #[diesel(sql_type = Double)]
    amount: f64,
    #[diesel(sql_type = Double)]
    seconds: f64,
    #[diesel(sql_type = BigInt)]
    jobs: i64,
}

impl Cost {
    /// Newest first; one row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery, filter: CostFilter) -> Result<Vec<Self>> {
        let (at, id) = query.after::<Uuid>()?.unzip();
        let select = format!(
            "SELECT c.id, c.created_at, c.job_id, j.name, c.attempt, j.version_id, c.gpu_config, c.seconds,
                c.price_per_hour::float8 AS price_per_hour, c.amount::float8 AS amount, c.currency, c.started_at,
                c.finished_at
             {FROM} AND ($6 IS NULL OR (c.created_at, c.id) < ($6, $7))
             ORDER BY c.created_at DESC, c.id DESC LIMIT $8"
        );
        let rows = diesel::sql_query(select)
            .bind::<Nullable<SqlUuid>, _>(filter.job.map(|id| id.0))
            .bind::<Nullable<SqlUuid>, _>(filter.version.map(|id| id.0))
            .bind::<Nullable<SqlUuid>, _>(filter.package.map(|id| id.0))
            .bind::<Nullable<Timestamptz>, _>(filter.from)
            .bind::<Nullable<Timestamptz>, _>(filter.to)
            .bind::<Nullable<Timestamptz>, _>(at)
            .bind::<Nullable<SqlUuid>, _>(id)
            .bind::<BigInt, _>(query.limit()? + 1);
        Ok(rows.load(conn).await?)
    }

    /// Sums of the records that `conn` may see, added up exactly before they become floats.
    pub async fn summary(conn: &mut Conn, group_by: CostGroup, filter: CostFilter) -> Result<CostSummary> {
        let (key, label) = match group_by {
            CostGroup::Day => ("to_char(c.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')", "NULL::text"),
            CostGroup::Package => ("p.id::text", "p.name"),
            CostGroup::User => ("u.id::text", "u.name"),
            CostGroup::GpuConfig => ("c.gpu_config", "NULL::text"),
        };
        let select = format!(
            "SELECT grouping(key) = 1 AS is_total, key, label, currency, sum(amount)::float8 AS amount,
                sum(seconds)::float8 AS seconds, count(DISTINCT job_id) AS jobs
             FROM (SELECT {key} AS key, {label} AS label, c.currency, c.amount, c.seconds, c.job_id {FROM}) one
             GROUP BY GROUPING SETS ((key, label, currency), (currency))
             ORDER BY key, currency"
        );
        let rows: Vec<SumRow> = diesel::sql_query(select)
            .bind::<Nullable<SqlUuid>, _>(filter.job.map(|id| id.0))
            .bind::<Nullable<SqlUuid>, _>(filter.version.map(|id| id.0))
            .bind::<Nullable<SqlUuid>, _>(filter.package.map(|id| id.0))
            .bind::<Nullable<Timestamptz>, _>(filter.from)
            .bind::<Nullable<Timestamptz>, _>(filter.to)
            .load(conn)
            .await?;
        let (total, groups): (Vec<SumRow>, Vec<SumRow>) = rows.into_iter().partition(|row| row.is_total);
        let sum = |row: SumRow| CostSum {
            key: row.key,
            label: row.label,
            currency: row.currency,
            amount: row.amount,
            seconds: row.seconds,
            jobs: unsigned(row.jobs),
        };
        let whole = |row: SumRow| CostTotal {
            currency: row.currency,
            amount: row.amount,
            seconds: row.seconds,
            jobs: unsigned(row.jobs),
        };
        Ok(CostSummary {
            group_by,
            groups: groups.into_iter().map(sum).collect(),
            total: total.into_iter().map(whole).collect(),
        })
    }
}
