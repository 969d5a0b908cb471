//! Compiles the CUDA kernels to PTX, with the feature `cuda` only. PTX of compute capability 8.0 runs on every later
//! GPU: the driver compiles it at the first launch.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=cuda/kernels.cu");
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let in_home =
        env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc")).filter(|nvcc| nvcc.exists());
    let nvcc = env::var_os("NVCC").map(PathBuf::from).or(in_home).unwrap_or_else(|| "nvcc".into());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("kernels.ptx");
    let mut command = Command::new(&nvcc);
    command.args(["--ptx", "-O3", "-std=c++17", "-arch=compute_80", "cuda/kernels.cu", "-o"]).arg(&out);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} failed on cuda/kernels.cu: {status}", nvcc.display()),
        Err(e) => panic!("the feature `cuda` needs the CUDA compiler; {} cannot be run: {e}", nvcc.display()),
    }
}
