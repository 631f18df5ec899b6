//! A few bytes of a tensor that tell most tensors apart, without reading all of it.

/// Windows taken from a tensor, spread evenly.
const WINDOWS: usize = 8;
/// Bytes of each.
const WIDTH: usize = 64;

/// Feeds up to 512 bytes of `data`, spread over it, to `hasher`: everything of what is small.
pub(crate) fn sample(data: &[u8], hasher: &mut blake3::Hasher) {
    if data.len() <= WINDOWS * WIDTH {
        hasher.update(data);
        return;
    }
    let last = data.len() - WIDTH;
    for window in 0..WINDOWS {
        // In 128 bits: the product may not fit 64.
        let start = last as u128 * window as u128 / (WINDOWS as u128 - 1);
        let start = usize::try_from(start).unwrap_or(last);
        hasher.update(&data[start..start + WIDTH]);
    }
}

/// The hash of the sample and the length.
pub(crate) fn sample_hash(data: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(data.len() as u64).to_le_bytes());
    sample(data, &mut hasher);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_and_last_bytes_are_in_every_sample() {
        for len in [1_usize, 511, 512, 513, 100_000] {
            let data = vec![0_u8; len];
            for at in [0, len - 1] {
                let mut other = data.clone();
                other[at] = 1;
                assert_ne!(sample_hash(&data), sample_hash(&other), "{len} {at}");
            }
        }
        assert_ne!(sample_hash(&[]), sample_hash(&[0]));
    }
}
