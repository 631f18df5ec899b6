//! One tensor in: an analysis, a header, independent blocks.

use std::{borrow::Cow, ops::Range, sync::Arc};

use rayon::prelude::*;

use crate::{
    CodecError, DType, Effort, EncodeOptions, Scratch, TensorView,
    bits::{BitWriter, put_varint},
    block::{BlockInfo, Method},
    cast::cast_words,
    context::Contexts,
    geometry::{BLOCK, Geometry, Relation},
    options::Coded,
    rans, scales, standalone,
    tables::{Histogram, TableSet},
    token::{self, ESCAPE},
    word::{difference, load, order},
};

/// Words of a tensor that are counted for its tables.
const SAMPLE: usize = 1 << 22;
/// Header bits: the tensor has its own tables; one scale serves all rows.
pub(crate) const OWN_TABLES: u8 = 1;
pub(crate) const ONE_SCALE: u8 = 2;

/// Most tables a set may have.
pub(crate) fn table_limit(effort: Effort) -> usize {
    match effort {
        Effort::Fast => 12,
        Effort::Default => 32,
        Effort::Max => 64,
    }
}

/// Lanes of a strip, by the bytes it is expected to take: each lane costs two bytes.
fn lanes(words: usize, changed: usize) -> usize {
    match changed.saturating_mul(4).max(words / 64) {
        0..2_000 => 4,
        2_000..16_000 => 8,
        _ => 32,
    }
}

/// What is found out about a tensor before it is coded.
pub(crate) struct Analysis<'a> {
    pub(crate) target: TensorView<'a>,
    pub(crate) base: Option<TensorView<'a>>,
    pub(crate) relation: Relation,
    pub(crate) geometry: Geometry,
    /// Scale of each row; empty where nothing is predicted.
    pub(crate) scales: Vec<i16>,
    /// Whether one scale serves all changed rows.
    pub(crate) one_scale: bool,
    /// Symbols by context, of a sample.
    pub(crate) histogram: Option<Histogram>,
}

impl<'a> Analysis<'a> {
    pub(crate) fn new(
        target: TensorView<'a>,
        base: Option<TensorView<'a>>,
        options: &EncodeOptions,
    ) -> Result<Self, CodecError> {
        target.check()?;
        if let Some(base) = &base {
            base.check()?;
        }
        let relation = Relation::of(
            target.dtype,
            target.shape,
            base.as_ref().map(|b| (b.dtype, b.shape)),
        );
        let geometry = Geometry::of(target, relation);
        let mut this = Self {
            target,
            base,
            relation,
            geometry,
            scales: Vec::new(),
            one_scale: false,
            histogram: None,
        };
        if this.geometry.common > 0 && this.base.is_some() {
            match this.geometry.width {
                1 => this.measure::<1>(options)?,
                2 => this.measure::<2>(options)?,
                4 => this.measure::<4>(options)?,
                _ => this.measure::<8>(options)?,
            }
        }
        Ok(this)
    }

