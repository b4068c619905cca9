"""Sums, differences and products in small stories, and counting."""

from collections.abc import Iterator
from itertools import product

from .text import LANGS, Draft, choice, counted, draft, marked, russian_number
from .words import PEOPLE, THINGS

EQUATION = {"en": "= {c}.", "zh": "= {c}。", "ko": "= {c}.", "ru": "= {c}."}

BULKY = {"box", "chair"}
"""Things that nobody puts on a table by the dozen."""

SUM_PROMPTS = {
    "en": [
        "{p.n} has {first} and buys {b} more. How many {x.pl} does {p.n} have now?",
        "There are {first} on the table. {p.n} puts {b} more there. How many {x.pl} are on the table?",
        "{p.n} has {first}. A friend gives {p.n} {second}. How many {x.pl} does {p.n} have?",
    ],
    "zh": [
        "{p.n}有{first}，又买了{second}。{p.n}现在有多少{x.m}{x.n}？",
        "桌子上有{first}。{p.n}又放了{second}。桌子上一共有多少{x.m}{x.n}？",
        "{p.n}有{first}，朋友又送来{second}。{p.n}一共有多少{x.m}{x.n}？",
    ],
    "ko": [
        (
            "{p.n}(은/는) {first}(을/를) 가지고 있고 {b}{x.c}(을/를) 더 사요. "
            "이제 {x.n}(이/가) 모두 몇 {x.c}(이에요/예요)?"
        ),
        (
            "탁자 위에 {first}(이/가) 있어요. {p.n}(이/가) {b}{x.c}(을/를) 더 놓아요. "
            "탁자 위에 {x.n}(이/가) 몇 {x.c} 있어요?"
        ),
        (
            "{p.n}(은/는) {first}(을/를) 가지고 있어요. "
            "친구가 {second}(을/를) 더 줘요. {x.n}(은/는) 모두 몇 {x.c}(이에요/예요)?"
        ),
    ],
    "ru": [
        "У {p.gen} {first}. {p.n} покупает ещё {second}. Сколько {x.many} теперь у {p.gen}?",
        "На столе {first}. {p.n} кладёт на стол ещё {second}. Сколько {x.many} теперь на столе?",
        "У {p.gen} {first}. Друг даёт {p.dat} ещё {second}. Сколько {x.many} у {p.gen}?",
    ],
}
SUM_ANSWERS = {
    "en": [
        "{p.n} has {first} and [buys~买] {b} more. We [add~加]: {a} + {b} = {c}. Now {p.n} has {result}.",
        "At first there are {first} on the [table~桌子], then {b} more. {a} + {b} = {c}. Now there are {result}.",
        "The [friend~朋友] gives {b} more. We [add~加] the numbers: {a} + {b} = {c}. {p.n} has {result}.",
    ],
    "zh": [
        "{p.n}有{first}，又买了{second}。加起来：{a} + {b} = {c}。{p.n}现在有{result}。",
        "桌子上先有{first}，后来又放了{second}。{a} + {b} = {c}。桌子上一共有{result}。",
        "朋友又送来{second}。加起来：{a} + {b} = {c}。{p.n}一共有{result}。",
    ],
    "ko": [
        (
            "{p.n}(은/는) {first}(을/를) 가지고 있고 {b}{x.c}(을/를) 더 사요. "
            "{a} + {b} = {c}. 이제 모두 {result}(이에요/예요)."
        ),
        (
            "[탁자~桌子] 위에 {first}(이/가) 있고 {b}{x.c}(이/가) 더 생겨요. "
            "{a} + {b} = {c}. 이제 {result}(이/가) 있어요."
        ),
        "[친구~朋友]가 {second}(을/를) 더 줘요. [숫자~数字]를 더하면 {a} + {b} = {c}. 모두 {result}(이에요/예요).",
    ],
    "ru": [
        (
            "У {p.gen} {first}, и {p.n} [покупает~买] ещё {b}. "
            "[Складываем~加]: {a} + {b} = {c}. Теперь у {p.gen} {result}."
        ),
        "Сначала на [столе~桌子] {first}, потом ещё {b}. {a} + {b} = {c}. Теперь на столе {result}.",
        "[Друг~朋友] даёт ещё {b}. [Складываем~加] числа: {a} + {b} = {c}. У {p.gen} {result}.",
    ],
}

