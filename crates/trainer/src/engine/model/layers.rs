//! What the decoders are made of: norm, attention, gated MLP.

use super::{Attend, AttentionOptions, Heads, Linear, Loader, Pass, Weight, config::Common, rope::Rotary};
use crate::engine::TrainError;
use candle_core::{Result, Tensor};

/// Gate of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Silu,
    /// Gelu in its tanh form.
    GeluTanh,
}

/// An RMSNorm's settings: it multiplies by `offset + weight`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct NormOptions {
    pub eps: f64,
    pub offset: f32,
}

/// RMSNorm (arXiv 1910.07467).
#[derive(Debug)]
pub(super) struct Norm {
    weight: Weight,
    options: NormOptions,
    size: usize,
}

impl Norm {
    /// Loads `{path}.weight`, `(size)`.
    pub(super) fn load(
        loader: &mut Loader,
        path: &str,
        size: usize,
        options: NormOptions,
    ) -> std::result::Result<Self, TrainError> {
        Ok(Self { weight: loader.weight(&format!("{path}.weight"), &[size])?, options, size })
    }

    /// `(N, C)` → `(N, C)`. Where the norm is narrower than a row, each of its pieces (a head) on its own.
    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (n, width) = x.dims2()?;
        if width != self.size {
            let heads = x.reshape(((), self.size))?; // (N, H·D) -> (N·H, D)
            return self.rows(&heads, pass)?.reshape((n, width)); // (N·H, D) -> (N, H·D)
        }
        self.rows(x, pass)
    }

    fn rows(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let w = self.weight.tensor(pass.grad);
        let w = if self.options.offset == 0.0 { w } else { w.affine(1.0, f64::from(self.options.offset))? };
        if self.weight.wants_gradient(pass.grad) {
            kernels::rms_norm_trainable(x, &w, self.options.eps)
        } else {
            kernels::rms_norm(x, &w, self.options.eps)
        }
    }
}

/// Sizes of a block, for loading it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: Heads,
}

impl Sizes {
    pub(super) fn of(common: &Common) -> Self {
        Self { hidden: common.hidden_size, intermediate: common.intermediate_size, heads: common.heads() }
    }

    /// Widths of the queries and of the keys.
    pub(super) const fn widths(self) -> (usize, usize) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        (heads.saturating_mul(head_dim), kv_heads.saturating_mul(head_dim))
    }
}

/// Which projections of a block have a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Biases {
    pub qkv: bool,
    pub output: bool,
    pub mlp: bool,
}

/// Attention with grouped key/value heads and rotary positions; queries and keys may be normed head by head.
#[derive(Debug)]
pub(super) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norms: Option<(Norm, Norm)>,
    rope: Rotary,
    options: AttentionOptions,
}

impl Attention {
    /// Loads the projections below `path`.
    pub(super) fn load(
        loader: &mut Loader,
        path: &str,
        sizes: Sizes,
        biases: Biases,
        rope: Rotary,
        options: AttentionOptions,
    ) -> std::result::Result<Self, TrainError> {
        let (c, (q, kv)) = (sizes.hidden, sizes.widths());
        let mut linear = |name: &str, shape, bias| match bias {
            true => loader.biased(&format!("{path}.{name}"), shape),
            false => loader.linear(&format!("{path}.{name}"), shape),
        };
        Ok(Self {
            q: linear("q_proj", (q, c), biases.qkv)?,
            k: linear("k_proj", (kv, c), biases.qkv)?,
            v: linear("v_proj", (kv, c), biases.qkv)?,
            o: linear("o_proj", (c, q), biases.output)?,
            norms: None,
            rope,
            options,
        })
    }

    /// Norms the heads of queries and keys, by `{path}.q_norm` and `{path}.k_norm`.
    pub(super) fn with_norms(
        self,
        loader: &mut Loader,
        path: &str,
        options: NormOptions,
    ) -> std::result::Result<Self, TrainError> {
        let size = self.options.heads.head_dim;
        let q = Norm::load(loader, &format!("{path}.q_norm"), size, options)?;
        let k = Norm::load(loader, &format!("{path}.k_norm"), size, options)?;
        Ok(Self { norms: Some((q, k)), ..self })
    }

    /// `(N, C)` → `(N, C)`
    pub(super) fn forward(&self, layer: usize, x: &Tensor, pass: &Pass, attention: &mut dyn Attend) -> Result<Tensor> {
        let (mut q, mut k) = (self.q.forward(x, pass)?, self.k.forward(x, pass)?); // (N, H·D), (N, KV·D)
        if let Some((q_norm, k_norm)) = &self.norms {
            (q, k) = (q_norm.forward(&q, pass)?, k_norm.forward(&k, pass)?);
        }
        let q = self.rope.forward(&q, &pass.positions)?;
        let k = self.rope.forward(&k, &pass.positions)?;
        let v = self.v.forward(x, pass)?; // (N, KV·D)
        self.o.forward(&attention.attend(layer, &q, &k, &v, &self.options)?, pass)
    }

    pub(super) fn linears(&self) -> [&Linear; 4] {
        [&self.q, &self.k, &self.v, &self.o]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o]
    }
}

/// Gated MLP (arXiv 2002.05202).
#[derive(Debug)]
pub(super) struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    /// Loads the projections below `path`.
    pub(super) fn load(
        loader: &mut Loader,
        path: &str,
        sizes: Sizes,
        biases: Biases,
        activation: Activation,
    ) -> std::result::Result<Self, TrainError> {
        let (c, f) = (sizes.hidden, sizes.intermediate);
        let mut linear = |name: &str, shape| match biases.mlp {
            true => loader.biased(&format!("{path}.{name}"), shape),
            false => loader.linear(&format!("{path}.{name}"), shape),
        };
        Ok(Self {
            gate: linear("gate_proj", (f, c))?,
            up: linear("up_proj", (f, c))?,
            down: linear("down_proj", (c, f))?,
            activation,
        })
    }

    /// `(N, C)` → `(N, F)` → `(N, C)`
    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (gate, up) = (self.gate.forward(x, pass)?, self.up.forward(x, pass)?);
        let hidden = match self.activation {
            Activation::Silu => kernels::swiglu(&gate, &up)?,
            Activation::GeluTanh => kernels::geglu(&gate, &up)?,
        };
        self.down.forward(&hidden, pass)
    }

    pub(super) fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate, &mut self.up, &mut self.down]
    }
}
