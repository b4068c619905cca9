"""Lists and tables that hold what the question says: shopping, prices, opening hours, a week, a way through town."""

from collections.abc import Iterator

from .text import LANGS, Draft, choice, draft, word_table
from .words import DAYS, GOODS, PEOPLE, PLACES

AND = {"en": " and ", "zh": "和", "ko": ", ", "ru": " и "}
COMMA = {"en": ", ", "zh": "、", "ko": ", ", "ru": ", "}

LIST_PROMPTS = {
    "en": [
        "{p.n} wants to buy {items}. Please write the shopping list.",
        "Write a shopping list with {items}.",
        "Please make a numbered list of these things: {items}.",
    ],
    "zh": [
        "{p.n}想买{items}。请写一张购物清单。",
        "请写一张购物清单：{items}。",
        "请把这些东西列成编号清单：{items}。",
    ],
    "ko": [
        "{p.n}(은/는) {items}(을/를) 사려고 해요. 장보기 목록을 써 주세요.",
        "다음 물건으로 장보기 목록을 써 주세요: {items}.",
        "이 물건들로 번호 목록을 만들어 주세요: {items}.",
    ],
    "ru": [
        "{p.n} хочет купить {objects}. Напишите список покупок.",
        "Напишите список покупок: {items}.",
        "Составьте нумерованный список товаров: {items}.",
    ],
}
LIST_ANSWERS = {
    "en": [
        "Here is the shopping [list~清单]:\n{lines}",
        "The [list~清单] has {size} things:\n{lines}",
        "Of course. Here is the [list~清单]:\n{lines}",
        "These are the {size} [things~东西]:\n{lines}",
    ],
    "zh": [
        "购物清单如下：\n{lines}",
        "清单上有{size}样东西：\n{lines}",
        "好的，清单如下：\n{lines}",
        "一共{size}样东西：\n{lines}",
    ],
    "ko": [
        "장보기 [목록~清单]이에요:\n{lines}",
        "[목록~清单]에는 물건이 {size}개 있어요:\n{lines}",
        "네, [목록~清单]은 다음과 같아요:\n{lines}",
        "[물건~东西]은 모두 {size}개예요:\n{lines}",
    ],
    "ru": [
        "Вот [список~清单] покупок:\n{lines}",
        "Покупок в [списке~清单] всего {size}:\n{lines}",
        "Конечно. Вот [список~清单]:\n{lines}",
        "Вот эти [товары~东西], всего {size}:\n{lines}",
    ],
}

PRICE_PROMPTS = {
    "en": ["Make a table of prices: {pairs}.", "Please put these prices in a table: {pairs}."],
    "zh": ["请做一张价格表：{pairs}。", "请把这些价格写成表格：{pairs}。"],
    "ko": ["가격표를 만들어 주세요: {pairs}.", "이 가격을 표로 정리해 주세요: {pairs}."],
    "ru": ["Составьте таблицу цен: {pairs}.", "Запишите эти цены в таблицу: {pairs}."],
}
PRICE_HEADS = {
    "en": "| [item~商品] | [price~价格] |",
    "zh": "| 商品 | 价格 |",
    "ko": "| [상품~商品] | [가격~价格] |",
    "ru": "| [товар~商品] | [цена~价格] |",
}
PRICE_ANSWERS = {
    "en": ["{head}\n| --- | --- |\n{rows}", "Here is the [table~表格]:\n{head}\n| --- | --- |\n{rows}"],
    "zh": ["{head}\n| --- | --- |\n{rows}", "表格如下：\n{head}\n| --- | --- |\n{rows}"],
    "ko": ["{head}\n| --- | --- |\n{rows}", "[표~表格]는 다음과 같아요:\n{head}\n| --- | --- |\n{rows}"],
    "ru": ["{head}\n| --- | --- |\n{rows}", "Вот [таблица~表格]:\n{head}\n| --- | --- |\n{rows}"],
}

HOURS_PROMPTS = {
    "en": ["Make a table of opening hours: {pairs}.", "Please put the opening hours in a table: {pairs}."],
    "zh": ["请做一张开放时间表：{pairs}。", "请把开放时间写成表格：{pairs}。"],
    "ko": ["운영 시간표를 만들어 주세요: {pairs}.", "운영 시간을 표로 정리해 주세요: {pairs}."],
    "ru": ["Составьте таблицу часов работы: {pairs}.", "Запишите часы работы в таблицу: {pairs}."],
}
HOURS_PAIRS = {
    "en": "{n} from {a} to {b}",
    "zh": "{n}{a}点到{b}点",
    "ko": "{n} {a}시부터 {b}시까지",
    "ru": "{n} с {a} до {b}",
}
HOURS_HEADS = {
    "en": "| [place~地点] | [opens~开门] | [closes~关门] |",
    "zh": "| 地点 | 开门 | 关门 |",
    "ko": "| [장소~地点] | [시작~开门] | [마감~关门] |",
    "ru": "| [место~地点] | [открытие~开门] | [закрытие~关门] |",
}
HOURS_ANSWERS = {
    lang: [answer.replace("| --- | --- |", "| --- | --- | --- |") for answer in answers]
    for lang, answers in PRICE_ANSWERS.items()
}

