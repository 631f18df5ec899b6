//! Work on a list of units, in parts, on all cores, with the results taken in order.
//!
//! A unit is a tensor: it is prepared once (analysed, or its decoder built), then its parts (blocks) are worked on
//! independently. The results reach the consumer in the order of the units and parts, whatever the threads do, so what it
//! writes does not depend on their number. At most a few parts per thread exist between work and consumption, which bounds
//! memory whatever the model's size.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use rayon::{Scope, ThreadPool};

use crate::DeltaError;
use crate::progress::Stop;
use crate::residency;

/// Bytes of units that may be prepared ahead of the one whose parts are being started.
const AHEAD_BYTES: u64 = 64 << 20;
/// And how many of them.
const AHEAD_UNITS: usize = 256;

/// What is done to a unit and its parts; called from many threads.
pub(crate) trait Stage: Sync {
    type Prepared: Send + Sync;
    type Output: Send;
    fn units(&self) -> usize;
    /// Bytes of a unit, which bound how many are prepared ahead.
    fn weight(&self, unit: usize) -> u64;
    fn prepare(&self, unit: usize) -> Result<Self::Prepared, DeltaError>;
    fn parts(&self, unit: usize, prepared: &Self::Prepared) -> usize;
    fn work(
        &self,
        unit: usize,
        prepared: &Self::Prepared,
        part: usize,
    ) -> Result<Self::Output, DeltaError>;
}

/// Who takes the results, in order, on the calling thread.
pub(crate) trait Sink<S: Stage> {
    fn begin(&mut self, _unit: usize, _prepared: &S::Prepared) -> Result<(), DeltaError> {
        Ok(())
    }
    fn part(
        &mut self,
        unit: usize,
        prepared: &S::Prepared,
        part: usize,
        output: S::Output,
    ) -> Result<(), DeltaError>;
    fn end(&mut self, _unit: usize, _prepared: &S::Prepared) -> Result<(), DeltaError> {
        Ok(())
    }
}

enum Event<S: Stage> {
    Prepared(usize, Result<S::Prepared, DeltaError>),
    Done(usize, usize, Result<S::Output, DeltaError>),
}

/// Runs every unit of `stage` through `sink`. The first error in order of arrival stops everything.
pub(crate) fn run<S: Stage, K: Sink<S>>(
    pool: &ThreadPool,
    stage: &S,
    sink: &mut K,
    stop: &Stop,
) -> Result<(), DeltaError> {
    let halt = AtomicBool::new(false);
    pool.in_place_scope(|scope| {
        let result = Coordinator::new(pool, stage, stop, &halt).drive(scope, sink);
        // Parts that have not begun are skipped; those under way end before the scope does.
        halt.store(true, Ordering::Relaxed);
        result
    })
}

struct Coordinator<'e, S: Stage> {
    stage: &'e S,
    stop: &'e Stop,
    halt: &'e AtomicBool,
    events: mpsc::Receiver<Event<S>>,
    sender: mpsc::Sender<Event<S>>,
    ready: HashMap<usize, Arc<S::Prepared>>,
    done: BTreeMap<(usize, usize), S::Output>,
    next_prepare: usize,
    ahead_bytes: u64,
    next_start: (usize, usize),
    next_take: (usize, usize),
    begun: bool,
    in_flight: usize,
    limit: usize,
}

impl<'e, S: Stage> Coordinator<'e, S> {
    fn new(pool: &ThreadPool, stage: &'e S, stop: &'e Stop, halt: &'e AtomicBool) -> Self {
        let (sender, events) = mpsc::channel();
        Self {
            stage,
            stop,
            halt,
            events,
            sender,
            ready: HashMap::new(),
            done: BTreeMap::new(),
            next_prepare: 0,
            ahead_bytes: 0,
            next_start: (0, 0),
            next_take: (0, 0),
            begun: false,
            in_flight: 0,
            limit: pool.current_num_threads() * 3 + 2,
        }
    }

