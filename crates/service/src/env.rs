//! Configuration from the environment, read once in `main`. Every error names its variable.

use secrecy::SecretString;
use std::{collections::HashMap, fmt::Display, path::PathBuf, str::FromStr};

#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    #[error("{name} is not set; {help}")]
    Missing { name: String, help: String },
    #[error("{name} is set to `{value}`, which is not valid: {reason}")]
    Invalid { name: String, value: String, reason: String },
    #[error("cannot read the file {path} that {name} names")]
    File { name: String, path: PathBuf, source: std::io::Error },
}

/// A snapshot of the environment.
#[derive(Debug, Clone, Default)]
pub struct Env(HashMap<String, String>);

impl Env {
    #[must_use]
    pub fn from_process() -> Self {
        Self(std::env::vars().collect())
    }

    /// The value of `name`; an empty value counts as unset.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Every variable, to pick those a child process gets.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// `help` completes the sentence "`name` is not set; …".
    pub fn required(&self, name: &str, help: &str) -> Result<&str, EnvError> {
        self.get(name).ok_or_else(|| EnvError::Missing { name: name.into(), help: help.into() })
    }

    pub fn parse<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, EnvError> {
        let invalid =
            |value: &str, reason: String| EnvError::Invalid { name: name.into(), value: value.into(), reason };
        self.get(name).map(|v| v.parse().map_err(|e: T::Err| invalid(v, e.to_string()))).transpose()
    }

    pub fn parse_or<T: FromStr<Err: Display>>(&self, name: &str, default: T) -> Result<T, EnvError> {
        Ok(self.parse(name)?.unwrap_or(default))
    }

    /// The secret in `name`, or in the file that `{name}_FILE` names.
    pub fn secret(&self, name: &str) -> Result<Option<SecretString>, EnvError> {
        if let Some(value) = self.get(name) {
            return Ok(Some(value.into()));
        }
        let file = format!("{name}_FILE");
        let Some(path) = self.get(&file).map(PathBuf::from) else { return Ok(None) };
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().into())),
            Err(source) => Err(EnvError::File { name: file, path, source }),
        }
    }

    pub fn required_secret(&self, name: &str, help: &str) -> Result<SecretString, EnvError> {
        self.secret(name)?.ok_or_else(|| EnvError::Missing { name: name.into(), help: help.into() })
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        Self(iter.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_variable() {
        let env: Env = [("PORT", "eighty")].into_iter().collect();
        assert_eq!(
            env.parse_or::<u16>("PORT", 1).unwrap_err().to_string(),
            "PORT is set to `eighty`, which is not valid: invalid digit found in string"
        );
        assert_eq!(
            env.required("DATABASE_URL", "give a postgres:// URL").unwrap_err().to_string(),
            "DATABASE_URL is not set; give a postgres:// URL"
        );
    }
}
