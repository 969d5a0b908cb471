//! What attempts have cost, in the database.
//!
//! Invariant: a cost record is a function of its attempt's row and the job's price, and a job's cost the sum of its
//! records. Nothing is ever added to a stored amount, so a repeated callback or a restart cannot count anything twice.

use super::{
    alerts::Thresholds,
    budget::{self, Spending},
};
use crate::{
    db::Conn,
    error::Result,
    notifications::{Kind, News, Severity},
};
use diesel::{
    OptionalExtension, QueryableByName,
    sql_types::{Array, BigInt, Double, Integer, Jsonb, Nullable, Text, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use serde_json::json;
use uuid::Uuid;
use wire::{JobId, UserId, job::Progress};

// From the trainer's first report to its last word, else to when it was found gone, else to its last report.
const RECORD: &str = "
INSERT INTO cost_records (id, user_id, job_id, attempt, gpu_config, seconds, price_per_hour, amount, currency,
    started_at, finished_at)
SELECT due.record, a.user_id, a.job_id, a.attempt, j.gpu_config, s.seconds, j.price_per_hour,
    s.seconds::numeric / 3600 * j.price_per_hour, j.currency, a.claimed_at, coalesce(a.stopped_at, a.finished_at)
FROM unnest($1::uuid[], $2::int[], $3::uuid[]) AS due(job, attempt, record)
JOIN job_attempts a ON a.job_id = due.job AND a.attempt = due.attempt
JOIN training_jobs j ON j.id = a.job_id
CROSS JOIN LATERAL (SELECT greatest(0, extract(epoch FROM coalesce(a.stopped_at, a.finished_at,
    CASE WHEN j.attempt = a.attempt THEN j.last_contact_at END, a.claimed_at) - a.claimed_at))::float8 AS seconds) s
WHERE a.claimed_at IS NOT NULL
ON CONFLICT (job_id, attempt, kind) DO UPDATE
SET seconds = EXCLUDED.seconds, amount = EXCLUDED.amount, finished_at = EXCLUDED.finished_at";

const SUM: &str = "
UPDATE training_jobs SET actual_cost = sums.amount
FROM (SELECT due.job, coalesce(sum(c.amount), 0) AS amount
    FROM unnest($1::uuid[]) AS due(job) LEFT JOIN cost_records c ON c.job_id = due.job GROUP BY due.job) sums
WHERE id = sums.job AND (actual_cost IS DISTINCT FROM round(sums.amount, 4) OR pause ->> 'reason' = 'budget')
RETURNING id, user_id, name, version_id, currency, actual_cost::float8 AS spent, budget_limit::float8 AS budget_limit,
    pause ->> 'reason' AS paused_for";

#[derive(Debug, QueryableByName)]
struct Charged {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    user_id: Uuid,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    version_id: Option<Uuid>,
    #[diesel(sql_type = Text)]
    currency: String,
    #[diesel(sql_type = Double)]
    spent: f64,
    #[diesel(sql_type = Nullable<Double>)]
    budget_limit: Option<f64>,
    #[diesel(sql_type = Nullable<Text>)]
    paused_for: Option<String>,
}

/// Brings the records of attempts and their jobs' costs up to what is known, and tells about reached shares of budgets.
/// The jobs' rows are locked.
pub async fn charge(conn: &mut Conn, due: &[(JobId, i32)], thresholds: Thresholds) -> Result<()> {
    if due.is_empty() {
        return Ok(());
    }
    let (jobs, attempts): (Vec<Uuid>, Vec<i32>) = due.iter().map(|(job, attempt)| (job.0, *attempt)).unzip();
    diesel::sql_query(RECORD)
        .bind::<Array<SqlUuid>, _>(&jobs)
        .bind::<Array<Integer>, _>(attempts)
        .bind::<Array<SqlUuid>, _>(due.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
        .execute(conn)
        .await?;
    let charged: Vec<Charged> = diesel::sql_query(SUM).bind::<Array<SqlUuid>, _>(&jobs).load(conn).await?;
    for charged in &charged {
        let Some(limit) = charged.budget_limit else { continue };
        // It is paused when what is left only pays for its checkpoint: that is the whole budget.
        let whole = charged.paused_for.as_deref() == Some("budget");
        let percent = if whole { 100.0 } else { charged.spent / limit * 100.0 };
        for percent in thresholds.reached(percent) {
            alert(conn, JobId(charged.id), charged, limit, percent).await?;
        }
    }
    Ok(())
}

async fn alert(conn: &mut Conn, job: JobId, charged: &Charged, limit: f64, percent: u32) -> Result<()> {
    let Charged { user_id, name, version_id, currency, spent, .. } = charged;
    let news = News {
        user: UserId(*user_id),
        kind: Kind::BudgetAlert,
        severity: if percent < 100 { Severity::Info } else { Severity::Warning },
        title: format!("`{name}` has used {percent} % of its budget"),
        body: format!("It has spent {spent:.4} of {limit:.4} {currency}."),
        data: json!({"job_id": job, "name": name, "version_id": version_id, "percent": percent, "spent": spent,
            "budget_limit": limit, "currency": currency}),
        job: Some(job),
        key: format!("job:{job}:budget:{percent}"),
    };
    let (Some(version), true) = (version_id, news.raise(conn).await?) else { return Ok(()) };
    diesel::sql_query("UPDATE training_package_versions SET cost_alerts_sent = cost_alerts_sent || $2 WHERE id = $1")
        .bind::<SqlUuid, _>(version)
        .bind::<Jsonb, _>(json!([{"job_id": job, "percent": percent, "at": chrono::Utc::now()}]))
        .execute(conn)
        .await?;
    Ok(())
}

#[derive(Debug, QueryableByName)]
struct SpendingRow {
    #[diesel(sql_type = Double)]
    budget_limit: f64,
    #[diesel(sql_type = Text)]
    currency: String,
    #[diesel(sql_type = Double)]
    price_per_hour: f64,
    #[diesel(sql_type = Double)]
    earlier: f64,
    #[diesel(sql_type = Double)]
    running: f64,
    #[diesel(sql_type = Nullable<Double>)]
    checkpoint: Option<f64>,
}

/// Where a running attempt stands with its budget; none when it has none, or costs nothing.
pub async fn spending(conn: &mut Conn, job: JobId, attempt: i32, progress: &Progress) -> Result<Option<Spending>> {
    let query = "
        SELECT j.budget_limit::float8 AS budget_limit, j.currency, j.price_per_hour::float8 AS price_per_hour,
            coalesce((SELECT sum(amount) FROM cost_records c WHERE c.job_id = $1 AND c.attempt <> $2), 0)::float8
                AS earlier,
            greatest(0, extract(epoch FROM clock_timestamp() - a.claimed_at))::float8 AS running,
            (SELECT checkpoint_seconds FROM job_attempts k WHERE k.job_id = $1 AND checkpoint_seconds IS NOT NULL
                ORDER BY k.attempt DESC LIMIT 1) AS checkpoint
        FROM training_jobs j JOIN job_attempts a ON a.job_id = j.id AND a.attempt = $2
        WHERE j.id = $1 AND j.budget_limit IS NOT NULL AND j.price_per_hour > 0 AND a.claimed_at IS NOT NULL";
    let row = diesel::sql_query(query).bind::<SqlUuid, _>(job.0).bind::<Integer, _>(attempt);
    let row: Option<SpendingRow> = row.get_result(conn).await.optional()?;
    Ok(row.map(|row| Spending {
        limit: row.budget_limit,
        currency: row.currency,
        price_per_hour: row.price_per_hour,
        earlier: row.earlier,
        running: row.running,
        checkpoint: row.checkpoint,
        step: step_seconds(progress),
    }))
}

/// The mean that the remaining time was estimated with.
fn step_seconds(progress: &Progress) -> f64 {
    let left = progress.total_steps.and_then(|total| total.checked_sub(progress.step)).filter(|left| *left > 0);
    let left = left.and_then(|left| u32::try_from(left).ok());
    progress.eta_seconds.zip(left).map_or(0.0, |(eta, left)| eta / f64::from(left))
}

/// Notes how long the checkpoint of `step` took, `at` being when it was durable by the trainer's clock, as the
/// metrics' times are.
pub async fn measure_checkpoint(
    conn: &mut Conn,
    (job, attempt): (JobId, i32),
    step: i64,
    at: chrono::DateTime<chrono::Utc>,
) -> Result<()> {
    diesel::sql_query(
        "UPDATE job_attempts SET checkpoint_seconds = greatest(0, coalesce(
             (SELECT extract(epoch FROM $4 - max(p.at)) FROM metrics_points p
              WHERE p.job_id = $1 AND p.attempt = $2 AND p.step = $3)::float8, checkpoint_seconds))
         WHERE job_id = $1 AND attempt = $2",
    )
    .bind::<SqlUuid, _>(job.0)
    .bind::<Integer, _>(attempt)
    .bind::<BigInt, _>(step)
    .bind::<diesel::sql_types::Timestamptz, _>(at)
    .execute(conn)
    .await?;
    Ok(())
}

/// Why the job may not run: its budget is used up. `pause` is what stopped it last.
pub fn refusal(
    spent: Option<f64>,
    limit: Option<f64>,
    currency: &str,
    stopped_at: Option<f64>,
) -> Option<wire::cost::Pause> {
    let (spent, limit) = (spent.unwrap_or(0.0), limit?);
    let unchanged = stopped_at.is_some_and(|before| limit <= before);
    (unchanged || budget::is_used_up(spent, limit)).then(|| budget::used_up(spent, limit, currency))
}
