"""What belongs to which group: `class` asks for the group, `options` lets one choose the word of a group."""

from collections.abc import Iterator

from .text import LANGS, Draft, choice, draft, word_table

# `of` in Russian: the group as a heading in the nominative plural, so that no preposition changes it.
GROUPS = word_table(
    {"en": "a", "zh": "n", "ko": "n", "ru": "n _heading"},
    """
    a fruit                | 水果     | 과일   | фрукт, фрукты
    a vegetable            | 蔬菜     | 채소   | овощ, овощи
    an animal              | 动物     | 동물   | животное, животные
    a bird                 | 鸟       | 새     | птица, птицы
    a piece of [furniture~家具] | 家具 | 가구   | мебель, мебель
    a piece of [clothing~衣服]  | 衣服 | 옷     | одежда, одежда
    a tool                 | 工具     | 도구   | инструмент, инструменты
    a vehicle              | 交通工具 | 탈것   | транспорт, транспорт
    a musical [instrument~乐器] | 乐器 | 악기 | музыкальный [инструмент~乐器], музыкальные инструменты
    a flower               | 花       | 꽃     | цветок, цветы
    """,
)

_MEMBERS = {
    "a fruit": """
        an apple | 苹果 | 사과 | яблоко
        a pear | 梨 | 배 | груша
        a banana | 香蕉 | 바나나 | банан
        an orange | 橙子 | 오렌지 | апельсин
        a peach | 桃子 | 복숭아 | персик
        a lemon | 柠檬 | 레몬 | лимон
    """,
    "a vegetable": """
        a carrot | 胡萝卜 | 당근 | морковь
        an onion | 洋葱 | 양파 | лук
        a cabbage | 卷心菜 | 양배추 | капуста
        a potato | 土豆 | 감자 | картофель
        a cucumber | 黄瓜 | 오이 | огурец
    """,
    "an animal": """
        a dog | 狗 | 개 | собака
        a cat | 猫 | 고양이 | кошка
        a horse | 马 | 말 | лошадь
        a cow | 牛 | 소 | корова
        an elephant | 大象 | 코끼리 | слон
        a bear | 熊 | 곰 | медведь
    """,
    "a bird": """
        a duck | 鸭子 | 오리 | утка
        an eagle | 老鹰 | 독수리 | орёл
        an owl | 猫头鹰 | 부엉이 | сова
        a goose | 鹅 | 거위 | гусь
        a sparrow | 麻雀 | 참새 | воробей
    """,
    "a piece of [furniture~家具]": """
        a table | 桌子 | 탁자 | стол
        a chair | 椅子 | 의자 | стул
        a bed | 床 | 침대 | кровать
        a sofa | 沙发 | 소파 | диван
        a wardrobe | 衣柜 | 옷장 | шкаф
    """,
    "a piece of [clothing~衣服]": """
        a shirt | 衬衫 | 셔츠 | рубашка
        a coat | 大衣 | 외투 | пальто
        a skirt | 裙子 | 치마 | юбка
        a sweater | 毛衣 | 스웨터 | свитер
        a dress | 连衣裙 | 원피스 | платье
    """,
    "a tool": """
        a hammer | 锤子 | 망치 | молоток
        a saw | 锯子 | 톱 | пила
        a shovel | 铲子 | 삽 | лопата
        an axe | 斧头 | 도끼 | топор
        a screwdriver | 螺丝刀 | 드라이버 | отвёртка
    """,
    "a vehicle": """
        a car | 汽车 | 자동차 | машина
        a bus | 公共汽车 | 버스 | автобус
        a train | 火车 | 기차 | поезд
        a bicycle | 自行车 | 자전거 | велосипед
        a plane | 飞机 | 비행기 | самолёт
    """,
    "a musical [instrument~乐器]": """
        a piano | 钢琴 | 피아노 | пианино
        a guitar | 吉他 | 기타 | гитара
        a violin | 小提琴 | 바이올린 | скрипка
        a flute | 长笛 | 플루트 | флейта
        a trumpet | 小号 | 트럼펫 | труба
    """,
    "a flower": """
        a rose | 玫瑰 | 장미 | роза
        a tulip | 郁金香 | 튤립 | тюльпан
        a lily | 百合 | 백합 | лилия
        a sunflower | 向日葵 | 해바라기 | подсолнух
        a daisy | 雏菊 | 데이지 | ромашка
    """,
}
MEMBERS = {
    group: list(word_table({"en": "a", "zh": "n", "ko": "n", "ru": "n"}, rows).values())
    for group, rows in _MEMBERS.items()
}

