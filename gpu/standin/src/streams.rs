//! Streams: queues of work, run in a random order among those that streams and events allow, when somebody waits and now and
//! then before.

use std::collections::{BTreeMap, VecDeque};

use crate::blas::Gemm;
use crate::execute::{self, Launch};
use crate::memory::{Fault, Memory};

/// A small generator: its numbers need only differ.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// Host memory that a copy reaches when its turn comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host(pub(crate) *mut u8);

// SAFETY: the driver's lock is held wherever the pointer is used; that it is valid then is what the caller of an asynchronous
// copy promises.
unsafe impl Send for Host {}

#[derive(Debug)]
pub(crate) enum Work {
    Map {
        at: u64,
        size: u64,
    },
    Unmap {
        at: u64,
    },
    Fill {
        at: u64,
        value: u8,
        size: usize,
    },
    /// Pageable memory, read when the copy was queued.
    Upload {
        at: u64,
        bytes: Vec<u8>,
    },
    UploadPinned {
        at: u64,
        from: Host,
        size: usize,
    },
    Download {
        at: u64,
        to: Host,
        size: usize,
    },
    Copy {
        from: u64,
        to: u64,
        size: usize,
    },
    Launch(Box<Launch>),
    Gemm(Box<Gemm>),
    /// The event's record of this number is reached.
    Record {
        event: u64,
        number: u64,
    },
    /// Nothing before that record was reached.
    Wait {
        event: u64,
        number: u64,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Event {
    /// Records queued and records reached.
    pub(crate) queued: u64,
    pub(crate) reached: u64,
}

#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) queues: BTreeMap<u64, VecDeque<Work>>,
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) memory: Memory,
    pub(crate) random: Random,
}

impl Streams {
    pub(crate) fn new(memory: u64, seed: u64) -> Self {
        Self {
            queues: BTreeMap::from([(0, VecDeque::new())]),
            events: BTreeMap::new(),
            memory: Memory::new(memory),
            random: Random::new(seed),
        }
    }

    pub(crate) fn queue(&mut self, stream: u64, work: Work) -> Result<(), Fault> {
        self.queues.entry(stream).or_default().push_back(work);
        // A device may run ahead as far as it likes.
        if self.random.below(4) == 0 {
            for _ in 0..self.random.below(4) {
                if !self.any()? {
                    break;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn is_idle(&self, stream: u64) -> bool {
        self.queues.get(&stream).is_none_or(VecDeque::is_empty)
    }

    pub(crate) fn is_reached(&self, event: u64) -> bool {
        self.events
            .get(&event)
            .is_none_or(|e| e.reached >= e.queued)
    }

    /// Runs until `done`.
    pub(crate) fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), Fault> {
        while !done(self) {
            if !self.any()? {
                return Err(Fault::Timeout("streams wait for one another".to_owned()));
            }
        }
        Ok(())
    }

    /// Runs everything that was queued.
    pub(crate) fn all(&mut self) -> Result<(), Fault> {
        self.until(|this| this.queues.values().all(VecDeque::is_empty))
    }

    /// Runs the next work of a random stream that may go on; whether there was one.
    fn any(&mut self) -> Result<bool, Fault> {
        let ready: Vec<u64> = self
            .queues
            .iter()
            .filter(|(_, queue)| match queue.front() {
                None => false,
                Some(Work::Wait { event, number }) => {
                    self.events.get(event).is_none_or(|e| e.reached >= *number)
                }
                Some(_) => true,
            })
            .map(|(stream, _)| *stream)
            .collect();
        if ready.is_empty() {
            return Ok(false);
        }
        let stream = ready[self.random.below(ready.len())];
        if let Some(work) = self.queues.get_mut(&stream).and_then(VecDeque::pop_front) {
            self.run(work)?;
        }
        Ok(true)
    }

    fn run(&mut self, work: Work) -> Result<(), Fault> {
        match work {
            Work::Map { at, size } => self.memory.map(at, size),
            Work::Unmap { at } => {
                if !self.memory.unmap(at) {
                    return Err(Fault::Illegal(format!("free of {at:#x}")));
                }
            }
            Work::Fill { at, value, size } => {
                self.memory.write_bytes(at, &vec![value; size])?;
            }
            Work::Upload { at, bytes } => self.memory.write_bytes(at, &bytes)?,
            Work::UploadPinned { at, from, size } => {
                // SAFETY: the caller keeps the memory until the copy is done, and it is pinned memory of this size.
                let bytes = unsafe { std::slice::from_raw_parts(from.0, size) };
                self.memory.write_bytes(at, bytes)?;
            }
            Work::Download { at, to, size } => {
                let bytes = self.memory.bytes(at, size)?;
                // SAFETY: as above; `bytes` is the stand-in's own memory.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0, size) };
            }
            Work::Copy { from, to, size } => {
                let bytes = self.memory.bytes(from, size)?.to_vec();
                self.memory.write_bytes(to, &bytes)?;
            }
            Work::Launch(launch) => {
                execute::run(&launch, &mut self.memory, &mut self.random)?;
            }
            Work::Gemm(gemm) => gemm.run(&mut self.memory)?,
            Work::Record { event, number } => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.reached = event.reached.max(number);
                }
            }
            Work::Wait { .. } => {}
        }
        Ok(())
    }
}
