//! The work on one tensor: its decompositions, then its factors as stored, and how far off they are.

use rayon::prelude::*;
use sparse_codec::{EncodeOptions, TensorView};
use sparse_gpu::{GpuError, SvdStreamed};
use sparse_store::Pair;
use sparse_svd::{Factors, Measured, Precision, Rank, Signs, Svd, SvdError};

use super::apply::Approximation;
use super::floats::Float;
use super::manifest::{Kept, Quality, SvdTensor};
use super::plan::{Matrices, Plan};
use super::resume::Resume;
use super::source::Difference;
use crate::DeltaError;
use crate::progress::Stop;
use crate::tensor::Form;

/// What work on any tensor needs.
pub(crate) struct Units<'u> {
    pub(crate) rank: Rank,
    pub(crate) precision: Precision,
    pub(crate) signs: bool,
    pub(crate) resume: Option<Resume>,
    pub(crate) device: &'u SvdStreamed,
    pub(crate) stop: &'u Stop,
}

/// A tensor that is done.
pub(crate) struct Done {
    pub(crate) tensor: SvdTensor,
    pub(crate) data: Vec<u8>,
    pub(crate) signs: Vec<u8>,
    /// How far off it is, for each rank; nothing where it is exact.
    pub(crate) measured: Vec<Measured>,
    /// The factors as stored, of a single matrix.
    pub(crate) factors: Option<Factors>,
}

/// The matrices of one tensor, decomposed; none where they hold what is no number.
pub(crate) type Decomposed = Option<Vec<Svd>>;

