"""
Time and memory of an SFT step with a penalty on features, and with a penalty on tokens, as ratios to plain SFT.

The model has the shape of a published model and random weights, because time and memory do not depend on the weights.
The limit: reading F features at N tokens of width D takes 6·N·D·F operations with the backward pass, a ten-thousandth
of the model's own operations for 128 features. A penalty on tokens needs the logits of the whole vocabulary at every
position. TRL's loss computes them once and does not keep them, so this costs about twice the head's share of the step.

If step times vary by more than the difference, two other numbers are exact: the operations of a step (matrix products
and attention, counted by torch), and the time of the penalty's own arithmetic, forward and backward, as a share of a
plain step.

`published` is the form of the SASFT paper's own trainer: a float32 copy of the whole residual, and every token
encoded, penalised or not. The trainers share the model and alternate, so that other load on the machine affects all.
The first step of each turn is not counted. Memory is the peak of all live tensors during a step: counted on a CPU,
read from the allocator on a GPU.

    python benchmarks/bench_penalties.py --tokenizer models/help-qwen3-7m --data data/help
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from machine import hardware, seconds, versions
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sae_posttrain import FeatureSet, SASFTConfig, SASFTTrainer
from sae_posttrain.estimate.live_bytes import LiveBytes
from sae_posttrain.hooks.record import record_blocks
from sae_posttrain.measure.answers.prompts import read_rows
from sae_posttrain.penalty.feature_penalty import FeaturePenalty
from sae_posttrain.penalty.groups import GroupTable

RESULTS = Path(__file__).parent / "results" / "bench_penalties.json"
ARMS: dict[str, tuple[int, int] | None] = {
    "plain": None,
    "2 blocks x 2 features": (2, 2),
    "4 blocks x 64 features": (4, 64),
    "published, 2 blocks x 2": (2, 2),
    "tokens": None,
}
"""With how many blocks, from the last one, and features in each."""
TARGET = "zh"
WIDTH = 1024


class StepTimes(TrainerCallback):
    """Seconds of each step, the first of a call to `train` left out."""

    def __init__(self):
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self._started = seconds()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > 1:
            self.seconds.append(seconds() - self._started)


def make_model(arguments: argparse.Namespace) -> Any:
    """Qwen3-0.6B's shape but for the number of blocks."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=arguments.vocab_size,
        hidden_size=WIDTH,
        intermediate_size=3072,
        num_hidden_layers=arguments.blocks,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return Qwen3ForCausalLM(config).to(dtype)


def make_features(num_blocks: int, per_block: int, arguments: argparse.Namespace) -> FeatureSet:
    """Random features with statistics of two groups."""
    blocks = [arguments.blocks - num_blocks + i for i in range(num_blocks) for _ in range(per_block)]
    num = len(blocks)
    bare = FeatureSet.from_directions(
        torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(0)),
        blocks=blocks,
        names=[f"{block}.{i}" for i, block in enumerate(blocks)],
        residual_norms=[1.0] * num,
    )
    statistics_of = {"groups": ("en", TARGET), "mean": torch.zeros(num, 2), "std": torch.ones(num, 2)}
    return replace(bare, target_groups=(TARGET,), **statistics_of)


