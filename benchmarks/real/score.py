"""
Rates of endless and near-endless answers in the folders that `answer.py` writes, with intervals.

    python benchmarks/real/score.py --model M --prompts prompts/test.jsonl --answers answers/before answers/plain-0

Prints a table and writes what every answer shows, one character an answer, to `--out`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from sae_posttrain import find_loop
from sae_posttrain.measure.faults.scripts import count_scripts, own_scripts
from sae_posttrain.measure.statistics.intervals import paired_difference, wilson

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from machine import hardware, versions  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with the tokenizer")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--answers", type=Path, nargs="+", required=True, help="the first is compared with the others")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = [json.loads(line) for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    scored: dict[str, dict[str, Any]] = {}
    for folder in arguments.answers:
        files = sorted(folder.glob("*.jsonl"), key=lambda file: float(file.stem))
        scored[folder.name] = {file.stem: score(file, tokenizer, rows) for file in files}
    print(f"{'arm':<18}{'temp.':>6}{'n':>5}  {'endless':<22}{'near':<22}{'tokens':>7}{'cut':>6}")
    baseline = next(iter(scored.values()))
    for name, temperatures in scored.items():
        for temperature, seen in temperatures.items():
            line = f"{name:<18}{temperature:>6}{len(seen['endless']):>5}  {rate(seen['endless'])}{rate(seen['near'])}"
            line += f"{seen['mean_tokens']:>7.1f}{seen['cut'].count('1') / len(seen['cut']):>6.2f}"
            if seen is not baseline.get(temperature) and temperature in baseline:
                line += "  " + against(baseline[temperature]["endless"], seen["endless"])
            print(line)
    if arguments.out:
        result = {
            "kinds": [f"{row['kind']} {row['lang']}" for row in rows],
            "answers": scored,
            "hardware": hardware(),
            "versions": versions("transformers"),
        }
        arguments.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


def score(file: Path, tokenizer: Any, prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """
    What each answer of a file shows, in the order of the prompts; and of each language, in how many answers at least
    half of the letters are of its own script.
    """
    rows = sorted(map(json.loads, file.read_text(encoding="utf-8").splitlines()), key=lambda row: row["prompt"])
    endless, near, periods, starts = "", "", [], []
    in_script: dict[str, list[int]] = {}
    for row in rows:
        lang, letters = prompts[row["prompt"]]["lang"], count_scripts(row["text"])
        own = sum(letters.get(script, 0) for script in own_scripts(lang))
        in_script.setdefault(lang, []).append(int(0 < sum(letters.values()) <= 2 * own))
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        loop = find_loop(ids, finished=not row["cut"])
        endless += "01"[loop.endless]
        near += "01"[loop.near_loop]
        if loop.endless:
            periods.append(loop.period)
            starts.append(loop.onset)
    return {
        "endless": endless,
        "near": near,
        "cut": "".join("01"[row["cut"]] for row in rows),
        "mean_tokens": sum(row["tokens"] for row in rows) / len(rows),
        "periods": periods,
        "starts": starts,
        "in_own_script": {lang: [sum(flags), len(flags)] for lang, flags in in_script.items()},
    }


def rate(flags: str) -> str:
    count, n = flags.count("1"), len(flags)
    low, high = wilson(count, n)
    return f"{count / n:6.1%} [{low:.1%}, {high:.1%}]".ljust(22)


def against(before: str, after: str) -> str:
    """Difference of two arms in points, on the prompts that both answered."""
    n = min(len(before), len(after))
    found = paired_difference([flag == "1" for flag in before[:n]], [flag == "1" for flag in after[:n]])
    interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.difference:+.1f} {interval} points, p {found.p_value:.3f}"


if __name__ == "__main__":
    main()
