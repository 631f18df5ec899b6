//! INT8 of a difference, element by element, for comparison: the same arithmetic written once more with the `half` crate.

use half::{bf16, f16};
use sparse_codec::DType;

pub(crate) fn values(dtype: DType, data: &[u8]) -> Vec<f32> {
    let mut out = Vec::new();
    sparse_codec::to_f32(dtype, data, &mut out).unwrap();
    out
}

fn word(dtype: DType, value: f32) -> Vec<u8> {
    match dtype {
        DType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

/// The segment of every element.
fn segments(count: usize, row: usize, group: usize) -> Vec<usize> {
    let per_row = row.div_ceil(group);
    (0..count)
        .map(|i| i / row * per_row + i % row / group)
        .collect()
}

/// Codes and scales; the first element that is not finite.
pub(crate) fn quantise(
    dtype: DType,
    target: &[u8],
    base: Option<&[u8]>,
    row: usize,
    group: usize,
) -> Result<(Vec<i8>, Vec<f32>), u64> {
    let target = values(dtype, target);
    let base = base.map(|base| values(dtype, base));
    let differences: Vec<f32> = target
        .iter()
        .enumerate()
        .map(|(i, t)| match &base {
            Some(base) if base[i].to_bits() == t.to_bits() => 0.0,
            Some(base) => t - base[i],
            None => *t,
        })
        .collect();
    if let Some(bad) = differences.iter().position(|d| !d.is_finite()) {
        return Err(bad as u64);
    }
    let segments = segments(differences.len(), row, group);
    let mut scales = vec![0f32; segments.last().map_or(0, |last| last + 1)];
    for (d, s) in differences.iter().zip(&segments) {
        scales[*s] = scales[*s].max(d.abs());
    }
    for scale in &mut scales {
        let largest = *scale;
        *scale = largest / 127.0;
        if largest > 0.0 && *scale == 0.0 {
            *scale = f32::from_bits(1);
        }
    }
    let codes = differences
        .iter()
        .zip(&segments)
        .map(|(d, s)| {
            if scales[*s] == 0.0 {
                0
            } else {
                (d / scales[*s]).round_ties_even().clamp(-127.0, 127.0) as i8
            }
        })
        .collect();
    Ok((codes, scales))
}

/// What codes and scales make of a base, or of nothing.
pub(crate) fn rebuild(
    dtype: DType,
    base: Option<&[u8]>,
    codes: &[i8],
    scales: &[f32],
    row: usize,
    group: usize,
) -> Vec<u8> {
    let width = dtype.word_bytes();
    let values = base.map(|base| values(dtype, base));
    let segments = segments(codes.len(), row, group);
    let mut out = Vec::new();
    for (i, code) in codes.iter().enumerate() {
        match base {
            Some(base) if *code == 0 => out.extend_from_slice(&base[i * width..(i + 1) * width]),
            _ => {
                let b = values.as_ref().map_or(0.0, |values| values[i]);
                out.extend(word(dtype, b + f32::from(*code) * scales[segments[i]]));
            }
        }
    }
    out
}
