"""Small talk about the weather, what people do at work, and what was just said about a person."""

from collections.abc import Iterator
from itertools import product

from .lists import PLANS, some_of
from .text import LANGS, Draft, draft, word_table
from .words import DAYS, GOODS, PEOPLE

# The weather in the question, and the advice.
WEATHERS = [
    {
        "en": ("it will rain", "take an [umbrella~雨伞]", "The [rain~雨] makes everything wet"),
        "zh": ("会下雨", "请带雨伞", "下雨容易淋湿"),
        "ko": ("비가 와요", "[우산~雨伞]을 가져가세요", "[비~雨]에 옷이 젖을 수 있어요"),
        "ru": ("будет дождь", "возьмите [зонт~雨伞]", "Под [дождём~雨] легко промокнуть"),
    },
    {
        "en": ("it will snow", "wear warm [boots~靴子]", "The [snow~雪] is cold and deep"),
        "zh": ("会下雪", "请穿暖和的靴子", "雪又冷又深"),
        "ko": ("눈이 와요", "따뜻한 [장화~靴子]를 신으세요", "[눈~雪]은 차갑고 깊어요"),
        "ru": ("будет снег", "наденьте тёплые [сапоги~靴子]", "[Снег~雪] холодный и глубокий"),
    },
    {
        "en": ("it will be sunny", "wear a [hat~帽子]", "The [sun~太阳] is strong"),
        "zh": ("是晴天", "请戴帽子", "太阳很强"),
        "ko": ("날씨가 맑아요", "[모자~帽子]를 쓰세요", "[햇볕~太阳]이 강해요"),
        "ru": ("будет солнечно", "наденьте [шляпу~帽子]", "[Солнце~太阳] очень яркое"),
    },
    {
        "en": ("it will be cold", "wear a [coat~大衣]", "In a coat you stay [warm~暖和]"),
        "zh": ("会很冷", "请穿大衣", "穿大衣很暖和"),
        "ko": ("날씨가 추워요", "[외투~大衣]를 입으세요", "외투를 입으면 [따뜻해요~暖和]"),
        "ru": ("будет холодно", "наденьте [пальто~大衣]", "В пальто вам будет [тепло~暖和]"),
    },
    {
        "en": ("it will be hot", "drink a lot of [water~水]", "Stay in the [shade~树荫] at noon"),
        "zh": ("会很热", "请多喝水", "中午最好在树荫下休息"),
        "ko": ("날씨가 더워요", "[물~水]을 많이 드세요", "낮에는 [그늘~树荫]에서 쉬세요"),
        "ru": ("будет жарко", "пейте больше [воды~水]", "Днём лучше быть в [тени~树荫]"),
    },
    {
        "en": ("it will be windy", "wear a [jacket~夹克]", "The [wind~风] can be cold"),
        "zh": ("会刮风", "请穿夹克", "风可能很冷"),
        "ko": ("바람이 불어요", "[재킷~夹克]을 입으세요", "[바람~风]이 차가울 수 있어요"),
        "ru": ("будет ветер", "наденьте [куртку~夹克]", "[Ветер~风] бывает холодный"),
    },
    {
        "en": ("it will be foggy", "walk [slowly~慢]", "In the [fog~雾] one sees little"),
        "zh": ("会有雾", "请走慢一点", "雾里看不清楚"),
        "ko": ("안개가 껴요", "[천천히~慢] 걸으세요", "[안개~雾] 속에서는 잘 안 보여요"),
        "ru": ("будет туман", "идите [медленно~慢]", "В [тумане~雾] плохо видно"),
    },
]
WEATHER_DAYS = word_table(
    {"en": "_n", "zh": "n", "ko": "_n", "ru": "_n"},
    """
    today | 今天 | 오늘은 | сегодня
    tomorrow | 明天 | 내일은 | завтра
    in the morning | 早上 | 아침에는 | утром
    in the evening | 晚上 | 저녁에는 | вечером
    on Monday | 星期一 | 월요일에는 | в понедельник
    on Wednesday | 星期三 | 수요일에는 | в среду
    on Friday | 星期五 | 금요일에는 | в пятницу
    on Sunday | 星期日 | 일요일에는 | в воскресенье
    """,
)
WEATHER_PROMPTS = {
    "en": ["They say {weather} {day.n}. What should I do?", "I am going out {day.n}, and {weather}. Any advice?"],
    "zh": ["听说{day.n}{weather}。我该怎么做？", "我{day.n}要出门，{day.n}{weather}。有什么建议？"],
    "ko": ["{day.n} {weather}. 어떻게 하면 좋아요?", "{day.n} {weather}. 외출하려고 하는데 조언해 주세요."],
    "ru": [
        "Говорят, {day.n} {weather}. Что мне делать?",
        "Я хочу выйти из дома, а {day.n} {weather}. Что посоветуете?",
    ],
}
WEATHER_ANSWERS = {
    "en": ["Since {weather} {day.n}, {advice}. {why}.", "Please {advice}. {why}. Have a nice [walk~散步]!"],
    "zh": ["{day.n}{weather}，{advice}。{why}。", "{advice}。{why}。祝您散步愉快！"],
    "ko": ["{day.n} {weather}. {advice}. {why}.", "{advice}. {why}. 즐거운 [산책~散步] 하세요!"],
    "ru": ["Если {day.n} {weather}, {advice}. {why}.", "Пожалуйста, {advice}. {why}. Приятной [прогулки~散步]!"],
}
WEATHER_CHECKS = dict.fromkeys(LANGS, "{advice}")

