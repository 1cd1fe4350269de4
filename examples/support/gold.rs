//! The gold reward: how cheerful a story is. Known to the judge and to the annotator, never shown to a learner.

use std::collections::HashSet;

const CHEERFUL: &[&str] = &[
    "happy", "happily", "joy", "joyful", "smile", "smiled", "smiles", "smiling", "laugh", "laughed", "laughing", "giggled",
    "hug", "hugged", "hugs", "proud", "excited", "love", "kind", "glad", "thankful", "thank", "fun", "good", "nice", "great",
    "best", "better", "beautiful", "pretty", "wonderful", "amazing", "brave", "safe", "friend", "friends", "friendly",
    "cheerful", "special", "favorite", "yummy", "delicious", "sweet", "shiny", "sunny", "sunshine", "colorful", "bright",
    "warm", "soft", "help", "helped", "together", "share", "sing", "dance", "party", "gift", "surprise", "magic", "perfect",
    "smart", "wise", "cute", "funny", "fluffy", "clean",
];

const GLOOMY: &[&str] = &[
    "sad", "sadly", "cry", "cried", "crying", "tears", "scared", "scary", "afraid", "hurt", "pain", "angry", "mad", "mean",
    "bad", "upset", "lost", "alone", "lonely", "dark", "broken", "broke", "stuck", "worried", "worry", "wrong", "sorry",
    "ugly", "gloomy", "naughty", "rude", "bossy", "dangerous", "sick", "died", "fight", "hungry", "tired", "cold", "monster",
    "storm", "fell", "loud", "dirty", "messy", "mess", "heavy", "lazy", "shy", "fake", "impatient", "empty",
];

/// Number of different cheerful words less the number of different gloomy ones, in words.
///
/// Different ones: repeating a word earns nothing, so that a policy has to write, not to stammer.
pub fn gold(text: &str) -> f64 {
    let lower = text.to_lowercase();
    let words: HashSet<&str> = lower.split(|c: char| !c.is_alphabetic()).collect();
    let count = |list: &[&str]| list.iter().filter(|word| words.contains(**word)).count() as f64;
    count(CHEERFUL) - count(GLOOMY)
}
