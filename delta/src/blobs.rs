//! Small things in a payload: headers and carried files, compressed by zstd where that makes them smaller.

use std::io::{Read, Write};
use std::path::Path;

use crate::DeltaError;
use crate::error::During;
use crate::manifest::Blob;
use crate::payload::{PayloadReader, PayloadWriter};

/// What is at most this long gets the most thorough compression.
const THOROUGH: usize = 4 << 20;
/// The longest prefix that is kept in memory.
pub(crate) const MAX_PREFIX: u64 = 64 << 20;
/// zstd's own bound for a window on 64-bit machines.
const MAX_WINDOW_LOG: u32 = 31;

/// The window that reaches over prefix and content.
fn window_log(prefix: usize, content: u64) -> u32 {
    let span = (prefix as u64).saturating_add(content).max(1 << 10);
    (u64::BITS - span.leading_zeros()).clamp(10, MAX_WINDOW_LOG)
}

/// Compresses `content`, given `prefix`; the content itself where that is no larger.
pub(crate) fn pack(content: &[u8], prefix: &[u8]) -> Result<Vec<u8>, DeltaError> {
    let level = if content.len() <= THOROUGH { 19 } else { 9 };
    let packed = pack_with(content, prefix, level)
        .map_err(|error| DeltaError::internal(format!("zstd failed: {error}")))?;
    Ok(if packed.len() < content.len() {
        packed
    } else {
        content.to_vec()
    })
}

fn pack_with(content: &[u8], prefix: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(Vec::new(), level, prefix)?;
    encoder.include_checksum(false)?;
    encoder.include_contentsize(false)?;
    // Told nothing, it makes tables for megabytes of content: a hundred of them to clear, for a configuration of some lines.
    encoder.set_pledged_src_size(Some(content.len() as u64))?;
    if !prefix.is_empty() {
        encoder.long_distance_matching(prefix.len() > THOROUGH)?;
        encoder.window_log(window_log(prefix.len(), content.len() as u64))?;
    }
    encoder.write_all(content)?;
    encoder.finish()
}

/// Adds packed content to a payload.
pub(crate) fn store(
    writer: &mut PayloadWriter,
    content: &[u8],
    prefix: &[u8],
) -> Result<Blob, DeltaError> {
    let packed = pack(content, prefix)?;
    let (payload, offset) = writer.append(&packed)?;
    Ok(Blob {
        payload,
        offset,
        size: packed.len() as u64,
        raw: content.len() as u64,
    })
}

/// Compresses a file of any size into a payload, in pieces. `each` sees the content as it passes.
pub(crate) fn store_file(
    writer: &mut PayloadWriter,
    path: &Path,
    mut each: impl FnMut(&[u8]) -> Result<(), DeltaError>,
) -> Result<Blob, DeltaError> {
    let mut file = std::fs::File::open(path).during("open", path)?;
    let (payload, offset) = writer.begin(MAX_WINDOW_LOG as usize)?;
    let mut raw = 0_u64;
    let failed = |error: std::io::Error| DeltaError::internal(format!("zstd failed: {error}"));
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 6).map_err(failed)?;
    encoder.include_checksum(false).map_err(failed)?;
    encoder.long_distance_matching(true).map_err(failed)?;
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(DeltaError::io("read", path, error)),
        };
        each(&buffer[..count])?;
        raw += count as u64;
        encoder.write_all(&buffer[..count]).map_err(failed)?;
        writer.write(encoder.get_ref())?;
        encoder.get_mut().clear();
    }
    let rest = encoder.finish().map_err(failed)?;
    writer.write(&rest)?;
    // A content that happens to take as many bytes as its frame would be read as if it were stored plainly.
    if writer.offset() - offset == raw {
        writer.write(&SKIPPABLE)?;
    }
    Ok(Blob {
        payload,
        offset,
        size: writer.offset() - offset,
        raw,
    })
}

/// An empty skippable frame: zstd decoders pass over it.
const SKIPPABLE: [u8; 8] = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];