# Who, what he or she does, where.
JOBS = word_table(
    {"en": "n does place", "zh": "n does place", "ko": "n does place", "ru": "n does place"},
    """
    a cook, makes [food~饭菜], in a [restaurant~餐厅] | 厨师, 做饭菜, 餐厅
        | 요리사, [음식~饭菜]을 만들어요, [식당~餐厅] | повар, готовит [еду~饭菜], в [ресторане~餐厅]
    a teacher, teaches [children~孩子], at a [school~学校] | 老师, 教孩子, 学校
        | 선생님, [아이들~孩子]을 가르쳐요, [학교~学校] | учитель, учит [детей~孩子], в [школе~学校]
    a doctor, helps sick [people~人], in a [hospital~医院] | 医生, 给人看病, 医院
        | 의사, 아픈 [사람~人]을 도와요, [병원~医院] | врач, лечит больных [людей~人], в [больнице~医院]
    a baker, bakes [bread~面包], in a [bakery~面包店] | 面包师, 烤面包, 面包店
        | 제빵사, [빵~面包]을 구워요, [빵집~面包店] | пекарь, печёт [хлеб~面包], в [пекарне~面包店]
    a farmer, grows [vegetables~蔬菜], on a [farm~农场] | 农民, 种蔬菜, 农场
        | 농부, [채소~蔬菜]를 길러요, [농장~农场] | фермер, выращивает [овощи~蔬菜], на [ферме~农场]
    a driver, drives a [bus~公共汽车], in the [city~城市] | 司机, 开公共汽车, 城市
        | 운전사, [버스~公共汽车]를 운전해요, [도시~城市] | водитель, водит [автобус~公共汽车], в [городе~城市]
    a painter, paints [pictures~画], in a [studio~画室] | 画家, 画画, 画室
        | 화가, [그림~画]을 그려요, [화실~画室] | художник, пишет [картины~画], в [мастерской~画室]
    a gardener, looks after [flowers~花], in a [garden~花园] | 园丁, 养花, 花园
        | 정원사, [꽃~花]을 돌봐요, [정원~花园] | садовник, сажает [цветы~花], в [саду~花园]
    a librarian, lends [books~书], in a [library~图书馆] | 图书管理员, 借书给读者, 图书馆
        | 사서, [책~书]을 빌려줘요, [도서관~图书馆] | библиотекарь, выдаёт [книги~书], в [библиотеке~图书馆]
    a singer, sings [songs~歌], in a [theatre~剧院] | 歌手, 唱歌, 剧院
        | 가수, [노래~歌]를 불러요, [극장~剧院] | певец, поёт [песни~歌], в [театре~剧院]
    a pilot, flies a [plane~飞机], at an [airport~机场] | 飞行员, 开飞机, 机场
        | 조종사, [비행기~飞机]를 조종해요, [공항~机场] | лётчик, водит [самолёт~飞机], в [аэропорту~机场]
    a shop assistant, sells [goods~商品], in a [shop~商店] | 售货员, 卖商品, 商店
        | 점원, [상품~商品]을 팔아요, [가게~商店] | продавец, продаёт [товары~商品], в [магазине~商店]
    """,
)
JOB_PROMPTS = {
    "en": ["What does {x.n} do?", "Where does {x.n} work?", "Tell me about the work of {x.n}."],
    "zh": ["{x.n}做什么工作？", "{x.n}在哪里工作？", "请介绍一下{x.n}的工作。"],
    "ko": ["{x.n}(은/는) 무슨 일을 해요?", "{x.n}(은/는) 어디에서 일해요?", "{x.n}의 일에 대해 알려 주세요."],
    "ru": ["Что делает {x.n}?", "Где работает {x.n}?", "Расскажите, что делает {x.n} и где он работает."],
}
JOB_ANSWERS = {
    "en": [
        "{x.n} {x.does} and works {x.place}.",
        "{x.n} works {x.place} and {x.does}.",
        "{x.n} {x.does}. The [work~工作] is {x.place}.",
    ],
    "zh": [
        "{x.n}{x.does}，在{x.place}工作。",
        "{x.n}在{x.place}工作，{x.does}。",
        "{x.n}的工作是{x.does}，工作地点是{x.place}。",
    ],
    "ko": [
        "{x.n}(은/는) {x.does}. 일하는 곳은 {x.place}(이에요/예요).",
        "{x.n}(은/는) {x.place}에서 일해요. 그리고 {x.does}.",
        "{x.n}(은/는) {x.place}에서 {x.does}.",
    ],
    "ru": [
        "{x.n} {x.does} и работает {x.place}.",
        "{x.n} работает {x.place} и {x.does}.",
        "{x.n} работает {x.place}. Он {x.does}.",
    ],
}
JOB_CHECKS = dict.fromkeys(LANGS, "{x.does}")
WORK_CHECKS = {**dict.fromkeys(LANGS, "{x.place}"), "ko": "{x.place}에서"}

