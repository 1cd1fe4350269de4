#!/usr/bin/env python3
"""What the same work costs in PyTorch and TRL on a CPU, to set beside this crate's own benchmarks.

Pinned: torch 2.13.0, trl 1.16.0 (requirements.txt; README.md says how to install them). float32 throughout.

    peer.py op KIND TOKENS WIDTH VOCAB     token log-probabilities from hidden states, forward + backward
        KIND: naive | selective | trl | trl_full | frozen_naive
    peer.py loss NAME PAIRS [--members M]  a preference loss on given log-probabilities, at 2 threads and at 1
        NAME: dpo | ipo | d_dpo | e_dpo
    peer.py adamw PARAMETERS|smollm2 [--variant fused|foreach|loop]    one optimizer step
    peer.py padded LAYERS WIDTH HEADS VOCAB --lengths FILE             a decoder on padded batches, forward + backward
        FILE: a line a pair, `prompt_len chosen_len rejected_len`

All take --product default|onednn, --threads N (2) and --repeat N. Each measurement is one line of JSON on stdout:
`seconds` is the median, `seconds_min` the least; `peak_mb` (MiB) is how far the resident memory rose above where it
stood just before the first call. `--product onednn` sets torch's float32 matmul precision to "medium"; `onednn_engaged`
then says whether that changed any bit of a trial product: where it is false, the processor ignores the setting.
"""

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


# --- measuring ---


def status_kb(field):
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    raise KeyError(field)


def reset_peak():
    """Sets the kernel's record of peak memory back to what is resident now, which it returns, in kB."""
    with open("/proc/self/clear_refs", "w") as clear_refs:
        clear_refs.write("5")
    return status_kb("VmRSS")


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(call, repeat, warm_up=None):
    """Times of `repeat` calls after a warm-up, and the rise of peak memory over all of them."""
    before = reset_peak()
    (warm_up or call)()
    seconds = [timed(call) for _ in range(repeat)]
    return seconds, (status_kb("VmHWM") - before) / 1024


def onednn_engaged():
    a, b = torch.randn(256, 512), torch.randn(512, 1024)
    wanted = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    plain = a @ b
    torch.set_float32_matmul_precision(wanted)
    return not torch.equal(plain, a @ b)


def emit(args, arguments, seconds, **more):
    line = {
        "what": args.what,
        "arguments": arguments,
        "product": args.product,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeat": len(seconds),
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        **more,
    }
    if args.product == "onednn":
        line["onednn_engaged"] = args.onednn_engaged
    print(json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in line.items()}), flush=True)


# --- op ---


def token_logps(kind, hidden, weight, targets, chunk=8192):
    if kind in ("naive", "frozen_naive"):
        return torch.log_softmax(hidden @ weight.t(), -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if kind == "selective":
        logits = hidden @ weight.t()
        return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    common = (hidden, weight, None, targets, 1.0, chunk)  # no bias, temperature 1
    if kind == "trl_full":  # also entropy, log sum of squared probabilities, mean logit, top-1
        return ChunkedLogProbFunction.apply(*common)[0]
    return ChunkedLogProbFunction.apply(*common, None, 1.0, ("log_probs",))[0]


def op(args):
    arguments = {"kind": args.kind, "tokens": args.tokens, "width": args.width, "vocab": args.vocab}
    if args.kind.startswith("trl"):
        arguments["chunk"] = args.chunk
        import trl.trainer.utils  # noqa: F401  (its backward imports it: not to be counted as memory of the operation)
    hidden = torch.randn(args.tokens, args.width, requires_grad=True)
    weight = torch.randn(args.vocab, args.width).mul_(0.02).requires_grad_(args.kind != "frozen_naive")
    targets = torch.randint(args.vocab, (args.tokens,))

    def call():
        hidden.grad = weight.grad = None
        token_logps(args.kind, hidden, weight, targets, args.chunk).sum().backward()

    seconds, peak_mb = measure(call, args.repeat)
    emit(args, arguments, seconds, peak_mb=peak_mb)


# --- loss ---

BETA, TAU = 0.1, 0.1


def preference_loss(name, policy_chosen, policy_rejected, reference_chosen, reference_rejected, chosen_scores, rejected_scores):
    """Mean over the pairs; e_dpo: the least mean over the members, whose scores are [members, pairs]."""
    margin = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    if name == "dpo":
        return -F.logsigmoid(BETA * margin).mean()
    if name == "ipo":
        return (margin - 1 / (2 * TAU)).square().mean()
    error = (chosen_scores - rejected_scores - BETA * margin).square()
    return error.mean() if name == "d_dpo" else error.mean(-1).min()


def loss(args):
    logps = [torch.randn(args.pairs) * 10 - 100 for _ in range(4)]
    policy = [x.requires_grad_() for x in logps[:2]]
    scores = [torch.randn((args.members, args.pairs) if args.name == "e_dpo" else (args.pairs,)) for _ in range(2)]

    def call():
        policy[0].grad = policy[1].grad = None
        preference_loss(args.name, *logps, *scores).backward()

    arguments = {"name": args.name, "pairs": args.pairs}
    if args.name == "e_dpo":
        arguments["members"] = args.members
    for threads in (args.threads, 1) if args.threads > 1 else (1,):
        torch.set_num_threads(threads)
        for _ in range(args.warm_up):
            call()
        seconds = [timed(call) for _ in range(args.repeat)]
        emit(args, arguments, seconds, microseconds=1e6 * statistics.median(seconds))


# --- adamw ---


def smollm2_shapes():
    """SmolLM2-135M: 134,515,008 weights in 272 tensors, the head being the embedding."""
    width, key_value, inner = 576, 192, 1536
    layer = [(width,), (width, width), (key_value, width), (key_value, width), (width, width)]
    layer += [(width,), (inner, width), (inner, width), (width, inner)]
    return [(49152, width)] + 30 * layer + [(width,)]


def even_shapes(parameters, tensors):
    each, over = divmod(parameters, tensors)
    return [(each + (i < over),) for i in range(tensors)]


def adamw(args):
    shapes = smollm2_shapes() if args.parameters == "smollm2" else even_shapes(int(args.parameters), args.tensors)
    weights = [nn.Parameter(torch.randn(shape).mul_(0.02)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight).mul_(1e-3)
    variant = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}[args.variant]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, **variant)
    optimizer.step()  # allocates the moments
    optimizer.step()
    seconds = [timed(optimizer.step) for _ in range(args.repeat)]
    arguments = {"parameters": sum(w.numel() for w in weights), "tensors": len(weights), "variant": args.variant}
    emit(args, arguments, seconds)


