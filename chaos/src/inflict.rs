//! Does to a cluster what a schedule says, and undoes it.

use std::sync::Arc;

use anyhow::Result;
use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::component::Component;
use crate::fault::{Fault, Strike, Target, Way};
use crate::proxy::Cut;
use crate::role::Role;

/// A fault and whom it hits.
#[derive(Clone)]
pub struct Aimed {
    fault: Fault,
    /// One; of partitions of NATS and of KV connections, everyone who is cut.
    victims: Vec<Arc<Component>>,
}

/// Chooses the victims of a strike: for its faults on one target, different ones. Errors: a process
/// does not answer.
pub async fn aim(cluster: &Cluster, strike: &Strike) -> Result<Vec<Aimed>> {
    let mut aimed: Vec<Aimed> = Vec::new();
    for fault in &strike.faults {
        let worth_it = match strike.during_pull {
            true => taking_part(cluster, fault),
            false => busy(cluster, fault).await?,
        };
        let is_free = |candidate: &Arc<Component>| {
            !aimed.iter().any(|other| other.is_hit(candidate) && !other.is_wide())
        };
        let free = |some: Vec<Arc<Component>>| some.into_iter().filter(is_free).collect::<Vec<_>>();
        let mut candidates = free(worth_it);
        if candidates.is_empty() {
            candidates = free(all(cluster, fault));
        }
        let victims = match is_wide(fault) {
            true => candidates,
            false => candidates
                .get(fault.draw as usize % candidates.len().max(1))
                .cloned()
                .into_iter()
                .collect(),
        };
        aimed.push(Aimed { fault: fault.clone(), victims });
    }
    Ok(aimed)
}

/// Whom a fault may hit.
fn all(cluster: &Cluster, fault: &Fault) -> Vec<Arc<Component>> {
    match fault.kind.target {
        Target::PrefillWorker => cluster.of(Role::PrefillWorker),
        Target::DecodeWorker => cluster.of(Role::DecodeWorker),
        Target::Router => cluster.of(Role::Router),
        Target::Nats if fault.kind.way.is_partition() => cluster.components.clone(),
        Target::Nats => cluster.of(Role::Nats),
        Target::Kv => cluster.components.clone(),
    }
}

/// Of workers, those that take part in a pull, if any does.
fn taking_part(cluster: &Cluster, fault: &Fault) -> Vec<Arc<Component>> {
    let all = all(cluster, fault);
    let readers = cluster.readers();
    let takes_part =
        |component: &&Arc<Component>| component.is_pulled_from() || component.has_any(&readers);
    let some: Vec<_> = all.iter().filter(takes_part).cloned().collect();
    if !fault.kind.target.is_worker() || some.is_empty() { all } else { some }
}

/// Of workers, those that have something to do, if any has: losing an idle one is no loss.
async fn busy(cluster: &Cluster, fault: &Fault) -> Result<Vec<Arc<Component>>> {
    let all = all(cluster, fault);
    let mut some = Vec::new();
    for component in all.iter().filter(|_| fault.kind.target.is_worker()) {
        if cluster.held_by(component).await?.blocks > 0.0 {
            some.push(component.clone());
        }
    }
    Ok(if some.is_empty() { all } else { some })
}

fn is_wide(fault: &Fault) -> bool {
    matches!(fault.kind.target, Target::Nats | Target::Kv) && fault.kind.way.is_partition()
}

impl Aimed {
    fn is_wide(&self) -> bool {
        is_wide(&self.fault)
    }

    fn is_hit(&self, component: &Arc<Component>) -> bool {
        self.victims.iter().any(|victim| Arc::ptr_eq(victim, component))
    }

    /// Whom it hits, for people.
    pub fn victims(&self) -> String {
        match self.is_wide() {
            true => "all".into(),
            false => self.victims.iter().map(|victim| victim.name.as_str()).collect(),
        }
    }

    /// Strikes, holds, heals. Errors: a process does not end or does not come up again.
    pub async fn inflict(&self) -> Result<()> {
        let Fault { kind, hold, .. } = &self.fault;
        let victim = self.victims.first();
        match (kind.way, victim) {
            (Way::Silence, _) => {
                let _guards = self.cut(Cut::Silence);
                tokio::time::sleep(*hold).await;
            }
            (Way::Reset, _) => {
                let _guards = self.cut(Cut::Reset);
                tokio::time::sleep(*hold).await;
            }
            (Way::Kill, Some(victim)) => {
                victim.kill().await?;
                tokio::time::sleep(*hold).await;
                victim.start().await?;
            }
            (Way::Stop, Some(victim)) => {
                victim.signal(Signal::STOP);
                tokio::time::sleep(*hold).await;
                victim.signal(Signal::CONT);
            }
            (Way::Restart, Some(victim)) => {
                victim.terminate().await?;
                victim.start().await?;
            }
            (Way::Kill | Way::Stop | Way::Restart, None) => {}
        }
        Ok(())
    }

    fn cut(&self, cut: Cut) -> Vec<crate::proxy::CutGuard> {
        let victims = self.victims.iter();
        match self.fault.kind.target {
            Target::Nats => victims.filter_map(|victim| victim.cut_nats(cut)).collect(),
            Target::Kv => victims.filter_map(|victim| victim.cut_kv(cut)).collect(),
            _ => victims.flat_map(|victim| victim.cut_off(cut)).collect(),
        }
    }
}
