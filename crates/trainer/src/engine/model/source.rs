//! Where weights come from, and whether they are trained.

use crate::engine::{TrainError, params::Params, rng::Key, weights::WeightFiles};
use candle_core::{Device, Tensor, Var};

/// Stored weights, or random ones in the same shapes.
#[derive(Debug)]
pub enum Source {
    Files(WeightFiles),
    /// Matrices are normal with deviation `std`, vectors (norms) are one.
    Random {
        seed: u64,
        std: f64,
    },
}

/// One weight of a model, f32.
#[derive(Debug, Clone)]
pub struct Weight {
    tensor: Tensor,
    trained: bool,
}

impl Weight {
    /// Loads `name`; a trained one joins `params` under that name.
    ///
    /// # Errors
    /// Unreadable weights.
    pub fn load(source: &Source, name: &str, shape: &[usize], params: Option<&mut Params>) -> Result<Self, TrainError> {
        let values = match source {
            Source::Files(files) => files.load(name)?.0,
            Source::Random { seed, std } => random(*seed, *std, name, shape),
        };
        match params {
            Some(params) => {
                let var = Var::from_vec(values, shape, &Device::Cpu)?;
                params.insert(name, var.clone());
                Ok(Self { tensor: var.into_inner(), trained: true })
            }
            None => Ok(Self { tensor: Tensor::from_vec(values, shape, &Device::Cpu)?, trained: false }),
        }
    }

    /// The tensor for a pass: tracked only where a gradient is wanted.
    #[must_use]
    pub fn tensor(&self, grad: bool) -> Tensor {
        if grad && self.trained { self.tensor.clone() } else { self.tensor.detach() }
    }

    /// Whether a pass with `grad` must compute this weight's gradient.
    #[must_use]
    pub const fn wants_gradient(&self, grad: bool) -> bool {
        self.trained && grad
    }

    #[must_use]
    pub const fn is_trained(&self) -> bool {
        self.trained
    }
}

fn random(seed: u64, std: f64, name: &str, shape: &[usize]) -> Vec<f32> {
    let n = shape.iter().product::<usize>();
    if shape.len() < 2 {
        return vec![1.0; n];
    }
    let key = Key::new(seed, name);
    #[expect(clippy::as_conversions, reason = "weights are f32")]
    (0_u64..).take(n).map(|i| (key.normal(i) * std) as f32).collect()
}