# --- padded ---


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        rows, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # Padding is on the right, where a causal mask already hides it from every real token.
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class Decoder(nn.Module):
    """GPT-2's architecture with random weights; the head is the token embedding."""

    POSITIONS = 2048

    def __init__(self, layers, width, heads, vocab):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(self.POSITIONS, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if deep else 0.02)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def response_logps(model, ids, response):
    """Summed log-probability of each row's response tokens; `response` marks them, never in column 0."""
    hidden, response = model(ids[:, :-1]), response[:, 1:]
    logits = hidden[response] @ model.tokens.weight.t()
    logps = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:][response].unsqueeze(-1)).squeeze(-1)
    rows = response.nonzero()[:, 0]
    return torch.zeros(len(ids)).index_add(0, rows, logps)


def padded_batch(pairs, vocab):
    """Chosen rows, then rejected rows, of random tokens, as long as the longest."""
    prompts = [torch.randint(vocab, (prompt,)) for prompt, _, _ in pairs]
    lengths = [(prompt, pair[side]) for side in (1, 2) for prompt, pair in zip(prompts, pairs)]
    ids = torch.zeros(len(lengths), max(len(p) + n for p, n in lengths), dtype=torch.long)
    response = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, n) in enumerate(lengths):
        start = len(prompt)
        ids[row, :start] = prompt
        ids[row, start : start + n] = torch.randint(vocab, (n,))
        response[row, start : start + n] = True
    return ids, response


def read_lengths(path):
    with open(path) as file:
        pairs = [tuple(map(int, line.split())) for line in file if line.strip()]
    for pair in pairs:
        if len(pair) != 3 or min(pair) < 1 or pair[0] + max(pair[1:]) > Decoder.POSITIONS:
            raise SystemExit(f"{path}: not three lengths that fit {Decoder.POSITIONS} positions: {pair}")
    return pairs


def padded(args):
    pairs = read_lengths(args.lengths)
    batches = [
        padded_batch(pairs[i : i + args.batch], args.vocab) for i in range(0, len(pairs), args.batch)
    ]
    model = Decoder(args.layers, args.width, args.heads, args.vocab)

    def run(some):
        model.zero_grad(set_to_none=True)
        for ids, response in some:
            chosen, rejected = response_logps(model, ids, response).chunk(2)
            (-F.logsigmoid(BETA * (chosen - rejected)).sum() / len(pairs)).backward()

    seconds, peak_mb = measure(lambda: run(batches), args.repeat, warm_up=lambda: run(batches[:1]))
    arguments = {
        "layers": args.layers,
        "width": args.width,
        "heads": args.heads,
        "vocab": args.vocab,
        "pairs": len(pairs),
        "batch": args.batch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": sum(2 * p + c + r for p, c, r in pairs),
        "padded_tokens": sum(ids.numel() for ids, _ in batches),
        "response_tokens": sum(c + r for _, c, r in pairs),
    }
    emit(args, arguments, seconds, peak_mb=peak_mb)


# --- command line ---


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)

    def command(function, repeat):
        sub = commands.add_parser(function.__name__)
        sub.set_defaults(function=function)
        sub.add_argument("--product", choices=("default", "onednn"), default="default")
        sub.add_argument("--threads", type=int, default=2)
        sub.add_argument("--repeat", type=int, default=repeat)
        return sub

    sub = command(op, 5)
    sub.add_argument("kind", choices=("naive", "selective", "trl", "trl_full", "frozen_naive"))
    for name in ("tokens", "width", "vocab"):
        sub.add_argument(name, type=int)
    sub.add_argument("--chunk", type=int, default=8192, help="vocabulary entries TRL takes at a time; its trainers use 32768")

    sub = command(loss, 2000)
    sub.add_argument("name", choices=("dpo", "ipo", "d_dpo", "e_dpo"))
    sub.add_argument("pairs", type=int)
    sub.add_argument("--members", type=int, default=8, help="reward models of e_dpo")
    sub.add_argument("--warm-up", type=int, default=200)

    sub = command(adamw, 10)
    sub.add_argument("parameters", help="how many weights in all, or smollm2 for its shapes")
    sub.add_argument("--tensors", type=int, default=200, help="into how many tensors a number is split")
    sub.add_argument("--variant", choices=("fused", "foreach", "loop"), default="fused")

    sub = command(padded, 3)
    for name in ("layers", "width", "heads", "vocab"):
        sub.add_argument(name, type=int)
    sub.add_argument("--lengths", required=True, metavar="FILE")
    sub.add_argument("--batch", type=int, default=4, help="pairs in a batch")

    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.product == "onednn":
        torch.set_float32_matmul_precision("medium")
        args.onednn_engaged = onednn_engaged()
    torch.manual_seed(0)
    args.function(args)


if __name__ == "__main__":
    main()
