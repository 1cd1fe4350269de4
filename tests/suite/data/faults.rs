//! Broken lines: refused all at once, or left out and counted.

use prefopt::data::{BadLines, DataError, Limits, Policy, PreferenceReader, Result, Tokenized, tokenize};

use super::{Folder, chat, refusal, tokenizer};

/// 3,000 lines, more than are in memory at a time, every third of them broken.
fn lines() -> String {
    let line = |index: usize| match index % 3 {
        2 => "{}".to_owned(),
        _ => format!(r#"{{"prompt": "p", "chosen": "{index}", "rejected": "b"}}"#),
    };
    (0..3000).map(line).collect::<Vec<_>>().join("\n")
}

fn run(folder: &Folder, bad_lines: BadLines) -> Result<Tokenized> {
    let reader = PreferenceReader::open(folder.file("pairs.jsonl", lines()))?;
    tokenize(reader, &tokenizer(&[]), Limits::default(), Policy::default(), bad_lines)
}

#[test]
fn all_broken_lines_are_listed_up_to_a_limit() {
    let folder = Folder::new();
    let message = refusal(run(&folder, BadLines::Refuse { listed: 2 }));
    let file = folder.0.join("pairs.jsonl");
    let at = |line: u64| format!("  {}:{line}: there is no `chosen`", file.display());
    assert_eq!(message, format!("1000 broken lines\n{}\n{}\n  and 998 more", at(3), at(6)));
    // As part of the crate's own error.
    let error = prefopt::Error::from(run(&folder, BadLines::default()).expect_err("broken lines"));
    assert_eq!(error.to_string().lines().count(), 22);
}

#[test]
fn skipping_goes_on_and_counts() {
    let folder = Folder::new();
    let Tokenized { pairs, report } = run(&folder, BadLines::Skip { listed: 1 }).expect("the rest is in order");
    assert_eq!(
        (pairs.len(), report.kept, report.skipped.total(), report.skipped.listed().len()),
        (2000, 2000, 1000, 1)
    );
    assert!(report.to_string().starts_with("2000 pairs kept (0 cut), 0 dropped\n1000 broken lines\n"), "{report}");
    // In the order of the file, from all chunks: the third of every three is missing.
    let spelled = |index: usize| {
        let chosen = pairs.pair(index).expect("a pair").chosen;
        tokenizer(&[]).decode(chosen).expect("text")
    };
    assert_eq!([0, 1, 2, 3, 1999].map(spelled), ["0", "1", "3", "4", "2998"].map(str::to_owned));
}

#[test]
fn what_a_template_raises_is_a_broken_line_with_its_place() {
    let folder = Folder::new();
    let line =
        |role: &str| format!(r#"{{"prompt": [{{"role": "{role}", "content": "q"}}], "chosen": "a", "rejected": "b"}}"#);
    let lines = [line("user"), line("narrator"), line("user")].join("\n");
    let file = folder.file("roles.jsonl", lines);
    let chat = chat(
        "{% for m in messages %}{% if m.role == 'narrator' %}{{ raise_exception('no ' + m.role) }}{% endif %}{{ m.content }}{% endfor %}",
    );
    let run = |bad_lines| {
        let reader = PreferenceReader::open(&file).expect("a file");
        tokenize(reader, &chat, Limits::default(), Policy::default(), bad_lines)
    };
    let message = refusal(run(BadLines::default()));
    assert!(message.starts_with("1 broken line\n"), "{message}");
    assert!(message.contains("roles.jsonl:2: chat template: invalid operation: no narrator"), "{message}");
    assert_eq!(run(BadLines::Skip { listed: 0 }).expect("two others").pairs.len(), 2);
}

#[test]
fn what_is_no_broken_line_is_not_skipped() {
    let records = [Err(DataError::NoEnd)];
    let found = tokenize(records, &tokenizer(&[]), Limits::default(), Policy::default(), BadLines::Skip { listed: 9 });
    assert!(matches!(found, Err(DataError::NoEnd)));
}

#[test]
fn conversations_without_a_template_are_refused_at_once() {
    let record = super::record(r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}"#);
    let message = refusal(super::under(vec![record], &tokenizer(&[]), Limits::default(), Policy::default()));
    assert!(message.starts_with("conversations need a chat template"), "{message}");
}
