"""
A small language model in several languages and an SAE of each of its blocks, from a folder of pages, in one command.

    python benchmarks/help/make_model.py --data FOLDER --out FOLDER

`--data` holds `<lang>.jsonl` or `<lang>.jsonl.gz` with rows `{"id", "lang", "title", "text"}`; a page has the same id
in all languages. `--out` must be new; it gets

- a byte-level BPE tokenizer with a chat template (`user` = title, `assistant` = text, `{% generation %}` marks),
- a `Qwen3ForCausalLM` trained from scratch on plain pages, `title\\ntext<|endoftext|>`; it never sees the template,
- `sae/layer{n}.sae.pt`: one TopK SAE a block, on the block's output, in Qwen-Scope's layout,
- `held_out_ids.json`: the pages kept back from all of this, in every language,
- `training.json`: settings, versions, seconds, the last loss, and how well each SAE does on tokens it was not
  trained on.

The defaults make a model like the help model of the benchmarks (6.8M parameters, 7.8M tokens), not the same weights:
what is not on record of that one (warm-up, weight decay, order of the pages, the SAEs' epochs and learning rate) is
chosen here. The same command writes the same weights on the same machine; on a GPU, up to the order of its sums. Data
whose held-out pages are gone already wants `--held-out 0`.

The SAE trainer below is the plain recipe of https://huggingface.co/papers/2406.04093 in a few lines. For SAEs of other
models there is `sae-posttrain train-sae`, which uses SAELens' trainer. Here that would bring 55 packages (280 MB) that
nothing else needs, and take 54 seconds per million tokens where this one takes 24 (one thread, width 192, 1024
features, k = 16); what it would gain is 0.095 of the variance unexplained in place of 0.105 on the same tokens.
"""

import argparse
import gzip
import hashlib
import json
import math
import os
import platform
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sae_posttrain import load_sae
from sae_posttrain.hooks.record import record_blocks

COLUMNS = ("id", "lang", "title", "text")
PAGE_END, TURN_START, TURN_END = SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAGE_END_ID, TURN_END_ID = 0, 2
REPEATED = {"zh": 2, "ko": 2}
"""Languages whose pages stand twice in an epoch of the language model, unless `--repeat` says otherwise."""

AUXILIARY_WEIGHT = 1 / 32  # of the dead features' loss, https://huggingface.co/papers/2406.04093, appendix A.2

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)


@dataclass(frozen=True)
class Page:
    id: str
    lang: str
    title: str
    text: str

    @property
    def plain(self) -> str:
        return f"{self.title}\n{self.text}"


# Pages


