//! What a process says of itself on `/metrics`, in Prometheus' text format.

/// One scrape.
#[derive(Debug)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// Takes a page as it came.
    pub fn new(text: String) -> Self {
        Self { text }
    }

    /// The sum of a metric over its label sets that contain `label` (`state="used"`; the empty
    /// string takes all). `None` if there is no such metric.
    pub fn sum(&self, name: &str, label: &str) -> Option<f64> {
        let values = self.text.lines().filter_map(|line| value_of(line, name, label));
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }
}

fn value_of(line: &str, name: &str, label: &str) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (labels, value) = match rest.strip_prefix('{') {
        Some(labelled) => labelled.split_once('}')?,
        None => ("", rest),
    };
    if !value.starts_with(' ') || !labels.contains(label) {
        return None;
    }
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_by_name_and_label() {
        let page = "# HELP blocks Blocks.\n# TYPE blocks gauge\n\
            blocks{state=\"free\"} 7\nblocks{state=\"used\"} 2\nblocks_max 9\nleases 1 1700000000\n";
        let metrics = Metrics::new(page.into());
        #[track_caller]
        fn check(metrics: &Metrics, name: &str, label: &str, expected: Option<f64>) {
            assert_eq!(metrics.sum(name, label), expected, "{name} {label}");
        }
        check(&metrics, "blocks", "", Some(9.0));
        check(&metrics, "blocks", "state=\"used\"", Some(2.0));
        check(&metrics, "blocks", "state=\"lost\"", None);
        check(&metrics, "blocks_max", "", Some(9.0));
        check(&metrics, "leases", "", Some(1.0));
        check(&metrics, "lease", "", None);
    }
}
