//! How a module's factors lie to its weight.

/// Which product of the factors is added to the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[out, in]` weights: B A.
    Linear,
    /// `[in, out]` weights, as GPT-2's `Conv1D` has them: (B A)^T.
    Transposed,
    /// `[vocabulary, dimensions]` weights of an embedding: (B A)^T.
    Embedding,
}

impl Layout {
    /// Whether the update is the transposed product.
    #[must_use]
    pub fn is_transposed(self) -> bool {
        self != Self::Linear
    }

    /// What follows a module's name in the keys of the two factors, A first.
    #[must_use]
    pub fn keys(self) -> [&'static str; 2] {
        match self {
            Self::Embedding => [".lora_embedding_A", ".lora_embedding_B"],
            _ => [".lora_A.weight", ".lora_B.weight"],
        }
    }
}

/// The transpose of a row-major matrix of elements of `size` bytes, with `cols` to a row.
pub(crate) fn transposed(data: &[u8], cols: usize, size: usize) -> Vec<u8> {
    let rows = data.len() / size.max(1) / cols.max(1);
    let mut out = vec![0; data.len()];
    for (i, row) in data.chunks_exact((cols * size).max(1)).enumerate() {
        for (j, element) in row.chunks_exact(size.max(1)).enumerate() {
            let at = (j * rows + i) * size;
            if let Some(to) = out.get_mut(at..at + size) {
                to.copy_from_slice(element);
            }
        }
    }
    out
}