    /// The prediction of some words: the base's, cast where dtypes differ.
    pub(crate) fn prediction(&self, words: Range<usize>) -> Result<Cow<'a, [u8]>, CodecError> {
        predict(
            self.relation,
            self.target.dtype,
            self.base.map(|b| b.data),
            words,
        )
    }

    fn measure<const W: usize>(&mut self, options: &EncodeOptions) -> Result<(), CodecError> {
        let (row, common) = (self.geometry.row, self.geometry.common);
        let rows = self.geometry.rows();
        // Rows in groups of about a block, so that a cast prediction stays small.
        let group = (BLOCK / row).max(1);
        let measured: Vec<(i16, f64, u64)> = (0..rows.div_ceil(group))
            .into_par_iter()
            .map(|g| {
                let words = g * group * row..common.min((g + 1) * group * row);
                let prediction = self.prediction(words.clone())?;
                let target = &self.target.data[words.start * W..words.end * W];
                Ok(target
                    .chunks(row * W)
                    .zip(prediction.chunks(row * W))
                    .map(|(t, p)| row_scale::<W>(self.target.dtype, t, p))
                    .collect::<Vec<_>>())
            })
            .collect::<Result<Vec<_>, CodecError>>()?
            .into_iter()
            .flatten()
            .collect();
        let by_row: Vec<i16> = measured.iter().map(|m| m.0).collect();
        let (sum, changed) = measured
            .iter()
            .filter(|m| m.0 != scales::UNCHANGED)
            .fold((0.0, 0u64), |(s, n), m| (s + m.1, n + m.2));
        let one = scales::quantise(sum / changed.max(1) as f64);
        let uniform: Vec<i16> = by_row
            .iter()
            .map(|s| if *s == scales::UNCHANGED { *s } else { one })
            .collect();

        // A sample of whole groups, spread evenly.
        let groups = common.div_ceil(group * row);
        let wanted = (SAMPLE / (group * row)).max(1);
        let step = groups.div_ceil(wanted).max(1);
        let count = |scales: &[i16]| -> Result<Histogram, CodecError> {
            let mut histogram = Histogram::new();
            for g in (0..groups).step_by(step) {
                let words = g * group * row..common.min((g + 1) * group * row);
                self.symbols::<W>(words, scales, |context, symbol, _| {
                    histogram.add(context, symbol)
                })?;
            }
            Ok(histogram)
        };
        let fine = count(&by_row)?;
        let coarse = if rows > 1 && options.effort != Effort::Fast {
            Some(count(&uniform)?)
        } else {
            None
        };
        let mut packed = Vec::new();
        scales::put(&by_row, &mut packed);
        let scale_bits = packed.len() as f64 * 8.0 / step as f64;
        match coarse {
            Some(coarse) if coarse.entropy() < fine.entropy() + scale_bits => {
                self.one_scale = true;
                self.scales = uniform;
                self.histogram = Some(coarse);
            }
            _ => {
                self.scales = by_row;
                self.histogram = Some(fine);
            }
        }
        Ok(())
    }

    /// Calls `each` with context, symbol and difference of every coded word of a range (rows without change are passed over).
    fn symbols<const W: usize>(
        &self,
        words: Range<usize>,
        scales: &[i16],
        mut each: impl FnMut(usize, u16, i64),
    ) -> Result<(), CodecError> {
        let prediction = self.prediction(words.clone())?;
        let target = &self.target.data[words.start * W..words.end * W];
        let float = self.target.dtype.is_some_and(DType::is_float);
        let contexts = Contexts::new(self.target.dtype);
        let mut at = words.start;
        while at < words.end {
            let row = at / self.geometry.row;
            let end = words.end.min((row + 1) * self.geometry.row);
            let scale = scales.get(row).copied().unwrap_or(scales::UNCHANGED);
            if scale != scales::UNCHANGED {
                for i in at - words.start..end - words.start {
                    let p = load::<W>(&prediction, i);
                    let d = difference::<W>(
                        order::<W>(load::<W>(target, i), float),
                        order::<W>(p, float),
                    );
                    each(contexts.of(i32::from(scale), p), token::symbol::<W>(d), d);
                }
            }
            at = end;
        }
        Ok(())
    }
}

/// The prediction of some words by a relation; borrowed where the base needs no cast.
pub(crate) fn predict(
    relation: Relation,
    dtype: Option<DType>,
    base: Option<&[u8]>,
    words: Range<usize>,
) -> Result<Cow<'_, [u8]>, CodecError> {
    let missing = CodecError::Base {
        what: "none was given, or a shorter one",
    };
    let data = base.ok_or_else(|| missing.clone())?;
    let slice = |width: usize| {
        data.get(words.start * width..words.end * width)
            .ok_or_else(|| missing.clone())
    };
    match (relation, dtype) {
        (Relation::Same { .. }, _) => Ok(Cow::Borrowed(slice(dtype.map_or(1, DType::word_bytes))?)),
        (Relation::Cast { from, .. }, Some(to)) => {
            Ok(Cow::Owned(cast_words(from, slice(from.word_bytes())?, to)))
        }
        _ => Err(missing),
    }
}

/// Scale, summed absolute update and words of one row.
fn row_scale<const W: usize>(
    dtype: Option<DType>,
    target: &[u8],
    prediction: &[u8],
) -> (i16, f64, u64) {
    let words = (target.len() / W) as u64;
    if target == prediction {
        return (scales::UNCHANGED, 0.0, words);
    }
    let mut sum = 0.0;
    for i in 0..target.len() / W {
        let (t, p) = (load::<W>(target, i), load::<W>(prediction, i));
        if t != p {
            let change = match dtype {
                Some(d) if d.is_float() => {
                    (crate::cast::word_value(d, t) - crate::cast::word_value(d, p)).abs()
                }
                _ => difference::<W>(t, p).unsigned_abs() as f64,
            };
            if change.is_finite() {
                sum += change;
            }
        }
    }
    (scales::quantise(sum / words as f64), sum, words)
}

/// Encodes one tensor. [`Self::new`] reads the whole tensor once; then every block can be encoded on its own, on any thread.
pub struct TensorEncoder<'a> {
    analysis: Analysis<'a>,
    tables: Option<Arc<TableSet>>,
    header: Vec<u8>,
}

