//! Which hashes occur more than once.

/// Hashes that occur more than once: all that do, and a few whose place in the table is that of another (Bloom, "Space/Time
/// Trade-offs in Hash Coding with Allowable Errors", 1970).
#[derive(Debug)]
pub(super) struct Repeated {
    bits: Vec<u64>,
    shift: u32,
}

impl Repeated {
    /// Bits of the table for each hash: one in sixteen shares its place.
    const EACH: usize = 16;

    pub(super) fn new(hashes: &[u64]) -> Self {
        let places = hashes.len().max(4).saturating_mul(Self::EACH);
        let places = places.next_power_of_two();
        let mut once = vec![0_u64; places / 64];
        let mut repeated = Self {
            bits: once.clone(),
            shift: 64 - places.trailing_zeros(),
        };
        for &hash in hashes {
            let (word, bit) = repeated.place(hash);
            repeated.bits[word] |= once[word] & bit;
            once[word] |= bit;
        }
        repeated
    }

    pub(super) fn has(&self, hash: u64) -> bool {
        let (word, bit) = self.place(hash);
        self.bits[word] & bit != 0
    }

    fn place(&self, hash: u64) -> (usize, u64) {
        let place = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift;
        (usize::try_from(place >> 6).unwrap_or(0), 1 << (place & 63))
    }
}
