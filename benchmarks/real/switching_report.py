"""
Tables of what `switching.py` measured.

    python benchmarks/real/switching_report.py --results results/switching

The first: of plain SFT, how likely a token of another script is in answers of each language. The second: of each arm,
the target's script in the answers of the other languages, and the loss there, in the target's own language, and where
an English prompt asks for the target's language or a quotation of it. Losses are compared with plain SFT. Writes
`<results>.md`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PER = 10_000  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "switching")
    arguments = parser.parse_args()
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(arguments.results.glob("test-*.json"))]
    plain = next(run for run in runs if run["arm"] == "plain")
    # The same training, measured with all that is measured now.
    plain["wanted"] = next((run["wanted"] for run in runs if run["arm"] == "plain_read"), {})
    text = "\n".join([*ground(plain), "", *arms(plain, runs)]) + "\n"
    print(text)
    arguments.results.with_suffix(".md").write_text(text, encoding="utf-8")


def ground(run: dict[str, Any]) -> list[str]:
    scripts = sorted({script for of_language in run["languages"].values() for script in of_language["mass"]})
    lines = [
        f"| answers in | tokens | loss | {' | '.join(scripts)} | sampled answers with the target's script |",
        "|---" * (len(scripts) + 4) + "|",
    ]
    for lang, seen in run["languages"].items():
        mass = [f"{PER * seen['mass'][script]:.2f}" if script in seen["mass"] else "own" for script in scripts]
        drawn = run.get("sampled", {}).get(lang)
        share = f"{100 * sum(drawn) / len(drawn):.2f} % of {len(drawn)}" if drawn else ""
        lines.append(f"| {lang} | {seen['num_tokens']:,} | {seen['loss']:.3f} | {' | '.join(mass)} | {share} |")
    return lines


def arms(plain: dict[str, Any], runs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| arm | seed | Han elsewhere | against plain | loss there | in Chinese | on request | quoted | reach, 2 std "
        "| 3 std |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    before = others(plain)
    for run in runs:
        mass, loss = others(run)
        own, own_before = (one["languages"]["zh"]["loss"] for one in (run, plain))
        cells = [f"`{run['arm']}`", str(run["seed"]), f"{PER * mass:.3f}", f"{100 * (mass / before[0] - 1):+.0f} %"]
        cells += [f"{100 * (loss / before[1] - 1):+.2f} %", f"{100 * (own / own_before - 1):+.2f} %"]
        for kind in ("request", "quotation"):
            known = kind in run.get("wanted", {}) and kind in plain["wanted"]
            cells.append(f"{100 * (run['wanted'][kind] / plain['wanted'][kind] - 1):+.2f} %" if known else "")
        reach = run.get("reach")
        for name in ("2 std", "3 std"):
            cells.append(f"{100 * reach[name][1] / reach['all'][1]:.0f} %" if reach else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def others(run: dict[str, Any]) -> tuple[float, float]:
    """Mean probability of Han, and mean loss, over the languages that are not written in it, each alike."""
    seen = [one for one in run["languages"].values() if "Han" in one["mass"]]
    return sum(one["mass"]["Han"] for one in seen) / len(seen), sum(one["loss"] for one in seen) / len(seen)


if __name__ == "__main__":
    main()
