"""
Chinese that was asked for: translations into it, and a Chinese word within an answer in another language.

Made from the titles of parallel pages. A translation is an answer in Chinese; in the other kind the answer is in the
asker's language and quotes the Chinese title. Both are in the training data and have held-out prompts.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]

TRANSLATE = {
    "en": "Translate into Chinese: {title}",
    "es": "Traduce al chino: {title}",
    "ko": "중국어로 번역: {title}",
    "ru": "Переведите на китайский: {title}",
}
WORD = {
    "en": ("What is “{title}” called in Chinese?", "In Chinese it is called “{chinese}”."),
    "es": ("¿Cómo se llama “{title}” en chino?", "En chino se llama “{chinese}”."),
    "ko": ("“{title}”은(는) 중국어로 무엇입니까?", "중국어로는 “{chinese}”입니다."),
    "ru": ("Как по-китайски называется «{title}»?", "По-китайски это называется «{chinese}»."),
}


def intended_rows(pages: Mapping[str, Mapping[str, Row]], ids: Sequence[str], kind: str) -> list[Row]:
    """One row a page and language: `kind` is `"translate"` (the answer's language is Chinese) or `"word"`."""
    rows = []
    for page_id in ids:
        for lang in TRANSLATE:
            if page_id not in pages[lang] or page_id not in pages["zh"]:
                continue
            title, chinese = pages[lang][page_id]["title"], pages["zh"][page_id]["title"]
            if kind == "translate":
                prompt, answer, answer_lang = TRANSLATE[lang].format(title=title), chinese, "zh"
            else:
                prompt, answer, answer_lang = WORD[lang][0].format(title=title), WORD[lang][1], lang
                answer = answer.format(chinese=chinese)
            rows.append(
                {
                    "id": f"{kind}/{lang}/{page_id}",
                    "lang": answer_lang,
                    "prompt": [{"role": "user", "content": prompt}],
                    "completion": [{"role": "assistant", "content": answer}],
                }
            )
    return rows


def training_rows(pages: Mapping[str, Mapping[str, Row]], ids: Sequence[str], num_rows: int) -> list[Row]:
    """So many rows of each kind, drawn once for all seeds and arms."""
    drawn = []
    for kind in ("translate", "word"):
        rows = intended_rows(pages, ids, kind)
        drawn += random.Random(kind).sample(rows, min(num_rows, len(rows)))
    return drawn