# Lessons and hobbies of a week, in the nominative.
PLANS = word_table(
    {"en": "n", "zh": "n", "ko": "n", "ru": "n"},
    """
    music     | 音乐 | 음악     | музыка
    sport     | 体育 | 운동     | спорт
    dancing   | 舞蹈 | 춤       | танцы
    chess     | 象棋 | 체스     | шахматы
    swimming  | 游泳 | 수영     | плавание
    painting  | 画画 | 그림     | рисование
    cooking   | 做饭 | 요리     | кулинария
    reading   | 阅读 | 독서     | чтение
    football  | 足球 | 축구     | футбол
    cleaning  | 打扫 | 청소     | уборка
    """,
)
WEEK_PROMPTS = {
    "en": ["This is the week of {p.n}: {pairs}. Make a table.", "Please write a table for {p.n}: {pairs}."],
    "zh": ["这是{p.n}的一周安排：{pairs}。请做成表格。", "请给{p.n}写一张表格：{pairs}。"],
    "ko": ["{p.n}의 한 주 계획이에요: {pairs}. 표로 만들어 주세요.", "{p.n}의 계획을 표로 써 주세요: {pairs}."],
    "ru": ["Вот план {p.gen}: {pairs}. Составьте таблицу.", "Напишите таблицу для {p.gen}: {pairs}."],
}
WEEK_HEADS = {
    "en": "| [day~日期] | [plan~计划] |",
    "zh": "| 日期 | 计划 |",
    "ko": "| [요일~日期] | [계획~计划] |",
    "ru": "| [день~日期] | [план~计划] |",
}

WAY_PROMPTS = {
    "en": [
        "How do I get from the {start.n} to the {goal.n} past the {via.n}?",
        "I am at the {start.n}. I want to pass the {via.n} and go to the {goal.n}. What do I do?",
    ],
    "zh": ["从{start.n}经过{via.n}到{goal.n}怎么走？", "我在{start.n}，想先经过{via.n}，再去{goal.n}。怎么走？"],
    "ko": [
        "{start.n}에서 {via.n}(을/를) 지나 {goal.n}까지 어떻게 가요?",
        "저는 {start.n}에 있어요. {via.n}(을/를) 지나서 {goal.n}에 가고 싶어요. 어떻게 가요?",
    ],
    "ru": [
        "Как пройти от {start.of} мимо {via.of} {goal.to}?",
        "Я стою у {start.of}. Я хочу пройти мимо {via.of} {goal.to}. Как мне идти?",
    ],
}
WAY_ANSWERS = {
    "en": [
        (
            "1. Start at the {start.n}.\n2. Go [straight~一直] past the {via.n}.\n"
            "3. Turn [left~左边]. There is the {goal.n}."
        ),
        "1. Leave the {start.n} and turn [right~右边].\n2. Walk past the {via.n}.\n3. Go on to the {goal.n}.",
        "1. Go from the {start.n} to the {via.n}.\n2. Walk past the {via.n}.\n3. Turn [right~右边] to the {goal.n}.",
    ],
    "zh": [
        "1. 从{start.n}出发。\n2. 一直走，经过{via.n}。\n3. 向左转，就是{goal.n}。",
        "1. 从{start.n}出来，向右转。\n2. 走过{via.n}。\n3. 继续走到{goal.n}。",
        "1. 从{start.n}走到{via.n}。\n2. 走过{via.n}。\n3. 向右转，走到{goal.n}。",
    ],
    "ko": [
        (
            "1. {start.n}에서 출발하세요.\n2. 똑바로 가서 {via.n}(을/를) 지나세요.\n"
            "3. [왼쪽~左边]으로 돌면 {goal.n}(이/가) 있어요."
        ),
        (
            "1. {start.n}에서 나와 [오른쪽~右边]으로 도세요.\n2. "
            "{via.n}(을/를) 지나가세요.\n3. 계속 가면 {goal.n}(이/가) 있어요."
        ),
        (
            "1. {start.n}에서 {via.n}까지 가세요.\n2. {via.n}(을/를) 지나가세요.\n"
            "3. [오른쪽~右边]으로 돌아 {goal.n}까지 가세요."
        ),
    ],
    "ru": [
        "1. Начните у {start.of}.\n2. Идите [прямо~一直] мимо {via.of}.\n3. Поверните [налево~左边] {goal.to}.",
        "1. Идите от {start.of} [направо~右边].\n2. Пройдите мимо {via.of}.\n3. Идите дальше {goal.to}.",
        "1. Идите от {start.of} {via.to}.\n2. Пройдите мимо {via.of}.\n3. Поверните [направо~右边] {goal.to}.",
    ],
}

