"""Reference numbers of tiny models of every family: writes golden.json beside this file.

    pip install torch==2.13.0 transformers==5.23.0 numpy
    OMP_NUM_THREADS=1 python tests/lm/golden.py

Weights are a hash of their names and indices (`value` below, and in tests/suite/lm/tiny.rs), so that no file of weights has to be kept.
transformers computes RMS norms and rotations in f32 also for a model in f64: its numbers are good to about 1e-6.
"""

import json
import pathlib

import numpy
import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {"vocab_size": 13, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2, "max_position_embeddings": 64}
HEADS = {"num_attention_heads": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
GPT2 = {"model_type": "gpt2", "vocab_size": 13, "n_positions": 64, "n_embd": 12, "n_layer": 2, "n_head": 3}

CASES = {
    "gpt2": GPT2,
    "gpt2_exact_gelu": GPT2
    | {"n_inner": 20, "activation_function": "gelu", "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    "llama": SIZES | HEADS | {"model_type": "llama", "rope_theta": 10000.0, "rope_scaling": None},
    "llama_biases_llama3": SIZES
    | HEADS
    | {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 8,
        "rope_theta": 100.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama_linear": SIZES
    | HEADS
    | {"model_type": "llama", "rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "mistral_window": SIZES
    | HEADS
    | {"model_type": "mistral", "rope_theta": 10000.0, "head_dim": 6, "sliding_window": 3},
    "qwen2_window": SIZES
    | HEADS
    | {
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen2_yarn": SIZES
    | HEADS
    | {
        "model_type": "qwen2",
        "rope_theta": 100.0,
        "use_sliding_window": False,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "attention_factor": 1.3,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
            "truncate": False,
        },
    },
    "qwen3_yarn": SIZES
    | HEADS
    | {
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_theta": 100.0,
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
}

TOKENS = [[1, 5, 9, 2, 12, 0, 7, 7, 3, 11, 4, 6], [2, 2, 8, 10, 1, 6, 0, 3, 12, 5, 9, 4]]
SHOWN = [0, 5, 11]


def value(name: str, shape) -> torch.Tensor:
    """Norm weights around 1, everything else around 0."""
    start = 2166136261
    for byte in name.encode():
        start = (start ^ byte) * 16777619 % 2**32
    h = (start + numpy.arange(numpy.prod(shape), dtype=numpy.uint64) * 2654435761) % 2**32
    h ^= h >> numpy.uint64(15)
    h = h * 2246822519 % 2**32
    h ^= h >> numpy.uint64(13)
    h = h * 3266489917 % 2**32
    h ^= h >> numpy.uint64(16)
    u = h.astype(numpy.float64) / 2**32 - 0.5
    gain = name.endswith(".weight") and ("norm" in name or "ln_" in name)
    return torch.from_numpy(1.0 + 0.4 * u if gain else 0.9 * u).reshape(shape)


def numbers(tensor) -> list:
    return [float(f"{x:.8g}") for x in tensor.detach().flatten().tolist()]


def case(config: dict) -> dict:
    keys = {key: v for key, v in config.items() if key != "model_type"}
    parsed = AutoConfig.for_model(config["model_type"], **keys)
    # The reference of a window is the mask written out.
    model = AutoModelForCausalLM.from_config(parsed, attn_implementation="eager").double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(value(name, tuple(parameter.shape)))
    tokens = torch.tensor(TOKENS)
    logits = model(tokens).logits
    logps = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    logps.sum().backward()
    return {
        "config": config,
        "saved_config": json.loads(parsed.to_json_string()),
        "logits": numbers(logits[:, SHOWN]),
        "logps": numbers(logps),
        "gradient_norms": {name: numbers(p.grad.norm())[0] for name, p in model.named_parameters()},
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    result = {"tokens": TOKENS, "shown": SHOWN, "cases": {name: case(config) for name, config in CASES.items()}}
    pathlib.Path(__file__).with_name("golden.json").write_text(json.dumps(result, indent=1) + "\n")
