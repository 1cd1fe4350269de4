#!/usr/bin/env python3
"""Pairs from stories with a gold reward, and the gold reward of new stories: VADER's compound sentiment, in [-1, 1]. Needs `pip install vaderSentiment`.

    stories.py pairs SAMPLES.jsonl --seed N [--scale 4]   all pairs of a prompt's samples to stdout, labelled by one draw of Bradley-Terry:
                                                         the first is better with probability 1/(1 + exp(-scale * difference of gold))
    stories.py gold STORIES.jsonl...                      mean gold of what `train -- sample` wrote, a line a file: mean over prompts,
                                                         its standard error, share of different samples

SAMPLES: a line a prompt, {"prompt", "samples": [{"text", "reward"}]}.
"""

import argparse
import itertools
import json
import math
import random
import statistics


def lines(path):
    with open(path) as file:
        yield from map(json.loads, file)


def pairs(args):
    rng = random.Random(args.seed)
    for record in lines(args.samples):
        for a, b in itertools.combinations(record["samples"], 2):
            if a["text"] == b["text"]:
                continue
            difference = a["reward"] - b["reward"]
            if rng.random() >= 0.5 * (1 + math.tanh(0.5 * args.scale * difference)):
                a, b, difference = b, a, -difference
            pair = {"prompt": record["prompt"], "chosen": " " + a["text"], "rejected": " " + b["text"]}
            # 0: the one called chosen is better by gold.
            pair["gold"] = 0.5 if difference == 0 else int(difference < 0)
            print(json.dumps(pair))


def gold(args):
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    judge = SentimentIntensityAnalyzer()
    for path in args.stories:
        means, texts = [], []
        for record in lines(path):
            own = [sample["text"] for sample in record["samples"]]
            texts += own
            means.append(statistics.fmean(judge.polarity_scores(text)["compound"] for text in own))
        error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        row = {"file": path, "gold": statistics.fmean(means), "error": error, "prompts": len(means), "different": len(set(texts)) / len(texts)}
        print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pairs")
    command.add_argument("samples")
    command.add_argument("--seed", type=int, required=True)
    command.add_argument("--scale", type=float, default=4.0)
    command.set_defaults(function=pairs)
    command = commands.add_parser("gold")
    command.add_argument("stories", nargs="+")
    command.set_defaults(function=gold)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