PETS = word_table(
    {"en": "n", "zh": "n _m", "ko": "n", "ru": "n"},
    """
    dog     | 狗, 只   | 개     | собака
    cat     | 猫, 只   | 고양이 | кошка
    parrot  | 鹦鹉, 只 | 앵무새 | попугай
    rabbit  | 兔子, 只 | 토끼   | кролик
    hamster | 仓鼠, 只 | 햄스터 | хомяк
    """,
)
DRINKS = {name: GOODS[name] for name in ("tea", "coffee", "milk", "juice", "water")}
PERSON_TOLD = {
    "en": "{p.n} likes {drink.n} and has a {pet.n}. On {day.n} {p.n} has {plan.n}.",
    "zh": "{p.n}喜欢{drink.n}，养了一{pet.m}{pet.n}，{day.n}安排了{plan.n}。",
    "ko": "{p.n}(은/는) {drink.n}(을/를) 좋아하고 {pet.n}(을/를) 키워요. {day.n}에는 {plan.n} 계획이 있어요.",
    "ru": "{p.n} любит {drink.acc}. У {p.gen} есть {pet.n}. {day.on} у {p.gen} {plan.n}.",
}
PERSON_ASKED = {
    "en": ["What does {p.n} drink?", "Which pet lives with {p.n}?", "What does {p.n} plan for {day.n}?"],
    "zh": ["{p.n}喝什么？", "{p.n}家里有什么宠物？", "{p.n}{day.n}的计划是什么？"],
    "ko": ["{p.n}(은/는) 무엇을 마셔요?", "{p.n}의 집에는 어떤 동물이 살아요?", "{p.n}의 {day.n} 계획은 뭐예요?"],
    "ru": ["Что пьёт {p.n}?", "Какое животное живёт у {p.gen}?", "Какой план у {p.gen} на {day.acc}?"],
}
PERSON_PROMPTS = {
    lang: [PERSON_TOLD[lang] + ("" if lang == "zh" else " ") + asked for asked in PERSON_ASKED[lang]] for lang in LANGS
}
PERSON_ANSWERS = {
    "en": [
        "{p.n} drinks {drink.n}, because {p.n} [likes~喜欢] it.",
        "A {pet.n} lives with {p.n} as a [pet~宠物].",
        "The [plan~计划] for {day.n} is {plan.n}.",
    ],
    "zh": ["{p.n}喝{drink.n}，因为{p.n}喜欢{drink.n}。", "{p.n}家里的宠物是{pet.n}。", "{day.n}的计划是{plan.n}。"],
    "ko": [
        "{p.n}(은/는) {drink.n}(을/를) 마셔요. [좋아하는~喜欢] 음료예요.",
        "{p.n}의 집에는 {pet.n}(이/가) 살아요.",
        "{day.n} [계획~计划]은 {plan.n}(이에요/예요).",
    ],
    "ru": [
        "{p.n} пьёт {drink.acc}, это любимый [напиток~饮料].",
        "У {p.gen} [дома~家里] живёт {pet.n}.",
        "[План~计划] на {day.acc}: {plan.n}.",
    ],
}
PERSON_CHECKS = [
    {"en": "drinks {drink.n}", "zh": "喝{drink.n}", "ko": "{drink.n}(을/를) 마", "ru": "пьёт {drink.acc}"},
    {"en": "{pet.n} lives", "zh": "宠物是{pet.n}", "ko": "{pet.n}(이/가) 살", "ru": "живёт {pet.n}"},
    {"en": "is {plan.n}", "zh": "计划是{plan.n}", "ko": "계획은 {plan.n}", "ru": ": {plan.n}"},
]
NUM_PERSONS = 240


