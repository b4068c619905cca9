"""
Reading every feature of every block on texts of several languages in one pass, compared with the published script and
with SAELens.

The published form (the script of the SASFT paper) makes one pass per block for each single text, and keeps every
activation until it computes the means. With SAELens, texts go through the model in batches, once for all blocks; its
`encode` gives dense activations, and their sums are kept. `find_features` does the same with only the active features.
All give the same means, which is checked. `find_features` also computes the means and variances of the
pre-activations. Time is processor time. Passes and bytes of live tensors are counted.

The limit: reading F features of width D at N tokens takes 2·N·D·F operations per block in every form, timed here as
the matrix product alone (`encoder alone`). The model itself takes 2·N·P operations once, and in the published form
once per block.

    pip install sae-lens   # left out if it is missing
    python benchmarks/bench_find_features.py --model models/help-qwen3-7m --data data/help
"""

import argparse
import json
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from machine import hardware, seconds, versions
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain.estimate.live_bytes import LiveBytes
from sae_posttrain.features.read.loading import load_saes, place_of
from sae_posttrain.features.read.statistics import collect_statistics
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.features.read.texts import Text, batches, read_rows, tokenize
from sae_posttrain.hooks.record import record_blocks
from sae_posttrain.saes.frozen import FrozenSAE

RESULTS = Path(__file__).parent / "results" / "bench_find_features.json"
LANGUAGES = ("en", "es", "ko", "ru", "zh")
Means = dict[int, torch.Tensor]
"""By block, `(G, F)`."""


def one_pass(model: Any, texts: list[Text], saes: list[FrozenSAE], batch_size: int) -> Means:
    sums = collect_statistics(model, batches(texts, LANGUAGES, batch_size), saes, len(LANGUAGES))
    return {sae.block: sums[place_of(sae)].mean_activation.float() for sae in saes}


def published(model: Any, texts: list[Text], saes: list[FrozenSAE], _batch_size: int) -> Means:
    means = {}
    with torch.inference_mode():
        for sae in saes:
            kept: dict[str, list[torch.Tensor]] = {lang: [] for lang in LANGUAGES}
            for text in texts:
                with record_blocks(model, [sae.block]) as outputs:
                    model(input_ids=torch.tensor([text.ids], device=model.device))
                acts_TF = sae.encode(outputs[sae.block][0][0])
                kept[text.group].append(acts_TF[torch.tensor(text.counted)])
            means[sae.block] = torch.stack([torch.cat(kept[lang]).mean(dim=0) for lang in LANGUAGES])
    return means


def with_sae_lens(model: Any, texts: list[Text], saes: list[FrozenSAE], batch_size: int) -> Means:
    from sae_lens import TopKSAE, TopKSAEConfig

    coders = {}
    for sae in saes:
        sizes = {"d_in": sae.d_model, "d_sae": sae.num_features, "k": sae.k or 1}
        coders[sae.block] = TopKSAE(TopKSAEConfig(**sizes, device=str(model.device), dtype="float32"))
        coders[sae.block].W_enc.data, coders[sae.block].b_enc.data = sae.W_enc, sae.b_enc
    sums = {sae.block: torch.zeros(len(LANGUAGES), sae.num_features, device=model.device) for sae in saes}
    num_tokens = torch.zeros(len(LANGUAGES), device=model.device)
    with torch.inference_mode():
        for batch in batches(texts, LANGUAGES, batch_size):
            batch = batch.to(model.device)
            with record_blocks(model, list(sums)) as outputs:
                model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=1
                )
            groups_N = batch.groups[:, None].expand_as(batch.counted)[batch.counted]
            member_GN = torch.nn.functional.one_hot(groups_N, len(LANGUAGES)).T.float()
            num_tokens += member_GN.sum(dim=1)
            for block, values in outputs.items():
                sums[block] += member_GN @ coders[block].encode(values[0][batch.counted])
    return {block: own / num_tokens[:, None] for block, own in sums.items()}


