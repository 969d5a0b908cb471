//! `hone-trainer`: see `trainer::cli`.

/// Keeps freed large blocks for the next step instead of faulting in fresh pages.
#[global_allocator]
static ALLOCATOR: kernels::alloc::CachingAllocator = kernels::alloc::CachingAllocator::new(2 << 30);

fn main() -> std::process::ExitCode {
    // Candle's own pool spins through the small element-wise operations of a step (a fifth of the time of a
    // small model); the kernels have threads of their own.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    trainer::cli::main()
}
