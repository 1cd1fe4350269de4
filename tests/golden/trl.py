#!/usr/bin/env python3
"""Golden values of TRL's losses and gradients in float64: writes trl.json beside this file.

Environment (other versions are refused):
    python -m venv venv && venv/bin/pip install trl==1.16.0 torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
    OMP_NUM_THREADS=1 venv/bin/python tests/golden/trl.py

What runs is TRL's own code: `_compute_loss` of the DPO, KTO and TPO trainers, `get_batch_loss_metrics` of the CPO and ORPO trainers, and the
callback that moves the reference, each on a bare object (`object.__new__`) with the attributes that it reads and a model that answers with
numbers. Two places cannot run in float64 as they stand and are edited in their source before it is executed, `in_double` below: the
alpha-divergence of DPO (`.float()`, and a table of clamps by dtype without float64; 80, that of float32, is put in) and ORPO (`.float()`). One is stood
in for, the log-softmax of CPO, ORPO and TPO, whose logits are made so that it is one of them. Only numbers are kept. A value or gradient that is not
finite in TRL is written as null.
"""

import importlib.metadata
import inspect
import json
import math
import pathlib
import re
import sys
import textwrap
import types

# This file bears the name of the package that it reads.
sys.path.remove(str(pathlib.Path(__file__).resolve().parent))

VERSIONS = {"trl": "1.16.0", "torch": "2.13.0"}
for package, version in VERSIONS.items():
    found = importlib.metadata.version(package).split("+")[0]
    assert found == version, f"{package} {version} is needed, found {found}"

import torch  # noqa: E402
from trl.experimental.cpo import cpo_trainer  # noqa: E402
from trl.experimental.orpo import orpo_trainer  # noqa: E402
from trl.experimental.tpo import tpo_trainer  # noqa: E402
from trl.trainer import dpo_trainer, kto_trainer  # noqa: E402
from trl.trainer.callbacks import SyncRefModelCallback  # noqa: E402

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Bare(types.SimpleNamespace):
    """Answers what a trainer asks of its accelerator and of its model besides the numbers."""

    training = True
    is_gradient_checkpointing = False
    device = torch.device("cpu")

    def gather(self, x):
        return x

    def gather_for_metrics(self, x):
        return x

    def unwrap_model(self, model):
        return model


class Metrics(dict):
    def __missing__(self, key):
        self[key] = []
        return self[key]


def bare(trainer, **attributes):
    it = object.__new__(trainer)
    common = dict(
        accelerator=Bare(), aux_loss_enabled=False, _metrics={"train": Metrics()}, _total_train_tokens=0, _tp_size=1
    )
    for name, value in (common | attributes).items():
        object.__setattr__(it, name, value)
    return it


def in_double(module, method, edits):
    """The method with its source edited, executed in its module's namespace."""
    source = textwrap.dedent(inspect.getsource(method))
    for old, new in edits:
        assert old in source, f"TRL changed: {old!r} is not there"
        source = source.replace(old, new)
    namespace = dict(vars(module))
    exec(source, namespace)
    return namespace[method.__name__]


dpo_compute_loss = in_double(
    dpo_trainer,
    dpo_trainer.DPOTrainer._compute_loss,
    [
        ("torch.float32: 80.0}", "torch.float32: 80.0, torch.float64: 80.0}"),
        ("t_chosen.float()", "t_chosen"),
        ("t_rejected.float()", "t_rejected"),
    ],
)
orpo_odds_ratio_loss = in_double(orpo_trainer, orpo_trainer.ORPOTrainer.odds_ratio_loss, [(".float()", "")])


# ---------------------------------------------------------------------------------------------------- inputs


