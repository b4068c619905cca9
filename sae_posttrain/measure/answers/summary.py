"""
Rates of judged answers with intervals, overall and by language, and their comparison between two models.

Answers from a version that did not measure loops have no `loop`; their loop rates are `None`. Rates of lines exist
only if languages of lines were identified.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...tables import align
from ..faults.loops import MIN_TOKENS
from ..faults.switching import THRESHOLDS
from ..statistics.intervals import paired_difference, wilson

Answer = Mapping[str, Any]
"""A line of `answers.jsonl`."""

LOOP_MEASURES = ("endless", "loop_any", "near_loop")

LINE_MEASURE = "line_pass_rate"

MOSTLY_CUT = 0.9
"""Share of cut answers from which a remark tells the reader that the rates depend mainly on the length limit."""

_OF_ONE_MODEL = ("model", "model_fingerprint", "model_kwargs", "tokenizer", "batch_size")
"""Settings in which two evaluations may differ. Tokenizers are compared by content, not by path."""


def summarise(answers: Sequence[Answer]) -> dict[str, Any]:
    """
    Counts, rates and 95 % intervals of judged answers: `overall`, and `groups` by language. A rate that no answer can
    show is `None`.
    """
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer["lang"], []).append(answer)
    return {
        "overall": _summarise_group(answers),
        "groups": {lang: _summarise_group(groups[lang]) for lang in sorted(groups)},
    }


def _summarise_group(answers: Sequence[Answer]) -> dict[str, Any]:
    measured = [answer for answer in answers if answer["any"] is not None]
    loops = [answer["loop"] for answer in answers if "loop" in answer]
    summary = {
        "num_answers": len(answers),
        "num_measured": len(measured),
        "any": _rates_at_thresholds([answer["num_any"] for answer in measured]),
        "unexpected": _rates_at_thresholds([answer["num_unexpected"] for answer in measured]),
        "unexpected_in_think": _rate([answer["num_unexpected_in_think"] > 0 for answer in measured]),
        "right_language": _rate([a["right_language"] for a in answers if a["right_language"] is not None]),
        **{measure: _rate([loop[measure] for loop in loops]) for measure in LOOP_MEASURES},
        "truncated": _rate([not answer["finished"] for answer in answers]),
        "empty": _rate([not answer["answer"].strip() for answer in answers]),
        "broken_characters": _rate([answer["num_replacement_chars"] > 0 for answer in answers]),
        "mean_tokens": sum(answer["num_tokens"] for answer in answers) / len(answers),
    }
    if any("lines" in answer for answer in answers):
        summary.update(_line_rates([lines for answer in answers if (lines := answer.get("lines"))]))
    return summary


def remarks_on(summary: Mapping[str, Any], end_tokens: Sequence[str] | None) -> list[str]:
    """Remarks that a reader needs before the rates: whether almost all answers, or almost all of a group, were cut."""
    whole = summary["overall"]["truncated"]
    parts = {f"the {lang} answers": group["truncated"] for lang, group in summary["groups"].items()}
    cut = {"the answers": whole} if whole["rate"] >= MOSTLY_CUT else parts
    ends = "" if end_tokens is None else f" An answer ends at {', '.join(end_tokens) or 'no token at all'}."
    return [
        f"{rate['count']} of {rate['n']} of {name} were cut at the limit: the model hardly ever ends by itself, and "
        f"rates depend on the limit.{ends} Raise `max_new_tokens`; if the model was fine-tuned, was it trained to "
        "write one of these tokens?"
        for name, rate in cut.items()
        if rate["rate"] >= MOSTLY_CUT
    ]


def different_settings(settings: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """
    Names of settings in which two evaluations differ and should not.

    Tokenizers are compared by their contents. Two chat templates that send the same tokens are the same. A setting
    that only one of the two recorded is not compared, except the engine: without one it was transformers.
    """
    settings, other = ({"engine": "transformers", **each} for each in (settings, other))
    may_differ = {*_OF_ONE_MODEL}
    if settings.get("prompts_sha256") == other.get("prompts_sha256"):
        may_differ.add("chat_template")
    return [name for name in settings if name not in may_differ and name in other and settings[name] != other[name]]


def _line_rates(judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rates of answers without a foreign line, of foreign lines, and of lines whose language is unknown."""
    num_lines = sum(lines["num_lines"] for lines in judged)
    return {
        LINE_MEASURE: _rate([lines["line_pass"] for lines in judged if lines["line_pass"] is not None]),
        "foreign_line_rate": _rate_of(sum(len(lines["foreign"]) for lines in judged), num_lines),
        "unknown_line_rate": _rate_of(sum(lines["num_unknown"] for lines in judged), num_lines),
    }


