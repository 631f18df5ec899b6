//! The plain form of a column: no dictionaries, no runs, no views. Two columns with the same values have the same plain form,
//! however they are encoded; the encoding is in the schema, and comes back by a cast.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, new_empty_array, new_null_array};
use arrow::compute::{CastOptions, can_cast_types, cast_with_options, concat};
use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, Schema, TimeUnit};

use crate::DatasetError;

/// The plain type of a column type.
pub(crate) fn canonical(ty: &DataType) -> Result<DataType, DatasetError> {
    let inner = |field: &FieldRef| -> Result<FieldRef, DatasetError> {
        let ty = canonical(field.data_type())?;
        Ok(Arc::new(field.as_ref().clone().with_data_type(ty)))
    };
    Ok(match ty {
        DataType::Dictionary(_, values) => canonical(values)?,
        DataType::RunEndEncoded(_, values) => canonical(values.data_type())?,
        DataType::Utf8View => DataType::LargeUtf8,
        DataType::BinaryView => DataType::LargeBinary,
        DataType::List(field) => DataType::List(inner(field)?),
        DataType::LargeList(field) | DataType::LargeListView(field) => {
            DataType::LargeList(inner(field)?)
        }
        DataType::ListView(field) => DataType::List(inner(field)?),
        DataType::FixedSizeList(field, size) => DataType::FixedSizeList(inner(field)?, *size),
        DataType::Map(field, sorted) => DataType::Map(inner(field)?, *sorted),
        DataType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(inner)
                .collect::<Result<Vec<_>, _>>()?
                .into(),
        ),
        DataType::Union(_, _) => return Err(DatasetError::unsupported(ty)),
        plain => plain.clone(),
    })
}

/// `array` as `ty`; an error where a value has none there.
pub(crate) fn cast_to(array: &ArrayRef, ty: &DataType) -> Result<ArrayRef, DatasetError> {
    if array.data_type() == ty {
        return Ok(Arc::clone(array));
    }
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    Ok(cast_with_options(array, ty, &options)?)
}

/// Whether values of a plain type are cast to another to be compared. Of dates and times only time stamps are: Arrow's casts of
/// the others overflow. Nor is anything cast to lists of a fixed size, where Arrow does not bear nulls, or to wide binaries of a
/// fixed size, for which it takes room before there is a value.
pub(crate) fn has_cast(from: &DataType, to: &DataType) -> bool {
    let is_odd = |ty: &DataType| ty.is_temporal() && !matches!(ty, DataType::Timestamp(_, _));
    let both = from.is_temporal() && to.is_temporal();
    from == to
        || (can_cast_types(from, to)
            && !(both && (is_odd(from) || is_odd(to)))
            && !holds_fixed_size(to))
}

/// Bytes of the widest binary of a fixed size that is cast to.
const WIDEST: i32 = 4096;

fn holds_fixed_size(ty: &DataType) -> bool {
    match ty {
        DataType::FixedSizeList(_, _) => true,
        DataType::FixedSizeBinary(width) => *width > WIDEST,
        DataType::List(field) | DataType::LargeList(field) | DataType::Map(field, _) => {
            holds_fixed_size(field.data_type())
        }
        DataType::Struct(fields) => fields.iter().any(|f| holds_fixed_size(f.data_type())),
        _ => false,
    }
}

/// `array` as `ty`, null where a value has none there. Some casts fail as a whole for the sake of one value: then it is cast
/// value by value.
pub(crate) fn cast_loosely(array: &ArrayRef, ty: &DataType) -> Result<ArrayRef, DatasetError> {
    if array.data_type() == ty {
        return Ok(Arc::clone(array));
    }
    let options = CastOptions::default();
    if let Ok(cast) = cast_with_options(array, ty, &options) {
        return Ok(cast);
    }
    let values: Vec<ArrayRef> = (0..array.len())
        .map(|at| {
            cast_with_options(&array.slice(at, 1), ty, &options)
                .unwrap_or_else(|_| new_null_array(ty, 1))
        })
        .collect();
    let values: Vec<&dyn Array> = values.iter().map(AsRef::as_ref).collect();
    if values.is_empty() {
        return Ok(new_empty_array(ty));
    }
    Ok(concat(&values)?)
}

