//! Differentiable candle ops for training decoder models, with hand-written backward passes.
//!
//! Candle's own tape is correct but wasteful for fine-tuning: a product with a frozen weight computes and
//! keeps that weight's gradient, attention and the loss materialise matrices nobody needs, and several of
//! its fused ops cut the gradient without an error. Each op here computes exactly the gradients that
//! training needs and saves as little as it can. One file per op; every file states shapes and maths.
//!
//! **Layout.** Everything is token-major and nothing is padded: a batch is several sequences laid end to
//! end, so an activation is `(N, C)` with `N` the number of tokens in the whole batch. [`Segments`] says
//! where sequences begin; only [`attention`] and [`rope`] (through positions) look at it.
//!
//! **Must stay true.**
//! - f32 on the CPU; frozen weights may also be f16 or bf16 and are widened for the call. Inputs may be strided; results are contiguous.
//! - Tensors on another device go through the [portable forms](with_portable) of the same ops, which take activations of 16 bits too.
//! - A frozen weight never gets a gradient, and none is computed for an input that nothing trains.
//! - The same inputs on the same machine with the same number of threads give the same bits: work is cut
//!   into pieces by shape alone and partial sums are added in a fixed order.
//! - NaN and infinity in an input reach the output, so that a training loop can notice them. (A soft cap
//!   turns infinity into a number, as its definition says.)
//! - Under [`record`] the ops are noted on a [`Tape`] instead of joined to candle's graph; the gradients are the same.
//! - Wrong shapes are errors that name the op and the shapes. `unsafe` lives in [`buffer`], [`matmul`],
//!   [`simd`], [`attention`](mod@attention), [`alloc`], [`gpu`] and [`launch`] only.

pub mod alloc;
mod attention;
mod bias;
mod buffer;
mod cross_entropy;
mod dora;
mod gelu;
mod glu;
mod gpu;
mod launch;
mod layer_norm;
mod linear;
mod log_probs;
mod lora_linear;
mod matmul;
mod portable;
mod rms_norm;
mod rope;
mod segments;
mod simd;
mod tape;

pub use attention::{AttentionShape, attention};
pub use bias::add_bias;
pub use cross_entropy::{IGNORE, linear_cross_entropy, linear_cross_entropy_trainable, token_losses};
pub use dora::merged_row_norms;
pub use gelu::gelu;
pub use glu::{geglu, swiglu};
pub use gpu::{DeviceMemory, OpenedDevice, device_memory, open_cuda, peak_device_memory};
pub use launch::emulator::{Emulator, with_emulator};
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_trainable};
pub use log_probs::linear_log_probs;
pub use lora_linear::lora_linear;
pub use portable::adamw::{AdamWRule, adamw};
pub use portable::dropout::dropout;
pub use portable::{is_portable, with_portable};
pub use rms_norm::{rms_norm, rms_norm_trainable};
pub use rope::{RopeTable, rope};
pub use segments::Segments;
pub use tape::{Tape, add, record};
