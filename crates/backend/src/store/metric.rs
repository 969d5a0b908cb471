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
    let mut points: Vec<MetricPoint> = Vec::new();
    for row in rows {
        let (step, attempt) = (unsigned(row.step), u32::try_from(row.attempt).unwrap_or_default());
        match points.last_mut().filter(|p| p.step == step) {
            Some(point) => {
                point.attempt = point.attempt.max(attempt);
                point.epoch = point.epoch.max(row.epoch);
                point.at = point.at.max(row.at);
                point.values.insert(row.name, row.value);
            }
            None => {
                let values = [(row.name, row.value)].into();
                points.push(MetricPoint { attempt, step, epoch: row.epoch, at: row.at, values });
            }
        }
    }
    Ok(points)
}

/// Makes the partitions of this month and the next two. As system: the database owner's function does the rest.
pub async fn make_partitions(conn: &mut Conn) -> Result<()> {
    diesel::sql_query("SELECT hone_metric_partitions(2)").execute(conn).await?;
    Ok(())
}
