//! `lora.init_from` of a job: the adapter of an earlier job, found and checked before anything is stored.

use crate::{
    db::Conn,
    error::{Error, Result},
    store::{Artifact, Job, Model},
};
use wire::{
    JobId, JobState, TrainingConfig,
    job::AdapterSpec,
    problem::{Code, FieldError, Problem},
    storage::FileRef,
};

const FIELD: &str = "lora.init_from";
/// PEFT's names.
const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// The adapter that `config` names, which must be of `model`; `None` when it names none. Only jobs of the tenant of
/// `conn` are seen.
pub async fn find(conn: &mut Conn, config: &TrainingConfig, model: &Model) -> Result<Option<AdapterSpec>> {
    let Some(named) = &config.lora.init_from else { return Ok(None) };
    let Ok(id) = named.parse().map(JobId) else {
        let message = format!("`{named}` is no job's id; give that of a job whose adapter to continue from");
        return Err(refused(Code::Invalid, message));
    };
    let job = Job::find(conn, id).await?;
    let state: JobState = job.state.parse().map_err(Error::defect)?;
    if state != JobState::Succeeded {
        let message = format!("the job {id} is {state}; continue from one that has succeeded");
        return Err(refused(Code::Conflict, message));
    }
    if !job.config.0.trains_adapter() {
        let message = format!("the job {id} trained all weights, not an adapter; import its model and train on that");
        return Err(refused(Code::Invalid, message));
    }
    // A revision is named by its content, so models of one revision are the same under any name.
    if job.model_revision != model.revision {
        let message = format!(
            "the job {id} trained an adapter of {}@{}, which does not fit {}@{}; use that base model",
            job.model_name, job.model_revision, model.name, model.revision
        );
        return Err(refused(Code::Invalid, message));
    }
    if Artifact::is_deleted(conn, id).await? {
        return Err(refused(Code::Invalid, format!("the adapter of the job {id} was deleted")));
    }
    let (_, files) = Job::manifest(conn, id).await?.unwrap_or_default();
    let adapter = adapter_of(id, &files);
    adapter.map(Some).ok_or_else(|| refused(Code::Invalid, format!("the job {id} left no adapter to continue from")))
}

/// The adapter among a job's artifacts.
fn adapter_of(job_id: JobId, artifacts: &[FileRef]) -> Option<AdapterSpec> {
    let prefix = artifacts.iter().find_map(|f| f.key.strip_suffix(FILES[0]))?;
    let file = |name: &str| artifacts.iter().find(|f| f.key.strip_prefix(prefix) == Some(name)).cloned();
    let files = FILES.into_iter().map(file).collect::<Option<Vec<_>>>()?;
    Some(AdapterSpec { job_id, prefix: prefix.to_owned(), files })
}

fn refused(code: Code, message: String) -> Error {
    let problem = Problem::new(code, format!("training configuration: {FIELD}: {message}"));
    problem.with_errors(vec![FieldError::new(FIELD, message)]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_its_weights_and_its_configuration() {
        let file = |key: &str| FileRef { key: key.into(), size: 1, sha256: "0".repeat(64) };
        let id = JobId::random();
        let all = ["a/x/README.md", "a/x/adapter_config.json", "a/x/adapter_model.safetensors"].map(file);
        let found = adapter_of(id, &all).unwrap();
        assert_eq!((found.prefix.as_str(), found.files.len(), found.job_id), ("a/x/", 2, id));
        assert_eq!(adapter_of(id, &all[..2]), None);
        assert_eq!(adapter_of(id, &[]), None);
    }
}