impl Units<'_> {
    fn difference<'p>(
        &'p self,
        pair: &Pair<'p>,
        matrices: Matrices,
        number: usize,
    ) -> Difference<'p> {
        let part = |data: &'p [u8], size: usize| {
            let bytes = matrices.rows * matrices.cols * size;
            data.get(number * bytes..(number + 1) * bytes)
                .unwrap_or_default()
        };
        let base = pair.base.map(|base| base.data()).unwrap_or_default();
        Difference {
            rows: matrices.rows,
            cols: matrices.cols,
            base: (matrices.base, part(base, matrices.base.size())),
            tuned: (
                matrices.tuned,
                part(pair.target.data(), matrices.tuned.size()),
            ),
            stop: self.stop,
        }
    }

    /// Decomposes the difference of each matrix of a tensor.
    pub(crate) fn decompose(
        &self,
        unit: usize,
        pair: &Pair<'_>,
        matrices: Matrices,
    ) -> Result<Decomposed, DeltaError> {
        let rank = match self.rank {
            Rank::Fixed(rank) => Rank::Fixed(rank.min(matrices.most)),
            Rank::Auto { max } => Rank::Auto {
                max: max.min(matrices.most),
            },
            Rank::Energy { share, max } => Rank::Energy {
                share,
                max: max.min(matrices.most),
            },
        };
        let found = (0..matrices.count)
            .into_par_iter()
            .map(|number| {
                self.stop.check()?;
                let shape = (matrices.rows, matrices.cols);
                if let Some(svd) = self
                    .resume
                    .as_ref()
                    .and_then(|r| r.take(unit, number, shape))
                {
                    return Ok(Some(svd));
                }
                match self.decomposed(&self.difference(pair, matrices, number), rank) {
                    Ok(svd) => {
                        if let Some(resume) = &self.resume {
                            resume.keep(unit, number, &svd)?;
                        }
                        Ok(Some(svd))
                    }
                    Err(GpuError::Svd(SvdError::NotFinite)) => Ok(None),
                    Err(GpuError::Svd(error)) => Err(failed(pair, error)),
                    Err(error) => Err(error.into()),
                }
            })
            .collect::<Result<Vec<_>, DeltaError>>()?;
        Ok(found.into_iter().collect())
    }

    /// A difference's decomposition, by a GPU where one does it.
    fn decomposed(&self, source: &Difference<'_>, rank: Rank) -> Result<Svd, GpuError> {
        let shape = [source.rows as u64, source.cols as u64];
        let view = |(float, data)| TensorView {
            dtype: Some(Float::dtype(float)),
            shape: &shape,
            data,
        };
        let goes_on = || {
            if self.stop.is_set() {
                Err(SvdError::Stopped)
            } else {
                Ok(())
            }
        };
        let (tuned, base) = (view(source.tuned), view(source.base));
        match self.device.decompose(tuned, base, rank, &goes_on)? {
            Some(svd) => Ok(svd),
            None => Ok(Svd::new(source, rank)?),
        }
    }

    /// The stored form of a decomposed tensor, measured at each of `ranks`.
    pub(crate) fn store(
        &self,
        pair: &Pair<'_>,
        matrices: Matrices,
        svds: &[Svd],
        ranks: &[usize],
    ) -> Result<Done, DeltaError> {
        let fail = |error| failed(pair, error);
        let (mut data, mut stored) = (Vec::new(), Vec::new());
        for svd in svds {
            let (bytes, factors) = svd.factors().stored(self.precision).map_err(fail)?;
            data.extend(bytes);
            stored.push(factors);
        }
        let (mut measured, mut quality, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        let mut signs_bytes = Vec::new();
        for rank in ranks {
            let mut sum = Measured::default();
            let mut hash = blake3::Hasher::new();
            for (number, factors) in stored.iter().enumerate() {
                let source = self.difference(pair, matrices, number);
                let factors = factors.truncated(*rank);
                let (found, signs) = if self.signs {
                    let (found, signs) = Measured::with_signs(&source, &factors).map_err(fail)?;
                    signs_bytes.extend(signs.encode());
                    (found, Some(signs))
                } else {
                    (
                        Measured::new(&source, &factors).map_err(fail)?,
                        None::<Signs>,
                    )
                };
                sum = sum.and(&found);
                let approximation = Approximation {
                    factors,
                    signs,
                    base: source.base,
                    dtype: matrices.tuned,
                };
                approximation.each(|bytes| {
                    hash.update(bytes);
                    self.stop.check()
                })?;
            }
            let kept = |svd: &Svd| svd.rank().min(*rank);
            let sigma_k = svds
                .iter()
                .filter_map(|svd| svd.sigmas().get(kept(svd).checked_sub(1)?).copied())
                .fold(f64::INFINITY, f64::min);
            quality.push(quality_of(
                svds.iter().map(kept).max().unwrap_or(0),
                &sum,
                if sigma_k.is_finite() { sigma_k } else { 0.0 },
            ));
            measured.push(sum);
            hashes.push(hash.finalize().to_hex().to_string());
        }
        let sum = |of: fn(&Svd) -> f64| svds.iter().map(of).sum::<f64>();
        let energy = sum(Svd::energy);
        let mut tensor = described(pair, Kept::LowRank, "");
        tensor.ranks = svds.iter().map(|svd| svd.rank() as u64).collect();
        tensor.quality = quality;
        tensor.blake3 = hashes;
        tensor.sigma_1 = svds
            .iter()
            .filter_map(|svd| svd.sigmas().first().copied())
            .fold(0.0, f64::max);
        tensor.noise_share = if energy > 0.0 {
            sum(|svd| svd.noise().energy) / energy
        } else {
            0.0
        };
        tensor.effective_rank = sum(Svd::effective_rank) / svds.len().max(1) as f64;
        tensor.stored_bytes = (data.len() + signs_bytes.len()) as u64;
        Ok(Done {
            tensor,
            data,
            signs: signs_bytes,
            measured,
            factors: (matrices.count == 1)
                .then(|| stored.into_iter().next())
                .flatten(),
        })
    }

    /// A tensor of which no factors are kept.
    pub(crate) fn exact(&self, pair: &Pair<'_>, plan: Plan) -> Result<Done, DeltaError> {
        let (kept, why) = match plan {
            Plan::Same => (Kept::Same, ""),
            Plan::Twin(_) => (Kept::Twin, ""),
            Plan::Exact(why) => (Kept::Exact, why),
            Plan::LowRank(_) => (Kept::Exact, "infinite or NaN elements"),
        };
        let mut tensor = described(pair, kept, why);
        let mut data = Vec::new();
        if let Plan::Twin(of) = plan {
            tensor.of = Some(of as u64);
            tensor.base = None;
        } else {
            let bytes = pair.target.data();
            tensor.blake3 = vec![blake3::hash(bytes).to_hex().to_string()];
            if kept == Kept::Exact && !bytes.is_empty() {
                let form = Form::of(pair.target);
                let base = pair.base.map(|base| (base, Form::of(base)));
                let view = base.as_ref().map(|(base, form)| form.view(base.data()));
                let options = EncodeOptions::default();
                data = sparse_codec::encode_buffer_by(form.view(bytes), view, None, &options)
                    .map_err(|source| DeltaError::Codec {
                        file: pair.target.file.name.clone(),
                        tensor: pair.target.name().to_owned(),
                        source,
                    })?;
            }
        }
        tensor.stored_bytes = data.len() as u64;
        Ok(Done {
            tensor,
            data,
            signs: Vec::new(),
            measured: Vec::new(),
            factors: None,
        })
    }
}

/// How far off, in the manifest's terms.
pub(crate) fn quality_of(rank: usize, measured: &Measured, sigma_k: f64) -> Quality {
    Quality {
        rank: rank as u64,
        captured_energy: measured.captured(),
        relative_error: measured.relative(),
        max_abs_error: measured.max_abs,
        mean_abs_error: measured.mean_abs(),
        sigma_k,
    }
}

fn described(pair: &Pair<'_>, kept: Kept, why: &str) -> SvdTensor {
    SvdTensor {
        tensor: pair.target.name().to_owned(),
        dtype: pair.target.entry.dtype.clone(),
        shape: pair.target.shape().to_vec(),
        kept,
        why: why.to_owned(),
        base: pair
            .base
            .map(|base| [base.file.name.clone(), base.name().to_owned()]),
        of: None,
        blob: None,
        signs: None,
        ranks: Vec::new(),
        quality: Vec::new(),
        blake3: Vec::new(),
        sigma_1: 0.0,
        noise_share: 0.0,
        effective_rank: 0.0,
        bytes: pair.target.entry.bytes(),
        stored_bytes: 0,
    }
}

fn failed(pair: &Pair<'_>, error: SvdError) -> DeltaError {
    match error {
        SvdError::Stopped => DeltaError::Cancelled,
        source => DeltaError::Svd {
            file: pair.target.file.name.clone(),
            tensor: pair.target.name().to_owned(),
            source,
        },
    }
}
