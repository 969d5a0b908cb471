//! What there is to choose from.

use crate::{auth::AuthUser, state::AppState};
use actix_web::{get, web};
use wire::catalog::{GpuConfig, Preset};

/// Hyperparameter presets.
#[utoipa::path(tag = "catalog", responses((status = 200, body = Vec<Preset>)))]
#[get("/api/presets")]
pub async fn list_presets(state: web::Data<AppState>, _: AuthUser) -> web::Json<Vec<Preset>> {
    web::Json(state.config.catalog.presets.clone())
}

/// GPU configurations with their prices.
#[utoipa::path(tag = "catalog", responses((status = 200, body = Vec<GpuConfig>)))]
#[get("/api/gpu-configs")]
pub async fn list_gpu_configs(state: web::Data<AppState>, _: AuthUser) -> web::Json<Vec<GpuConfig>> {
    web::Json(state.config.catalog.gpu_configs.clone())
}
