//! Notices when the web UI was built anew: its files have other names then, which the compiler cannot know.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../web/dist");
}
