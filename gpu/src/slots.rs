//! Slots that many threads borrow: at most so many, made when one is asked for and none is free.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub(crate) struct Slots<S> {
    state: Mutex<State<S>>,
    freed: Condvar,
}

struct State<S> {
    free: Vec<S>,
    /// Slots that may still be made.
    left: usize,
}

/// A slot that goes back when this is dropped.
pub(crate) struct Lent<'s, S> {
    slots: &'s Slots<S>,
    slot: Option<S>,
}

impl<S> Slots<S> {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            state: Mutex::new(State {
                free: Vec::new(),
                left: most.max(1),
            }),
            freed: Condvar::new(),
        }
    }

    /// A slot that is free, a new one, or the next to be free.
    pub(crate) fn lend<E>(&self, make: impl FnOnce() -> Result<S, E>) -> Result<Lent<'_, S>, E> {
        let mut state = self.lock();
        while state.free.is_empty() && state.left == 0 {
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.take(state, make)
    }

    /// As [`Self::lend`]; `None` rather than waiting.
    pub(crate) fn try_lend<E>(
        &self,
        make: impl FnOnce() -> Result<S, E>,
    ) -> Result<Option<Lent<'_, S>>, E> {
        let state = self.lock();
        if state.free.is_empty() && state.left == 0 {
            return Ok(None);
        }
        self.take(state, make).map(Some)
    }

    fn take<E>(
        &self,
        mut state: MutexGuard<'_, State<S>>,
        make: impl FnOnce() -> Result<S, E>,
    ) -> Result<Lent<'_, S>, E> {
        let slot = state.free.pop();
        if slot.is_none() {
            state.left -= 1;
        }
        drop(state);
        // Whatever comes of making one, the place is given back.
        let mut lent = Lent { slots: self, slot };
        if lent.slot.is_none() {
            lent.slot = Some(make()?);
        }
        Ok(lent)
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Lent<'_, S> {
    pub(crate) fn slot(&mut self) -> Option<&mut S> {
        self.slot.as_mut()
    }
}

impl<S> Drop for Lent<'_, S> {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        match self.slot.take() {
            Some(slot) => state.free.push(slot),
            None => state.left += 1,
        }
        drop(state);
        self.slots.freed.notify_one();
    }
}
