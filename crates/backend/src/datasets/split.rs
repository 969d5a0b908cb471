//! `POST /datasets/{id}/split`: the rows of a file, divided by a seed into two new datasets.
//!
//! The gateway copies the rows, one dataset after the other; both are validated like uploads. Both become datasets, or
//! nothing is kept.

use super::{check_name, discard, finish, keep_alive, key, reserve};
use crate::{
    audit,
    db::Conn,
    error::{Error, Result},
    state::AppState,
    store::Dataset,
};
use wire::{
    dataset::{
        DatasetFile, DatasetFormat, DatasetOrigin, DatasetStatus, DatasetView, Split, SplitDataset, SplitDatasets,
    },
    ids::UserId,
    problem::{Code, FieldError, Problem},
    storage::{ObjectInfo, RowPart, RowSample, SelectRequest},
};

/// Runs to its end, or to its clean-up, also when the client goes away.
pub async fn split(state: AppState, user: UserId, id_or_name: String, request: SplitDataset) -> Result<SplitDatasets> {
    let task =
        actix_web::rt::spawn(audit::carry(
            async move { Job::new(state, user, &id_or_name, request).await?.run().await },
        ));
    task.await.map_err(Error::defect)?
}

fn invalid(path: &str, message: &str) -> Error {
    let problem = Problem::new(Code::Invalid, format!("{path}: {message}"));
    problem.with_errors(vec![FieldError::new(path, message)]).into()
}

/// The rows to divide, and the datasets they go to.
struct Job {
    state: AppState,
    file: DatasetFile,
    format: DatasetFormat,
    chosen: u64,
    seed: u64,
    train: Dataset,
    validation: Dataset,
}

impl Job {
    /// Reserves the names.
    async fn new(state: AppState, user: UserId, id_or_name: &str, request: SplitDataset) -> Result<Self> {
        let wanted = id_or_name.to_owned();
        let find = async move |conn: &mut Conn| Dataset::find(conn, &wanted).await;
        let parent = state.db.tenant(user, find).await?;
        let (file, format) = source(&parent, request.file)?;
        let chosen = chosen(file.report.rows, request.ratio)?;
        let name = |given: Option<String>, suffix: &str| given.unwrap_or_else(|| format!("{}-{suffix}", parent.name));
        let names = [name(request.train_name, "train"), name(request.validation_name, "validation")];
        names.iter().try_for_each(|name| check_name(name))?;
        if names.first() == names.last() {
            return Err(invalid("validation_name", "must not be the other dataset's"));
        }
        let origin = |part| DatasetOrigin {
            dataset_id: parent.id(),
            file: request.file,
            part,
            ratio: request.ratio,
            seed: request.seed,
        };
        let origins = [origin(Split::Train), origin(Split::Validation)];
        let (quota, size) = (state.config.dataset_quota, file.size);
        let insert = async move |conn: &mut Conn| {
            let ([first, second], [train_origin, validation_origin]) = (names, origins);
            let train = reserve(conn, quota, user, (&first, size)).await?;
            let validation = reserve(conn, quota, user, (&second, 0)).await?;
            Dataset::set_origin(conn, train.id(), train_origin).await?;
            Dataset::set_origin(conn, validation.id(), validation_origin).await?;
            Ok((train, validation))
        };
        let (train, validation) = state.db.tenant(user, insert).await?;
        Ok(Self { state, file, format, chosen, seed: request.seed, train, validation })
    }

    async fn run(self) -> Result<SplitDatasets> {
        let both = keep_alive(&self.state, &self.validation, self.fill());
        let done = keep_alive(&self.state, &self.train, both).await;
        if done.is_err() {
            discard(&self.state, &self.train).await;
            discard(&self.state, &self.validation).await;
        }
        done
    }

    async fn fill(&self) -> Result<SplitDatasets> {
        let train = self.copy(&self.train, RowPart::Chosen).await?;
        let validation = self.copy(&self.validation, RowPart::Rest).await?;
        Ok(SplitDatasets {
            train: self.finish(&self.train, train).await?,
            validation: self.finish(&self.validation, validation).await?,
        })
    }

    async fn copy(&self, dataset: &Dataset, part: RowPart) -> Result<ObjectInfo> {
        let sample = RowSample { rows: self.file.report.rows, chosen: self.chosen, seed: self.seed, part };
        let from = self.file.key.clone();
        let to = key(dataset, Split::Train, &from);
        let copied = self.state.gateway.select_rows(&SelectRequest { from, to, format: self.format, sample }).await;
        copied.map_err(|error| match error.status() {
            Some(404) => Error::refused(Code::Conflict, "the dataset was deleted in the meantime"),
            _ => error.into(),
        })
    }

    async fn finish(&self, dataset: &Dataset, object: ObjectInfo) -> Result<DatasetView> {
        finish(&self.state, dataset.clone(), vec![(Split::Train, object)]).await
    }
}

fn source(parent: &Dataset, wanted: Split) -> Result<(DatasetFile, DatasetFormat)> {
    let name = &parent.name;
    if parent.status.0 != DatasetStatus::Ready {
        return Err(Error::refused(
            Code::Conflict,
            format!("the dataset `{name}` is not ready, so it cannot be split"),
        ));
    }
    let missing = || invalid("file", &format!("the dataset `{name}` has no such file"));
    let file = parent.file(wanted).ok_or_else(missing)?;
    Ok((file.clone(), parent.format.ok_or_else(missing)?.0))
}

/// How many of `rows` go to the first dataset; each gets at least one.
fn chosen(rows: u64, ratio: f64) -> Result<u64> {
    if !(ratio > 0.0 && ratio < 1.0) {
        return Err(invalid("ratio", "must be above 0 and below 1"));
    }
    if rows < 2 {
        return Err(Error::refused(Code::Conflict, "the file has fewer than two rows, so it cannot be split"));
    }
    #[expect(clippy::as_conversions, reason = "rows are far below 2^53, and the ratio is below 1")]
    let share = (rows as f64 * ratio).round() as u64;
    Ok(share.clamp(1, rows.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::chosen;

    #[test]
    fn shares_are_rounded_and_nobody_goes_without() {
        let share = |rows, ratio| chosen(rows, ratio).unwrap();
        assert_eq!([share(10, 0.9), share(7, 0.5), share(2, 0.999), share(1000, 0.000_1)], [9, 4, 1, 1]);
        for (rows, ratio) in [(1, 0.5), (0, 0.5), (10, 0.0), (10, 1.0), (10, f64::NAN), (10, -1.0)] {
            assert!(chosen(rows, ratio).is_err(), "{rows} {ratio}");
        }
    }
}
