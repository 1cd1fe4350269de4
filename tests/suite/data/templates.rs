//! Chat templates against what transformers writes, and where a folder keeps them.

use std::time::{Duration, UNIX_EPOCH};

use prefopt::data::{ChatTemplate, Ending, Message, SpecialTokens, TextTokenizer, serde_json::Value};

use super::{Folder, GOLDEN, refusal, say, special, tokenizer_json};

fn render(template: &ChatTemplate, messages: &[Message], ending: Ending) -> String {
    template.render(&messages.iter().collect::<Vec<_>>(), None, ending).expect("a template that renders")
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &special()).expect("a template that compiles")
}

#[test]
fn templates_write_what_transformers_writes() {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    for case in GOLDEN["cases"].as_array().expect("a list") {
        let (name, conversation) = (text(&case["template"]), text(&case["conversation"]));
        let messages: Vec<Message> =
            serde_json::from_value(GOLDEN["conversations"][&conversation].clone()).expect("messages");
        let mut template = template(&text(&GOLDEN["templates"][&name]));
        for (variable, value) in case["variables"].as_object().expect("variables") {
            template = template.with_variable(variable, value);
        }
        let ending = if case["reply"] == true { Ending::Reply } else { Ending::Complete };
        let tools = (case["tools"] == true).then_some(&GOLDEN["tools"]);
        let found = template.render(&messages.iter().collect::<Vec<_>>(), tools, ending);
        let what = format!("{name} of {conversation}, {ending:?}, {}", case["variables"]);
        match case.get("error") {
            Some(error) => {
                let message = refusal(found);
                assert!(message.contains(error.as_str().expect("text")), "{what}: {message}");
            }
            None => assert_eq!(found.expect("no error"), text(&case["text"]), "{what}"),
        }
    }
}

#[test]
fn a_clock_is_there_only_when_it_is_set() {
    let ask = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y, %H:%M') }}{% else %}never{% endif %}";
    assert_eq!(render(&template(ask), &[], Ending::Complete), "never");
    let at = |seconds: u64| template(ask).with_time(UNIX_EPOCH + Duration::from_secs(seconds));
    // Python: datetime.fromtimestamp(n, UTC).strftime(..).
    for (seconds, expected) in [
        (0, "01 Jan 1970, 00:00"),
        (951_782_399, "28 Feb 2000, 23:59"),
        (951_782_400, "29 Feb 2000, 00:00"),
        (951_868_800, "01 Mar 2000, 00:00"),
        (1_735_689_599, "31 Dec 2024, 23:59"),
        (4_107_542_400, "01 Mar 2100, 00:00"),
    ] {
        assert_eq!(render(&at(seconds), &[], Ending::Complete), expected);
    }
    let all = template("{{ strftime_now('%A %a %B %-d %e %j %y %m %I %p %-I %F %T %D %%') }}");
    let all = all.with_time(UNIX_EPOCH + Duration::from_secs(1_709_647_505));
    assert_eq!(
        render(&all, &[], Ending::Complete),
        "Tuesday Tue March 5  5 065 24 03 02 PM 2 2024-03-05 14:05:05 03/05/24 %"
    );
    let unknown = template("{{ strftime_now('%Q') }}").with_time(UNIX_EPOCH);
    assert!(refusal(unknown.render(&[], None, Ending::Complete)).contains("strftime_now knows no directive %Q"));
}

#[test]
fn what_does_not_compile_is_refused_with_its_line() {
    let message = refusal(ChatTemplate::new("\n{% for m in messages %}", &special()));
    assert!(message.starts_with("chat template: syntax error: "), "{message}");
    assert!(message.contains("chat_template:"), "{message}");
}

#[test]
fn a_folder_says_which_template_and_which_tokens() {
    let hello = [say("user", "hello")];
    let of = |files: &[(&str, &str)]| {
        let folder = Folder::new();
        files.iter().for_each(|(name, content)| drop(folder.file(name, content)));
        ChatTemplate::from_folder(&folder).map(|template| render(&template, &hello, Ending::Complete))
    };
    let config = r#"{"bos_token": {"content": "<b>", "lstrip": false}, "eos_token": null, "chat_template": "{{ bos_token }}{{ eos_token }}1"}"#;
    assert_eq!(of(&[("tokenizer_config.json", config)]).expect("a template"), "<b>1");
    // What the configuration leaves out lies in the map; what both say is the configuration's.
    let map = r#"{"bos_token": "<other>", "eos_token": "<e>", "additional_special_tokens": ["<x>"]}"#;
    let both = [("tokenizer_config.json", config), ("special_tokens_map.json", map)];
    assert_eq!(of(&both).expect("a template"), "<b><e>1");
    let file = ("chat_template.jinja", "{{ messages[0].content }}\n");
    assert_eq!(of(&[both[0], both[1], file]).expect("a template"), "hello", "a file of its own goes first");
    let several = r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    assert_eq!(of(&[("tokenizer_config.json", several)]).expect("a template"), "D");
    assert!(refusal(of(&[("tokenizer_config.json", "{}")])).starts_with("conversations need a chat template"));
    assert!(refusal(of(&[("tokenizer_config.json", "{")])).contains("tokenizer_config.json: "));
}

#[test]
fn a_tokenizer_needs_an_end_and_a_vocabulary_that_fits() {
    let of = |config: &str| {
        let folder = Folder::new();
        folder.file("tokenizer.json", tokenizer_json(&[], false));
        folder.file("tokenizer_config.json", config);
        TextTokenizer::from_folder(&folder)
    };
    assert!(refusal(of("{}")).starts_with("the tokenizer names no end-of-sequence token"));
    let message = refusal(of(r#"{"eos_token": "<end>"}"#));
    assert_eq!(message, "eos_token is \"<end>\", which the tokenizer's vocabulary lacks");
    let tokenizer = of(r#"{"eos_token": "</s>"}"#).expect("a tokenizer");
    assert_eq!((tokenizer.begin(), tokenizer.end(), tokenizer.template().is_some()), (None, 2, false));
    // 4 and the 95 printable characters of ASCII.
    tokenizer.fits(99).expect("a vocabulary as large");
    tokenizer.fits(128).expect("a padded one");
    let message = refusal(tokenizer.fits(98));
    assert_eq!(
        message,
        "the tokenizer has token ids up to 98, the model a vocabulary of 98: they do not belong together"
    );
    assert!(refusal(TextTokenizer::from_folder("/no/such/folder")).starts_with("/no/such/folder/tokenizer.json: "));
    assert_eq!(SpecialTokens::from_folder("/no/such/folder").expect("nothing"), SpecialTokens::default());
}
