//! What the functions share about their arguments: types are checked when a query is planned, with errors that name the
//! argument; rows are read through one accessor whatever the encoding of the column was.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryViewArray, Float64Array, ListArray, StringViewArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field};
use datafusion::common::{Result, ScalarValue, exec_err, internal_datafusion_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs};

/// What an argument may be. Each kind reaches the function in one Arrow type, whatever encoding the query had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Binary, LargeBinary, BinaryView or FixedSizeBinary.
    Bytes,
    /// Utf8, LargeUtf8 or Utf8View, also dictionary-encoded.
    Text,
    /// A list of integers.
    Shape,
    /// A number.
    Number,
}

impl Kind {
    fn accepts(self, given: &DataType) -> bool {
        match (self, given) {
            (_, DataType::Null) => true,
            (_, DataType::Dictionary(_, value)) => {
                !matches!(self, Self::Shape | Self::Number) && self.accepts(value)
            }
            (Self::Bytes, given) => matches!(
                given,
                DataType::Binary
                    | DataType::LargeBinary
                    | DataType::BinaryView
                    | DataType::FixedSizeBinary(_)
            ),
            (Self::Text, given) => {
                matches!(
                    given,
                    DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
                )
            }
            (Self::Shape, given) => match given {
                DataType::List(item)
                | DataType::LargeList(item)
                | DataType::FixedSizeList(item, _) => {
                    item.data_type().is_integer() || item.data_type().is_null()
                }
                _ => false,
            },
            (Self::Number, given) => given.is_numeric(),
        }
    }

    fn canonical(self) -> DataType {
        match self {
            Self::Bytes => DataType::BinaryView,
            Self::Text => DataType::Utf8View,
            Self::Shape => DataType::List(Arc::new(Field::new_list_field(DataType::UInt64, true))),
            Self::Number => DataType::Float64,
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Bytes => "binary (Binary, LargeBinary or BinaryView)",
            Self::Text => "text (Utf8, LargeUtf8 or Utf8View)",
            Self::Shape => "a list of integers, such as [2, 3]",
            Self::Number => "a number",
        }
    }
}

/// One accepted list of arguments. A function with optional ones has a form per count.
pub(crate) type Form = &'static [(&'static str, Kind)];

/// The types a call is coerced to, or a plan error that names the function and the argument.
pub(crate) fn coerce(
    function: &str,
    syntax: &str,
    forms: &[Form],
    given: &[DataType],
) -> Result<Vec<DataType>> {
    let Some(form) = forms.iter().find(|form| form.len() == given.len()) else {
        return plan_err!(
            "{function} does not take {} argument(s); use {syntax}",
            given.len()
        );
    };
    form.iter()
        .zip(given)
        .enumerate()
        .map(|(at, ((name, kind), given))| {
            if *kind == Kind::Text && given == &DataType::Utf8 {
                // A constant stays a constant, which a cast around it would hide; [`Rows`] casts it.
                return Ok(DataType::Utf8);
            }
            if kind.accepts(given) {
                return Ok(kind.canonical());
            }
            plan_err!(
                "argument {} ('{name}') of {function} must be {}, not {given}; use {syntax}",
                at + 1,
                kind.expected()
            )
        })
        .collect()
}

/// The arguments of one call, by row. Scalars are held once.
pub(crate) struct Rows {
    function: &'static str,
    columns: Vec<Column>,
    rows: usize,
    constant: bool,
}

enum Column {
    Bytes(BinaryViewArray, bool),
    Text(StringViewArray, bool),
    Shape(ListArray, bool),
    Number(Float64Array, bool),
}

impl Rows {
    /// Reads the arguments, which [`coerce`] has brought to their canonical types (texts perhaps not quite).
    pub(crate) fn new(function: &'static str, args: &ScalarFunctionArgs) -> Result<Self> {
        let constant = args
            .args
            .iter()
            .all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let columns = args
            .args
            .iter()
            .map(|arg| {
                let (array, constant) = match arg {
                    ColumnarValue::Array(array) => (Arc::clone(array), false),
                    ColumnarValue::Scalar(scalar) => (scalar.to_array()?, true),
                };
                let array = match array.data_type() {
                    DataType::Utf8 => arrow::compute::cast(&array, &Kind::Text.canonical())?,
                    _ => array,
                };
                Column::new(function, &array, constant)
            })
            .collect::<Result<Vec<_>>>()?;
        let rows = if constant { 1 } else { args.number_rows };
        Ok(Self {
            function,
            columns,
            rows,
            constant,
        })
    }

    /// Number of rows to compute.
    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    /// Number of arguments given.
    pub(crate) fn arguments(&self) -> usize {
        self.columns.len()
    }

    /// The bytes of an argument; `None` is SQL's null.
    pub(crate) fn bytes(&self, argument: usize, row: usize) -> Option<&[u8]> {
        match self.columns.get(argument) {
            Some(Column::Bytes(array, constant)) => {
                let row = if *constant { 0 } else { row };
                array.is_valid(row).then(|| array.value(row))
            }
            _ => None,
        }
    }

    /// The text of an argument; `None` is SQL's null.
    pub(crate) fn text(&self, argument: usize, row: usize) -> Option<&str> {
        match self.columns.get(argument) {
            Some(Column::Text(array, constant)) => {
                let row = if *constant { 0 } else { row };
                array.is_valid(row).then(|| array.value(row))
            }
            _ => None,
        }
    }

    /// The integers of a list argument; `None` is SQL's null.
    pub(crate) fn shape(&self, argument: usize, row: usize) -> Result<Option<Vec<u64>>> {
        let Some(Column::Shape(array, constant)) = self.columns.get(argument) else {
            return Ok(None);
        };
        let row = if *constant { 0 } else { row };
        if array.is_null(row) {
            return Ok(None);
        }
        let items = array.value(row);
        match items.as_any().downcast_ref::<UInt64Array>() {
            Some(items) if items.null_count() == 0 => Ok(Some(items.values().to_vec())),
            Some(_) => exec_err!(
                "{}: the shape in row {row} holds a null dimension",
                self.function
            ),
            None => Err(internal_datafusion_err!(
                "{}: the shape is not of UInt64",
                self.function
            )),
        }
    }

    /// The number of an argument; `None` is SQL's null.
    pub(crate) fn number(&self, argument: usize, row: usize) -> Option<f64> {
        match self.columns.get(argument) {
            Some(Column::Number(array, constant)) => {
                let row = if *constant { 0 } else { row };
                array.is_valid(row).then(|| array.value(row))
            }
            _ => None,
        }
    }

    /// The result in the form the arguments had: a scalar where all of them were.
    pub(crate) fn finish(&self, array: ArrayRef) -> Result<ColumnarValue> {
        if self.constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(
                &array, 0,
            )?));
        }
        Ok(ColumnarValue::Array(array))
    }
}

impl Column {
    fn new(function: &str, array: &ArrayRef, constant: bool) -> Result<Self> {
        let any = array.as_any();
        if let Some(array) = any.downcast_ref::<BinaryViewArray>() {
            return Ok(Self::Bytes(array.clone(), constant));
        }
        if let Some(array) = any.downcast_ref::<StringViewArray>() {
            return Ok(Self::Text(array.clone(), constant));
        }
        if let Some(array) = any.downcast_ref::<ListArray>() {
            return Ok(Self::Shape(array.clone(), constant));
        }
        if let Some(array) = any.downcast_ref::<Float64Array>() {
            return Ok(Self::Number(array.clone(), constant));
        }
        Err(internal_datafusion_err!(
            "{function} was called with {} without coercion",
            array.data_type()
        ))
    }
}
