//! The result file of a job: its metrics by step as CSV. It appears once the job has succeeded, and it is written from
//! the stored metrics whenever somebody reads it.

use super::files::{
    Purpose,
    rows::{FileRow, NewFile},
};
use crate::{
    db::Conn,
    error::Result,
    schema::{openai_files, openai_jobs, training_jobs},
    state::AppState,
    store::metric,
};
use bytes::Bytes;
use diesel::{dsl::exists, dsl::not, prelude::*};
use diesel_async::RunQueryDsl;
use futures::{Stream, stream};
use std::fmt::Write;
use uuid::Uuid;
use wire::{
    JobState,
    event::metric::{EVAL_LOSS, REWARDS_ACCURACIES, TRAIN_LOSS},
    ids::{JobId, UserId},
    job::MetricPoint,
};

const FILENAME: &str = "step_metrics.csv";
const HEADER: &str = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n";
/// Steps read at once.
const PAGE: u32 = 10_000;
/// Jobs that get their file at once.
const BATCH: i64 = 20;

/// Makes the files of the jobs that succeeded since the last look.
pub async fn settle(conn: &mut Conn, user: UserId) -> Result<()> {
    let file = openai_files::table.filter(openai_files::id.eq(openai_jobs::job_id));
    let rows = openai_jobs::table
        .inner_join(training_jobs::table.on(training_jobs::id.eq(openai_jobs::job_id)))
        .filter(training_jobs::state.eq(JobState::Succeeded.as_str()))
        .filter(not(exists(file)))
        .select(openai_jobs::job_id)
        .limit(BATCH);
    let jobs: Vec<Uuid> = rows.load(conn).await?;
    for job in jobs {
        let (mut size, mut after) = (HEADER.len(), None);
        while let Some((text, last)) = page(conn, job, after).await? {
            (size, after) = (size + text.len(), Some(last));
        }
        let new = NewFile {
            id: job,
            user,
            filename: FILENAME.into(),
            purpose: Purpose::FineTuneResults,
            size: u64::try_from(size).unwrap_or(u64::MAX),
            error: None,
            dataset: None,
            job: Some(job),
            key: None,
            sha256: None,
            lifetime: None,
        };
        FileRow::insert(conn, new).await?;
    }
    Ok(())
}

/// The whole file.
pub fn content(state: AppState, user: UserId, job: Uuid) -> impl Stream<Item = Result<Bytes>> {
    stream::try_unfold(Place::Header, move |place| {
        let state = state.clone();
        async move {
            let after = match place {
                Place::Header => return Ok(Some((Bytes::from_static(HEADER.as_bytes()), Place::After(None)))),
                Place::After(step) => step,
            };
            let read = async move |conn: &mut Conn| page(conn, job, after).await;
            let page = state.db.tenant(user, read).await?;
            Ok(page.map(|(text, last)| (Bytes::from(text), Place::After(Some(last)))))
        }
    })
}

enum Place {
    Header,
    After(Option<u64>),
}

/// The lines of the next steps, and the last of them.
async fn page(conn: &mut Conn, job: Uuid, after: Option<u64>) -> Result<Option<(String, u64)>> {
    let points = metric::points(conn, JobId(job), after, None, PAGE).await?;
    Ok(points.last().map(|last| (lines(&points), last.step)))
}

/// Steps that were trained or evaluated. Accuracy is known where a pair was told apart (DPO); that of single tokens is
/// not measured.
fn lines(points: &[MetricPoint]) -> String {
    let mut text = String::new();
    for point in points {
        let value = |name: &str| point.values.get(name).map(f64::to_string).unwrap_or_default();
        let (train, valid) = (value(TRAIN_LOSS), value(EVAL_LOSS));
        if !(train.is_empty() && valid.is_empty()) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{},{train},{},{valid},", point.step, value(REWARDS_ACCURACIES));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_per_step_that_was_trained_or_evaluated() {
        let point = |step, values: &[(&str, f64)]| MetricPoint {
            attempt: 1,
            step,
            epoch: 0.0,
            at: chrono::DateTime::UNIX_EPOCH,
            values: values.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
        };
        let points = [
            point(0, &[(EVAL_LOSS, 2.5)]),
            point(1, &[(TRAIN_LOSS, 2.25), (REWARDS_ACCURACIES, 0.5)]),
            point(2, &[("stall_seconds", 1.0)]),
        ];
        assert_eq!(lines(&points), "0,,,2.5,\n1,2.25,0.5,,\n");
    }
}
