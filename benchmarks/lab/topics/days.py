"""Days, months and hours."""

from collections.abc import Iterator
from itertools import product

from .text import LANGS, Draft, draft, word_table
from .words import DAYS, MONTHS

NEXT_PROMPTS = {
    "en": ["Which {unit} comes after {x.n}?", "What {unit} is it after {x.n}?"],
    "zh": ["{x.n}后面是{which}？", "{x.n}的下一{unit}是{which}？"],
    "ko": ["{x.n} 다음은 {which}이에요?", "{x.n} 다음에 오는 {unit}(을/를) 알려 주세요."],
    "ru": ["Какой {unit} идёт после {x.after}?", "Назовите {unit} после {x.after}."],
}
NEXT_ANSWERS = {
    "en": ["{y.n} comes after {x.n}. And {w.n} comes before {x.n}.", "{y.n} comes after {x.n}. Then we have {z.n}."],
    "zh": ["{x.n}后面是{y.n}，{x.n}前面是{w.n}。", "{x.n}后面是{y.n}，再后面是{z.n}。"],
    "ko": ["{x.n} 다음은 {y.n}이에요. {x.n} 앞은 {w.n}이에요.", "{x.n} 다음은 {y.n}이에요. 그다음은 {z.n}이에요."],
    "ru": [
        "После {x.after} идёт {y.n}. А перед {x.before} идёт {w.n}.",
        "После {x.after} идёт {y.n}. Потом идёт {z.n}.",
    ],
}
NEXT_CHECKS = {"en": "{y.n} comes after", "zh": "后面是{y.n}", "ko": "다음은 {y.n}", "ru": "{x.after} идёт {y.n}"}

LAST_PROMPTS = {
    "en": ["Which {unit} comes before {x.n}?", "What {unit} is it before {x.n}?"],
    "zh": ["{x.n}前面是{which}？", "{x.n}的前一{unit}是{which}？"],
    "ko": ["{x.n} 앞은 {which}이에요?", "{x.n} 앞에 오는 {unit}(을/를) 알려 주세요."],
    "ru": ["Какой {unit} идёт перед {x.before}?", "Назовите {unit} перед {x.before}."],
}
LAST_ANSWERS = {
    "en": ["{w.n} comes before {x.n}. And {y.n} comes after {x.n}."],
    "zh": ["{x.n}前面是{w.n}，{x.n}后面是{y.n}。"],
    "ko": ["{x.n} 앞은 {w.n}이에요. {x.n} 다음은 {y.n}이에요."],
    "ru": ["Перед {x.before} идёт {w.n}. А после {x.after} идёт {y.n}."],
}
LAST_CHECKS = {"en": "{w.n} comes before", "zh": "前面是{w.n}", "ko": "앞은 {w.n}", "ru": "{x.before} идёт {w.n}"}

UNITS = {
    "day": {"en": ("day", "day"), "zh": ("天", "星期几"), "ko": ("요일", "무슨 요일"), "ru": ("день", "день")},
    "month": {"en": ("month", "month"), "zh": ("个月", "几月"), "ko": ("달", "몇 월"), "ru": ("месяц", "месяц")},
}

CALENDAR_PROMPTS = {
    "en": ["List the {unit}s from {x.n} to {y.n}.", "Which {unit}s are there from {x.n} to {y.n}? Write a list."],
    "zh": ["请列出从{x.n}到{y.n}。", "从{x.n}到{y.n}有哪些？请写成清单。"],
    "ko": ["{x.n}부터 {y.n}까지 목록으로 써 주세요.", "{x.n}부터 {y.n}까지 차례로 적어 주세요."],
    "ru": [
        "Составьте список {units}. Начало: {x.n}, конец: {y.n}.",
        "Напишите {units_acc} по порядку. Начало: {x.n}, конец: {y.n}.",
    ],
}
CALENDAR_ANSWERS = {
    "en": ["Here is the [list~清单]:\n{lines}", "In [order~顺序], there are {size} {unit}s:\n{lines}"],
    "zh": ["清单如下：\n{lines}", "一共{size}{unit}：\n{lines}"],
    "ko": ["[목록~清单]은 다음과 같아요:\n{lines}", "[차례~顺序]대로 쓰면 다음과 같아요:\n{lines}"],
    "ru": ["Вот [список~清单]:\n{lines}", "По [порядку~顺序], всего {size}:\n{lines}"],
}

