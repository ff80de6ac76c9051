//! What the answers must be: those of one undisturbed `stator serve`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::answer::{Answer, Broken};
use crate::client::{self, Progress};
use crate::cluster::ClusterConfig;
use crate::journal::Journal;
use crate::load::Known;
use crate::process::Process;
use crate::question::{Question, with_stop};

/// Questions asked at once.
const AT_ONCE: usize = 4;

/// Asks all questions; those that want a stop string get one from their own answer, and are asked
/// again. Errors: the server does not start, or a question has no answer.
pub async fn ask(
    config: &ClusterConfig,
    engine: &[String],
    questions: Vec<Question>,
    http: &reqwest::Client,
) -> Result<Vec<Known>> {
    std::fs::create_dir_all(&config.logs)?;
    let mut serve = start(config, engine, &config.logs)?;
    let address = serve.addresses(&["API"]).await?["API"];
    let base_url = format!("http://{address}/v1");
    let mut asking = JoinSet::new();
    let mut known = Vec::new();
    for question in questions {
        if asking.len() >= AT_ONCE {
            known.extend(next(&mut asking).await?);
        }
        asking.spawn(know(http.clone(), base_url.clone(), question));
    }
    while !asking.is_empty() {
        known.extend(next(&mut asking).await?);
    }
    serve.kill().await?;
    known.sort_by(|a, b| a.question.name.cmp(&b.question.name));
    Ok(known)
}

fn start(config: &ClusterConfig, engine: &[String], logs: &Path) -> Result<Process> {
    let mut command = Command::new(&config.stator);
    command.arg("serve").arg(&config.model).args(["--model-name", &config.model_name]);
    command.args(["--listen", "127.0.0.1:0"]).args(engine);
    Process::start("oracle", command, logs, &Arc::new(Journal::default()))
}

async fn next(asking: &mut JoinSet<Result<Known>>) -> Result<Option<Known>> {
    asking.join_next().await.transpose().context("asking failed")?.transpose()
}

async fn know(http: reqwest::Client, base_url: String, mut question: Question) -> Result<Known> {
    let mut answer = ask_one(&http, &base_url, &question).await?;
    if question.wants_stop() {
        question = with_stop(question, &answer.text);
        answer = ask_one(&http, &base_url, &question).await?;
    }
    Ok(Known { question, answer })
}

async fn ask_one(http: &reqwest::Client, base_url: &str, question: &Question) -> Result<Answer> {
    let id = format!("oracle-{}", question.name);
    let asked = client::ask(http, base_url, question, &id, &Progress::default()).await;
    let name = &question.name;
    asked.answer.map_err(|Broken(reason)| anyhow!("no undisturbed answer to {name}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binaries;
    use crate::cluster::Counts;
    use crate::load::{Load, LoadConfig, Verdict};
    use crate::phase::Phase;
    use crate::question::questions;

    /// What the oracle says must not depend on who else asks, nor on how long steps take.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_busy_server_answers_as_the_oracle_did() {
        let phase = Phase::short(8, 0, 0);
        let logs = std::env::temp_dir().join(format!("chaos-oracle-test-{}", std::process::id()));
        let config = ClusterConfig {
            stator: binaries::stator(None).unwrap(),
            nats_server: "nats-server".into(),
            logs: logs.clone(),
            counts: Counts { gateways: 0, routers: 0, prefill_workers: 0, decode_workers: 0 },
            model: binaries::repository().join("models/demo"),
            model_name: "demo".into(),
            engine: Vec::new(),
            kv_bytes_per_s: 0,
            defect: None,
        };
        let http = reqwest::Client::new();
        let asked = questions(3, 20, "demo", &phase.lengths);
        let known = ask(&config, &phase.oracle_engine, asked, &http).await.unwrap();
        assert_eq!(known.len(), 20);
        let stops = |known: &&Known| known.question.name.starts_with("stop");
        let ends: Vec<&str> =
            known.iter().filter(stops).map(|known| known.answer.finish_reason.as_str()).collect();
        assert_eq!(ends, ["stop", "stop"], "questions with a stop string end with it");

        let mut serve = start(&config, &phase.engine, &config.logs).unwrap();
        let address = serve.addresses(&["API"]).await.unwrap()["API"];
        let load = Load::start(
            http,
            LoadConfig {
                streams: 8,
                base_urls: vec![format!("http://{address}/v1")],
                known: Arc::new(known),
                seed: 1,
                name: "oracle-test".into(),
            },
        );
        while load.past_first_token() < 4 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let outcomes = load.finish().await;
        assert!(outcomes.len() >= 8);
        for outcome in outcomes {
            assert_eq!(outcome.verdict, Verdict::Same, "{outcome:?}");
        }
        serve.kill().await.unwrap();
        std::fs::remove_dir_all(logs).unwrap();
    }
}
