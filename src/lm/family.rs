//! From the keys of a family's `config.json` to the shape of its layers.

use std::num::NonZeroUsize;

use super::{
    config::{Architecture, Shape},
    error::Loaded,
    keys::Keys,
    rope::Rope,
};

/// Keys of any family that change nothing of what is computed here: names, files, classification heads, how text is generated, dropout (left off).
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_name_or_path",
    "_num_labels",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "attn_pdrop",
    "bos_token_id",
    "chunk_size_feed_forward",
    "do_sample",
    "dtype",
    "embd_pdrop",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "max_length",
    "model_max_length",
    "n_ctx",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "return_dict",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

pub(super) fn shape(mut keys: Keys) -> Loaded<Shape> {
    for off in [
        "is_encoder_decoder",
        "add_cross_attention",
        "scale_attn_by_inverse_layer_idx",
        "rope_interleaved",
        "use_mrope",
    ] {
        keys.only(off, &[false.into()], "false")?;
    }
    let family = keys.word("model_type")?.ok_or_else(|| keys.missing("model_type"))?;
    let mut shape = match family.as_str() {
        "gpt2" => gpt2(&mut keys)?,
        "llama" => llama(&mut keys, Dialect::Llama)?,
        "mistral" => llama(&mut keys, Dialect::Mistral)?,
        "qwen2" => llama(&mut keys, Dialect::Qwen2)?,
        "qwen3" => llama(&mut keys, Dialect::Qwen3)?,
        _ => return Err(keys.unsupported("model_type", family, "gpt2, llama, mistral, qwen2 or qwen3")),
    };
    shape.ends = keys.tokens("eos_token_id")?;
    keys.finish(HARMLESS)?;
    Ok(shape)
}

fn gpt2(keys: &mut Keys) -> Loaded<Shape> {
    let (width, heads) = (keys.required_size("n_embd")?, keys.required_size("n_head")?);
    if width % heads != 0 {
        return Err(keys.unsupported("n_head", heads, "a divisor of n_embd"));
    }
    let head_width = width / heads;
    let gelu = match keys.word("activation_function")?.as_deref().unwrap_or("gelu_new") {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => "tanh",
        "gelu" => "none",
        other => return Err(keys.unsupported("activation_function", other, "gelu_new or gelu")),
    };
    let layers = layers(keys, "n_layer")?;
    Ok(Shape {
        architecture: Architecture::Gpt2 { gelu },
        vocab: keys.required_size("vocab_size")?,
        width,
        inner: keys.size("n_inner")?.unwrap_or(4 * width),
        layers,
        heads,
        key_heads: heads,
        head_width,
        context: keys.required_size("n_positions")?,
        epsilon: keys.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        scale: if keys.flag("scale_attn_weights", true)? { (head_width as f64).sqrt().recip() } else { 1.0 },
        tied: keys.flag("tie_word_embeddings", true)?,
        windows: vec![None; layers],
        ends: Vec::new(),
        class: "GPT2",
    })
}

/// What the families after Llama have of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Llama,
    /// Windows.
    Mistral,
    /// Biases of query, key and value; windows in the upper layers.
    Qwen2,
    /// Norms of heads in their place.
    Qwen3,
}

impl Dialect {
    fn class(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
        }
    }
}

fn llama(keys: &mut Keys, dialect: Dialect) -> Loaded<Shape> {
    let (width, heads) = (keys.required_size("hidden_size")?, keys.required_size("num_attention_heads")?);
    let key_heads = match (keys.size("num_key_value_heads")?, dialect) {
        (Some(key_heads), _) => key_heads,
        (None, Dialect::Llama) => heads,
        // transformers' defaults of 8 and 32 belong to one size of model each.
        (None, _) => return Err(keys.missing("num_key_value_heads")),
    };
    if heads % key_heads != 0 {
        return Err(keys.unsupported("num_key_value_heads", key_heads, "a divisor of num_attention_heads"));
    }
    let head_width = match (keys.size("head_dim")?, dialect) {
        (Some(head_width), _) => head_width,
        (None, Dialect::Qwen3) => 128,
        (None, _) if width % heads == 0 => width / heads,
        (None, _) => return Err(keys.unsupported("num_attention_heads", heads, "a divisor of hidden_size")),
    };
    if head_width % 2 != 0 {
        return Err(keys.unsupported("head_dim", head_width, "an even number"));
    }
    match keys.word("hidden_act")?.as_deref().unwrap_or("silu") {
        "silu" | "swish" => {}
        other => return Err(keys.unsupported("hidden_act", other, "silu")),
    }
    let context = keys.required_size("max_position_embeddings")?;
    let layers = layers(keys, "num_hidden_layers")?;
    let biases = match dialect {
        Dialect::Llama => &["attention_bias", "mlp_bias"][..],
        Dialect::Qwen3 => &["attention_bias"],
        Dialect::Mistral | Dialect::Qwen2 => &[],
    };
    let mut bias = |key: &str| match biases.contains(&key) {
        true => keys.flag(key, false),
        false => keys.only(key, &[false.into()], "false").map(|()| false),
    };
    let (attention_bias, mlp_bias) = (bias("attention_bias")?, bias("mlp_bias")?);
    let architecture = Architecture::Llama {
        rope: Rope::read(keys, head_width, context)?,
        input_bias: attention_bias || dialect == Dialect::Qwen2,
        output_bias: attention_bias,
        mlp_bias,
        head_norms: dialect == Dialect::Qwen3,
    };
    Ok(Shape {
        architecture,
        vocab: keys.required_size("vocab_size")?,
        width,
        inner: keys.required_size("intermediate_size")?,
        layers,
        heads,
        key_heads,
        head_width,
        context,
        epsilon: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
        scale: (head_width as f64).sqrt().recip(),
        tied: keys.flag("tie_word_embeddings", false)?,
        windows: windows(keys, dialect, layers)?,
        ends: Vec::new(),
        class: dialect.class(),
    })
}

fn layers(keys: &mut Keys, key: &str) -> Loaded<usize> {
    Ok(keys.count(key)?.ok_or_else(|| keys.missing(key))?.get())
}

fn windows(keys: &mut Keys, dialect: Dialect, layers: usize) -> Loaded<Vec<Option<NonZeroUsize>>> {
    match dialect {
        Dialect::Llama => Ok(vec![None; layers]),
        Dialect::Mistral => {
            let default = if keys.contains("sliding_window") { None } else { NonZeroUsize::new(4096) };
            Ok(vec![keys.count("sliding_window")?.or(default); layers])
        }
        Dialect::Qwen2 | Dialect::Qwen3 => {
            let default = if keys.contains("sliding_window") { None } else { NonZeroUsize::new(4096) };
            let (used, window) = (keys.flag("use_sliding_window", false)?, keys.count("sliding_window")?.or(default));
            let window = if used { window } else { None };
            let first = keys.index("max_window_layers")?.unwrap_or(28);
            let Some(kinds) = keys.words("layer_types")? else {
                return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
            };
            let windows: Option<Vec<_>> = kinds
                .iter()
                .map(|kind| match kind.as_str() {
                    "full_attention" => Some(None),
                    "sliding_attention" if window.is_some() => Some(window),
                    _ => None,
                })
                .collect();
            match windows {
                Some(windows) if windows.len() == layers => Ok(windows),
                _ => {
                    let supported = "full_attention, or sliding_attention with a window in use, for each layer";
                    Err(keys.unsupported("layer_types", kinds, supported))
                }
            }
        }
    }
}
