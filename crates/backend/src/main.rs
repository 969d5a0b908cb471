//! `hone-backend`: settings come from the environment, see `backend::config`.

fn main() -> anyhow::Result<()> {
    // Two threads drive connections and background work; HTTP has workers of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(backend::run(service::Env::from_process()))
}
