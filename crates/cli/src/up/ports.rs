//! Ports on 127.0.0.1: is one free, and who has it if not.

use crate::{
    error::{CliError, CliResult},
    proc,
    up::datadir,
};
use std::{fs, net::TcpListener, path::Path};

/// The API's port when nothing else is said.
pub const DEFAULT: u16 = 8700;

/// The API's port of the last time.
#[must_use]
pub fn remembered(data_dir: &Path) -> Option<u16> {
    datadir::remembered_ports(data_dir).backend
}

/// Whether a server can listen there now.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// `port` if it is free, else any free one.
pub fn prefer(port: Option<u16>) -> CliResult<u16> {
    if let Some(port) = port.filter(|p| is_free(*p)) {
        return Ok(port);
    }
    let any = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr());
    any.map(|a| a.port()).map_err(|e| CliError::failed(format!("no port is free on 127.0.0.1: {e}")))
}

/// The port for the API: `asked` (0: any), else that of the last time, else the default.
pub fn for_api(asked: Option<u16>, last: Option<u16>) -> CliResult<u16> {
    match asked {
        Some(0) => prefer(last),
        Some(port) => require(port),
        None => require(last.unwrap_or(DEFAULT)),
    }
}

fn require(port: u16) -> CliResult<u16> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(port),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            let who = user(port).map_or_else(|| "another program".into(), |(pid, name)| format!("{name} (pid {pid})"));
            Err(CliError::failed(format!("port {port} on 127.0.0.1 is in use by {who}"))
                .hint("choose another one with `--port`; `--port 0` takes any free one"))
        }
        Err(e) => Err(CliError::failed(format!("cannot listen on port {port} of 127.0.0.1: {e}"))
            .hint("choose another one with `--port`; `--port 0` takes any free one")),
    }
}

/// The process that listens on the port, as far as we may see it (Linux only).
fn user(port: u16) -> Option<(u32, String)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|t| fs::read_to_string(t).unwrap_or_default());
    let inode = tables.iter().flat_map(|t| t.lines()).find_map(|line| listening_inode(line, port))?;
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(files) = fs::read_dir(entry.path().join("fd")) else { continue };
        if files.flatten().any(|f| fs::read_link(f.path()).is_ok_and(|l| l.to_str() == Some(&wanted))) {
            return proc::name(pid).map(|name| (pid, name));
        }
    }
    None
}

/// The socket's inode when this line of `/proc/net/tcp` is a listener on `port`.
fn listening_inode(line: &str, port: u16) -> Option<&str> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let (_, hex) = local.rsplit_once(':')?;
    // 0A is TCP_LISTEN; the inode is the tenth field.
    (state == "0A" && u16::from_str_radix(hex, 16) == Ok(port)).then(|| fields.nth(5))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_the_program_that_has_it() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = for_api(Some(port), None).unwrap_err().to_string();
        assert!(error.contains(&format!("port {port} on 127.0.0.1 is in use by ")), "{error}");
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        assert!(error.contains("`--port 0` takes any free one"), "{error}");
        assert_ne!(for_api(Some(0), Some(port)).unwrap(), port);
    }

    #[test]
    fn any_port_means_the_last_one_while_it_is_free() {
        let free = prefer(None).unwrap();
        assert_eq!(for_api(Some(0), Some(free)).unwrap(), free);
        assert_eq!(for_api(None, Some(free)).unwrap(), free);
    }
}