/// Unpacks a blob piece by piece; it must give exactly `raw` bytes.
pub(crate) fn unpack_to(
    reader: &PayloadReader,
    blob: &Blob,
    prefix: &[u8],
    mut each: impl FnMut(&[u8]) -> Result<(), DeltaError>,
) -> Result<(), DeltaError> {
    let path = || reader.path(blob.payload);
    let corrupt = |problem: &str| {
        DeltaError::corrupt(
            path(),
            format!("the {} bytes at {} {problem}", blob.size, blob.offset),
        )
    };
    let source = reader.reader(blob);
    let mut input: Box<dyn Read + '_> = if blob.size == blob.raw {
        Box::new(source)
    } else {
        let mut decoder =
            zstd::stream::read::Decoder::with_ref_prefix(std::io::BufReader::new(source), prefix)
                .map_err(|error| DeltaError::internal(format!("zstd failed: {error}")))?;
        // What the sizes justify, so that a frame cannot ask for gigabytes of window. Streamed files use the level's own.
        let limit = window_log(prefix.len(), blob.raw).max(27);
        decoder
            .window_log_max(limit)
            .map_err(|error| DeltaError::internal(format!("zstd failed: {error}")))?;
        Box::new(decoder)
    };
    let mut buffer = vec![
        0_u8;
        usize::try_from(blob.raw)
            .unwrap_or(usize::MAX)
            .clamp(1, 1 << 20)
    ];
    let mut left = blob.raw;
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(corrupt(&format!("do not decompress ({error})"))),
        };
        left = left
            .checked_sub(count as u64)
            .ok_or_else(|| corrupt("decompress to more than they should"))?;
        each(&buffer[..count])?;
    }
    if left == 0 {
        Ok(())
    } else {
        Err(corrupt("decompress to less than they should"))
    }
}

/// Unpacks a blob into memory, which grows with what really comes out, not with what the manifest claims.
pub(crate) fn unpack(
    reader: &PayloadReader,
    blob: &Blob,
    prefix: &[u8],
) -> Result<Vec<u8>, DeltaError> {
    let mut content = Vec::new();
    unpack_to(reader, blob, prefix, |piece| {
        content.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(content)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    fn noise(count: usize) -> Vec<u8> {
        let mut x = 7_u32;
        (0..count)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (x >> 24) as u8
            })
            .collect()
    }

    #[test]
    fn content_comes_back_with_and_without_a_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let large = noise(9 << 20);
        let mut edited = large.clone();
        edited[1000] ^= 1;
        edited.extend_from_slice(b"tail");
        let cases: Vec<(Vec<u8>, Vec<u8>)> = vec![
            (b"a".to_vec(), vec![]),
            (vec![7; 100_000], vec![]),
            (edited, large.clone()),
            (noise(1000), vec![]),
            (noise(500), noise(700)),
        ];
        let mut writer = PayloadWriter::new(Some(dir.path()));
        let mut blobs: Vec<Blob> = cases
            .iter()
            .map(|(content, prefix)| store(&mut writer, content, prefix).unwrap())
            .collect();
        let path = dir.path().join("file");
        std::fs::write(&path, &large).unwrap();
        blobs.push(store_file(&mut writer, &path, |_| Ok(())).unwrap());
        let entries = writer.finish().unwrap();
        let reader = PayloadReader::open(dir.path(), &entries).unwrap();
        for ((content, prefix), blob) in cases.iter().zip(&blobs) {
            assert_eq!(&unpack(&reader, blob, prefix).unwrap(), content);
        }
        assert_eq!(unpack(&reader, &blobs[5], &[]).unwrap(), large);
        assert!(blobs[2].size < 2000, "{}", blobs[2].size);
        assert!(blobs[4].size < 40, "{}", blobs[4].size);
        let lying = Blob {
            raw: 99_999,
            ..blobs[1]
        };
        assert!(unpack(&reader, &lying, &[]).is_err());
        let lying = Blob {
            raw: 100_001,
            ..blobs[1]
        };
        assert!(unpack(&reader, &lying, &[]).is_err());
    }
}