# Groups whose members could be taken for members of the other.
ALIKE = [{"an animal", "a bird"}, {"a tool", "a musical [instrument~乐器]"}]

CLASS_PROMPTS = {
    "en": [
        "What is {x.a}?",
        "To which group does {x.a} belong?",
        "Is {x.a} {group.a} or {other.a}?",
        "Is {x.a} {other.a} or {group.a}?",
    ],
    "zh": ["{x.n}是什么？", "{x.n}属于哪一类？", "{x.n}是{group.n}还是{other.n}？", "{x.n}是{other.n}还是{group.n}？"],
    "ko": [
        "{x.n}(은/는) 무엇이에요?",
        "{x.n}(은/는) 어떤 종류에 속해요?",
        "{x.n}(은/는) {group.n}(이에요/예요), {other.n}(이에요/예요)?",
        "{x.n}(은/는) {other.n}(이에요/예요), {group.n}(이에요/예요)?",
    ],
    "ru": [
        "Что такое {x.n}?",
        "К какой группе относится {x.n}?",
        "Что такое {x.n}: {group.n} или {other.n}?",
        "Что такое {x.n}: {other.n} или {group.n}?",
    ],
}
CLASS_ANSWERS = {
    "en": [
        "{x.a} is {group.a}. {y.a} is {group.a} too.",
        "{x.a} is {group.a}, like {y.a}.",
        "{x.a} is {group.a}, not {other.a}.",
        "{x.a} is {group.a}. {z.a} is {other.a}.",
    ],
    "zh": [
        "{x.n}是一种{group.n}。{y.n}也是一种{group.n}。",
        "{x.n}是一种{group.n}，和{y.n}一样。",
        "{x.n}是一种{group.n}，不是{other.n}。",
        "{x.n}是一种{group.n}。{z.n}是一种{other.n}。",
    ],
    "ko": [
        "{x.n}(은/는) {group.n}의 한 종류예요. {y.n}도 {group.n}의 한 종류예요.",
        "{x.n}(은/는) {y.n}처럼 {group.n}의 한 종류예요.",
        "{x.n}(은/는) {group.n}의 한 종류예요. {other.n}(이/가) 아니에요.",
        "{x.n}(은/는) {group.n}의 한 종류예요. {z.n}(은/는) {other.n}의 한 종류예요.",
    ],
    "ru": [
        "{x.n} — это {group.n}. {y.n} — это тоже {group.n}.",
        "{x.n} — это {group.n}, как и {y.n}.",
        "{x.n} — это {group.n}, а не {other.n}.",
        "{x.n} — это {group.n}. А {z.n} — это {other.n}.",
    ],
}
CLASS_CHECKS = {
    "en": "{x.a} is {group.a}",
    "zh": "{x.n}是一种{group.n}",
    "ko": "{group.n}의 한 종류예요",
    "ru": "{x.n} — это {group.n}",
}

