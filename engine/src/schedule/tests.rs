use protocol::v1::{LatencyModel, Stopping};

use super::*;
use crate::kv::BlockPool;

const BLOCK_SIZE: usize = 4;

fn sequence(id: u64, tokens: usize) -> Sequence {
    let request = SequenceRequest {
        id: SequenceId(id),
        prompt: (0..tokens as u32).map(|token| token + 1000 * id as u32).collect(),
        generated: Vec::new(),
        sampling: Default::default(),
        stopping: Stopping { max_tokens: 1000, ..Default::default() },
        cache_salt: String::new(),
        grammar: None,
        prompt_logprobs: None,
        priority: 0,
    };
    Sequence::new(request, Purpose::Generate, "numerics", BLOCK_SIZE).unwrap()
}

fn with_priority(priority: i32, mut sequence: Sequence) -> Sequence {
    sequence.rank.priority = priority;
    sequence
}

fn limits(max_num_seqs: usize, max_num_batched_tokens: usize) -> Limits {
    Limits { max_num_seqs, max_num_batched_tokens, speculative_tokens: 0, step_target_us: None }
}

fn scheduler(max_num_seqs: usize, max_num_batched_tokens: usize) -> Scheduler {
    Scheduler::new(limits(max_num_seqs, max_num_batched_tokens))
}

/// With so many sequences of one token that decode already.
fn with_streams(mut scheduler: Scheduler, pool: &mut BlockPool, streams: u64) -> Scheduler {
    for id in 0..streams {
        let mut stream = sequence(100 + id, 1);
        assert!(stream.grow(1, pool));
        stream.advance(1, pool);
        stream.tokens.push(7);
        scheduler.resume(stream);
    }
    scheduler
}

/// Runs one step, in which each sequence that catches up gains a token. Returns (id, count).
fn step(scheduler: &mut Scheduler, pool: &mut BlockPool) -> Vec<(u64, usize)> {
    let scheduled = scheduler.schedule(0, pool);
    pool.assert_consistent();
    let mut counts = Vec::new();
    for Scheduled { index, count } in scheduled {
        let sequence = &mut scheduler.running_mut()[index];
        counts.push((sequence.id.0, count));
        sequence.advance(count.min(sequence.uncomputed()), pool);
        if sequence.uncomputed() == 0 {
            sequence.tokens.push(7);
        }
    }
    counts
}

#[test]
fn long_prompts_are_chunked_within_the_budget_beside_running_sequences() {
    let (mut scheduler, mut pool) = (scheduler(8, 10), BlockPool::new(100));
    scheduler.add(sequence(1, 3));
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 3)]);
    scheduler.add(sequence(2, 25));
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 9)]);
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 9)]);
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 7)]);
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 1)]);
}

#[test]
fn a_long_prompt_that_is_pulled_ends_with_a_short_step() {
    let check = |tokens, purpose, budget, expected: &[usize]| {
        let (mut scheduler, mut pool) = (scheduler(8, budget), BlockPool::new(1000));
        let mut long = sequence(1, tokens);
        long.purpose = purpose;
        scheduler.add(long);
        let steps: Vec<usize> =
            expected.iter().map(|_| step(&mut scheduler, &mut pool)[0].1).collect();
        assert_eq!(steps, expected, "{tokens} tokens");
    };
    check(2000, Purpose::Prefill, 512, &[512, 512, 512, 400, 64]);
    check(1600, Purpose::Prefill, 512, &[512, 512, 512, 64]);
    check(1024, Purpose::Prefill, 4096, &[960, 64]);
    check(1000, Purpose::Prefill, 4096, &[1000]);
    check(2000, Purpose::Generate, 4096, &[2000, 1]);
}

#[test]
fn no_more_sequences_run_than_allowed() {
    let (mut scheduler, mut pool) = (scheduler(2, 100), BlockPool::new(100));
    for id in 1..=3 {
        scheduler.add(sequence(id, 4));
    }
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 4), (2, 4)]);
    scheduler.remove(SequenceId(1)).unwrap().release(&mut pool);
    assert_eq!(step(&mut scheduler, &mut pool), [(2, 1), (3, 4)]);
}

#[test]
fn streams_come_before_prompts_and_reserved_sequences_count() {
    let (mut scheduler, mut pool) = (scheduler(3, 10), BlockPool::new(100));
    scheduler.add(sequence(1, 30));
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 10)]);
    let mut resumed = sequence(2, 4);
    assert!(resumed.grow(4, &mut pool));
    resumed.advance(4, &mut pool);
    resumed.tokens.push(7);
    scheduler.resume(resumed);
    assert_eq!(step(&mut scheduler, &mut pool), [(2, 1), (1, 9)]);
    assert!(scheduler.has_room(0) && !scheduler.has_room(1));
}

