//! Where tensors live and products run: the CPU, or one CUDA device.

use super::TrainError;
use candle_core::{DType, Device};
use kernels::{DeviceMemory, OpenedDevice};
use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::{Mutex, PoisonError},
};
use wire::{config::BaseDtype, job::FailureCode};

/// The environment variable that chooses.
pub const HONE_DEVICE: &str = "HONE_DEVICE";

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device where the program can use one, else the CPU.
    #[default]
    Auto,
    /// This one or none.
    Exactly(Place),
}

/// A device. Opened at its first use, and then once per process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Place {
    #[default]
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().map(|n| Self::Exactly(Place::Cuda(n)));
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Exactly(Place::Cpu)),
            "cuda" => Some(Self::Exactly(Place::Cuda(0))),
            other => other.strip_prefix("cuda:").and_then(number),
        }
        .ok_or_else(|| format!("`{text}` is no device; use auto, cpu, cuda or cuda:N"))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Exactly(place) => place.fmt(f),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceChoice {
    /// Decides, and opens what was chosen.
    ///
    /// # Errors
    /// `StartFailed`: a CUDA device was asked for and cannot be had.
    pub fn place(self) -> Result<Place, TrainError> {
        match self {
            Self::Exactly(place) => place.device().map(|_| place),
            // Before compute capability 8.0 there are no products in bf16.
            Self::Auto if cfg!(feature = "cuda") => {
                let modern = open(0).is_ok_and(|opened| opened.capability >= (8, 0));
                Ok(if modern { Place::Cuda(0) } else { Place::Cpu })
            }
            Self::Auto => Ok(Place::Cpu),
        }
    }
}

impl Place {
    /// The device for tensors.
    ///
    /// # Errors
    /// `StartFailed`: a CUDA device that cannot be had.
    pub fn device(self) -> Result<Device, TrainError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => open(number).map(|opened| opened.device),
        }
    }

    /// `cpu`, or the number and name of the CUDA device.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Cpu => self.to_string(),
            Self::Cuda(number) => open(number).map_or_else(|_| self.to_string(), |o| format!("{self} ({})", o.name)),
        }
    }

    /// Element type of activations: on CUDA 16 bits, unless the weights were asked for in f32.
    #[must_use]
    pub const fn activations(self, base: BaseDtype) -> DType {
        match (self, base) {
            (Self::Cpu, _) | (_, BaseDtype::F32) => DType::F32,
            (Self::Cuda(_), _) => DType::BF16,
        }
    }

    /// How frozen matrices are kept when `base` is asked for: on CUDA in the type of the activations by default.
    #[must_use]
    pub const fn kept(self, base: BaseDtype) -> BaseDtype {
        match (self, base) {
            (Self::Cuda(_), BaseDtype::Auto) => BaseDtype::Bf16,
            (_, base) => base,
        }
    }

    /// What the driver identifies a CUDA device by; `None` for the CPU.
    #[must_use]
    pub fn uuid(self) -> Option<[u8; 16]> {
        match self {
            Self::Cpu => None,
            Self::Cuda(number) => open(number).ok()?.uuid,
        }
    }

    /// Waits until everything that was started has been computed. Only then do clocks mean something.
    ///
    /// # Errors
    /// What went wrong on the device in the meantime.
    pub fn wait(self) -> Result<(), TrainError> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(_) => Ok(self.device()?.synchronize()?),
        }
    }

    /// Memory of a CUDA device; `None` for the CPU, see [`super::memory`].
    #[must_use]
    pub fn memory(self) -> Option<DeviceMemory> {
        kernels::device_memory(&self.device().ok()?)
    }

    /// Bytes of a CUDA device that this process took at most so far.
    #[must_use]
    pub fn peak_memory(self) -> Option<u64> {
        kernels::peak_device_memory(&self.device().ok()?)
    }
}

fn open(number: usize) -> Result<OpenedDevice, TrainError> {
    static OPENED: Mutex<BTreeMap<usize, OpenedDevice>> = Mutex::new(BTreeMap::new());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = opened.get(&number) {
        return Ok(known.clone());
    }
    let fresh = kernels::open_cuda(number).map_err(|e| {
        let why = if cfg!(feature = "cuda") {
            "there is no NVIDIA driver or no such GPU here; look at `nvidia-smi`"
        } else {
            "this program was built without CUDA; build it with `--features cuda`"
        };
        let what = format!("the device cuda:{number} cannot be used: {why}, or choose `--device cpu`");
        TrainError::new(FailureCode::StartFailed, what).caused_by(e)
    })?;
    opened.insert(number, fresh.clone());
    Ok(fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Exactly(Place::Cuda(0))));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(text.parse::<DeviceChoice>().unwrap_err().contains("use auto, cpu, cuda or cuda:N"), "{text}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_a_clear_error_and_auto_does_without() {
        let error = DeviceChoice::Exactly(Place::Cuda(99)).place().unwrap_err();
        assert_eq!(error.code, FailureCode::StartFailed);
        assert!(error.message.starts_with("the device cuda:99 cannot be used: "), "{error}");
        assert!(error.message.ends_with("or choose `--device cpu`"), "{error}");
        let auto = DeviceChoice::Auto.place().unwrap();
        assert!(cfg!(feature = "cuda") || auto == Place::Cpu);
    }

    #[test]
    fn sixteen_bits_are_for_gpus() {
        assert_eq!(Place::Cpu.activations(BaseDtype::Bf16), DType::F32);
        assert_eq!(Place::Cpu.kept(BaseDtype::Auto), BaseDtype::Auto);
        assert_eq!(Place::Cuda(0).activations(BaseDtype::Auto), DType::BF16);
        assert_eq!(Place::Cuda(0).kept(BaseDtype::Auto), BaseDtype::Bf16);
        assert_eq!(Place::Cuda(0).activations(BaseDtype::F32), DType::F32);
    }
}
