//! What scenarios must have met, so that a generator that no longer covers it does not go
//! unnoticed.

use std::collections::BTreeMap;

/// Something that must not change any answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A step in which several requests gained a token.
    Company,
    /// A step as large as allowed: prompts are cut there.
    FullStep,
    /// A request that gave its blocks back and was computed again.
    Preemption,
    /// A request that began with blocks of another.
    PrefixHit,
    /// A request that went on after a remote prefill.
    Activation,
    /// A transfer that failed before there was a first token.
    EarlyFailure,
    /// A transfer that failed after the first token was given out.
    LateFailure,
    /// A request that ended with its remotely computed token.
    RemoteEnd,
    /// A request that began anew with the tokens that were there.
    Migration,
    /// A token that was computed before it was certain.
    Draft,
    /// Of these, one that was guessed and came.
    GoodGuess,
    /// A token that was guessed and did not come.
    BadGuess,
    /// A request whose client went away midway.
    Cancellation,
}

/// How often each must happen in a hundred scenarios: far less than it does.
const REQUIRED_PER_HUNDRED: [(Event, usize); 13] = [
    (Event::Company, 500),
    (Event::FullStep, 500),
    (Event::Preemption, 50),
    (Event::PrefixHit, 40),
    (Event::Activation, 50),
    (Event::EarlyFailure, 5),
    (Event::LateFailure, 10),
    (Event::RemoteEnd, 2),
    (Event::Migration, 50),
    (Event::Draft, 100),
    (Event::GoodGuess, 100),
    (Event::BadGuess, 50),
    (Event::Cancellation, 20),
];

/// How often each event happened.
#[derive(Debug, Default)]
pub struct Coverage(BTreeMap<Event, usize>);

impl Coverage {
    pub fn add(&mut self, event: Event, times: usize) {
        *self.0.entry(event).or_default() += times;
    }

    pub fn assert_enough(&self, scenarios: u64) {
        for (event, required) in REQUIRED_PER_HUNDRED {
            let times = self.0.get(&event).copied().unwrap_or(0);
            assert!(times * 100 >= required * scenarios as usize, "too few {event:?}: {self:?}");
        }
    }
}
