//! Runs a kernel: blocks one after another in a random order, the threads of a block interleaved at random between the points
//! where they wait for one another.

use crate::memory::{Fault, Memory, Region};
use crate::module::{
    Address, Function, Instruction, Op, Operand, SHARED, Shuffle, Space, Special, Together, Vote,
};
use crate::number;
use crate::streams::Random;

/// A kernel with all that it is launched by.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) function: std::sync::Arc<Function>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Bytes of shared memory beyond those of fixed size.
    pub(crate) dynamic: u32,
    /// Parameters at their offsets.
    pub(crate) params: Vec<u8>,
}

/// Instructions that one thread may take.
const MOST: u64 = 1 << 26;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    /// At a warp's instruction.
    Warp,
    /// At the block's barrier.
    Block,
    Done,
}

struct Thread {
    registers: Vec<u64>,
    at: usize,
    state: State,
    taken: u64,
    place: [u32; 3],
    lane: u32,
}

struct Block<'a> {
    launch: &'a Launch,
    memory: &'a mut Memory,
    shared: Region,
    threads: Vec<Thread>,
    index: [u32; 3],
}

pub(crate) fn run(launch: &Launch, memory: &mut Memory, random: &mut Random) -> Result<(), Fault> {
    let [x, y, z] = launch.grid;
    let mut blocks: Vec<[u32; 3]> = (0..z)
        .flat_map(|k| (0..y).flat_map(move |j| (0..x).map(move |i| [i, j, k])))
        .collect();
    random.shuffle(&mut blocks);
    for index in blocks {
        let mut block = Block::new(launch, memory, index);
        block.run(random)?;
    }
    Ok(())
}

impl<'a> Block<'a> {
    fn new(launch: &'a Launch, memory: &'a mut Memory, index: [u32; 3]) -> Self {
        let [x, y, z] = launch.block;
        let threads = (0..x * y * z)
            .map(|i| Thread {
                registers: vec![0; launch.function.registers],
                at: 0,
                state: State::Runs,
                taken: 0,
                place: [i % x, i / x % y, i / x / y],
                lane: i % 32,
            })
            .collect();
        Self {
            launch,
            memory,
            shared: Region::new(launch.function.shared + launch.dynamic as usize),
            threads,
            index,
        }
    }

