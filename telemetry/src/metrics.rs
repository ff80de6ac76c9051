//! The metrics of one process, read from its components when somebody asks.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::process;

/// The metrics of one process. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

/// A metric whose values are read when somebody asks.
pub struct Reading {
    /// With its unit, if it has one; that of a counter without `_total`, which is added.
    pub name: &'static str,
    /// A sentence.
    pub help: &'static str,
    /// Whether it only ever rises.
    pub is_counter: bool,
    /// What its values differ in; absent: there is one value.
    pub label: Option<&'static str>,
}

impl Metrics {
    /// With what the process itself uses.
    pub fn new() -> Self {
        let metrics = Self { registry: Arc::default() };
        process::register(&metrics);
        metrics
    }

    /// Adds a gauge of one value.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let reading = Reading { name, help, is_counter: false, label: None };
        self.read(reading, move || vec![("", read())]);
    }

    /// Adds a counter of one value.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let reading = Reading { name, help, is_counter: true, label: None };
        self.read(reading, move || vec![("", read())]);
    }

    /// Adds what `read` gives: pairs of a label's value and the metric's. While there are none, nothing tells
    /// of the metric.
    pub fn read<L: AsRef<str> + 'static>(
        &self,
        reading: Reading,
        read: impl Fn() -> Vec<(L, f64)> + Send + Sync + 'static,
    ) {
        let collected = Collected { reading, read: Box::new(read) };
        self.registry.lock().register_collector(Box::new(collected));
    }

    /// All metrics as Prometheus reads them.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string fails only where a metric refuses to be written, and ours do not.
        let _written = encode(&mut text, &self.registry.lock());
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

struct Collected<L> {
    reading: Reading,
    read: Box<dyn Fn() -> Vec<(L, f64)> + Send + Sync>,
}

impl<L> fmt::Debug for Collected<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reading.name)
    }
}

impl<L: AsRef<str> + 'static> Collector for Collected<L> {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Reading { name, help, is_counter, label } = self.reading;
        let values = (self.read)();
        if values.is_empty() {
            return Ok(());
        }
        let kind = if is_counter { MetricType::Counter } else { MetricType::Gauge };
        let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
        let Some(label) = label else {
            return values.first().map_or(Ok(()), |(_, number)| write(is_counter, *number, metric));
        };
        for (value, number) in values {
            write(is_counter, number, metric.encode_family(&[(label, value.as_ref())])?)?;
        }
        Ok(())
    }
}

fn write(is_counter: bool, number: f64, encoder: MetricEncoder<'_>) -> fmt::Result {
    match is_counter {
        true => ConstCounter::new(number).encode(encoder),
        false => ConstGauge::new(number).encode(encoder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, line: &str) {
        assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
    }

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        let metrics = Metrics::new();
        let blocks = Reading {
            name: "stator_kv_blocks",
            help: "KV blocks by what they hold.",
            is_counter: false,
            label: Some("state"),
        };
        metrics.read(blocks, || vec![("free", 3.0), ("used", 1.0)]);
        metrics.counter("stator_steps", "Steps made.", || 7.0);
        let text = metrics.text();
        let expected = [
            "# TYPE stator_kv_blocks gauge",
            "stator_kv_blocks{state=\"free\"} 3.0",
            "stator_kv_blocks{state=\"used\"} 1.0",
            "# TYPE stator_steps counter",
            "stator_steps_total 7.0",
            "# EOF",
        ];
        for line in expected {
            check(&text, line);
        }
    }

    #[test]
    fn a_metric_without_values_is_left_out_until_it_has_some() {
        let (metrics, watts) = (Metrics::new(), Arc::new(Mutex::new(Vec::new())));
        let (help, label) = ("Power.", Some("gpu"));
        let reading = Reading { name: "stator_watts", help, is_counter: false, label };
        let read = watts.clone();
        metrics.read(reading, move || read.lock().clone());
        assert!(!metrics.text().contains("stator_watts"));
        watts.lock().push(("a", 7.0));
        check(&metrics.text(), "stator_watts{gpu=\"a\"} 7.0");
    }

    #[test]
    fn a_process_says_what_it_uses() {
        let text = Metrics::new().text();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.rsplit_once(' ').unwrap().1.parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_open_fds") >= 3.0);
    }
}
