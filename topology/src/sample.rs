//! What a GPU does at one moment.

use nvml_wrapper::enum_wrappers::device::{PcieUtilCounter, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::nvml::Driver;
use crate::raw;

/// What a GPU does at one moment. Absent is what this card, or this driver, does not tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuSample {
    /// Its name for life.
    pub uuid: String,
    /// The share of the last second, more or less, in which something computed: 0 to 1.
    pub utilization: Option<f64>,
    /// Memory in use.
    pub memory_used_bytes: Option<f64>,
    /// All of it.
    pub memory_bytes: Option<f64>,
    /// Of the chip, in degrees Celsius.
    pub temperature_celsius: Option<f64>,
    /// Of the whole card.
    pub power_watts: Option<f64>,
    /// Over PCIe in the last 20 ms.
    pub pcie_sent_bytes_per_s: Option<f64>,
    /// Likewise.
    pub pcie_received_bytes_per_s: Option<f64>,
    /// Over all NVLinks since the driver was loaded.
    pub nvlink_sent_bytes: Option<f64>,
    /// Likewise.
    pub nvlink_received_bytes: Option<f64>,
}

impl Driver {
    /// One sample of each GPU that can be used. Takes about 40 ms per GPU: the driver measures PCIe
    /// while one waits.
    pub fn sample(&self) -> Vec<GpuSample> {
        (0..self.count()).filter_map(|index| sample(&self.nvml, index).ok()).collect()
    }
}

fn sample(nvml: &Nvml, index: u32) -> Result<GpuSample, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = raw::memory(nvml, &device).ok();
    let nvlink = raw::nvlink_bytes(nvml, &device).ok();
    Ok(GpuSample {
        uuid: device.uuid()?,
        utilization: known(device.utilization_rates(), |rates| f64::from(rates.gpu) / 100.0),
        memory_used_bytes: memory.map(|memory| memory.used_bytes as f64),
        memory_bytes: memory.map(|memory| memory.total_bytes as f64),
        temperature_celsius: known(device.temperature(TemperatureSensor::Gpu), f64::from),
        power_watts: known(device.power_usage(), |milliwatts| f64::from(milliwatts) / 1e3),
        pcie_sent_bytes_per_s: pcie(&device, PcieUtilCounter::Send),
        pcie_received_bytes_per_s: pcie(&device, PcieUtilCounter::Receive),
        nvlink_sent_bytes: nvlink.map(|(sent, _)| sent as f64),
        nvlink_received_bytes: nvlink.map(|(_, received)| received as f64),
    })
}

/// The driver counts in thousands of bytes.
fn pcie(device: &Device<'_>, direction: PcieUtilCounter) -> Option<f64> {
    known(device.pcie_throughput(direction), |kilobytes| f64::from(kilobytes) * 1e3)
}

fn known<T>(asked: Result<T, NvmlError>, number: impl Fn(T) -> f64) -> Option<f64> {
    asked.ok().map(number)
}
