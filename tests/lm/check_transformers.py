"""transformers (and PEFT, where it is installed) load what prefopt::lm has saved, and compute the same logits.

    PREFOPT_LM_EXPORT=/tmp/saved cargo test --features lm lm::files::saved_for_transformers
    pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 peft==0.21.2
    OMP_NUM_THREADS=1 python tests/lm/check_transformers.py /tmp/saved
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

try:
    from peft import PeftModel
except ImportError:
    PeftModel = None

TOLERANCE = 1e-4


def distance(model, tokens, expected) -> float:
    with torch.no_grad():
        logits = model(tokens).logits
    return (logits - torch.tensor(expected).reshape(logits.shape)).abs().max().item()


def check(folder: pathlib.Path) -> bool:
    shown = json.loads((folder / "logits.json").read_text())
    tokens = torch.tensor(shown["tokens"])
    # The reference of a window is the mask written out.
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    left = {key: list(value) for key, value in report.items() if value}
    off = {"weights": distance(model.eval(), tokens, shown["logits"])}
    if PeftModel is not None:
        adapted = PeftModel.from_pretrained(model, folder / "adapter").eval()
        off["adapter"] = distance(adapted, tokens, shown["adapter_logits"])
    fine = not left and all(value < TOLERANCE for value in off.values())
    print(f"{folder.name}: {'ok' if fine else 'FAILED'}", *(f"{key} {value:.1e}" for key, value in off.items()), left or "")
    return fine


if __name__ == "__main__":
    if PeftModel is None:
        print("PEFT is not installed: adapters are not checked")
    folders = sorted(path.parent for path in pathlib.Path(sys.argv[1]).glob("*/logits.json"))
    results = [check(folder) for folder in folders]
    sys.exit(0 if folders and all(results) else 1)
