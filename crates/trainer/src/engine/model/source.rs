//! Where weights come from, and whether they are trained.

use super::{BuildOptions, Linear};
use crate::engine::{TrainError, params::Params, rng::Key, weights::WeightFiles};
use candle_core::{DType, Device, Tensor, Var};

/// Stored weights, or random ones in the same shapes.
#[derive(Debug)]
pub enum Source {
    Files(WeightFiles),
    /// Matrices are normal with deviation `std`, biases zero, other vectors (norms) `norm`.
    Random {
        seed: u64,
        std: f64,
        norm: f32,
    },
    /// No values at all, for a model that only says what it would load.
    Shapes,
}

/// Hands out a model's weights one by one, and remembers which were asked for.
#[derive(Debug)]
pub struct Loader {
    source: Source,
    device: Device,
    trained: Option<Params>,
    /// Heads, trained where nothing else is.
    heads: Params,
    asked: Vec<(String, Vec<usize>)>,
}

impl Loader {
    /// Weights from `source` as `options` say.
    ///
    /// # Errors
    /// A device that cannot be had.
    pub fn new(source: Source, options: BuildOptions) -> Result<Self, TrainError> {
        let trained = options.train_weights.then(Params::default);
        Ok(Self { source, device: options.place.device()?, trained, heads: Params::default(), asked: Vec::new() })
    }

    /// A loader that only notes what it is asked for.
    #[must_use]
    pub fn shapes() -> Self {
        let (source, device) = (Source::Shapes, Device::Cpu);
        Self { source, device, trained: None, heads: Params::default(), asked: Vec::new() }
    }

    /// The weight `name`.
    ///
    /// # Errors
    /// Unreadable weights.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Weight, TrainError> {
        self.asked.push((name.to_owned(), shape.to_vec()));
        Weight::load(&self.source, &self.device, name, shape, self.trained.as_mut())
    }

    /// The projection whose weight is `{path}.weight`, of shape `(out, in)`.
    ///
    /// # Errors
    /// Unreadable weights.
    pub fn linear(&mut self, path: &str, shape: (usize, usize)) -> Result<Linear, TrainError> {
        Ok(Linear::new(path, shape, self.weight(&format!("{path}.weight"), &[shape.0, shape.1])?))
    }

    /// [`Loader::linear`] with the bias `{path}.bias`.
    ///
    /// # Errors
    /// Unreadable weights.
    pub fn biased(&mut self, path: &str, shape: (usize, usize)) -> Result<Linear, TrainError> {
        let linear = self.linear(path, shape)?;
        Ok(linear.with_bias(self.weight(&format!("{path}.bias"), &[shape.0])?))
    }

    /// The weight `name` of a head: always trained, and random with deviation `std` where the files have none.
    ///
    /// # Errors
    /// Unreadable weights.
    pub fn head(&mut self, name: &str, shape: &[usize], std: f64) -> Result<Weight, TrainError> {
        self.asked.push((name.to_owned(), shape.to_vec()));
        let fresh = Source::Random { seed: 0, std, norm: 1.0 };
        let stored = !matches!(&self.source, Source::Files(files) if !files.contains(name));
        let params = self.trained.as_mut().unwrap_or(&mut self.heads);
        Weight::load(if stored { &self.source } else { &fresh }, &self.device, name, shape, Some(params))
    }

    /// Name and shape of every weight handed out.
    #[must_use]
    pub fn asked(&self) -> &[(String, Vec<usize>)] {
        &self.asked
    }

    /// The weights that are trained.
    #[must_use]
    pub fn into_params(self) -> Params {
        self.trained.unwrap_or(self.heads)
    }
}

/// One weight of a model: f32, or a frozen matrix in 16 bits.
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
    pub fn load(
        source: &Source,
        device: &Device,
        name: &str,
        shape: &[usize],
        params: Option<&mut Params>,
    ) -> Result<Self, TrainError> {
        let values = match source {
            Source::Files(files) if params.is_none() && shape.len() > 1 => {
                return Ok(Self { tensor: files.frozen(name)?.to_device(device)?, trained: false });
            }
            Source::Files(files) => files.load(name)?.0,
            Source::Random { norm, .. } if shape.len() < 2 => {
                vec![if name.ends_with(".bias") { 0.0 } else { *norm }; shape.iter().product()]
            }
            Source::Random { seed, std, .. } => random(*seed, *std, name, shape.iter().product()),
            Source::Shapes => {
                return Ok(Self { tensor: Tensor::from_vec(Vec::<f32>::new(), 0, &Device::Cpu)?, trained: false });
            }
        };
        match params {
            Some(params) => {
                let var = Var::from_vec(values, shape, device)?;
                params.insert(name, var.clone());
                Ok(Self { tensor: var.into_inner(), trained: true })
            }
            None => Ok(Self { tensor: Tensor::from_vec(values, shape, device)?, trained: false }),
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

    /// Activations for `ids`, `(N)`, from a table `(rows, C)`: `(N, C)` of element type `dtype`.
    ///
    /// # Errors
    /// An id outside the table.
    pub fn rows(&self, ids: &[u32], grad: bool, dtype: DType) -> candle_core::Result<Tensor> {
        let table = self.tensor(grad);
        let ids = Tensor::from_slice(ids, ids.len(), table.device())?;
        table.index_select(&ids, 0)?.to_dtype(dtype)
    }

    #[must_use]
    pub const fn is_trained(&self) -> bool {
        self.trained
    }
}

fn random(seed: u64, std: f64, name: &str, len: usize) -> Vec<f32> {
    let key = Key::new(seed, name);
    #[expect(clippy::as_conversions, reason = "weights are f32")]
    (0_u64..).take(len).map(|i| (key.normal(i) * std) as f32).collect()
}
