"""
A public multilingual instruction set as the files that the recipes read: `train.jsonl` and `prompts.jsonl`.

    python recipes/multilingual_data/prepare.py --languages en ko zh ru --out data/aya

The columns are those of https://huggingface.co/datasets/CohereLabs/aya_dataset; name others for another set.
"""

import argparse
import json
from hashlib import sha256
from itertools import islice
from pathlib import Path

from datasets import load_dataset

# From ISO 639-3, which the set uses, to the shorter codes of this library. A code that is not listed stays as it is.
SHORT = dict(
    pair.split(":")
    for pair in "amh:am arb:ar ara:ar ben:bn dan:da deu:de ell:el eng:en eus:eu fas:fa fin:fi fra:fr gle:ga guj:gu "
    "hat:ht hau:ha heb:he hin:hi hun:hu ibo:ig ind:id ita:it jav:jv jpn:ja kan:kn kir:ky kor:ko kur:ku lit:lt mal:ml "
    "mar:mr mlg:mg msa:ms mya:my nep:ne nld:nl nor:no nya:ny pan:pa pes:fa pol:pl por:pt pus:ps ron:ro rus:ru sin:si "
    "sna:sn snd:sd som:so spa:es sqi:sq srp:sr sun:su swa:sw swe:sv tam:ta tel:te tha:th tur:tr ukr:uk urd:ur vie:vi "
    "wol:wo xho:xh yid:yi yor:yo zho:zh zul:zu".split()
)


def check(dataset, columns: list[str]) -> None:
    """Look at the first rows before all of them are read: each named column holds a text."""
    for number, row in enumerate(islice(dataset, 20), start=1):
        for column in columns:
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise ValueError(
                    f"Row {number}: column {column!r} must hold a text, got {row.get(column)!r}; there are "
                    f"{', '.join(row)}. Name others by --prompt-column, --answer-column, --language-column."
                )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="CohereLabs/aya_dataset", help="Hub id, or a folder in the Hub's layout")
    parser.add_argument("--split", default="train")
    parser.add_argument("--languages", nargs="+", required=True, help="languages to keep, e.g. en ko zh")
    parser.add_argument("--prompt-column", default="inputs")
    parser.add_argument("--answer-column", default="targets")
    parser.add_argument("--language-column", default="language_code")
    parser.add_argument("--num-prompts", type=int, default=200, help="prompts of each language to hold out")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    given = parser.parse_args(arguments)
    dataset = load_dataset(given.dataset, split=given.split)
    prompt, answer, language = columns = [given.prompt_column, given.answer_column, given.language_column]
    check(dataset, columns)
    langs = [SHORT.get(code, code) for code in dataset[language]]
    missing = set(given.languages) - set(langs)
    if missing:
        raise ValueError(f"No row is in {', '.join(sorted(missing))}. There are {', '.join(sorted(set(langs)))}.")
    dataset = dataset.add_column("lang", langs).filter(lambda row: row["lang"] in given.languages and row[answer])
    # The prompts with the smallest hashes are held out: the same ones in every run, and never in train.jsonl.
    rows = sorted(dataset, key=lambda row: sha256(row[prompt].encode()).digest())
    held_out: dict[str, set[str]] = {name: set() for name in given.languages}
    training, prompts = [], []
    for row in rows:
        text, lang = row[prompt], row["lang"]
        if text in held_out[lang]:
            continue
        if len(held_out[lang]) < given.num_prompts:
            held_out[lang].add(text)
            prompts.append({"prompt": [{"role": "user", "content": text}], "lang": lang})
        else:
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": row[answer]}]
            training.append({"messages": messages, "lang": lang})
    given.out.mkdir(parents=True, exist_ok=True)
    for name, written in (("train.jsonl", training), ("prompts.jsonl", prompts)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in written)
        (given.out / name).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
