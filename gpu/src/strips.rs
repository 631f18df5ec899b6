//! Strips of the block format in the device's memory, and the frequency tables they are coded with: what `kernels/strips.cuh`
//! declares.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaFunction, CudaSlice, DeviceRepr, LaunchConfig, ValidAsZeroBits, sys};
use sparse_codec::{Coding, CodingTables, UNCHANGED_ROW};

use crate::error::During;
use crate::{Device, GpuError};

/// Warps of a block, a strip each.
const WARPS: u32 = 8;
/// Bytes of shared memory of a warp's queue.
const QUEUE: usize = 32;
/// Shared memory that any kernel may have.
const ALWAYS: usize = 48 << 10;

/// One strip, as the kernels take it. Until [`Staged::addresses`], `scales` and `coded` are offsets in the staged bytes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Strip {
    pub(crate) prediction: u64,
    pub(crate) classes: u64,
    pub(crate) words: u64,
    pub(crate) scales: u64,
    pub(crate) coded: u64,
    pub(crate) coded_bytes: u32,
    pub(crate) raw_bytes: u32,
    pub(crate) patch_bytes: u32,
    pub(crate) count: u32,
    pub(crate) row: u32,
    pub(crate) left: u32,
    pub(crate) lanes: u32,
    pub(crate) is_coded: u32,
}

// SAFETY: plain numbers in the kernels' layout.
unsafe impl DeviceRepr for Strip {}
// SAFETY: as above.
unsafe impl ValidAsZeroBits for Strip {}

/// Bytes that travel to the device with strips, each part from a multiple of four on.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub(crate) bytes: Vec<u8>,
}

impl Staged {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Where a part begins.
    pub(crate) fn put(&mut self, part: impl IntoIterator<Item = u8>) -> u64 {
        let at = self.bytes.len() as u64;
        self.bytes.extend(part);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        at
    }

    /// As [`Self::put`], from a multiple of `to` on.
    pub(crate) fn put_aligned(&mut self, part: &[i8], to: usize) -> usize {
        let at = self.bytes.len().next_multiple_of(to);
        self.bytes.resize(at, 0);
        self.put(part.iter().map(|byte| byte.cast_unsigned()));
        at
    }

    /// A strip of words of a tensor with the scales of its rows; nothing of the coder's yet.
    pub(crate) fn strip(
        &mut self,
        coding: &Coding<'_>,
        words: &std::ops::Range<usize>,
    ) -> Result<Strip, GpuError> {
        let narrow = |n: usize| {
            u32::try_from(n)
                .ok()
                .filter(|n| *n <= 1 << 30)
                .ok_or_else(|| GpuError::unsupported("a strip is too large for a GPU"))
        };
        // No strip is as long as the longest row that a number here can say.
        let row = coding.row.clamp(1, 1 << 30);
        if row < 32 && coding.scales.len() > 1 {
            return Err(GpuError::unsupported("rows are too short for a GPU"));
        }
        let (from, to) = (words.start / row, words.end.div_ceil(row));
        let scales = coding.scales.get(from..to.max(from)).unwrap_or_default();
        let missing = (to.saturating_sub(from)).saturating_sub(scales.len());
        let scales = scales
            .iter()
            .copied()
            .chain(std::iter::repeat_n(UNCHANGED_ROW, missing));
        Ok(Strip {
            scales: self.put(scales.flat_map(i16::to_le_bytes)),
            count: narrow(words.len())?,
            row: narrow(row)?,
            left: narrow(row - words.start % row)?,
            ..Strip::default()
        })
    }

    /// The strips with addresses, where the staged bytes are at `base`.
    pub(crate) fn addresses(strips: &[Strip], base: u64) -> Vec<Strip> {
        let at = |strip: &Strip| Strip {
            scales: strip.scales + base,
            coded: strip.coded + base,
            ..*strip
        };
        strips.iter().map(at).collect()
    }
}

