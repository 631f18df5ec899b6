//! Values as text that tells all of them apart.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use arrow::array::{Array, ArrayRef, AsArray as _, make_array};
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type, Float64Type, TimeUnit, i256};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::DatasetError;

/// A value of a plain column as text: JSON where JSON has it, see [`super::DiffRow`].
pub(super) fn render(array: &dyn Array, row: usize) -> Result<String, DatasetError> {
    let mut out = String::new();
    write(array, row, &mut out)?;
    Ok(out)
}

/// A whole row as an object.
pub(super) fn render_row<'a>(
    cells: impl Iterator<Item = (&'a str, (&'a dyn Array, usize))>,
) -> Result<String, DatasetError> {
    let mut out = String::from("{");
    for (at, (name, (array, row))) in cells.enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write_text(name, &mut out);
        out.push_str(": ");
        write(array, row, &mut out)?;
    }
    out.push('}');
    Ok(out)
}

/// A string in quotes.
pub(super) fn text(value: &str) -> String {
    let mut out = String::new();
    write_text(value, &mut out);
    out
}

/// The type of a column, as a person reads it.
pub(super) fn type_of(field: impl AsRef<Field>) -> String {
    let field = field.as_ref();
    let null = if field.is_nullable() { "" } else { " not null" };
    format!("{}{null}", field.data_type())
}

/// Metadata in the order of its names.
pub(super) fn metadata(metadata: &HashMap<String, String>) -> String {
    let sorted: BTreeMap<_, _> = metadata.iter().collect();
    let pairs: Vec<String> = sorted
        .into_iter()
        .map(|(name, value)| format!("{}: {}", text(name), text(value)))
        .collect();
    format!("metadata {{{}}}", pairs.join(", "))
}

fn write_text(value: &str, out: &mut String) {
    // Serializing a string does not fail.
    out.push_str(&serde_json::to_string(value).unwrap_or_default());
}

fn write_hex(bytes: &[u8], out: &mut String) {
    out.push_str("x'");
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out.push('\'');
}

/// A float: the shortest text that gives its bits again; a NaN that is not the usual one with its bits.
fn write_float(value: f64, shortest: &str, bits: u64, usual: u64, digits: usize, out: &mut String) {
    if !value.is_nan() {
        out.push_str(shortest);
    } else if bits == usual {
        out.push_str("NaN");
    } else {
        let _ = write!(out, "NaN(0x{bits:0digits$x})");
    }
}

fn write_items(array: &ArrayRef, out: &mut String) -> Result<(), DatasetError> {
    out.push('[');
    for at in 0..array.len() {
        if at > 0 {
            out.push_str(", ");
        }
        write(array.as_ref(), at, out)?;
    }
    out.push(']');
    Ok(())
}

fn write(array: &dyn Array, row: usize, out: &mut String) -> Result<(), DatasetError> {
    if array.data_type() == &DataType::Null || array.is_null(row) {
        out.push_str("null");
        return Ok(());
    }
    match array.data_type() {
        DataType::Boolean => {
            let _ = write!(out, "{}", array.as_boolean().value(row));
        }
        DataType::Utf8 => write_text(array.as_string::<i32>().value(row), out),
        DataType::LargeUtf8 => write_text(array.as_string::<i64>().value(row), out),
        DataType::Binary => write_hex(array.as_binary::<i32>().value(row), out),
        DataType::LargeBinary => write_hex(array.as_binary::<i64>().value(row), out),
        DataType::FixedSizeBinary(_) => write_hex(array.as_fixed_size_binary().value(row), out),
        DataType::Float16 => {
            let value = array.as_primitive::<Float16Type>().value(row);
            let wide = value.to_f64();
            write_float(
                wide,
                &format!("{:?}", value.to_f32()),
                value.to_bits().into(),
                0x7e00,
                4,
                out,
            );
        }
        DataType::Float32 => {
            let value = array.as_primitive::<Float32Type>().value(row);
            let usual = f32::NAN.to_bits().into();
            write_float(
                value.into(),
                &format!("{value:?}"),
                value.to_bits().into(),
                usual,
                8,
                out,
            );
        }
        DataType::Float64 => {
            let value = array.as_primitive::<Float64Type>().value(row);
            let usual = f64::NAN.to_bits();
            write_float(
                value,
                &format!("{value:?}"),
                value.to_bits(),
                usual,
                16,
                out,
            );
        }
        DataType::List(_) => write_items(&array.as_list::<i32>().value(row), out)?,
        DataType::LargeList(_) => write_items(&array.as_list::<i64>().value(row), out)?,
        DataType::FixedSizeList(_, _) => write_items(&array.as_fixed_size_list().value(row), out)?,
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            out.push('{');
            for at in 0..entries.len() {
                if at > 0 {
                    out.push_str(", ");
                }
                write(keys.as_ref(), at, out)?;
                out.push_str(": ");
                write(values.as_ref(), at, out)?;
            }
            out.push('}');
        }
        DataType::Struct(fields) => {
            let parts = array.as_struct();
            let cells = fields
                .iter()
                .zip(parts.columns())
                .map(|(field, part)| (field.name().as_str(), (part.as_ref(), row)));
            out.push_str(&render_row(cells)?);
        }
        ty => write_plain(array, ty, row, out)?,
    }
    Ok(())
}

