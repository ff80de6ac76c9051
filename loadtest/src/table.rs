//! The report as people read it.

use std::fmt::{self, Display, Formatter};

use crate::report::{Figures, Report};

/// Above this, latencies say as much about the generator as about the server.
const LATENESS_P99_MS_MAX: f64 = 10.0;

const MIB: f64 = 1024.0 * 1024.0;

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        self.heading(out)?;
        self.requests(out)?;
        self.throughput(out)?;
        self.latencies(out)?;
        self.processes(out)?;
        self.failures(out)?;
        self.remarks(out)
    }
}

impl Report {
    fn heading(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let asked = &self.configuration;
        writeln!(out, "\n{} at {}", asked.model, asked.url)?;
        let turns = if asked.turns == 1 { "turn" } else { "turns" };
        let load = match (asked.rate_per_s, asked.arrivals, asked.concurrency) {
            (Some(rate), Some(arrivals), _) => {
                let arrivals = format!("{arrivals:?}").to_lowercase();
                format!("open loop, {rate} arrivals/s ({arrivals})")
            }
            (_, _, concurrency) => {
                format!("closed loop, {} at once", concurrency.unwrap_or_default())
            }
        };
        let early = if self.interrupted { ", interrupted" } else { "" };
        writeln!(out, "{load}, measured for {:.2} s{early}", self.elapsed_s)?;
        writeln!(
            out,
            "{} input tokens ({} of them shared), {} output tokens, {} {turns}, seed {}",
            asked.input_tokens, asked.prefix_tokens, asked.output_tokens, asked.turns, asked.seed
        )
    }

    fn requests(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let (ended, total) = (&self.requests, self.requests.total());
        writeln!(out, "\n{:26}{:>14}{:>14}", "Requests", "count", "share (%)")?;
        for (name, count) in [
            ("ok", ended.ok),
            ("rejected (429, 503)", ended.rejected),
            ("failed", ended.failed),
            ("cut", ended.cut),
            ("unfinished", ended.unfinished),
            ("dropped", ended.dropped),
        ] {
            let share = if total > 0 { 100.0 * count as f64 / total as f64 } else { 0.0 };
            writeln!(out, "  {name:24}{:>14}{share:>14.2}", thousands(count as f64, 0))?;
        }
        if let Some(goodput) = &self.goodput {
            let (count, share) = (thousands(goodput.requests as f64, 0), 100.0 * goodput.share);
            writeln!(out, "  {:24}{count:>14}{share:>14.2}", "good (all objectives)")?;
        }
        Ok(())
    }

    fn throughput(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let (rates, tokens) = (&self.rates, &self.tokens);
        let cached_per_s = match tokens.prompt_tokens {
            0 => 0.0,
            all => rates.prompt_tokens_per_s * tokens.cached_prompt_tokens as f64 / all as f64,
        };
        let (prompt_mean, output_mean) =
            (Some(tokens.mean_prompt_tokens), Some(tokens.mean_output_tokens));
        let rows = [
            ("requests", rates.requests_per_s, self.requests.ok, None),
            ("prompt tokens", rates.prompt_tokens_per_s, tokens.prompt_tokens, prompt_mean),
            ("  of them cached", cached_per_s, tokens.cached_prompt_tokens, None),
            ("output tokens", rates.output_tokens_per_s, tokens.output_tokens, output_mean),
            ("streamed events", rates.events_per_s, tokens.events, None),
        ];
        let (second, request) = ("per second", "per request");
        writeln!(out, "\n{:26}{second:>14}{:>14}{request:>14}", "Throughput", "total")?;
        for (name, per_s, total, mean) in rows {
            let mean = mean.map_or_else(String::new, |mean| thousands(mean, 1));
            let (per_s, total) = (thousands(per_s, 1), thousands(total as f64, 0));
            writeln!(out, "{}", format!("  {name:24}{per_s:>14}{total:>14}{mean:>14}").trim_end())?;
        }
        let Some(goodput) = &self.goodput else { return Ok(()) };
        let (ttft, itl) = (self.configuration.slo_ttft_ms, self.configuration.slo_itl_ms);
        let limits = [("TTFT", ttft), ("TPOT", itl)];
        let limits = limits.iter().filter_map(|(name, limit)| Some((name, (*limit)?)));
        let limits: Vec<_> = limits.map(|(name, ms)| format!("{name} <= {ms} ms")).collect();
        let per_s = thousands(goodput.requests_per_s, 1);
        writeln!(out, "  {:24}{per_s:>14}  requests with {}", "goodput", limits.join(", "))
    }

