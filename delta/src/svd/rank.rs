//! What decides the ranks of an approximation.

use crate::DeltaError;

/// The largest rank that is looked for where a rule decides, unless another is given.
pub(super) const MOST: usize = 256;
/// How many times the even share of a budget one matrix may get.
pub(super) const GENEROUS: usize = 4;

/// What decides the ranks.
#[derive(Clone, Debug, PartialEq)]
pub enum SvdRank {
    /// These ranks, each of which can be rebuilt from the one artifact; the largest is what it holds.
    Fixed(Vec<usize>),
    /// All singular values that stand out of the rounding noise of both models' dtypes.
    Auto,
    /// As many as hold this share of each difference's energy.
    Energy(f64),
    /// As many as fit in so many bytes of factors, where they hold the most energy.
    Bytes(u64),
}

impl Default for SvdRank {
    fn default() -> Self {
        Self::Fixed(vec![16])
    }
}

impl SvdRank {
    /// The rule that a caller's options give: at most one of them.
    ///
    /// # Errors
    /// Several of them, and numbers that are none of theirs.
    pub fn choose(
        rank: Option<&str>,
        ranks: Option<Vec<u64>>,
        energy: Option<f64>,
        bytes: Option<f64>,
    ) -> Result<Self, DeltaError> {
        let given = [
            rank.is_some(),
            ranks.is_some(),
            energy.is_some(),
            bytes.is_some(),
        ];
        if given.into_iter().filter(|given| *given).count() > 1 {
            return Err(DeltaError::usage(
                "rank, ranks, energy and bytes each decide the ranks: give one of them",
            ));
        }
        if let Some(share) = energy {
            return Ok(Self::Energy(share));
        }
        if let Some(bytes) = bytes {
            if !(1.0..1e18).contains(&bytes) {
                return Err(DeltaError::usage(format!(
                    "{bytes} is no number of bytes: give, say, 50e6"
                )));
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and 1e18"
            )]
            return Ok(Self::Bytes(bytes as u64));
        }
        let ranks = match (rank, ranks) {
            (Some("auto"), _) => return Ok(Self::Auto),
            (Some(rank), _) => vec![rank.parse().map_err(|_| {
                DeltaError::usage(format!(
                    "{rank:?} is no rank: give a number, say 16, or auto"
                ))
            })?],
            (None, Some(ranks)) => ranks,
            (None, None) => return Ok(Self::default()),
        };
        let number = |rank: u64| usize::try_from(rank).unwrap_or(usize::MAX);
        Ok(Self::Fixed(ranks.into_iter().map(number).collect()))
    }
}

impl std::fmt::Display for SvdRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(ranks) => {
                let ranks: Vec<String> = ranks.iter().map(ToString::to_string).collect();
                write!(f, "rank {}", ranks.join(", "))
            }
            Self::Auto => write!(f, "auto"),
            Self::Energy(share) => write!(f, "energy {share}"),
            Self::Bytes(bytes) => write!(f, "bytes {bytes}"),
        }
    }
}
