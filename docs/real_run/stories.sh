#!/bin/sh
# A family of reward models, then DPO, d-DPO and e-DPO on pairs of stories with a gold reward; new stories before and after, and their gold reward.
#
#     stories.sh SEED OUT        needs a Python with vaderSentiment as PYTHON
#
# MODEL and SAMPLES: the model's folder and the file of its samples with rewards; TRAIN: the built example.
set -eu
seed=$1 out=$2
here=$(dirname "$0")
: "${PYTHON:=python3}" "${TRAIN:=$here/../../target/release/examples/train}"
: "${MODEL:=$here/../../../shared/models/stories260k}" "${SAMPLES:=$here/../../../shared/preferences/stories_vader_samples.jsonl}"

mkdir -p "$out"
$PYTHON "$here/stories.py" pairs "$SAMPLES" --seed "$seed" > "$out/pairs.jsonl"
# Stories of 48 tokens are cut and have no end.
pairs="--model $MODEL --data $out/pairs.jsonl --held-out 0.25 --max-response 48 --batch 16 --seed $seed"

$TRAIN reward $pairs --members 3 --family bootstrap --epochs 2 --learning-rate 1e-3 --weight-decay 0.1 --warmup 20 --schedule cosine \
    --export best --out "$out/rewards"
e_dpo='e-dpo + 0.01*forward-kl:estimator=own_responses'
policy() {
    name=$1 loss=$2
    shift 2
    $TRAIN policy $pairs --loss "$loss" --epochs 1 --learning-rate 1e-4 --kl-prompts 16 --sample-length 48 --cache "$out/cache" --out "$out/$name" "$@"
    stories "$out/$name/model" "$name"
}
stories() {
    $TRAIN sample --model "$1" --data "$SAMPLES" --samples 16 --max-new 48 --seed "$seed" --out "$out/$2.jsonl"
}
stories "$MODEL" reference
policy dpo dpo
policy d-dpo d-dpo --rewards "$out/rewards"
policy e-dpo "$e_dpo" --rewards "$out/rewards"
# Members on one scale, of twice a standard deviation: about that of the labels' own log-odds.
policy d-dpo-scaled d-dpo --rewards "$out/rewards" --standardise --reward-scale 2
policy e-dpo-scaled "$e_dpo" --rewards "$out/rewards" --standardise --reward-scale 2
for name in reference dpo d-dpo e-dpo d-dpo-scaled e-dpo-scaled; do
    $PYTHON "$here/stories.py" gold "$out/$name.jsonl"
done | tee "$out/gold.jsonl"
