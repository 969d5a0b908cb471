//! The `hone` program.

fn main() -> std::process::ExitCode {
    cli::main(std::env::args_os())
}