    fn code(&self, at: usize) -> &'a Instruction {
        &self.launch.function.code[at]
    }

    /// Where something happened.
    fn place(&self, thread: usize) -> String {
        let t = &self.threads[thread];
        format!(
            "kernel {}, block {:?}, thread {:?}, at '{}'",
            self.launch.function.name,
            self.index,
            t.place,
            self.code(t.at).text
        )
    }

    fn run(&mut self, random: &mut Random) -> Result<(), Fault> {
        let mut order: Vec<usize> = (0..self.threads.len()).collect();
        loop {
            random.shuffle(&mut order);
            let mut moved = false;
            for thread in &order {
                if self.threads[*thread].state == State::Runs {
                    moved = true;
                    // Now and then a thread stops on its way, so that atomics interleave.
                    let steps = if random.below(4) == 0 { 64 } else { 1 << 20 };
                    self.steps(*thread, steps)
                        .map_err(|fault| fault.at(&self.place(*thread)))?;
                }
            }
            if self.threads.iter().any(|t| t.state == State::Runs) && moved {
                continue;
            }
            if self.threads.iter().all(|t| t.state == State::Done) {
                return Ok(());
            }
            self.meet()?;
        }
    }

    /// Nobody runs: warps and the block do what they wait for.
    fn meet(&mut self) -> Result<(), Fault> {
        let mut moved = false;
        for warp in (0..self.threads.len()).step_by(32) {
            let lanes = warp..self.threads.len().min(warp + 32);
            let Some(first) = lanes
                .clone()
                .find(|t| self.threads[*t].state == State::Warp)
            else {
                continue;
            };
            // Threads wait at several places at most; any one whose threads are all there can go.
            for leader in first..lanes.end {
                if self.threads[leader].state != State::Warp {
                    continue;
                }
                let Op::Warp(together, members) = &self.code(self.threads[leader].at).op else {
                    continue;
                };
                let mask = self.value(leader, *members) as u32;
                let at = self.threads[leader].at;
                let ready = (0..32).filter(|lane| mask >> lane & 1 == 1).all(|lane| {
                    self.threads.get(warp + lane).is_some_and(|t| {
                        t.state == State::Warp
                            && t.at == at
                            && warp + lane < lanes.end
                            && self.value(warp + lane, *members) as u32 == mask
                    })
                });
                if mask >> self.threads[leader].lane & 1 == 0 {
                    return Err(Fault::Divergent(format!(
                        "a thread is not in its own mask {mask:#x}, {}",
                        self.place(leader)
                    )));
                }
                if ready {
                    self.together(warp, mask, *together)
                        .map_err(|fault| fault.at(&self.place(leader)))?;
                    moved = true;
                }
            }
        }
        if moved {
            return Ok(());
        }
        if let Some(stuck) = self.threads.iter().position(|t| t.state == State::Warp) {
            return Err(Fault::Divergent(format!(
                "threads of its mask are elsewhere or have ended, {}",
                self.place(stuck)
            )));
        }
        let waiting = self.threads.iter().position(|t| t.state == State::Block);
        let at = waiting.map(|t| self.threads[t].at);
        let all = self
            .threads
            .iter()
            .all(|t| t.state == State::Block && Some(t.at) == at);
        if let (false, Some(stuck)) = (all, waiting) {
            return Err(Fault::Divergent(format!(
                "threads of the block are elsewhere or have ended, {}",
                self.place(stuck)
            )));
        }
        for thread in &mut self.threads {
            thread.at += 1;
            thread.state = State::Runs;
        }
        Ok(())
    }

    fn together(&mut self, warp: usize, mask: u32, what: Together) -> Result<(), Fault> {
        let lanes: Vec<usize> = (0..32)
            .filter(|lane| mask >> lane & 1 == 1)
            .map(|lane| warp + lane)
            .collect();
        match what {
            Together::Barrier => {}
            Together::Shuffle {
                way,
                to,
                within,
                value,
                by,
                clamp,
            } => {
                let values: Vec<u64> = lanes.iter().map(|t| self.value(*t, value)).collect();
                for t in &lanes {
                    let (by, clamp) =
                        (self.value(*t, by) as u32 & 31, self.value(*t, clamp) as u32);
                    let lane = self.threads[*t].lane;
                    let segment = clamp >> 8 & 31;
                    let last = lane & segment | clamp & 31 & !segment;
                    let (from, good) = match way {
                        Shuffle::Up => {
                            let from = lane.wrapping_sub(by);
                            (from, from.cast_signed() >= last.cast_signed())
                        }
                        Shuffle::Down => (lane + by, lane + by <= last),
                        Shuffle::Butterfly => (lane ^ by, lane ^ by <= last),
                        Shuffle::Index => {
                            let from = lane & segment | by & !segment;
                            (from, from <= last)
                        }
                    };
                    let from = if good { from } else { lane };
                    let Some(place) = lanes.iter().position(|o| self.threads[*o].lane == from)
                    else {
                        return Err(Fault::Divergent(format!(
                            "a shuffle reads lane {from}, which is not in the mask {mask:#x}"
                        )));
                    };
                    self.threads[*t].registers[to as usize] = values[place] & 0xffff_ffff;
                    if let Some(within) = within {
                        self.threads[*t].registers[within as usize] = u64::from(good);
                    }
                }
            }
            Together::Vote {
                vote,
                to,
                value,
                negated,
            } => {
                let ballot = lanes.iter().fold(0u64, |all, t| {
                    let bit = self.value(*t, value) & 1 ^ u64::from(negated);
                    all | bit << self.threads[*t].lane
                });
                let all = ballot == u64::from(mask);
                let result = match vote {
                    Vote::Ballot => ballot,
                    Vote::Any => u64::from(ballot != 0),
                    Vote::All => u64::from(all),
                    Vote::Uniform => u64::from(all || ballot == 0),
                };
                for t in &lanes {
                    self.threads[*t].registers[to as usize] = result;
                }
            }
            Together::Reduce { op, ty, to, value } => {
                let result = lanes
                    .iter()
                    .map(|t| self.value(*t, value))
                    .reduce(|a, b| number::binary(op, ty, a, b))
                    .unwrap_or(0);
                for t in &lanes {
                    self.threads[*t].registers[to as usize] = number::mask(result, ty);
                }
            }
        }
        for t in lanes {
            self.threads[t].at += 1;
            self.threads[t].state = State::Runs;
        }
        Ok(())
    }

    fn value(&self, thread: usize, operand: Operand) -> u64 {
        let t = &self.threads[thread];
        match operand {
            Operand::Register(r) => t.registers[r as usize],
            Operand::Immediate(value) => value,
            Operand::Special(special) => u64::from(match special {
                Special::Tid(axis) => t.place[usize::from(axis)],
                Special::Ntid(axis) => self.launch.block[usize::from(axis)],
                Special::Ctaid(axis) => self.index[usize::from(axis)],
                Special::Nctaid(axis) => self.launch.grid[usize::from(axis)],
                Special::Lane => t.lane,
            }),
        }
    }

    fn address(&self, thread: usize, at: Address, size: usize) -> Result<(Space, u64), Fault> {
        let address = self.value(thread, at.base).wrapping_add(at.offset);
        if !address.is_multiple_of(size as u64) {
            return Err(Fault::Misaligned(format!(
                "{size} bytes at address {address:#x}"
            )));
        }
        let shared = SHARED..SHARED + (1 << 20);
        Ok(match at.space {
            Space::Global if shared.contains(&address) => (Space::Shared, address - SHARED),
            Space::Shared => (Space::Shared, address.wrapping_sub(SHARED)),
            space => (space, address),
        })
    }

    fn read(&self, space: Space, at: u64, size: usize) -> Result<u64, Fault> {
        let result = match space {
            Space::Global => self.memory.read(at, size),
            Space::Shared => self.shared.read(at as usize, size),
            Space::Param => {
                let bytes = self.launch.params.get(at as usize..at as usize + size);
                let bytes = bytes.ok_or_else(|| Fault::Illegal("a parameter".to_owned()))?;
                let mut word = [0; 8];
                word[..size].copy_from_slice(bytes);
                Ok(u64::from_le_bytes(word))
            }
        };
        result.map_err(|fault| fault.at(&format!("{space:?} memory at {at:#x}")))
    }

    fn write(&mut self, space: Space, at: u64, size: usize, value: u64) -> Result<(), Fault> {
        let result = match space {
            Space::Shared => self.shared.write(at as usize, size, value),
            _ => self.memory.write(at, size, value),
        };
        result.map_err(|fault| fault.at(&format!("{space:?} memory at {at:#x}")))
    }

    /// Takes up to `most` instructions of a thread.
    fn steps(&mut self, thread: usize, most: u64) -> Result<(), Fault> {
        for _ in 0..most {
            let t = &mut self.threads[thread];
            t.taken += 1;
            if t.taken > MOST {
                return Err(Fault::Timeout(format!("{MOST} instructions of a thread")));
            }
            let at = t.at;
            let instruction = self.code(at);
            if let Some((register, negated)) = instruction.guard {
                let set = self.threads[thread].registers[register as usize] & 1 == 1;
                if set == negated {
                    self.threads[thread].at += 1;
                    continue;
                }
            }
            match &instruction.op {
                Op::Branch(to) => {
                    self.threads[thread].at = *to;
                    continue;
                }
                Op::Return => {
                    self.threads[thread].state = State::Done;
                    return Ok(());
                }
                Op::Warp(..) => {
                    self.threads[thread].state = State::Warp;
                    return Ok(());
                }
                Op::Barrier => {
                    self.threads[thread].state = State::Block;
                    return Ok(());
                }
                op => self.step(thread, op)?,
            }
            self.threads[thread].at += 1;
        }
        Ok(())
    }

    fn set(&mut self, thread: usize, register: u32, value: u64) {
        self.threads[thread].registers[register as usize] = value;
    }

    fn step(&mut self, thread: usize, op: &Op) -> Result<(), Fault> {
        match op {
            Op::Unary(op, ty, dst, a) => {
                let value = number::unary(*op, *ty, self.value(thread, *a));
                self.set(thread, *dst, value);
            }
            Op::Binary(op, ty, dst, a, b) => {
                let value =
                    number::binary(*op, *ty, self.value(thread, *a), self.value(thread, *b));
                self.set(thread, *dst, value);
            }
            Op::Ternary(op, ty, dst, a, b, c) => {
                let value = number::ternary(
                    *op,
                    *ty,
                    self.value(thread, *a),
                    self.value(thread, *b),
                    self.value(thread, *c),
                );
                self.set(thread, *dst, value);
            }
            Op::Insert(ty, dst, list) => {
                let value = number::insert(*ty, list.map(|o| self.value(thread, o)));
                self.set(thread, *dst, value);
            }
            Op::Logic(dst, list, table) => {
                let value = number::logic(list.map(|o| self.value(thread, o)), *table);
                self.set(thread, *dst, value);
            }
            Op::Pack(list, size, dst) => {
                let bits = u32::from(*size) * 8;
                let value = list.iter().enumerate().fold(0, |all, (i, o)| {
                    let part = self.value(thread, *o) & ((1 << bits) - 1);
                    all | part << (bits * i as u32)
                });
                self.set(thread, *dst, value);
            }
            Op::Unpack(list, size, src) => {
                let bits = u32::from(*size) * 8;
                let value = self.value(thread, *src);
                for (i, dst) in list.iter().enumerate() {
                    if let Some(dst) = dst {
                        let part = value >> (bits * i as u32) & ((1 << bits) - 1);
                        self.set(thread, *dst, part);
                    }
                }
            }
            Op::Convert {
                to,
                from,
                integer,
                saturate,
                dst,
                src,
            } => {
                let value = self.value(thread, *src);
                let value = number::convert(*to, *from, *integer, *saturate, value);
                self.set(thread, *dst, value);
            }
            Op::Compare {
                by,
                unordered,
                ty,
                dst,
                opposite,
                a,
                b,
                with,
            } => {
                let (a, b) = (self.value(thread, *a), self.value(thread, *b));
                let holds = number::compare(*by, *unordered, *ty, a, b);
                let combine = |this: &Self, holds: bool| match with {
                    Some((op, other, negated)) => {
                        let other = this.value(thread, *other) & 1 ^ u64::from(*negated);
                        number::binary(
                            *op,
                            crate::module::Type {
                                kind: crate::module::Kind::Bits,
                                bytes: 1,
                            },
                            u64::from(holds),
                            other,
                        )
                    }
                    None => u64::from(holds),
                };
                let (value, other) = (combine(self, holds), combine(self, !holds));
                self.set(thread, *dst, value);
                if let Some(opposite) = opposite {
                    self.set(thread, *opposite, other);
                }
            }
            Op::Load(ty, list, at) => {
                let size = usize::from(ty.bytes);
                let (space, at) = self.address(thread, *at, size * list.len())?;
                for (i, dst) in list.iter().enumerate() {
                    let value = self.read(space, at + (i * size) as u64, size)?;
                    // Narrow signed numbers keep their sign in wider registers.
                    let value = number::integer(value, *ty) as u64;
                    self.set(thread, *dst, value);
                }
            }
            Op::Store(ty, at, list) => {
                let size = usize::from(ty.bytes);
                let (space, at) = self.address(thread, *at, size * list.len())?;
                for (i, value) in list.iter().enumerate() {
                    let value = self.value(thread, *value);
                    self.write(space, at + (i * size) as u64, size, value)?;
                }
            }
            Op::Atomic {
                op,
                ty,
                dst,
                at,
                value,
                swap,
            } => {
                let size = usize::from(ty.bytes);
                let (space, at) = self.address(thread, *at, size)?;
                let old = self.read(space, at, size)?;
                let value = self.value(thread, *value);
                let new = match (op, swap) {
                    (Some(op), _) => number::binary(*op, *ty, old, value),
                    (None, Some(swap)) if old == number::mask(value, *ty) => {
                        self.value(thread, *swap)
                    }
                    _ => old,
                };
                self.write(space, at, size, new)?;
                if let Some(dst) = dst {
                    self.set(thread, *dst, old);
                }
            }
            Op::Branch(_) | Op::Return | Op::Warp(..) | Op::Barrier | Op::Nothing => {}
        }
        Ok(())
    }
}
