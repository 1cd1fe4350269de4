//! Rows of a parquet file as the lines that they would be.

use std::fs::File;

use parquet::{
    errors::ParquetError,
    file::{reader::FileReader, serialized_reader::SerializedFileReader},
    record::{Field, Row, reader::RowIter},
    schema::types::Type,
};
use serde_json::{Map, Value};

use super::{Reason, form::Line};

/// The rows of a file, of the columns that are read: a row group at a time is in memory.
pub(super) struct Table(RowIter<'static>);

impl Table {
    pub(super) fn open(file: File) -> Result<Self, ParquetError> {
        let reader = SerializedFileReader::new(file)?;
        let schema = reader.metadata().file_metadata().schema();
        let wanted: Vec<_> = schema
            .get_fields()
            .iter()
            .filter(|field| Line::fields().any(|name| name == field.name()))
            .cloned()
            .collect();
        // A projection to nothing is none; each row then says what it lacks.
        if wanted.is_empty() {
            return Ok(Self(reader.into_iter()));
        }
        let wanted = Type::group_type_builder(schema.name()).with_fields(wanted).build()?;
        Ok(Self(reader.into_iter().project(Some(wanted))?))
    }

    pub(super) fn row(&mut self) -> Option<Result<Result<Line, Reason>, ParquetError>> {
        let row = self.0.next()?;
        Some(row.map(|row| serde_json::from_value(Value::Object(object(row))).map_err(Reason::Json)))
    }
}

fn object(row: Row) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, json(field))).collect()
}

/// Dates and decimals, which no field that is read has, are null.
fn json(field: Field) -> Value {
    match field {
        Field::Bool(x) => x.into(),
        Field::Byte(x) => x.into(),
        Field::Short(x) => x.into(),
        Field::Int(x) => x.into(),
        Field::Long(x) => x.into(),
        Field::UByte(x) => x.into(),
        Field::UShort(x) => x.into(),
        Field::UInt(x) => x.into(),
        Field::ULong(x) => x.into(),
        Field::Float(x) => x.into(),
        Field::Double(x) => x.into(),
        Field::Str(x) => x.into(),
        // Text of a writer that did not call it so.
        Field::Bytes(x) => std::str::from_utf8(x.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().cloned().map(json).collect(),
        _ => Value::Null,
    }
}