def encoder_alone(_model: Any, texts: list[Text], saes: list[FrozenSAE], _batch_size: int) -> Means:
    """No means: the products with the encoders for as many tokens, nothing before or after them."""
    tokens = sum(sum(text.counted) for text in texts)
    with torch.inference_mode():
        for sae in saes:
            residual_ND = torch.ones(1024, sae.d_model, device=sae.W_enc.device)
            for start in range(0, tokens, 1024):
                residual_ND[: tokens - start] @ sae.W_enc
    return {}


def peak_bytes(call: Callable[[], Means]) -> int:
    """Of tensors that were made during the call."""
    with LiveBytes() as live:
        call()
    return live.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a small model with its SAEs in sae/")
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--texts", type=int, default=24, help="of each language")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    blocks = list(range(model.config.num_hidden_layers))
    saes = load_saes(arguments.model / "sae", blocks, "resid_post", k=arguments.k)
    rows = []
    for lang in LANGUAGES:
        own = read_rows(sorted(arguments.data.glob(f"{lang}.jsonl*"))[0])[: arguments.texts]
        rows += [{"lang": lang, "text": row["text"][:4000]} for row in own]
    texts = tokenize(
        rows, AutoTokenizer.from_pretrained(arguments.model), TextOptions(max_length=arguments.max_length)
    )

    forms: dict[str, Callable[..., Means]] = {"one pass": one_pass, "published": published}
    if find_spec("sae_lens"):
        forms["SAELens"] = with_sae_lens
    forms["encoder alone"] = encoder_alone
    passes = dict.fromkeys(forms, 0)
    taken: dict[str, list[float]] = {name: [] for name in forms}
    means: dict[str, Means] = {}
    for turn in range(arguments.turns):
        for name in list(forms) if turn % 2 == 0 else reversed(list(forms)):
            counted = [0]
            hook = model.register_forward_pre_hook(lambda *_, counted=counted: counted.__setitem__(0, counted[0] + 1))
            started = seconds()
            means[name] = forms[name](model, texts, saes, arguments.batch_size)
            taken[name].append(seconds() - started)
            hook.remove()
            passes[name] = counted[0]
    others = [name for name in forms if name not in ("one pass", "encoder alone")]
    for name in others:
        for block in blocks:
            torch.testing.assert_close(means["one pass"][block], means[name][block], rtol=1e-3, atol=1e-4)
    peaks = {
        name: peak_bytes(lambda form=form: form(model, texts, saes, arguments.batch_size))
        for name, form in forms.items()
    }
    ratios = {
        name: [round(theirs / ours, 2) for theirs, ours in zip(taken[name], taken["one pass"])]
        for name in [*others, "encoder alone"]
    }
    report = {
        "question": "Reading every feature of every block on texts: one pass for all, beside one a block and text.",
        "settings": {k: v for k, v in vars(arguments).items() if k not in ("model", "data")}
        | {"blocks": len(blocks), "features": saes[0].num_features, "num_texts": len(texts)},
        "texts_per_second": {name: round(len(texts) / statistics.median(values), 2) for name, values in taken.items()},
        "times_faster": {name: statistics.median(ratios[name]) for name in others},
        "share_of_the_time_that_is_the_encoders": statistics.median(ratios["encoder alone"]),
        "ratios_by_turn": ratios,
        "passes": passes,
        "peak_bytes": peaks,
        "seconds": taken,
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "sae_posttrain", *(["sae-lens"] if "SAELens" in forms else [])),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for name in others:
        print(
            f"{report['times_faster'][name]} times as fast as {name} (by turn {ratios[name]}), {passes[name]} passes "
            f"to {passes['one pass']}, peak {peaks[name] / 1e6:.0f} MB to {peaks['one pass'] / 1e6:.0f} MB"
        )
    print(f"{report['share_of_the_time_that_is_the_encoders']} of the time are the encoders' products alone")


if __name__ == "__main__":
    main()