    fn latencies(&self, out: &mut Formatter<'_>) -> fmt::Result {
        if self.latency_ms.ttft.is_none() && self.latency_ms.end_to_end.is_none() {
            return Ok(());
        }
        write!(out, "\n{:26}", "Latency (ms)")?;
        for column in ["mean", "p50", "p90", "p95", "p99", "p99.9", "max"] {
            write!(out, "{column:>10}")?;
        }
        writeln!(out)?;
        let all = &self.latency_ms;
        for (name, figures) in [
            ("TTFT", &all.ttft),
            ("ITL (between events)", &all.itl),
            ("TPOT (mean per request)", &all.tpot),
            ("end to end", &all.end_to_end),
            ("generator's lateness", &all.lateness),
        ] {
            if let Some(Figures { mean, p50, p90, p95, p99, p99_9, max, .. }) = figures {
                write!(out, "  {name:24}")?;
                for ms in [mean, p50, p90, p95, p99, p99_9, max] {
                    let decimals = if *ms < 1.0 { 3 } else { 2 * usize::from(*ms < 100.0) };
                    write!(out, "{:>10}", thousands(*ms, decimals))?;
                }
                writeln!(out)?;
            }
        }
        Ok(())
    }

    fn processes(&self, out: &mut Formatter<'_>) -> fmt::Result {
        if self.processes.is_empty() {
            return Ok(());
        }
        let columns = ["pid", "CPU (s)", "CPU (%)", "RSS mean (MiB)", "RSS peak (MiB)"];
        let [pid, cpu_s, cpu, mean, peak] = columns;
        writeln!(out, "\n{:26}{pid:>10}{cpu_s:>10}{cpu:>10}{mean:>16}{peak:>16}", "Processes")?;
        for used in &self.processes {
            let name = if used.is_generator { "this load generator" } else { &used.name };
            let (mean, peak) = (used.rss_mean_bytes as f64 / MIB, used.rss_peak_bytes as f64 / MIB);
            let (pid, cpu_s, cpu) = (used.pid, used.cpu_s, used.cpu_percent);
            let ended = if used.ended { "  (ended during the run)" } else { "" };
            writeln!(
                out,
                "  {name:24}{pid:>10}{cpu_s:>10.2}{cpu:>10.1}{mean:>16.1}{peak:>16.1}{ended}"
            )?;
        }
        Ok(())
    }

    fn failures(&self, out: &mut Formatter<'_>) -> fmt::Result {
        if self.failures.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n{:>10}  Failure", "count")?;
        for failure in &self.failures {
            writeln!(out, "{:>10}  {}", thousands(failure.count as f64, 0), failure.message)?;
        }
        Ok(())
    }

    fn remarks(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let ended = &self.requests;
        if ended.dropped > 0 {
            writeln!(
                out,
                "\n{} arrivals were dropped because too many requests were under way: the server \
                 saw less than the asked rate.",
                thousands(ended.dropped as f64, 0)
            )?;
        }
        if ended.unfinished > 0 {
            let counted = if self.interrupted {
                "only what they had streamed is counted"
            } else {
                "latencies have them with the time they had waited, and so are lower bounds"
            };
            let count = thousands(ended.unfinished as f64, 0);
            writeln!(out, "\n{count} requests were still running at the end: {counted}.")?;
        }
        match &self.latency_ms.lateness {
            Some(late) if late.p99 > LATENESS_P99_MS_MAX => writeln!(
                out,
                "\nThe generator itself was late (p99 {:.1} ms), which latencies include: give it \
                 more CPU or a lower rate.",
                late.p99
            ),
            _ => Ok(()),
        }
    }
}

/// With separators, and so many decimals.
fn thousands(number: f64, decimals: usize) -> String {
    let plain = format!("{number:.decimals$}");
    let (whole, fraction) = match plain.split_once('.') {
        Some((whole, fraction)) => (whole, format!(".{fraction}")),
        None => (plain.as_str(), String::new()),
    };
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_digits() {
        let check = |number, decimals, expected| assert_eq!(thousands(number, decimals), expected);
        check(0.0, 0, "0");
        check(999.0, 0, "999");
        check(1000.0, 0, "1,000");
        check(1_234_567.89, 1, "1,234,567.9");
        check(0.126, 2, "0.13");
    }
}