class Pairs:
    """Log-probabilities of tokens, `[2 * batch][time]`, all chosen then all rejected, 0 beyond a response's length."""

    def __init__(self, policy, reference, collision, lengths):
        self.policy, self.reference, self.collision = policy, reference, collision
        self.lengths = lengths
        time = policy.shape[1]
        self.mask = (torch.arange(time)[None] < lengths[:, None]).long()
        for table in (self.policy, self.reference, self.collision):
            table *= self.mask

    @property
    def batch(self):
        return len(self.lengths) // 2

    def one(self, i):
        rows = [i, i + self.batch]
        return Pairs(*(x[rows].clone() for x in (self.policy, self.reference, self.collision, self.lengths)))

    def numbers(self):
        halves = lambda x: [half.tolist() for half in x.chunk(2)]
        policy, reference = self.policy.sum(1), self.reference.sum(1)
        return {
            "chosen": halves(policy)[0],
            "rejected": halves(policy)[1],
            "ref_chosen": halves(reference)[0],
            "ref_rejected": halves(reference)[1],
            "chosen_lengths": halves(self.lengths)[0],
            "rejected_lengths": halves(self.lengths)[1],
            "tokens": self.policy.tolist(),
            "ref_tokens": self.reference.tolist(),
            "collision_tokens": self.collision.tolist(),
        }


