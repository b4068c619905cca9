"""Colours, opposites, animals and sizes."""

from collections.abc import Iterator
from itertools import combinations

from .text import LANGS, Draft, choice, draft, unmarked, word_table

COLOURED = word_table(
    {"en": "n", "zh": "n", "ko": "n", "ru": "n"},
    """
    a lemon      | 柠檬   | 레몬     | лимон
    a banana     | 香蕉   | 바나나   | банан
    a sunflower  | 向日葵 | 해바라기 | подсолнух
    a chick      | 小鸡   | 병아리   | цыплёнок
    grass        | 草     | 풀       | трава
    a cucumber   | 黄瓜   | 오이     | огурец
    a leaf       | 树叶   | 나뭇잎   | лист
    a frog       | 青蛙   | 개구리   | лягушка
    snow         | 雪     | 눈       | снег
    milk         | 牛奶   | 우유     | молоко
    rice         | 米饭   | 쌀밥     | рис
    salt         | 盐     | 소금     | соль
    the sky      | 天空   | 하늘     | небо
    the sea      | 大海   | 바다     | море
    a tomato     | 西红柿 | 토마토   | помидор
    blood        | 血     | 피       | кровь
    a strawberry | 草莓   | 딸기     | клубника
    a carrot     | 胡萝卜 | 당근     | морковь
    an orange    | 橙子   | 오렌지   | апельсин
    a pumpkin    | 南瓜   | 호박     | тыква
    coal         | 煤     | 석탄     | уголь
    a tyre       | 轮胎   | 타이어   | шина
    a raven      | 乌鸦   | 까마귀   | ворон
    chocolate    | 巧克力 | 초콜릿   | шоколад
    coffee       | 咖啡   | 커피     | кофе
    a bear       | 棕熊   | 불곰     | медведь
    """,
)
# Russian: masculine, feminine, neuter.
COLOURS = word_table(
    {"en": "n", "zh": "n", "ko": "n", "ru": "m f n"},
    """
    yellow | 黄色 | 노란색 | жёлтый, жёлтая, жёлтое
    green  | 绿色 | 초록색 | зелёный, зелёная, зелёное
    white  | 白色 | 하얀색 | белый, белая, белое
    blue   | 蓝色 | 파란색 | синий, синяя, синее
    red    | 红色 | 빨간색 | красный, красная, красное
    orange | 橙色 | 주황색 | оранжевый, оранжевая, оранжевое
    black  | 黑色 | 검은색 | чёрный, чёрная, чёрное
    brown  | 棕色 | 갈색   | коричневый, коричневая, коричневое
    """,
)
COLOUR_OF = {
    "yellow": ["a lemon", "a banana", "a sunflower", "a chick"],
    "green": ["grass", "a cucumber", "a leaf", "a frog"],
    "white": ["snow", "milk", "rice", "salt"],
    "blue": ["the sky", "the sea"],
    "red": ["a tomato", "blood", "a strawberry"],
    "orange": ["a carrot", "an orange", "a pumpkin"],
    "black": ["coal", "a tyre", "a raven"],
    "brown": ["chocolate", "coffee", "a bear"],
}
FEMININE = {"grass", "a frog", "salt", "blood", "a strawberry", "a carrot", "a pumpkin", "a tyre"}
NEUTER = {"milk", "the sky", "the sea"}

COLOUR_PROMPTS = {
    "en": ["What colour is {x.n}?", "Please tell me the colour: {x.n}.", "Is {x.n} {u} or {v}?"],
    "zh": ["{x.n}是什么颜色的？", "请说出颜色：{x.n}。", "{x.n}是什么颜色，{u}还是{v}？"],
    "ko": ["{x.n}(은/는) 무슨 색이에요?", "색을 말해 주세요: {x.n}.", "{x.n}(은/는) 무슨 색이에요? {u}, {v}?"],
    "ru": ["Какого цвета {x.n}?", "Назовите цвет: {x.n}.", "Выберите цвет. {x.n}: {u} или {v}?"],
}
COLOUR_ANSWERS = {
    "en": [
        "{x.n} is {right}. {y.n} is {also} too.",
        "{x.n} is {right}, like {y.n}.",
        "{x.n} is {right}, not {wrong}.",
    ],
    "zh": [
        "{x.n}是{right}的。{y.n}也是{also}的。",
        "{x.n}是{right}的，和{y.n}一样。",
        "{x.n}是{right}的，不是{wrong}的。",
    ],
    "ko": [
        "{x.n}(은/는) {right}이에요. {y.n}도 {also}이에요.",
        "{x.n}(은/는) {right}이에요. {y.n}(과/와) 같은 색이에요.",
        "{x.n}(은/는) {right}이고 {wrong}이 아니에요.",
    ],
    "ru": [
        "{x.n} {right}. {y.n} тоже {also}.",
        "{x.n} {right}, как и {y.n}.",
        "{x.n} {right}, а не {wrong}.",
    ],
}
COLOUR_CHECKS = {"en": "is {right}", "zh": "是{right}的", "ko": "{right}이", "ru": "{x.n} {right}"}

