"""Repetition and Chinese that belong there: a word said again, songs with a refrain, translations."""

from collections.abc import Iterator
from itertools import product

from .lists import PLANS
from .nature import COLOURS
from .text import LANGS, Draft, choice, draft, unmarked
from .words import DAYS, GOODS, PLACES, THINGS

REPEAT_PROMPTS = {
    "en": [
        "Repeat the word '{word}' {times} times.",
        "Please write '{word}' {times} times.",
        "Write '{word}' {times} times, each on a new line.",
    ],
    "zh": ["请把“{word}”这个词重复{times}遍。", "请写{times}遍“{word}”。", "请写{times}遍“{word}”，每行写一遍。"],
    "ko": [
        "'{word}'(이라는/라는) 말을 {times}번 반복해 주세요.",
        "'{word}'(을/를) {times}번 써 주세요.",
        "'{word}'(을/를) 한 줄에 하나씩 {times}번 써 주세요.",
    ],
    "ru": [
        "Повторите слово «{word}» {times} {raz}.",
        "Напишите слово «{word}» {times} {raz}.",
        "Напишите слово «{word}» {times} {raz}, каждый раз на новой строке.",
    ],
}
REPEAT_ANSWERS = {
    "en": ["{again}.", "Here is the [word~词] {times} times: {again}.", "Here are the [lines~行]:\n{lines}"],
    "zh": ["{again}。", "把这个词写{times}遍：{again}。", "一行写一遍：\n{lines}"],
    "ko": ["{again}.", "이 [말~词]을 {times}번 쓸게요: {again}.", "[줄~行]마다 한 번씩 쓸게요:\n{lines}"],
    "ru": ["{again}.", "Вот это [слово~词] {times} {raz}: {again}.", "Вот эти [строки~行]:\n{lines}"],
}