def drafts() -> Iterator[Draft]:
    yield from weather()
    yield from jobs()
    yield from (person(num) for num in range(NUM_PERSONS))


def weather() -> Iterator[Draft]:
    for (index, kind), (number, day), wording in product(
        enumerate(WEATHERS), enumerate(WEATHER_DAYS.values()), range(2)
    ):
        values = {lang: {"day": day[lang], **dict(zip(("weather", "advice", "why"), kind[lang]))} for lang in LANGS}
        id = f"weather-{index}-{number}-{wording}"
        yield draft("weather", id, WEATHER_PROMPTS, WEATHER_ANSWERS, values, WEATHER_CHECKS, wording)


def jobs() -> Iterator[Draft]:
    for (index, job), wording in product(enumerate(JOBS.values()), range(3)):
        checks = WORK_CHECKS if wording == 1 else JOB_CHECKS
        values = {lang: {"x": job[lang]} for lang in LANGS}
        yield draft("job", f"job-{index:02}-{wording}", JOB_PROMPTS, JOB_ANSWERS, values, checks, wording)


def person(num: int) -> Draft:
    id = f"person-{num:03}"
    tables = {"p": PEOPLE, "drink": DRINKS, "pet": PETS, "plan": PLANS, "day": DAYS}
    chosen = {name: some_of(f"{id} {name}", table, 1)[0] for name, table in tables.items()}
    values = {lang: {name: word[lang] for name, word in chosen.items()} for lang in LANGS}
    return draft("person", id, PERSON_PROMPTS, PERSON_ANSWERS, values, PERSON_CHECKS[num % 3], num % 3)
