"""transformers (and PEFT, where it is installed) load what prefopt::lm has saved, and compute the same logits and rewards.

    PREFOPT_LM_EXPORT=/tmp/saved cargo test --features lm saved_for_transformers
    pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 peft==0.21.2
    OMP_NUM_THREADS=1 python tests/lm/check_transformers.py /tmp/saved
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

try:
    from peft import PeftModel
except ImportError:
    PeftModel = None

TOLERANCE = 1e-4
REWARD_TOLERANCE = 1e-5


def distance(model, tokens, expected) -> float:
    with torch.no_grad():
        logits = model(tokens).logits
    return (logits - torch.tensor(expected).reshape(logits.shape)).abs().max().item()


def loaded(kind, folder: pathlib.Path):
    """The model in the kind that its configuration says, and what of its weights, keys or that kind did not fit."""
    # The reference of a window is the mask written out.
    model, report = kind.from_pretrained(folder, dtype="auto", attn_implementation="eager", output_loading_info=True)
    left = {key: list(value) for key, value in report.items() if value}
    saved = {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}
    found, widest = {weight.dtype for weight in model.parameters()}, max(saved, key=lambda dtype: dtype.itemsize)
    if found != {widest}:
        left["dtype"] = f"{found} of {saved}"
    return model.eval(), left


def told(folder: pathlib.Path, left: dict, off: dict, tolerance: float) -> bool:
    fine = not left and all(value < tolerance for value in off.values())
    print(f"{folder.name}: {'ok' if fine else 'FAILED'}", *(f"{key} {value:.1e}" for key, value in off.items()), left or "")
    return fine


def check(folder: pathlib.Path) -> bool:
    shown = json.loads((folder / "logits.json").read_text())
    tokens = torch.tensor(shown["tokens"])
    model, left = loaded(AutoModelForCausalLM, folder)
    off = {"weights": distance(model, tokens, shown["logits"])}
    if PeftModel is not None:
        adapted = PeftModel.from_pretrained(model, folder / "adapter").eval()
        off["adapter"] = distance(adapted, tokens, shown["adapter_logits"])
    return told(folder, left, off, TOLERANCE)


def padded(sequences, padding: int) -> dict:
    """A batch of them, padded on the right."""
    longest = max(map(len, sequences))
    tokens = [tokens + [padding] * (longest - len(tokens)) for tokens in sequences]
    mask = [[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in sequences]
    return {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}


def check_reward(folder: pathlib.Path) -> bool:
    """Each sequence by itself; all as a batch where a padding token is named, and where none is, the batch is refused."""
    shown = json.loads((folder / "scores.json").read_text())
    sequences, padding = shown["sequences"], shown["padding"]
    model, left = loaded(AutoModelForSequenceClassification, folder)
    expected = torch.tensor(shown["scores"]).reshape(len(sequences), -1)
    config = model.config
    wanted = {"num_labels": expected.shape[1], "problem_type": "regression", "pad_token_id": padding}
    left |= {key: getattr(config, key) for key, value in wanted.items() if getattr(config, key) != value}
    singles = [distance(model, torch.tensor([tokens]), row.tolist()) for tokens, row in zip(sequences, expected)]
    off = {"single": max(singles)}
    with torch.no_grad():
        if padding is not None:
            off["batch"] = (model(**padded(sequences, padding)).logits - expected).abs().max().item()
        else:
            try:
                model(**padded(sequences, 0))
                left["pad_token_id"] = "a batch was read"
            except ValueError as refusal:
                if "padding token" not in str(refusal):
                    raise
    return told(folder, left, off, REWARD_TOLERANCE)


if __name__ == "__main__":
    if PeftModel is None:
        print("PEFT is not installed: adapters are not checked")
    root = pathlib.Path(sys.argv[1])
    checks = {"logits.json": check, "scores.json": check_reward}
    results = [run(path.parent) for name, run in checks.items() for path in sorted(root.glob(f"*/{name}"))]
    sys.exit(0 if results and all(results) else 1)
