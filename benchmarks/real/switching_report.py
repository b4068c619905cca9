"""
Tables of what `switching.py` measured.

    python benchmarks/real/switching_report.py --results results/switching

The first: of plain SFT, how likely a token of another script is in answers of each language. The second: of each arm,
the target's script in the answers of the other languages, and the loss there, in the target's own language, and where
an English prompt asks for the target's language or a quotation of it. Everything is compared with plain SFT of the
same seed. Writes `<results>.md`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PER = 10_000  # tokens
COMPARED = ("Han elsewhere", "loss there", "in Chinese", "in Japanese", "on request", "quoted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "switching")
    arguments = parser.parse_args()
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(arguments.results.glob("test-*.json"))]
    plain = {run["seed"]: run for run in runs if run["arm"] == "plain"}
    # The same training, measured with all that is measured now.
    plain[0]["wanted"] = next((run["wanted"] for run in runs if run["arm"] == "plain_read"), {})
    text = "\n".join([*ground(plain[0]), "", *arms(plain, runs)]) + "\n"
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


def arms(plain: dict[int, dict[str, Any]], runs: list[dict[str, Any]]) -> list[str]:
    """One line an arm: means over its seeds, and with several seeds the values of each."""
    lines = [
        "| arm | seeds | Han elsewhere | against plain | loss there | in Chinese | in Japanese | on request | quoted "
        "| reach, 2 std | 3 std |",
        "|---" * 11 + "|",
    ]
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        cells = [f"`{arm}`", str(len(own)), listed([PER * others(run)[0] for run in own], "{:.3f}", "")]
        changes = [against(plain[run["seed"]], run) for run in own]
        for name, form in zip(COMPARED, ["{:+.0f}"] + ["{:+.2f}"] * (len(COMPARED) - 1), strict=True):
            cells.append(listed([change[name] for change in changes if name in change], form, " %"))
        for name in ("2 std", "3 std"):
            shares = [100 * run["reach"][name][1] / run["reach"]["all"][1] for run in own if "reach" in run]
            cells.append(listed(shares, "{:.0f}", " %"))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def listed(values: list[float], form: str, unit: str) -> str:
    """The mean, and the values themselves if there are several."""
    if not values:
        return ""
    mean = form.format(sum(values) / len(values)) + unit
    return mean if len(values) == 1 else f"{mean} ({', '.join(form.format(value) for value in values)})"


def against(plain: dict[str, Any], run: dict[str, Any]) -> dict[str, float]:
    """Changes against plain SFT with the same seed, in per cent."""
    pairs = dict(zip(COMPARED[:2], zip(others(run), others(plain), strict=True), strict=True))
    for name, lang in (("in Chinese", "zh"), ("in Japanese", "ja")):
        pairs[name] = (run["languages"][lang]["loss"], plain["languages"][lang]["loss"])
    for name, kind in (("on request", "request"), ("quoted", "quotation")):
        if kind in run.get("wanted", {}) and kind in plain["wanted"]:
            pairs[name] = (run["wanted"][kind], plain["wanted"][kind])
    return {name: 100 * (one / other - 1) for name, (one, other) in pairs.items()}


def others(run: dict[str, Any]) -> tuple[float, float]:
    """Mean probability of Han, and mean loss, over the languages that are not written in it, each alike."""
    seen = [one for one in run["languages"].values() if "Han" in one["mass"]]
    return sum(one["mass"]["Han"] for one in seen) / len(seen), sum(one["loss"] for one in seen) / len(seen)


if __name__ == "__main__":
    main()