OPPOSITES = word_table(
    {"en": "n o", "zh": "n o", "ko": "n o", "ru": "n o"},
    """
    big, small     | 大, 小       | 크다, 작다         | большой, маленький
    long, short    | 长, 短       | 길다, 짧다         | длинный, короткий
    hot, cold      | 热, 冷       | 뜨겁다, 차갑다     | горячий, холодный
    new, old       | 新, 旧       | 새롭다, 낡다       | новый, старый
    fast, slow     | 快, 慢       | 빠르다, 느리다     | быстрый, медленный
    high, low      | 高, 低       | 높다, 낮다         | высокий, низкий
    heavy, light   | 重, 轻       | 무겁다, 가볍다     | тяжёлый, лёгкий
    dark, bright   | 暗, 亮       | 어둡다, 밝다       | тёмный, светлый
    wet, dry       | 湿, 干       | 젖다, 마르다       | мокрый, сухой
    full, empty    | 满, 空       | 가득하다, 비다     | полный, пустой
    clean, dirty   | 干净, 脏     | 깨끗하다, 더럽다   | чистый, грязный
    open, closed   | 开, 关       | 열다, 닫다         | открытый, закрытый
    wide, narrow   | 宽, 窄       | 넓다, 좁다         | широкий, узкий
    loud, quiet    | 吵闹, 安静   | 시끄럽다, 조용하다 | громкий, тихий
    strong, weak   | 强, 弱       | 강하다, 약하다     | сильный, слабый
    thick, thin    | 厚, 薄       | 두껍다, 얇다       | толстый, тонкий
    near, far      | 近, 远       | 가깝다, 멀다       | близкий, далёкий
    early, late    | 早, 晚       | 이르다, 늦다       | ранний, поздний
    expensive, cheap | 贵, 便宜   | 비싸다, 싸다       | дорогой, дешёвый
    soft, hard     | 软, 硬       | 부드럽다, 딱딱하다 | мягкий, твёрдый
    happy, sad     | 高兴, 难过   | 기쁘다, 슬프다     | весёлый, грустный
    easy, difficult | 容易, 难    | 쉽다, 어렵다       | простой, сложный
    """,
)
OPPOSITE_PROMPTS = {
    "en": ["What is the opposite of '{p}'?", "Please give the opposite of this word: {p}.", "Not {p}, but ...?"],
    "zh": ["“{p}”的反义词是什么？", "请说出这个词的反义词：{p}。", "不是“{p}”，而是……？"],
    "ko": ["'{p}'의 반대말은 뭐예요?", "이 말의 반대말을 알려 주세요: {p}.", "'{p}'하고 뜻이 반대인 말은 뭐예요?"],
    "ru": ["Какое слово противоположно слову «{p}»?", "Назовите противоположное слово: {p}.", "Не {p}, а ...?"],
}
OPPOSITE_ANSWERS = {
    "en": [
        "The opposite of '{p}' is '{q}'. And the opposite of '{q}' is '{p}'.",
        "The opposite is '{q}'. What is not {p} may be {q}.",
    ],
    "zh": ["“{p}”的反义词是“{q}”。“{q}”的反义词是“{p}”。", "反义词是“{q}”。“{p}”和“{q}”意思相反。"],
    "ko": [
        "'{p}'의 반대말은 '{q}'예요. '{q}'의 반대말은 '{p}'예요.",
        "반대말은 '{q}'예요. '{p}'하고 '{q}'(은/는) 뜻이 반대예요.",
    ],
    "ru": [
        "Противоположное слово: «{q}». Слова «{p}» и «{q}» противоположны.",
        "Это слово «{q}». Слова «{p}» и «{q}» противоположны по смыслу.",
    ],
}

