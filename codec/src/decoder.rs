//! One tensor out: the inverse of the encoder, trusting nothing it reads.

use std::{ops::Range, sync::Arc};

use crate::{
    CodecError, DType, Scratch, SharedTables,
    bits::{BitReader, take_byte, take_bytes, take_size},
    block::Method,
    context::Contexts,
    encoder::{ONE_SCALE, OWN_TABLES, predict},
    error::corrupt,
    geometry::{Geometry, Relation},
    rans, scales, standalone,
    tables::TableSet,
    token,
    view::byte_len,
    word::{load, mask, order, store, unorder},
};

/// Decodes the blocks of one tensor.
#[derive(Debug)]
pub struct TensorDecoder {
    dtype: Option<DType>,
    relation: Relation,
    geometry: Geometry,
    scales: Vec<i16>,
    tables: Option<Arc<TableSet>>,
}

impl TensorDecoder {
    /// A decoder for a tensor of `dtype` and `shape` (an unknown dtype: `shape` is its length in bytes), from the header its
    /// encoder made, the dtype and shape of the base tensor it was encoded against and the model's shared tables.
    ///
    /// # Errors
    /// [`CodecError::Corrupt`] for a header that no encoder wrote for such a tensor.
    pub fn new(
        dtype: Option<DType>,
        shape: &[u64],
        header: &[u8],
        base: Option<(Option<DType>, &[u64])>,
        shared: Option<&Arc<SharedTables>>,
    ) -> Result<Self, CodecError> {
        let bytes = match dtype {
            Some(_) => byte_len(dtype, shape),
            None => shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)),
        };
        let bytes = bytes
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| corrupt("dtype and shape make no tensor"))?;
        let relation = Relation::of(dtype, shape, base);
        let width = dtype.map_or(1, DType::word_bytes);
        let mut geometry = Geometry::new(dtype, shape, bytes / width, relation.words());
        let mut this = Self {
            dtype,
            relation,
            geometry: geometry.clone(),
            scales: Vec::new(),
            tables: None,
        };
        if header.is_empty() {
            return Ok(this);
        }
        let mut data = header;
        let flags = take_byte(&mut data)?;
        if flags & !(OWN_TABLES | ONE_SCALE) != 0 {
            return Err(corrupt("unknown header flags: a newer version may read it"));
        }
        geometry.row = take_size(&mut data, usize::MAX >> 1)?.max(1);
        this.scales = scales::take(&mut data, geometry.rows())?;
        this.geometry = geometry;
        this.tables = if flags & OWN_TABLES != 0 {
            Some(Arc::new(TableSet::from_bytes(&mut data)?))
        } else {
            let set = shared
                .and_then(|s| s.set(width))
                .ok_or_else(|| corrupt("the model's shared tables are missing"))?;
            Some(Arc::new(set.clone()))
        };
        if data.is_empty() {
            Ok(this)
        } else {
            Err(corrupt("the header is too long"))
        }
    }

    /// Blocks of the tensor.
    pub fn blocks(&self) -> usize {
        self.geometry.blocks()
    }

    /// The bytes of the target that a block covers; empty past the last block.
    pub fn target_range(&self, block: usize) -> Range<usize> {
        self.geometry.bytes(block)
    }

    /// Decodes a block into `out`, which must have the length of [`Self::target_range`]. `base` is the whole base tensor.
    ///
    /// # Errors
    /// [`CodecError::Corrupt`] for a payload no encoder wrote, [`CodecError::Base`] for a base that is missing or too short.
    pub fn decode_block(
        &self,
        block: usize,
        payload: &[u8],
        base: Option<&[u8]>,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), CodecError> {
        let words = self.geometry.block(block);
        if out.len() != words.len() * self.geometry.width {
            return Err(corrupt("the block's length differs from its tensor's"));
        }
        let mut data = payload;
        let method = Method::from_byte(take_byte(&mut data)?)
            .ok_or_else(|| corrupt("an unknown method: a newer version may read it"))?;
        match method {
            Method::Same => {
                if !data.is_empty() || words.end > self.geometry.common {
                    return Err(corrupt("a block said to equal its base cannot"));
                }
                out.copy_from_slice(&predict(self.relation, self.dtype, base, words)?);
                Ok(())
            }
            Method::Delta => {
                let prediction = predict(self.relation, self.dtype, base, words.clone())?;
                if words.end > self.geometry.common {
                    return Err(corrupt("a block lies past its base"));
                }
                match self.geometry.width {
                    1 => self.decode::<1>(words, data, &prediction, out),
                    2 => self.decode::<2>(words, data, &prediction, out),
                    4 => self.decode::<4>(words, data, &prediction, out),
                    _ => self.decode::<8>(words, data, &prediction, out),
                }
            }
            Method::Raw | Method::StandAlone | Method::Zstd => {
                standalone::decode(method, self.dtype, data, out, scratch)
            }
        }
    }

    fn decode<const W: usize>(
        &self,
        words: Range<usize>,
        mut data: &[u8],
        prediction: &[u8],
        out: &mut [u8],
    ) -> Result<(), CodecError> {
        let tables = self
            .tables
            .as_ref()
            .ok_or_else(|| corrupt("the tensor's header is missing"))?;
        let lanes = match take_byte(&mut data)? {
            log @ 0..=5 => 1usize << log,
            _ => return Err(corrupt("too many lanes")),
        };
        let left = data.len();
        let raw_length = take_size(&mut data, left)?;
        let mut raw = BitReader::new(take_bytes(&mut data, raw_length)?);
        let mut coder = rans::Decoder::new(data, lanes, tables)?;
        let float = self.dtype.is_some_and(DType::is_float);
        let contexts = Contexts::new(self.dtype);
        let mut at = words.start;
        while at < words.end {
            let row = at / self.geometry.row;
            let end = words.end.min((row + 1).saturating_mul(self.geometry.row));
            let scale = self.scales.get(row).copied().unwrap_or(scales::UNCHANGED);
            let (from, to) = (at - words.start, end - words.start);
            if scale == scales::UNCHANGED {
                out[from * W..to * W].copy_from_slice(&prediction[from * W..to * W]);
            } else {
                for i in from..to {
                    let p = load::<W>(prediction, i);
                    let symbol = coder.next(tables.table(contexts.of(i32::from(scale), p)));
                    let d = token::value::<W>(symbol, &mut raw);
                    let ordered =
                        order::<W>(p, float).wrapping_add(d.cast_unsigned()) & mask::<W>();
                    store::<W>(out, i, unorder::<W>(ordered, float));
                }
            }
            at = end;
        }
        if !raw.is_spent() {
            return Err(corrupt("the raw bits do not end where they should"));
        }
        coder.finish()
    }
}
