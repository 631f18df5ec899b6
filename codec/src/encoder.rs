//! One tensor in: a header, independent blocks.

use std::{
    borrow::Cow,
    ops::Range,
    sync::{Arc, LazyLock},
};

use rayon::prelude::*;

use crate::{
    CodecError, DType, Effort, EncodeOptions, Scratch, TensorView,
    analysis::{Analysis, Learned, Seen, differing},
    bits::put_varint,
    block::{BlockInfo, Method},
    coding::{Coding, CodingTables, StripCode},
    context::Exponent,
    geometry::{BLOCK, Geometry, Relation},
    int8::{Coded, Int8},
    lowrank::LowRank,
    predictor::{Adjust, Predictor},
    scales::{self, UNCHANGED},
    standalone,
    strip::{self, Plan},
    tables::TableSet,
    train::{Lengths, train},
    trainer::{self, table_limit},
};

/// Header bit: the tensor has its own tables.
pub(crate) const OWN_TABLES: u8 = 1;
/// Header bit: the base is moved by a step that depends on its mantissa.
pub(crate) const SHIFTED: u8 = 2;
/// Header bit: a low-rank update is added to the base.
pub(crate) const LOW_RANK: u8 = 4;
/// Header bit: nothing differs from its prediction; there are no scales and tables.
pub(crate) const EXACT: u8 = 8;
/// Header byte: the tensor is quantised, and nothing else is said of it but granularity and scales.
pub(crate) const INT8: u8 = 16;
/// log2 of the words of a strip: what a CPU's second cache holds, and more where little is coded.
pub(crate) const STRIPS: std::ops::RangeInclusive<u8> = 14..=19;
const DENSE_STRIP: u8 = 17;
const SPARSE_STRIP: u8 = 18;
/// Bits a word below which a tensor counts as sparse; where they are not known, words to each changed one.
const SPARSE: f64 = 0.75;
const DENSE: usize = 10;

/// Tables that may be the model's.
#[derive(Clone, Debug)]
pub(crate) enum Tables {
    Own(Box<TableSet>),
    /// The model's, for words of this width, with a low-rank prediction or without.
    Shared(Arc<crate::SharedTables>, usize, bool),
}

impl Tables {
    pub(crate) fn get(&self) -> Option<&TableSet> {
        match self {
            Self::Own(set) => Some(set),
            Self::Shared(shared, width, layered) => shared.set(*width, *layered),
        }
    }
}

