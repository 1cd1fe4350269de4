//! Records in tokens: where prompt and response part, what begins and ends them, what is cut, dropped and counted.

use prefopt::data::{
    BadLines, Column, Dropped, EmptyResponse, Ending, Limits, LongPrompt, LongResponse, Policy, Record, SplitPair,
    TextTokenizer, Texts, Tie, tokenizers::Tokenizer,
};
use proptest::prelude::*;

use super::{chat, record, refusal, say, special, spell, tokenized, tokenizer, tokenizer_json, under};

fn plain(prompt: &str, chosen: &str, rejected: &str) -> Record {
    let [prompt, chosen, rejected] = [prompt, chosen, rejected].map(str::to_owned);
    Record::new(Texts::Plain { prompt, chosen, rejected })
}

fn spelled(tokenizer: &TextTokenizer, pair: &SplitPair) -> [String; 3] {
    [&pair.prompt, &pair.chosen, &pair.rejected].map(|tokens| spell(tokenizer, tokens))
}

#[track_caller]
fn split(tokenizer: &TextTokenizer, record: &Record) -> [String; 3] {
    spelled(tokenizer, &tokenizer.split(record).expect("text"))
}

#[test]
fn prompt_and_responses_part_at_a_token_of_all_three() {
    let plain_tokens = tokenizer(&[]);
    let found = plain_tokens.split(&plain("ab", "cd", "c")).expect("text");
    assert_eq!(spelled(&plain_tokens, &found), ["<s>|a|b", "c|d|</s>", "c|</s>"]);
    assert_eq!(found.moved, 0);
    // b and c are one token: the prompt ends before it, for both responses, also the one that it is not part of.
    let merging = tokenizer(&[("b", "c")]);
    let found = merging.split(&plain("ab", "cd", "x")).expect("text");
    assert_eq!(spelled(&merging, &found), ["<s>|a", "bc|d|</s>", "b|x|</s>"]);
    assert_eq!(found.moved, 1);
    // A space that belongs to the word after it.
    let spaced = tokenizer(&[(" ", "c")]);
    assert_eq!(split(&spaced, &plain("ab ", "cd", "d")), ["<s>|a|b", " c|d|</s>", " |d|</s>"]);
    // The responses' own common start is theirs.
    assert_eq!(split(&plain_tokens, &plain("a", "bc", "bd")), ["<s>|a", "b|c|</s>", "b|d|</s>"]);
}