impl<'a> TensorEncoder<'a> {
    /// Analyses `target` against `base`. Shapes and dtypes of the two may differ.
    ///
    /// # Errors
    /// Data that does not have the length dtype and shape ask for.
    pub fn new(
        target: TensorView<'a>,
        base: Option<TensorView<'a>>,
        options: &EncodeOptions,
    ) -> Result<Self, CodecError> {
        let mut analysis = Analysis::new(target, base, options)?;
        let mut header = Vec::new();
        let mut tables = None;
        let changed = analysis.scales.iter().any(|s| *s != scales::UNCHANGED);
        if let Some(histogram) = analysis.histogram.take().filter(|_| changed) {
            let own = TableSet::train(&histogram, table_limit(options.effort));
            let own_bytes = own.to_bytes();
            let shared = options
                .shared
                .as_ref()
                .and_then(|s| s.set(analysis.geometry.width));
            let scale = analysis.geometry.common as f64 / histogram.total().max(1) as f64;
            let own_wins = shared.is_none_or(|s| {
                s.cost(&histogram) * scale
                    > own.cost(&histogram) * scale + own_bytes.len() as f64 * 8.0
            });
            header.push(
                if own_wins { OWN_TABLES } else { 0 }
                    | if analysis.one_scale { ONE_SCALE } else { 0 },
            );
            put_varint(&mut header, analysis.geometry.row as u64);
            scales::put(&analysis.scales, &mut header);
            if own_wins {
                header.extend_from_slice(&own_bytes);
                tables = Some(Arc::new(own));
            } else {
                tables = shared.map(|s| Arc::new(s.clone()));
            }
        }
        Ok(Self {
            analysis,
            tables,
            header,
        })
    }

    /// What the decoder needs of this tensor besides its blocks; empty where nothing is coded against a base.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Where predictions come from: `none`, `base` or `cast`.
    pub fn predictor(&self) -> &'static str {
        match self.analysis.relation {
            Relation::None => "none",
            Relation::Same { .. } => "base",
            Relation::Cast { .. } => "cast",
        }
    }

    /// Blocks of the tensor; none for a tensor without elements.
    pub fn blocks(&self) -> usize {
        self.analysis.geometry.blocks()
    }

    /// The bytes of the target that a block covers.
    pub fn target_range(&self, block: usize) -> Range<usize> {
        self.analysis.geometry.bytes(block)
    }

    /// Appends the stored form of a block to `out`.
    ///
    /// # Errors
    /// None that the checks of [`Self::new`] leave possible; a failure is a defect and is reported, never ignored.
    pub fn encode_block(
        &self,
        block: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<BlockInfo, CodecError> {
        match self.analysis.geometry.width {
            1 => self.encode::<1>(block, scratch, out),
            2 => self.encode::<2>(block, scratch, out),
            4 => self.encode::<4>(block, scratch, out),
            _ => self.encode::<8>(block, scratch, out),
        }
    }

    fn encode<const W: usize>(
        &self,
        block: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<BlockInfo, CodecError> {
        let a = &self.analysis;
        let words = a.geometry.block(block);
        let target = a
            .target
            .data
            .get(words.start * W..words.end * W)
            .unwrap_or_default();
        let start = out.len();
        let mut changed = words.len() as u64;
        let predicted = words.start < a.geometry.common;
        if predicted {
            let prediction = a.prediction(words.clone())?;
            if prediction.as_ref() == target {
                out.push(Method::Same as u8);
                return Ok(BlockInfo {
                    method: Method::Same,
                    changed: 0,
                });
            }
            changed = 0;
            for i in 0..words.len() {
                changed += u64::from(load::<W>(target, i) != load::<W>(&prediction, i));
            }
            if let Some(tables) = &self.tables {
                out.push(Method::Delta as u8);
                self.encode_delta::<W>(words.clone(), changed, tables, scratch, out)?;
            }
        }
        let coded = out.len() - start;
        let mut method = Method::Delta;
        if coded == 0 || coded > target.len() / 2 {
            scratch.bytes.clear();
            let alone = standalone::encode(a.target.dtype, target, &mut scratch.bytes);
            if coded == 0 || scratch.bytes.len() + 1 < coded {
                out.truncate(start);
                out.push(alone as u8);
                out.extend_from_slice(&scratch.bytes);
                method = alone;
            }
        }
        Ok(BlockInfo {
            method,
            changed: self.elements(changed),
        })
    }

    /// Elements that `words` changed words stand for: packed elements are several a byte, a complex number is two words.
    fn elements(&self, words: u64) -> u64 {
        match self.analysis.target.dtype {
            Some(DType::F4) => words * 2,
            Some(DType::F6E2M3 | DType::F6E3M2) => words * 4 / 3,
            Some(DType::C64) => words.div_ceil(2),
            _ => words,
        }
    }

    /// Lanes, states and words of the coder, then the raw bits.
    fn encode_delta<const W: usize>(
        &self,
        words: Range<usize>,
        changed: u64,
        tables: &TableSet,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let lanes = lanes(words.len(), usize::try_from(changed).unwrap_or(usize::MAX));
        out.push(u8::try_from(lanes.trailing_zeros()).unwrap_or(0));
        let Scratch {
            symbols,
            words: coder_words,
            bytes,
            ..
        } = scratch;
        symbols.clear();
        bytes.clear();
        let mut raw = BitWriter::new(bytes);
        self.analysis
            .symbols::<W>(words, &self.analysis.scales, |context, symbol, d| {
                let table = tables.table(context);
                let symbol = if tables.has(table, symbol) {
                    symbol
                } else {
                    ESCAPE
                };
                token::put_raw::<W>(symbol, d, &mut raw);
                symbols.push(Coded { table, symbol });
            })?;
        raw.finish();
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
        rans::encode(symbols, tables, lanes, coder_words, out);
        Ok(())
    }
}