#[test]
fn a_seen_prefix_is_not_computed_again() {
    let (mut scheduler, mut pool) = (scheduler(8, 100), BlockPool::new(100));
    scheduler.add(sequence(1, 13));
    step(&mut scheduler, &mut pool);
    let mut again = sequence(1, 13);
    again.id = SequenceId(2);
    scheduler.add(again);
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 1)], "12 of 13 were seen");
    assert_eq!(scheduler.running()[1].cached_tokens, Some(12));
}

#[test]
fn a_whole_seen_prompt_still_computes_its_last_block_for_the_logits() {
    let (mut scheduler, mut pool) = (scheduler(8, 100), BlockPool::new(100));
    scheduler.add(sequence(1, 8));
    step(&mut scheduler, &mut pool);
    let mut again = sequence(1, 8);
    again.id = SequenceId(2);
    scheduler.add(again);
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 1), (2, 4)]);
}

#[test]
fn the_youngest_is_preempted_and_catches_up_later() {
    let (mut scheduler, mut pool) = (scheduler(8, 100), BlockPool::new(4));
    scheduler.add(sequence(1, 8));
    scheduler.add(sequence(2, 7));
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 8), (2, 7)]);
    // Sequence 1 needs a third block, and 2 has the last one.
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 1)]);
    assert_eq!(scheduler.waiting().len(), 1);
    scheduler.remove(SequenceId(1)).unwrap().release(&mut pool);
    let again = step(&mut scheduler, &mut pool);
    assert_eq!(again, [(2, 4)], "of 8 tokens, the first block was still cached");
}

/// In each step of a scheduler with streams, tokens of streams and of prompts.
#[track_caller]
fn check_shares(
    (max_num_seqs, tokens, streams): (usize, usize, u64),
    prompts: &[usize],
    expected: &[(usize, usize)],
) {
    let mut pool = BlockPool::new(1000);
    let mut scheduler = with_streams(scheduler(max_num_seqs, tokens), &mut pool, streams);
    for (id, prompt) in (1..).zip(prompts) {
        scheduler.add(sequence(id, *prompt));
    }
    for (index, expected) in expected.iter().enumerate() {
        let counts = step(&mut scheduler, &mut pool);
        let (of_streams, of_prompts): (Vec<_>, Vec<_>) =
            counts.into_iter().partition(|(id, _)| *id >= 100);
        let sum = |counts: Vec<(u64, usize)>| counts.iter().map(|(_, count)| *count).sum::<usize>();
        assert_eq!((sum(of_streams), sum(of_prompts)), *expected, "step {index}");
    }
}

#[test]
fn streams_and_prompts_each_have_their_share_of_a_step() {
    check_shares((8, 16, 3), &[500, 500, 500], &[(3, 13); 20]);
    // A quarter for prompts, and nothing kept where there are none.
    check_shares((64, 16, 30), &[500], &[(12, 4); 20]);
    check_shares((64, 16, 30), &[], &[(16, 0); 20]);
    check_shares((64, 1, 3), &[500], &[(0, 1), (1, 0), (0, 1), (1, 0)]);
    // One that may not run yet takes nothing from those that do.
    check_shares((30, 16, 30), &[500], &[(16, 0); 20]);
}

#[test]
fn more_streams_than_a_step_has_tokens_for_take_turns() {
    let mut pool = BlockPool::new(100);
    let mut scheduler = with_streams(scheduler(64, 4), &mut pool, 10);
    let mut last_steps = [0; 10];
    for index in 1..=20 {
        for (id, _) in step(&mut scheduler, &mut pool) {
            last_steps[id as usize - 100] = index;
        }
        assert!(
            last_steps.iter().all(|last| index - last <= 10_usize.div_ceil(4)),
            "{last_steps:?}"
        );
    }
}

