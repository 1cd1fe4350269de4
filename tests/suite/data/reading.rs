//! Files: plain and under gzip, what lies between the lines, where a record stood, what ends a file early.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use prefopt::data::{DataError, PreferenceReader};

use super::{Folder, refusal};

const LINES: &str = "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\r\n\n  \n{\"prompt\": \"q\", \"chosen\": \"c\", \"rejected\": \"d\"}";

fn zipped(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

#[test]
fn gzip_is_known_by_its_first_bytes_and_may_have_several_members() {
    let folder = Folder::new();
    let plain = folder.file("plain.jsonl", LINES);
    let read = |file| -> Vec<_> {
        let records = PreferenceReader::open(file).expect("a file").map(|record| record.expect("a record"));
        records.map(|record| (record.origin.line, record.texts)).collect()
    };
    let expected = read(plain);
    assert_eq!(expected.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 4], "blank lines count");
    // Cut in the middle of a line, under a name that does not say what it is.
    let (head, tail) = LINES.split_at(20);
    let members = [zipped(head), zipped(tail)].concat();
    assert_eq!(read(folder.file("zipped.jsonl", members)), expected);
    let marked = ["\u{feff}", LINES].concat();
    assert_eq!(read(folder.file("marked.jsonl", marked)), expected, "a byte order mark");
    assert!(read(folder.file("empty.jsonl", "")).is_empty());
}

#[test]
fn several_files_are_one_stream_and_each_record_knows_its_own() {
    let folder = Folder::new();
    let files = [folder.file("one.jsonl", LINES), folder.file("two.jsonl", LINES)];
    let readers: Result<Vec<_>, _> = files.iter().map(PreferenceReader::open).collect();
    let origins = readers.expect("files").into_iter().flatten().map(|record| record.expect("a record").origin);
    let names: Vec<String> = origins
        .map(|origin| {
            let file = origin.file.expect("a file");
            format!("{}:{}", file.file_name().unwrap_or_default().to_string_lossy(), origin.line)
        })
        .collect();
    assert_eq!(names, ["one.jsonl:1", "one.jsonl:4", "two.jsonl:1", "two.jsonl:4"]);
}

#[test]
fn reading_goes_on_after_a_broken_line_and_ends_after_a_broken_file() {
    let folder = Folder::new();
    let broken = ["{\n", LINES].concat();
    let found: Vec<_> = PreferenceReader::open(folder.file("broken.jsonl", broken)).expect("a file").collect();
    assert_eq!(found.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, true]);

    let bytes = zipped(&LINES.repeat(200));
    let mut cut = PreferenceReader::open(folder.file("cut.gz", &bytes[..bytes.len() / 2])).expect("a file");
    let last = cut.by_ref().last().expect("an item");
    assert!(matches!(last, Err(DataError::Io { .. })), "{last:?}");
    assert!(refusal(last).contains("cut.gz: "));
    assert!(cut.next().is_none());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let message = refusal(PreferenceReader::open("/no/such/pairs.jsonl"));
    assert!(message.starts_with("/no/such/pairs.jsonl: "), "{message}");
}

#[test]
fn a_line_without_text_encoding_is_a_broken_line() {
    let folder = Folder::new();
    let bytes =
        [b"{\"prompt\": \"\xff\", \"chosen\": \"a\", \"rejected\": \"b\"}\n".as_slice(), LINES.as_bytes()].concat();
    let found: Vec<_> = PreferenceReader::open(folder.file("latin.jsonl", bytes)).expect("a file").collect();
    assert_eq!(found.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, true]);
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_parquet_file_asks_for_the_feature() {
    let folder = Folder::new();
    let message = refusal(PreferenceReader::open(folder.file("pairs.bin", "PAR1....PAR1")));
    assert!(message.ends_with("pairs.bin is a parquet file: build with the feature `parquet`"), "{message}");
}
