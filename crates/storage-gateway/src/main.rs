//! `hone-gateway`: see crate `storage_gateway`.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    storage_gateway::run(service::Env::from_process()).await
}