def published_form(features: FeatureSet) -> type[SFTTrainer]:
    """A trainer with the penalty written as the SASFT paper's code has it, on all tokens of a row."""

    class Published(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            with record_blocks(model, sorted(set(features.blocks))) as outputs:
                loss = super().compute_loss(model, inputs, False, num_items_in_batch)
            mask = inputs["labels"] != -100
            for block, values in outputs.items():
                own = features.select(block=block)
                residual = values[0].float()  # the whole of it
                pre = residual @ own.encoder_rows.to(residual.device).T + own.encoder_bias.to(residual.device)
                loss = loss + 0.1 * (torch.relu(pre).mean(dim=-1) * mask).sum() / mask.sum().clamp(min=1)
            return loss

    return Published


def make_trainer(arm: str, model: Any, arguments: argparse.Namespace, folder: str) -> tuple[Any, StepTimes]:
    """Rows of exactly `--length` tokens, four of five to be penalised."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    texts = [row["text"] for row in read_rows(sorted(Path(arguments.data).glob("en.jsonl*"))[0])]
    words = " ".join(texts[:300]).split()
    rows = []
    for place in range(arguments.rows * arguments.steps_per_turn):
        first = (place * arguments.length) % max(1, len(words) - 2 * arguments.length)
        text = " ".join(words[first : first + arguments.length])  # a word has a token or more: cut to the length
        rows.append({"lang": TARGET if place % 5 == 0 else "en", "prompt": "Title:", "completion": text})
    options: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    trainer_class: type[SFTTrainer] = SFTTrainer
    if ARMS[arm] is not None:
        features = make_features(*ARMS[arm], arguments)
        if arm.startswith("published"):
            trainer_class = published_form(features)
        else:
            trainer_class, options["feature_set"], extra = SASFTTrainer, features, {"penalty_weight": 0.1}
    elif arm == "tokens":
        ids = Path(folder) / "ids.json"
        ids.write_text(json.dumps(list(range(0, arguments.vocab_size, 6))))  # about as many as are Han
        trainer_class = SASFTTrainer
        extra = {"penalised_tokens": str(ids), "token_penalty_weight": 10.0, "target_group": TARGET}
    config = (SASFTConfig if extra else SFTConfig)(
        folder,
        max_steps=arguments.steps_per_turn,
        per_device_train_batch_size=arguments.rows,
        max_length=arguments.length,
        learning_rate=1e-6,
        optim="sgd",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=arguments.gradient_checkpointing,
        save_strategy="no",
        logging_steps=arguments.steps_per_turn,
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **extra,
    )
    times = StepTimes()
    trainer = trainer_class(
        model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[times],
        **options,
    )
    lengths = {len(row["input_ids"]) for row in trainer.train_dataset}
    if lengths != {arguments.length}:
        raise ValueError(
            f"Rows have {sorted(lengths)} tokens instead of {arguments.length}. Use pages with longer texts."
        )
    return trainer, times


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Step times, their medians, and ratios to plain SFT turn by turn; peak memory."""
    model = make_model(arguments)
    with tempfile.TemporaryDirectory() as folder:
        made = {arm: make_trainer(arm, model, arguments, folder) for arm in ARMS}
        peaks = {arm: peak_memory(trainer) for arm, (trainer, _) in made.items()}
        operations = {arm: operations_of_a_step(trainer) for arm, (trainer, _) in made.items()}
        ratios: dict[str, list[float]] = {arm: [] for arm in list(ARMS)[1:]}
        for turn in range(arguments.turns):
            medians = {}
            for arm in ARMS if turn % 2 == 0 else reversed(list(ARMS)):
                trainer, times = made[arm]
                before = len(times.seconds)
                trainer.train()
                medians[arm] = statistics.median(times.seconds[before:])
            for arm in ratios:
                ratios[arm].append(round(medians[arm] / medians["plain"], 4))
    taken = {arm: times.seconds for arm, (_, times) in made.items()}
    terms = {arm: term_seconds(*size, arguments) for arm, size in ARMS.items() if size and "published" not in arm}
    plain = statistics.median(taken["plain"])
    return {
        "operations": operations,
        "ratio_of_operations": {arm: round(operations[arm] / operations["plain"], 6) for arm in ratios},
        "term_seconds": {arm: round(value, 6) for arm, value in terms.items()},
        "term_as_a_share_of_a_plain_step": {arm: round(value / plain, 6) for arm, value in terms.items()},
        "seconds": {arm: [round(value, 4) for value in values] for arm, values in taken.items()},
        "ratio_of_medians": {
            arm: round(statistics.median(taken[arm]) / statistics.median(taken["plain"]), 4) for arm in ratios
        },
        "ratio_by_turn": ratios,
        "peak_bytes": peaks,
        "ratio_of_peaks": {arm: round(peaks[arm] / peaks["plain"], 5) for arm in ratios},
    }


def operations_of_a_step(trainer: Any) -> int:
    """Floating-point operations of matrix products and attention, forward and backward."""
    model = trainer.model
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    num_items = (batch["labels"] != -100).sum()
    with FlopCounterMode(display=False) as counter:
        trainer.compute_loss(model, batch, num_items_in_batch=num_items).backward()
    model.zero_grad()
    return counter.get_total_flops()


def term_seconds(num_blocks: int, per_block: int, arguments: argparse.Namespace) -> float:
    """The penalty of a batch and its gradient at what the blocks put out; median."""
    features = make_features(num_blocks, per_block, arguments)
    penalty = FeaturePenalty(features, GroupTable.for_features(features, (TARGET,), "error"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (arguments.rows, arguments.length)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    values = {place: torch.randn(*shape, WIDTH, device=device, dtype=dtype) for place in penalty.places}
    for value in values.values():
        value.requires_grad_()
    group_ids = torch.zeros(shape, dtype=torch.int64, device=device)
    mask = torch.ones(shape, dtype=torch.bool, device=device)
    taken = []
    for _ in range(30):
        started = seconds()
        torch.autograd.grad(penalty(values, group_ids, mask).excess_sum, list(values.values()))
        taken.append(seconds() - started)
    return statistics.median(taken)


def peak_memory(trainer: Any) -> int:
    """Bytes of all tensors alive at the fullest moment of a training step, weights and gradients included."""
    model = trainer.model
    model.train()
    batches = iter(trainer.get_train_dataloader())
    first, second = (trainer._prepare_inputs(next(batches)) for _ in range(2))
    num_items = (first["labels"] != -100).sum()
    trainer.compute_loss(model, first, num_items_in_batch=num_items).backward()
    model.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        trainer.compute_loss(model, second, num_items_in_batch=num_items).backward()
        return torch.cuda.max_memory_allocated()
    with LiveBytes() as live:
        trainer.compute_loss(model, second, num_items_in_batch=num_items).backward()
    model.zero_grad()
    return live.peak + sum(parameter.nbytes for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer")
    parser.add_argument("--data", required=True, help="folder with en.jsonl[.gz]")
    parser.add_argument("--vocab-size", type=int, default=151_936)
    parser.add_argument("--blocks", type=int, default=28)
    parser.add_argument("--rows", type=int, default=2, help="in a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--steps-per-turn", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = {k: v for k, v in vars(arguments).items() if k not in ("tokenizer", "data")}
    report = {
        "question": "Time and memory of a training step with a penalty on features or on tokens, against plain SFT.",
        "settings": settings,
        **measure(arguments),
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "sae_posttrain"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for arm, ratio in report["ratio_of_medians"].items():
        print(
            f"{arm}: {ratio:.3f} × plain SFT (by turn {report['ratio_by_turn'][arm]}), "
            f"peak {report['ratio_of_peaks'][arm]:.4f} ×, operations {report['ratio_of_operations'][arm]:.5f} ×"
        )
    print(f"the term alone: {report['term_as_a_share_of_a_plain_step']}")


if __name__ == "__main__":
    main()
