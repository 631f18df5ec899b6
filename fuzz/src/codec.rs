//! The codec: what is encoded comes back, and what is decoded is an error or a value.

use sparse_codec::{
    DType, Effort, EncodeOptions, SharedTables, TensorDecoder, TensorView, decode_buffer,
    encode_buffer,
};

const EFFORTS: [Effort; 3] = [Effort::Fast, Effort::Default, Effort::Max];

fn take(data: &mut &[u8]) -> u8 {
    match data.split_first() {
        Some((first, rest)) => {
            *data = rest;
            *first
        }
        None => 0,
    }
}

fn dtype(byte: u8) -> DType {
    DType::ALL[usize::from(byte) % DType::ALL.len()].0
}

/// A tensor and perhaps its base, made of the bytes: dtypes, effort, columns, how they are alike, then values. Encodes, decodes
/// and compares.
pub fn round_trip(mut data: &[u8]) {
    let (mine, theirs) = (dtype(take(&mut data)), dtype(take(&mut data)));
    let form = take(&mut data);
    let effort = EFFORTS[usize::from(form) % EFFORTS.len()];
    let columns = u64::from(take(&mut data)) + 1;
    let spread = take(&mut data);
    // Packed elements come eight at a time, which is whole bytes in all dtypes.
    let row = columns * 8 * u64::from(mine.bits()) / 8;
    let rows = (data.len() as u64 / row.max(1)).min(64);
    let bytes = usize::try_from(rows * row).unwrap_or(0);
    let target = &data[..bytes.min(data.len())];
    let shape = [rows, columns * 8];
    let view = TensorView {
        dtype: Some(mine),
        shape: &shape,
        data: target,
    };
    let options = EncodeOptions {
        effort,
        ..EncodeOptions::default()
    };
    // The base: the target with some bytes moved a little, or other values of another dtype and row count.
    let (base_dtype, base_rows) = if form & 64 == 0 {
        (mine, rows)
    } else {
        (theirs, rows.saturating_sub(u64::from(form >> 3 & 3)))
    };
    let base_shape = [base_rows, columns * 8];
    let base_bytes =
        usize::try_from(base_rows * columns * u64::from(base_dtype.bits())).unwrap_or(0);
    let base: Vec<u8> = (0..base_bytes)
        .map(|i| {
            let byte = target.get(i).copied().unwrap_or(0x3c);
            let step = byte.wrapping_mul(31).wrapping_add((i % 251) as u8);
            if step < spread {
                byte.wrapping_add(step % 7).wrapping_sub(3)
            } else {
                byte
            }
        })
        .collect();
    let base = TensorView {
        dtype: Some(base_dtype),
        shape: &base_shape,
        data: &base,
    };
    for base in [None, Some(base)] {
        let delta = encode_buffer(view, base, &options).expect("any tensor can be encoded");
        let back = decode_buffer(&delta, base).expect("what was encoded decodes");
        assert!(back.data == target, "the tensor does not come back");
    }
}

/// Decodes any bytes: as a buffer with and without a base, as shared tables, and as a block of a tensor whose header came before.
pub fn hostile(data: &[u8]) {
    let shape = [64, 72];
    let values: Vec<u8> = (0..64 * 72 * 4u32).map(|i| ((i * 37) >> 3) as u8).collect();
    for dtype in [DType::BF16, DType::F32, DType::F8E4M3] {
        let bytes = 64 * 72 * dtype.bits() as usize / 8;
        let base = TensorView {
            dtype: Some(dtype),
            shape: &shape,
            data: &values[..bytes],
        };
        let _ = decode_buffer(data, Some(base));
        let mut rest = data;
        let header = usize::from(take(&mut rest)).min(rest.len());
        let (header, block) = rest.split_at(header);
        let form = Some((Some(dtype), &shape[..]));
        if let Ok(decoder) = TensorDecoder::new(Some(dtype), &shape, header, form, None) {
            let mut out = vec![0; decoder.target_range(0).len()];
            let mut scratch = Default::default();
            let _ = decoder.decode_block(0, block, Some(base.data), &mut out, &mut scratch);
        }
    }
    let _ = decode_buffer(data, None);
    let _ = SharedTables::from_bytes(data);
}