def random_pairs(batch, time, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: low + (high - low) * torch.rand(2 * batch, time, generator=generator)
    lengths = torch.randint(1, time + 1, (2 * batch,), generator=generator)
    reference = draw(-4.0, -0.1)
    policy = (reference + draw(-2.0, 2.0)).clamp(max=-0.01)
    return Pairs(policy, reference, draw(-2.5, -0.05), lengths)


def even_pairs(chosen, rejected, reference, lengths):
    """Responses of these log-probabilities, spread evenly over their tokens."""
    lengths = torch.tensor(lengths)
    spread = lambda sums: (torch.tensor(sums)[:, None] / lengths[:, None]).repeat(1, int(lengths.max()))
    policy = spread(chosen + rejected)
    return Pairs(policy, spread([reference] * len(lengths)), torch.full_like(policy, -0.5), lengths)


RATIOS = [
    (0.0, 0.0), (1e-8, -1e-8), (30.0, -30.0), (-30.0, 30.0), (60.0, 59.0), (500.0, -500.0), (-500.0, 500.0),
    (700.0, 700.25), (-700.0, -701.0), (-100.0, -300.0), (1e4, -1e4), (-1e4, 1e4),
]
extreme = even_pairs(
    [-2e4 + w for w, _ in RATIOS], [-2e4 + l for _, l in RATIOS], -2e4, [1, 2, 4, 8, 1, 2] * 2 + [8, 1, 2, 4, 1, 1] * 2
)
NEAR = [(-1e-12, -1e-3), (-1e-3, -1e-12), (-1e-6, -40.0), (-40.0, -1e-6), (-700.0, -0.69), (-0.7, -0.69)]
certain = even_pairs([w for w, _ in NEAR], [l for _, l in NEAR], -1.0, [1, 2, 4, 1, 2, 1, 1, 1, 2, 4, 1, 2])

INPUTS = {"random": random_pairs(6, 7, 1), "other": random_pairs(5, 9, 2), "extreme": extreme, "certain": certain}


def number(x):
    x = float(x)
    return x if math.isfinite(x) else None


def record(run, pairs, coupled=False):
    """Loss and gradient at log pi(y) of each pair alone, and the mean over all; of the mean alone where pairs are coupled."""

    def of(part):
        tokens = part.policy.clone().requires_grad_()
        loss = run(part, tokens)
        (slope,) = torch.autograd.grad(loss, tokens, allow_unused=True)
        return loss.detach(), torch.zeros_like(tokens) if slope is None else slope

    mean, slope = of(pairs)
    # A response's first token: the loss sees sums, so all its tokens have one gradient.
    batch = pairs.batch
    if coupled:
        chosen, rejected = slope[:, 0].chunk(2)
        return {
            "mean": number(mean),
            "chosen_gradient": [number(g) for g in chosen],
            "rejected_gradient": [number(g) for g in rejected],
        }
    alone = [of(pairs.one(i)) for i in range(batch)]
    return {
        "per_pair": [number(loss) for loss, _ in alone],
        "mean": number(mean),
        "chosen_gradient": [number(slope[0, 0]) for _, slope in alone],
        "rejected_gradient": [number(slope[1, 0]) for _, slope in alone],
    }


# ---------------------------------------------------------------------------------------------------- DPO

DPO_DEFAULTS = dict(
    beta=0.1, label_smoothing=0.0, discopop_tau=0.05, f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5,
    ld_alpha=None, use_weighting=False,
)


def dpo(loss_types, loss_weights=None, **numbers):
    numbers = DPO_DEFAULTS | numbers

    def run(pairs, tokens):
        outputs = lambda logps: types.SimpleNamespace(
            log_probs=logps, entropy=torch.zeros_like(logps), mean_logits=torch.zeros_like(logps),
            is_top1=torch.zeros_like(logps, dtype=torch.bool), log_sum_sq_probs=pairs.collision,
        )
        model = Bare()
        trainer = bare(
            dpo_trainer.DPOTrainer, model=model, ref_model=lambda **_: outputs(pairs.reference),
            loss_types=loss_types, loss_weights=loss_weights or [1.0] * len(loss_types), precompute_ref_logps=False,
            args=Bare(discopop_tau=numbers["discopop_tau"], gradient_checkpointing_kwargs=None),
            **{k: v for k, v in numbers.items() if k != "discopop_tau"},
        )
        # One token of prompt, which is not scored.
        mask = torch.cat([torch.zeros_like(pairs.mask[:, :1]), pairs.mask], 1)
        inputs = dict(input_ids=torch.zeros_like(mask), attention_mask=torch.ones_like(mask), completion_mask=mask)
        return dpo_compute_loss(trainer, lambda **_: outputs(tokens), inputs, False)

    return run


def dpo_cases():
    coupled = {"aot", "aot_unpaired", "sft"}
    numbers = {
        "sigmoid": [dict(beta=0.1), dict(beta=0.7)],
        "hinge": [dict(beta=0.1), dict(beta=0.7)],
        "ipo": [dict(beta=0.1), dict(beta=0.7)],
        "exo_pair": [dict(beta=0.1, label_smoothing=1e-3), dict(beta=0.7, label_smoothing=0.2)],
        "nca_pair": [dict(beta=0.1), dict(beta=0.7)],
        "robust": [dict(beta=0.1, label_smoothing=0.0), dict(beta=0.7, label_smoothing=0.1)],
        "bco_pair": [dict(beta=0.1), dict(beta=0.7)],
        "sppo_hard": [dict(beta=0.1), dict(beta=0.7)],
        "aot": [dict(beta=0.1, label_smoothing=0.0), dict(beta=0.7, label_smoothing=0.1)],
        "aot_unpaired": [dict(beta=0.1, label_smoothing=0.0), dict(beta=0.7, label_smoothing=0.1)],
        "apo_zero": [dict(beta=0.1), dict(beta=0.7)],
        "apo_down": [dict(beta=0.1), dict(beta=0.7)],
        "discopop": [dict(beta=0.1, discopop_tau=0.05), dict(beta=0.7, discopop_tau=0.5)],
        "sft": [dict()],
        "sigmoid_norm": [dict(beta=0.1), dict(beta=5.0)],
    }
    # `listed` is TRL's own list, read from the message with which it refuses any other name.
    message = inspect.getsource(dpo_trainer.DPOTrainer._compute_loss).split("Unknown loss type")[1].split(")")[0]
    listed = re.findall(r"'(\w+)'", message)
    assert set(listed) == set(numbers), f"TRL's list changed: {listed}"
    for name in listed:
        for case in numbers[name]:
            for input_name in ("random", "other", "extreme"):
                yield name, case, input_name, dpo([name], **case), name in coupled
    divergences = [
        dict(f_divergence_type="forward_kl"),
        dict(f_divergence_type="js_divergence"),
        dict(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.5),
        dict(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1.5),
        dict(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1.0),
    ]
    for name in ("sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm"):
        for divergence in divergences:
            case = numbers[name][1] | divergence
            for input_name in ("random", "extreme") if name == "sigmoid" else ("random",):
                yield name, case, input_name, dpo([name], **case), False
    for name, alpha in (("sigmoid", 0.0), ("sigmoid", 0.3), ("sigmoid", 1.0), ("sigmoid_norm", 0.3)):
        case = dict(beta=0.7, ld_alpha=alpha)
        yield name, case, "random", dpo([name], **case), False
    for name in ("sigmoid", "ipo"):
        case = dict(beta=0.7, use_weighting=True)
        yield name, case, "random", dpo([name], **case), False
    weights = [0.8, 0.2, 1.0]
    mpo = dpo(["sigmoid", "bco_pair", "sft"], weights, beta=0.1)
    yield "sigmoid+bco_pair+sft", dict(beta=0.1, loss_weights=weights), "random", mpo, True


# ---------------------------------------------------------------------------------------------------- from logits


def logits_of(tokens):
    """Rows of two logits whose log-softmax at token 0 is the given log-probability, and moves with it at slope 1."""
    return torch.stack([tokens, torch.log(-torch.expm1(tokens))], -1)


# The normaliser of such a row is 0 but for rounding, which would drown a log-probability of -1e-12: the log-softmax of token 0 is its logit.
for module in (cpo_trainer, orpo_trainer):
    module.selective_log_softmax = lambda logits, index: logits[..., 0]
tpo_trainer.selective_log_softmax_and_entropy = lambda logits, index, entropy_requires_grad, row_mask: (
    logits[..., 0] * row_mask, torch.zeros_like(logits[..., 0])
)


def with_prompt(tokens, mask):
    """Logits of every position, and labels that are -100 at the one token of prompt and beyond the response."""
    safe = torch.where(mask == 1, tokens, -torch.ones_like(tokens))
    last = torch.zeros(len(tokens), 1, 2)
    return torch.cat([logits_of(safe), last], 1), torch.cat([torch.full_like(mask[:, :1], -100), torch.where(mask == 1, 0, -100)], 1)


def cpo(loss_type="sigmoid", beta=0.1, label_smoothing=0.0, simpo_gamma=0.5, alpha=0.0, cpo_alpha=1.0):
    def run(pairs, tokens):
        trainer = bare(
            cpo_trainer.CPOTrainer, beta=beta, label_smoothing=label_smoothing, loss_type=loss_type,
            simpo_gamma=simpo_gamma, alpha=alpha, cpo_alpha=cpo_alpha, is_encoder_decoder=False, pad_token_id=0,
        )
        logits, labels = with_prompt(tokens, pairs.mask)
        model = lambda *_, **__: types.SimpleNamespace(logits=logits)
        return trainer.get_batch_loss_metrics(model, concatenated(labels))[0]

    return run


def orpo(beta=0.1):
    def run(pairs, tokens):
        trainer = bare(orpo_trainer.ORPOTrainer, beta=beta, is_encoder_decoder=False, padding_value=0)
        object.__setattr__(trainer, "odds_ratio_loss", types.MethodType(orpo_odds_ratio_loss, trainer))
        logits, labels = with_prompt(tokens, pairs.mask)
        model = lambda *_, **__: types.SimpleNamespace(logits=logits)
        return trainer.get_batch_loss_metrics(model, concatenated(labels))[0]

    return run


def concatenated(labels):
    chosen, rejected = labels.chunk(2)
    batch = {}
    for side, of in (("chosen", chosen), ("rejected", rejected)):
        batch[f"{side}_labels"] = of
        batch[f"{side}_input_ids"] = torch.zeros_like(of)
        attended = of != -100
        attended[:, 0] = True
        batch[f"{side}_attention_mask"] = attended.long()
    return batch


def tpo(loss_type="sigmoid", beta=0.01, label_smoothing=0.0, tpo_l_gamma=0.5, tpo_alpha=1.0):
    """The gold responses are the rejected ones of "other", as many as there are pairs."""

    def run(pairs, tokens):
        trainer = bare(
            tpo_trainer.TPOTrainer, model=Bare(), beta=beta, label_smoothing=label_smoothing, loss_type=loss_type,
            tpo_l_gamma=tpo_l_gamma, tpo_alpha=tpo_alpha,
        )
        mask = pairs.mask
        if tpo_alpha != 0.0:
            gold = INPUTS["other"]
            time = max(tokens.shape[1], gold.policy.shape[1])
            wide = lambda x: torch.nn.functional.pad(x, (0, time - x.shape[1]))
            rows = slice(gold.batch, gold.batch + pairs.batch)
            tokens = torch.cat([wide(tokens), wide(gold.policy[rows])])
            mask = torch.cat([wide(mask), wide(gold.mask[rows])])
        logits, labels = with_prompt(tokens, mask)
        inputs = dict(
            input_ids=torch.zeros_like(labels), attention_mask=torch.ones_like(labels),
            completion_mask=(labels != -100).long(),
        )
        return trainer._compute_loss(lambda **_: types.SimpleNamespace(logits=logits), inputs, False)

    return run


def reference_free_cases():
    for case in (
        dict(loss_type="sigmoid", beta=0.1), dict(loss_type="sigmoid", beta=0.7, label_smoothing=0.1),
        dict(loss_type="hinge", beta=0.1), dict(loss_type="ipo", beta=0.7),
        dict(loss_type="simpo", beta=2.0, simpo_gamma=0.5), dict(loss_type="simpo", beta=2.5, simpo_gamma=1.4, label_smoothing=0.1),
        dict(loss_type="simpo", beta=2.5, simpo_gamma=0.25, alpha=0.25), dict(loss_type="simpo", beta=2.5, simpo_gamma=0.25, alpha=-0.5),
    ):
        for input_name in ("random", "other", "certain"):
            yield "cpo", case | dict(cpo_alpha=0.0), input_name, cpo(**case, cpo_alpha=0.0), False
    for case in (dict(loss_type="sigmoid", beta=0.1, cpo_alpha=1.0), dict(loss_type="simpo", beta=2.0, simpo_gamma=0.5, cpo_alpha=0.5)):
        yield "cpo", case, "random", cpo(**case), True
    for beta in (0.1, 0.7):
        for input_name in ("random", "other", "certain"):
            yield "orpo", dict(beta=beta), input_name, orpo(beta), True
    for case in (
        dict(loss_type="sigmoid", beta=0.01), dict(loss_type="hinge", beta=0.1), dict(loss_type="ipo", beta=0.7),
        dict(loss_type="tpo-l", beta=2.0, tpo_l_gamma=0.5), dict(loss_type="sigmoid", beta=0.7, label_smoothing=0.1),
    ):
        yield "tpo", case | dict(tpo_alpha=0.0), "random", tpo(**case, tpo_alpha=0.0), False
    for case in (dict(loss_type="sigmoid", beta=0.1, tpo_alpha=1.0), dict(loss_type="tpo-l", beta=2.0, tpo_l_gamma=0.5, tpo_alpha=0.3)):
        yield "tpo", case, "other", tpo(**case), True


# ---------------------------------------------------------------------------------------------------- KTO


def kto(loss_type="kto", beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    """All chosen responses desirable, all rejected ones not. The mismatched responses of the baseline are the batch's own in reverse order, less
    unlikely under the policy."""

    def run(pairs, tokens):
        answer = lambda logps: types.SimpleNamespace(
            log_probs=logps, entropy=torch.zeros_like(logps), mean_logits=torch.zeros_like(logps)
        )
        trainer = bare(
            kto_trainer.KTOTrainer, beta=beta, loss_type=loss_type, desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight, calculate_KL=loss_type == "kto", precompute_ref_logps=True, model=Bare(),
        )
        mask = torch.cat([torch.zeros_like(pairs.mask[:, :1]), pairs.mask], 1)
        ids = torch.zeros_like(mask)
        inputs = dict(
            input_ids=ids, attention_mask=torch.ones_like(mask), completion_mask=mask,
            label=torch.arange(len(mask)) < pairs.batch, ref_logps=pairs.reference.sum(1),
        )
        if loss_type == "kto":
            # Marked, so that the model knows which of the two it is asked for.
            inputs |= dict(KL_input_ids=ids + 1, KL_attention_mask=torch.ones_like(mask), KL_completion_mask=mask)
            inputs |= dict(ref_KL_logps=pairs.reference.sum(1).flip(0))
        mismatched = mismatched_of(pairs)
        model = lambda input_ids, **_: answer(mismatched if int(input_ids[0, 0]) == 1 else tokens)
        return trainer._compute_loss(model, inputs, False)

    return run


def mismatched_of(pairs):
    # Scaled so that the baseline is 0 for one of the inputs and positive for the others.
    return pairs.policy.flip(0) * (0.8 if pairs.batch != 6 else 1.0)


def kto_cases():
    for case in (
        dict(loss_type="kto", beta=0.1), dict(loss_type="kto", beta=0.7, desirable_weight=1.5, undesirable_weight=0.7),
        dict(loss_type="apo_zero_unpaired", beta=0.1), dict(loss_type="apo_zero_unpaired", beta=0.7, desirable_weight=1.5, undesirable_weight=0.7),
    ):
        for input_name in ("random", "other", "extreme"):
            yield "kto", case, input_name, kto(**case), True


# ---------------------------------------------------------------------------------------------------- reference


def synchronised(alpha):
    generator = torch.Generator().manual_seed(3)
    policy, reference = (torch.randn(2, 3, generator=generator) for _ in range(2))
    before = reference.clone()
    models = [types.SimpleNamespace(parameters=lambda x=x: [torch.nn.Parameter(x)]) for x in (policy, reference)]
    SyncRefModelCallback._sync_target_model(models[0], models[1], alpha)
    flat = lambda x: x.flatten().tolist()
    return dict(alpha=alpha, policy=flat(policy), reference=flat(before), after=flat(reference))


def main():
    cases = []
    for family in (dpo_cases, reference_free_cases, kto_cases):
        for name, numbers, input_name, run, coupled in family():
            entry = dict(trainer="dpo" if family is dpo_cases else name, name=name, numbers=numbers, input=input_name)
            if numbers.get("ld_alpha") is not None:
                pairs = INPUTS[input_name]
                tokens = pairs.policy.clone().requires_grad_()
                loss = run(pairs, tokens)
                (slope,) = torch.autograd.grad(loss, tokens)
                entry |= dict(mean=number(loss.detach()), token_gradient=slope.tolist())
            else:
                entry |= record(run, INPUTS[input_name], coupled)
            if name == "kto" and numbers["loss_type"] == "kto":
                # What TRL makes the baseline of; the maximum with 0 is left to the reader.
                pairs = INPUTS[input_name]
                entry |= dict(mismatched=mismatched_of(pairs).sum(1).tolist(), ref_mismatched=pairs.reference.sum(1).flip(0).tolist())
            cases.append(entry)
    listed = list(dict.fromkeys(c["name"] for c in cases if c["trainer"] == "dpo" and "+" not in c["name"]))
    golden = dict(
        versions=VERSIONS,
        loss_types=listed,
        inputs={name: pairs.numbers() for name, pairs in INPUTS.items()},
        cases=cases,
        synchronised=[synchronised(alpha) for alpha in (0.6, 1.0)],
    )
    body = json.dumps(golden, allow_nan=False)
    # A line a case, so that a change shows.
    body = re.sub(r'(\{"trainer"|"inputs"|"cases"|"synchronised"|"(?:random|other|extreme|certain)": \{)', r"\n\1", body)
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(body + "\n")
    missing = sum(v is None for c in cases for v in c.get("per_pair", [c["mean"]]))
    print(f"{len(cases)} cases, {missing} values that are not finite, {path.stat().st_size} bytes: {path}")


main()