DIFFERENCE_PROMPTS = {
    "en": [
        "{p.n} has {first} and gives away {b}. How many {x.pl} are left?",
        "There are {first} in the box. {p.n} takes {b} out. How many {x.pl} stay in the box?",
        "{p.n} had {first} and lost {b}. How many {x.pl} does {p.n} have now?",
    ],
    "zh": [
        "{p.n}有{first}，送给别人{second}。还剩多少{x.m}{x.n}？",
        "箱子里有{first}。{p.n}拿走了{second}。箱子里还有多少{x.m}{x.n}？",
        "{p.n}原来有{first}，丢了{second}。{p.n}现在有多少{x.m}{x.n}？",
    ],
    "ko": [
        "{p.n}(은/는) {first}(을/를) 가지고 있고 {b}{x.c}(을/를) 친구에게 줘요. {x.n}(은/는) 몇 {x.c} 남아요?",
        "상자 안에 {first}(이/가) 있어요. {p.n}(이/가) {b}{x.c}(을/를) 꺼내요. 상자 안에 몇 {x.c}(이/가) 남아요?",
        (
            "{p.n}(은/는) {first}(을/를) 가지고 있었는데 {b}{x.c}(을/를) 잃어버렸어요. "
            "지금 {x.n}(은/는) 몇 {x.c}(이에요/예요)?"
        ),
    ],
    "ru": [
        "У {p.gen} {first}. {p.n} отдаёт другу {second}. Сколько {x.many} теперь у {p.gen}?",
        "В ящике {first}. {p.n} берёт оттуда {second}. Сколько {x.many} теперь в ящике?",
        "У {p.gen} {first}. {p.n} теряет {second}. Сколько {x.many} теперь у {p.gen}?",
    ],
}
DIFFERENCE_ANSWERS = {
    "en": [
        "{p.n} gives away {b}, so we take {b} from {a}: {a} - {b} = {c}. Now {p.n} has {result}.",
        "{p.n} [takes~拿] {b} out of the [box~箱子]. {a} - {b} = {c}. In the box we still find {result}.",
        "First {p.n} had {first}, then {p.n} [lost~丢] {b}. {a} - {b} = {c}. Now {p.n} has {result}.",
    ],
    "zh": [
        "{p.n}送给别人{second}，要减去{b}：{a} - {b} = {c}。还剩{result}。",
        "{p.n}从箱子里拿走了{second}。{a} - {b} = {c}。箱子里还有{result}。",
        "{p.n}原来有{first}，后来丢了{second}。{a} - {b} = {c}。现在有{result}。",
    ],
    "ko": [
        "{p.n}(은/는) [친구~朋友]에게 {b}{x.c}(을/를) 줘요. {a} - {b} = {c}. {result}(이/가) 남아요.",
        "{p.n}(은/는) [상자~箱子]에서 {b}{x.c}(을/를) 꺼내요. {a} - {b} = {c}. 상자 안에 {result}(이/가) 남아요.",
        "처음에는 {first}(이/가) 있었어요. {b}{x.c}(을/를) 잃어버려서 {a} - {b} = {c}. 지금은 {result}(이에요/예요).",
    ],
    "ru": [
        "{p.n} отдаёт [другу~朋友] {b}. [Вычитаем~减]: {a} - {b} = {c}. Теперь у {p.gen} {result}.",
        "{p.n} берёт из [ящика~箱子] {b}. [Вычитаем~减]: {a} - {b} = {c}. Теперь в ящике {result}.",
        "Сначала у {p.gen} {first}, потом {p.n} [теряет~丢] {b}. {a} - {b} = {c}. Теперь у {p.gen} {result}.",
    ],
}

PRODUCT_PROMPTS = {
    "en": [
        "One {x.sg} costs {price}. How much do {things} cost?",
        "{p.n} buys {things}. Each costs {price}. How much is it?",
    ],
    "zh": ["一{x.m}{x.n}{price}，{things}多少钱？", "{p.n}买了{things}，每{x.m}{price}，一共多少钱？"],
    "ko": [
        "{x.n} 1{x.c}(은/는) {price}(이에요/예요). {things}(은/는) 얼마예요?",
        "{p.n}(은/는) {things}(을/를) 사요. 1{x.c}에 {price}(이에요/예요). 모두 얼마예요?",
    ],
    "ru": [
        "{One} {x.one} стоит {price}. Сколько стоят {things}?",
        "{p.n} покупает {things}. {One} {x.one} стоит {price}. Сколько это стоит?",
    ],
}
PRODUCT_ANSWERS = {
    "en": [
        (
            "One {x.sg} costs {price}, so we count {b} times {a}: {b} × {a} = {c}. "
            "The [price~价格] of {things} is {total}."
        ),
        "{p.n} [buys~买] {things} for {price} each. {b} × {a} = {c}. The [price~价格] is {total}.",
    ],
    "zh": [
        "一{x.m}{x.n}{price}，所以算{b}乘{a}：{b} × {a} = {c}。{things}的价格是{total}。",
        "{p.n}买了{things}，每{x.m}{price}。{b} × {a} = {c}。价格是{total}。",
    ],
    "ko": [
        (
            "{x.n} 1{x.c}(은/는) {price}(이에요/예요). 그래서 {b} × {a} = {c}. "
            "{things}의 [가격~价格]은 {total}(이에요/예요)."
        ),
        (
            "{p.n}(은/는) {things}(을/를) 사고, 1{x.c}에 {price}(이에요/예요). "
            "{b} × {a} = {c}. [가격~价格]은 {total}(이에요/예요)."
        ),
    ],
    "ru": [
        "{One} {x.one} стоит {price}. [Умножаем~乘]: {b} × {a} = {c}. Вместе {things} стоят {total}.",
        "{p.n} [покупает~买] {things}, {one} {x.one} стоит {price}. {b} × {a} = {c}. Вместе это {total}.",
    ],
}