def _rates_at_thresholds(num_chars: list[int]) -> dict[str, Any] | None:
    if not num_chars:
        return None
    return {str(threshold): _rate([num >= threshold for num in num_chars]) for threshold in THRESHOLDS}


def _rate(flags: list[bool]) -> dict[str, Any] | None:
    return _rate_of(sum(flags), len(flags))


def _rate_of(count: int, n: int) -> dict[str, Any] | None:
    if n == 0:
        return None
    low, high = wilson(count, n)
    return {"count": count, "n": n, "rate": count / n, "low": low, "high": high}


def compare_answers(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, Any]:
    """
    Differences between the rates of two models, paired by prompt: `after` minus `before`, `overall` and in `groups` by
    language.
    """
    before_by_key = {answer_key(answer): answer for answer in before}
    pairs = [(before_by_key[answer_key(answer)], answer) for answer in after]
    return {
        "overall": _compare_group(pairs),
        "groups": {
            lang: _compare_group([pair for pair in pairs if pair[1]["lang"] == lang])
            for lang in sorted({answer["lang"] for answer in after})
        },
    }


def answer_key(answer: Answer) -> tuple[Any, int, str]:
    """Key that is equal for two answers to the same prompt: id, number of the sample, language."""
    return answer["id"], answer["sample"], answer["lang"]


def _compare_group(pairs: list[tuple[Answer, Answer]]) -> dict[str, Any]:
    compared: dict[str, Any] = {"num_pairs": len(pairs)}
    of_lines = (LINE_MEASURE,) if any("lines" in after for _, after in pairs) else ()
    for measure in ("any", "unexpected", "right_language", *LOOP_MEASURES, *of_lines):
        flags = [(_flag(before, measure), _flag(after, measure), after["id"]) for before, after in pairs]
        judged = [(before, after, id_) for before, after, id_ in flags if before is not None and after is not None]
        compared[measure] = None
        if judged:
            ids = [id_ for _, _, id_ in judged]
            difference = paired_difference(
                [before for before, _, _ in judged],
                [after for _, after, _ in judged],
                # several samples of a prompt, or one text in several languages
                ids if len(set(ids)) < len(ids) else None,
            )
            compared[measure] = asdict(difference)
    return compared


def _flag(answer: Answer, measure: str) -> bool | None:
    if measure == LINE_MEASURE:
        lines: Answer = answer.get("lines") or {}
        return lines.get("line_pass")
    judged: Answer = answer.get("loop", {}) if measure in LOOP_MEASURES else answer
    return judged.get(measure)


