//! Parquet: the rows are the lines that they would be.

use std::{fs::File, path::Path, sync::Arc};

use parquet::{
    data_type::{ByteArray, ByteArrayType, DoubleType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use prefopt::data::{Column, PreferenceReader};

use super::{Folder, record, refusal};

/// A column of a file: values with definition and repetition levels.
enum Levels<'a> {
    Text(&'a [&'a str], &'a [i16], Option<&'a [i16]>),
    Number(&'a [f64], &'a [i16]),
}

fn write(file: &Path, schema: &str, columns: &[Levels]) {
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let properties = Arc::new(WriterProperties::builder().build());
    let out = File::create(file).expect("a file");
    let mut writer = SerializedFileWriter::new(out, schema, properties).expect("a writer");
    let mut rows = writer.next_row_group().expect("a row group");
    for levels in columns {
        let mut column = rows.next_column().expect("no error").expect("a column");
        match *levels {
            Levels::Text(values, definition, repetition) => {
                let values: Vec<ByteArray> = values.iter().map(|&value| ByteArray::from(value)).collect();
                column.typed::<ByteArrayType>().write_batch(&values, Some(definition), repetition).expect("levels");
            }
            Levels::Number(values, definition) => {
                column.typed::<DoubleType>().write_batch(values, Some(definition), None).expect("levels");
            }
        }
        column.close().expect("a column");
    }
    rows.close().expect("a row group");
    writer.close().expect("a file");
}

#[test]
fn messages_and_numbers_come_out_of_a_table() {
    let folder = Folder::new();
    // Known by its content, not by its name.
    let file = folder.0.join("pairs");
    let messages = "(LIST) { repeated group list { optional group element { optional binary content (UTF8);
        optional binary role (UTF8); optional binary name (UTF8); } } }";
    let schema = format!(
        "message schema {{ optional binary prompt (UTF8); optional group chosen {messages} optional group rejected {messages}
            optional double margin; optional binary other (UTF8); }}"
    );
    let (all, none, lists): (&[i16], &[i16], &[i16]) = (&[4; 4], &[3; 4], &[0, 1, 0, 1]);
    let roles = ["user", "assistant", "user", "assistant"];
    let columns = [
        Levels::Text(&[], &[0, 0], None),
        Levels::Text(&["Q", "A", "R", "C"], all, Some(lists)),
        Levels::Text(&roles, all, Some(lists)),
        Levels::Text(&[], none, Some(lists)),
        Levels::Text(&["Q", "B", "R", "D"], all, Some(lists)),
        Levels::Text(&roles, all, Some(lists)),
        Levels::Text(&[], none, Some(lists)),
        Levels::Number(&[1.5], &[1, 0]),
        Levels::Text(&["x", "y"], &[1, 1], None),
    ];
    write(&file, &schema, &columns);

    let found: Vec<_> = PreferenceReader::open(&file).expect("a file").map(|row| row.expect("a record")).collect();
    let line = |prompt: &str, [chosen, rejected]: [&str; 2], margin: &str| {
        let said = |reply: &str| {
            format!(r#"[{{"content": "{prompt}", "role": "user"}}, {{"content": "{reply}", "role": "assistant"}}]"#)
        };
        record(&format!(r#"{{"chosen": {}, "rejected": {}, "margin": {margin}}}"#, said(chosen), said(rejected)))
    };
    let expected = [line("Q", ["A", "B"], "1.5"), line("R", ["C", "D"], "null")];
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.texts, expected.texts);
        assert_eq!(found.number(Column::Margin), expected.number(Column::Margin));
        assert_eq!(found.origin.line, index as u64 + 1);
    }
    assert_eq!(found.len(), 2);
}

#[test]
fn a_table_without_a_known_column_says_what_it_lacks() {
    let folder = Folder::new();
    let file = folder.0.join("other.parquet");
    write(&file, "message schema { optional binary other (UTF8); }", &[Levels::Text(&["x"], &[1], None)]);
    let mut found: Vec<_> = PreferenceReader::open(&file).expect("a file").collect();
    assert_eq!(found.len(), 1);
    let message = refusal(found.remove(0));
    assert!(message.ends_with("other.parquet:1: there is no `chosen`"), "{message}");
    let cut = folder.file("cut.parquet", "PAR1 and no more");
    assert!(refusal(PreferenceReader::open(cut)).contains("cut.parquet: "));
}
