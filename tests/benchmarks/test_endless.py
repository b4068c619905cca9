"""Endless repetition: its arms are tuned alike, its measures say what they claim, its report stands."""

import random
import sys
from pathlib import Path

import pytest
import torch

EVIDENCE = Path(__file__).parents[2] / "benchmarks" / "evidence"


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EVIDENCE), str(EVIDENCE.parent / "help"), *sys.path])
    from settings import Experiment

    return Experiment.read(EVIDENCE / "repetition.yaml")


def test_every_arm_that_is_tuned_has_three_configurations_that_parse(experiment, tmp_path):
    from sae_posttrain import SteeredGRPOConfig
    from sae_posttrain.baselines import UnlikelihoodConfig

    for arm in experiment.arms:
        configs = experiment.configs(arm)
        assert len(configs) == (1 if arm == experiment.baseline else 3)
        for config in configs:
            settings = experiment.settings(arm, config)
            if settings["method"] == "dapo":
                args = SteeredGRPOConfig(str(tmp_path), use_cpu=True, **settings["grpo"])
                assert args.num_steered == (0 if settings["negative"] == "none" else 1)
            if settings["method"] == "unlikelihood":
                UnlikelihoodConfig(str(tmp_path), use_cpu=True, **settings["unlikelihood"])
                for shared in ("max_steps", "per_device_train_batch_size"):
                    assert settings["unlikelihood"][shared] == settings["grpo"][shared]


def test_the_repetition_penalty_is_that_of_generate(experiment):
    from endless_arms import penalised
    from transformers import RepetitionPenaltyLogitsProcessor

    input_ids, logits = torch.randint(0, 11, (2, 7)), torch.randn(2, 7, 11)
    ours = penalised(logits, input_ids, 1.3)
    for position in range(7):
        theirs = RepetitionPenaltyLogitsProcessor(1.3)(input_ids[:, : position + 1], logits[:, position].clone())
        assert torch.equal(ours[:, position], theirs)


def test_what_repeats_on_a_page_is_recalled_at_its_own_places(experiment):
    from benign import Passage, recall

    class Says(torch.nn.Module):
        """Is sure that the token of three places before the next one comes again."""

        device = torch.device("cpu")

        def forward(self, input_ids, use_cache):
            said = input_ids.roll(2, dims=1)
            return type("Output", (), {"logits": 50.0 * torch.nn.functional.one_hot(said, 20).float()})

    comes_again = Passage([5, 6, 7, 5, 6, 7], [False] * 3 + [True] * 3)
    half = Passage([1, 2, 3, 1, 9], [False] * 3 + [True] * 2)
    found = recall(Says(), [half, comes_again], pad_id=0)
    assert found["likeliest"] == [0.5, 1.0] and found["log_prob"][1] == pytest.approx(0, abs=1e-3)


def test_the_report_stands_on_raw_results_alone(experiment, tmp_path):
    from endless_report import NAMES, write

    drawn = random.Random(0)

    def flags(rate):
        return ["".join("1" if drawn.random() < rate else "0" for _ in range(20)) for _ in range(2)]

    def result(arm, config, seed, split):
        names = ("endless", "near_loop", "finished", "empty", "right_language", "switched")
        sampled = {
            lang: {name: flags(0.3) for name in names} | {"mean_tokens": 90.0}
            for lang in ("en", "es", "ko", "ru", "zh")
        }
        recalled = {"log_prob": [-drawn.random() for _ in range(6)], "likeliest": [drawn.random() for _ in range(6)]}
        return {
            "arm": arm, "config": config, "seed": seed, "split": split, "sampled": sampled, "greedy": sampled,
            "loss": dict.fromkeys(sampled, 3.0 + 0.01 * drawn.random()), "copying": 0.4,
            "benign": dict.fromkeys(("page", "question", "list", "refrain"), recalled),
            "log": [{"steer/hit_rate": 0.5}] * 4 if arm == "sae" else [],
        }  # fmt: skip

    arms = ("before", "plain", "sae")
    runs = [result(arm, config, 100, "dev") for arm in arms for config in experiment.configs(arm)]
    runs += [result(arm, experiment.configs(arm)[0], seed, "test") for arm in arms for seed in (0, 1)]
    tables = write(experiment, runs, tmp_path)
    assert all(NAMES[arm] in tables for arm in arms) and "0.50, 0.50" in tables
    assert {file.name for file in tmp_path.iterdir()} == {"repetition.png", "repetition_tuning.png"}