/// Encodes one tensor. [`Self::new`] reads the whole tensor once; then every block can be encoded on its own, on any thread.
pub struct TensorEncoder<'a> {
    analysis: Analysis<'a>,
    low_rank: Option<LowRank>,
    scales: Vec<i16>,
    tables: Option<Tables>,
    strip: usize,
    header: Vec<u8>,
    int8: Option<Int8<'a>>,
    /// The predicted blocks, where learning from word to word makes them smaller than tables do.
    learned: Vec<Learned>,
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
        Self::watched(target, base, None, options, &|_| ())
    }

    /// As [`Self::new`]; `seen` is told the byte ranges of the target that the analysis has read (those of the base
    /// correspond to them where dtypes are the same), so that a caller can let go of mapped pages of a large tensor.
    /// Called from any thread, in any order. `low_rank` is the prediction to use, found by [`LowRank::find`] or an adapter's.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn watched(
        target: TensorView<'a>,
        base: Option<TensorView<'a>>,
        low_rank: Option<&LowRank>,
        options: &EncodeOptions,
        seen: &Seen<'_>,
    ) -> Result<Self, CodecError> {
        let analysis = Analysis::new(target, base, low_rank)?;
        let mut this = Self {
            analysis,
            low_rank: low_rank.cloned(),
            scales: Vec::new(),
            tables: None,
            strip: 1 << DENSE_STRIP,
            header: Vec::new(),
            int8: None,
            learned: Vec::new(),
        };
        if this.analysis.geometry.common > 0 && base.is_some() {
            this.plan(options, seen)?;
            if options.effort == Effort::Max {
                this.learn(seen)?;
            }
        }
        Ok(this)
    }

    /// Stores `int8`, which was made of `target` and `base`: lossy. What a decoder makes of it is what `int8` rebuilds.
    #[must_use]
    pub fn int8(target: TensorView<'a>, base: TensorView<'a>, int8: Int8<'a>) -> Self {
        let relation = Relation::of(target.dtype, target.shape, Some((base.dtype, base.shape)));
        let mut header = vec![INT8];
        Coded::put(&int8, &mut header);
        Self {
            analysis: Analysis {
                target,
                base: Some(base),
                predictor: Predictor {
                    relation,
                    dtype: target.dtype,
                    adjust: Adjust::None,
                },
                geometry: Geometry::of(target, relation),
            },
            low_rank: None,
            scales: Vec::new(),
            tables: None,
            strip: 1 << DENSE_STRIP,
            header,
            int8: Some(int8),
            learned: Vec::new(),
        }
    }

    /// Codes the predicted blocks word by word, where few words changed, and keeps that if it is smaller than what was planned.
    fn learn(&mut self, seen: &Seen<'_>) -> Result<(), CodecError> {
        if self.tables.is_none() {
            return Ok(());
        }
        let Analysis { target, base, .. } = self.analysis;
        // Of a low-rank prediction what is learned has no use: it finds what rows have in common by itself.
        let plain = match &self.low_rank {
            Some(_) => Some(Analysis::new(target, base, None)?),
            None => None,
        };
        let analysis = plain.as_ref().unwrap_or(&self.analysis);
        let blocks = 0..analysis.geometry.common.div_ceil(BLOCK);
        let learned = blocks
            .clone()
            .into_par_iter()
            .map(|block| {
                let learned = analysis.learn(block).transpose()?;
                seen(analysis.geometry.bytes(block));
                Some(learned)
            })
            .collect::<Option<Result<Vec<_>, CodecError>>>();
        let Some(learned) = learned.transpose()? else {
            return Ok(());
        };
        let planned: usize = blocks
            .into_par_iter()
            .map_init(Scratch::default, |scratch, block| {
                let mut bytes = Vec::new();
                self.encode_block(block, scratch, &mut bytes)?;
                seen(self.target_range(block));
                Ok(bytes.len())
            })
            .collect::<Result<Vec<_>, CodecError>>()?
            .into_iter()
            .sum();
        // Flags, the strip's size and the row's go before the steps.
        let mut header = Vec::new();
        if let Adjust::Shift(shift) = &analysis.predictor.adjust {
            header.extend_from_slice(&[0; 12]);
            shift.put(&mut header);
        }
        let bytes: usize = learned.iter().map(|block| block.bytes.len()).sum();
        if bytes + header.len() >= planned + self.header.len() {
            return Ok(());
        }
        self.learned = learned;
        self.low_rank = None;
        if let Some(plain) = plain {
            self.analysis = plain;
        }
        self.tables = None;
        self.scales = Vec::new();
        self.header.clear();
        if !matches!(self.analysis.predictor.adjust, Adjust::None) {
            self.put_header(DENSE_STRIP);
        }
        Ok(())
    }

    /// Chooses tables and scales and writes the header; leaves all empty where nothing changed.
    fn plan(&mut self, options: &EncodeOptions, seen: &Seen<'_>) -> Result<(), CodecError> {
        self.plan_with(options, seen)?;
        if self.header.is_empty() && !matches!(self.analysis.predictor.adjust, Adjust::None) {
            // All is as the moved base says, but only a header can say so.
            self.put_header(DENSE_STRIP);
        }
        Ok(())
    }

    fn plan_with(&mut self, options: &EncodeOptions, seen: &Seen<'_>) -> Result<(), CodecError> {
        let geometry = &self.analysis.geometry;
        let layered = self.analysis.predictor.is_layered();
        let shared = options
            .shared
            .as_ref()
            .filter(|s| s.set(geometry.width, layered).is_some());
        let mut tables = match shared {
            Some(shared) => Tables::Shared(Arc::clone(shared), geometry.width, layered),
            None => {
                let sample = self.analysis.sample(
                    4 * trainer::sample_words(options.effort),
                    options.effort,
                    seen,
                )?;
                match trainer::tables(&[sample], options.effort) {
                    Some(set) => Tables::Own(Box::new(set)),
                    // The sample shows no change: tables for whatever the rest holds.
                    None => {
                        let all = self.analysis.sample(usize::MAX, Effort::Max, seen)?;
                        match trainer::tables(&[all], options.effort) {
                            Some(set) => Tables::Own(Box::new(set)),
                            None => return Ok(()),
                        }
                    }
                }
            }
        };
        let Some(set) = tables.get() else {
            return Ok(());
        };
        let lengths = LazyLock::new(|| Lengths::new(set));
        let (scales, changes) = self.analysis.scales(&lengths, options.effort, seen)?;
        drop(lengths);
        if scales.iter().all(|s| *s == UNCHANGED) {
            return Ok(());
        }
        let mut sparse = changes.changed * DENSE < geometry.common;
        if let Some(histogram) = changes.histogram {
            let mut bits = histogram.cost(set);
            if shared.is_some() {
                let own = train(&histogram, table_limit(options.effort));
                let mut bytes = Vec::new();
                own.put(&mut bytes);
                let cost = histogram.cost(&own) + bytes.len() as f64 * 8.0;
                if cost < bits {
                    bits = cost;
                    tables = Tables::Own(Box::new(own));
                }
            }
            sparse = bits < SPARSE * geometry.common as f64;
        }
        let strip = if sparse { SPARSE_STRIP } else { DENSE_STRIP };
        self.strip = 1 << strip;
        self.scales = scales;
        self.tables = Some(tables);
        self.put_header(strip);
        Ok(())
    }

    /// Writes the header. Without tables every word is as predicted.
    fn put_header(&mut self, strip: u8) {
        let mut flags = 0;
        if matches!(self.tables, Some(Tables::Own(_))) {
            flags |= OWN_TABLES;
        }
        flags |= match self.analysis.predictor.adjust {
            Adjust::None => 0,
            Adjust::Shift(_) => SHIFTED,
            Adjust::LowRank(_) => LOW_RANK,
        };
        if self.tables.is_none() {
            flags |= EXACT;
        }
        self.header.push(flags);
        self.header.push(strip);
        put_varint(&mut self.header, self.analysis.geometry.row as u64);
        match (&self.analysis.predictor.adjust, &self.low_rank) {
            (Adjust::Shift(shift), _) => shift.put(&mut self.header),
            (Adjust::LowRank(_), Some(low_rank)) => low_rank.put(&mut self.header),
            _ => {}
        }
        if let Some(tables) = &self.tables {
            scales::put(&self.scales, &mut self.header);
            if let Tables::Own(own) = tables {
                own.put(&mut self.header);
            }
        }
    }

    /// What the decoder needs of this tensor besides its blocks; empty where nothing is coded against a base.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Where predictions come from: `none`, `base`, `cast`, `scaled`, where the base is moved as weight decay moves it,
    /// `low_rank` or `adapter`; `int8` where the difference from the base is quantised.
    pub fn predictor(&self) -> &'static str {
        if self.int8.is_some() {
            return "int8";
        }
        let predictor = &self.analysis.predictor;
        match (&predictor.adjust, predictor.relation, &self.low_rank) {
            (_, Relation::None, _) => "none",
            (Adjust::LowRank(_), _, Some(low_rank)) => low_rank.name(),
            (Adjust::Shift(_), ..) => "scaled",
            (_, Relation::Same { .. }, _) => "base",
            (_, Relation::Cast { .. }, _) => "cast",
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

    /// The bytes that a decoder must make of a block: the target's, but for quantised tensors.
    #[must_use]
    pub fn expected(&self, block: usize) -> Cow<'a, [u8]> {
        match &self.int8 {
            Some(int8) => {
                let words = self.analysis.geometry.block(block);
                let mut bytes = vec![0; words.len() * self.analysis.geometry.width];
                int8.rebuild(words, &mut bytes);
                Cow::Owned(bytes)
            }
            None => {
                let bytes = self.target_range(block);
                Cow::Borrowed(self.analysis.target.data.get(bytes).unwrap_or_default())
            }
        }
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
        if let Some(int8) = &self.int8 {
            return self.encode_int8(int8, block, scratch, out);
        }
        if let Some(learned) = self.learned.get(block) {
            out.extend_from_slice(&learned.bytes);
            let method = match learned.bytes.len() {
                1 => Method::Same,
                _ => Method::Learned,
            };
            let changed = self.elements(learned.changed);
            return Ok(BlockInfo { method, changed });
        }
        match self.analysis.geometry.width {
            1 => self.encode::<1>(block, None, scratch, out),
            2 => self.encode::<2>(block, None, scratch, out),
            4 => self.encode::<4>(block, None, scratch, out),
            _ => self.encode::<8>(block, None, scratch, out),
        }
    }

    /// As [`Self::encode_block`], with the strips of [`Self::coded_words`] encoded elsewhere: to the same bytes, if they are what
    /// this encoder would make.
    ///
    /// # Errors
    /// As [`Self::encode_block`], and another number of strips.
    pub fn encode_coded(
        &self,
        block: usize,
        strips: &[StripCode<'_>],
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<BlockInfo, CodecError> {
        if self.coding().is_none() || strips.len() != self.coded_words(block).len() {
            return Err(CodecError::Unsupported {
                what: "strips that are not those of the block".into(),
            });
        }
        match self.analysis.geometry.width {
            2 => self.encode::<2>(block, Some(strips), scratch, out),
            _ => self.encode::<4>(block, Some(strips), scratch, out),
        }
    }

    /// How strips are coded, for an encoder elsewhere; `None` where there are none or the words are none that one takes.
    pub fn coding(&self) -> Option<Coding<'_>> {
        // An encoder elsewhere takes a base of the tensor's dtype.
        let same = matches!(self.analysis.predictor.relation, Relation::Same { .. });
        if self.int8.is_some() || !same {
            return None;
        }
        Some(Coding {
            tables: CodingTables(self.tables.as_ref()?.get()?),
            moved: self.analysis.predictor.moved()?,
            dtype: self
                .analysis
                .target
                .dtype
                .filter(DType::is_coded_elsewhere)?,
            row: self.analysis.geometry.row,
            scales: &self.scales,
        })
    }

    /// The tensor's words of each strip of a block, for an encoder elsewhere; none where it takes none.
    pub fn coded_words(&self, block: usize) -> Vec<Range<usize>> {
        let words = self.analysis.geometry.block(block);
        let coded = self.int8.is_none() && self.learned.get(block).is_none();
        if !coded || words.end > self.analysis.geometry.common {
            return Vec::new();
        }
        words
            .clone()
            .step_by(self.strip)
            .map(|from| from..words.end.min(from + self.strip))
            .collect()
    }

    fn encode_int8(
        &self,
        int8: &Int8<'a>,
        block: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Result<BlockInfo, CodecError> {
        let (words, width) = (
            self.analysis.geometry.block(block),
            self.analysis.geometry.width,
        );
        let mut rebuilt = vec![0; words.len() * width];
        int8.rebuild(words.clone(), &mut rebuilt);
        let base = self.analysis.base_words(words.clone())?;
        let pairs = rebuilt.chunks_exact(width).zip(base.chunks_exact(width));
        let changed: u64 = pairs.map(|(t, b)| u64::from(t != b)).sum();
        let method = if changed == 0 {
            Method::Same
        } else {
            Method::Int8
        };
        out.push(method as u8);
        if method == Method::Int8 {
            int8.encode(words, scratch, out);
        }
        Ok(BlockInfo { method, changed })
    }

    fn encode<const W: usize>(
        &self,
        block: usize,
        elsewhere: Option<&[StripCode<'_>]>,
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
        if words.start < a.geometry.common {
            let prediction = match elsewhere {
                Some(_) => None,
                None => Some(a.prediction(words.clone())?),
            };
            // Where the base is the prediction, the strips count as they go.
            let counted = matches!(a.predictor.adjust, Adjust::None) && self.tables.is_some();
            changed = if counted {
                0
            } else {
                differing::<W>(target, &a.base_words(words.clone())?)
            };
            let same = match (&prediction, elsewhere) {
                (Some(prediction), _) => *prediction.words == *target,
                (None, strips) => strips.unwrap_or_default().iter().all(|s| s.changed == 0),
            };
            if same {
                out.push(Method::Same as u8);
                let changed = self.elements(changed);
                return Ok(BlockInfo {
                    method: Method::Same,
                    changed,
                });
            }
            if let Some(set) = self.tables.as_ref().and_then(Tables::get) {
                out.push(Method::Delta as u8);
                let plan = Plan {
                    set,
                    exponent: Exponent::of(a.target.dtype),
                    float: a.target.dtype.is_some_and(DType::is_float),
                    row: a.geometry.row,
                    scales: &self.scales,
                };
                let mut strip = std::mem::take(&mut scratch.strip);
                for from in (0..words.len()).step_by(self.strip) {
                    let to = words.len().min(from + self.strip);
                    strip.clear();
                    let bytes = from * W..to * W;
                    let code = elsewhere.and_then(|strips| strips.get(from / self.strip));
                    let moved = match (&prediction, code) {
                        (Some(prediction), _) => strip::encode::<W>(
                            &plan,
                            words.start + from..words.start + to,
                            (&target[bytes.clone()], &prediction.words[bytes]),
                            prediction.classes.get(from..to).unwrap_or_default(),
                            scratch,
                            &mut strip,
                        ),
                        (None, Some(code)) => {
                            strip::put(code, to - from, &mut strip);
                            usize::try_from(code.changed).unwrap_or(0)
                        }
                        (None, None) => 0,
                    };
                    if counted {
                        changed += moved as u64;
                    }
                    if from == 0 {
                        // The other strips will be about as long.
                        let more = words.len().div_ceil(self.strip);
                        out.reserve(more * (strip.len() + strip.len() / 16 + 8));
                    }
                    put_varint(out, strip.len() as u64);
                    out.extend_from_slice(&strip);
                }
                scratch.strip = strip;
            }
        }
        let coded = out.len() - start;
        let mut method = Method::Delta;
        // A hundredth is left to what the estimate may be off by.
        let worse =
            || standalone::estimate(a.target.dtype, target).is_some_and(|n| coded <= n - n / 100);
        if coded == 0 || coded > target.len() / 2 && !worse() {
            let mut alone = std::mem::take(&mut scratch.strip);
            let kind = standalone::encode(a.target.dtype, target, scratch, &mut alone);
            if coded == 0 || alone.len() + 1 < coded {
                out.truncate(start);
                out.push(kind as u8);
                out.extend_from_slice(&alone);
                method = kind;
            }
            scratch.strip = alone;
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
}
