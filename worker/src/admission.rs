//! Whether a worker goes with those of its cluster.

use messaging::Registry;
use prost::Message;
use protocol::{subjects, v1};

/// What makes answers: all workers of one model name have the same.
pub fn model_id(weights_id: &str, card: &v1::ModelCard) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(weights_id.as_bytes());
    part(&card.tokenizer_json);
    for text in [&card.chat_template, &card.bos_token, &card.eos_token] {
        // Absent is not empty.
        part(&[u8::from(text.is_some())]);
        part(text.as_deref().unwrap_or_default().as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_string()
}

/// Why a worker must not be registered, if so: a sentence that names the other one. Earlier lives of
/// the same worker do not count.
pub fn conflict(ours: &v1::WorkerRegistration, registry: &Registry) -> Option<String> {
    others(ours, registry).find_map(|other| mismatch(ours, &other))
}

/// The same of a worker that is registered: of two that came at once, the one that began later goes.
pub fn conflict_with_elder(ours: &v1::WorkerRegistration, registry: &Registry) -> Option<String> {
    let age = |worker: &v1::WorkerRegistration| (worker.incarnation, worker.worker_id.clone());
    let mut elders = others(ours, registry).filter(|other| age(other) < age(ours));
    elders.find_map(|other| mismatch(ours, &other))
}

fn others(
    ours: &v1::WorkerRegistration,
    registry: &Registry,
) -> impl Iterator<Item = v1::WorkerRegistration> {
    let (present, _) = registry.watch(subjects::WORKERS);
    let present = present.into_iter();
    let others = present.filter_map(|(_, value)| v1::WorkerRegistration::decode(value).ok());
    others.filter(|other| other.worker_id != ours.worker_id)
}

fn mismatch(ours: &v1::WorkerRegistration, other: &v1::WorkerRegistration) -> Option<String> {
    let (id, model) = (&other.worker_id, &ours.model);
    // A worker of an earlier version says nothing of what its model is made of.
    let knows_models = !other.model_id.is_empty() && !ours.model_id.is_empty();
    if other.model == ours.model && other.model_id != ours.model_id && knows_models {
        return Some(format!(
            "worker {id} serves another model under the name {model}: its weights, tokenizer or chat \
             template differ; give this worker another --model-name, or both the same model"
        ));
    }
    if other.numerics_id != ours.numerics_id {
        return None;
    }
    if other.block_size != ours.block_size {
        return Some(format!(
            "worker {id} keeps the KV cache of {model} in blocks of {} tokens, and this one in blocks \
             of {}, so that they cannot share it; give both the same --block-size",
            other.block_size, ours.block_size
        ));
    }
    (other.block_bytes != ours.block_bytes).then(|| {
        format!(
            "worker {id} keeps the KV cache of {model} in blocks of {} bytes, and this one in blocks \
             of {}, so that they cannot share it; run the same version of Stator on both",
            other.block_bytes, ours.block_bytes
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(worker_id: &str) -> v1::WorkerRegistration {
        v1::WorkerRegistration {
            worker_id: worker_id.into(),
            model: "demo".into(),
            model_id: "m".into(),
            numerics_id: "n".into(),
            block_size: 16,
            block_bytes: 1024,
            ..Default::default()
        }
    }

    /// Whether a worker called `a` may join beside this one, and if not, what the sentence says.
    #[track_caller]
    fn check(adjust: impl FnOnce(&mut v1::WorkerRegistration), expected: Option<&str>) {
        let registry = Registry::default();
        let mut other = registration("b");
        adjust(&mut other);
        registry.put("workers/b/1", other.encode_to_vec().into());
        let found = conflict(&registration("a"), &registry);
        match expected {
            None => assert_eq!(found, None),
            Some(part) => assert!(found.as_ref().is_some_and(|s| s.contains(part)), "{found:?}"),
        }
    }

    #[test]
    fn a_worker_joins_those_that_it_goes_with() {
        check(|_| {}, None);
        check(
            |other| other.model_id = "x".into(),
            Some("worker b serves another model under the name demo"),
        );
        check(|other| other.model_id.clear(), None);
        check(|other| (other.model_id, other.model) = ("x".into(), "other".into()), None);
        check(
            |other| other.block_size = 32,
            Some("blocks of 32 tokens, and this one in blocks of 16"),
        );
        check(|other| other.block_bytes = 512, Some("blocks of 512 bytes"));
        check(|other| (other.block_size, other.numerics_id) = (32, "x".into()), None);
        check(|other| (other.block_size, other.worker_id) = (32, "a".into()), None);
    }

    #[test]
    fn of_two_that_came_at_once_the_elder_stays() {
        let lives = [("a", 7, 16), ("b", 6, 32), ("c", 7, 32)];
        let registrations = lives.map(|(id, incarnation, block_size)| v1::WorkerRegistration {
            incarnation,
            block_size,
            ..registration(id)
        });
        let registry = Registry::default();
        for worker in &registrations {
            registry.put(&format!("workers/{}/1", worker.worker_id), worker.encode_to_vec().into());
        }
        let leaves = registrations.map(|worker| conflict_with_elder(&worker, &registry).is_some());
        assert_eq!(leaves, [true, false, true]);
    }

    #[test]
    fn a_model_id_is_of_what_makes_answers() {
        let card = v1::ModelCard::default();
        let id = model_id("w", &card);
        let named =
            v1::ModelCard { name: "n".into(), created_s: 7, context_tokens: 9, ..card.clone() };
        assert_eq!(model_id("w", &named), id);
        let template = v1::ModelCard { chat_template: Some(String::new()), ..card.clone() };
        let tokenizer = v1::ModelCard { tokenizer_json: "{}".into(), ..card.clone() };
        for other in [model_id("v", &card), model_id("w", &template), model_id("w", &tokenizer)] {
            assert_ne!(other, id);
        }
    }
}
