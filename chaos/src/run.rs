//! A whole run: phases, each with a cluster of its own and a schedule.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::cluster::{Cluster, ClusterConfig, Counts, Defect};
use crate::fault::{Kind, Strike, overlapping_schedule, schedule};
use crate::load::{Known, LoadConfig};
use crate::memory::Memory;
use crate::oracle;
use crate::phase::Phase;
use crate::question::questions;
use crate::report::{PhaseReport, Report, line};
use crate::round::{self, Round};

/// What the model is called.
const MODEL_NAME: &str = "stator-demo";

/// A strike without an occasion is tried again this often.
const TRIES: usize = 3;

/// After so many clusters that could be used no further, a phase ends.
const BROKEN_CLUSTERS_MAX: usize = 3;

/// What to run.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Decides questions, faults and their order.
    pub seed: u64,
    /// The phases, in order.
    pub phases: Vec<Phase>,
    /// The kinds of faults that strike alone.
    pub kinds: Vec<Kind>,
    /// The `stator` command.
    pub stator: PathBuf,
    /// The `nats-server` command.
    pub nats_server: PathBuf,
    /// The model directory.
    pub model: PathBuf,
    /// Where logs go.
    pub logs: PathBuf,
    /// Processes of each kind.
    pub counts: Counts,
    /// A defect that must be noticed.
    pub defect: Option<Defect>,
}

/// Runs everything. Errors: a cluster does not even start, or the undisturbed server fails.
pub async fn run(config: &RunConfig) -> Result<Report> {
    let mut report = Report::new(config.seed, config.logs.clone());
    for phase in &config.phases {
        report.phases.push(run_phase(config, phase).await?);
    }
    Ok(report)
}

async fn run_phase(config: &RunConfig, phase: &Phase) -> Result<PhaseReport> {
    let http = reqwest::Client::builder().no_proxy().build().context("no HTTP client")?;
    let cluster_config = cluster_config(config, phase);
    // An earlier run's registry would speak of workers that are gone.
    let _absent = std::fs::remove_dir_all(&cluster_config.logs);
    let asked = questions(config.seed, phase.questions, MODEL_NAME, &phase.lengths);
    let known = oracle::ask(&cluster_config, &phase.oracle_engine, asked, &http).await?;
    let mut phase_run = PhaseRun {
        config,
        phase,
        cluster: Cluster::start(&cluster_config, http.clone()).await?,
        cluster_config,
        http,
        known: Arc::new(known),
        rounds: Vec::new(),
        memory: BTreeMap::new(),
        broken: Vec::new(),
    };
    phase_run.all().await?;
    phase_run.cluster.stop().await?;
    Ok(PhaseReport {
        name: phase.name.clone(),
        streams: phase.streams,
        rounds: phase_run.rounds,
        memory: phase_run.memory.into_values().collect(),
        broken: phase_run.broken,
    })
}

fn cluster_config(config: &RunConfig, phase: &Phase) -> ClusterConfig {
    ClusterConfig {
        stator: config.stator.clone(),
        nats_server: config.nats_server.clone(),
        logs: config.logs.join(&phase.name),
        counts: config.counts,
        model: config.model.clone(),
        model_name: MODEL_NAME.into(),
        engine: phase.engine.clone(),
        kv_bytes_per_s: phase.kv_bytes_per_s,
        defect: config.defect,
    }
}

struct PhaseRun<'a> {
    config: &'a RunConfig,
    phase: &'a Phase,
    cluster_config: ClusterConfig,
    cluster: Cluster,
    http: reqwest::Client,
    known: Arc<Vec<Known>>,
    rounds: Vec<Round>,
    /// By process and life.
    memory: BTreeMap<(String, u64), Memory>,
    broken: Vec<String>,
}

impl PhaseRun<'_> {
    async fn all(&mut self) -> Result<()> {
        let Phase { faults, overlapping, ref pace, .. } = *self.phase;
        let mut strikes: Vec<Option<Strike>> = vec![None];
        strikes.extend(
            schedule(self.config.seed, faults, &self.config.kinds, pace).into_iter().map(Some),
        );
        strikes.extend(
            overlapping_schedule(self.config.seed, overlapping, pace).into_iter().map(Some),
        );
        let total = strikes.len() - 1;
        for (number, strike) in strikes.iter().enumerate() {
            if self.broken.len() >= BROKEN_CLUSTERS_MAX {
                break;
            }
            for attempt in 1..=TRIES {
                let counted = self.round(number, total, strike.as_ref()).await?;
                if counted || attempt == TRIES {
                    break;
                }
            }
        }
        Ok(())
    }

    /// True if the round counts or cannot be repeated.
    async fn round(
        &mut self,
        number: usize,
        total: usize,
        strike: Option<&Strike>,
    ) -> Result<bool> {
        let load = LoadConfig {
            streams: self.phase.streams,
            base_urls: self.cluster.base_urls()?,
            known: self.known.clone(),
            seed: self.config.seed.wrapping_mul(1_000_003).wrapping_add(number as u64),
            name: format!("{}-{number}", self.phase.name),
        };
        match round::run(&self.cluster, &self.http, load, strike).await {
            Ok(round) => {
                eprintln!("{} {number}/{total} {}", self.phase.name, line(&round));
                self.remember_memory();
                let counted = round.is_counted();
                self.rounds.push(round);
                Ok(counted)
            }
            Err(error) => {
                let what = strike.map_or("calm".into(), Strike::to_string);
                let sentence = format!("round {number} ({what}): {error:#}");
                eprintln!("{} {sentence}; starting a new cluster", self.phase.name);
                self.broken.push(sentence);
                self.renew_cluster().await?;
                Ok(true)
            }
        }
    }

    async fn renew_cluster(&mut self) -> Result<()> {
        for component in &self.cluster.components {
            component.kill().await?;
        }
        self.memory.clear();
        self.cluster = Cluster::start(&self.cluster_config, self.http.clone()).await?;
        Ok(())
    }

    fn remember_memory(&mut self) {
        for component in &self.cluster.components {
            let Some((life, bytes)) = component.memory() else { continue };
            let key = (component.name.clone(), life);
            let new = || Memory::new(component.name.clone(), life, bytes);
            self.memory.entry(key).or_insert_with(new).later(bytes);
        }
    }
}