ANIMALS = word_table(
    {"en": "n home food", "zh": "n home food", "ko": "n home food", "ru": "n home food"},
    """
    a cow, on a [farm~农场], [grass~草] | 牛, 农场里, 草
        | 소, [농장~农场], [풀~草] | корова, на [ферме~农场], [траву~草]
    a horse, on a [farm~农场], [hay~干草] | 马, 农场里, 干草
        | 말, [농장~农场], [건초~干草] | лошадь, на [ферме~农场], [сено~干草]
    a bear, in the [forest~森林], [berries~浆果] and [fish~鱼] | 熊, 森林里, 浆果和鱼
        | 곰, [숲~森林], [열매~浆果]와 [물고기~鱼] | медведь, в [лесу~森林], [ягоды~浆果] и [рыбу~鱼]
    a squirrel, in the [forest~森林], [nuts~坚果] | 松鼠, 森林里, 坚果
        | 다람쥐, [숲~森林], [도토리~坚果] | белка, в [лесу~森林], [орехи~坚果]
    a hare, in the [field~田野], [grass~草] | 野兔, 田野里, 草
        | 산토끼, [들판~田野], [풀~草] | заяц, в [поле~田野], [траву~草]
    a mouse, in the [field~田野], [grain~谷物] | 老鼠, 田野里, 谷物
        | 쥐, [들판~田野], [곡식~谷物] | мышь, в [поле~田野], [зерно~谷物]
    a camel, in the [desert~沙漠], dry [plants~植物] | 骆驼, 沙漠里, 干的植物
        | 낙타, [사막~沙漠], 마른 [식물~植物] | верблюд, в [пустыне~沙漠], сухие [растения~植物]
    a whale, in the [sea~大海], small [fish~鱼] | 鲸鱼, 大海里, 小鱼
        | 고래, [바다~大海], 작은 [물고기~鱼] | кит, в [море~大海], мелкую [рыбу~鱼]
    a dolphin, in the [sea~大海], [fish~鱼] | 海豚, 大海里, 鱼
        | 돌고래, [바다~大海], [물고기~鱼] | дельфин, в [море~大海], [рыбу~鱼]
    a penguin, by the cold [sea~大海], [fish~鱼] | 企鹅, 寒冷的海边, 鱼
        | 펭귄, 추운 [바닷가~海边], [물고기~鱼] | пингвин, у холодного [моря~大海], [рыбу~鱼]
    a lion, in the [savanna~草原], [meat~肉] | 狮子, 草原上, 肉
        | 사자, [초원~草原], [고기~肉] | лев, в [саванне~草原], [мясо~肉]
    a zebra, in the [savanna~草原], [grass~草] | 斑马, 草原上, 草
        | 얼룩말, [초원~草原], [풀~草] | зебра, в [саванне~草原], [траву~草]
    a panda, in the [mountains~山], [bamboo~竹子] | 熊猫, 山里, 竹子
        | 판다, [산~山], [대나무~竹子] | панда, в [горах~山], [бамбук~竹子]
    a goat, in the [mountains~山], [grass~草] | 山羊, 山里, 草
        | 염소, [산~山], [풀~草] | коза, в [горах~山], [траву~草]
    a monkey, in the [jungle~丛林], [fruit~水果] | 猴子, 丛林里, 水果
        | 원숭이, [밀림~丛林], [과일~水果] | обезьяна, в [джунглях~丛林], [фрукты~水果]
    a tiger, in the [jungle~丛林], [meat~肉] | 老虎, 丛林里, 肉
        | 호랑이, [밀림~丛林], [고기~肉] | тигр, в [джунглях~丛林], [мясо~肉]
    a frog, by the [lake~湖], [insects~昆虫] | 青蛙, 湖边, 昆虫
        | 개구리, [호숫가~湖边], [벌레~昆虫] | лягушка, у [озера~湖], [насекомых~昆虫]
    a duck, on the [lake~湖], [water plants~水草] | 鸭子, 湖上, 水草
        | 오리, [호수~湖], [물풀~水草] | утка, на [озере~湖], водные [растения~植物]
    a dog, in a [house~房子], [meat~肉] | 狗, 房子里, 肉 | 개, [집~房子], [고기~肉] | собака, в [доме~房子], [мясо~肉]
    a cat, in a [house~房子], [fish~鱼] | 猫, 房子里, 鱼
        | 고양이, [집~房子], [생선~鱼] | кошка, в [доме~房子], [рыбу~鱼]
    """,
)
HOME_PROMPTS = {
    "en": ["Where does {x.n} live?", "Tell me where {x.n} lives and what it eats.", "What does {x.n} eat?"],
    "zh": ["{x.n}住在哪里？", "请告诉我{x.n}住在哪里，吃什么。", "{x.n}吃什么？"],
    "ko": [
        "{x.n}(은/는) 어디에서 살아요?",
        "{x.n}(이/가) 어디에서 살고 무엇을 먹는지 알려 주세요.",
        "{x.n}(은/는) 무엇을 먹어요?",
    ],
    "ru": ["Где живёт {x.n}?", "Расскажите, где живёт {x.n} и что ест.", "Что ест {x.n}?"],
}
HOME_ANSWERS = {
    "en": [
        "{x.n} lives {x.home}. It eats {x.food}.",
        "{x.n} lives {x.home} and eats {x.food}.",
        "{x.n} eats {x.food}. It lives {x.home}.",
    ],
    "zh": [
        "{x.n}住在{x.home}，吃{x.food}。",
        "{x.n}生活在{x.home}，它吃{x.food}。",
        "{x.n}吃{x.food}，住在{x.home}。",
    ],
    "ko": [
        "{x.n}(은/는) {x.home}에서 살아요. 그리고 {x.food}(을/를) 먹어요.",
        "{x.n}(은/는) {x.home}에서 살고 {x.food}(을/를) 먹어요.",
        "{x.n}(은/는) {x.food}(을/를) 먹어요. 그리고 {x.home}에서 살아요.",
    ],
    "ru": [
        "{x.n} живёт {x.home}. {x.n} ест {x.food}.",
        "{x.n} живёт {x.home} и ест {x.food}.",
        "{x.n} ест {x.food} и живёт {x.home}.",
    ],
}
HOME_CHECKS = {"en": "{x.home}", "zh": "{x.home}", "ko": "{x.home}에서", "ru": "{x.home}"}
FOOD_CHECKS = {"en": "eats {x.food}", "zh": "吃{x.food}", "ko": "{x.food}(을/를) 먹", "ru": "ест {x.food}"}

