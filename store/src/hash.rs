//! SHA-256 (what the outside world checks by) and BLAKE3 (what is compared inside).

use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::Path;

use sha2::Digest as _;

use crate::error::{During, StoreError};
use crate::map::Map;

/// How much is hashed before its pages are let go: large enough for every core, small enough for any machine.
const WINDOW: usize = 32 << 20;

/// SHA-256 of a stream, by the processor's own instructions where it has them.
#[derive(Clone, Debug, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// An empty stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes to the stream.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest of everything added.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    /// The digest of everything added, in lower-case hexadecimal.
    #[must_use]
    pub fn finish_hex(self) -> String {
        hex(&self.finish())
    }
}

/// SHA-256 of bytes in memory, in lower-case hexadecimal.
#[must_use]
pub fn sha256_hex(data: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(data);
    hasher.finish_hex()
}

/// SHA-256 of a file, in lower-case hexadecimal, read in pieces.
pub fn sha256_file(path: &Path) -> Result<String, StoreError> {
    let mut hasher = Sha256::new();
    read_in_pieces(path, |piece| hasher.update(piece))?;
    Ok(hasher.finish_hex())
}

/// BLAKE3 of a file, in lower-case hexadecimal, on all cores, with bounded resident memory.
pub fn blake3_file(path: &Path) -> Result<String, StoreError> {
    let map = Map::open(path)?;
    Ok(blake3_map(&map, &mut |done| map.release(done))
        .to_hex()
        .to_string())
}

/// BLAKE3 of bytes in memory, in lower-case hexadecimal.
#[must_use]
pub fn blake3_hex(data: &[u8]) -> String {
    blake3::hash(data).to_hex().to_string()
}

/// BLAKE3 of a mapped file on all cores. `advance` is told the range that was hashed since its last call: the pages behind it may
/// be let go.
pub(crate) fn blake3_map(map: &Map, advance: &mut dyn FnMut(Range<u64>)) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut start = 0_u64;
    let window = WINDOW as u64;
    for piece in map.bytes().chunks(WINDOW) {
        let end = start + piece.len() as u64;
        map.prefetch(end..end.saturating_add(window));
        hasher.update_rayon(piece);
        advance(start..end);
        start = end;
    }
    hasher.finalize()
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for &byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Reads a file from start to end in pieces of 1 MiB.
pub(crate) fn read_in_pieces(path: &Path, mut each: impl FnMut(&[u8])) -> Result<u64, StoreError> {
    let mut file = File::open(path).during("open", path)?;
    let mut buffer = vec![0_u8; 1 << 20];
    let mut total = 0;
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StoreError::io("read", path, error)),
        };
        each(&buffer[..count]);
        total += count as u64;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        assert_eq!(
            sha256_hex(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            blake3_hex(b""),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn files_and_memory_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for size in [0_usize, 1, 4096, (1 << 20) + 17, WINDOW + 5] {
            let data: Vec<u8> = (0..size)
                .map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1])
                .collect();
            std::fs::write(&path, &data).unwrap();
            assert_eq!(sha256_file(&path).unwrap(), sha256_hex(&data));
            assert_eq!(blake3_file(&path).unwrap(), blake3_hex(&data));
        }
        assert!(sha256_file(&dir.path().join("missing")).is_err());
    }
}
