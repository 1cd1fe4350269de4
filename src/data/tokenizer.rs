use std::{fs, path::Path};

use serde_json::Value;
use tokenizers::Tokenizer;

use super::{
    ChatTemplate, DataError, Digest, Ending, Message, Reason, Record, Result, SpecialTokens, Texts, prefix::shared,
};

/// Text to tokens: tokenizer.json with the special tokens and the chat template beside it.
///
/// Truncation and padding that tokenizer.json may ask for are off: what is cut is counted elsewhere. A plain text gets
/// what its post-processor puts around it, with **one** begin-of-sequence token, also where the text brings its own;
/// `add_bos_token` of tokenizer_config.json adds a missing one. A conversation gets what its template writes and
/// nothing else.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    begin: Option<u32>,
    add_begin: bool,
    end: u32,
    template: Option<ChatTemplate>,
}

/// A pair in tokens. Both responses go on from the same prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitPair {
    /// The tokens that prompt, prompt with chosen and prompt with rejected response begin with in common.
    pub prompt: Vec<u32>,
    /// The rest of prompt and chosen response, with the end-of-sequence token.
    pub chosen: Vec<u32>,
    /// The rest of prompt and rejected response, with the end-of-sequence token.
    pub rejected: Vec<u32>,
    /// Tokens of the prompt alone that the responses do not begin with: where a token spans both, or the template
    /// writes a part differently from the whole, it is scored as part of the response.
    pub moved: usize,
    /// [`Digest::of_prompt`] of the prompt alone, 8 bytes of it: the same whatever the responses move.
    pub(super) own_prompt: u64,
}

impl TextTokenizer {
    /// Of a model's folder: tokenizer.json, and what [`SpecialTokens::from_folder`] and [`ChatTemplate::from_folder`]
    /// find; no template is needed for plain text.
    ///
    /// # Errors
    /// [`Io`](DataError::Io), [`Tokenizer`](DataError::Tokenizer), [`Json`](DataError::Json),
    /// [`Template`](DataError::Template); those of [`new`](Self::new).
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let file = folder.join("tokenizer.json");
        let bytes = fs::read(&file).map_err(|source| DataError::Io { file, source })?;
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(DataError::Tokenizer)?;
        let special = SpecialTokens::from_folder(folder)?;
        let template = ChatTemplate::found_in(folder, &special)?;
        Ok(Self { template, ..Self::new(tokenizer, &special)? })
    }

    /// From its parts, without a chat template.
    ///
    /// # Errors
    /// [`NoEnd`](DataError::NoEnd) without an `eos_token`, [`UnknownToken`](DataError::UnknownToken) where the
    /// vocabulary lacks it or the `bos_token`.
    pub fn new(mut tokenizer: Tokenizer, special: &SpecialTokens) -> Result<Self> {
        tokenizer.with_truncation(None).map_err(DataError::Tokenizer)?;
        tokenizer.with_padding(None);
        let id = |role: &'static str| {
            let known = |token: &str| {
                tokenizer.token_to_id(token).ok_or_else(|| DataError::UnknownToken { role, token: token.to_owned() })
            };
            special.get(role).map(known).transpose()
        };
        let (begin, end) = (id("bos_token")?, id("eos_token")?.ok_or(DataError::NoEnd)?);
        Ok(Self { tokenizer, begin, add_begin: special.add_begin(), end, template: None })
    }

    /// With another chat template.
    #[must_use]
    pub fn with_template(self, template: ChatTemplate) -> Self {
        Self { template: Some(template), ..self }
    }

    /// The tokenizer itself.
    pub fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, where there is one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The begin-of-sequence token, where there is one.
    pub fn begin(&self) -> Option<u32> {
        self.begin
    }

    /// The end-of-sequence token.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Checks that every token has a row in a model's embedding. A model may have more: embeddings are padded.
    ///
    /// # Errors
    /// [`Vocabulary`](DataError::Vocabulary).
    pub fn fits(&self, vocabulary: usize) -> Result<()> {
        let largest = self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if largest < vocabulary { Ok(()) } else { Err(DataError::Vocabulary { largest, model: vocabulary }) }
    }

    /// A whole plain text, without an end-of-sequence token of ours.
    ///
    /// # Errors
    /// [`Tokenizer`](DataError::Tokenizer).
    pub fn plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, true).map_err(DataError::Tokenizer)
    }

    /// The tokens of messages under the chat template.
    ///
    /// # Errors
    /// [`NoTemplate`](DataError::NoTemplate), [`Template`](DataError::Template), [`Tokenizer`](DataError::Tokenizer).
    pub fn conversation(&self, messages: &[Message], tools: Option<&Value>, ending: Ending) -> Result<Vec<u32>> {
        let template = self.template.as_ref().ok_or(DataError::NoTemplate)?;
        let text = template.render(&messages.iter().collect::<Vec<_>>(), tools, ending)?;
        self.encode(&text, false).map_err(DataError::Tokenizer)
    }

    /// Tokens as text.
    ///
    /// # Errors
    /// [`Tokenizer`](DataError::Tokenizer).
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true).map_err(DataError::Tokenizer)
    }

    /// Prompt and responses of a record, split where they part in tokens.
    ///
    /// # Errors
    /// [`Template`](Reason::Template) or [`Tokenizer`](Reason::Tokenizer). A conversation without a template is one
    /// that cannot be found.
    pub fn split(&self, record: &Record) -> std::result::Result<SplitPair, Reason> {
        let [prompt, chosen, rejected] = match &record.texts {
            Texts::Plain { prompt, chosen, rejected } => {
                let whole = |response: &str| {
                    let mut tokens =
                        self.encode(&[prompt.as_str(), response].concat(), true).map_err(Reason::Tokenizer)?;
                    if tokens.last() != Some(&self.end) {
                        tokens.push(self.end);
                    }
                    Ok::<_, Reason>(tokens)
                };
                [self.encode(prompt, true).map_err(Reason::Tokenizer)?, whole(chosen)?, whole(rejected)?]
            }
            Texts::Conversation { prompt, chosen, rejected, tools } => {
                let whole = |reply: &[Message], ending| {
                    let messages: Vec<_> = prompt.iter().chain(reply).collect();
                    let Some(template) = &self.template else {
                        return Err(Reason::Missing("chat_template"));
                    };
                    let text = template.render(&messages, tools.as_ref(), ending).map_err(Reason::Template)?;
                    self.encode(&text, false).map_err(Reason::Tokenizer)
                };
                [whole(&[], Ending::Reply)?, whole(chosen, Ending::Complete)?, whole(rejected, Ending::Complete)?]
            }
        };
        let at = shared(&prompt, &chosen).min(shared(&prompt, &rejected));
        Ok(SplitPair {
            chosen: chosen[at..].to_vec(),
            rejected: rejected[at..].to_vec(),
            moved: prompt.len() - at,
            own_prompt: Digest::of_prompt(&prompt).head(),
            prompt: prompt[..at].to_vec(),
        })
    }

    /// `whole` text begins with the begin-of-sequence token, once.
    fn encode(&self, text: &str, whole: bool) -> tokenizers::Result<Vec<u32>> {
        let mut tokens = self.tokenizer.encode_fast(text, whole)?.get_ids().to_vec();
        if let (Some(begin), true) = (self.begin, whole) {
            let there = shared(&tokens, &[begin; 2]);
            if there == 2 {
                tokens.remove(0);
            } else if there == 0 && self.add_begin {
                tokens.insert(0, begin);
            }
        }
        Ok(tokens)
    }
}