# From the smallest to the biggest.
SIZES = list(
    word_table(
        {"en": "n", "zh": "n", "ko": "n", "ru": "n"},
        """
        an ant | 蚂蚁 | 개미 | муравей
        a bee | 蜜蜂 | 벌 | пчела
        a mouse | 老鼠 | 쥐 | мышь
        a cat | 猫 | 고양이 | кошка
        a fox | 狐狸 | 여우 | лиса
        a sheep | 羊 | 양 | овца
        a cow | 牛 | 소 | корова
        an elephant | 大象 | 코끼리 | слон
        a house | 房子 | 집 | дом
        a hill | 小山 | 언덕 | холм
        the moon | 月亮 | 달 | луна
        the sun | 太阳 | 해 | солнце
        """,
    ).values()
)
SIZE_PROMPTS = {
    "en": [
        "Which is bigger, {x.n} or {y.n}?",
        "Which is smaller, {y.n} or {x.n}?",
        "Compare the size: {y.n} and {x.n}.",
    ],
    "zh": ["{x.n}和{y.n}，哪个更大？", "{y.n}和{x.n}，哪个更小？", "请比较大小：{y.n}和{x.n}。"],
    "ko": [
        "{x.n}(과/와) {y.n} 중에서 무엇이 더 커요?",
        "{y.n}(과/와) {x.n} 중에서 무엇이 더 작아요?",
        "크기를 비교해 주세요: {y.n}, {x.n}.",
    ],
    "ru": ["Что больше: {x.n} или {y.n}?", "Что меньше: {y.n} или {x.n}?", "Сравните размер: {y.n} и {x.n}."],
}
SIZE_ANSWERS = {
    "en": [
        "{big.n} is bigger than {small.n}. So {small.n} is the smaller one.",
        "{small.n} is smaller than {big.n}. So {big.n} is the bigger one.",
        "{big.n} is bigger than {small.n}, and {small.n} is smaller than {big.n}.",
    ],
    "zh": [
        "{big.n}比{small.n}大。更小的是{small.n}。",
        "{small.n}比{big.n}小。更大的是{big.n}。",
        "{big.n}比{small.n}大，{small.n}比{big.n}小。",
    ],
    "ko": [
        "{big.n}(이/가) {small.n}보다 더 커요. 더 작은 것은 {small.n}(이에요/예요).",
        "{small.n}(이/가) {big.n}보다 더 작아요. 더 큰 것은 {big.n}(이에요/예요).",
        "{big.n}(은/는) {small.n}보다 더 크고, {small.n}(은/는) {big.n}보다 더 작아요.",
    ],
    "ru": [
        "{big.n} больше, чем {small.n}. Значит, {small.n} меньше.",
        "{small.n} меньше, чем {big.n}. Значит, {big.n} больше.",
        "{big.n} больше, чем {small.n}, а {small.n} меньше, чем {big.n}.",
    ],
}
BIGGER = {
    "en": "{big.n} is bigger",
    "zh": "{big.n}比{small.n}大",
    "ko": "{small.n}보다 더",
    "ru": "{big.n} больше, чем",
}
SMALLER = {
    "en": "{small.n} is smaller",
    "zh": "{small.n}比{big.n}小",
    "ko": "{big.n}보다 더",
    "ru": "{small.n} меньше, чем",
}