NUM_LISTS, NUM_PRICES, NUM_HOURS, NUM_WEEKS, NUM_WAYS = 360, 260, 140, 160, 240


def drafts() -> Iterator[Draft]:
    yield from (shopping(f"list-{num:03}") for num in range(NUM_LISTS))
    yield from (prices(f"price-{num:03}") for num in range(NUM_PRICES))
    yield from (hours(f"hours-{num:03}") for num in range(NUM_HOURS))
    yield from (week(f"week-{num:03}") for num in range(NUM_WEEKS))
    yield from (way(f"way-{num:03}") for num in range(NUM_WAYS))


def some_of(id: str, words: dict[str, dict], size: int) -> list[dict]:
    """`size` different words that depend on the id alone."""
    return sorted(words.values(), key=lambda word: choice(f"{id} {word['zh'].n}", 1 << 30))[:size]


def shopping(id: str) -> Draft:
    size = 3 + choice(f"{id} size", 3)
    goods = some_of(id, GOODS, size)
    person = some_of(id, PEOPLE, 1)[0]
    wording = choice(f"{id} wording", 3)
    line = "{num}. {}" if wording == 2 else "- {}"
    values = {}
    for lang in LANGS:
        names = [item[lang].n for item in goods]
        values[lang] = {
            "p": person[lang],
            "size": size,
            "items": enumeration(names, lang),
            "objects": enumeration([item["ru"].acc for item in goods], lang),
            "lines": "\n".join(line.format(name, num=num) for num, name in enumerate(names, 1)),
        }
    return draft("list", id, LIST_PROMPTS, LIST_ANSWERS, values, dict.fromkeys(LANGS, "{lines}"), wording)


def enumeration(names: list[str], lang: str) -> str:
    return COMMA[lang].join(names[:-1]) + AND[lang] + names[-1]


def table_draft(kind, id, prompts, answers, heads, cells, pairs, more=None) -> Draft:
    """A table from `cells[lang]` (a list of rows) asked for with `pairs[lang]`, the same rows in words."""
    values = {
        lang: {
            "head": heads[lang],
            "rows": "\n".join(f"| {' | '.join(row)} |" for row in cells[lang]),
            "pairs": COMMA[lang].join(pairs[lang]),
            **(more[lang] if more else {}),
        }
        for lang in LANGS
    }
    return draft(kind, id, prompts, answers, values, dict.fromkeys(LANGS, "{rows}"))


def prices(id: str) -> Draft:
    goods = some_of(id, GOODS, 3 + choice(f"{id} size", 3))
    amounts = [str(1 + choice(f"{id} {num}", 20)) for num in range(len(goods))]
    cells = {lang: [[item[lang].n, amount] for item, amount in zip(goods, amounts)] for lang in LANGS}
    pairs = {lang: [" ".join(row) if lang != "zh" else "".join(row) for row in cells[lang]] for lang in LANGS}
    return table_draft("price", id, PRICE_PROMPTS, PRICE_ANSWERS, PRICE_HEADS, cells, pairs)


def hours(id: str) -> Draft:
    places = some_of(id, PLACES, 2 + choice(f"{id} size", 2))
    times = [(7 + choice(f"{id} {num} a", 5), 15 + choice(f"{id} {num} b", 7)) for num in range(len(places))]
    cells, pairs = {}, {}
    for lang in LANGS:
        cells[lang] = [[place[lang].n, f"{a}:00", f"{b}:00"] for place, (a, b) in zip(places, times)]
        pairs[lang] = [HOURS_PAIRS[lang].format(n=place[lang].n, a=a, b=b) for place, (a, b) in zip(places, times)]
    return table_draft("hours", id, HOURS_PROMPTS, HOURS_ANSWERS, HOURS_HEADS, cells, pairs)


def week(id: str) -> Draft:
    person = some_of(id, PEOPLE, 1)[0]
    size = 3 + choice(f"{id} size", 2)
    first = choice(f"{id} first", 8 - size)
    days, plans = list(DAYS.values())[first : first + size], some_of(id, PLANS, size)
    cells = {lang: [[day[lang].n, plan[lang].n] for day, plan in zip(days, plans)] for lang in LANGS}
    pairs = {
        "en": [f"{plan} on {day}" for day, plan in cells["en"]],
        "zh": [f"{day}{plan}" for day, plan in cells["zh"]],
        "ko": [f"{day} {plan}" for day, plan in cells["ko"]],
        "ru": [f"{day['ru'].on} {plan['ru'].n}" for day, plan in zip(days, plans)],
    }
    more = {lang: {"p": person[lang]} for lang in LANGS}
    return table_draft("week", id, WEEK_PROMPTS, PRICE_ANSWERS, WEEK_HEADS, cells, pairs, more)


def way(id: str) -> Draft:
    start, via, goal = some_of(id, PLACES, 3)
    values = {lang: {"start": start[lang], "via": via[lang], "goal": goal[lang]} for lang in LANGS}
    return draft("way", id, WAY_PROMPTS, WAY_ANSWERS, values)