COUNT_PROMPTS = {
    "en": ["Count from {a} to {b}.", "Please write the numbers from {a} to {b}."],
    "zh": ["请从{a}数到{b}。", "请写出从{a}到{b}的数字。"],
    "ko": ["{a}부터 {b}까지 세어 주세요.", "{a}부터 {b}까지 숫자를 써 주세요."],
    "ru": ["Посчитайте от {a} до {b}.", "Напишите числа от {a} до {b}."],
}
COUNT_ANSWERS = {
    "en": [
        "We count: {numbers}. The [first~第一个] number is {a}, the [last~最后] number is {b}.",
        "Here are the [numbers~数字]: {numbers}. Together there are {size} numbers.",
    ],
    "zh": ["我们来数：{numbers}。第一个数字是{a}，最后一个数字是{b}。", "数字如下：{numbers}。一共有{size}个数字。"],
    "ko": [
        "세어 볼게요: {numbers}. [첫~第一个] 숫자는 {a}, [마지막~最后] 숫자는 {b}(이에요/예요).",
        "[숫자~数字]는 다음과 같아요: {numbers}. 숫자는 모두 {size}개예요.",
    ],
    "ru": [
        "Считаем: {numbers}. [Первое~第一个] число {a}, [последнее~最后] число {b}.",
        "Вот [числа~数字]: {numbers}. Всего здесь {size} {numbers_word}.",
    ],
}


def drafts() -> Iterator[Draft]:
    yield from sums()
    yield from differences()
    yield from products()
    yield from counts()


def sums() -> Iterator[Draft]:
    for a, b, story in product(range(2, 13), range(2, 13), range(4)):
        id = f"sum-{a:03}-{b:03}-{story}"
        yield draft("sum", id, SUM_PROMPTS, SUM_ANSWERS, story_values(id, a, b, a + b), EQUATION)


def differences() -> Iterator[Draft]:
    for a, b, story in product(range(5, 21), range(2, 11), range(3)):
        if b < a:
            id = f"difference-{a:03}-{b:03}-{story}"
            yield draft(
                "difference", id, DIFFERENCE_PROMPTS, DIFFERENCE_ANSWERS, story_values(id, a, b, a - b), EQUATION
            )


def story_values(id: str, a: int, b: int, c: int) -> dict[str, dict]:
    person, thing = person_of(id), thing_of(id)
    return {
        lang: {
            "p": person[lang],
            "x": thing[lang],
            "first": counted(a, thing, lang),
            "second": counted(b, thing, lang),
            "result": counted(c, thing, lang),
            "a": a,
            "b": b,
            "c": c,
        }
        for lang in LANGS
    }


def products() -> Iterator[Draft]:
    for a, b, story in product(range(2, 10), range(2, 10), range(3)):
        id = f"product-{a:03}-{b:03}-{story}"
        person, thing = person_of(id), thing_of(id)
        values = {
            lang: {
                "p": person[lang],
                "x": thing[lang],
                "price": money(a, lang),
                "total": money(a * b, lang),
                "things": counted(b, thing, lang),
                "one": thing["ru"].one_word,
                "One": thing["ru"].one_word.capitalize(),
                "a": a,
                "b": b,
                "c": a * b,
            }
            for lang in LANGS
        }
        yield draft("product", id, PRODUCT_PROMPTS, PRODUCT_ANSWERS, values, EQUATION)


def money(num: int, lang: str) -> str:
    ruble = russian_number(num, "рубль", "рубля", "рублей")
    dollar = "dollar" if num == 1 else "dollars"
    return {
        "en": f"{num} {marked(dollar, '元')}",
        "zh": f"{num}元",
        "ko": f"{num}{marked('달러', '元')}",
        "ru": f"{num} {marked(ruble, '元')}",
    }[lang]


def counts() -> Iterator[Draft]:
    for start, size, down in product(range(1, 11), range(4, 10), (False, True)):
        numbers = [str(num) for num in range(start, start + size)]
        if down:
            numbers.reverse()
        values = {
            lang: {
                "a": numbers[0],
                "b": numbers[-1],
                "size": size,
                "numbers": ("、" if lang == "zh" else ", ").join(numbers),
                "numbers_word": russian_number(size, "число", "числа", "чисел"),
            }
            for lang in LANGS
        }
        id = f"count-{numbers[0]:0>3}-{numbers[-1]:0>3}"
        yield draft("count", id, COUNT_PROMPTS, COUNT_ANSWERS, values, dict.fromkeys(LANGS, "{numbers}"))


def person_of(id: str) -> dict:
    return list(PEOPLE.values())[choice(f"{id} person", len(PEOPLE))]


def thing_of(id: str) -> dict:
    things = [thing for name, thing in THINGS.items() if name not in BULKY]
    return things[choice(f"{id} thing", len(things))]