def drafts() -> Iterator[Draft]:
    yield from colours()
    yield from opposites()
    yield from animals()
    yield from sizes()


def colours() -> Iterator[Draft]:
    for colour, things in COLOUR_OF.items():
        for thing in things:
            for wording in range(3):
                id = f"colour-{colour}-{list(COLOURED).index(thing):02}-{wording}"
                others = [other for other in COLOURS if other != colour]
                wrong = others[choice(f"{id} wrong", len(others))]
                like = [other for other in things if other != thing][choice(f"{id} like", len(things) - 1)]
                first_is_right = choice(f"{id} first", 2)
                values = {}
                for lang in LANGS:
                    right, false = coloured(colour, thing, lang), coloured(wrong, thing, lang)
                    values[lang] = {
                        "x": COLOURED[thing][lang],
                        "y": COLOURED[like][lang],
                        "right": right,
                        "wrong": false,
                        "also": coloured(colour, like, lang),
                        "u": right if first_is_right else false,
                        "v": false if first_is_right else right,
                    }
                yield draft("colour", id, COLOUR_PROMPTS, COLOUR_ANSWERS, values, COLOUR_CHECKS, wording)


def coloured(colour: str, thing: str, lang: str) -> str:
    forms = COLOURS[colour][lang]
    if lang == "ru":
        return forms.f if thing in FEMININE else forms.n if thing in NEUTER else forms.m
    return forms.n


def opposites() -> Iterator[Draft]:
    checks = {"en": "'{q}'", "zh": "“{q}”", "ko": "'{q}'", "ru": "«{q}»"}
    for index, pair in enumerate(OPPOSITES.values()):
        for turned in (False, True):
            for wording in range(3):
                id = f"opposite-{index:02}-{int(turned)}-{wording}"
                values = {}
                for lang in LANGS:
                    # The second word of a pair stands for the second Chinese word.
                    first, second = pair[lang].n, with_chinese(pair[lang].o, pair["zh"].o, lang)
                    values[lang] = {"p": second, "q": first} if turned else {"p": first, "q": second}
                yield draft("opposite", id, OPPOSITE_PROMPTS, OPPOSITE_ANSWERS, values, checks, wording)


def with_chinese(form: str, chinese: str, lang: str) -> str:
    return form if lang == "zh" else f"[{unmarked(form)}~{chinese}]"


def animals() -> Iterator[Draft]:
    for index, animal in enumerate(ANIMALS.values()):
        for wording in range(3):
            checks = FOOD_CHECKS if wording == 2 else HOME_CHECKS
            values = {lang: {"x": animal[lang]} for lang in LANGS}
            yield draft("animal", f"animal-{index:02}-{wording}", HOME_PROMPTS, HOME_ANSWERS, values, checks, wording)


def sizes() -> Iterator[Draft]:
    for (small, smaller), (big, bigger) in combinations(enumerate(SIZES), 2):
        for wording in range(3):
            id = f"size-{small:02}-{big:02}-{wording}"
            x, y = (smaller, bigger) if choice(id, 2) else (bigger, smaller)
            values = {
                lang: {"x": x[lang], "y": y[lang], "small": smaller[lang], "big": bigger[lang]} for lang in LANGS
            }
            checks = SMALLER if wording == 1 else BIGGER
            yield draft("size", id, SIZE_PROMPTS, SIZE_ANSWERS, values, checks, wording)
