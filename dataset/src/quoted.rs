//! Bytes packed as one zstd frame that may quote others, which both sides have.

use std::io::{Read as _, Write as _};

use crate::DatasetError;

fn failed(error: std::io::Error) -> DatasetError {
    DatasetError::internal(format!("zstd failed: {error}"))
}

/// The least window that reaches over everything.
fn window(bytes: u64) -> u32 {
    (u64::BITS - bytes.max(1 << 10).leading_zeros()).min(31)
}

/// Packs bytes that may quote `known`.
pub(crate) fn pack(bytes: &[u8], known: &[u8], level: i32) -> Result<Vec<u8>, DatasetError> {
    let mut encoder =
        zstd::stream::write::Encoder::with_ref_prefix(Vec::new(), level, known).map_err(failed)?;
    encoder.include_checksum(false).map_err(failed)?;
    encoder
        .window_log(window((known.len() + bytes.len()) as u64))
        .map_err(failed)?;
    encoder.write_all(bytes).map_err(failed)?;
    encoder.finish().map_err(failed)
}

/// What [`pack`] has packed, at most `most` bytes; `None` if it is more, or nothing that was packed.
pub(crate) fn unpack(
    packed: &[u8],
    known: &[u8],
    most: u64,
) -> Result<Option<Vec<u8>>, DatasetError> {
    let mut decoder =
        zstd::stream::read::Decoder::with_ref_prefix(packed, known).map_err(failed)?;
    decoder
        .window_log_max(window(most.saturating_add(known.len() as u64)))
        .map_err(failed)?;
    let mut bytes = Vec::new();
    let unpacked = decoder.take(most.saturating_add(1)).read_to_end(&mut bytes);
    Ok((unpacked.is_ok() && bytes.len() as u64 <= most).then_some(bytes))
}