def language_files(folder: Path) -> dict[str, Path]:
    """
    The data files of a folder, by language.

    Raises:
        ValueError: If there is no such folder, no such file in it, or two files of one language.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. `--data` names the folder with the `<lang>.jsonl[.gz]` files.")
    files: dict[str, Path] = {}
    for file in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")]):
        lang = file.name.partition(".jsonl")[0]
        if lang in files:
            raise ValueError(f"{folder} holds both {files[lang].name} and {file.name}: remove one of them.")
        files[lang] = file
    if not files:
        raise ValueError(f"{folder} holds no `<lang>.jsonl` or `<lang>.jsonl.gz`.")
    return files


def read_pages(lang: str, file: Path) -> list[Page]:
    """
    Read the pages of one language.

    Raises:
        ValueError: If a line is not a JSON object with the four columns as strings, or is of another language.
    """
    pages = []
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file.name}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON: {error}.") from None
            if not isinstance(row, dict):
                raise ValueError(f"{where} is not a JSON object.")
            if missing := [column for column in COLUMNS if column not in row]:
                raise ValueError(f"{where} lacks {', '.join(missing)}; it has {', '.join(row) or 'nothing'}.")
            if odd := [column for column in COLUMNS if not isinstance(row[column], str)]:
                raise ValueError(f"{where}: {', '.join(odd)} must be a string.")
            if row["lang"] != lang:
                raise ValueError(f"{where} has the language {row['lang']!r}, its file is of {lang!r}.")
            pages.append(Page(*(row[column] for column in COLUMNS)))
    return pages


def is_held_out(page_id: str, share: float) -> bool:
    """Whether a page is kept back: a matter of its id alone, so the same in all languages, folders and runs."""
    return int.from_bytes(hashlib.sha256(page_id.encode()).digest()[:8]) < share * 2**64


# Tokenizer


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """
    Train a byte-level BPE whose first tokens are the special ones.

    Raises:
        ValueError: If the vocabulary cannot hold all bytes, or the texts do not have enough pairs to fill it.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(SPECIALS) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(f"`--vocab-size` is {vocab_size}; all bytes and the special tokens need {smallest}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(tqdm(texts, desc="tokenizer", unit="page"), trainer, length=len(texts))
    found = tokenizer.get_vocab_size()
    if found < vocab_size:
        raise ValueError(
            f"Too little text for `--vocab-size {vocab_size}`: the {len(texts)} training pages give {found} tokens."
        )
    return tokenizer


def chat_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as Transformers wants it: answers end with `<|im_end|>`, and it has a chat template."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=TURN_END, pad_token=PAGE_END)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode_pages(tokenizer: Tokenizer, pages: Sequence[Page], chunk: int = 256) -> list[Tensor]:
    """Token ids of each page and the end-of-page token; a special token spelled out in a text is plain text."""
    encoded = []
    tokenizer.encode_special_tokens = True
    with tqdm(total=len(pages), desc="encoding", unit="page") as progress:
        for start in range(0, len(pages), chunk):
            texts = [page.plain for page in pages[start : start + chunk]]
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
                encoded.append(torch.tensor([*encoding.ids, PAGE_END_ID], dtype=torch.int32))
            progress.update(len(texts))
    tokenizer.encode_special_tokens = False
    return encoded


# Language model


def packed_batches(pages: Sequence[Tensor], batch_size: int, length: int, seed: int) -> Iterator[Tensor]:
    """
    Endless batches of packed pages: each epoch shuffles the pages, joins them and cuts the stream into rows.

    Args:
        pages (`Sequence[torch.Tensor]`):
            Token ids, a tensor a page; a page that counts twice stands in it twice.
        batch_size (`int`):
            Rows in a batch.
        length (`int`):
            Tokens in a row.
        seed (`int`):
            Seed of the order.

    Yields:
        `torch.Tensor` of shape `(batch_size, length)`, int64.
    """
    generator = torch.Generator().manual_seed(seed)
    size = batch_size * length
    left_over = torch.empty(0, dtype=torch.int32)
    while True:
        order = torch.randperm(len(pages), generator=generator).tolist()
        stream = torch.cat([left_over, *(pages[index] for index in order)])
        whole = len(stream) // size * size
        yield from stream[:whole].long().view(-1, batch_size, length)
        left_over = stream[whole:]


def warm_up_then_cosine(step: int, num_steps: int, warm_up_share: float) -> float:
    """Factor on the peak learning rate at a step from 0: rises in a line, then falls to 0 along a cosine."""
    warm_up = math.ceil(num_steps * warm_up_share)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def build_model(args: argparse.Namespace) -> Qwen3ForCausalLM:
    """An untrained model of the asked shape."""
    torch.manual_seed(args.seed)
    config = Qwen3Config(
        vocab_size=args.vocab_size,
        hidden_size=args.width,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.blocks,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim,
        max_position_embeddings=max(2048, args.length),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=TURN_END_ID,
        pad_token_id=PAGE_END_ID,
    )
    return Qwen3ForCausalLM(config)


def train_model(
    model: Qwen3ForCausalLM, pages: Sequence[Tensor], args: argparse.Namespace, precision: str
) -> dict[str, float]:
    """
    Train on packed pages with AdamW, in place; the weights stay float32.

    Returns:
        `dict[str, float]`: mean loss per token over the first and the last steps (50, or a fifth if there are fewer).
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.95))
    batches = packed_batches(pages, args.batch_size, args.length, args.seed)
    losses: list[Tensor] = []  # kept on the device: reading one waits for the device
    model.train()
    with tqdm(range(args.steps), desc="model", unit="step") as progress:
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * warm_up_then_cosine(step, args.steps, args.warm_up)
            ids = next(batches).to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach().float())
            if step % 20 == 0:
                progress.set_postfix(loss=f"{losses[-1].item():.3f}")
    model.eval()
    averaged = min(50, max(1, args.steps // 5))
    values = torch.stack(losses)
    return {"first_loss": values[:averaged].mean().item(), "last_loss": values[-averaged:].mean().item()}


# SAEs


def split_for_saes(
    pages: Sequence[Page], ids: Sequence[Tensor], args: argparse.Namespace
) -> tuple[list[Tensor], list[Tensor]]:
    """
    Pages to train the SAEs on and others to test them on, each cut to `--length` tokens.

    The page ids are drawn at random, and an id comes with its pages in all languages: no test page has a translation
    in the training pages.

    Raises:
        ValueError: If the pages do not hold enough tokens.
    """
    by_id: dict[str, list[Tensor]] = {}
    for page, page_ids in zip(pages, ids):
        by_id.setdefault(page.id, []).append(page_ids[: args.length])
    order = sorted(by_id)
    random.Random(args.seed).shuffle(order)
    rest = iter(order)
    parts = []
    for wanted in (args.sae_test_tokens, args.sae_tokens):
        part: list[Tensor] = []
        found = 0
        while found < wanted:
            page_id = next(rest, None)
            if page_id is None:
                held = sum(len(page_ids) - 1 for page_ids_of_id in by_id.values() for page_ids in page_ids_of_id)
                raise ValueError(
                    f"Too little text for `--sae-tokens {args.sae_tokens}` and `--sae-test-tokens "
                    f"{args.sae_test_tokens}`: the first {args.length} tokens of all training pages are {held}."
                )
            part += by_id[page_id]
            found += sum(len(page_ids) - 1 for page_ids in by_id[page_id])  # the first position is left out
        parts.append(part)
    test, train = parts
    return train, test


def collect_outputs(
    model: Qwen3ForCausalLM, pages: Sequence[Tensor], num_tokens: int, batch_size: int, label: str
) -> list[Tensor]:
    """
    What every block writes at the first `num_tokens` tokens of the pages, without the first token of each page.

    Args:
        model (`Qwen3ForCausalLM`):
            The trained model.
        pages (`Sequence[torch.Tensor]`):
            Token ids, a tensor a page, that hold at least `num_tokens` tokens.
        num_tokens (`int`):
            Tokens to keep.
        batch_size (`int`):
            Pages in a forward pass.
        label (`str`):
            Name on the progress bar.

    Returns:
        `list[torch.Tensor]`: a tensor of shape `(num_tokens, width)` a block, float32, on the CPU.
    """
    blocks = list(range(model.config.num_hidden_layers))
    kept = [torch.empty(num_tokens, model.config.hidden_size) for _ in blocks]
    done = 0
    with tqdm(total=num_tokens, desc=label, unit="token") as progress:
        for start in range(0, len(pages), batch_size):
            rows = list(pages[start : start + batch_size])
            # Padding goes to the right, where a causal model does not look: no mask needed.
            ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAGE_END_ID).long()
            lengths = torch.tensor([len(row) for row in rows])
            positions = torch.arange(ids_BT.shape[1])
            mask_BT = (positions > 0) & (positions < lengths[:, None])
            with torch.no_grad(), record_blocks(model, blocks) as outputs:
                model(input_ids=ids_BT.to(model.device), use_cache=False, logits_to_keep=1)
            num_new = min(int(mask_BT.sum()), num_tokens - done)
            for block in blocks:
                kept[block][done : done + num_new] = outputs[block][0].float().cpu()[mask_BT][:num_new]
            done += num_new
            progress.update(num_new)
            if done == num_tokens:
                break
    assert done == num_tokens
    return kept


def topk_loss(
    x_BD: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor, k: int, dead_F: Tensor
) -> tuple[Tensor, Tensor]:
    """
    Squared error of a TopK SAE, plus that of the dead features on what the others leave unexplained (AuxK).

    Formulas 1 and 2 and appendix A.2 of https://huggingface.co/papers/2406.04093. `x_BD` has variance 1, which makes
    the error the fraction of variance unexplained.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the loss, and the features that were active, of shape `(B, k)`.
    """
    pre_BF = x_BD @ W_enc_FD.T + b_enc_F
    values_BK, active_BK = pre_BF.topk(k, dim=-1)
    decoded_BD = embedding_bag(active_BK, W_dec_FD, per_sample_weights=values_BK, mode="sum") + b_dec_D
    loss = (decoded_BD - x_BD).pow(2).mean()
    dead = dead_F.nonzero().squeeze(-1)
    if len(dead):
        num_auxiliary = min(len(dead), max(1, x_BD.shape[1] // 2))
        values_BA, chosen_BA = pre_BF[:, dead].topk(num_auxiliary, dim=-1)
        auxiliary_BD = embedding_bag(dead[chosen_BA], W_dec_FD, per_sample_weights=values_BA, mode="sum")
        error_BD = (x_BD - decoded_BD).detach()
        loss = loss + AUXILIARY_WEIGHT * (auxiliary_BD - error_BD).pow(2).mean()
    return loss, active_BK


def train_sae(outputs_ND: Tensor, args: argparse.Namespace, block: int) -> tuple[dict[str, Tensor], float]:
    """
    Train a TopK SAE on the outputs of one block.

    The outputs are centred and brought to variance 1 by one number, so that the settings mean the same in every block;
    mean and scale are folded into the biases at the end. The decoder's directions keep length 1, and the encoder
    starts as their transpose.

    Args:
        outputs_ND (`torch.Tensor` of shape `(N, D)`):
            Outputs of the block, on the device to train on.
        args (`argparse.Namespace`):
            The settings.
        block (`int`):
            Number of the block, for the seed and the progress bar.

    Returns:
        `tuple[dict[str, torch.Tensor], float]`: `W_enc (F, D)`, `W_dec (D, F)`, `b_enc`, `b_dec` in raw units, to be
        read as `topk(x · W_encᵀ + b_enc)`; and the share of features that no token of the last epoch activated.
    """
    device = outputs_ND.device
    num_tokens, width = outputs_ND.shape
    mean_D = outputs_ND.mean(dim=0)
    scale = (outputs_ND - mean_D).pow(2).mean().sqrt()
    generator = torch.Generator().manual_seed(args.seed + block)
    W_dec = normalize(torch.randn(args.sae_features, width, generator=generator), dim=-1).to(device)
    W_enc = W_dec.clone()
    b_enc = torch.zeros(args.sae_features, device=device)
    b_dec = torch.zeros(width, device=device)
    parameters = [tensor.requires_grad_() for tensor in (W_enc, b_enc, W_dec, b_dec)]
    optimizer = torch.optim.Adam(parameters, lr=args.sae_learning_rate, fused=True)
    tokens_since_active = torch.zeros(args.sae_features, dtype=torch.long, device=device)
    steps_per_epoch = math.ceil(num_tokens / args.sae_batch_size)
    num_steps = args.sae_epochs * steps_per_epoch
    with tqdm(total=num_steps, desc=f"SAE of block {block}", unit="step") as progress:
        for epoch in range(args.sae_epochs):
            order = torch.randperm(num_tokens, generator=generator).to(device)
            for index, chosen in enumerate(order.split(args.sae_batch_size)):
                step = epoch * steps_per_epoch + index
                optimizer.param_groups[0]["lr"] = args.sae_learning_rate * warm_up_then_cosine(
                    step, num_steps, args.warm_up
                )
                x_BD = (outputs_ND[chosen] - mean_D) / scale
                dead_F = tokens_since_active >= args.sae_dead_after
                loss, active_BK = topk_loss(x_BD, W_enc, b_enc, W_dec, b_dec, args.sae_k, dead_F)
                loss.backward()
                with torch.no_grad():  # a step along a direction would only be undone by the scaling to length 1
                    assert W_dec.grad is not None
                    W_dec.grad -= (W_dec.grad * W_dec).sum(dim=-1, keepdim=True) * W_dec
                    optimizer.step()
                    W_dec.copy_(normalize(W_dec, dim=-1))
                optimizer.zero_grad()
                tokens_since_active += len(chosen)
                tokens_since_active[active_BK.flatten()] = 0
                progress.update()
                if step % 20 == 0:
                    progress.set_postfix(loss=f"{loss.item():.4f}")
    with torch.no_grad():
        # topk((x - mean) / scale · W_encᵀ + b_enc), times the scale that the decoder has to give back
        tensors = {
            "W_enc": W_enc,
            "W_dec": W_dec.T,
            "b_enc": scale * b_enc - W_enc @ mean_D,
            "b_dec": scale * b_dec + mean_D,
        }
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return tensors, (tokens_since_active >= num_tokens).float().mean().item()


def measure_sae(folder: Path, outputs_ND: Tensor, block: int, k: int, batch_size: int = 1024) -> dict[str, float]:
    """Measure a saved SAE, read as a user reads it: variance unexplained, and features that no token activated."""
    sae = load_sae(folder, block=block, k=k).to(outputs_ND.device)
    mean_D = outputs_ND.mean(dim=0)
    error = variance = 0.0
    active_F = torch.zeros(sae.num_features, dtype=torch.bool, device=outputs_ND.device)
    for x_BD in outputs_ND.split(batch_size):
        acts_BF = sae.encode(x_BD)
        active_F |= (acts_BF != 0).any(dim=0)
        error += (sae.decode(acts_BF) - x_BD).double().pow(2).sum().item()
        variance += (x_BD - mean_D).double().pow(2).sum().item()
    return {"fraction_of_variance_unexplained": error / variance, "dead_features": 1 - active_F.float().mean().item()}


# The command


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    add("--out", type=Path, required=True, help="folder to write; must not exist or be empty")
    add("--held-out", type=float, default=0.1, help="share of the page ids kept back from everything (%(default)s)")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="cuda, cpu or auto: a GPU if there is one (%(default)s)")

    add("--vocab-size", type=int, default=8192)
    add("--width", type=int, default=256)
    add("--blocks", type=int, default=6)
    add("--heads", type=int, default=4)
    add("--kv-heads", type=int, default=2)
    add("--head-dim", type=int, default=64)
    add("--intermediate", type=int, default=768, help="width of the MLPs (%(default)s)")

    add("--steps", type=int, default=1906)
    add("--batch-size", type=int, default=16, help="rows in a step (%(default)s)")
    add("--length", type=int, default=256, help="tokens in a row (%(default)s)")
    add("--learning-rate", type=float, default=3e-3, help="peak (%(default)s)")
    add("--warm-up", type=float, default=0.05, help="share of the steps, also of the SAEs' (%(default)s)")
    add("--weight-decay", type=float, default=0.1, help="of matrices (%(default)s)")
    add("--max-grad-norm", type=float, default=1.0)
    add("--precision", choices=["auto", "bf16", "float32"], default="auto", help="auto: bf16 where it is in hardware")
    add(
        "--repeat",
        nargs="*",
        metavar="LANG=TIMES",
        help="times a language's pages stand in an epoch of the model (zh=2 ko=2, where they are in the data)",
    )

    add("--sae-features", type=int, default=4096)
    add("--sae-k", type=int, default=32, help="active features per token (%(default)s)")
    add("--sae-tokens", type=int, default=126_630, help="tokens to train on (%(default)s)")
    add("--sae-test-tokens", type=int, default=12_663, help="tokens of other pages to test on (%(default)s)")
    add("--sae-epochs", type=int, default=8)
    add("--sae-batch-size", type=int, default=512, help="tokens in a step (%(default)s)")
    add("--sae-learning-rate", type=float, default=3e-3, help="peak (%(default)s)")
    add("--sae-dead-after", type=int, default=25_000, help="tokens without activity after which a feature is dead")
    return parser


def check_settings(args: argparse.Namespace) -> None:
    """
    Refuse what cannot work, before anything is read.

    Raises:
        ValueError: If a number is out of range, or `--out` holds something.
    """
    counts = "blocks width heads kv_heads head_dim intermediate steps batch_size sae_features sae_k sae_tokens"
    for name in f"{counts} sae_test_tokens sae_epochs sae_batch_size sae_dead_after".split():
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` must be 1 or more, got {getattr(args, name)}.")
    if args.length < 2:
        raise ValueError(f"`--length` must be 2 or more tokens, got {args.length}.")
    for name in ("held_out", "warm_up"):
        if not 0 <= getattr(args, name) < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` is a share from 0 to below 1, got {getattr(args, name)}.")
    if args.heads % args.kv_heads:
        raise ValueError(f"`--heads` ({args.heads}) must be a multiple of `--kv-heads` ({args.kv_heads}).")
    if args.head_dim % 2:
        raise ValueError(f"`--head-dim` must be even, got {args.head_dim}.")
    if args.sae_k > args.sae_features:
        raise ValueError(f"`--sae-k` is {args.sae_k}, but an SAE has only {args.sae_features} features.")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"`--out` {args.out} is a file; name a folder that does not exist yet.")
    if args.out.is_dir() and any(args.out.iterdir()):
        raise ValueError(f"`--out` {args.out} is not empty; name a folder that does not exist yet.")


def parse_repeat(given: Sequence[str] | None, languages: Sequence[str]) -> dict[str, int]:
    """
    Times each language's pages stand in an epoch.

    Raises:
        ValueError: If an entry is not `LANG=TIMES` with a known language and 1 or more.
    """
    repeat = dict.fromkeys(languages, 1)
    if given is None:
        return repeat | {lang: times for lang, times in REPEATED.items() if lang in repeat}
    for entry in given:
        lang, _, times = entry.partition("=")
        if not times.isdecimal() or int(times) < 1:
            raise ValueError(f"`--repeat` takes entries such as zh=2, got {entry!r}.")
        if lang not in repeat:
            raise ValueError(f"`--repeat` names {lang!r}; the data has {', '.join(languages)}.")
        repeat[lang] = int(times)
    return repeat


def make_model(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything the command does, into a folder that is there and empty. Returns what `training.json` holds."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def finish(stage: str, text: str) -> None:
        nonlocal start
        seconds[stage] = round(time.perf_counter() - start, 3)
        print(f"{stage}: {text} ({seconds[stage]:.1f} s)", flush=True)
        start = time.perf_counter()

    if args.device == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = torch.device(args.device)
    precision = args.precision
    if precision == "auto":
        precision = "bf16" if has_bfloat16(device) else "float32"

    files = language_files(args.data)
    repeat = parse_repeat(args.repeat, list(files))
    all_pages = [page for lang, file in files.items() for page in read_pages(lang, file)]
    held_out_ids = sorted({page.id for page in all_pages if is_held_out(page.id, args.held_out)})
    pages = [page for page in all_pages if not is_held_out(page.id, args.held_out)]
    if not pages:
        raise ValueError(f"No page is left to train on: {len(all_pages)} read, {len(held_out_ids)} ids held out.")
    (folder / "held_out_ids.json").write_text(json.dumps(held_out_ids, ensure_ascii=False, indent=1) + "\n", "utf-8")
    num_pages = Counter(page.lang for page in pages)
    counts = ", ".join(f"{lang} {num}" for lang, num in num_pages.items())
    finish("pages", f"{counts} to train on, {len(held_out_ids)} ids held out")

    tokenizer = train_tokenizer([page.plain for page in pages], args.vocab_size)
    chat_tokenizer(tokenizer).save_pretrained(folder)
    ids = encode_pages(tokenizer, pages)
    num_tokens: Counter[str] = Counter()
    for page, page_ids in zip(pages, ids):
        num_tokens[page.lang] += len(page_ids)
    counts = ", ".join(f"{lang} {num:,}" for lang, num in num_tokens.items())
    finish("tokenizer", f"vocabulary of {args.vocab_size}, tokens: {counts}")

    epoch = [page_ids for page, page_ids in zip(pages, ids) for _ in range(repeat[page.lang])]
    epoch_tokens = sum(map(len, epoch))
    if epoch_tokens < args.length:
        raise ValueError(
            f"Too little text for `--length {args.length}`: the training pages hold {epoch_tokens} tokens."
        )
    sae_train, sae_test = split_for_saes(pages, ids, args)  # before the long training: it may refuse
    model = build_model(args)
    model.to(device)  # type: ignore[arg-type]  # Transformers' wrapper hides the signature
    losses = train_model(model, epoch, args, precision)
    model.save_pretrained(folder)
    trained_tokens = args.steps * args.batch_size * args.length
    finish(
        "model",
        f"{model.num_parameters():,} parameters, {trained_tokens:,} tokens of {epoch_tokens:,} an epoch, "
        f"{precision} on {device.type}, last loss {losses['last_loss']:.3f} per token",
    )

    train_outputs = collect_outputs(model, sae_train, args.sae_tokens, args.batch_size, "outputs to train SAEs")
    test_outputs = collect_outputs(model, sae_test, args.sae_test_tokens, args.batch_size, "outputs to test SAEs")
    finish("outputs", f"{args.sae_tokens:,} tokens to train SAEs on, {args.sae_test_tokens:,} to test them")

    saes = []
    (folder / "sae").mkdir()
    for block in range(args.blocks):
        tensors, dead_in_training = train_sae(train_outputs[block].to(device), args, block)
        torch.save(tensors, folder / "sae" / f"layer{block}.sae.pt")
        measured = measure_sae(folder / "sae", test_outputs[block].to(device), block, args.sae_k)
        saes.append({"block": block, **measured, "dead_features_in_last_epoch": dead_in_training})
        finish(
            f"SAE of block {block}",
            f"{measured['fraction_of_variance_unexplained']:.3f} of the variance unexplained, "
            f"{measured['dead_features']:.3f} of the features dead on the test tokens, "
            f"{dead_in_training:.3f} in the last epoch",
        )

    settings = {name: value for name, value in vars(args).items() if name not in ("data", "out")}
    report = {
        "settings": settings | {"repeat": repeat, "device": device.type, "precision": precision},
        "data": {
            "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files.values()},
            "num_training_pages": dict(num_pages),
            "num_training_tokens": dict(num_tokens),
            "num_held_out_ids": len(held_out_ids),
        },
        "model": {"num_parameters": model.num_parameters(), "num_tokens": trained_tokens, **losses},
        "saes": saes,
        "seconds": seconds,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "num_threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return report


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """
    Make the model, its SAEs and the report.

    All files are written to a temporary folder beside `--out`, which takes the name at the end: a run that fails or
    is stopped leaves nothing there.

    Returns:
        `dict[str, Any]`: what `training.json` holds.

    Raises:
        ValueError: If the settings or the data cannot be used; the message says why.
    """
    args = build_parser().parse_args(argv)
    check_settings(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=f".{args.out.name}.") as temporary:
        folder = Path(temporary) / "model"  # not the temporary folder itself, which only its owner may read
        folder.mkdir()
        report = make_model(args, folder)
        if args.out.is_dir():
            args.out.rmdir()  # empty, or this raises
        os.rename(folder, args.out)
    print(f"written: {args.out}")
    return report


if __name__ == "__main__":
    main()
