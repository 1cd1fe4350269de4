#!/usr/bin/env python3
"""A step of DPO on a real model and real pairs in TRL and in a careful PyTorch loop, on a CPU in float32: one line of JSON.

    dpo_step.py trl|trl_precompute|plain MODEL PAIRS [--pairs 12] [--batch 4] [--max-length 384] [--threads 2] [--product default|onednn]

trl             DPOTrainer of TRL 1.16 with a reference model beside the policy, as its users run it
trl_precompute  the same with precompute_ref_log_probs=True, whose pass over the pairs is not in the steps' time
plain           padded batches, the vocabulary head on response positions alone, fused AdamW, a reference model

All take the pairs in the file's order. PAIRS: JSON Lines, gzipped or not, with `prompt`, and `chosen` and `rejected`, or `responses`, of which the
first is the better one. `tokens`: what a step's forward pass of the policy reads, padding included.
"""

import argparse
import gzip
import json
import os
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

BETA = 0.1


def read(path, pairs):
    rows = []
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as file:
        for line in file:
            record = json.loads(line)
            if "chosen" not in record:
                record["chosen"], record["rejected"] = record["responses"]
            rows.append({key: record[key] for key in ("prompt", "chosen", "rejected")})
            if len(rows) == pairs:
                return rows
    raise SystemExit(f"{path} has {len(rows)} pairs, {pairs} were asked for")


def model_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def plain(args, rows):
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    policy, reference = model_of(args.model).train(), model_of(args.model).eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0, fused=True)

    def sequence(row, side):
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = tokenizer(row["prompt"] + row[side])["input_ids"] + [tokenizer.eos_token_id]
        shared = next((i for i, (a, b) in enumerate(zip(prompt, whole)) if a != b), len(prompt))
        return whole[: args.max_length], shared

    def logps(model, sequences):
        longest = max(len(ids) for ids, _ in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        seen, response = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
        for i, (tokens, start) in enumerate(sequences):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            seen[i, : len(tokens)] = 1
            response[i, start : len(tokens)] = True
        hidden = model.model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state[:, :-1]
        response = response[:, 1:]
        logits = model.lm_head(hidden[response])
        tokens = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:][response].unsqueeze(-1)).squeeze(-1)
        return torch.zeros(len(sequences)).index_add(0, response.nonzero()[:, 0], tokens)

    if not hasattr(policy, "model"):
        raise SystemExit(f"{args.model}: the loop is written for models whose trunk is `model`, as Llama's is")

    def step(some):
        sequences = [sequence(row, side) for side in ("chosen", "rejected") for row in some]
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            ratio = -logps(reference, sequences)
        ratio = ratio + logps(policy, sequences)
        chosen, rejected = ratio.chunk(2)
        loss = -F.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        seconds = time.perf_counter() - start
        return seconds, loss.item(), len(sequences) * max(len(ids) for ids, _ in sequences)

    return zip(*(step(rows[i : i + args.batch]) for i in range(0, len(rows), args.batch)))


def trl(args, rows):
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    seconds, tokens = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.start)

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

        def compute_loss(self, model, inputs, *rest, **named):
            tokens.append(inputs["input_ids"].numel())
            return super().compute_loss(model, inputs, *rest, **named)

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    precompute = args.system == "trl_precompute"
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=args.batch, num_train_epochs=1, max_length=args.max_length, beta=BETA,
        learning_rate=1e-6, lr_scheduler_type="constant", optim="adamw_torch_fused", gradient_checkpointing=False, bf16=False, fp16=False,
        use_cpu=True, precompute_ref_log_probs=precompute, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = InOrder(
        model=model_of(args.model), ref_model=None if precompute else model_of(args.model), args=config,
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=("trl", "trl_precompute", "plain"))
    parser.add_argument("model")
    parser.add_argument("pairs_file")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--product", choices=("default", "onednn"), default="default")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.product == "onednn":
        torch.set_float32_matmul_precision("medium")
    torch.manual_seed(0)
    rows = read(args.pairs_file, args.pairs)
    seconds, losses, tokens = (plain if args.system == "plain" else trl)(args, rows)
    # Not ru_maxrss, which a process that was started by a larger one inherits.
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    print(json.dumps({"system": args.system, "step_s": list(seconds), "loss": list(losses), "tokens": list(tokens), "peak_rss_mb": peak}))


if __name__ == "__main__":
    main()
