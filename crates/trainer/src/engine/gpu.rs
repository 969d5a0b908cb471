//! What the GPU says of itself while it trains, through NVML (the driver's libnvidia-ml, loaded when it is there).

use super::Place;
use std::collections::BTreeMap;

/// Reads the figures of one GPU. Without one, or without NVML, there are none.
#[derive(Debug, Default)]
pub struct Meter {
    #[cfg(feature = "cuda")]
    gpu: Option<nvml::Gpu>,
}

impl Meter {
    /// The meter of the GPU at `place`.
    #[must_use]
    #[cfg(feature = "cuda")]
    pub fn of(place: Place) -> Self {
        Self { gpu: place.uuid().and_then(|uuid| nvml::Gpu::find(&named(uuid))) }
    }

    /// The meter of the GPU at `place`.
    #[must_use]
    #[cfg(not(feature = "cuda"))]
    pub fn of(_place: Place) -> Self {
        Self::default()
    }

    /// Metrics by name: those that the GPU tells, at most once a second.
    #[must_use]
    pub fn read(&mut self) -> BTreeMap<String, f64> {
        #[cfg(feature = "cuda")]
        return self.gpu.as_mut().map(nvml::Gpu::read).unwrap_or_default();
        #[cfg(not(feature = "cuda"))]
        BTreeMap::new()
    }
}

/// A GPU's name in NVML: `GPU-` and its identity in groups of hexadecimal digits.
#[cfg(any(feature = "cuda", test))]
fn named(uuid: [u8; 16]) -> String {
    format!("GPU-{}", uuid::Uuid::from_bytes(uuid).as_hyphenated())
}

#[cfg(feature = "cuda")]
mod nvml {
    use nvml_wrapper::{Nvml, enum_wrappers::device::TemperatureSensor};
    use std::{
        collections::BTreeMap,
        ffi::OsStr,
        time::{Duration, Instant},
    };
    use wire::event::metric;

    /// The figures are means over about this long.
    const INTERVAL: Duration = Duration::from_secs(1);

    #[derive(Debug)]
    pub(super) struct Gpu {
        nvml: Nvml,
        uuid: String,
        last: Option<Instant>,
    }

    impl Gpu {
        pub(super) fn find(uuid: &str) -> Option<Self> {
            // Without the development files there is no libnvidia-ml.so.
            let nvml = Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init();
            let nvml = nvml.inspect_err(|e| tracing::warn!(error = %e, "no figures of the GPU: NVML cannot be used"));
            let gpu = Self { nvml: nvml.ok()?, uuid: uuid.to_owned(), last: None };
            gpu.nvml.device_by_uuid(uuid).ok()?;
            Some(gpu)
        }

        pub(super) fn read(&mut self) -> BTreeMap<String, f64> {
            if self.last.is_some_and(|last| last.elapsed() < INTERVAL) {
                return BTreeMap::new();
            }
            self.last = Some(Instant::now());
            let Ok(device) = self.nvml.device_by_uuid(self.uuid.as_str()) else { return BTreeMap::new() };
            #[expect(clippy::as_conversions, reason = "bytes of memory are far below 2^53")]
            let figures = [
                (metric::GPU_UTILIZATION, device.utilization_rates().ok().map(|u| f64::from(u.gpu))),
                (metric::GPU_MEMORY_BYTES, device.memory_info().ok().map(|m| m.used as f64)),
                (metric::GPU_TEMPERATURE, device.temperature(TemperatureSensor::Gpu).ok().map(f64::from)),
                (metric::GPU_POWER_WATTS, device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3)),
            ];
            figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_named_as_nvidia_smi_does() {
        let uuid = *b"\x01\x23\x45\x67\x89\xab\xcd\xef\xfe\xdc\xba\x98\x76\x54\x32\x10";
        assert_eq!(named(uuid), "GPU-01234567-89ab-cdef-fedc-ba9876543210");
    }

    #[test]
    fn the_cpu_has_no_figures_of_a_gpu() {
        assert_eq!(Meter::of(Place::Cpu).read(), BTreeMap::new());
    }
}
