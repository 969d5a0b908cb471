//! Settings, by the names MLflow's own client reads.

use secrecy::SecretString;
use service::{Env, EnvError};

const URI: &str = "MLFLOW_TRACKING_URI";

/// How calls are authenticated.
#[derive(Debug, Clone)]
pub enum Credentials {
    None,
    Basic { username: String, password: SecretString },
    Bearer(SecretString),
}

#[derive(Debug, Clone)]
pub struct MlflowConfig {
    /// Without a trailing slash.
    pub uri: String,
    pub experiment: String,
    pub credentials: Credentials,
}

impl MlflowConfig {
    /// None without `MLFLOW_TRACKING_URI`.
    pub fn from_env(env: &Env) -> Result<Option<Self>, EnvError> {
        let Some(uri) = env.get(URI) else { return Ok(None) };
        let invalid = |reason: &str| {
            // Its user part may be a password.
            let value = url::Url::parse(uri).map_or("…".to_owned(), |u| format!("{}:…", u.scheme()));
            EnvError::Invalid { name: URI.into(), value, reason: reason.into() }
        };
        let parsed = url::Url::parse(uri).map_err(|e| invalid(&format!("{e}; give the URL of an MLflow server")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(invalid("must be the http:// or https:// URL of an MLflow server"));
        }
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(invalid("give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"));
        }
        let username = env.get("MLFLOW_TRACKING_USERNAME").map(str::to_owned);
        // As MLflow's client does: a name with a password counts more than a token.
        let credentials = match (username, env.secret("MLFLOW_TRACKING_PASSWORD")?) {
            (Some(username), Some(password)) => Credentials::Basic { username, password },
            _ => env.secret("MLFLOW_TRACKING_TOKEN")?.map_or(Credentials::None, Credentials::Bearer),
        };
        Ok(Some(Self {
            uri: uri.trim_end_matches('/').to_owned(),
            experiment: env.get("MLFLOW_EXPERIMENT_NAME").unwrap_or("hone").to_owned(),
            credentials,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<Option<MlflowConfig>, String> {
        MlflowConfig::from_env(&variables.iter().copied().collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn without_an_address_nothing_is_exported() {
        assert!(config(&[("MLFLOW_TRACKING_TOKEN", "t")]).unwrap().is_none());
        let with = config(&[(URI, "http://mlflow:5000/"), ("MLFLOW_TRACKING_TOKEN", "t")]).unwrap().unwrap();
        assert_eq!((with.uri.as_str(), with.experiment.as_str()), ("http://mlflow:5000", "hone"));
        assert!(matches!(with.credentials, Credentials::Bearer(_)));
    }

    #[test]
    fn what_is_no_server_is_refused_and_a_password_is_not_repeated() {
        let error = config(&[(URI, "sqlite:///mlflow.db")]).unwrap_err();
        assert!(error.contains("MLFLOW_TRACKING_URI") && error.contains("http://"), "{error}");
        let error = config(&[(URI, "https://me:hunter2@mlflow")]).unwrap_err();
        assert!(error.contains("MLFLOW_TRACKING_PASSWORD") && !error.contains("hunter2"), "{error}");
    }
}
