//! The structs of `cuda/kernels.cu`, field by field. Pointers are addresses on the device that runs the kernel.

/// Marks a struct that a kernel takes: `#[repr(C)]`, and nothing in it to drop.
pub(super) trait Args: Copy {}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct RmsNorm {
    pub(super) x: u64,
    pub(super) w: u64,
    pub(super) y: u64,
    pub(super) cols: u32,
    pub(super) eps: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct RmsNormBackward {
    pub(super) x: u64,
    pub(super) w: u64,
    pub(super) g: u64,
    pub(super) dx: u64,
    pub(super) cols: u32,
    pub(super) eps: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Rope {
    pub(super) x: u64,
    pub(super) cosine: u64,
    pub(super) sine: u64,
    pub(super) y: u64,
    pub(super) cols: u32,
    pub(super) head: u32,
    pub(super) half: u32,
    pub(super) sign: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Glu {
    pub(super) gate: u64,
    pub(super) up: u64,
    pub(super) g: u64,
    pub(super) y: u64,
    pub(super) dup: u64,
    pub(super) count: u64,
    pub(super) gelu: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct SoftmaxLoss {
    pub(super) logits: u64,
    pub(super) targets: u64,
    pub(super) factor: u64,
    pub(super) losses: u64,
    pub(super) gradient: u64,
    pub(super) cols: u32,
    pub(super) factors: u32,
    pub(super) cap: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attention {
    pub(super) scores: u64,
    pub(super) dp: u64,
    pub(super) lse: u64,
    pub(super) delta: u64,
    pub(super) p: u64,
    pub(super) ds: u64,
    pub(super) queries: u32,
    pub(super) keys: u32,
    pub(super) first_query: u32,
    pub(super) first_key: u32,
    pub(super) causal: u32,
    pub(super) window: u32,
    pub(super) scale: f32,
    pub(super) cap: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Dropout {
    pub(super) x: u64,
    pub(super) y: u64,
    pub(super) count: u64,
    pub(super) key: u64,
    pub(super) threshold: u64,
    pub(super) keep: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct AdamW {
    pub(super) p: u64,
    pub(super) g: u64,
    pub(super) m: u64,
    pub(super) v: u64,
    pub(super) new_p: u64,
    pub(super) new_m: u64,
    pub(super) new_v: u64,
    pub(super) count: u64,
    pub(super) clip: f32,
    pub(super) shrink: f32,
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) epsilon: f32,
    pub(super) step_size: f32,
    pub(super) root2: f32,
}

impl Args for RmsNorm {}
impl Args for RmsNormBackward {}
impl Args for Rope {}
impl Args for Glu {}
impl Args for SoftmaxLoss {}
impl Args for Attention {}
impl Args for Dropout {}
impl Args for AdamW {}