OPTION_PROMPTS = {
    "en": [
        "Which of these is {group.a}: {u.a}, {v.a} or {w.a}? Copy the list first.",
        "Copy the options and choose {group.a}: {u.a}, {v.a}, {w.a}.",
    ],
    "zh": [
        "下面哪一个是{group.n}：{u.n}、{v.n}、{w.n}？请先抄写选项。",
        "请抄写选项，再选出{group.n}：{u.n}、{v.n}、{w.n}。",
    ],
    "ko": [
        "다음 중 {group.n}의 한 종류는 무엇이에요? {u.n}, {v.n}, {w.n}. 먼저 보기를 옮겨 써 주세요.",
        "보기를 옮겨 쓰고 {group.n}의 한 종류를 골라 주세요: {u.n}, {v.n}, {w.n}.",
    ],
    "ru": [
        "Что из этого {group.n}: {u.n}, {v.n} или {w.n}? Сначала перепишите варианты.",
        "Перепишите варианты и выберите слово из группы «{group.heading}»: {u.n}, {v.n}, {w.n}.",
    ],
}
OPTION_ANSWERS = {
    "en": [
        "The options are:\n- {u.a}\n- {v.a}\n- {w.a}\nThe right answer is {x.a}.",
        "1. {u.a}\n2. {v.a}\n3. {w.a}\nThe right answer is {x.a}.",
    ],
    "zh": [
        "选项如下：\n- {u.n}\n- {v.n}\n- {w.n}\n正确答案是{x.n}。",
        "1. {u.n}\n2. {v.n}\n3. {w.n}\n正确答案是{x.n}。",
    ],
    "ko": [
        "보기는 다음과 같아요:\n- {u.n}\n- {v.n}\n- {w.n}\n정답은 {x.n}(이에요/예요).",
        "1. {u.n}\n2. {v.n}\n3. {w.n}\n정답은 {x.n}(이에요/예요).",
    ],
    "ru": [
        "Вот варианты:\n- {u.n}\n- {v.n}\n- {w.n}\nПравильный ответ: {x.n}.",
        "1. {u.n}\n2. {v.n}\n3. {w.n}\nПравильный ответ: {x.n}.",
    ],
}
OPTION_CHECKS = {
    "en": "answer is {x.a}",
    "zh": "正确答案是{x.n}",
    "ko": "정답은 {x.n}",
    "ru": "ответ: {x.n}",
}
NUM_OPTIONS = 7
"""`options` questions for each word."""


def drafts() -> Iterator[Draft]:
    for group in GROUPS:
        for index, word in enumerate(MEMBERS[group]):
            for wording in range(4):
                yield class_of(group, index, word, wording)
            for round_ in range(NUM_OPTIONS):
                yield options(group, index, word, round_)


def class_of(group: str, index: int, word: dict, wording: int) -> Draft:
    id = f"class-{list(GROUPS).index(group):02}-{index}-{wording}"
    other = others_of(group)[choice(f"{id} other", len(others_of(group)))]
    like = MEMBERS[group][(index + 1 + choice(id, len(MEMBERS[group]) - 1)) % len(MEMBERS[group])]
    unlike = MEMBERS[other][choice(f"{id} unlike", len(MEMBERS[other]))]
    values = {
        lang: {
            "x": word[lang],
            "y": like[lang],
            "z": unlike[lang],
            "group": GROUPS[group][lang],
            "other": GROUPS[other][lang],
        }
        for lang in LANGS
    }
    return draft("class", id, CLASS_PROMPTS, CLASS_ANSWERS, values, CLASS_CHECKS, wording)


def options(group: str, index: int, word: dict, round_: int) -> Draft:
    id = f"options-{list(GROUPS).index(group):02}-{index}-{round_}"
    others = others_of(group)
    first = choice(id, len(others))
    wrong = [others[first], others[(first + 1 + choice(f"{id} wrong", len(others) - 1)) % len(others)]]
    listed = [MEMBERS[other][choice(f"{id} {other}", len(MEMBERS[other]))] for other in wrong]
    listed.insert(choice(f"{id} place", 3), word)
    values = {
        lang: {"x": word[lang], "group": GROUPS[group][lang], **dict(zip("uvw", (each[lang] for each in listed)))}
        for lang in LANGS
    }
    return draft("options", id, OPTION_PROMPTS, OPTION_ANSWERS, values, OPTION_CHECKS)


def others_of(group: str) -> list[str]:
    alike = set().union(*(pair for pair in ALIKE if group in pair))
    return [other for other in GROUPS if other != group and other not in alike]
