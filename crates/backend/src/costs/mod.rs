//! What jobs cost: prices, budgets, records.
//!
//! Money is counted in SQL's `numeric` and shown as `f64`; what is compared with a limit has a tolerance of 1 %.

pub mod alerts;
pub mod budget;
pub mod estimate;
pub mod ledger;

use crate::{
    catalog::Catalog,
    error::{Error, Result},
};
use wire::problem::{Code, FieldError, Problem};

/// Smallest and largest limit that can be stored and paused for.
const LEAST_LIMIT: f64 = 0.001;
const MOST_LIMIT: f64 = 1e7;

/// What an hour costs, fixed when a job is created.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    pub per_hour: f64,
    pub currency: String,
}

impl Price {
    /// The price of a GPU configuration; without one, that of `local`: this machine.
    pub fn of(catalog: &Catalog, gpu_config: Option<&str>) -> Result<Self> {
        let found = catalog.gpu_config(gpu_config.unwrap_or("local"));
        match (found, gpu_config) {
            (Some(config), _) => Ok(Self { per_hour: config.price_per_hour, currency: config.currency.clone() }),
            (None, None) => Ok(Self { per_hour: 0.0, currency: "USD".into() }),
            (None, Some(id)) => Err(invalid(
                "gpu_config",
                format!("there is no GPU configuration `{id}`; `GET /api/gpu-configs` lists them"),
            )),
        }
    }
}

/// Refuses a limit that cannot be kept.
pub fn check_limit(limit: Option<f64>) -> Result<()> {
    match limit {
        Some(limit) if !(LEAST_LIMIT..=MOST_LIMIT).contains(&limit) => {
            Err(invalid("budget_limit", format!("must be between {LEAST_LIMIT} and {MOST_LIMIT}, not {limit}")))
        }
        _ => Ok(()),
    }
}

fn invalid(path: &str, message: String) -> Error {
    let problem = Problem::new(Code::Invalid, format!("{path}: {message}"));
    problem.with_errors(vec![FieldError::new(path, message)]).into()
}