/// A schema as a text that is the same for the same schema: names, types, nullability and metadata of every field, in order.
/// `FORMAT.md` specifies it, for it is hashed.
pub(crate) fn describe(schema: &Schema) -> String {
    let mut text = String::new();
    for field in schema.fields() {
        describe_field(field, &mut text);
    }
    text + &metadata_text(schema.metadata())
}

/// A schema's fields in the same form, without the metadata of the whole.
pub(crate) fn describe_fields(schema: &Schema) -> String {
    schema
        .fields()
        .iter()
        .fold(String::new(), |mut text, field| {
            describe_field(field, &mut text);
            text
        })
}

/// As a JSON object with its keys sorted.
fn metadata_text(metadata: &HashMap<String, String>) -> String {
    let sorted: BTreeMap<_, _> = metadata.iter().collect();
    serde_json::json!(sorted).to_string()
}

fn describe_field(field: &Field, text: &mut String) {
    *text += &serde_json::json!(field.name()).to_string();
    *text += if field.is_nullable() {
        " nullable "
    } else {
        " required "
    };
    *text += &metadata_text(field.metadata());
    *text += " ";
    describe_type(field.data_type(), text);
    if field.dict_is_ordered() == Some(true) {
        *text += " ordered";
    }
    *text += "\n";
}

fn describe_type(ty: &DataType, text: &mut String) {
    let mut nest = |name: &str, fields: &[&FieldRef]| {
        *text += &format!("{name}(");
        for field in fields {
            describe_field(field, text);
        }
        *text += ")";
    };
    match ty {
        DataType::List(child) => nest("list", &[child]),
        DataType::LargeList(child) => nest("large_list", &[child]),
        DataType::ListView(child) => nest("list_view", &[child]),
        DataType::LargeListView(child) => nest("large_list_view", &[child]),
        DataType::FixedSizeList(child, size) => nest(&format!("list_of_{size}"), &[child]),
        DataType::Map(child, false) => nest("map", &[child]),
        DataType::Map(child, true) => nest("sorted_map", &[child]),
        DataType::Struct(fields) => nest("struct", &fields.iter().collect::<Vec<_>>()),
        DataType::RunEndEncoded(ends, values) => nest("runs", &[ends, values]),
        DataType::Dictionary(keys, values) => {
            *text += "dictionary(";
            describe_type(keys, text);
            *text += ",";
            describe_type(values, text);
            *text += ")";
        }
        plain => *text += &plain_name(plain),
    }
}

fn plain_name(ty: &DataType) -> String {
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    };
    match ty {
        DataType::Timestamp(u, None) => format!("timestamp({})", unit(u)),
        DataType::Timestamp(u, Some(zone)) => {
            format!(
                "timestamp({},{})",
                unit(u),
                serde_json::json!(zone.as_ref())
            )
        }
        DataType::Time32(u) => format!("time32({})", unit(u)),
        DataType::Time64(u) => format!("time64({})", unit(u)),
        DataType::Duration(u) => format!("duration({})", unit(u)),
        DataType::Interval(IntervalUnit::YearMonth) => "interval(year_month)".to_owned(),
        DataType::Interval(IntervalUnit::DayTime) => "interval(day_time)".to_owned(),
        DataType::Interval(IntervalUnit::MonthDayNano) => "interval(month_day_nano)".to_owned(),
        DataType::FixedSizeBinary(width) => format!("fixed_binary({width})"),
        DataType::Decimal32(precision, scale) => format!("decimal32({precision},{scale})"),
        DataType::Decimal64(precision, scale) => format!("decimal64({precision},{scale})"),
        DataType::Decimal128(precision, scale) => format!("decimal128({precision},{scale})"),
        DataType::Decimal256(precision, scale) => format!("decimal256({precision},{scale})"),
        DataType::Boolean => "bool".to_owned(),
        DataType::Utf8View => "utf8_view".to_owned(),
        DataType::LargeUtf8 => "large_utf8".to_owned(),
        DataType::BinaryView => "binary_view".to_owned(),
        DataType::LargeBinary => "large_binary".to_owned(),
        // Int8 is int8, Float64 float64, Utf8 utf8, Date32 date32, Null null.
        simple => format!("{simple:?}").to_ascii_lowercase(),
    }
}
