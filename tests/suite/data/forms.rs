//! The forms of a line: what prompt, responses, label, votes and numbers they become.

use prefopt::data::{Column, Record, Texts, Vote};
use proptest::prelude::*;

use super::{read, record, refusal, say};

#[track_caller]
fn plain(record: &Record) -> [&str; 3] {
    match &record.texts {
        Texts::Plain { prompt, chosen, rejected } => [prompt, chosen, rejected],
        Texts::Conversation { .. } => panic!("a conversation: {record:?}"),
    }
}

/// `role:content` of each message, with `/` between them.
#[track_caller]
fn conversation(record: &Record) -> [String; 3] {
    match &record.texts {
        Texts::Conversation { prompt, chosen, rejected, .. } => [prompt, chosen, rejected].map(|part| {
            let said = |m: &prefopt::data::Message| format!("{}:{}", m.role(), m.content().unwrap_or_default());
            part.iter().map(said).collect::<Vec<_>>().join("/")
        }),
        Texts::Plain { .. } => panic!("plain text: {record:?}"),
    }
}

#[test]
fn an_explicit_prompt_stays_as_it_is() {
    let record =
        record(r#"{"prompt": "a ", "chosen": " b\n", "rejected": "", "other": [1, {"x": 2}], "margin": null}"#);
    assert_eq!(plain(&record), ["a ", " b\n", ""]);
    assert_eq!((record.label, record.votes.len(), record.number(Column::Margin)), (1.0, 0, None));
    assert_eq!(record.origin.line, 1);
}

#[test]
fn an_implicit_prompt_ends_with_the_last_common_turn_or_word() {
    // Chosen, rejected, and what they become.
    let cases = [
        // HH: the responses begin with the same words, which are not the prompt's.
        (
            "\n\nHuman: Hi\n\nAssistant: I am fine",
            "\n\nHuman: Hi\n\nAssistant: I am not",
            ["\n\nHuman: Hi\n\nAssistant:", " I am fine", " I am not"],
        ),
        (
            "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
            "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: E",
            ["\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:", " D", " E"],
        ),
        // Conversations that part early keep their later turns.
        (
            "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
            "\n\nHuman: A\n\nAssistant: X",
            ["\n\nHuman: A\n\nAssistant:", " B\n\nHuman: C\n\nAssistant: D", " X"],
        ),
        // Other text: a whole word, and the space goes to the responses.
        ("What is good gold", "What is good goods", ["What is good", " gold", " goods"]),
        ("The cat", "The cats", ["The", " cat", " cats"]),
        ("The cat", "The dog", ["The", " cat", " dog"]),
        ("Answer:yes", "Answer:no", ["Answer:", "yes", "no"]),
        ("One\ntwo", "One\nthree", ["One\n", "two", "three"]),
        ("a  b", "a  c", ["a ", " b", " c"]),
        ("one, two", "one", ["one", ", two", ""]),
        ("ätsch", "ärger", ["", "ätsch", "ärger"]),
        ("x ä", "x ö", ["x", " ä", " ö"]),
    ];
    for (chosen, rejected, expected) in cases {
        let line = serde_json::json!({"chosen": chosen, "rejected": rejected}).to_string();
        assert_eq!(plain(&record(&line)), expected, "{chosen:?} and {rejected:?}");
    }
}

proptest! {
    /// Nothing is lost or made up, and no word is cut in two.
    #[test]
    fn an_implicit_prompt_and_a_response_are_the_text(stem in "[ab ä]{0,12}", a in "[ab ä]{1,8}", b in "[ab ä]{1,8}") {
        let [chosen, rejected] = [&a, &b].map(|end| [stem.as_str(), end].concat());
        let line = serde_json::json!({"chosen": chosen, "rejected": rejected}).to_string();
        let record = record(&line);
        let [prompt, y_w, y_l] = plain(&record);
        prop_assert_eq!([prompt, y_w].concat(), chosen);
        prop_assert_eq!([prompt, y_l].concat(), rejected);
        let in_word = |response: &str| prompt.ends_with(char::is_alphanumeric) && response.starts_with(char::is_alphanumeric);
        prop_assert!(!in_word(y_w) && !in_word(y_l), "{:?} {:?} {:?}", prompt, y_w, y_l);
    }
}

#[test]
fn conversations_part_at_the_last_common_message() {
    let (user, a, b) = (
        r#"{"role":"user","content":"Q"}"#,
        r#"{"role":"assistant","content":"A"}"#,
        r#"{"role":"assistant","content":"B"}"#,
    );
    let expected = ["user:Q", "assistant:A", "assistant:B"].map(str::to_owned);
    let same = [
        // Explicit, implicit, explicit and repeated, as text that is repeated (UltraFeedback), as text that is not,
        // with responses as text.
        format!(r#"{{"prompt": [{user}], "chosen": [{a}], "rejected": [{b}]}}"#),
        format!(r#"{{"chosen": [{user}, {a}], "rejected": [{user}, {b}]}}"#),
        format!(r#"{{"prompt": [{user}], "chosen": [{user}, {a}], "rejected": [{user}, {b}]}}"#),
        format!(r#"{{"prompt": "Q", "chosen": [{user}, {a}], "rejected": [{user}, {b}]}}"#),
        format!(r#"{{"prompt": "Q", "chosen": [{a}], "rejected": [{b}]}}"#),
        format!(r#"{{"prompt": [{user}], "chosen": "A", "rejected": "B"}}"#),
    ];
    for line in same {
        assert_eq!(conversation(&record(&line)), expected, "{line}");
    }
    // One that goes on where the other ends, and twins: each keeps a message of its own.
    let longer = record(&format!(r#"{{"chosen": [{user}, {a}], "rejected": [{user}, {a}, {user}, {b}]}}"#));
    assert_eq!(conversation(&longer), ["user:Q", "assistant:A", "assistant:A/user:Q/assistant:B"].map(str::to_owned));
    let twins = record(&format!(r#"{{"chosen": [{user}, {a}], "rejected": [{user}, {a}]}}"#));
    assert_eq!(conversation(&twins), ["user:Q", "assistant:A", "assistant:A"].map(str::to_owned));
}

#[test]
fn messages_keep_what_templates_read_and_lose_what_is_null() {
    let call = r#"{"role": "assistant", "content": null, "name": null, "tool_calls": [{"z": 1, "a": 2}]}"#;
    let parts = r#"{"role": "user", "content": [{"type": "text", "text": "on"}, {"type": "text", "text": "e"}]}"#;
    let line = format!(
        r#"{{"prompt": [{parts}], "chosen": [{call}], "rejected": [{{"role": "assistant", "content": "x"}}], "tools": [{{"name": "t"}}]}}"#
    );
    let record = record(&line);
    assert_eq!(conversation(&record), ["user:one", "assistant:", "assistant:x"].map(str::to_owned));
    let Texts::Conversation { chosen, tools, .. } = &record.texts else { panic!("a conversation") };
    assert_eq!(
        serde_json::to_string(chosen).expect("JSON"),
        r#"[{"role":"assistant","tool_calls":[{"z":1,"a":2}]}]"#,
        "in the order of the file"
    );
    assert_eq!(tools, &Some(serde_json::json!([{"name": "t"}])));
}

#[test]
fn votes_say_which_response_is_called_chosen() {
    let line =
        |votes: &str, rest: &str| format!(r#"{{"prompt": "p", "responses": ["a", "b"], "votes": [{votes}]{rest}}}"#);
    let vote = |annotator: &str, for_chosen: f64| Vote { annotator: annotator.to_owned(), for_chosen };
    // Two of three for the second: it is called chosen, and the votes are turned with it.
    let votes = r#"{"annotator": 0, "choice": 1}, {"annotator": "k", "choice": 0}, {"annotator": 7, "choice": 1}"#;
    let second = record(&line(votes, r#", "gold": 0"#));
    assert_eq!(plain(&second), ["p", "b", "a"]);
    assert_eq!(second.votes, [vote("0", 1.0), vote("k", 0.0), vote("7", 1.0)]);
    assert!((second.label - 2.0 / 3.0).abs() < 1e-15, "{}", second.label);
    assert_eq!(second.number(Column::Gold), Some(0.0), "the gold label is for the first, now rejected");
    // For the first, with a vote between.
    let votes = r#"{"annotator": 0, "choice": 0}, {"annotator": 1, "choice": 0.75}"#;
    let first = record(&line(votes, r#", "gold": null, "weight": 2"#));
    assert_eq!(plain(&first), ["p", "a", "b"]);
    assert_eq!((first.label, &first.votes[1], first.number(Column::Weight)), (0.625, &vote("1", 0.25), Some(2.0)));
    // A tie keeps the order.
    let tie = record(&line(r#"{"annotator": 0, "choice": 0.5}"#, ""));
    assert_eq!((plain(&tie), tie.label), (["p", "a", "b"], 0.5));
    // Without votes: the gold label, or a soft label for the first.
    let gold = record(r#"{"prompt": "p", "responses": ["a", "b"], "gold": 1}"#);
    assert_eq!((plain(&gold), gold.label, gold.number(Column::Gold)), (["p", "b", "a"], 1.0, Some(1.0)));
    let soft = record(r#"{"prompt": "p", "responses": ["a", "b"], "soft_label": 0.2}"#);
    assert_eq!((plain(&soft), soft.label), (["p", "b", "a"], 0.8));
    // Where chosen and rejected are said, they stay so, and the choice 0 is for chosen.
    let said = record(
        r#"{"prompt": "p", "chosen": "a", "rejected": "b", "votes": [{"annotator": 1, "choice": 1}], "gold": 1}"#,
    );
    assert_eq!((plain(&said), said.label, said.number(Column::Gold)), (["p", "a", "b"], 0.0, Some(0.0)));
}

#[test]
fn numbers_come_by_their_names() {
    let line = r#"{"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1.5, "ref_chosen_logps": -10, "ref_rejected_logps": -11.25,
        "score_chosen": 3, "score_rejected": 4e2, "weight": 0}"#;
    let record = record(&line.replace('\n', " "));
    let expected = [Some(0.0), Some(-1.5), None, Some(-10.0), Some(-11.25), Some(3.0), Some(400.0)];
    assert_eq!(Column::ALL.map(|column| record.number(column)), expected);
    for column in Column::ALL {
        assert_eq!(serde_json::to_value(column).expect("JSON"), column.name());
    }
}

#[test]
fn hh_text_and_plain_text_become_conversations_when_asked() {
    let hh = record(
        r#"{"chosen": "\n\nHuman: A \n\nAssistant: B\n\nHuman: C\n\nAssistant: D", "rejected": "\n\nHuman: A \n\nAssistant: B\n\nHuman: C\n\nAssistant: E\n\nHuman: F"}"#,
    );
    let expected = ["user:A/assistant:B/user:C", "assistant:D", "assistant:E/user:F"].map(str::to_owned);
    assert_eq!(conversation(&hh.into_conversation()), expected);
    let text = record(r#"{"prompt": "What?\n", "chosen": " This", "rejected": "That"}"#).into_conversation();
    assert_eq!(conversation(&text), ["user:What?\n", "assistant: This", "assistant:That"].map(str::to_owned));
    let Texts::Conversation { prompt, .. } = &text.texts else { panic!("a conversation") };
    assert_eq!(prompt, &[say("user", "What?\n")]);
    assert_eq!(text.clone().into_conversation(), text, "a conversation stays one");
}

#[test]
fn what_is_no_pair_is_refused_by_name() {
    let pair = |rest: &str| format!(r#"{{"prompt": "p", "responses": ["a", "b"]{rest}}}"#);
    let said = |rest: &str| format!(r#"{{"prompt": "p", "chosen": "a", "rejected": "b"{rest}}}"#);
    let (user, reply) = (r#"[{"role": "user", "content": "Q"}]"#, r#"[{"role": "assistant", "content": "A"}]"#);
    let text = "must be text or a list of {role, content} messages";
    let cases = [
        ("[1]".to_owned(), "the line is no JSON object".to_owned()),
        (
            r#"{"chosen": "a" "rejected": "b"}"#.to_owned(),
            "no JSON record: expected `,` or `}` at column 16".to_owned(),
        ),
        (
            r#"{"chosen": "a", "chosen": "b"}"#.to_owned(),
            "no JSON record: duplicate field `chosen` at column 24".to_owned(),
        ),
        (r#"{"chosen": "a"}"#.to_owned(), "there is no `rejected`".to_owned()),
        (r#"{"rejected": "a", "chosen": null}"#.to_owned(), "there is no `chosen`".to_owned()),
        (r#"{"prompt": 1, "chosen": "a", "rejected": "b"}"#.to_owned(), format!("`prompt` {text}, got a number")),
        (r#"{"prompt": "p", "chosen": {}, "rejected": "b"}"#.to_owned(), format!("`chosen` {text}, got an object")),
        (
            r#"{"chosen": [{"role": "user"}, 3], "rejected": []}"#.to_owned(),
            format!("`chosen` {text}, got a list of something else"),
        ),
        (
            r#"{"chosen": [{"content": "x"}], "rejected": []}"#.to_owned(),
            format!("`chosen` {text}, got a list of something else"),
        ),
        (pair(r#", "chosen": "a", "gold": 0"#), "`chosen` and `responses` cannot stand together".to_owned()),
        (pair(r#", "margin": 1, "gold": 0"#), "`responses` and `margin` cannot stand together".to_owned()),
        (pair(""), "`responses` need `votes`, `soft_label` or `gold`".to_owned()),
        (pair(r#", "votes": []"#), "`responses` need `votes`, `soft_label` or `gold`".to_owned()),
        (pair(r#", "votes": {}"#), "`votes` must be a list of {annotator, choice}, got an object".to_owned()),
        (
            pair(r#", "votes": [{"choice": 1}]"#),
            "`votes` must be a list of {annotator, choice}, got a list of something else".to_owned(),
        ),
        (pair(r#", "votes": [{"annotator": 1, "choice": 2}]"#), "`choice` must be in [0, 1], got 2".to_owned()),
        (pair(r#", "votes": [{"annotator": 1, "choice": "b"}]"#), "`choice` must be a number, got text".to_owned()),
        (
            pair(r#", "votes": [{"annotator": 1, "choice": 1}], "soft_label": 1"#),
            "`soft_label` and `votes` cannot stand together".to_owned(),
        ),
        (
            r#"{"prompt": "p", "responses": ["a", "b", "c"], "gold": 0}"#.to_owned(),
            "`responses` must be a list of two responses, got a list of another length".to_owned(),
        ),
        (
            r#"{"prompt": "p", "responses": "ab", "gold": 0}"#.to_owned(),
            "`responses` must be a list of two responses, got text".to_owned(),
        ),
        (said(r#", "weight": -1"#), "`weight` must be at least 0 and finite, got -1".to_owned()),
        (said(r#", "gold": 1.5"#), "`gold` must be in [0, 1], got 1.5".to_owned()),
        (said(r#", "soft_label": -0.5"#), "`soft_label` must be in [0, 1], got -0.5".to_owned()),
        (said(r#", "score_chosen": "high""#), "`score_chosen` must be a number, got text".to_owned()),
        (
            format!(r#"{{"chosen": {reply}, "rejected": "b"}}"#),
            "one response is text, the other a list of messages".to_owned(),
        ),
        (
            format!(r#"{{"chosen": {reply}, "rejected": {reply}}}"#),
            "there is no `prompt`, and the responses begin with no common message or `\\n\\nAssistant:` turn"
                .to_owned(),
        ),
        (
            r#"{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}"#.to_owned(),
            "there is no `prompt`, and the responses begin with no common message or `\\n\\nAssistant:` turn"
                .to_owned(),
        ),
        (
            format!(r#"{{"prompt": "other", "chosen": {user}, "rejected": {user}}}"#),
            "`prompt` is none of the messages that `chosen` and `rejected` begin with".to_owned(),
        ),
    ];
    for (line, expected) in cases {
        let mut found = read(&line);
        assert_eq!(found.len(), 1, "{line}");
        let message = refusal(found.remove(0));
        assert!(message.ends_with(&format!("pairs.jsonl:1: {expected}")), "{line}: {message}");
    }
}