#[test]
fn a_long_prompt_leaves_half_to_shorter_ones() {
    let (mut scheduler, mut pool) = (scheduler(8, 40), BlockPool::new(1000));
    scheduler.add(sequence(1, 1000));
    scheduler.add(sequence(2, 900));
    scheduler.add(sequence(3, 12));
    scheduler.add(sequence(4, 10));
    // The shortest first; the others of the half are the next one's.
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 20), (4, 10), (3, 10)]);
    assert_eq!(step(&mut scheduler, &mut pool), [(4, 1), (1, 20), (3, 2), (2, 17)]);
    // What is as long as the first one waits for it.
    let (mut scheduler, mut pool) = (self::scheduler(8, 40), BlockPool::new(1000));
    scheduler.add(sequence(1, 60));
    scheduler.add(sequence(2, 60));
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 40)]);
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 20), (2, 20)]);
}

#[test]
fn the_worst_rank_is_preempted() {
    let (mut scheduler, mut pool) = (scheduler(8, 100), BlockPool::new(6));
    scheduler.add(with_priority(1, sequence(1, 8)));
    scheduler.add(with_priority(-1, sequence(2, 8)));
    scheduler.add(sequence(3, 8));
    assert_eq!(step(&mut scheduler, &mut pool), [(2, 8), (3, 8), (1, 8)]);
    // Two of them need a block, and 1 is what has to go, although it came first.
    assert_eq!(step(&mut scheduler, &mut pool), [(2, 1), (3, 1)]);
}

#[test]
fn nobody_begins_that_would_have_to_go_or_passes_one_that_waits_for_blocks() {
    let (mut scheduler, mut pool) = (scheduler(8, 4), BlockPool::new(10));
    scheduler.add(sequence(1, 24));
    scheduler.add(sequence(2, 24));
    scheduler.add(sequence(3, 24));
    // 2 could begin while 1 has few of its six blocks, and could not go on.
    for _ in 0..6 {
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 4)]);
    }
    scheduler.add(sequence(4, 3));
    for _ in 0..3 {
        assert_eq!(step(&mut scheduler, &mut pool), [(1, 1)], "4 has room, and is behind 2");
    }
    scheduler.remove(SequenceId(1)).unwrap().release(&mut pool);
    assert_eq!(step(&mut scheduler, &mut pool), [(2, 2), (4, 2)]);
}

#[test]
fn a_pace_cuts_prompts_beside_streams() {
    let mut pool = BlockPool::new(1000);
    let limits = Limits { step_target_us: Some(1000.0), ..limits(8, 500) };
    let mut scheduler = with_streams(Scheduler::new(limits), &mut pool, 2);
    scheduler.learn_latency(LatencyModel { prefill_token_us: 10.0, ..Default::default() });
    scheduler.add(sequence(1, 900));
    assert_eq!(step(&mut scheduler, &mut pool), [(100, 1), (101, 1), (1, 100)]);
    for id in [100, 101] {
        scheduler.remove(SequenceId(id)).unwrap().release(&mut pool);
    }
    assert_eq!(step(&mut scheduler, &mut pool), [(1, 500)], "nobody waits for its next token");
}

/// Streams whose texts are one token so many times, in a pool of so many blocks: what each of them
/// computes in a step.
#[track_caller]
fn check_guesses(
    speculative_tokens: usize,
    (streams, tokens): (u64, usize),
    blocks: usize,
    expected: &[usize],
) {
    let limits = Limits { speculative_tokens, ..limits(64, 64) };
    let (mut scheduler, mut pool) = (Scheduler::new(limits), BlockPool::new(blocks));
    for id in 0..streams {
        let mut stream = sequence(id, 3);
        stream.tokens = vec![7; tokens];
        assert!(stream.grow(3, &mut pool));
        stream.computed = tokens - 1;
        scheduler.resume(stream);
    }
    let counts: Vec<usize> =
        scheduler.schedule(0, &mut pool).iter().map(|scheduled| scheduled.count).collect();
    assert_eq!(counts, expected);
}

#[test]
fn few_streams_guess_and_never_at_the_cost_of_others() {
    check_guesses(0, (1, 5), 100, &[1]);
    check_guesses(1, (1, 5), 100, &[2]);
    check_guesses(15, (1, 5), 100, &[3]);
    check_guesses(15, (5, 5), 100, &[3; 5]);
    check_guesses(15, (8, 5), 100, &[2; 8]);
    check_guesses(15, (9, 5), 100, &[1; 9]);
    // Each needs a second block of four, and has no third one for what it guesses.
    check_guesses(15, (2, 5), 4, &[3, 3]);
    check_guesses(15, (2, 7), 4, &[2, 2]);
    check_guesses(15, (2, 8), 4, &[1, 1]);
    // One of both has to go.
    check_guesses(15, (2, 5), 3, &[3]);
}
