//! Every op against a naive f64 form: values, gradients by central differences, bits of two runs, and
//! which inputs get a gradient.
#![expect(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that panics says where; its data is small numbers"
)]

mod attention;
mod cross_entropy;
mod elementwise;
mod harness;
mod linear;
mod portable;
mod shapes;
mod tape;

/// The whole suite runs on the caching allocator, with a bound small enough to be reached.
#[global_allocator]
static ALLOCATOR: kernels::alloc::CachingAllocator = kernels::alloc::CachingAllocator::new(8 << 20);