/// Integers, decimals, dates, times and intervals, in Arrow's own words: those are exact.
fn write_plain(
    array: &dyn Array,
    ty: &DataType,
    row: usize,
    out: &mut String,
) -> Result<(), DatasetError> {
    // A time zone says how an instant is shown; the instant is the same in all of them.
    let (shown, zone) = match ty {
        DataType::Timestamp(unit, Some(_)) => {
            let plain = DataType::Timestamp(*unit, None);
            let data = array
                .slice(row, 1)
                .to_data()
                .into_builder()
                .data_type(plain);
            (make_array(data.build()?), "Z")
        }
        _ => (array.slice(row, 1), ""),
    };
    let quoted = ty.is_temporal() || matches!(ty, DataType::Interval(_));
    let formatted = ArrayFormatter::try_new(shown.as_ref(), &FormatOptions::default())
        .ok()
        .and_then(|formatter| formatter.value(0).try_to_string().ok());
    match formatted {
        Some(text) if quoted => {
            let _ = write!(out, "\"{text}{zone}\"");
        }
        Some(text) => out.push_str(&text),
        // Beyond the calendar: the number as it is stored.
        None => {
            let unit = match ty {
                DataType::Timestamp(unit, _)
                | DataType::Time32(unit)
                | DataType::Time64(unit)
                | DataType::Duration(unit) => unit_of(*unit),
                DataType::Date32 => "days",
                _ => "ms",
            };
            let number = number_of(array, row);
            let _ = write!(out, "\"{number} {unit}\"");
        }
    }
    Ok(())
}

fn unit_of(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

/// The integer a value is stored as, of up to 32 bytes.
fn number_of(array: &dyn Array, row: usize) -> i256 {
    let data = array.to_data();
    let width = data.data_type().primitive_width().unwrap_or(0);
    let at = (data.offset() + row) * width;
    let Some(bytes) = data
        .buffers()
        .first()
        .and_then(|buffer| buffer.as_slice().get(at..at + width))
    else {
        return i256::ZERO;
    };
    let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) {
        0xff
    } else {
        0
    };
    let mut wide = [sign; 32];
    if let Some(room) = wide.get_mut(..width) {
        room.copy_from_slice(bytes);
    }
    i256::from_le_bytes(wide)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryArray, Decimal128Array, Float32Array, Float64Array, ListArray, StringArray,
        TimestampNanosecondArray, TimestampSecondArray,
    };
    use arrow::datatypes::Int32Type;

    use super::*;

    fn all(array: &dyn Array) -> Vec<String> {
        (0..array.len())
            .map(|row| render(array, row).unwrap())
            .collect()
    }

    #[test]
    fn values_that_differ_look_different() {
        let nan = f64::from_bits(0x7ff8_0000_0000_0001);
        let floats = Float64Array::from(vec![0.0, -0.0, 0.1, 1e300, f64::NAN, nan, f64::INFINITY]);
        let expected = [
            "0.0",
            "-0.0",
            "0.1",
            "1e300",
            "NaN",
            "NaN(0x7ff8000000000001)",
            "inf",
        ];
        assert_eq!(all(&floats), expected);
        let negative = Float32Array::from(vec![f32::from_bits(0xffc0_0000)]);
        assert_eq!(all(&negative), ["NaN(0xffc00000)"]);
        let texts = StringArray::from(vec![Some(""), None, Some("null"), Some("a\"\n\u{e9}")]);
        assert_eq!(
            all(&texts),
            ["\"\"", "null", "\"null\"", "\"a\\\"\\n\u{e9}\""]
        );
        assert_eq!(
            all(&BinaryArray::from(vec![&b"\x00\xff"[..], b""])),
            ["x'00ff'", "x''"]
        );
        let decimal = Decimal128Array::from(vec![-12345_i128])
            .with_precision_and_scale(10, 3)
            .unwrap();
        assert_eq!(all(&decimal), ["-12.345"]);
    }

    #[test]
    fn instants_are_exact_whatever_their_zone() {
        let at = TimestampNanosecondArray::from(vec![1]).with_timezone("Europe/Vienna");
        assert_eq!(all(&at), ["\"1970-01-01T00:00:00.000000001Z\""]);
        assert_eq!(
            all(&TimestampSecondArray::from(vec![i64::MIN])),
            [format!("\"{} s\"", i64::MIN)]
        );
    }

    #[test]
    fn nested_values_are_told_whole() {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
            Some(vec![Some(1), None]),
            Some(vec![]),
            None,
        ]);
        assert_eq!(all(&list), ["[1, null]", "[]", "null"]);
        let row = [
            ("a", (Arc::new(list) as ArrayRef, 0)),
            ("b", (Arc::new(StringArray::from(vec!["x"])) as ArrayRef, 0)),
        ];
        let cells = row
            .iter()
            .map(|(name, (array, at))| (*name, (array.as_ref(), *at)));
        assert_eq!(
            render_row(cells).unwrap(),
            "{\"a\": [1, null], \"b\": \"x\"}"
        );
    }
}
