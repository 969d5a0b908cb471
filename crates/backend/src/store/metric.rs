//! Curves: rows (job, attempt, step, name) become one point per step.

use crate::{
    db::Conn,
    error::Result,
    schema::metrics_points,
    store::{signed, unsigned},
};
use chrono::{DateTime, Utc};
use diesel::{prelude::*, sql_types};
use diesel_async::RunQueryDsl;
use uuid::Uuid;
use wire::{ids::JobId, job::MetricPoint};

#[derive(Debug, QueryableByName)]
#[diesel(table_name = metrics_points, check_for_backend(diesel::pg::Pg))]
struct Row {
    attempt: i32,
    step: i64,
    name: String,
    epoch: f64,
    value: f64,
    at: DateTime<Utc>,
}

/// The next `limit` steps after `after_step` (from the start when absent), each once: where an attempt
/// repeated steps of an earlier one, the newest value of each metric counts, unless `attempt` picks one.
pub async fn points(
    conn: &mut Conn,
    job: JobId,
    after_step: Option<u64>,
    attempt: Option<u32>,
    limit: u32,
) -> Result<Vec<MetricPoint>> {
    let rows: Vec<Row> = diesel::sql_query(
        "WITH steps AS (
             SELECT DISTINCT step FROM metrics_points
             WHERE job_id = $1 AND step > $2 AND ($3 IS NULL OR attempt = $3) ORDER BY step LIMIT $4
         )
         SELECT DISTINCT ON (step, name) attempt, step, name, epoch, value, at FROM metrics_points
         WHERE job_id = $1 AND step > $2 AND step <= (SELECT max(step) FROM steps) AND ($3 IS NULL OR attempt = $3)
         ORDER BY step, name, attempt DESC",
    )
    .bind::<sql_types::Uuid, Uuid>(job.0)
    .bind::<sql_types::BigInt, i64>(after_step.map_or(-1, signed))
    .bind::<sql_types::Nullable<sql_types::Integer>, _>(attempt.map(|a| i32::try_from(a).unwrap_or(i32::MAX)))
    .bind::<sql_types::BigInt, i64>(limit.into())
    .load(conn)
    .await?;
    Ok(gather(rows.into_iter().map(|row| (row.step, row))))
}

#[derive(Debug, QueryableByName)]
#[diesel(check_for_backend(diesel::pg::Pg))]
struct Bucket {
    #[diesel(sql_type = sql_types::BigInt)]
    bucket: i64,
    #[diesel(embed)]
    row: Row,
}

/// The whole curve in at most `count` points: as many stretches of equal length, each with the mean of every metric in
/// it, its last step, epoch and time. What counts where attempts repeat steps is as in [`points`].
pub async fn buckets(conn: &mut Conn, job: JobId, attempt: Option<u32>, count: u32) -> Result<Vec<MetricPoint>> {
    let rows: Vec<Bucket> = diesel::sql_query(
        // Most jobs have one attempt, whose rows need no sorting to find the newest of a step.
        "WITH span AS (
             SELECT (SELECT min(step) FROM metrics_points WHERE job_id = $1) AS lowest,
                    (SELECT max(step) FROM metrics_points WHERE job_id = $1) AS highest,
                    (SELECT min(attempt) <> max(attempt) FROM metrics_points WHERE job_id = $1) AS repeated
         ), chosen AS (
             SELECT attempt, step, name, epoch, value, at FROM metrics_points
             WHERE job_id = $1 AND ($2 IS NOT NULL OR NOT (SELECT repeated FROM span)) AND ($2 IS NULL OR attempt = $2)
             UNION ALL (
                 SELECT DISTINCT ON (step, name) attempt, step, name, epoch, value, at FROM metrics_points
                 WHERE job_id = $1 AND $2 IS NULL AND (SELECT repeated FROM span)
                 ORDER BY step, name, attempt DESC
             )
         )
         SELECT (step - lowest) * $3 / (highest - lowest + 1) AS bucket, name, max(attempt) AS attempt,
                max(step) AS step, max(epoch) AS epoch, avg(value) AS value, max(at) AS at
         FROM chosen, span GROUP BY 1, 2 ORDER BY 1, 2",
    )
    .bind::<sql_types::Uuid, Uuid>(job.0)
    .bind::<sql_types::Nullable<sql_types::Integer>, _>(attempt.map(|a| i32::try_from(a).unwrap_or(i32::MAX)))
    .bind::<sql_types::BigInt, i64>(count.into())
    .load(conn)
    .await?;
    Ok(gather(rows.into_iter().map(|b| (b.bucket, b.row))))
}

/// One point for the rows side by side that have the same key.
fn gather(rows: impl Iterator<Item = (i64, Row)>) -> Vec<MetricPoint> {
    let mut points: Vec<(i64, MetricPoint)> = Vec::new();
    for (key, row) in rows {
        let (step, attempt) = (unsigned(row.step), u32::try_from(row.attempt).unwrap_or_default());
        match points.last_mut().filter(|(of, _)| *of == key) {
            Some((_, point)) => {
                point.attempt = point.attempt.max(attempt);
                point.step = point.step.max(step);
                point.epoch = point.epoch.max(row.epoch);
                point.at = point.at.max(row.at);
                point.values.insert(row.name, row.value);
            }
            None => {
                let values = [(row.name, row.value)].into();
                points.push((key, MetricPoint { attempt, step, epoch: row.epoch, at: row.at, values }));
            }
        }
    }
    points.into_iter().map(|(_, point)| point).collect()
}

/// Makes the partitions of this month and the next two. As system: the database owner's function does the rest.
pub async fn make_partitions(conn: &mut Conn) -> Result<()> {
    diesel::sql_query("SELECT hone_metric_partitions(2)").execute(conn).await?;
    Ok(())
}
