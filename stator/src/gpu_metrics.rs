//! What the GPUs of this machine do, as metrics by their UUIDs.

use std::sync::Arc;

use telemetry::{Metrics, Reading};
use topology::{GpuSample, Monitor};

/// What a metric takes of a sample.
type Of = fn(&GpuSample) -> Option<f64>;

/// Shows what the GPUs tell; a metric that none of them has is left out.
pub fn show(metrics: &Metrics, monitor: &Arc<Monitor>) {
    let gauge = |name, help, of: Of| read(metrics, monitor, name, help, false, of);
    let counter = |name, help, of: Of| read(metrics, monitor, name, help, true, of);
    let help = "Share of the last second in which something computed on the GPU.";
    gauge("stator_gpu_utilization_ratio", help, |gpu| gpu.utilization);
    let help = "Memory of the GPU in use, by anyone.";
    gauge("stator_gpu_memory_used_bytes", help, |gpu| gpu.memory_used_bytes);
    gauge("stator_gpu_memory_bytes", "Memory of the GPU.", |gpu| gpu.memory_bytes);
    let help = "Temperature of the GPU.";
    gauge("stator_gpu_temperature_celsius", help, |gpu| gpu.temperature_celsius);
    gauge("stator_gpu_power_watts", "Power that the GPU's card takes.", |gpu| gpu.power_watts);
    let help = "What the GPU sends over PCIe, as of 20 ms of the last sample.";
    gauge("stator_gpu_pcie_sent_bytes_per_second", help, |gpu| gpu.pcie_sent_bytes_per_s);
    let help = "What the GPU receives over PCIe, likewise.";
    gauge("stator_gpu_pcie_received_bytes_per_second", help, |gpu| gpu.pcie_received_bytes_per_s);
    let help = "What the GPU sent over its NVLinks since its driver was loaded.";
    counter("stator_gpu_nvlink_sent_bytes", help, |gpu| gpu.nvlink_sent_bytes);
    let help = "What the GPU received over its NVLinks, likewise.";
    counter("stator_gpu_nvlink_received_bytes", help, |gpu| gpu.nvlink_received_bytes);
}

fn read(
    metrics: &Metrics,
    monitor: &Arc<Monitor>,
    name: &'static str,
    help: &'static str,
    is_counter: bool,
    of: Of,
) {
    let values = move |monitor: &Monitor| -> Vec<(String, f64)> {
        let samples = monitor.latest().into_iter();
        samples.filter_map(|gpu| of(&gpu).map(|value| (gpu.uuid, value))).collect()
    };
    if values(monitor).is_empty() {
        return;
    }
    let monitor = monitor.clone();
    let reading = Reading { name, help, is_counter, label: Some("gpu") };
    metrics.read(reading, move || values(&monitor));
}
