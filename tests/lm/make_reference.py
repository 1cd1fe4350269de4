"""Reference numbers of a model folder, in the form of ../shared/models/stories260k-reference: writes FOLDER-reference beside it.

    pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0
    python tests/lm/make_reference.py /path/smollm2-135m
    PREFOPT_LM_MODEL=/path/smollm2-135m cargo test --features lm --release lm::reference

The texts are those of the small model's reference, tokenised by the folder's own tokenizer. f32, 30 s for SmolLM2-135M.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "Once upon a time, there was a little",
    "Lily and Tom went to the park. They saw a",
    "One day, a big dog",
]
OPENINGS = [
    "",
    "Once upon a time, there was a dog",
    "Tom and his mom went to the",
]
PAIRS = [
    (
        "Once upon a time, there was a little girl named Lily.",
        " She was very happy and loved to play with her friends.",
        " She was very sad and did not want to play.",
    ),
    (
        "Tom had a red ball. One day, the ball",
        " bounced high and Tom laughed with joy.",
        " was lost and Tom cried all day.",
    ),
    (
        "The cat saw a bird in the tree.",
        " The cat wanted to be a good friend, so they played together.",
        " The cat was angry and wanted to hurt the bird.",
    ),
]
PARAGRAPH = (
    "Once upon a time, there was a boy named Tim. Tim had a big box of toys. He liked to play with his "
    "red car and his blue ball. One day, his friend Sue came to play. They put all the toys on the floor "
    "and made a long road. Tim and Sue were very happy."
)
SHOWN = 60
STEPS = 10
BETA = 0.1


def logps(model, ids):
    """log π of each token but the first."""
    tokens = torch.tensor(ids)[None]
    return model(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)


def of_response(model, prompt, response):
    return logps(model, prompt + response)[len(prompt) - 1 :]


def dpo(model, pairs, reference):
    losses = []
    for (prompt, chosen, rejected), (ref_chosen, ref_rejected) in zip(pairs, reference):
        policy = of_response(model, prompt, chosen).sum() - of_response(model, prompt, rejected).sum()
        losses.append(-torch.nn.functional.logsigmoid(BETA * (policy - (ref_chosen - ref_rejected))))
    return torch.stack(losses).mean()


def main(folder: pathlib.Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    # A prompt needs a token also where the tokenizer adds none.
    first = [] if tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id] else [tokenizer.bos_token_id]

    def ids(text):
        return first + tokenizer(text).input_ids

    def rest(prompt, response):
        whole, start = ids(prompt + response), ids(prompt)
        assert whole[: len(start)] == start, "a token crosses the boundary"
        return whole[len(start) :]

    out = {}
    with torch.no_grad():
        for i, text in enumerate(PROMPTS):
            tokens = torch.tensor(ids(text))
            out[f"prompt{i}.input_ids"] = tokens
            found = model(tokens[None], output_hidden_states=i == 0)
            out[f"prompt{i}.last_logits"] = found.logits[0, -1]
            if i == 0:
                out["prompt0.all_logits"] = found.logits[0]
                out["prompt0.hidden_states"] = torch.stack([states[0] for states in found.hidden_states])
        for i, text in enumerate(OPENINGS):
            tokens = torch.tensor(ids(text))
            prompt = tokens[None]
            greedy = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=SHOWN,
                                    min_new_tokens=SHOWN, repetition_penalty=1.0, eos_token_id=-1, pad_token_id=0)
            out[f"generation{i}.prompt_ids"] = tokens
            out[f"generation{i}.output_ids"] = greedy[0, len(tokens) :]
        paragraph = ids(PARAGRAPH)
        out["paragraph.input_ids"] = torch.tensor(paragraph)
        out["paragraph.logps"] = logps(model, paragraph)
        pairs = [(ids(p), rest(p, c), rest(p, r)) for p, c, r in PAIRS]
        reference = []
        for i, (prompt, chosen, rejected) in enumerate(pairs):
            for name, tokens in [("prompt", prompt), ("chosen", chosen), ("rejected", rejected)]:
                out[f"pair{i}.{name}_ids"] = torch.tensor(tokens)
            sides = [of_response(model, prompt, response) for response in (chosen, rejected)]
            out[f"pair{i}.chosen_logps"], out[f"pair{i}.rejected_logps"] = sides
            reference.append([side.sum() for side in sides])

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    steps = []
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        loss = dpo(model, pairs, reference)
        loss.backward()
        if step == 0:
            for name, parameter in model.named_parameters():
                out[f"dpo.grad_norm.{name}"] = parameter.grad.norm().reshape(1)
        steps.append({"step": step, "loss": loss.item()})
        if step < STEPS:
            optimizer.step()
    target = folder.with_name(folder.name + "-reference")
    target.mkdir(exist_ok=True)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in out.items()}, target / "reference.safetensors")
    numbers = {"dpo": {"beta": BETA, "lr": 1e-4, "steps": steps}}
    (target / "reference.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
