//! What becomes of each tensor: decided for all of them, shapes and all, before any work starts.

use sparse_adapter::Layout;
use sparse_store::Pair;
use sparse_svd::Precision;

use super::floats::Float;
use super::manifest::matrices;
use crate::modules::Modules;

/// What becomes of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Same,
    Twin(usize),
    /// Kept exactly, for a reason.
    Exact(&'static str),
    LowRank(Matrices),
}

/// The matrices of a tensor whose difference is approximated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrices {
    pub(crate) count: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) base: Float,
    pub(crate) tuned: Float,
    /// The largest rank whose factors are smaller than the tensor.
    pub(crate) most: usize,
}

/// What the decisions depend on.
pub(crate) struct Wishes<'w> {
    pub(crate) modules: &'w Modules,
    pub(crate) embeddings: bool,
    pub(crate) precision: Precision,
    /// The rank that is asked for, if one is.
    pub(crate) rank: Option<usize>,
}

impl Wishes<'_> {
    pub(crate) fn plan(&self, pair: &Pair<'_>) -> Plan {
        let target = pair.target;
        if let Some(of) = pair.same_as {
            return Plan::Twin(of);
        }
        if target.entry.bytes() == 0 {
            return Plan::Exact("empty");
        }
        let Some(base) = pair.base else {
            return Plan::Exact("not in the base");
        };
        if base.entry.dtype == target.entry.dtype
            && base.shape() == target.shape()
            && base.data() == target.data()
        {
            return Plan::Same;
        }
        if base.shape() != target.shape() {
            return Plan::Exact("of another shape than the base's");
        }
        let Some([count, rows, cols]) = matrices(target.shape()) else {
            return Plan::Exact("no matrix");
        };
        let (Some(base_float), Some(tuned)) = (Float::of(base.dtype()), Float::of(target.dtype()))
        else {
            return Plan::Exact("of a dtype whose differences are not decomposed");
        };
        let module = target
            .name()
            .strip_suffix(".weight")
            .unwrap_or(target.name());
        if !self.embeddings && self.modules.layout(module) == Layout::Embedding {
            return Plan::Exact("an embedding");
        }
        let bytes = rows * cols * tuned.size();
        let most = self
            .precision
            .component(rows, cols)
            .map_or(0, |component| bytes.saturating_sub(1) / component.max(1));
        let most = most.min(rows.min(cols));
        let needed = self.rank.map_or(1, |rank| rank.min(rows.min(cols)));
        if most < needed.max(1) {
            return Plan::Exact("smaller than factors of that rank");
        }
        Plan::LowRank(Matrices {
            count,
            rows,
            cols,
            base: base_float,
            tuned,
            most,
        })
    }
}
