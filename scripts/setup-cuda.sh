#!/usr/bin/env bash
# Lays out what `--features cuda` needs to build, on a machine with or without a GPU: the CUDA 13 compiler from
# Python wheels (about 270 MB) and small libraries that load the real ones at run time, so that the program also
# starts where there is no CUDA. Prints the environment to build with:
#
#   cargo fetch
#   eval "$(scripts/setup-cuda.sh)"
#   cargo build --release --workspace --features trainer/cuda --bin hone-trainer
#
# Usage: setup-cuda.sh [DIRECTORY]   (default: ~/.cache/hone-cuda-toolkit). x86-64 Linux.
set -euo pipefail
root=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/hone-cuda-toolkit}
here=$(cd "$(dirname "$0")" && pwd)
home=$root/nvidia/cu13
if [ ! -x "$home/bin/nvcc" ]; then
  mkdir -p "$root/wheels"
  python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$root/wheels" \
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96 >&2
  for wheel in "$root"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$root"; done
  rm -r "$root/wheels"
  # Unpacking forgets which files are programs.
  find "$home/bin" "$home/nvvm/bin" -type f -exec chmod +x {} +
fi
cudarc=$(find "${CARGO_HOME:-$HOME/.cargo}"/registry/src -maxdepth 2 -name 'cudarc-0.19.*' | sort -V | tail -1)
if [ -z "$cudarc" ]; then
  echo "setup-cuda.sh: run 'cargo fetch' first" >&2
  exit 1
fi
python3 "$here/cuda_loaders.py" "$cudarc" "$home/lib/stubs" >&2
# The runtime library is linked in.
ln -sf libcudart_static.a "$home/lib/libcudart.a"
echo "export CUDA_HOME='$home' CUDA_PATH='$home' NVCC='$home/bin/nvcc' PATH='$home/bin':\"\$PATH\" CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90}"
