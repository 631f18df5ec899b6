//! The tensors of a pair of models, and what becomes of each.

use rayon::ThreadPool;
use rayon::prelude::*;
use sparse_store::Pair;
use sparse_svd::{Precision, Svd};

use crate::DeltaError;
use crate::progress::Ticker;
use crate::svd::plan::Plan;
use crate::svd::units::{Decomposed, Done, Units};

/// The tensors of a pair of models, and what is to become of them.
pub(super) struct Work<'w> {
    pub(super) pairs: &'w [Pair<'w>],
    pub(super) plans: &'w [Plan],
    pub(super) units: &'w Units<'w>,
    pub(super) ticker: &'w Ticker,
    pub(super) pool: &'w ThreadPool,
}

impl Work<'_> {
    /// How many tensors are worked on before the results are written.
    pub(super) fn batch(&self) -> usize {
        self.pool.current_num_threads() * 2
    }

    /// One tensor, from its decompositions where they are known.
    pub(super) fn unit(
        &self,
        number: usize,
        known: Option<Decomposed>,
        ranks: &[usize],
    ) -> Result<Done, DeltaError> {
        self.units.stop.check()?;
        let (Some(pair), Some(plan)) = (self.pairs.get(number), self.plans.get(number)) else {
            return Err(DeltaError::internal("no such tensor"));
        };
        let done = match *plan {
            Plan::LowRank(matrices) => {
                let svds = match known {
                    Some(svds) => svds,
                    None => self.units.decompose(number, pair, matrices)?,
                };
                match svds {
                    Some(svds) => {
                        let all = [usize::MAX];
                        let ranks = if ranks.is_empty() { &all } else { ranks };
                        self.units.store(pair, matrices, &svds, ranks)
                    }
                    None => self.units.exact(pair, *plan),
                }
            }
            plan => self.units.exact(pair, plan),
        };
        self.ticker.add(pair.target.entry.bytes());
        pair.target.release();
        done
    }

    /// The decompositions of all tensors, each of the rank that it gets of the budget.
    pub(super) fn allocate(
        &self,
        budget: u64,
        precision: Precision,
    ) -> Result<Vec<Option<Decomposed>>, DeltaError> {
        let numbers: Vec<usize> = (0..self.pairs.len()).collect();
        let mut all: Vec<Option<Decomposed>> = Vec::new();
        for batch in numbers.chunks(self.batch()) {
            all.extend(self.pool.install(|| {
                batch
                    .par_iter()
                    .map(|number| match self.plans.get(*number) {
                        Some(Plan::LowRank(matrices)) => self
                            .units
                            .decompose(*number, &self.pairs[*number], *matrices)
                            .map(Some),
                        _ => Ok(None),
                    })
                    .collect::<Result<Vec<_>, DeltaError>>()
            })?);
        }
        let mut svds: Vec<&mut Svd> = all
            .iter_mut()
            .flatten()
            .flatten()
            .flat_map(|svds| svds.iter_mut())
            .collect();
        let costs: Vec<(Vec<f64>, u64)> = svds
            .iter()
            .map(|svd| {
                let (rows, cols) = svd.shape();
                let bytes = precision.component(rows, cols).unwrap_or(usize::MAX);
                (svd.sigmas().to_vec(), bytes as u64)
            })
            .collect();
        let costs: Vec<(&[f64], u64)> = costs
            .iter()
            .map(|(s, bytes)| (s.as_slice(), *bytes))
            .collect();
        for (svd, rank) in svds.iter_mut().zip(sparse_svd::allocate(&costs, budget)) {
            **svd = svd.truncated(rank);
        }
        Ok(all)
    }
}
