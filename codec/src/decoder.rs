//! One tensor out: the inverse of the encoder, trusting nothing it reads.

use std::{ops::Range, sync::Arc};

use crate::{
    CodecError, DType, Scratch, SharedTables,
    bits::{take_byte, take_bytes, take_size},
    block::Method,
    coding::{BlockForm, Coding, CodingTables, Int8Coding, Moved, StripForm},
    context::Exponent,
    encoder::{EXACT, INT8, LOW_RANK, OWN_TABLES, SHIFTED, STRIPS, Tables},
    error::corrupt,
    geometry::{Geometry, MIN_ROW, Relation},
    int8::Coded,
    learned,
    lowrank::{CLASSES, Update},
    predictor::{Adjust, Prediction, Predictor},
    scales,
    shift::Shift,
    standalone,
    strip::{self, Parts, Plan},
    tables::TableSet,
    view::byte_len,
};

/// Decodes the blocks of one tensor.
#[derive(Debug)]
pub struct TensorDecoder {
    dtype: Option<DType>,
    predictor: Predictor,
    geometry: Geometry,
    scales: Vec<i16>,
    strip: usize,
    tables: Option<Tables>,
    int8: Option<Box<Coded>>,
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
            .filter(|n| isize::try_from(*n).is_ok())
            .ok_or_else(|| corrupt("dtype and shape make no tensor"))?;
        let relation = Relation::of(dtype, shape, base);
        let width = dtype.map_or(1, DType::word_bytes);
        let mut geometry = Geometry::new(dtype, shape, bytes / width, relation.words());
        let mut this = Self {
            dtype,
            predictor: Predictor {
                relation,
                dtype,
                adjust: Adjust::None,
            },
            geometry: geometry.clone(),
            scales: Vec::new(),
            strip: 1,
            tables: None,
            int8: None,
        };
        if header.is_empty() {
            return Ok(this);
        }
        let mut data = header;
        let flags = take_byte(&mut data)?;
        if flags == INT8 {
            this.int8 = Some(Box::new(Coded::take(data, dtype, shape, base)?));
            return Ok(this);
        }
        if flags & !(OWN_TABLES | SHIFTED | LOW_RANK | EXACT) != 0 {
            return Err(corrupt("unknown header flags: a newer version may read it"));
        }
        let strip = take_byte(&mut data)?;
        if !STRIPS.contains(&strip) {
            return Err(corrupt("a strip's size is out of range"));
        }
        this.strip = 1 << strip;
        geometry.row = take_size(&mut data, usize::MAX >> 1)?;
        if geometry.row < MIN_ROW.min(geometry.common).max(1) {
            return Err(corrupt("rows are too short"));
        }
        this.predictor.adjust = match (flags & SHIFTED != 0, flags & LOW_RANK != 0) {
            (false, false) => Adjust::None,
            (true, false) => Adjust::Shift(Shift::take(&mut data, dtype)?),
            (false, true) => {
                let update = Update::take(&mut data, dtype, shape, geometry.common)?;
                Adjust::LowRank(Arc::new(update))
            }
            (true, true) => return Err(corrupt("a tensor is predicted in two ways")),
        };
        if flags & EXACT == 0 {
            let layered = this.predictor.is_layered();
            this.scales = scales::take(&mut data, geometry.rows())?;
            this.tables = Some(if flags & OWN_TABLES != 0 {
                let layers = if layered { CLASSES } else { 1 };
                Tables::Own(Box::new(TableSet::take(&mut data, layers)?))
            } else {
                let shared = shared
                    .filter(|s| s.set(width, layered).is_some())
                    .ok_or_else(|| corrupt("the model's shared tables are missing"))?;
                Tables::Shared(Arc::clone(shared), width, layered)
            });
        }
        this.geometry = geometry;
        if data.is_empty() {
            Ok(this)
        } else {
            Err(corrupt("the header is too long"))
        }
    }

    /// The tensor's dtype, where it is known.
    pub fn dtype(&self) -> Option<DType> {
        self.dtype
    }

    /// Blocks of the tensor.
    pub fn blocks(&self) -> usize {
        self.geometry.blocks()
    }

    /// The bytes of the target that a block covers; empty past the last block.
    pub fn target_range(&self, block: usize) -> Range<usize> {
        self.geometry.bytes(block)
    }

    /// How strips are coded, for a decoder elsewhere; `None` where there are none or the words are none that one takes.
    pub fn coding(&self) -> Option<Coding<'_>> {
        Some(Coding {
            tables: CodingTables(self.tables.as_ref()?.get()?),
            moved: self.moved()?,
            dtype: self.dtype.filter(DType::is_coded_elsewhere)?,
            row: self.geometry.row,
            scales: &self.scales,
        })
    }

    /// How codes of INT8 become words, for a decoder elsewhere; `None` where there are none or the words are none that one takes.
    pub fn int8_coding(&self) -> Option<Int8Coding<'_>> {
        self.dtype.filter(DType::is_coded_elsewhere)?;
        self.int8.as_ref()?.coding()
    }

    /// The dtype of the base that words are predicted from, cast to the tensor's where it is another one.
    pub fn base_dtype(&self) -> Option<DType> {
        match self.predictor.relation {
            Relation::None => None,
            Relation::Same { .. } => self.dtype,
            Relation::Cast { from, .. } => Some(from),
        }
    }

    /// What is done to the base's words, in the tensor's dtype; `None` where there is no base.
    pub fn moved(&self) -> Option<Moved<'_>> {
        self.predictor.moved()
    }

    /// Takes a block apart for a decoder elsewhere.
    ///
    /// # Errors
    /// [`CodecError::Corrupt`] for what no encoder wrote, as far as that is seen without decoding.
    pub fn block_form<'p>(
        &self,
        block: usize,
        payload: &'p [u8],
    ) -> Result<BlockForm<'p>, CodecError> {
        let words = self.geometry.block(block);
        let mut data = payload;
        let method = take_method(&mut data)?;
        let predicted = words.end <= self.geometry.common;
        Ok(match method {
            Method::Same if predicted && data.is_empty() => BlockForm::Same,
            Method::Raw if data.len() == words.len() * self.geometry.width => BlockForm::Raw(data),
            Method::Delta if predicted => {
                let mut strips = Vec::new();
                for from in words.clone().step_by(self.strip) {
                    let parts = Parts::new(take_strip(&mut data)?)?;
                    strips.push(StripForm {
                        words: from..words.end.min(from + self.strip),
                        lanes: parts.lanes,
                        coded: parts.coded,
                        raw: parts.raw,
                        patches: parts.patches,
                    });
                }
                if !data.is_empty() {
                    return Err(corrupt("bytes follow the last strip"));
                }
                BlockForm::Strips(strips)
            }
            Method::Int8 if self.int8_coding().is_some() => BlockForm::Int8(data),
            other => BlockForm::Other(other),
        })
    }

    /// The codes of a block of INT8.
    ///
    /// # Errors
    /// [`CodecError::Corrupt`] for what no encoder wrote.
    pub fn int8_codes(
        &self,
        block: usize,
        data: &[u8],
        scratch: &mut Scratch,
    ) -> Result<Vec<i8>, CodecError> {
        Coded::codes(self.geometry.block(block).len(), data, scratch)
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
        let method = take_method(&mut data)?;
        match method {
            Method::Same => {
                if !data.is_empty() || words.end > self.geometry.common {
                    return Err(corrupt("a block said to equal its base cannot"));
                }
                out.copy_from_slice(&self.predictor.predict(base, words)?.words);
                Ok(())
            }
            Method::Delta => {
                if words.end > self.geometry.common {
                    return Err(corrupt("a block lies past its base"));
                }
                let prediction = self.predictor.predict(base, words.clone())?;
                match self.geometry.width {
                    1 => self.decode::<1>(words, data, &prediction, out, scratch),
                    2 => self.decode::<2>(words, data, &prediction, out, scratch),
                    4 => self.decode::<4>(words, data, &prediction, out, scratch),
                    _ => self.decode::<8>(words, data, &prediction, out, scratch),
                }
            }
            Method::Learned => {
                if words.end > self.geometry.common || self.int8.is_some() {
                    return Err(corrupt("a block lies past its base"));
                }
                let prediction = self.predictor.predict(base, words.clone())?.words;
                let plan = learned::Plan::new(self.dtype, self.geometry.row);
                match self.geometry.width {
                    1 => learned::decode::<1>(plan, words, data, &prediction, out),
                    2 => learned::decode::<2>(plan, words, data, &prediction, out),
                    4 => learned::decode::<4>(plan, words, data, &prediction, out),
                    _ => learned::decode::<8>(plan, words, data, &prediction, out),
                }
            }
            Method::Int8 => match &self.int8 {
                Some(int8) => int8.decode(words, data, base, out, scratch),
                None => Err(corrupt("an INT8 block in a tensor that is none")),
            },
            Method::Raw | Method::StandAlone | Method::Zstd => {
                standalone::decode(method, self.dtype, data, out, scratch)
            }
        }
    }

    fn decode<const W: usize>(
        &self,
        words: Range<usize>,
        mut data: &[u8],
        prediction: &Prediction<'_>,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), CodecError> {
        let set = self
            .tables
            .as_ref()
            .and_then(Tables::get)
            .ok_or_else(|| corrupt("the tensor's header is missing"))?;
        let plan = Plan {
            set,
            exponent: Exponent::of(self.dtype),
            float: self.dtype.is_some_and(DType::is_float),
            row: self.geometry.row,
            scales: &self.scales,
        };
        for from in (0..words.len()).step_by(self.strip) {
            let to = words.len().min(from + self.strip);
            let strip = take_strip(&mut data)?;
            let bytes = from * W..to * W;
            strip::decode::<W>(
                &plan,
                words.start + from..words.start + to,
                strip,
                &prediction.words[bytes.clone()],
                prediction.classes.get(from..to).unwrap_or_default(),
                &mut out[bytes],
                scratch,
            )?;
        }
        if data.is_empty() {
            Ok(())
        } else {
            Err(corrupt("bytes follow the last strip"))
        }
    }
}

fn take_method(data: &mut &[u8]) -> Result<Method, CodecError> {
    Method::from_byte(take_byte(data)?)
        .ok_or_else(|| corrupt("an unknown method: a newer version may read it"))
}

/// Takes the next strip of a block off the front of its data.
fn take_strip<'p>(data: &mut &'p [u8]) -> Result<&'p [u8], CodecError> {
    let left = data.len();
    let length = take_size(data, left)?;
    take_bytes(data, length)
}
