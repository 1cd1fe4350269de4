//! What `train --losses` prints.

use std::fmt::Write;

use super::{
    catalogue::{ALIASES, LOSSES, REFUSED, SUMS},
    keys::{Key, Of, Takes},
};

const HEAD: &str = "\
--loss NAME, NAME:KEY=VALUE,KEY=VALUE, or a sum NAME:… + WEIGHT*NAME:… whose first loss has weight 1
for example: e-dpo:beta=0.1,minimum=hull + 0.001*forward-kl

w is the chosen response and l the rejected one; u = log π − log π_ref, summed over tokens, r = βu, h = u_w − u_l,
m = log π/tokens, Δr a reward model's margin, P a win rate. Numbers and first words below are the defaults.
";

const AROUND: &str = "
Keys of every loss of pairs
  weighted=uncertainty            times e^(−s/temperature), s a family's standard deviation of the margin
          =response_uncertainty   s the sum of those of the two responses' scores; temperature=1
  wpo=true                        times WPO's weight of the pair, how likely the policy is to give both responses

Keys of losses of the margin alone
  under=forward_kl|js_divergence|alpha_divergence|reverse_kl
                                  the f-divergence against the reference in place of reverse KL; alpha=0.5 is an order
  per_token=true                  log-ratios as means over tokens: β should be 5 or more

Keys of the whole batch, with the first loss
  transform=per_token             log-probabilities as means over tokens
           =reference_free        without the reference
           =length_desensitised   tokens beyond the shorter response's length count tail_weight=0.5 (LD-DPO)
";

pub fn listing() -> String {
    let mut text = HEAD.to_owned();
    losses(&mut text, "Losses of the log-ratio margin alone", &[Of::Margin]);
    losses(&mut text, "Other losses of pairs", &[Of::Pair]);
    losses(
        &mut text,
        "Losses that stand alone, of single responses or of a prompt's samples",
        &[Of::Response, Of::Prompt],
    );
    sums(&mut text);
    aliases(&mut text);
    text.push_str(AROUND);
    refused(&mut text);
    text
}

/// A `String` takes every line.
fn line(text: &mut String, name: &str, rest: &str) {
    writeln!(text, "  {name:<21} {rest}").expect("writing to a string cannot fail");
}

fn title(text: &mut String, title: &str) {
    writeln!(text, "\n{title}").expect("writing to a string cannot fail");
}

fn losses(text: &mut String, heading: &str, of: &[Of]) {
    title(text, heading);
    for entry in LOSSES.iter().filter(|entry| of.contains(&entry.of)) {
        line(text, entry.name, entry.equation);
        if !entry.keys.is_empty() {
            line(text, "", &entry.keys.iter().map(with_default).collect::<Vec<_>>().join(", "));
        }
    }
}

fn with_default(key: &Key) -> String {
    let default = key.default.unwrap_or("…");
    match key.takes {
        Takes::Word(words) => format!("{}={}", key.name, words.join("|")),
        Takes::NumberOr(word) if word == default => format!("{}={word}|number", key.name),
        Takes::NumberOr(word) => format!("{}={default}|{word}", key.name),
        Takes::Number | Takes::Switch => format!("{}={default}", key.name),
    }
}

fn sums(text: &mut String) {
    title(text, "Sums by name; each loss takes its own keys, the first also those of every loss of its kind");
    for sum in SUMS {
        let addends: String =
            sum.rest.iter().map(|addend| format!(" + {}*{}", addend.weight.name, addend.loss)).collect();
        let weights: Vec<String> = sum.rest.iter().map(|addend| with_default(&addend.weight)).collect();
        line(text, sum.name, &format!("{}{addends}, {}", sum.first, weights.join(", ")));
    }
}

fn aliases(text: &mut String) {
    title(text, "Other names");
    for alias in ALIASES {
        let keys: Vec<String> = alias.keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let colon = if keys.is_empty() { "" } else { ":" };
        line(text, alias.name, &format!("{}{colon}{}", alias.loss, keys.join(",")));
    }
}

fn refused(text: &mut String) {
    title(text, "In the library and not here");
    for refused in REFUSED {
        let value = refused.key.map(|(key, value)| format!(":{key}={value}")).unwrap_or_default();
        line(text, &format!("{}{value}", refused.name), refused.why);
    }
}
