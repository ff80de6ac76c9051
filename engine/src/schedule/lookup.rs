//! Guessing what comes next by prompt lookup (Saxena 2023): texts repeat themselves and what they are
//! about, so what followed the newest tokens the last time may follow them again. A guess changes no
//! token (`sampler::verify` takes it only as far as it is what is chosen anyway), so it need not be the
//! same wherever a sequence goes on.

/// Tokens looked at, from the newest back. All of them are read where nothing is found: some 5 us in
/// a step that takes many times as long.
const WINDOW_TOKENS: usize = 8192;

/// Tokens of a sequence's first guess; later ones are as long as the one before went well.
const FIRST_GUESS_TOKENS: usize = 2;

/// Which share of guesses is expected to come true of a sequence that has made none.
const HOPE: f32 = 0.5;

/// A sequence whose guesses fail makes none for 2, 4, 8 … steps, up to 2 to this.
const PAUSE_EXPONENT_MAX: u32 = 6;

/// What followed the last earlier occurrence of the newest three tokens, or of the newest two where
/// there is none of three; none: there is neither. Where it reaches the end it goes on from its start:
/// it has been repeating itself.
pub fn look_up(tokens: &[u32], count: usize) -> Vec<u32> {
    let window = &tokens[tokens.len().saturating_sub(WINDOW_TOKENS)..];
    let Some(start) = last_occurrence(window) else { return Vec::new() };
    window[start..].iter().copied().cycle().take(count).collect()
}

/// Where the tokens after it begin.
fn last_occurrence(window: &[u32]) -> Option<usize> {
    let (earlier, newest) = (window.split_last()?.1, window.last_chunk::<3>()?);
    let mut after_two = None;
    for (start, three) in earlier.windows(3).enumerate().rev() {
        if three[1..] != newest[1..] {
            continue;
        }
        if three[0] == newest[0] {
            return Some(start + 3);
        }
        after_two.get_or_insert(start + 3);
    }
    after_two
}

/// Tokens that were computed although nothing but the text so far spoke for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guesses {
    /// How many.
    pub computed: u64,
    /// How many of them came true.
    pub accepted: u64,
}

impl Guesses {
    /// Counts others too.
    pub fn add(&mut self, others: Self) {
        self.computed += others.computed;
        self.accepted += others.accepted;
    }
}

/// How one sequence's guesses go.
#[derive(Clone, Copy, Debug)]
pub struct Guessing {
    /// Tokens of the next guess at most.
    tokens_max: usize,
    /// Which share of the tokens of recent guesses came true; before the first one, what is hoped for.
    accepted: f32,
    /// Times in a row that guessing was given up.
    failures: u32,
    /// Steps before the next guess.
    pause: u32,
}

impl Default for Guessing {
    fn default() -> Self {
        Self { tokens_max: FIRST_GUESS_TOKENS, accepted: HOPE, failures: 0, pause: 0 }
    }
}

impl Guessing {
    /// How many tokens to guess in the coming step, where guesses pay of which this share comes true.
    /// Counts the step where none are.
    pub fn tokens_max(&mut self, share: f32) -> usize {
        if self.pause == 0 && self.accepted < share {
            self.give_up();
        }
        if self.pause > 0 {
            self.pause -= 1;
            return 0;
        }
        self.tokens_max
    }

    /// `accepted` of `drafted` tokens came true.
    pub fn learn(&mut self, drafted: usize, accepted: usize) {
        self.accepted = (self.accepted + accepted as f32 / drafted as f32) / 2.0;
        if accepted == 0 {
            self.give_up();
        } else if accepted < drafted {
            self.tokens_max = accepted + 1;
        } else {
            self.failures = 0;
            self.tokens_max = self.tokens_max.max(2 * drafted);
        }
    }

    /// For a while, and longer each time.
    fn give_up(&mut self) {
        self.failures = (self.failures + 1).min(PAUSE_EXPONENT_MAX);
        *self = Self { failures: self.failures, pause: 1 << self.failures, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tokens: &[u32], count: usize, expected: &[u32]) {
        assert_eq!(look_up(tokens, count), expected, "{tokens:?}");
    }

    #[test]
    fn what_followed_the_last_time_is_guessed() {
        check(&[1, 2, 3, 4, 5, 6, 1, 2, 3], 2, &[4, 5]);
        check(&[1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 2, &[5, 1]);
        check(&[1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 1, &[4]);
        check(&[9, 2, 3, 4, 8, 2, 3, 5, 1, 2, 3], 1, &[5]);
        check(&[1, 2, 3, 4, 5], 3, &[]);
        check(&[1, 2, 3, 7, 1, 2, 3], 0, &[]);
    }

    #[test]
    fn repetition_goes_on() {
        check(&[8, 7, 7, 7, 7], 5, &[7, 7, 7, 7, 7]);
        check(&[1, 2, 3, 1, 2, 3], 7, &[1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn short_texts_have_no_past() {
        for tokens in [&[][..], &[1], &[1, 1], &[1, 1, 1]] {
            check(tokens, 3, &[]);
        }
    }

    #[test]
    fn what_is_too_old_is_not_found() {
        let mut tokens = vec![1, 2, 3, 4];
        tokens.extend(100..100 + WINDOW_TOKENS as u32);
        tokens.extend([1, 2, 3]);
        check(&tokens, 1, &[]);
        tokens.splice(100..100, [1, 2, 3, 6]);
        check(&tokens, 1, &[6]);
    }

    /// Guesses of these lengths and successes, and after each the steps without a guess and the length
    /// of the next.
    #[track_caller]
    fn check_adapts(share: f32, guesses: &[(usize, usize, usize, usize)]) {
        let mut guessing = Guessing::default();
        for (drafted, accepted, pause, next) in guesses {
            guessing.learn(*drafted, *accepted);
            let paused = (0..1000).take_while(|_| guessing.tokens_max(share) == 0).count();
            let found = (paused, guessing.tokens_max(share));
            assert_eq!(found, (*pause, *next), "{drafted}, {accepted}");
        }
    }

    #[test]
    fn guesses_grow_while_they_come_true_and_pause_while_they_fail() {
        check_adapts(0.0, &[(2, 2, 0, 4), (4, 4, 0, 8), (8, 2, 0, 3), (3, 3, 0, 6), (2, 2, 0, 6)]);
        check_adapts(0.0, &[(2, 0, 2, 2), (2, 0, 4, 2), (2, 1, 0, 2), (2, 0, 8, 2), (2, 2, 0, 4)]);
        let failures: Vec<_> = (1..=6).map(|n| (2, 0, 1 << n, 2)).collect();
        check_adapts(0.0, &[&failures[..], &[(2, 0, 64, 2)]].concat());
    }

    #[test]
    fn guesses_that_do_not_pay_are_given_up() {
        check_adapts(0.4, &[(4, 2, 0, 3), (3, 1, 0, 2), (2, 1, 0, 2), (4, 1, 2, 2), (4, 1, 4, 2)]);
        // More than is hoped for would have to come true.
        check_adapts(0.7, &[(2, 2, 0, 4), (4, 2, 1000, 0)]);
    }
}
