//! What every command needs: settings, the way to print, and the way to the server.

use crate::{
    error::{CliError, CliResult, Exit},
    ui::Ui,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use service::{Client, ClientConfig, Env, client::RetryPolicy};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Name of the file in the data directory that tells the other commands where Hone is.
pub const CONNECTION: &str = "connection.json";

#[derive(Debug, Clone)]
pub struct Context {
    pub env: Env,
    pub ui: Ui,
    pub data_dir: PathBuf,
}

/// Content of [`CONNECTION`].
#[derive(Clone, Serialize, Deserialize)]
pub struct Connection {
    pub url: String,
    pub api_key: String,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("url", &self.url).field("api_key", &"[redacted]").finish()
    }
}

impl Connection {
    /// `None` when there is no such file.
    pub fn read(data_dir: &Path) -> CliResult<Option<Self>> {
        let path = data_dir.join(CONNECTION);
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| CliError::io("read", &path, &e))?,
        };
        let parsed = serde_json::from_str(&text);
        parsed.map(Some).map_err(|e| {
            CliError::failed(format!("{} cannot be read: {e}", path.display()))
                .hint("`hone up` writes it again: `hone down`, then `hone up`")
        })
    }
}

impl Context {
    /// `data_dir` is the argument of `--data-dir`.
    pub fn new(env: Env, ui: Ui, data_dir: Option<PathBuf>) -> CliResult<Self> {
        let data_dir = match data_dir {
            Some(dir) => dir,
            None => default_data_dir(&env)?,
        };
        let absolute = std::path::absolute(&data_dir).map_err(|e| CliError::file("use", &data_dir, &e))?;
        Ok(Self { env, ui, data_dir: absolute })
    }

    /// `HONE_URL` and `HONE_API_KEY`, else what `hone up` wrote into the data directory.
    pub fn connection(&self) -> CliResult<(String, SecretString)> {
        let (url, key) = (self.env.get("HONE_URL"), self.env.secret("HONE_API_KEY")?);
        if let (Some(url), Some(key)) = (url, &key) {
            return Ok((url.to_owned(), key.clone()));
        }
        let Some(found) = Connection::read(&self.data_dir)? else {
            let path = self.data_dir.join(CONNECTION);
            let message = match url {
                Some(_) => format!(
                    "HONE_URL is set, but there is no API key: HONE_API_KEY is not set, and {} does not exist",
                    path.display()
                ),
                None => format!("no Hone to talk to: {} does not exist", path.display()),
            };
            return Err(CliError::new(Exit::Unreachable, message).hint(
                "start one here with `hone up`, name its directory with --data-dir, or set HONE_URL and HONE_API_KEY",
            ));
        };
        Ok((url.map_or(found.url, str::to_owned), key.unwrap_or_else(|| found.api_key.into())))
    }

    /// A client for the backend.
    pub fn client(&self) -> CliResult<Client> {
        let (url, key) = self.connection()?;
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(CliError::invalid(format!("HONE_URL is `{url}`, which is no http:// or https:// address")));
        }
        if key.expose_secret().chars().any(|c| c.is_control() || !c.is_ascii()) {
            return Err(CliError::invalid("the API key holds characters that no key has; check HONE_API_KEY"));
        }
        let config = ClientConfig::new("hone", url).bearer(key).retry(RetryPolicy::INTERACTIVE);
        Ok(Client::new(config.timeout(Duration::from_secs(60)))?)
    }
}

fn default_data_dir(env: &Env) -> CliResult<PathBuf> {
    if let Some(dir) = env.get("HONE_DATA_DIR") {
        return Ok(dir.into());
    }
    if let Some(dir) = env.get("XDG_DATA_HOME") {
        return Ok(Path::new(dir).join("hone"));
    }
    let home = env.get("HOME").ok_or_else(|| {
        CliError::invalid("neither HOME nor HONE_DATA_DIR is set, so there is no place for data")
            .hint("give --data-dir")
    })?;
    Ok(Path::new(home).join(".local/share/hone"))
}

/// A program of ours: beside this executable, else in `PATH`.
pub fn sibling(env: &Env, name: &str) -> CliResult<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| {
        // The executable may be reached through a link that stands elsewhere.
        let real = fs::canonicalize(&exe).unwrap_or(exe);
        real.parent().map(|dir| dir.join(name))
    });
    let in_path = env.get("PATH").into_iter().flat_map(std::env::split_paths).map(|dir| dir.join(name));
    beside.into_iter().chain(in_path).find(|p| p.is_file()).ok_or_else(|| {
        CliError::failed(format!("the program {name} is neither beside `hone` nor in PATH")).hint(
            "install all of Hone's programs into one directory (from source: `cargo build --release` builds them)",
        )
    })
}
