"""
The limits above which an answer is a near loop, from ordinary text; and how often the detector fires on such text.

    python benchmarks/help/loop_thresholds.py --data data/help --tokenizer models/help-qwen3-7m

Every page is cut into windows of the lengths that the detector looks at, without overlap. The limits frozen in
`sae_posttrain/measure/loops.py` are the 99.9th percentiles of the windows without an exact loop, rounded up to two
digits. Then the detector, with the limits as they are frozen, reads every page as if it were an answer.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pages import load_pages
from transformers import AutoTokenizer

from sae_posttrain.measure.loops import NEAR_LIMITS, find_loop, repetition

RESULTS = Path(__file__).parent / "results" / "loop_thresholds.json"
PERCENTILES = (50, 99, 99.9, 100)
MEASURES = ("rep_4", "zlib_ratio")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the model or its tokenizer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    texts = {
        (lang, page_id): tokenizer(row["text"])["input_ids"]
        for lang, of_language in load_pages(arguments.data).items()
        for page_id, row in of_language.items()
    }
    result = {
        "num_pages": len(texts),
        "num_tokens": sum(map(len, texts.values())),
        "vocabulary": len(tokenizer),
        "windows": {str(length): measure_windows(texts, length) for length in NEAR_LIMITS},
        "pages_whole": count_loops(texts),
        "pages_cut_at_512": count_loops({key: ids[:512] for key, ids in texts.items()}),
        "milliseconds": {str(num): time_detector(texts, num) for num in (4096, 32768)},
        "versions": {name: version(name) for name in ("numpy", "transformers")}
        | {"python": platform.python_version()},
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False, indent=2))


def measure_windows(texts: dict[tuple[str, str], list[int]], length: int) -> dict[str, Any]:
    """Percentiles of both measures over windows of one length, and what repeats more than the frozen limits allow."""
    windows = [
        (key, start, ids[start : start + length])
        for key, ids in texts.items()
        for start in range(0, len(ids) - length + 1, length)
    ]
    ordinary = [window for window in windows if not find_loop(window[2], finished=True).loop_any]
    measured = np.array([repetition(ids) for _, _, ids in ordinary])
    above = (measured > NEAR_LIMITS[length]).any(axis=1)
    return {
        "num_windows": len(windows),
        "num_with_loop": len(windows) - len(ordinary),
        "percentiles": {
            name: {str(p): round(float(np.percentile(measured[:, column], p)), 4) for p in PERCENTILES}
            for column, name in enumerate(MEASURES)
        },
        "limits": dict(zip(MEASURES, NEAR_LIMITS[length])),
        "num_above_a_limit": int(above.sum()),
        "above_a_limit": [
            {"lang": key[0], "id": key[1], "start": start, **dict(zip(MEASURES, values.round(3).tolist()))}
            for (key, start, _), values, fires in zip(ordinary, measured, above)
            if fires
        ],
    }


def count_loops(texts: dict[tuple[str, str], list[int]]) -> dict[str, Any]:
    """How many pages the detector flags, by what; for exact loops, which."""
    found = {key: find_loop(ids, finished=False) for key, ids in texts.items()}
    loops = {key: loop for key, loop in found.items() if loop.loop_any}
    return {
        "num": len(found),
        "loop_tail": sum(loop.loop_tail for loop in loops.values()),
        "loop_any": len(loops),
        "near_loop": sum(loop.near_loop for loop in found.values()),
        "loops": [
            {"lang": lang, "id": page_id, "onset": loop.onset, "period": loop.period, "span": loop.span}
            for (lang, page_id), loop in loops.items()
        ],
    }


def time_detector(texts: dict[tuple[str, str], list[int]], num_tokens: int) -> dict[str, float]:
    """Best of seven calls, in milliseconds: on pages one after the other, looping to the end, recovering from it."""
    text = [token for ids in texts.values() for token in ids][:num_tokens]
    loop = (text[:37] * num_tokens)[:num_tokens]
    times = {}
    for name, ids in {"pages": text, "loop": loop, "recovered": [*loop[:-50], *text[-50:]]}.items():
        seconds = []
        for _ in range(7):
            started = time.perf_counter()
            find_loop(ids, finished=False)
            seconds.append(time.perf_counter() - started)
        times[name] = round(1000 * min(seconds), 2)
    return times


if __name__ == "__main__":
    main()