/// Frequency tables in the device's memory.
#[derive(Debug)]
pub(crate) struct DeviceTables {
    pub(crate) intervals: CudaSlice<u32>,
    pub(crate) tokens: CudaSlice<u32>,
    pub(crate) map: CudaSlice<u32>,
    pub(crate) map_words: u32,
    pub(crate) tables: u32,
    pub(crate) precision: u32,
    pub(crate) first: i32,
    /// Whether they are copied to shared memory.
    pub(crate) fits: u32,
    /// Bytes of shared memory.
    shared: u32,
    /// And the most that a kernel may ask for.
    most: i32,
}

impl DeviceTables {
    /// Copies tables to the device; `decodes`: with the token of every slot.
    pub(crate) fn new(
        device: &Device,
        tables: CodingTables<'_>,
        decodes: bool,
    ) -> Result<Self, GpuError> {
        let intervals = tables.intervals();
        let mut tokens = Vec::new();
        if decodes {
            for table in intervals {
                for (token, interval) in (0u8..=255).zip(table) {
                    tokens.extend(std::iter::repeat_n(token, (interval & 0xffff) as usize));
                }
            }
        }
        let words = |bytes: &[u8]| -> Vec<u32> {
            let words = bytes.as_chunks::<4>().0.iter();
            words.map(|word| u32::from_le_bytes(*word)).collect()
        };
        let (tokens, map) = (words(&tokens), words(tables.maps().as_flattened()));
        let least = WARPS as usize * QUEUE + map.len() * 4;
        let all = least + intervals.len() * 1024 + tokens.len() * 4;
        let most = device.shared_memory()?;
        let fits = all <= most;
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Self {
            intervals: device.upload(intervals.as_flattened())?,
            tokens: device.upload(&tokens)?,
            map: device.upload(&map)?,
            map_words: narrow(map.len()),
            tables: narrow(intervals.len()),
            precision: tables.precision(),
            first: tables.first(),
            fits: u32::from(fits),
            shared: narrow(if fits { all } else { least }),
            most: i32::try_from(most).unwrap_or(i32::MAX),
        })
    }

    /// The launch of a kernel over so many strips.
    pub(crate) fn config(
        &self,
        function: &CudaFunction,
        strips: u32,
    ) -> Result<LaunchConfig, GpuError> {
        if self.shared as usize > ALWAYS {
            let most =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // The same for all tables: threads that launch at once share the function.
            function
                .set_attribute(most, self.most)
                .during("asking for shared memory")?;
        }
        Ok(LaunchConfig {
            grid_dim: (strips.div_ceil(WARPS).max(1), 1, 1),
            block_dim: (32 * WARPS, 1, 1),
            shared_mem_bytes: self.shared,
        })
    }
}

/// The tables that were put on the device last, for tensors that share them.
#[derive(Debug, Default)]
pub(crate) struct TableCache(Mutex<Vec<Cached>>);

/// Tables kept at once: a model has a few that its tensors share.
const KEPT: usize = 4;

#[derive(Debug)]
struct Cached {
    intervals: Vec<u32>,
    maps: Vec<u8>,
    precision: u32,
    first: i32,
    tables: Arc<DeviceTables>,
}

impl Cached {
    fn is(&self, tables: CodingTables<'_>) -> bool {
        self.precision == tables.precision()
            && self.first == tables.first()
            && self.maps == tables.maps().as_flattened()
            && self.intervals == tables.intervals().as_flattened()
    }
}

impl TableCache {
    /// Tables in the device's memory, copied there in the order of its own stream where they were not there.
    pub(crate) fn get(
        &self,
        device: &Device,
        tables: CodingTables<'_>,
        decodes: bool,
    ) -> Result<Arc<DeviceTables>, GpuError> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|cached| cached.is(tables)) {
            let cached = kept.remove(at);
            let found = Arc::clone(&cached.tables);
            kept.push(cached);
            return Ok(found);
        }
        let made = Arc::new(DeviceTables::new(device, tables, decodes)?);
        // The one that was not asked for the longest goes.
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(Cached {
            intervals: tables.intervals().as_flattened().to_vec(),
            maps: tables.maps().as_flattened().to_vec(),
            precision: tables.precision(),
            first: tables.first(),
            tables: Arc::clone(&made),
        });
        Ok(made)
    }
}
