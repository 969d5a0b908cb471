//! `hone-trainer`: see `trainer::cli`.

/// Keeps freed large blocks for the next step instead of faulting in fresh pages.
#[global_allocator]
static ALLOCATOR: kernels::alloc::CachingAllocator = kernels::alloc::CachingAllocator::new(2 << 30);

fn main() -> std::process::ExitCode {
    trainer::cli::main()
}
