//! What the GPUs of this machine do, as metrics by their UUIDs.

use telemetry::{Metrics, Reading};
use topology::GpuSample;

/// What a metric takes of a sample.
type Of = fn(&GpuSample) -> Option<f64>;

/// Shows what the GPUs tell, of which `latest` gives the last samples; a metric that none of them has just
/// then is left out.
pub fn show(
    metrics: &Metrics,
    latest: impl Fn() -> Vec<GpuSample> + Clone + Send + Sync + 'static,
) {
    let read = |name, help, is_counter, of: Of| {
        let reading = Reading { name, help, is_counter, label: Some("gpu") };
        let latest = latest.clone();
        let value = move |gpu: GpuSample| of(&gpu).map(|value| (gpu.uuid, value));
        metrics.read(reading, move || latest().into_iter().filter_map(value).collect());
    };
    let gauge = |name, help, of: Of| read(name, help, false, of);
    let counter = |name, help, of: Of| read(name, help, true, of);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn what_the_first_sample_lacks_is_shown_when_a_later_one_has_it() {
        let sample = GpuSample { uuid: "GPU-a".into(), ..Default::default() };
        let samples = Arc::new(Mutex::new(vec![sample]));
        let (metrics, latest) = (Metrics::new(), samples.clone());
        show(&metrics, move || latest.lock().clone());
        assert!(!metrics.text().contains("stator_gpu"));
        samples.lock()[0].power_watts = Some(300.0);
        let text = metrics.text();
        let lines = text.lines().filter(|line| line.starts_with("stator_gpu"));
        assert_eq!(Vec::from_iter(lines), ["stator_gpu_power_watts{gpu=\"GPU-a\"} 300.0"]);
        samples.lock().clear();
        assert!(!metrics.text().contains("stator_gpu"), "the GPU is lost");
    }
}
