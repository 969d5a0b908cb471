//! CUDA devices: opening one, and what it says about itself. Without the feature `cuda` there is none.

use candle_core::{Device, Result};

/// Memory of a device in bytes, as the driver counts it for all processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    pub free: u64,
    pub total: u64,
}

/// A device ready for use.
#[derive(Debug, Clone)]
pub struct OpenedDevice {
    pub device: Device,
    /// As the driver names it: `NVIDIA H200`.
    pub name: String,
    /// What the driver identifies it by.
    pub uuid: Option<[u8; 16]>,
    /// Compute capability; 16-bit training needs `(8, 0)`.
    pub capability: (i32, i32),
}

/// Opens the CUDA device `ordinal`, with one stream for everything, and lets its memory pool keep what is freed.
///
/// # Errors
/// No feature `cuda`, no driver, or no such device.
#[cfg(feature = "cuda")]
pub fn open_cuda(ordinal: usize) -> Result<OpenedDevice> {
    let device = candle_core::CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: every tensor of this device lives on the one stream made above, which orders all its uses.
    unsafe { device.disable_event_tracking() };
    let stream = device.cuda_stream();
    let context = stream.context();
    pool::keep_freed(context)?;
    let uuid = context.uuid().ok().map(|uuid| uuid.bytes.map(i8::cast_unsigned));
    let (name, capability) = (context.name(), context.compute_capability());
    Ok(OpenedDevice {
        device: Device::Cuda(device.clone()),
        uuid,
        name: name.map_err(candle_core::Error::wrap)?,
        capability: capability.map_err(candle_core::Error::wrap)?,
    })
}

/// Opens the CUDA device `ordinal`.
///
/// # Errors
/// Always: the feature `cuda` is off.
#[cfg(not(feature = "cuda"))]
pub fn open_cuda(_ordinal: usize) -> Result<OpenedDevice> {
    Err(candle_core::Error::NotCompiledWithCudaSupport)
}

/// Memory of a CUDA device; `None` on the CPU, or when the driver does not tell.
#[must_use]
pub fn device_memory(device: &Device) -> Option<DeviceMemory> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
            Some(DeviceMemory { free: u64::try_from(free).ok()?, total: u64::try_from(total).ok()? })
        }
        _ => None,
    }
}

/// Bytes that tensors of a CUDA device took at most at once; `None` on the CPU, or when the driver does not tell.
#[must_use]
pub fn peak_device_memory(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => pool::peak(device.cuda_stream().context()),
        _ => None,
    }
}

/// The pool that CUDA takes asynchronous allocations from.
#[cfg(feature = "cuda")]
mod pool {
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, sys};
    use candle_core::{Result, bail};

    type Attribute = sys::CUmemPool_attribute;

    fn of(context: &CudaContext) -> Option<sys::CUmemoryPool> {
        let mut pool = std::ptr::null_mut();
        // SAFETY: `pool` is a place for the answer, and the context's device exists.
        let status = unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) };
        (status == sys::CUresult::CUDA_SUCCESS).then_some(pool)
    }

    /// Without this, memory that is free when the stream is waited for goes back to the driver, and every step asks
    /// for it again.
    pub(super) fn keep_freed(context: &CudaContext) -> Result<()> {
        let Some(pool) = of(context) else { return Ok(()) };
        let mut threshold = u64::MAX;
        // SAFETY: this attribute is an unsigned number of 64 bits, which `threshold` is.
        let status = unsafe {
            sys::cuMemPoolSetAttribute(pool, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut threshold).cast())
        };
        if status != sys::CUresult::CUDA_SUCCESS {
            bail!("the memory pool of the CUDA device refuses to be set up: {status:?}");
        }
        Ok(())
    }

    pub(super) fn peak(context: &CudaContext) -> Option<u64> {
        let mut high = 0_u64;
        // SAFETY: this attribute is an unsigned number of 64 bits, which `high` is.
        let status = unsafe {
            sys::cuMemPoolGetAttribute(of(context)?, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut high).cast())
        };
        (status == sys::CUresult::CUDA_SUCCESS).then_some(high)
    }
}