    fn drive<'s, K: Sink<S>>(mut self, scope: &Scope<'s>, sink: &mut K) -> Result<(), DeltaError>
    where
        'e: 's,
    {
        loop {
            self.stop.check()?;
            self.prepare_ahead(scope);
            self.start_parts(scope);
            self.take_results(sink)?;
            if self.next_take.0 >= self.stage.units() {
                return Ok(());
            }
            // Taking results makes room: fill it before waiting, or the threads run dry.
            self.prepare_ahead(scope);
            self.start_parts(scope);
            match self.events.recv() {
                Ok(event) => self.note(event)?,
                Err(_) => return Err(DeltaError::internal("the work queue closed early")),
            }
            while let Ok(event) = self.events.try_recv() {
                self.note(event)?;
            }
        }
    }

    fn note(&mut self, event: Event<S>) -> Result<(), DeltaError> {
        match event {
            Event::Prepared(unit, prepared) => {
                self.ready.insert(unit, Arc::new(prepared?));
            }
            Event::Done(unit, part, output) => {
                self.done.insert((unit, part), output?);
            }
        }
        Ok(())
    }

    fn prepare_ahead<'s>(&mut self, scope: &Scope<'s>)
    where
        'e: 's,
    {
        while self.next_prepare < self.stage.units() {
            let unit = self.next_prepare;
            let weight = self.stage.weight(unit);
            let fits = self.ahead_bytes.saturating_add(weight) <= AHEAD_BYTES
                && unit - self.next_start.0 < AHEAD_UNITS;
            if self.ahead_bytes > 0 && !fits {
                return;
            }
            self.next_prepare += 1;
            self.ahead_bytes += weight.max(1);
            let (stage, halt, sender) = (self.stage, self.halt, self.sender.clone());
            scope.spawn(move |_| {
                if !halt.load(Ordering::Relaxed) {
                    let result = guarded(|| stage.prepare(unit));
                    // Nobody listens after an error: nothing to do then.
                    drop(sender.send(Event::Prepared(unit, result)));
                }
            });
        }
    }

    fn start_parts<'s>(&mut self, scope: &Scope<'s>)
    where
        'e: 's,
    {
        while self.in_flight < self.limit {
            let (unit, part) = self.next_start;
            let Some(prepared) = self.ready.get(&unit) else {
                return;
            };
            if part >= self.stage.parts(unit, prepared) {
                self.ahead_bytes -= self.stage.weight(unit).max(1);
                self.next_start = (unit + 1, 0);
                // A unit without parts still has its turn in `take_results`.
                self.prepare_ahead(scope);
                continue;
            }
            self.next_start.1 += 1;
            self.in_flight += 1;
            let (stage, halt, sender, prepared) = (
                self.stage,
                self.halt,
                self.sender.clone(),
                Arc::clone(prepared),
            );
            scope.spawn(move |_| {
                if !halt.load(Ordering::Relaxed) {
                    let result = guarded(|| stage.work(unit, &prepared, part));
                    residency::relieve();
                    drop(prepared);
                    drop(sender.send(Event::Done(unit, part, result)));
                }
            });
        }
    }

    fn take_results<K: Sink<S>>(&mut self, sink: &mut K) -> Result<(), DeltaError> {
        loop {
            let (unit, part) = self.next_take;
            let Some(prepared) = self.ready.get(&unit) else {
                return Ok(());
            };
            if !self.begun {
                sink.begin(unit, prepared)?;
                self.begun = true;
            }
            if part >= self.stage.parts(unit, prepared) {
                sink.end(unit, prepared)?;
                if self.next_start.0 == unit {
                    // All parts were started and taken before the starter moved on.
                    self.ahead_bytes -= self.stage.weight(unit).max(1);
                    self.next_start = (unit + 1, 0);
                }
                self.ready.remove(&unit);
                self.next_take = (unit + 1, 0);
                self.begun = false;
                continue;
            }
            let Some(output) = self.done.remove(&(unit, part)) else {
                return Ok(());
            };
            self.in_flight -= 1;
            sink.part(unit, prepared, part, output)?;
            self.next_take.1 += 1;
        }
    }
}

/// A panic anywhere below (a fault of ours, or of a library fed hostile bytes) becomes an error like any other.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, DeltaError>) -> Result<T, DeltaError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(DeltaError::internal(panic_text(&*panic))))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "a panic ({})",
        text.unwrap_or_else(|| "no message".to_owned())
    )
}

/// The threads of an operation: its own pool, so that `threads` means what it says and panics stay inside.
///
/// # Errors
/// Threads that cannot be started.
pub fn pool(threads: Option<usize>) -> Result<ThreadPool, DeltaError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .thread_name(|index| format!("sparse-{index}"))
        .build()
        .map_err(|error| DeltaError::internal(format!("the threads could not be started: {error}")))
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed step is a failed test, and panics are what one test is about"
)]
mod tests {
    use super::*;
    use crate::CancelToken;

