//! What of `config.json` is refused, and by which name.

use serde_json::{Value, json};

use prefopt::lm::ModelConfig;

use super::{Outcome, refused, tiny::Golden};

fn config(case: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut config = Golden::read().cases[case].config.clone();
    change(&mut config);
    config.to_string()
}

fn set<'a>(key: &'a str, value: Value) -> impl FnOnce(&mut Value) + 'a {
    move |config| config[key] = value
}

#[test]
fn sizes_are_told() -> Outcome {
    let text = config("mistral_window", set("eos_token_id", json!([2, 7])));
    let config = ModelConfig::from_json(&text)?;
    assert_eq!((config.vocab(), config.width(), config.layers(), config.context()), (13, 12, 2, 64));
    assert_eq!(config.end_tokens(), [2, 7]);
    assert_eq!(config.text(), text);
    Ok(())
}

#[test]
fn an_unknown_key_is_refused() {
    let cases = [
        ("llama", "quantization_config", json!({"bits": 4})),
        ("llama", "no_rope_layers", json!([1, 0])),
        ("llama", "attention_multiplier", json!(0.5)),
        ("gpt2", "attention_bias", json!(true)),
        ("mistral_window", "final_logit_softcapping", json!(30.0)),
        ("qwen3_yarn", "num_experts", json!(8)),
    ];
    for (case, key, value) in cases {
        refused(ModelConfig::from_json(&config(case, set(key, value))), &["config.json", key]);
    }
    let nested = config("llama_linear", |config| config["rope_scaling"]["attention_factor"] = json!(2.0));
    refused(ModelConfig::from_json(&nested), &["config.json", "rope_scaling.attention_factor"]);
}

#[test]
fn what_changes_nothing_is_passed_over() -> Outcome {
    let harmless = [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("attention_dropout", json!(0.1)),
        ("torch_dtype", json!("bfloat16")),
        ("transformers.js_config", json!({"dtype": "q4"})),
        ("rope_interleaved", json!(false)),
        ("partial_rotary_factor", json!(1.0)),
        ("quantization_config", Value::Null),
    ];
    for (key, value) in harmless {
        ModelConfig::from_json(&config("llama", set(key, value)))?;
    }
    Ok(())
}

#[test]
fn an_unsupported_value_is_refused() {
    let cases = [
        ("llama", "model_type", json!("gemma2"), "qwen3"),
        ("llama", "hidden_act", json!("gelu"), "silu"),
        ("gpt2", "activation_function", json!("relu"), "gelu_new"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true), "false"),
        ("llama", "rope_interleaved", json!(true), "false"),
        ("llama", "partial_rotary_factor", json!(0.5), "1"),
        ("llama", "num_key_value_heads", json!(2), "a divisor of num_attention_heads"),
        ("gpt2", "n_head", json!(5), "a divisor of n_embd"),
        ("llama", "num_attention_heads", json!(5), "a divisor of hidden_size"),
        ("llama", "head_dim", json!(3), "an even number"),
        ("llama", "hidden_size", json!(0), "a positive whole number"),
        ("llama", "hidden_size", json!("12"), "a positive whole number"),
        ("llama", "vocab_size", json!(12.5), "a positive whole number"),
        ("llama", "rms_norm_eps", json!(-1.0), "a positive number"),
        ("llama", "tie_word_embeddings", json!(1), "true or false"),
        ("llama", "eos_token_id", json!("end"), "a token id"),
        ("llama", "rope_scaling", json!(2.0), "an object"),
        ("mistral_window", "sliding_window", json!(-3), "a positive whole number"),
        ("mistral_window", "attention_bias", json!(true), "false"),
        ("qwen2_window", "layer_types", json!(["full_attention"]), "for each layer"),
        ("qwen2_window", "layer_types", json!(["full_attention", "linear_attention"]), "for each layer"),
        ("qwen2_yarn", "layer_types", json!(["full_attention", "sliding_attention"]), "a window in use"),
    ];
    for (case, key, value, supported) in cases {
        let shown = value.to_string();
        refused(ModelConfig::from_json(&config(case, set(key, value))), &["config.json", key, &shown, supported]);
    }
    for kind in ["dynamic", "longrope", "mrope"] {
        let text = config("llama", set("rope_scaling", json!({"rope_type": kind, "factor": 2.0})));
        refused(ModelConfig::from_json(&text), &["rope_scaling.rope_type", kind, "default, linear, llama3 or yarn"]);
    }
}

#[test]
fn a_missing_key_is_named() {
    for (case, key) in [
        ("llama", "model_type"),
        ("llama", "vocab_size"),
        ("llama", "hidden_size"),
        ("llama", "intermediate_size"),
        ("llama", "num_hidden_layers"),
        ("llama", "max_position_embeddings"),
        ("qwen2_yarn", "num_key_value_heads"),
        ("gpt2", "n_embd"),
        ("gpt2", "n_positions"),
    ] {
        let text = config(case, |config| {
            config.as_object_mut().expect("an object").remove(key);
        });
        refused(ModelConfig::from_json(&text), &["config.json", &format!("no key `{key}`")]);
    }
    let text = config("llama_biases_llama3", |config| {
        config["rope_scaling"].as_object_mut().expect("an object").remove("low_freq_factor");
    });
    refused(ModelConfig::from_json(&text), &["no key `rope_scaling.low_freq_factor`"]);
    refused(ModelConfig::from_json("{\"model_type\": "), &["config.json is malformed"]);
    refused(ModelConfig::from_json("[]"), &["config.json is malformed"]);
}
