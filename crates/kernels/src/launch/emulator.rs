//! The CUDA kernels on the CPU: `cuda/kernels.cu` compiled as C++ behind `cuda/emulator.hpp`. For tests, which run
//! the very code that a GPU would.

use super::args::Args;
use crate::portable::with_portable;
use candle_core::{Result, bail};
use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

thread_local! {
    static CHOSEN: RefCell<Option<Arc<Emulator>>> = const { RefCell::new(None) };
}

/// A library of emulated kernels. Never unloaded.
#[derive(Debug)]
pub struct Emulator {
    handle: *mut c_void,
    /// Threads and shared memory of the emulated device exist once.
    running: Mutex<()>,
}

// SAFETY: the handle is only read, and kernels run one at a time under the lock.
unsafe impl Send for Emulator {}
// SAFETY: as above.
unsafe impl Sync for Emulator {}

impl Emulator {
    /// Loads the library made by
    /// `c++ -std=c++17 -O2 -U_FORTIFY_SOURCE -shared -fPIC -include emulator.hpp -x c++ kernels.cu -o library`.
    ///
    /// # Safety
    /// The file must be that library: it is loaded and its functions are called.
    ///
    /// # Errors
    /// A file that cannot be loaded.
    pub unsafe fn load(library: &Path) -> Result<Self> {
        let path = CString::new(library.as_os_str().as_bytes()).map_err(candle_core::Error::wrap)?;
        // SAFETY: a path that ends with a zero; the caller promises what is in the file.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            bail!("{} cannot be loaded", library.display());
        }
        Ok(Self { handle, running: Mutex::new(()) })
    }

    /// # Safety
    /// `args` must be what the kernel takes, with addresses that it may read and write.
    pub(super) unsafe fn run<A: Args>(&self, kernel: &str, grid: u32, block: u32, args: &A) -> Result<()> {
        type Kernel = unsafe extern "C" fn(u32, u32, *const c_void);
        let name = CString::new(kernel).map_err(candle_core::Error::wrap)?;
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the handle is that of a loaded library.
        let function = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        if function.is_null() {
            bail!("the emulator has no kernel {kernel}");
        }
        // SAFETY: every exported function of the library has this type.
        let function = unsafe { std::mem::transmute::<*mut c_void, Kernel>(function) };
        // SAFETY: the caller promises that the arguments fit.
        unsafe { function(grid, block, std::ptr::from_ref(args).cast()) };
        Ok(())
    }
}

/// Runs `f` as [`with_portable`] does, with the CUDA kernels emulated on the CPU.
pub fn with_emulator<R>(emulator: &Arc<Emulator>, f: impl FnOnce() -> R) -> R {
    /// Puts the outer choice back even when `f` panics.
    struct Restore(Option<Arc<Emulator>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CHOSEN.set(self.0.take());
        }
    }
    let _outer = Restore(CHOSEN.replace(Some(Arc::clone(emulator))));
    with_portable(f)
}

pub(super) fn chosen() -> Option<Arc<Emulator>> {
    CHOSEN.with_borrow(Clone::clone)
}
