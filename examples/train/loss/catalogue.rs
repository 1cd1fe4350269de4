//! The losses by name: what each is, and its keys with their defaults.

use super::keys::{Addend, Alias, Entry, Key, Of, Refused, Sum, Takes};

pub const OF_MARGIN: &[Key] = &[
    Key::optional("under", Takes::Word(&["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])),
    Key::optional("alpha", Takes::Number),
    Key::optional("per_token", Takes::Switch),
];

pub const OF_PAIR: &[Key] = &[
    Key::optional("weighted", Takes::Word(&["uncertainty", "response_uncertainty"])),
    Key::optional("temperature", Takes::Number),
    Key::optional("wpo", Takes::Switch),
    Key::optional("transform", Takes::Word(&["per_token", "reference_free", "length_desensitised"])),
    Key::optional("tail_weight", Takes::Number),
];

const BETA: Key = Key::number("beta", "0.1");
const FLIP_RATE: Key = Key::number("flip_rate", "0");
/// SimPO's, whose log-probabilities are means over tokens.
const BETA_OF_MEANS: Key = Key::number("beta", "2");
const MARGIN: Key = Key::optional("margin", Takes::Number);
const RATIO: Key = Key::number("ratio", "0.5");

pub const LOSSES: &[Entry] = &[
    Entry {
        name: "dpo",
        of: Of::Margin,
        equation: "−(1−ε) log σ(βh) − ε log σ(−βh), ε = flip_rate",
        keys: &[BETA, FLIP_RATE],
    },
    Entry {
        name: "robust-dpo",
        of: Of::Margin,
        equation: "[−(1−ε) log σ(βh) + ε log σ(−βh)] / (1−2ε), ε = flip_rate",
        keys: &[BETA, Key::number("flip_rate", "0.1")],
    },
    Entry {
        name: "ipo",
        of: Of::Margin,
        equation: "(h − 1/(2τ))²; TRL's has per_token=true",
        keys: &[Key::number("tau", "0.1")],
    },
    Entry { name: "hinge", of: Of::Margin, equation: "relu(1 − βh)", keys: &[BETA] },
    Entry {
        name: "exo",
        of: Of::Margin,
        equation: "σ(βh) log[σ(βh)/(1−ε)] + σ(−βh) log[σ(−βh)/ε], ε = label_smoothing",
        keys: &[BETA, Key::number("label_smoothing", "0.001")],
    },
    Entry {
        name: "discopop",
        of: Of::Margin,
        equation: "−(1−m) log σ(βh) + m e^(−βh), m = σ(βh/τ)",
        keys: &[BETA, Key::number("tau", "0.05")],
    },
    Entry { name: "d-dpo", of: Of::Pair, equation: "(Δr − βh)² of one reward model", keys: &[BETA] },
    Entry {
        name: "matching",
        of: Of::Pair,
        equation: "−p log σ(βh) − (1−p) log σ(−βh), p = σ(Δr) of one reward model, or the share of votes",
        keys: &[BETA, Key::word("target", &["rewards", "soft_labels"])],
    },
    Entry {
        name: "e-dpo",
        of: Of::Pair,
        equation: "min_i (Δr_i − βh)² over a family of reward models",
        keys: &[BETA, Key::word("minimum", &["batch", "pair", "hull", "dataset"])],
    },
    Entry {
        name: "updpo",
        of: Of::Pair,
        equation: "−log σ(βh + λ(u_w − u_l)), λ = pessimism, or λu with spread=margin",
        keys: &[BETA, Key::number("pessimism", "0.5"), Key::word("spread", &["responses", "margin"])],
    },
    Entry {
        name: "drdo",
        of: Of::Pair,
        equation: "(Δr − Δr̂)² + α (1−p_w)^γ [−log π_w − log(1−π_l)], r̂ a head of the policy, α = contrast_weight, \
                   γ = focus",
        keys: &[
            Key::number("contrast_weight", "0.1"),
            Key::number("focus", "2"),
            Key::word("contrast", &["corrected", "printed"]),
            Key::word("likelihood", &["token_mean", "sum"]),
            Key::word("focal_weight", &["attached", "detached"]),
        ],
    },
    Entry {
        name: "spo",
        of: Of::Pair,
        equation: "−(μ/α) log σ(α [log π_w − log π_l]), μ = (π_w + π_l)^mass_power; add reverse-kl",
        keys: &[Key::number("alpha", "0.1"), Key::number("mass_power", "0")],
    },
    Entry {
        name: "nca", of: Of::Pair, equation: "−log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l)", keys: &[BETA]
    },
    Entry {
        name: "sppo",
        of: Of::Pair,
        equation: "(u_w − (P_w − ½)/β)² + (u_l − (P_l − ½)/β)², P hard, soft labels, or scores in [0, 1]",
        keys: &[BETA, Key::word("win_rate", &["hard", "soft_labels", "rewards"])],
    },
    Entry {
        name: "bco",
        of: Of::Pair,
        equation: "−log σ(r_w − δ) − log σ(δ − r_l), δ = shift, or the running mean of ½(r_w + r_l)",
        keys: &[BETA, Key::number_or("shift", "running", "0")],
    },
    Entry { name: "apo-zero", of: Of::Pair, equation: "1 − σ(r_w) + σ(r_l)", keys: &[BETA] },
    Entry { name: "apo-down", of: Of::Pair, equation: "σ(r_w) + 1 − σ(r_w − r_l)", keys: &[BETA] },
    Entry {
        name: "dpop",
        of: Of::Pair,
        equation: "−log σ(β[h − λ max(0, −u_w)]), λ = penalty",
        keys: &[BETA, Key::number("penalty", "50")],
    },
    Entry {
        name: "aot",
        of: Of::Pair,
        equation: "dpo of log π_w − log π_l less the reference's of the same rank in the batch",
        keys: &[BETA, FLIP_RATE],
    },
    Entry {
        name: "aot-unpaired",
        of: Of::Pair,
        equation: "dpo of u_w less the u_l of the same rank in the batch",
        keys: &[BETA, FLIP_RATE],
    },
    Entry {
        name: "cpo-preference",
        of: Of::Pair,
        equation: "dpo of log π_w − log π_l, without a reference",
        keys: &[BETA, FLIP_RATE],
    },
    Entry {
        name: "simpo",
        of: Of::Pair,
        equation: "−(1−ε) log σ(x) − ε log σ(−x), x = β[m_w − m_l] − γ, γ = margin or β·ratio",
        keys: &[BETA_OF_MEANS, RATIO, MARGIN, FLIP_RATE],
    },
    Entry {
        name: "alphapo",
        of: Of::Pair,
        equation: "−log σ(β[r_w − r_l] − γ), r = (1 − e^(−αm))/α, γ = margin or β·ratio",
        keys: &[BETA_OF_MEANS, RATIO, MARGIN, Key::number("alpha", "0.25")],
    },
    Entry {
        name: "odds-ratio",
        of: Of::Pair,
        equation: "−log σ(log odds_w − log odds_l), odds = e^m/(1−e^m)",
        keys: &[],
    },
    Entry {
        name: "sft",
        of: Of::Pair,
        equation: "−log π_w, a mean over the batch's tokens, over each response's, or their sum",
        keys: &[Key::word("average", &["batch", "response", "none"])],
    },
    Entry {
        name: "forward-kl",
        of: Of::Pair,
        equation: "KL(π_ref ‖ π), from the pair's own responses or samples of the reference",
        keys: &[Key::word("estimator", &["own_responses", "reference_samples", "reference_samples_k3"])],
    },
    Entry {
        name: "reverse-kl",
        of: Of::Pair,
        equation: "KL(π ‖ π_ref), from samples of the policy",
        keys: &[Key::word("estimator", &["policy_samples"])],
    },
    Entry {
        name: "kto",
        of: Of::Response,
        equation: "λ σ(∓β(u − z)), z = baseline, or the mean u of mismatched responses",
        keys: &[
            BETA,
            Key::number("desirable_weight", "1"),
            Key::number("undesirable_weight", "1"),
            Key::number_or("baseline", "mismatched", "mismatched"),
        ],
    },
    Entry {
        name: "bco-unpaired",
        of: Of::Response,
        equation: "−log σ(±(r − δ)), δ = shift",
        keys: &[BETA, Key::number("shift", "0")],
    },
    Entry {
        name: "gpo",
        of: Of::Prompt,
        equation: "mean of (d − d̄)², d = log(π/π_t) − ŝ(y≻π_t)/β, over samples of the policy",
        keys: &[BETA, Key::word("centring", &["prompt", "none"])],
    },
];

pub const ALIASES: &[Alias] = &[
    Alias { name: "cdpo", loss: "dpo", keys: &[("flip_rate", "0.1")] },
    Alias { name: "ld-dpo", loss: "dpo", keys: &[("transform", "length_desensitised")] },
    Alias { name: "wpo", loss: "dpo", keys: &[("wpo", "true")] },
    Alias { name: "uncertainty-weighted", loss: "dpo", keys: &[("weighted", "uncertainty")] },
    Alias { name: "apo-zero-unpaired", loss: "kto", keys: &[("baseline", "0")] },
    Alias { name: "dpo-positive", loss: "dpop", keys: &[] },
    Alias { name: "sigmoid", loss: "dpo", keys: &[] },
    Alias { name: "sigmoid-norm", loss: "dpo", keys: &[("per_token", "true"), ("beta", "5")] },
    Alias { name: "robust", loss: "robust-dpo", keys: &[] },
    Alias { name: "exo-pair", loss: "exo", keys: &[] },
    Alias { name: "nca-pair", loss: "nca", keys: &[] },
    Alias { name: "sppo-hard", loss: "sppo", keys: &[] },
    Alias { name: "bco-pair", loss: "bco", keys: &[] },
];

pub const SUMS: &[Sum] = &[
    Sum { name: "p-dpo", first: "dpo", rest: DIVERGENCE },
    Sum { name: "dp-dpo", first: "d-dpo", rest: DIVERGENCE },
    Sum { name: "cpo", first: "cpo-preference", rest: &[Addend { weight: Key::number("sft", "1"), loss: "sft" }] },
    Sum {
        name: "orpo",
        first: "sft",
        rest: &[Addend { weight: Key::number("odds_ratio", "0.1"), loss: "odds-ratio" }],
    },
    // Its weights are .8, .2 and 1: here over that of the first.
    Sum {
        name: "mpo",
        first: "dpo",
        rest: &[
            Addend { weight: Key::number("bco", "0.25"), loss: "bco" },
            Addend { weight: Key::number("sft", "1.25"), loss: "sft" },
        ],
    },
];

const DIVERGENCE: &[Addend] = &[Addend { weight: Key::number("gamma", "0.001"), loss: "forward-kl" }];

const EXACT: &str =
    "the exact divergence is a sum over every response to a prompt, and a language model has too many to list";
const GOLD: &str = "it needs a gold response beside each pair, which no form of the data has";

pub const REFUSED: &[Refused] = &[
    Refused { name: "forward-kl", key: Some(("estimator", "exact")), why: EXACT },
    Refused { name: "p-dpo", key: Some(("estimator", "exact")), why: EXACT },
    Refused { name: "dp-dpo", key: Some(("estimator", "exact")), why: EXACT },
    Refused { name: "reverse-kl", key: Some(("estimator", "exact")), why: EXACT },
    Refused { name: "sft", key: Some(("of", "gold")), why: GOLD },
    Refused { name: "tpo", key: None, why: GOLD },
    Refused { name: "tpo-l", key: None, why: GOLD },
    Refused {
        name: "tr-dpo",
        key: None,
        why: "its reference follows the policy (train::ReferenceUpdate), and here it stays as it was read",
    },
    Refused {
        name: "em-dpo",
        key: None,
        why: "it trains a policy for each type of annotator (population::AnnotatorMixture), and here there is one",
    },
    Refused {
        name: "abstention",
        key: None,
        why: "it is no loss but weights of pairs (rejection::Abstention): write them into the data as `weight`",
    },
    Refused {
        name: "capo",
        key: None,
        why: "it is d-dpo of a diffusion model on calibrated rewards (diffusion), and here are language models",
    },
];

/// Every name that may stand in `--loss`.
pub fn names() -> impl Iterator<Item = &'static str> {
    let losses = LOSSES.iter().map(|entry| entry.name);
    losses.chain(SUMS.iter().map(|sum| sum.name)).chain(ALIASES.iter().map(|alias| alias.name))
}

pub fn entry(name: &str) -> Option<&'static Entry> {
    LOSSES.iter().find(|entry| entry.name == name)
}
