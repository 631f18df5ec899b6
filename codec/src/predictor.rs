//! Where predictions come from: the base's words, cast where dtypes differ, then perhaps moved. Encoder and decoder share it.

use std::{borrow::Cow, ops::Range, sync::Arc};

use crate::{
    CodecError, DType,
    cast::cast_words,
    coding::Moved,
    geometry::Relation,
    lowrank::{Class, Update},
    shift::Shift,
};

/// What is done to the base's words.
#[derive(Clone, Debug, Default)]
pub(crate) enum Adjust {
    /// Nothing.
    #[default]
    None,
    /// A step by mantissa.
    Shift(Shift),
    /// A low-rank update is added.
    LowRank(Arc<Update>),
}

/// Predicts words of one tensor.
#[derive(Clone, Debug)]
pub(crate) struct Predictor {
    pub(crate) relation: Relation,
    /// Of the target.
    pub(crate) dtype: Option<DType>,
    pub(crate) adjust: Adjust,
}

/// Predicted words.
pub(crate) struct Prediction<'a> {
    /// Borrowed where they are the base's.
    pub(crate) words: Cow<'a, [u8]>,
    /// Where each lies within its rounding interval; empty where that is not known.
    pub(crate) classes: Vec<Class>,
}

impl Predictor {
    /// Whether words have classes.
    pub(crate) fn is_layered(&self) -> bool {
        matches!(self.adjust, Adjust::LowRank(_))
    }

    /// What is done to words, once they are in the tensor's dtype.
    pub(crate) fn moved(&self) -> Option<Moved<'_>> {
        (self.relation != Relation::None).then(|| match &self.adjust {
            Adjust::None => Moved::No,
            Adjust::Shift(shift) => Moved::Steps(shift.steps()),
            Adjust::LowRank(update) => Moved::LowRank(Arc::clone(update).into()),
        })
    }

    /// Some of the base's words, cast to the target's dtype.
    pub(crate) fn base_words<'a>(
        &self,
        base: Option<&'a [u8]>,
        words: Range<usize>,
    ) -> Result<Cow<'a, [u8]>, CodecError> {
        let missing = CodecError::Base {
            what: "none was given, or a shorter one",
        };
        let data = base.ok_or_else(|| missing.clone())?;
        let slice = |width: usize| {
            data.get(words.start * width..words.end * width)
                .ok_or_else(|| missing.clone())
        };
        match (self.relation, self.dtype) {
            (Relation::Same { .. }, _) => Ok(Cow::Borrowed(slice(
                self.dtype.map_or(1, DType::word_bytes),
            )?)),
            (Relation::Cast { from, .. }, Some(to)) => {
                Ok(Cow::Owned(cast_words(from, slice(from.word_bytes())?, to)))
            }
            _ => Err(missing),
        }
    }

    /// The prediction of some words.
    pub(crate) fn predict<'a>(
        &self,
        base: Option<&'a [u8]>,
        words: Range<usize>,
    ) -> Result<Prediction<'a>, CodecError> {
        let first = words.start;
        let mut words = self.base_words(base, words)?;
        let mut classes = Vec::new();
        match &self.adjust {
            Adjust::None => {}
            Adjust::Shift(shift) => {
                shift.apply(words.to_mut(), self.dtype.map_or(1, DType::word_bytes));
            }
            Adjust::LowRank(update) => update.apply(first, words.to_mut(), &mut classes),
        }
        Ok(Prediction { words, classes })
    }
}
