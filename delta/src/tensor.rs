//! Tensors as the codec is shown them.

use sparse_codec::{DType, TensorView};
use sparse_store::{Model, TensorHandle};

use crate::index::BaseRef;

/// Dtype and shape for the codec: those of the file, or plain bytes where the dtype is unknown or does not explain the
/// length. Encoder and decoder derive them from the same header, so they agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) dtype: Option<DType>,
    pub(crate) shape: Vec<u64>,
}

impl Form {
    pub(crate) fn new(dtype: &str, shape: &[u64], bytes: u64) -> Self {
        if let Some(known) = DType::parse(dtype) {
            let bits = shape
                .iter()
                .try_fold(u64::from(known.bits()), |n, d| n.checked_mul(*d));
            if bits.is_some() && bits == bytes.checked_mul(8) {
                return Self {
                    dtype: Some(known),
                    shape: shape.to_vec(),
                };
            }
        }
        Self {
            dtype: None,
            shape: vec![bytes],
        }
    }

    pub(crate) fn of(tensor: TensorHandle<'_>) -> Self {
        Self::new(&tensor.entry.dtype, tensor.shape(), tensor.entry.bytes())
    }

    pub(crate) fn view<'a>(&'a self, data: &'a [u8]) -> TensorView<'a> {
        TensorView {
            dtype: self.dtype,
            shape: &self.shape,
            data,
        }
    }
}

/// Finds the tensor a reference means.
pub(crate) fn find_base<'a>(
    base: &'a Model,
    reference: &BaseRef,
    file: &str,
    name: &str,
) -> Option<TensorHandle<'a>> {
    let (file, name) = match reference {
        BaseRef::None => return None,
        BaseRef::SameName => (Some(file), name),
        BaseRef::Named { file, name } => (file.as_deref(), name.as_str()),
    };
    let in_file = file.and_then(|file| base.file(file)).and_then(|file| {
        let entry = file
            .header()
            .entries
            .iter()
            .find(|entry| entry.name == name)?;
        Some(TensorHandle { file, entry })
    });
    in_file.or_else(|| base.tensor(name))
}

/// The shortest reference that finds `tensor` again.
pub(crate) fn base_ref(base: &Model, tensor: TensorHandle<'_>, file: &str, name: &str) -> BaseRef {
    let candidates = [
        BaseRef::SameName,
        BaseRef::Named {
            file: None,
            name: tensor.name().into(),
        },
        BaseRef::Named {
            file: Some(tensor.file.name.clone()),
            name: tensor.name().into(),
        },
    ];
    let found = |reference: &BaseRef| {
        find_base(base, reference, file, name)
            .is_some_and(|found| std::ptr::eq(found.entry, tensor.entry))
    };
    candidates.into_iter().find(found).unwrap_or(BaseRef::None)
}

/// The base's safetensors headers one after another: what the fine-tune's are compressed with.
pub(crate) fn header_prefix(base: &Model) -> Vec<u8> {
    let mut prefix = Vec::new();
    for file in base.files() {
        if prefix.len() as u64 + file.header_bytes().len() as u64 > crate::blobs::MAX_PREFIX {
            break;
        }
        prefix.extend_from_slice(file.header_bytes());
    }
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_dtypes_are_bytes() {
        assert_eq!(
            Form::new("BF16", &[2, 3], 12),
            Form {
                dtype: DType::parse("BF16"),
                shape: vec![2, 3]
            }
        );
        assert_eq!(
            Form::new("Q7", &[2, 3], 12),
            Form {
                dtype: None,
                shape: vec![12]
            }
        );
        assert_eq!(
            Form::new("BF16", &[2, 3], 13),
            Form {
                dtype: None,
                shape: vec![13]
            }
        );
        assert_eq!(
            Form::new("BF16", &[u64::MAX, 3], 13),
            Form {
                dtype: None,
                shape: vec![13]
            }
        );
        assert_eq!(Form::new("F32", &[], 4).shape, Vec::<u64>::new());
    }
}
