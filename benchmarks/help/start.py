"""
A short plain fine-tuning of the help model: what RL starts from. It answers page titles, and loops by itself.

    python benchmarks/help/start.py --data data/help --model models/help-qwen3-7m --out runs/help/start

Same pages, steps and settings as the plain arm of `code_switching.py`.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from pages import Row, as_example, load_pages, rows_of, split_ids
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--held-out", type=int, default=150, help="test pages in each language, and as many dev pages")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    pages = load_pages(arguments.data)
    rows = rows_of(pages, split_ids(pages, arguments.held_out), "train")
    train_start(arguments.model, rows, arguments.out, max_steps=arguments.steps, seed=arguments.seed)


def train_start(
    model: Path, rows: list[Row], out: Path, *, max_steps: int = 150, max_length: int = 256, seed: int = 0
) -> None:
    """Fine-tune the model of a folder on pages as answers to their titles, and save it with its tokenizer."""
    args = SFTConfig(
        str(out),
        max_steps=max_steps,
        per_device_train_batch_size=16,
        learning_rate=5e-4,
        warmup_steps=10,
        train_sampling_strategy="group_by_length",
        max_length=max_length,
        bf16=True,  # autocast; the weights stay float32
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        seed=seed,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args,
        train_dataset=Dataset.from_list([as_example(row) for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    trainer.save_model(str(out))


if __name__ == "__main__":
    main()
