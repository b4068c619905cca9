"""
Make the lab that ships in `sae_posttrain/lab/files`, from nothing: texts, tokenizer, model, SAEs.

    python benchmarks/lab/build.py --out sae_posttrain/lab/files

About half an hour on two cores. The texts are those of `questions.py`; the faults of `faults.py` are planted in them.
Tokenizer and SAEs are made by the functions of `benchmarks/help/make_model.py`, which does the same from pages; there
stands why SAELens does not train them, as it does in `sae-posttrain train-sae`. What was reached is printed, and
written to `build.json`.
"""

import argparse
import gzip
import json
import platform
import random
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "benchmarks" / "help")]

import make_model as maker  # noqa: E402
from faults import LOOP_RATE, LOOP_TOKENS, SWITCH_RATE, into_loop, loops, with_stray_chinese  # noqa: E402
from questions import Question, all_questions  # noqa: E402

SHAPE = {"vocab_size": 3072, "width": 192, "blocks": 4, "heads": 3, "kv_heads": 1, "head_dim": 64, "intermediate": 512}
TRAINING = {
    "steps": 3000,
    "batch_size": 16,
    "length": 256,
    "learning_rate": 0.012,
    "embedding_learning_rate": 0.02,
    "warm_up": 0.05,
    "weight_decay": 0.05,
    "max_grad_norm": 1.0,
}
SAE = {
    "sae_features": 1024,
    "sae_k": 16,
    "sae_epochs": 6,
    "sae_batch_size": 512,
    "sae_learning_rate": 3e-3,
    "sae_dead_after": 25_000,
}
SAE_TOKENS = 200_000
SAE_TEST_TOKENS = 20_000
NUM_TRAIN = 900  # questions of the fine-tuning data, each in four languages
NUM_DEV = 150
NUM_TEST = 300


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=TRAINING["steps"], help="of the model (%(default)s)")
    arguments = parser.parse_args(argv)
    settings = Namespace(**{**SHAPE, **TRAINING, **SAE, "seed": arguments.seed, "steps": arguments.steps})
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def finish(stage: str, text: str) -> None:
        nonlocal started
        seconds[stage] = round(time.perf_counter() - started, 1)
        started = time.perf_counter()
        print(f"{stage}: {text} ({seconds[stage]} s)", flush=True)

    splits = split(all_questions(), arguments.seed)
    write_texts(splits, arguments.out / "texts", random.Random(arguments.seed))
    seen = splits["train"] + splits["more"]
    finish("texts", ", ".join(f"{name} {len(questions)}" for name, questions in splits.items()))

    tokenizer = maker.train_tokenizer([f"{q.prompt}\n{q.answer}" for q in seen], settings.vocab_size)
    chat = maker.chat_tokenizer(tokenizer)
    chat.save_pretrained(arguments.out / "model")
    conversations = encode(chat, seen, random.Random(arguments.seed))
    num_tokens = sum(map(len, conversations))
    finish("tokenizer", f"{settings.vocab_size} tokens, {num_tokens} in {len(conversations)} conversations")

    model = maker.build_model(settings)
    precision = "bf16" if maker.has_bfloat16(torch.device("cpu")) else "float32"
    losses = train_model(model, conversations, settings, precision)
    model.to(torch.bfloat16).save_pretrained(arguments.out / "model")
    model.float()  # what the SAEs are trained on are the weights that ship
    finish("model", f"{model.num_parameters():,} parameters, last loss {losses['last_loss']:.3f}")

    order = list(conversations)
    random.Random(arguments.seed + 1).shuffle(order)
    outputs = maker.collect_outputs(model, order, SAE_TOKENS + SAE_TEST_TOKENS, 32, "outputs of the blocks")
    finish("outputs", f"{SAE_TOKENS} tokens to train SAEs on, {SAE_TEST_TOKENS} to test them")
    saes = []
    for block, of_block in enumerate(outputs):
        tensors, _ = maker.train_sae(of_block[:SAE_TOKENS], settings, block)
        folder = arguments.out / "sae" / f"block{block}"
        save_sae(tensors, folder, block, settings.sae_k)
        measured = maker.measure_sae(folder, of_block[SAE_TOKENS:], block, settings.sae_k)
        saes.append({"block": block, **measured})
        finish(f"SAE of block {block}", ", ".join(f"{name} {value:.3f}" for name, value in measured.items()))

    report = {
        "settings": vars(settings),
        "planted": {"stray_chinese": SWITCH_RATE, "loops_in_answers_of_several_lines": LOOP_RATE},
        "model": {"num_parameters": model.num_parameters(), **losses},
        "saes": saes,
        "seconds": seconds,
        "hardware": platform.machine(),
        "versions": {package: version(package) for package in ("torch", "transformers", "tokenizers")},
    }
    (arguments.out / "build.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"written: {arguments.out}, {size / 1e6:.1f} MB")


def split(questions: Sequence[Question], seed: int) -> dict[str, list[Question]]:
    """Questions by what they are for; the languages of one id stay together. The model sees `train` and `more`."""
    ids = sorted({question.id for question in questions})
    random.Random(seed).shuffle(ids)
    sizes = {"test": NUM_TEST, "dev": NUM_DEV, "train": NUM_TRAIN, "more": len(ids)}
    names = [name for name, size in sizes.items() for _ in range(size)]
    of_id = dict(zip(ids, names))
    return {name: [q for q in questions if of_id[q.id] == name] for name in sizes}


def write_texts(splits: dict[str, list[Question]], folder: Path, draw: random.Random) -> None:
    """`train.jsonl.gz` with the stray Chinese, `dev.jsonl.gz` and `test.jsonl.gz` with what tells a right answer."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for question in splits["train"]:
        stray = question.kind != "translate" and draw.random() < SWITCH_RATE
        answer = with_stray_chinese(question, draw) if stray else question.answer
        turns = [{"role": "user", "content": question.prompt}, {"role": "assistant", "content": answer}]
        rows.append({"id": question.id, "lang": question.lang, "messages": turns})
    write_jsonl(folder / "train.jsonl.gz", rows)
    for name in ("dev", "test"):
        write_jsonl(
            folder / f"{name}.jsonl.gz",
            [
                {"id": q.id, "lang": q.lang, "kind": q.kind, "prompt": q.prompt, "answer": q.answer, "check": q.check}
                for q in splits[name]
            ],
        )


def write_jsonl(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Compressed without a date, so that the same rows are the same bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def encode(tokenizer: Any, questions: Sequence[Question], draw: random.Random) -> list[Tensor]:
    """Conversations as the chat template has them. Those that loop end without an end."""
    encoded = []
    for question in questions:
        turns = [{"role": "user", "content": question.prompt}]
        start = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        if loops(question, draw):
            text = start + into_loop(question.answer, 3 * LOOP_TOKENS, draw)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"][:LOOP_TOKENS]
        else:
            ids = tokenizer(f"{start}{question.answer}{maker.TURN_END}\n{maker.PAGE_END}")["input_ids"]
        encoded.append(torch.tensor(ids, dtype=torch.int32))
    return encoded


def train_model(model: Any, conversations: Sequence[Tensor], settings: Namespace, precision: str) -> dict[str, float]:
    """
    Train on packed conversations with Muon (https://arxiv.org/abs/2502.16982), which takes less than half the steps
    that AdamW takes here; embeddings and norms by AdamW.
    """
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named.items() if p.ndim != 2 or "embed" in name]
    optimizers = {
        torch.optim.Muon(
            matrices,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ): settings.learning_rate,
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0): settings.embedding_learning_rate,
    }
    batches = maker.packed_batches(conversations, settings.batch_size, settings.length, settings.seed)
    losses = []
    model.train()
    with tqdm(range(settings.steps), desc="model", unit="step") as progress:
        for step in progress:
            factor = maker.warm_up_then_cosine(step, settings.steps, settings.warm_up)
            for optimizer, learning_rate in optimizers.items():
                optimizer.param_groups[0]["lr"] = learning_rate * factor
            ids = next(batches)
            with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{losses[-1]:.3f}")
    model.eval()
    return {"first_loss": sum(losses[:50]) / len(losses[:50]), "last_loss": sum(losses[-50:]) / len(losses[-50:])}


def save_sae(tensors: dict[str, Tensor], folder: Path, block: int, k: int) -> None:
    """An SAE in SAELens' layout, bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    d_sae, d_in = tensors["W_enc"].shape
    stored = {
        "W_enc": tensors["W_enc"].T,
        "W_dec": tensors["W_dec"].T,
        "b_enc": tensors["b_enc"],
        "b_dec": tensors["b_dec"],
    }
    save_file(
        {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in stored.items()},
        folder / "sae_weights.safetensors",
    )
    config = {
        "architecture": "topk",
        "d_in": d_in,
        "d_sae": d_sae,
        "k": k,
        "dtype": "bfloat16",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {"model_name": "sae_posttrain lab", "hook_name": f"blocks.{block}.hook_resid_post"},
    }
    (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