# A theme: its name as the song is asked for, and two lines.
THEMES = [
    {
        "en": ("the rain", "The [rain~雨] falls on the [street~街道],", "The [rain~雨] sings in the [night~夜里],"),
        "zh": ("雨", "雨落在街道上，", "雨在夜里唱歌，"),
        "ko": ("비", "[비~雨]가 [거리~街道]에 내리고", "[비~雨]가 [밤~夜里]에 노래하고"),
        "ru": ("о дожде", "[Дождь~雨] идёт по [улице~街道],", "[Дождь~雨] поёт всю [ночь~夜里],"),
    },
    {
        "en": ("the sea", "The [sea~大海] is wide and [blue~蓝色],", "The [boat~小船] sails far away,"),
        "zh": ("大海", "大海又宽又蓝，", "小船开向远方，"),
        "ko": ("바다", "[바다~大海]는 넓고 푸르고", "[배~小船]는 멀리 떠나고"),
        "ru": ("о море", "[Море~大海] широкое и [синее~蓝色],", "[Лодка~小船] плывёт далеко,"),
    },
    {
        "en": ("the winter", "The [snow~雪] is white and cold,", "The [house~房子] is warm at [night~夜里],"),
        "zh": ("冬天", "雪又白又冷，", "夜里房子很暖和，"),
        "ko": ("겨울", "[눈~雪]은 하얗고 차갑고", "[밤~夜里]에는 [집~房子]이 따뜻하고"),
        "ru": ("о зиме", "[Снег~雪] белый и холодный,", "[Ночью~夜里] в доме тепло,"),
    },
    {
        "en": ("the spring", "The [flowers~花] open their eyes,", "The [birds~鸟] come back to the [tree~树],"),
        "zh": ("春天", "花儿睁开眼睛，", "鸟儿回到树上，"),
        "ko": ("봄", "[꽃~花]이 눈을 뜨고", "[새~鸟]들이 [나무~树]로 돌아오고"),
        "ru": ("о весне", "[Цветы~花] открывают глаза,", "[Птицы~鸟] летят на [дерево~树],"),
    },
    {
        "en": ("a cat", "The [cat~猫] sleeps on the [chair~椅子],", "The [cat~猫] drinks a cup of [milk~牛奶],"),
        "zh": ("猫", "猫在椅子上睡觉，", "猫喝一杯牛奶，"),
        "ko": ("고양이", "[고양이~猫]가 [의자~椅子]에서 자고", "[고양이~猫]가 [우유~牛奶]를 마시고"),
        "ru": ("о кошке", "[Кошка~猫] спит на [стуле~椅子],", "[Кошка~猫] пьёт своё [молоко~牛奶],"),
    },
    {
        "en": (
            "a train",
            "The [train~火车] runs through the [field~田野],",
            "The [train~火车] comes to the [city~城市],",
        ),
        "zh": ("火车", "火车穿过田野，", "火车来到城市，"),
        "ko": ("기차", "[기차~火车]가 [들판~田野]을 달리고", "[기차~火车]가 [도시~城市]에 오고"),
        "ru": ("о поезде", "[Поезд~火车] едет через [поле~田野],", "[Поезд~火车] едет в [город~城市],"),
    },
    {
        "en": ("the morning", "The [sun~太阳] is over the [hill~小山],", "The [bread~面包] is fresh and warm,"),
        "zh": ("早晨", "太阳升上小山，", "面包又新鲜又热，"),
        "ko": ("아침", "[해~太阳]가 [언덕~小山] 위에 뜨고", "[빵~面包]이 따뜻하고 맛있고"),
        "ru": ("об утре", "[Солнце~太阳] стоит над [холмом~小山],", "[Хлеб~面包] свежий и тёплый,"),
    },
    {
        "en": (
            "the garden",
            "The [apples~苹果] are red on the [tree~树],",
            "The [children~孩子] run on the [grass~草地],",
        ),
        "zh": ("花园", "树上的苹果红了，", "孩子在草地上跑，"),
        "ko": ("정원", "[나무~树]에서 [사과~苹果]가 익고", "[아이~孩子]들이 [풀밭~草地]을 뛰고"),
        "ru": ("о саде", "[Яблоки~苹果] на [дереве~树] красные,", "[Дети~孩子] бегут по [траве~草地],"),
    },
]
REFRAINS = [
    {
        "en": "sing with me, sing with me",
        "zh": "跟我唱，跟我唱",
        "ko": "함께 노래해요, 함께 노래해요",
        "ru": "пой со мной, пой со мной",
    },
    {
        "en": "come back home, come back home",
        "zh": "回家吧，回家吧",
        "ko": "집으로 와요, 집으로 와요",
        "ru": "приходи домой, приходи домой",
    },
    {
        "en": "all is well, all is well",
        "zh": "一切都好，一切都好",
        "ko": "다 괜찮아요, 다 괜찮아요",
        "ru": "всё хорошо, всё хорошо",
    },
    {
        "en": "la la la, what a day",
        "zh": "啦啦啦，多好的一天",
        "ko": "라라라, 참 좋은 날",
        "ru": "ля-ля-ля, какой день",
    },
    {"en": "good day, my friend", "zh": "你好，我的朋友", "ko": "안녕, 내 친구야", "ru": "добрый день, мой друг"},
    {"en": "day after day", "zh": "一天又一天", "ko": "하루 또 하루", "ru": "день за днём"},
]
SONG_PROMPTS = {
    "en": [
        "Write a short song about {theme} with the refrain '{refrain}'.",
        "A song about {theme}, please. The refrain is: {refrain}.",
    ],
    "zh": ["请写一首关于{theme}的短歌，副歌是“{refrain}”。", "请写一首{theme}的歌。副歌：{refrain}。"],
    "ko": [
        "{theme}에 대한 짧은 노래를 써 주세요. 후렴은 '{refrain}'(이에요/예요).",
        "{theme} 노래를 써 주세요. 후렴: {refrain}.",
    ],
    "ru": ["Напишите короткую песню {theme} с припевом «{refrain}».", "Напишите песню {theme}. Припев: {refrain}."],
}
SONG_ANSWERS = {
    "en": ["{one}\n{refrain}.\n{two}\n{refrain}.", "{two}\n{refrain}.\n{one}\n{refrain}.\n{refrain}!"],
    "zh": ["{one}\n{refrain}。\n{two}\n{refrain}。", "{two}\n{refrain}。\n{one}\n{refrain}。\n{refrain}！"],
    "ko": ["{one}\n{refrain}.\n{two}\n{refrain}.", "{two}\n{refrain}.\n{one}\n{refrain}.\n{refrain}!"],
    "ru": ["{one}\n{refrain}.\n{two}\n{refrain}.", "{two}\n{refrain}.\n{one}\n{refrain}.\n{refrain}!"],
}