    struct Squares {
        parts: Vec<usize>,
        fail_at: Option<(usize, usize)>,
        panic_at: Option<usize>,
    }

    impl Stage for Squares {
        type Prepared = usize;
        type Output = (usize, usize);
        fn units(&self) -> usize {
            self.parts.len()
        }
        fn weight(&self, unit: usize) -> u64 {
            (self.parts[unit] as u64) << 20
        }
        fn prepare(&self, unit: usize) -> Result<usize, DeltaError> {
            if self.panic_at == Some(unit) {
                panic!("on purpose");
            }
            Ok(self.parts[unit])
        }
        fn parts(&self, _unit: usize, prepared: &usize) -> usize {
            *prepared
        }
        fn work(
            &self,
            unit: usize,
            _prepared: &usize,
            part: usize,
        ) -> Result<(usize, usize), DeltaError> {
            if self.fail_at == Some((unit, part)) {
                return Err(DeltaError::usage("on purpose"));
            }
            if (unit + part).is_multiple_of(3) {
                std::thread::yield_now();
            }
            Ok((unit, part))
        }
    }

    #[derive(Default)]
    struct Collect {
        seen: Vec<(usize, usize)>,
        begun: Vec<usize>,
        ended: Vec<usize>,
    }

    impl Sink<Squares> for Collect {
        fn begin(&mut self, unit: usize, _: &usize) -> Result<(), DeltaError> {
            self.begun.push(unit);
            Ok(())
        }
        fn part(
            &mut self,
            unit: usize,
            _: &usize,
            part: usize,
            output: (usize, usize),
        ) -> Result<(), DeltaError> {
            assert_eq!(output, (unit, part));
            self.seen.push(output);
            Ok(())
        }
        fn end(&mut self, unit: usize, _: &usize) -> Result<(), DeltaError> {
            self.ended.push(unit);
            Ok(())
        }
    }

    #[test]
    fn everything_arrives_once_and_in_order() {
        let parts: Vec<usize> = (0..300).map(|i| [0, 1, 2, 7, 90][i % 5]).collect();
        let expected: Vec<_> = parts
            .iter()
            .enumerate()
            .flat_map(|(u, &n)| (0..n).map(move |p| (u, p)))
            .collect();
        let stage = Squares {
            parts,
            fail_at: None,
            panic_at: None,
        };
        for threads in [1, 2, 5] {
            let mut sink = Collect::default();
            run(
                &pool(Some(threads)).unwrap(),
                &stage,
                &mut sink,
                &Stop::default(),
            )
            .unwrap();
            assert_eq!(sink.seen, expected);
            assert_eq!(sink.begun, (0..300).collect::<Vec<_>>());
            assert_eq!(sink.ended, sink.begun);
        }
    }

    #[test]
    fn nothing_to_do_is_done() {
        let stage = Squares {
            parts: Vec::new(),
            fail_at: None,
            panic_at: None,
        };
        run(
            &pool(Some(2)).unwrap(),
            &stage,
            &mut Collect::default(),
            &Stop::default(),
        )
        .unwrap();
    }

    #[test]
    fn errors_panics_and_cancellation_end_it() {
        let pool = pool(Some(2)).unwrap();
        let stage = Squares {
            parts: vec![50; 20],
            fail_at: Some((7, 3)),
            panic_at: None,
        };
        let error = run(&pool, &stage, &mut Collect::default(), &Stop::default()).unwrap_err();
        assert!(matches!(error, DeltaError::Usage { .. }), "{error}");
        let stage = Squares {
            parts: vec![50; 20],
            fail_at: None,
            panic_at: Some(3),
        };
        let error = run(&pool, &stage, &mut Collect::default(), &Stop::default()).unwrap_err();
        assert!(error.to_string().contains("on purpose"), "{error}");
        let token = CancelToken::default();
        token.cancel();
        let stage = Squares {
            parts: vec![50; 20],
            fail_at: None,
            panic_at: None,
        };
        let error = run(&pool, &stage, &mut Collect::default(), &Stop::new(token)).unwrap_err();
        assert!(matches!(error, DeltaError::Cancelled));
    }
}
