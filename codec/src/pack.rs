//! Small side information (tables, scales): stored, or by zstd where that is smaller.

use crate::{
    bits::{put_varint, take_byte, take_bytes, take_size},
    error::{CodecError, corrupt},
};

/// A self-delimiting form of `bytes`: kind, length, stored length, data.
pub(crate) fn pack(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let small = zstd::bulk::compress(bytes, 19)
        .ok()
        .filter(|small| small.len() + 3 < bytes.len());
    out.push(u8::from(small.is_some()));
    put_varint(&mut out, bytes.len() as u64);
    match small {
        Some(small) => {
            put_varint(&mut out, small.len() as u64);
            out.extend_from_slice(&small);
        }
        None => out.extend_from_slice(bytes),
    }
    out
}

/// Takes what [`pack`] wrote off the front of `data`; at most `limit` bytes come out.
pub(crate) fn unpack(data: &mut &[u8], limit: usize) -> Result<Vec<u8>, CodecError> {
    let kind = take_byte(data)?;
    let length = take_size(data, limit)?;
    match kind {
        0 => Ok(take_bytes(data, length)?.to_vec()),
        1 => {
            let left = data.len();
            let stored = take_size(data, left)?;
            let bytes = zstd::bulk::decompress(take_bytes(data, stored)?, length)
                .map_err(|_| corrupt("a zstd frame does not decode"))?;
            if bytes.len() == length {
                Ok(bytes)
            } else {
                Err(corrupt("a zstd frame has another length"))
            }
        }
        _ => Err(corrupt("an unknown packing")),
    }
}
