"""[`train_sae`]: an SAE of any site of a model, trained by SAELens on what our recorder hears."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from ..eval_mode import eval_mode
from ..features.fit.fit import measure_fit
from ..features.read.loading import load_model_and_tokenizer
from ..features.read.text_options import TextOptions
from ..features.read.texts import Text, check_texts, tokenize
from ..features.set.model_identity import model_name
from ..hooks.sites import Place, describe_place, find_site
from ..saes.loading import load_sae
from ..sites import SITES, is_site, parse_hook, transformer_lens_hook
from .activations import num_counted, split_texts
from .buffer import ActivationBuffer
from .checkpoint import Checkpoints, checkpoint_path, is_trained, read_record, remove_checkpoints
from .fingerprints import texts_fingerprint, weights_fingerprint
from .folder import add_to_report, publish, require_new
from .processes import Processes
from .saelens import SPARSITY_OF, Recipe, fit, require_saelens, save

_MAX_HELD_OUT = 200  # texts
_FEWEST_HELD_OUT = 100  # tokens: of fewer, no figure says anything
_GROUP = "\0group"  # a column that no row has: texts for an SAE need no groups


def train_sae(
    model: nn.Module | str,
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    *,
    blocks: Sequence[int],
    output_dir: str | os.PathLike,
    site: str = "resid_post",
    architecture: str = "topk",
    num_features: int | None = None,
    expansion: int = 8,
    k: int | None = None,
    l1_coefficient: float | None = None,
    num_tokens: int = 2_000_000,
    batch_size: int = 4096,
    learning_rate: float = 3e-3,
    tokenizer: Any = None,
    text_column: str = "text",
    split: str = "train",
    max_length: int = 512,
    texts_per_pass: int = 16,
    buffer_tokens: int = 131_072,
    held_out: float = 0.05,
    seed: int = 0,
    save_every: float = 10.0,
    restart: bool = False,
) -> list[Path]:
    """
    Train a sparse autoencoder of one or more blocks, and measure it on tokens that it was not trained on.

    SAELens' trainer does the training (`pip install 'sae_posttrain[train]'`); it sends no data anywhere. One forward
    pass serves all blocks, and their SAEs are trained at the same time. This needs accelerator memory of four times
    the weights of all SAEs. If that is too much, train one block at a time into the same folder.

    First positions and special tokens are left out, because their activations are outliers in most models. Prompts are
    left out too. Activations are scaled to variance 1 for the training; the saved SAEs read raw activations.

    A training that was interrupted goes on from its last checkpoint when it is started again with the same arguments.
    Its weights are those of a training that was never interrupted, bit for bit on the same machine if the kernels of
    the accelerator are deterministic; those of a CPU are. The checkpoints are in `<output_dir>.checkpoint`, which is
    removed at the end. They hold the activation buffer too: `buffer_tokens` times the widths of all sites.

    Under `accelerate launch` or `torchrun`, the processes divide the forward passes between them, and the SAEs: each
    one trains the SAEs of some blocks on all tokens. The weights do not depend on the number of processes. With one
    block, one process trains while the others wait for the next forward passes. All processes must see `output_dir`.

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        texts (`str`, `os.PathLike` or iterable of rows):
            JSONL file (or `.jsonl.gz`, or a folder of them), `datasets` id, or rows. A row has a text, or `messages`,
            or `prompt` and `completion` (then only the answer counts). All texts are tokenized at the start, which
            takes about 50 bytes of memory per token. From a very large corpus, give a sample.
        blocks (`Sequence[int]`):
            Decoder blocks, from 0.
        output_dir (`str` or `os.PathLike`):
            Folder for the SAEs, which may hold SAEs of other blocks and sites.
        site (`str`, *optional*, defaults to `"resid_post"`):
            What to read in these blocks, as in [`load_sae`].
        architecture (`str`, *optional*, defaults to `"topk"`):
            `"topk"`, `"batchtopk"`, `"matryoshka_batchtopk"`, `"jumprelu"`, `"standard"` or `"gated"`. Batch TopK and
            Matryoshka SAEs are saved as JumpReLU SAEs with the same threshold for all features.
        num_features (`int`, *optional*):
            Features of each SAE. Defaults to `expansion` times the width of the site.
        expansion (`int`, *optional*, defaults to `8`):
            Features per dimension.
        k (`int`, *optional*):
            Active features per token, 32 by default: exactly (topk), on average (batchtopk, matryoshka_batchtopk), or
            as a target (jumprelu).
        l1_coefficient (`float`, *optional*):
            Weight of the L1 loss of standard and gated, 5 by default.
        num_tokens (`int`, *optional*, defaults to `2_000_000`):
            Tokens to train on. If the texts hold fewer, they are read again.
        batch_size (`int`, *optional*, defaults to `4096`):
            Tokens in a training step.
        learning_rate (`float`, *optional*, defaults to `3e-3`):
            Peak learning rate of Adam. The default was the best or nearly the best in trainings of 0.3 to 2 million
            tokens with 1,024 and 4,096 features. For hundreds of millions of tokens, begin with SAELens' 3e-4.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The model's tokenizer; by default loaded from the model's folder.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column of the rows that holds the text.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a `datasets` id.
        max_length (`int`, *optional*, defaults to `512`):
            Tokens of each text.
        texts_per_pass (`int`, *optional*, defaults to `16`):
            Texts in one forward pass.
        buffer_tokens (`int`, *optional*, defaults to `131_072`):
            Tokens whose activations are mixed in memory: 1 GB a block at width 4096 in bfloat16.
        held_out (`float`, *optional*, defaults to `0.05`):
            Share of the texts that the SAEs are measured on and not trained on; at most 200 texts.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the initial weights, of the choice of held-out texts and of the order of the other texts.
        save_every (`float`, *optional*, defaults to `10.0`):
            Minutes between two checkpoints; 0 for none.
        restart (`bool`, *optional*, defaults to `False`):
            Whether to remove the checkpoint of an interrupted training and to start again.

    Returns:
        `list[pathlib.Path]`: a folder for each block, in SAELens' layout, for `load_sae(output_dir, block=...)`.
        `training.json` in `output_dir` holds the settings, versions and [`measure_fit`] results on the held-out texts
        for each SAE.

    Raises:
        ImportError: If SAELens is missing.
        ValueError: If a setting is out of range or does not belong to the architecture, the model has no such block
            or site, the texts are too few, there is an SAE of this block and site already, or there is a checkpoint
            of a training with other settings or one that cannot be read.
    """
    recipe = Recipe(
        architecture, num_features, expansion, k, l1_coefficient, num_tokens, batch_size, learning_rate, seed
    )
    if not 0 < held_out < 1:
        raise ValueError(f"`held_out` must be in (0, 1), got {held_out}.")
    for name, value in {"max_length": max_length, "texts_per_pass": texts_per_pass}.items():
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")
    if not 0 <= save_every < float("inf"):
        raise ValueError(f"`save_every` must be 0 or more minutes, got {save_every}.")
    hook_names = _hook_names(blocks, site)
    output = Path(output_dir)
    processes = Processes.current()
    if restart:
        if processes.is_main:
            remove_checkpoints(checkpoint_path(output))
        processes.wait()
    require_new(output, [] if is_trained(output) else hook_names.values())
    require_saelens()

    rows = check_texts(texts, split, group_column=None, text_column=text_column)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    for place in hook_names:
        width = find_site(network, place).width
        if width is not None:
            recipe.features_of(width)
    tokenized = _tokenize(rows, tokenizer, text_column, max_length)
    kept, measured_on = split_texts(tokenized, held_out, _MAX_HELD_OUT, seed)
    num_measured = num_counted([tokenized[number] for number in measured_on])
    if num_measured < _FEWEST_HELD_OUT:
        raise ValueError(
            f"The held-out texts hold {num_measured} tokens that count, too few to measure an SAE on. Give more texts "
            "or a larger `held_out`."
        )
    kept_texts = [tokenized[number] for number in kept]
    batches = ActivationBuffer(
        network,
        kept_texts,
        list(hook_names),
        batch_size=batch_size,
        buffer_tokens=buffer_tokens,
        texts_per_pass=texts_per_pass,
        seed=seed,
        processes=processes,
    )
    about = {
        "model_name": model_name(network),
        "context_size": max_length,
        "prepend_bos": tokenized[kept[0]].ids[0] == tokenizer.bos_token_id,
        "exclude_special_tokens": True,
    }
    settings = asdict(recipe) | {"max_length": max_length, "held_out": held_out, "buffer_tokens": buffer_tokens}
    settings[SPARSITY_OF[architecture]] = recipe.sparsity
    must_agree = {
        "blocks": list(blocks),
        "site": site,
        **settings,
        "texts_per_pass": texts_per_pass,
        "fingerprint of the texts": texts_fingerprint(tokenized),
        "fingerprint of the model's weights": weights_fingerprint(network),
    }
    checkpoints = Checkpoints(output, must_agree, save_every, processes)
    finished = checkpoints.trained()
    processes.wait()  # all have looked, before one of them changes anything
    if finished is None:
        with eval_mode(network):
            trained, seconds = fit(recipe, batches, hook_names, about, checkpoints, processes)

        def write(folder: Path) -> None:
            for place, sae in trained.items():
                save(sae, folder / hook_names[place])

        finished = checkpoints.save_trained({"seconds": seconds}, write)
    if not processes.is_main:
        processes.wait()  # for process 0, which does the rest
        return [output / name for name in hook_names.values()]
    seconds = float(read_record(finished).get("seconds", 0.0))
    folders = publish(finished, output, hook_names.values())
    # The SAEs are saved first, so that an error in measuring does not lose a long training.
    saes = [load_sae(folder, block=block, site=site) for folder, (block, _) in zip(folders, hook_names)]
    fits = measure_fit(
        network,
        saes,
        [rows[number] for number in measured_on],
        tokenizer=tokenizer,
        text_options=TextOptions(text_column=text_column, max_length=max_length, batch_size=8),
        seed=seed,
    )
    settings.pop("expansion")  # the number of features says it
    about_run = {
        "data": {"num_texts": len(kept_texts), "num_tokens": num_counted(kept_texts)},
        "seconds": round(seconds, 1),
        "device": str(next(network.parameters()).device),
        "versions": {name: version(name) for name in ("torch", "transformers", "sae-lens")},
    }
    add_to_report(
        output,
        {
            hook: {
                "measured": measured.as_dict(),
                "settings": settings | {"num_features": sae.num_features},
                **about_run,
            }
            for hook, sae, measured in zip(hook_names.values(), saes, fits)
        },
    )
    checkpoints.remove()
    processes.wait()
    return folders


def _hook_names(blocks: Sequence[int], site: str) -> dict[Place, str]:
    """SAELens' name for the site of each block: TransformerLens' name or, for a module of the block, its path."""
    if not blocks:
        raise ValueError("Say which `blocks` to train an SAE of: a list of decoder blocks, counted from 0.")
    if min(blocks) < 0 or len(set(blocks)) < len(blocks):
        raise ValueError(f"`blocks` counts decoder blocks from 0, and names each once; got {list(blocks)}.")
    if not is_site(site):
        raise ValueError(
            f"Unknown site {site!r}. Known: {', '.join(SITES)}, or a module of the block with '.input' or '.output', "
            "such as 'mlp.down_proj.input'."
        )
    names = {(block, site): transformer_lens_hook(block, site) or f"layers.{block}.{site}" for block in blocks}
    for place, name in names.items():
        found_as = parse_hook(name)
        if found_as is not None and found_as != place:
            raise ValueError(
                f"{describe_place(place)} is what is called {found_as[1]} of block {found_as[0]}; give that block and "
                "site, by which the SAE will be found."
            )
    return names


def _tokenize(rows: Sequence[Mapping[str, Any]], tokenizer: Any, text_column: str, max_length: int) -> list[Text]:
    if not rows:
        raise ValueError("There are no texts to train an SAE on.")
    grouped = [{**row, _GROUP: ""} for row in rows]
    return tokenize(grouped, tokenizer, TextOptions(_GROUP, text_column, max_length=max_length))