def format_evaluation(result: Mapping[str, Any]) -> str:
    """
    Table of an evaluation (what [`evaluate`] returned) for a terminal: rates in percent with 95 % intervals, one line
    per language.
    """
    settings = result["settings"]
    target = settings["target_lang"]
    into = f"into {target}" if target is not None else "into any other script"
    table = [
        ["lang", "answers", "unexpected %", "any %", "right language %", "endless %", "cut %", "empty %", "tokens"]
    ]
    lid = settings.get("lid")
    if lid is not None:
        table[0] += ["line pass %", "foreign lines %"]
    for name, group in [*result["groups"].items(), ("all", result["overall"])]:
        table.append(
            [
                name,
                str(group["num_answers"]),
                _format_rate(group["unexpected"] and group["unexpected"]["1"]),
                _format_rate(group["any"] and group["any"]["1"]),
                _format_rate(group["right_language"]),
                _format_rate(group.get("endless")),
                _format_rate(group["truncated"], interval=False),
                _format_rate(group["empty"], interval=False),
                f"{group['mean_tokens']:.0f}",
                *(_format_rate(group.get(rate)) for rate in (LINE_MEASURE, "foreign_line_rate") if lid is not None),
            ]
        )
    lines = [f"{settings['model']}: code-switching {into}, and endless repetition", "", *align(table, num_left=1), ""]
    lines.append("unexpected: characters that nothing excuses; any: the published rule, one character anywhere.")
    lines.append(_explain_endless(result["overall"], settings["max_new_tokens"]))
    if lid is not None:
        lines.append(
            f"line pass: answers without a line in another of {', '.join(lid['languages'])}; foreign lines: share of "
            f"the lines of {lid['min_words']} words or more, which are not independent, so true intervals are wider."
        )
    unmeasured = [name for name, group in result["groups"].items() if group["any"] is None]
    if unmeasured:
        lines.append(f"-: a switch {into} does not show in the script of {', '.join(unmeasured)}.")
    if settings["num_samples"] > 1:
        lines.append(
            f"{settings['num_samples']} answers to each prompt count as independent here; true intervals are wider."
        )
    if "comparison" in result:
        lines += ["", *_format_comparison(result["comparison"])]
    return "\n".join(lines) + "\n"


def _explain_endless(overall: Mapping[str, Any], max_new_tokens: int) -> str:
    if overall.get("endless") is None:
        return "endless: -, the answers were written by a version that did not measure loops."
    if max_new_tokens < MIN_TOKENS:
        return f"endless: no answer of {max_new_tokens} tokens can show it, a loop has {MIN_TOKENS} or more."
    anywhere = f"a loop anywhere: {_format_rate(overall['loop_any'], interval=False)} % of all"
    near = f"cut in a loop in which something changes: {_format_rate(overall['near_loop'], interval=False)} %"
    return f"endless: an exact loop up to where the answer was cut; {anywhere}, {near}."


def _format_comparison(comparison: Mapping[str, Any]) -> list[str]:
    measures = ["unexpected", "any", "right_language", "endless"]
    measures += [LINE_MEASURE] if LINE_MEASURE in comparison["overall"] else []
    table = [["lang", "pairs", *(cell for name in measures for cell in (name.replace("_", " "), "p"))]]
    for name, group in [*comparison["groups"].items(), ("all", comparison["overall"])]:
        cells = [name, str(group["num_pairs"])]
        for measure in measures:
            paired = group.get(measure)
            if paired is None:
                cells += ["-", "-"]
                continue
            low, high = 100 * paired["low"], 100 * paired["high"]
            cells.append(f"{100 * paired['difference']:+.2f} [{low:+.2f}, {high:+.2f}]")
            cells.append("-" if paired["p_value"] is None else f"{paired['p_value']:.3g}")
        table.append(cells)
    lines = [
        f"Difference to {comparison['other_model']} ({comparison['other']}) in points, paired:",
        "",
        *align(table, num_left=1),
        "",
    ]
    lines.append("p: exact McNemar test; - where answers to one prompt repeat (intervals then resample prompts).")
    if comparison["different_settings"]:
        lines.append(f"Not the same in both: {', '.join(comparison['different_settings'])}.")
    return lines


def _format_rate(rate: Mapping[str, Any] | None, interval: bool = True) -> str:
    if rate is None:
        return "-"
    if not interval:
        return f"{100 * rate['rate']:.1f}"
    return f"{100 * rate['rate']:.2f} [{100 * rate['low']:.2f}, {100 * rate['high']:.2f}]"
