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
