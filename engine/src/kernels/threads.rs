//! Threads that share one piece of work after another. Between two pieces they wait a little before
//! they sleep, because a step has hundreds, microseconds apart; while they wait they let others run.
//!
//! Whoever has work takes part in it. What a thread has not begun, others do; only what it is in the
//! middle of is waited for.

use std::any::Any;
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long a thread waits for more before it sleeps: longer than what happens between two pieces of a
/// step, shorter than what anybody would miss.
const WAIT_MAX: Duration = Duration::from_micros(50);

/// Looks at the clock, and lets others run, once in so many rounds of waiting.
const ROUNDS: usize = 64;

type Work<'a> = dyn Fn(usize) + Sync + 'a;
type Panic = Box<dyn Any + Send>;

/// Threads that wait for work. They end when this is dropped.
pub struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// Held by whoever has work.
    owner: Mutex<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when there is work, or none any more ever.
    work: Condvar,
    /// Told when the last helper has left the work.
    left: Condvar,
    /// Counts works; a copy of what is in `state`, for those who wait.
    number: AtomicUsize,
    /// Helpers in the present work; a copy as well.
    helpers: AtomicUsize,
    /// The next part of the present work to take.
    next: AtomicUsize,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    number: usize,
    helpers: usize,
    sleeping: usize,
    panic: Option<Panic>,
    is_over: bool,
}

/// Work under way: `run(0)`, … `run(parts - 1)`.
#[derive(Clone, Copy)]
struct Job {
    run: *const Work<'static>,
    parts: usize,
}

// SAFETY: what it points to is `Sync`, and outlives all use (see `Threads::run`).
unsafe impl Send for Job {}

thread_local! {
    /// This thread is in some work: what it splits meanwhile it does alone.
    static IS_BUSY: Cell<bool> = const { Cell::new(false) };
}

impl Threads {
    /// So many threads, one of which is whoever has work. Errors: the system refuses them.
    pub fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut this = Self { shared, handles: Vec::new(), owner: Mutex::new(()) };
        for index in 1..threads {
            let shared = this.shared.clone();
            let builder = thread::Builder::new().name(format!("compute-{index}"));
            this.handles.push(builder.spawn(move || shared.help())?);
        }
        Ok(this)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.handles.len() + 1
    }

    /// Does `run(0)` to `run(parts - 1)`, each once, on whichever thread is free. Panics as they do.
    pub fn run(&self, parts: usize, run: &Work<'_>) {
        let owner = self.owner.try_lock().filter(|_| !IS_BUSY.get() && parts > 1);
        if owner.is_none() || self.handles.is_empty() {
            return (0..parts).for_each(run);
        }
        // SAFETY: only the lifetime changes; `finish` returns when nobody can reach it any more.
        let run = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(run) };
        let job = Job { run, parts };
        self.shared.begin(job);
        let own = self.shared.take_part(job);
        let helpers = self.shared.finish();
        if let Some(panic) = own.or(helpers) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.state.lock().is_over = true;
        self.shared.work.notify_all();
        for handle in self.handles.drain(..) {
            // Panics were caught.
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn begin(&self, job: Job) {
        let mut state = self.state.lock();
        debug_assert!(state.job.is_none() && state.helpers == 0);
        self.next.store(0, Ordering::Relaxed);
        state.job = Some(job);
        state.number += 1;
        self.number.store(state.number, Ordering::Release);
        if state.sleeping > 0 {
            self.work.notify_all();
        }
    }

    /// Takes parts until none is left. Returns what one of them panicked with.
    fn take_part(&self, job: Job) -> Option<Panic> {
        IS_BUSY.set(true);
        let parts = std::iter::from_fn(|| Some(self.next.fetch_add(1, Ordering::Relaxed)));
        let done = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: the owner waits for all who take part before it lets go of the work.
            let run = unsafe { &*job.run };
            parts.take_while(|part| *part < job.parts).for_each(run);
        }));
        IS_BUSY.set(false);
        done.err()
    }

    /// Lets nobody begin any more, and waits for those who have. Returns what one panicked with.
    fn finish(&self) -> Option<Panic> {
        self.state.lock().job = None;
        wait_a_little(|| self.helpers.load(Ordering::Acquire) == 0);
        let mut state = self.state.lock();
        while state.helpers > 0 {
            self.left.wait(&mut state);
        }
        state.panic.take()
    }

    /// What a thread does all its life.
    fn help(&self) {
        let mut seen = 0;
        while let Some(job) = self.next_job(&mut seen) {
            let panic = job.and_then(|job| self.take_part(job));
            if job.is_some() {
                self.leave(panic);
            }
        }
    }

    /// Waits for work that was not `seen`; `None` when there will be none. It may be done already.
    fn next_job(&self, seen: &mut usize) -> Option<Option<Job>> {
        wait_a_little(|| self.number.load(Ordering::Acquire) != *seen);
        let mut state = self.state.lock();
        while state.number == *seen && !state.is_over {
            state.sleeping += 1;
            self.work.wait(&mut state);
            state.sleeping -= 1;
        }
        if state.is_over {
            return None;
        }
        *seen = state.number;
        if state.job.is_some() {
            state.helpers += 1;
            self.helpers.store(state.helpers, Ordering::Release);
        }
        Some(state.job)
    }

    fn leave(&self, panic: Option<Panic>) {
        let mut state = self.state.lock();
        state.helpers -= 1;
        self.helpers.store(state.helpers, Ordering::Release);
        if panic.is_some() {
            state.panic = panic;
        }
        if state.helpers == 0 {
            self.left.notify_one();
        }
    }
}

/// Waits until something has happened, or for a little while; others may run meanwhile.
fn wait_a_little(has_happened: impl Fn() -> bool) {
    let began = Instant::now();
    loop {
        for _ in 0..ROUNDS {
            if has_happened() {
                return;
            }
            std::hint::spin_loop();
        }
        if began.elapsed() > WAIT_MAX {
            return;
        }
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn every_part_is_done_once() {
        for count in [1, 2, 5] {
            let threads = Threads::new(count).unwrap();
            for parts in (0..40).chain([1000]) {
                let done: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                threads.run(parts, &|part| {
                    done[part].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn works_follow_each_other_awake_and_asleep() {
        let (threads, sum) = (Threads::new(3).unwrap(), AtomicU64::new(0));
        for round in 0..2000 {
            if round % 500 == 499 {
                // Longer than anyone waits awake.
                thread::sleep(4 * WAIT_MAX);
            }
            threads.run(7, &|part| {
                sum.fetch_add(part as u64, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.into_inner(), 2000 * 21);
    }

    #[test]
    fn work_within_work_and_works_of_several_owners_are_done() {
        let (threads, sum) = (Threads::new(3).unwrap(), AtomicU64::new(0));
        let inner = |_| {
            threads.run(5, &|_| {
                sum.fetch_add(1, Ordering::Relaxed);
            });
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| threads.run(6, &inner)));
            }
        });
        assert_eq!(sum.into_inner(), 4 * 50 * 6 * 5);
    }

    #[test]
    fn a_panic_reaches_the_owner_and_ends_nothing_else() {
        let threads = Threads::new(3).unwrap();
        for part_that_panics in 0..8 {
            let panics = || {
                threads.run(8, &|part| assert_ne!(part, part_that_panics, "as it was told"));
            };
            let panic = catch_unwind(AssertUnwindSafe(panics)).unwrap_err();
            let said = panic.downcast_ref::<String>().unwrap();
            assert!(said.contains("as it was told"), "{said}");
            let done = AtomicUsize::new(0);
            threads.run(8, &|_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 8);
        }
    }
}