RIDES = word_table(
    {"en": "n", "zh": "n", "ko": "n", "ru": "n"},
    """
    train | 火车     | 기차   | поезд
    bus   | 公共汽车 | 버스   | автобус
    plane | 飞机     | 비행기 | самолёт
    """,
)
ARRIVE_PROMPTS = {
    "en": [
        "The {x.n} leaves at {a}:00 and takes {b} hours. When does it arrive?",
        "When does the {x.n} arrive? It leaves at {a}:00 and takes {b} hours.",
    ],
    "zh": ["{x.n}{a}:00出发，路上要{b}个小时。几点到？", "{x.n}几点到？它{a}:00出发，路上要{b}个小时。"],
    "ko": [
        "{x.n}(은/는) {a}:00에 출발하고 {b}시간 걸려요. 언제 도착해요?",
        "{x.n}(은/는) 언제 도착해요? {a}:00에 출발하고 {b}시간 걸려요.",
    ],
    "ru": [
        "{x.n} отправляется в {a}:00 и находится в пути {b} {hours}. Когда он прибывает?",
        "Когда прибывает {x.n}? Он отправляется в {a}:00, время в пути: {b} {hours}.",
    ],
}
ARRIVE_ANSWERS = {
    "en": [
        "The {x.n} takes {b} [hours~小时]: {a} + {b} = {c}. It arrives at {c}:00.",
        "We [count~算]: {a} + {b} = {c}. The {x.n} arrives at {c}:00.",
    ],
    "zh": ["路上要{b}个小时：{a} + {b} = {c}。{x.n}{c}:00到。", "算一下：{a} + {b} = {c}。{x.n}在{c}:00到达。"],
    "ko": [
        "{x.n}(은/는) {b}[시간~小时] 걸려요. {a} + {b} = {c}. {c}:00에 도착해요.",
        "[계산~算]해 보면 {a} + {b} = {c}. {x.n}(은/는) {c}:00에 도착해요.",
    ],
    "ru": [
        "Время в [пути~路上] {b} {hours}: {a} + {b} = {c}. {x.n} прибывает в {c}:00.",
        "[Считаем~算]: {a} + {b} = {c}. {x.n} прибывает в {c}:00.",
    ],
}


def drafts() -> Iterator[Draft]:
    yield from neighbours("day", list(DAYS.values()))
    yield from neighbours("month", list(MONTHS.values()))
    yield from calendar("day", list(DAYS.values()))
    yield from calendar("month", list(MONTHS.values()))
    yield from arrivals()


def neighbours(unit: str, words: list[dict]) -> Iterator[Draft]:
    for index, wording in product(range(len(words)), range(2)):
        values = {}
        for lang in LANGS:
            before, word, after, later = (words[(index + step) % len(words)][lang] for step in (-1, 0, 1, 2))
            name, which = UNITS[unit][lang]
            values[lang] = {"w": before, "x": word, "y": after, "z": later, "unit": name, "which": which}
        id = f"{unit}-{index:02}-{wording}"
        yield draft("order", f"after-{id}", NEXT_PROMPTS, NEXT_ANSWERS, values, NEXT_CHECKS, wording)
        yield draft("order", f"before-{id}", LAST_PROMPTS, LAST_ANSWERS, values, LAST_CHECKS, wording)


def calendar(unit: str, words: list[dict]) -> Iterator[Draft]:
    units = {"day": ("дней", "дни"), "month": ("месяцев", "месяцы")}[unit]
    for start, size, wording in product(range(len(words)), range(3, 7), range(2)):
        if start + size <= len(words):
            values = {}
            for lang in LANGS:
                chosen = [word[lang] for word in words[start : start + size]]
                values[lang] = {
                    "x": chosen[0],
                    "y": chosen[-1],
                    "unit": UNITS[unit][lang][0],
                    "units": units[0],
                    "units_acc": units[1],
                    "size": size,
                    "lines": "\n".join(f"{num}. {word.n}" for num, word in enumerate(chosen, 1)),
                }
            id = f"calendar-{unit}-{start:02}-{size}-{wording}"
            checks = dict.fromkeys(LANGS, "{lines}")
            yield draft("calendar", id, CALENDAR_PROMPTS, CALENDAR_ANSWERS, values, checks, wording)


def arrivals() -> Iterator[Draft]:
    checks = dict.fromkeys(LANGS, "{c}:00")
    for (name, ride), start, length in product(RIDES.items(), range(6, 16), range(2, 7)):
        values = {}
        for lang in LANGS:
            hours = "часа" if length < 5 else "часов"
            values[lang] = {"x": ride[lang], "a": start, "b": length, "c": start + length, "hours": f"[{hours}~小时]"}
        yield draft("arrival", f"arrival-{name}-{start:02}-{length}", ARRIVE_PROMPTS, ARRIVE_ANSWERS, values, checks)