#[test]
fn a_sequence_begins_and_ends_once() {
    let with_begin = tokenizer(&[]);
    // Text that brings its own tokens.
    assert_eq!(split(&with_begin, &plain("<s>a", "b</s>", "c")), ["<s>|a", "b|</s>", "c|</s>"]);
    // tokenizer.json without a begin token, and a configuration that asks for one.
    let of = |config: &str| {
        let folder = super::Folder::new();
        folder.file("tokenizer.json", tokenizer_json(&[], false));
        folder.file("tokenizer_config.json", config);
        TextTokenizer::from_folder(&folder).expect("a tokenizer")
    };
    let bare = of(r#"{"bos_token": "<s>", "eos_token": "</s>"}"#);
    assert_eq!(split(&bare, &plain("a", "b", "c")), ["a", "b|</s>", "c|</s>"]);
    let asked = of(r#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}"#);
    assert_eq!(split(&asked, &plain("a", "b", "c")), ["<s>|a", "b|</s>", "c|</s>"]);
    assert_eq!(split(&asked, &plain("<s>a", "b", "c")), ["<s>|a", "b|</s>", "c|</s>"]);
    // The truncation to 3 tokens that this tokenizer.json asks for is off.
    assert_eq!(asked.plain("abcdef").expect("text").len(), 7);
    assert_eq!(asked.decode(&asked.plain("a bc").expect("text")).expect("tokens"), "a bc");
}

#[test]
fn a_conversation_has_what_its_template_writes_and_no_more() {
    let chat = chat(
        "{{ bos_token }}{% for m in messages %}{{ m.role[:1] }}:{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}",
    );
    let record = record(r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": "x", "rejected": "y"}"#);
    // Trimmed blocks take the line break after `endif` with them.
    assert_eq!(split(&chat, &record), ["<s>|u|:|q|a|:", "x|</s>", "y|</s>"]);
    let tokens = chat.conversation(&[say("user", "q")], None, Ending::Complete).expect("text");
    assert_eq!(spell(&chat, &tokens), "<s>|u|:|q");
    // A template that ends without an end token gets none.
    let open = super::chat("{% for m in messages %}{{ m.content }}{% endfor %}");
    assert_eq!(split(&open, &record), ["q", "x", "y"]);
}

#[test]
fn a_template_that_writes_a_part_differently_moves_the_split() {
    // The generation prompt opens a thought that the whole does not have.
    let chat = chat("{% for m in messages %}{{ m.content }};{% endfor %}{% if add_generation_prompt %}<t>{% endif %}");
    let record = record(r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": "x", "rejected": "<y"}"#);
    let found = chat.split(&record).expect("text");
    assert_eq!(spelled(&chat, &found), ["q|;", "x|;", "<|y|;"]);
    assert_eq!(found.moved, 3);
    assert_eq!(tokenized(vec![record], &chat).report.moved, 1);
}

proptest! {
    /// The parts are the whole: nothing is lost, made up or scored twice, wherever tokens merge.
    #[test]
    fn the_parts_are_the_whole(prompt in "[abc ]{0,8}", chosen in "[abc ]{1,8}", rejected in "[abc ]{1,8}") {
        let tokenizer = tokenizer(&[("a", "b"), ("b", "c"), (" ", "a"), ("ab", "c"), ("c", " a")]);
        let pair = tokenizer.split(&plain(&prompt, &chosen, &rejected)).expect("text");
        for (response, text) in [(&pair.chosen, &chosen), (&pair.rejected, &rejected)] {
            let mut whole = tokenizer.plain(&[prompt.as_str(), text].concat()).expect("text");
            whole.push(tokenizer.end());
            prop_assert_eq!([pair.prompt.as_slice(), response].concat(), whole);
        }
        let alone = tokenizer.plain(&prompt).expect("text");
        prop_assert!(alone.starts_with(&pair.prompt));
        prop_assert_eq!(pair.moved, alone.len() - pair.prompt.len());
        // And it is the longest such prompt.
        let next = |tokens: &[u32]| tokens.get(pair.prompt.len()).copied();
        let goes_on = pair.chosen.first() == pair.rejected.first() && next(&alone) == pair.chosen.first().copied();
        prop_assert!(!goes_on);
    }
}

#[test]
fn limits_cut_and_drop_and_say_so() {
    let tokens = tokenizer(&[]);
    let limits = |context: usize| Limits::new(context).expect("room for both");
    let run = |record: Record, limits: Limits, policy: Policy| {
        let found = under(vec![record], &tokens, limits, policy).expect("no fault");
        let parts = found.pairs.pair(0).map(|p| [p.prompt, p.chosen, p.rejected].map(|part| spell(&tokens, part)));
        (parts, found.report)
    };
    // Cut at the context: no end token after what is cut.
    let (parts, report) = run(plain("ab", "cdef", "g"), limits(5), Policy::default());
    assert_eq!(parts.expect("kept"), ["<s>|a|b", "c|d", "g|</s>"]);
    assert_eq!((report.kept, report.cut, report.dropped), (1, 1, Dropped::default()));
    // As long as the context: whole.
    let (parts, report) = run(plain("ab", "cd", "g"), limits(6), Policy::default());
    assert_eq!((parts.expect("kept")[1].as_str(), report.cut), ("c|d|</s>", 0));
    let short = limits(9).with_longest_response(1).expect("1 is enough");
    assert_eq!(run(plain("a", "bcd", "c"), short, Policy::default()).0.expect("kept"), ["<s>|a", "b", "c"]);
    let drop_long = Policy { long_response: LongResponse::Drop, ..Policy::default() };
    let (parts, report) = run(plain("ab", "cdef", "g"), limits(5), drop_long);
    assert_eq!((parts, report.dropped), (None, Dropped { long_response: 1, ..Dropped::default() }));
    // A prompt that alone fills the context.
    let (parts, report) = run(plain("abcd", "x", "y"), limits(5), Policy::default());
    assert_eq!((parts, report.dropped), (None, Dropped { long_prompt: 1, ..Dropped::default() }));
    assert!(run(plain("abc", "x", "y"), limits(5), Policy::default()).0.is_some());
    let narrow = limits(9).with_longest_prompt(3).expect("1 is enough");
    let keep_end = Policy { long_prompt: LongPrompt::KeepEnd, ..Policy::default() };
    assert_eq!(run(plain("abcd", "x", "y"), narrow, keep_end).0.expect("kept"), ["<s>|c|d", "x|</s>", "y|</s>"]);
    assert_eq!(run(plain("abcd", "x", "y"), narrow, Policy::default()).1.dropped.long_prompt, 1);
    // Same after the cut.
    let (parts, report) = run(plain("a", "bcd", "bce"), limits(4), Policy::default());
    assert_eq!((parts, report.dropped), (None, Dropped { identical: 1, ..Dropped::default() }));
    // What the file says of the reference is not true of what is left.
    let record = plain("ab", "cdef", "g").with(Column::RefChosenLogps, -3.0).with(Column::ScoreChosen, 1.0);
    let cut = under(vec![record], &tokens, limits(5), Policy::default()).expect("no fault").pairs;
    assert_eq!(cut.column(Column::ScoreChosen).expect("a score"), [1.0]);
    let message = refusal(cut.column(Column::RefChosenLogps));
    assert_eq!(message, "the column `ref_chosen_logps` was asked for, but pair 0 has none");
}

#[test]
fn what_says_nothing_is_dropped_and_counted() {
    let tokens = tokenizer(&[]);
    let records = || {
        let mut tie = plain("p", "a", "b");
        tie.label = 0.5;
        vec![plain("p", "a", "a"), plain("p", " \n", "b"), plain("p", "a", ""), tie, plain("p", "a", "b")]
    };
    let dropped = |policy: Policy| under(records(), &tokens, Limits::default(), policy).expect("no fault").report;
    let usual = dropped(Policy::default());
    assert_eq!((usual.kept, usual.dropped.total()), (2, 3));
    assert_eq!(usual.dropped, Dropped { identical: 1, empty_response: 2, ..Dropped::default() });
    assert_eq!(
        usual.to_string(),
        "2 pairs kept (0 cut), 3 dropped\n  1 with identical responses\n  2 with an empty response"
    );
    let no_ties = dropped(Policy { tie: Tie::Drop, ..Policy::default() });
    assert_eq!(no_ties.dropped, Dropped { tied: 1, identical: 1, empty_response: 2, ..Dropped::default() });
    // Kept, an empty response is its end token.
    let keep = Policy { empty_response: EmptyResponse::Keep, ..Policy::default() };
    let kept = under(records(), &tokens, Limits::default(), keep).expect("no fault").pairs;
    let spelled: Vec<_> = kept.iter().map(|pair| spell(&tokens, pair.rejected)).collect();
    assert_eq!(spelled, ["b|</s>", "</s>", "b|</s>", "b|</s>"]);
    // An empty conversation, and a prompt without a token.
    let chat = chat("{% for m in messages %}{{ m.content }}{% endfor %}");
    let empty = record(r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": " ", "rejected": "y"}"#);
    assert_eq!(tokenized(vec![empty], &chat).report.dropped, Dropped { empty_response: 1, ..Dropped::default() });
    let bare = Tokenizer::from_bytes(tokenizer_json(&[], false)).expect("a tokenizer");
    let bare = TextTokenizer::new(bare, &special()).expect("its tokens");
    assert_eq!(
        tokenized(vec![plain("", "a", "b")], &bare).report.dropped,
        Dropped { empty_prompt: 1, ..Dropped::default() }
    );
}

#[test]
fn the_order_of_records_is_kept_over_chunks_and_threads() {
    let tokens = tokenizer(&[]);
    let records = (0..5000).map(|index| plain("p", &index.to_string(), "x")).collect();
    let pairs = tokenized(records, &tokens).pairs;
    let found: Vec<String> = pairs.iter().map(|pair| tokens.decode(pair.chosen).expect("tokens")).collect();
    assert_eq!(found, (0..5000).map(|index| index.to_string()).collect::<Vec<_>>());
}

#[test]
fn limits_and_policies_are_read_as_they_are_made() {
    assert_eq!(refusal(Limits::new(1)), "context must be at least 2 tokens, got 1");
    assert_eq!(refusal(Limits::default().with_longest_prompt(0)), "longest_prompt must be at least 1 tokens, got 0");
    assert_eq!(
        refusal(Limits::default().with_longest_response(0)),
        "longest_response must be at least 1 tokens, got 0"
    );
    let limits = Limits::new(64).and_then(|limits| limits.with_longest_prompt(32)).expect("limits");
    let text = serde_json::to_string(&limits).expect("JSON");
    assert_eq!(serde_json::from_str::<Limits>(&text).expect("limits"), limits);
    assert_eq!(serde_json::from_str::<Limits>(r#"{"context": 1024}"#).expect("limits"), Limits::default());
    assert!(refusal(serde_json::from_str::<Limits>(r#"{"context": 0}"#)).starts_with("context must be at least 2"));
    assert!(serde_json::from_str::<Limits>(r#"{"context": 9, "longest": 3}"#).is_err());
    let policy: Policy = serde_json::from_str(r#"{"long_prompt": "keep_end", "tie": "drop"}"#).expect("a policy");
    assert_eq!(policy, Policy { long_prompt: LongPrompt::KeepEnd, tie: Tie::Drop, ..Policy::default() });
    let bad: BadLines = serde_json::from_str(r#"{"skip": {"listed": 5}}"#).expect("a choice");
    assert_eq!(bad, BadLines::Skip { listed: 5 });
}