TRANSLATE_PROMPTS = {
    "en": ["What is '{word}' in Chinese?", "How do you say '{word}' in Chinese?"],
    "zh": ["“{chinese}”用英语怎么说？", "“{chinese}”的英语是什么？"],
    "ko": ["'{word}'(은/는) 중국어로 뭐예요?", "'{word}'의 중국어를 알려 주세요."],
    "ru": ["Как по-китайски будет «{word}»?", "Как сказать «{word}» по-китайски?"],
}
TRANSLATE_ANSWERS = {
    "en": ["In Chinese, '{word}' is {chinese}.", "The Chinese word for '{word}' is {chinese}."],
    "zh": ["“{chinese}”用英语说是 {english}。", "“{chinese}”这个词的英语是 {english}。"],
    "ko": ["'{word}'의 중국어는 다음과 같아요: {chinese}.", "중국어로 '{word}'(은/는) 이렇게 써요: {chinese}."],
    "ru": ["По-китайски «{word}» будет {chinese}.", "Слово «{word}» по-китайски: {chinese}."],
}
TRANSLATE_CHECKS = {"en": "{chinese}", "zh": "{english}", "ko": "{chinese}", "ru": "{chinese}"}


def drafts() -> Iterator[Draft]:
    yield from repeats()
    yield from songs()
    yield from translations()


def different(*groups: list[dict]) -> list[dict]:
    """Words of several groups; of those with the same Chinese only the first."""
    by_chinese: dict[str, dict] = {}
    for word in (word for group in groups for word in group):
        by_chinese.setdefault(word["zh"].n, word)
    return list(by_chinese.values())


def word_forms(word: dict, lang: str) -> str:
    """The word alone, as a dictionary has it, with its mark."""
    forms = word[lang]
    return next(getattr(forms, name) for name in ("n", "sg", "one", "m") if hasattr(forms, name))


def repeats() -> Iterator[Draft]:
    words = different(list(THINGS.values()), list(GOODS.values()))
    for (index, word), times in product(enumerate(words), range(2, 6)):
        values = {}
        for lang in LANGS:
            form = word_forms(word, lang)
            values[lang] = {
                "word": form,
                "times": times,
                "raz": "раза" if times < 5 else "раз",
                "again": ("，" if lang == "zh" else ", ").join([form] * times),
                "lines": "\n".join([form] * times),
            }
        id = f"repeat-{index:02}-{times}"
        wording = choice(id, 3)
        checks = dict.fromkeys(LANGS, "{lines}" if wording == 2 else "{again}")
        yield draft("repeat", id, REPEAT_PROMPTS, REPEAT_ANSWERS, values, checks, wording)


def songs() -> Iterator[Draft]:
    for (index, theme), (number, refrain), wording in product(enumerate(THEMES), enumerate(REFRAINS), range(2)):
        values = {}
        for lang in LANGS:
            name, one, two = theme[lang]
            values[lang] = {"theme": name, "one": one, "two": two, "refrain": refrain[lang]}
        checks = dict.fromkeys(LANGS, "{one}\n{refrain}")
        yield draft("song", f"song-{index}-{number}-{wording}", SONG_PROMPTS, SONG_ANSWERS, values, checks, wording)


def translations() -> Iterator[Draft]:
    words = different(*(list(table.values()) for table in (THINGS, GOODS, COLOURS, DAYS, PLACES, PLANS)))
    for (index, word), wording in product(enumerate(words), range(2)):
        english = unmarked(word_forms(word, "en"))
        values = {
            lang: {"word": unmarked(word_forms(word, lang)), "chinese": word["zh"].n, "english": english}
            for lang in LANGS
        }
        id = f"translate-{index:02}-{wording}"
        yield draft("translate", id, TRANSLATE_PROMPTS, TRANSLATE_ANSWERS, values, TRANSLATE_CHECKS, wording)
