#!/usr/bin/env python3
"""Makes libraries to link a program against in place of CUDA's: cuda_loaders.py CUDARC_SOURCES OUTPUT_DIRECTORY

candle links CUDA's libraries, so the program would not start where they are missing. The static libraries made here
have the same functions, as far as the `cudarc` crate knows them. Each looks up its real self at its first call, in
the directory CUDA_LIB_DIR, where the system looks, and in /usr/local/cuda/lib64. Where there is no library a function
answers 100, "no device", which ends as an ordinary error. x86-64 Linux only; needs gcc and ar.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Directory in cudarc, prefix of the functions, name to link by, file to load.
LIBRARIES = [
    ("driver", "cu", "cuda", "libcuda.so.1"),
    ("cublas", "cublas", "cublas", "libcublas.so.13"),
    ("cublaslt", "cublasLt", "cublasLt", "libcublasLt.so.13"),
    ("curand", "curand", "curand", "libcurand.so.10"),
    ("nvrtc", "nvrtc", "nvrtc", "libnvrtc.so.13"),
]

LOADER = r"""
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
static void *library;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static long absent(void) { return 100; }
static void try(const char *directory) {
  char path[4096];
  if (library || !directory) return;
  snprintf(path, sizeof path, "%s/@FILE@", directory);
  library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
}
static void load(void) {
  try(getenv("CUDA_LIB_DIR"));
  if (!library) library = dlopen("@FILE@", RTLD_NOW | RTLD_GLOBAL);
  try("/usr/local/cuda/lib64");
}
__attribute__((visibility("hidden"))) extern void *hone_@NAME@_slots[];
__attribute__((visibility("hidden"))) extern const char *const hone_@NAME@_names[];
__attribute__((visibility("hidden"))) void *hone_@NAME@_find(long at) {
  void *function;
  pthread_once(&once, load);
  function = library ? dlsym(library, hone_@NAME@_names[at]) : 0;
  return hone_@NAME@_slots[at] = function ? function : (void *)absent;
}
"""

# A function jumps to its address, once that is known. Until then all registers that carry arguments are kept over the
# search for it.
ENTRIES = r"""
.macro entry name, at
.globl \name
.type \name, @function
\name:
  movq hone_@NAME@_slots+8*\at(%rip), %r11
  testq %r11, %r11
  jz 1f
  jmp *%r11
1: movl $\at, %r11d
  jmp hone_@NAME@_search
.size \name, .-\name
.endm
.hidden hone_@NAME@_slots
.hidden hone_@NAME@_names
.hidden hone_@NAME@_find
.text
hone_@NAME@_search:
@PUSH@  subq $136, %rsp
@SAVE@  movq %r11, %rdi
  call hone_@NAME@_find
  movq %rax, %r11
@LOAD@  addq $136, %rsp
@POP@  jmp *%r11
@ENTRIES@
.bss
.balign 8
.globl hone_@NAME@_slots
hone_@NAME@_slots: .zero 8*@COUNT@
.section .rodata
@STRINGS@
.section .data.rel.ro, "aw"
.balign 8
.globl hone_@NAME@_names
hone_@NAME@_names:
@POINTERS@
.section .note.GNU-stack, "", @progbits
"""

REGISTERS = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax", "rbx"]


def fill(text, **values):
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def make(cudarc, output, library):
    directory, prefix, name, file = library
    source = (cudarc / "src" / directory / "sys" / "mod.rs").read_text()
    functions = sorted(set(re.findall(rf"\bfn ({prefix}\w*)\(", source)) - {"culib"})
    lines = lambda template, of: "".join(template.format(*item) + "\n" for item in of)
    numbered = [(f, i) for i, f in enumerate(functions)]
    assembly = fill(
        ENTRIES,
        PUSH=lines("  pushq %{}", [(r,) for r in REGISTERS]),
        POP=lines("  popq %{}", [(r,) for r in reversed(REGISTERS)]),
        SAVE=lines("  movdqu %xmm{0}, {1}(%rsp)", [(i, 16 * i) for i in range(8)]),
        LOAD=lines("  movdqu {1}(%rsp), %xmm{0}", [(i, 16 * i) for i in range(8)]),
        ENTRIES=lines("entry {}, {}", numbered),
        COUNT=len(functions),
        STRINGS=lines('.L{1}: .asciz "{0}"', numbered),
        POINTERS=lines(" .quad .L{1}", numbered),
        NAME=name,
    )
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "entries.s").write_text(assembly)
        (scratch / "loader.c").write_text(fill(LOADER, NAME=name, FILE=file))
        objects = []
        for part in ["entries.s", "loader.c"]:
            objects.append(scratch / (part + ".o"))
            subprocess.check_call(["gcc", "-c", "-O1", "-fPIC", scratch / part, "-o", objects[-1]])
        archive = output / f"lib{name}.a"
        archive.unlink(missing_ok=True)
        subprocess.check_call(["ar", "rcs", archive, *objects])
    print(f"{archive}: {len(functions)} functions")


def main():
    cudarc, output = Path(sys.argv[1]), Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        make(cudarc, output, library)


if __name__ == "__main__":
    main()
