//! `hone up` where it cannot start, and where it runs in the background.

use crate::harness::{HONE, Hone, alive, signal, wait};
use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt};

#[test]
fn detached_it_returns_when_healthy_and_shows_the_key_once() {
    let hone = Hone::new();
    let first = hone.ok(&["up", "--detach", "--port", "0"]);
    assert!(first.contains("Hone is up at http://127.0.0.1:") && first.contains("hone_sk_"), "{first}");
    let pid = hone.state()["hone"]["pid"].as_u64().unwrap();
    let status = hone.json(&["status"]);
    assert_eq!((&status["pid"], &status["healthy"]), (&pid.into(), &true.into()));

    let (code, message) = hone.fails(&["up", "--port", "0"]);
    assert_eq!(code, 1);
    assert!(message.contains(&format!("is in use by another `hone` (pid {pid})")), "{message}");
    assert!(message.contains("down` stops it"), "{message}");

    let url = status["url"].as_str().unwrap().to_owned();
    hone.ok(&["down"]);
    assert!(!alive(pid));
    assert_eq!(hone.fails(&["status"]).0, 5);
    let again = hone.ok(&["up", "--detach", "--port", "0"]);
    assert!(!again.contains("hone_sk_"), "{again}");
    assert_eq!(hone.json(&["status"])["url"], url.as_str(), "the port of the last time");
}

#[test]
fn what_a_killed_hone_left_behind_is_cleaned_up() {
    let mut hone = Hone::started();
    let old = ["postgres", "gateway", "backend"].map(|s| hone.service_pid(s));
    signal(hone.up_pid(), "KILL");
    hone.up();
    for pid in old {
        wait("the old process to end", || !alive(pid.into()));
    }
    assert!(hone.json(&["jobs", "ls"]).as_array().unwrap().is_empty());
}

#[test]
fn a_taken_port_names_the_program_and_nothing_is_left_half_made() {
    let hone = Hone::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (code, message) = hone.fails(&["up", "--port", &port.to_string()]);
    assert_eq!(code, 1);
    assert!(message.contains(&format!("error: port {port} on 127.0.0.1 is in use by ")), "{message}");
    assert!(message.contains("hint: choose another one with `--port`; `--port 0` takes any free one"), "{message}");
    assert!(!hone.data_dir().join("postgres").exists() && !hone.data_dir().join("connection.json").exists());
}

#[test]
fn a_missing_postgres_names_the_package_to_install() {
    let hone = Hone::new();
    let out = hone.command(&["up", "--port", "0"]).env("HONE_POSTGRES_BIN", "/nowhere").output().unwrap();
    let message = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        message.contains("HONE_POSTGRES_BIN is set to /nowhere, which has no working `postgres` and `initdb`"),
        "{message}"
    );
    assert!(!hone.data_dir().join("postgres").exists());
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let hone = Hone::new();
    let file = hone.path("file");
    fs::write(&file, "").unwrap();
    let (code, message) = hone.fails(&["--data-dir", file.join("below").to_str().unwrap(), "up", "--port", "0"]);
    assert_eq!(code, 1);
    assert!(message.contains("cannot create the directory ROOT/file/below: not a directory"), "{message}");
    assert!(message.contains("choose a directory of your own with --data-dir"), "{message}");

    let foreign = hone.path("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "").unwrap();
    let (code, message) = hone.fails(&["--data-dir", foreign.to_str().unwrap(), "up", "--port", "0"]);
    assert_eq!(code, 4);
    assert!(message.contains("ROOT/foreign is not empty, and it is no data directory of Hone"), "{message}");
}

#[test]
fn a_full_disk_is_refused_before_anything_is_made() {
    let hone = Hone::new();
    let disk = hone.path("disk");
    fs::create_dir(&disk).unwrap();
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=20m", "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|m| m.status.success()) {
        // Only root may mount; the check itself is the same on every file system.
        return;
    }
    let dir = disk.join("data");
    let (code, message) = hone.fails(&["--data-dir", dir.to_str().unwrap(), "up", "--port", "0"]);
    let left = fs::read_dir(&dir).map(|d| d.flatten().map(|e| e.file_name()).collect::<Vec<_>>()).unwrap_or_default();
    assert!(std::process::Command::new("umount").arg(&disk).status().unwrap().success());
    assert_eq!(code, 1);
    assert!(message.contains("the disk that holds ROOT/disk/data is full"), "{message}");
    assert_eq!(left, ["hone.lock"]);
}

#[test]
fn the_doctor_finds_what_is_missing() {
    let hone = Hone::new();
    let checks = hone.json(&["doctor"]);
    let names: Vec<&str> = checks.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["programs", "database", "data", "disk", "memory", "processor", "port", "server", "services"]);

    // The same program where its companions are not.
    let lonely = hone.path("hone");
    fs::copy(HONE, &lonely).unwrap();
    fs::set_permissions(&lonely, fs::Permissions::from_mode(0o755)).unwrap();
    let out =
        std::process::Command::new(&lonely).arg("doctor").env_clear().env("HOME", hone.root.path()).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("missing: hone-backend, hone-gateway, hone-trainer"), "{text}");
}
