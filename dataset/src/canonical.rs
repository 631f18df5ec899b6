//! The plain form of a column: no dictionaries, no runs, no views. Two columns with the same values have the same plain form,
//! however they are encoded; the encoding is in the schema, and comes back by a cast.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};

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

/// `array` as `ty`, null where a value has none there; `None` if the types have nothing to do with each other.
pub(crate) fn cast_loosely(array: &ArrayRef, ty: &DataType) -> Option<ArrayRef> {
    if array.data_type() == ty {
        return Some(Arc::clone(array));
    }
    cast_with_options(array, ty, &CastOptions::default()).ok()
}

/// A schema as a text that is the same for the same schema: names, types, nullability and metadata of every field, in order.
pub(crate) fn describe(schema: &Schema) -> String {
    let mut text = String::new();
    for field in schema.fields() {
        describe_field(field, &mut text);
    }
    text + &format!("{:?}", schema.metadata().iter().collect::<BTreeMap<_, _>>())
}

fn describe_field(field: &Field, text: &mut String) {
    let metadata: BTreeMap<_, _> = field.metadata().iter().collect();
    *text += &format!("{:?} {} {metadata:?} ", field.name(), field.is_nullable());
    let mut nest = |name: &str, fields: &[&FieldRef]| {
        *text += &format!("{name}(");
        for field in fields {
            describe_field(field, text);
        }
        *text += ")";
    };
    match field.data_type() {
        DataType::List(child) => nest("list", &[child]),
        DataType::LargeList(child) => nest("large_list", &[child]),
        DataType::ListView(child) => nest("list_view", &[child]),
        DataType::LargeListView(child) => nest("large_list_view", &[child]),
        DataType::FixedSizeList(child, size) => nest(&format!("list_{size}"), &[child]),
        DataType::Map(child, sorted) => nest(&format!("map_{sorted}"), &[child]),
        DataType::Struct(fields) => nest("struct", &fields.iter().collect::<Vec<_>>()),
        DataType::RunEndEncoded(ends, values) => nest("runs", &[ends, values]),
        plain => *text += &format!("{plain:?}"),
    }
    *text += "\n";
}
