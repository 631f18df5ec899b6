//! Device memory: every allocation apart from every other, with a record of which bytes were written.

use std::collections::BTreeMap;

/// What a kernel or a copy did wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An access outside of live allocations.
    Illegal(String),
    /// An address that is no multiple of the access's size.
    Misaligned(String),
    /// A read of bytes that nobody wrote.
    Uninitialised(String),
    /// A barrier or warp instruction that not all threads named by it reached.
    Divergent(String),
    /// A loop without end.
    Timeout(String),
}

impl Fault {
    /// The CUDA error that it becomes.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Illegal(_) => 700,
            Self::Misaligned(_) => 716,
            Self::Uninitialised(_) => 719,
            Self::Divergent(_) => 715,
            Self::Timeout(_) => 702,
        }
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Self::Illegal(at) => format!("out of bounds: {at}"),
            Self::Misaligned(at) => format!("misaligned: {at}"),
            Self::Uninitialised(at) => format!("uninitialised: {at}"),
            Self::Divergent(at) => format!("divergent barrier: {at}"),
            Self::Timeout(at) => format!("no end: {at}"),
        }
    }

    /// The fault with the place in the program behind it.
    pub(crate) fn at(self, place: &str) -> Self {
        let join = |what: String| format!("{what}, {place}");
        match self {
            Self::Illegal(what) => Self::Illegal(join(what)),
            Self::Misaligned(what) => Self::Misaligned(join(what)),
            Self::Uninitialised(what) => Self::Uninitialised(join(what)),
            Self::Divergent(what) => Self::Divergent(join(what)),
            Self::Timeout(what) => Self::Timeout(join(what)),
        }
    }
}

/// A run of bytes, each written or not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Region {
    pub(crate) data: Vec<u8>,
    written: Vec<bool>,
}

impl Region {
    pub(crate) fn new(size: usize) -> Self {
        // Bytes that nobody wrote hold what no test expects.
        Self {
            data: vec![0xa5; size],
            written: vec![false; size],
        }
    }

    /// Reads `size` bytes at `offset` as an integer.
    pub(crate) fn read(&self, offset: usize, size: usize) -> Result<u64, Fault> {
        let range = offset..offset.saturating_add(size);
        let (Some(bytes), Some(written)) = (self.data.get(range.clone()), self.written.get(range))
        else {
            return Err(Fault::Illegal(format!("read of {size} bytes")));
        };
        if !written.iter().all(|w| *w) {
            return Err(Fault::Uninitialised(format!("read of {size} bytes")));
        }
        let mut word = [0; 8];
        word[..size].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(word))
    }

    pub(crate) fn write(&mut self, offset: usize, size: usize, value: u64) -> Result<(), Fault> {
        self.write_bytes(offset, &value.to_le_bytes()[..size])
    }

    pub(crate) fn write_bytes(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        let range = offset..offset.saturating_add(bytes.len());
        let (Some(to), Some(written)) = (
            self.data.get_mut(range.clone()),
            self.written.get_mut(range),
        ) else {
            return Err(Fault::Illegal(format!("write of {} bytes", bytes.len())));
        };
        to.copy_from_slice(bytes);
        written.fill(true);
        Ok(())
    }
}

/// Addresses start here; allocations are this far apart at least.
const FIRST: u64 = 0x7_0000_0000;
const GUARD: u64 = 4096;

/// The memory of the device.
#[derive(Debug)]
pub(crate) struct Memory {
    regions: BTreeMap<u64, Region>,
    next: u64,
    /// Bytes reserved, also those of allocations whose turn in a stream has not come.
    pub(crate) used: u64,
    pub(crate) total: u64,
}

impl Memory {
    pub(crate) fn new(total: u64) -> Self {
        Self {
            regions: BTreeMap::new(),
            next: FIRST,
            used: 0,
            total,
        }
    }

    /// Sets an address aside; nothing is there before [`Self::map`].
    pub(crate) fn reserve(&mut self, size: u64) -> Option<u64> {
        if size > self.total.saturating_sub(self.used) {
            return None;
        }
        self.used += size;
        let at = self.next;
        self.next += (size + GUARD).next_multiple_of(256);
        Some(at)
    }

    pub(crate) fn map(&mut self, at: u64, size: u64) {
        self.regions.insert(at, Region::new(size as usize));
    }

    /// Frees an allocation by its first address.
    pub(crate) fn unmap(&mut self, at: u64) -> bool {
        let Some(region) = self.regions.remove(&at) else {
            return false;
        };
        self.used = self.used.saturating_sub(region.data.len() as u64);
        true
    }

    fn find(&self, at: u64) -> Option<(u64, &Region)> {
        let (start, region) = self.regions.range(..=at).next_back()?;
        Some((at - start, region))
    }

    pub(crate) fn read(&self, at: u64, size: usize) -> Result<u64, Fault> {
        let (offset, region) = self
            .find(at)
            .ok_or_else(|| Fault::Illegal(format!("read of {size} bytes")))?;
        region.read(offset as usize, size)
    }

    pub(crate) fn write(&mut self, at: u64, size: usize, value: u64) -> Result<(), Fault> {
        self.write_bytes(at, &value.to_le_bytes()[..size])
    }

    pub(crate) fn write_bytes(&mut self, at: u64, bytes: &[u8]) -> Result<(), Fault> {
        let (start, region) = self
            .regions
            .range_mut(..=at)
            .next_back()
            .ok_or_else(|| Fault::Illegal(format!("write of {} bytes", bytes.len())))?;
        region.write_bytes((at - start) as usize, bytes)
    }

    /// As [`Self::bytes`], of numbers of `each` bytes.
    pub(crate) fn aligned(&self, at: u64, size: usize, each: usize) -> Result<&[u8], Fault> {
        if !at.is_multiple_of(each as u64) {
            return Err(Fault::Misaligned(format!("read at {at:#x}")));
        }
        self.bytes(at, size)
    }

    /// Bytes for a copy to the host; all of them must have been written.
    pub(crate) fn bytes(&self, at: u64, size: usize) -> Result<&[u8], Fault> {
        let illegal = || Fault::Illegal(format!("copy of {size} bytes"));
        let (offset, region) = self.find(at).ok_or_else(illegal)?;
        let range = offset as usize..(offset as usize).saturating_add(size);
        let bytes = region.data.get(range.clone()).ok_or_else(illegal)?;
        if region.written[range].iter().all(|w| *w) {
            Ok(bytes)
        } else {
            Err(Fault::Uninitialised(format!("copy of {size} bytes")))
        }
    }
}
