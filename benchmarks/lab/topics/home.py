"""What a dish needs, how small tasks are done, where things are kept."""

from collections.abc import Iterator
from itertools import product

from .text import LANGS, Draft, choice, draft, word_table
from .words import GOODS

# A dish and, by their English names, what it needs; Russian in the genitive, after `для`.
DISHES = word_table(
    {"en": "n", "zh": "n", "ko": "n", "ru": "n"},
    """
    vegetable [soup~汤]  | 蔬菜汤   | 채소 [수프~汤]   | овощного [супа~汤]
    fish [soup~汤]       | 鱼汤     | 생선 [수프~汤]   | рыбного [супа~汤]
    tomato [salad~沙拉]  | 西红柿沙拉 | 토마토 [샐러드~沙拉] | [салата~沙拉] с помидорами
    cabbage [salad~沙拉] | 卷心菜沙拉 | 양배추 [샐러드~沙拉] | [салата~沙拉] с капустой
    pancakes             | 煎饼     | 팬케이크         | блинов
    an omelette          | 煎蛋卷   | 오믈렛           | омлета
    apple [pie~馅饼]     | 苹果馅饼 | 사과 [파이~馅饼] | яблочного [пирога~馅饼]
    fried rice           | 炒饭     | 볶음밥           | жареного [риса~米饭]
    a cheese [sandwich~三明治] | 奶酪三明治 | 치즈 [샌드위치~三明治] | [бутерброда~三明治] с сыром
    meat [pie~馅饼]      | 肉馅饼   | 고기 [파이~馅饼] | [пирога~馅饼] с мясом
    sweet [tea~茶]       | 甜茶     | 달콤한 [차~茶]   | сладкого [чая~茶]
    coffee with milk     | 牛奶咖啡 | 우유 [커피~咖啡] | [кофе~咖啡] с молоком
    potato [soup~汤]     | 土豆汤   | 감자 [수프~汤]   | картофельного [супа~汤]
    honey [cake~蛋糕]    | 蜂蜜蛋糕 | 꿀 [케이크~蛋糕] | медового [торта~蛋糕]
    """,
)
INGREDIENTS = [
    "potatoes carrots onions water salt",
    "fish potatoes onions water salt",
    "tomatoes onions cheese salt",
    "cabbage carrots apples salt",
    "flour milk eggs butter sugar",
    "eggs milk butter salt",
    "flour apples sugar butter eggs",
    "rice eggs carrots onions salt",
    "bread butter cheese",
    "flour meat onions butter salt",
    "tea water sugar",
    "coffee water milk",
    "potatoes onions butter water salt",
    "flour honey eggs butter",
]
DISH_PROMPTS = {
    "en": [
        "What do I need for {x.n}?",
        "Please list what one needs for {x.n}.",
        "I want to make {x.n}. What do I buy?",
    ],
    "zh": ["做{x.n}需要什么？", "请列出做{x.n}需要的东西。", "我想做{x.n}。要买什么？"],
    "ko": [
        "{x.n}(을/를) 만들려면 무엇이 필요해요?",
        "{x.n}(을/를) 만들 때 필요한 것을 목록으로 써 주세요.",
        "{x.n}(을/를) 만들고 싶어요. 무엇을 사야 해요?",
    ],
    "ru": [
        "Что нужно для {x.n}?",
        "Напишите список продуктов для {x.n}.",
        "Какие продукты мне купить для {x.n}?",
    ],
}
DISH_ANSWERS = {
    "en": ["For {x.n} you need:\n{lines}", "You need {size} things for {x.n}:\n{lines}"],
    "zh": ["做{x.n}需要：\n{lines}", "做{x.n}要用{size}样东西：\n{lines}"],
    "ko": ["{x.n}에는 다음이 필요해요:\n{lines}", "{x.n}(을/를) 만들려면 재료 {size}가지가 필요해요:\n{lines}"],
    "ru": ["Для {x.n} нужны такие продукты:\n{lines}", "Вот продукты для {x.n}:\n{lines}"],
}

# How to do a small task: what is asked (English after "How do I", Russian infinitive, Korean noun phrase with 하-).
TASKS = [
    {
        "en": (
            "make tea",
            "1. Boil the [water~水].\n2. Put the [tea~茶] into a [cup~杯子].\n3. Pour in the water and wait.",
        ),
        "zh": ("泡茶", "1. 把水烧开。\n2. 把茶放进杯子。\n3. 倒入热水，等一会儿。"),
        "ko": (
            "차를 끓이는",
            "1. [물~水]을 끓이세요.\n2. [컵~杯子]에 [찻잎~茶叶]을 넣으세요.\n3. 뜨거운 물을 붓고 기다리세요.",
        ),
        "ru": (
            "заварить чай",
            "1. Вскипятите [воду~水].\n2. Положите [чай~茶] в [чашку~杯子].\n3. Налейте воду и подождите.",
        ),
    },
    {
        "en": (
            "boil an egg",
            "1. Put the [egg~鸡蛋] into a [pot~锅].\n2. Add [water~水].\n3. Cook it for 8 [minutes~分钟].",
        ),
        "zh": ("煮鸡蛋", "1. 把鸡蛋放进锅里。\n2. 加水。\n3. 煮8分钟。"),
        "ko": (
            "달걀을 삶는",
            "1. [냄비~锅]에 [달걀~鸡蛋]을 넣으세요.\n2. [물~水]을 부으세요.\n3. 8[분~分钟] 동안 삶으세요.",
        ),
        "ru": (
            "сварить яйцо",
            "1. Положите [яйцо~鸡蛋] в [кастрюлю~锅].\n2. Налейте [воду~水].\n3. Варите 8 [минут~分钟].",
        ),
    },
    {
        "en": (
            "cook rice",
            "1. Wash the [rice~大米].\n2. Put it into a [pot~锅] with [water~水].\n3. Cook it for 20 [minutes~分钟].",
        ),
        "zh": ("煮米饭", "1. 把大米洗干净。\n2. 把米和水放进锅里。\n3. 煮20分钟。"),
        "ko": (
            "밥을 짓는",
            "1. [쌀~大米]을 씻으세요.\n2. [냄비~锅]에 쌀과 [물~水]을 넣으세요.\n3. 20[분~分钟] 동안 끓이세요.",
        ),
        "ru": (
            "сварить рис",
            "1. Промойте [рис~大米].\n2. Положите его в [кастрюлю~锅] с [водой~水].\n3. Варите 20 [минут~分钟].",
        ),
    },
    {
        "en": (
            "wash my hands",
            (
                "1. Wet your [hands~手].\n2. Take some [soap~肥皂].\n3. "
                "Wash the soap off with [water~水].\n4. Take a [towel~毛巾]."
            ),
        ),
        "zh": ("洗手", "1. 把手弄湿。\n2. 用一点肥皂。\n3. 用水冲干净。\n4. 用毛巾擦干。"),
        "ko": (
            "손을 씻는",
            "1. [손~手]을 적시세요.\n2. [비누~肥皂]를 쓰세요.\n3. [물~水]로 헹구세요.\n4. [수건~毛巾]으로 닦으세요.",
        ),
        "ru": (
            "мыть руки",
            (
                "1. Намочите [руки~手].\n2. Возьмите [мыло~肥皂].\n3. "
                "Смойте его [водой~水].\n4. Вытрите руки [полотенцем~毛巾]."
            ),
        ),
    },
    {
        "en": (
            "plant a flower",
            "1. Make a small hole in the [ground~地].\n2. Put the [flower~花] in.\n3. Give it some [water~水].",
        ),
        "zh": ("种花", "1. 在地上挖一个小坑。\n2. 把花放进去。\n3. 浇一点水。"),
        "ko": ("꽃을 심는", "1. [땅~地]을 조금 파세요.\n2. [꽃~花]을 넣으세요.\n3. [물~水]을 주세요."),
        "ru": (
            "посадить цветок",
            "1. Выкопайте в [земле~地] ямку.\n2. Посадите [цветок~花].\n3. Полейте его [водой~水].",
        ),
    },
    {
        "en": (
            "send a letter",
            "1. Write the [letter~信].\n2. Put a [stamp~邮票] on it.\n3. Take it to the [post office~邮局].",
        ),
        "zh": ("寄信", "1. 把信写好。\n2. 贴上邮票。\n3. 送到邮局。"),
        "ko": ("편지를 보내는", "1. [편지~信]를 쓰세요.\n2. [우표~邮票]를 붙이세요.\n3. [우체국~邮局]에 가져가세요."),
        "ru": (
            "отправить письмо",
            "1. Напишите [письмо~信].\n2. Наклейте [марку~邮票].\n3. Отнесите письмо на [почту~邮局].",
        ),
    },
    {
        "en": (
            "clean the table",
            "1. Take the [plates~盘子] away.\n2. Take a wet [cloth~抹布].\n3. Clean the [table~桌子] with it.",
        ),
        "zh": ("擦桌子", "1. 把盘子拿走。\n2. 拿一块湿抹布。\n3. 用它擦桌子。"),
        "ko": (
            "탁자를 닦는",
            "1. [접시~盘子]를 치우세요.\n2. 젖은 [걸레~抹布]를 준비하세요.\n3. [탁자~桌子]를 닦으세요.",
        ),
        "ru": (
            "вытереть стол",
            "1. Уберите [тарелки~盘子].\n2. Возьмите мокрую [тряпку~抹布].\n3. Вытрите [стол~桌子].",
        ),
    },
    {
        "en": (
            "make a sandwich",
            "1. Cut the [bread~面包].\n2. Put [butter~黄油] on it.\n3. Put the [cheese~奶酪] on top.",
        ),
        "zh": ("做三明治", "1. 切面包。\n2. 涂上黄油。\n3. 放上奶酪。"),
        "ko": (
            "샌드위치를 만드는",
            "1. [빵~面包]을 자르세요.\n2. [버터~黄油]를 바르세요.\n3. [치즈~奶酪]를 올리세요.",
        ),
        "ru": (
            "сделать бутерброд",
            "1. Нарежьте [хлеб~面包].\n2. Намажьте [масло~黄油].\n3. Положите сверху [сыр~奶酪].",
        ),
    },
    {
        "en": ("borrow a book", "1. Go to the [library~图书馆].\n2. Find the [book~书].\n3. Show your [card~借书证]."),
        "zh": ("借书", "1. 去图书馆。\n2. 找到书。\n3. 出示借书证。"),
        "ko": (
            "책을 빌리는",
            "1. [도서관~图书馆]에 가세요.\n2. [책~书]을 찾으세요.\n3. [대출증~借书证]을 보여 주세요.",
        ),
        "ru": (
            "взять книгу в библиотеке",
            "1. Придите в [библиотеку~图书馆].\n2. Найдите [книгу~书].\n3. Покажите [карточку~借书证].",
        ),
    },
    {
        "en": (
            "buy a train ticket",
            "1. Go to the [station~车站].\n2. Say where you want to go.\n3. Pay and take the [ticket~票].",
        ),
        "zh": ("买火车票", "1. 去车站。\n2. 说出要去的地方。\n3. 付钱，拿票。"),
        "ko": (
            "기차표를 사는",
            "1. [역~车站]에 가세요.\n2. 어디로 가는지 말하세요.\n3. [돈~钱]을 내고 [표~票]를 받으세요.",
        ),
        "ru": (
            "купить билет на поезд",
            "1. Придите на [вокзал~车站].\n2. Скажите, куда вы едете.\n3. Заплатите и возьмите [билет~票].",
        ),
    },
    {
        "en": (
            "paint a picture",
            "1. Take [paper~纸] and a [brush~画笔].\n2. Choose the [colours~颜色].\n3. Paint and let the picture dry.",
        ),
        "zh": ("画画", "1. 准备纸和画笔。\n2. 选好颜色。\n3. 画好，等它干。"),
        "ko": (
            "그림을 그리는",
            "1. [종이~纸]와 [붓~画笔]을 준비하세요.\n2. [색~颜色]을 고르세요.\n3. 그림을 그리고 말리세요.",
        ),
        "ru": (
            "нарисовать картину",
            (
                "1. Возьмите [бумагу~纸] и [кисть~画笔].\n2. "
                "Выберите [цвета~颜色].\n3. Нарисуйте картину и дайте ей высохнуть."
            ),
        ),
    },
    {
        "en": (
            "wash a shirt",
            (
                "1. Put the [shirt~衬衫] into warm [water~水].\n2. "
                "Wash it with [soap~肥皂].\n3. Hang it in the [sun~太阳]."
            ),
        ),
        "zh": ("洗衬衫", "1. 把衬衫放进温水。\n2. 用肥皂洗。\n3. 挂在太阳下晒干。"),
        "ko": (
            "셔츠를 빠는",
            "1. [셔츠~衬衫]를 따뜻한 [물~水]에 넣으세요.\n2. [비누~肥皂]로 빠세요.\n3. [햇볕~太阳]에 말리세요.",
        ),
        "ru": (
            "постирать рубашку",
            (
                "1. Положите [рубашку~衬衫] в тёплую [воду~水].\n2. "
                "Постирайте её с [мылом~肥皂].\n3. Повесьте её на [солнце~太阳]."
            ),
        ),
    },
]
STEPS_PROMPTS = {
    "en": ["How do I {task}?", "Please tell me step by step how to {task}.", "I want to {task}. What are the steps?"],
    "zh": ["怎么{task}？", "请一步一步告诉我怎么{task}。", "我想{task}。有哪些步骤？"],
    "ko": ["{task} 방법을 알려 주세요.", "{task} 순서를 하나씩 알려 주세요.", "{task} 방법이 뭐예요?"],
    "ru": ["Как {task}?", "Расскажите по шагам, как {task}.", "Я хочу {task}. Какие нужны шаги?"],
}
STEPS_ANSWERS = {
    "en": ["{steps}", "Here are the [steps~步骤]:\n{steps}"],
    "zh": ["{steps}", "步骤如下：\n{steps}"],
    "ko": ["{steps}", "[순서~步骤]는 다음과 같아요:\n{steps}"],
    "ru": ["{steps}", "Вот [шаги~步骤]:\n{steps}"],
}

# Where a thing is kept.
KEPT = word_table(
    {"en": "n place", "zh": "n place", "ko": "n place", "ru": "acc place"},
    """
    milk, in the [fridge~冰箱] | 牛奶, 冰箱里 | 우유, [냉장고~冰箱]에 | молоко, в [холодильнике~冰箱]
    meat, in the [fridge~冰箱] | 肉, 冰箱里 | 고기, [냉장고~冰箱]에 | мясо, в [холодильнике~冰箱]
    butter, in the [fridge~冰箱] | 黄油, 冰箱里 | 버터, [냉장고~冰箱]에 | масло, в [холодильнике~冰箱]
    books, on the [shelf~书架] | 书, 书架上 | 책, [책장~书架]에 | книги, на [полке~书架]
    plates, in the [cupboard~橱柜] | 盘子, 橱柜里 | 접시, [찬장~橱柜]에 | тарелки, в [буфете~橱柜]
    cups, in the [cupboard~橱柜] | 杯子, 橱柜里 | 컵, [찬장~橱柜]에 | чашки, в [буфете~橱柜]
    shirts, in the [wardrobe~衣柜] | 衬衫, 衣柜里 | 셔츠, [옷장~衣柜]에 | рубашки, в [шкафу~衣柜]
    coats, in the [wardrobe~衣柜] | 大衣, 衣柜里 | 외투, [옷장~衣柜]에 | пальто, в [шкафу~衣柜]
    money, in the [bank~银行] | 钱, 银行里 | 돈, [은행~银行]에 | деньги, в [банке~银行]
    pencils, in the [drawer~抽屉] | 铅笔, 抽屉里 | 연필, [서랍~抽屉]에 | карандаши, в [ящике~抽屉]
    spoons, in the [drawer~抽屉] | 勺子, 抽屉里 | 숟가락, [서랍~抽屉]에 | ложки, в [ящике~抽屉]
    the car, in the [garage~车库] | 汽车, 车库里 | 자동차, [차고~车库]에 | машину, в [гараже~车库]
    flowers, in a [vase~花瓶] | 花, 花瓶里 | 꽃, [꽃병~花瓶]에 | цветы, в [вазе~花瓶]
    soap, in the [bathroom~浴室] | 肥皂, 浴室里 | 비누, [욕실~浴室]에 | мыло, в [ванной~浴室]
    towels, in the [bathroom~浴室] | 毛巾, 浴室里 | 수건, [욕실~浴室]에 | полотенца, в [ванной~浴室]
    """,
)
KEEP_PROMPTS = {
    "en": ["Where do people keep {x.n}?", "Where do I put {x.n}?", "What is the right place for {x.n}?"],
    "zh": ["{x.n}一般放在哪里？", "我应该把{x.n}放在哪里？", "{x.n}放在什么地方好？"],
    "ko": [
        "{x.n}(은/는) 보통 어디에 보관해요?",
        "{x.n}(을/를) 어디에 두면 돼요?",
        "{x.n}(을/를) 두기 좋은 곳은 어디예요?",
    ],
    "ru": ["Где хранят {x.acc}?", "Где лучше держать {x.acc}?", "Где обычно держат {x.acc}?"],
}
KEEP_ANSWERS = {
    "en": [
        "People keep {x.n} {x.place}. The right [place~地方] is {x.place}.",
        "Keep {x.n} {x.place}. There it is easy to [find~找到] things.",
    ],
    "zh": ["{x.n}一般放在{x.place}。放在{x.place}最好。", "把{x.n}放在{x.place}，这样容易找到。"],
    "ko": [
        "{x.n}(은/는) 보통 {x.place} 보관해요. {x.place} 두면 좋아요.",
        "{x.n}(은/는) {x.place} 두세요. 그러면 찾기 쉬워요.",
    ],
    "ru": [
        "Обычно {x.acc} хранят {x.place}. Хорошее [место~地方]: {x.place}.",
        "Лучше держать {x.acc} {x.place}. Там легко всё [найти~找到].",
    ],
}
KEEP_CHECKS = dict.fromkeys(LANGS, "{x.place}")


def drafts() -> Iterator[Draft]:
    for (index, dish), wording in product(enumerate(DISHES.values()), range(3)):
        names = INGREDIENTS[index].split()
        line = ["- {}", "{num}. {}"][choice(f"dish {index}", 2)]
        values = {}
        for lang in LANGS:
            lines = [line.format(GOODS[name][lang].n, num=num) for num, name in enumerate(names, 1)]
            values[lang] = {"x": dish[lang], "size": len(names), "lines": "\n".join(lines)}
        yield draft("dish", f"dish-{index:02}-{wording}", DISH_PROMPTS, DISH_ANSWERS, values, wording=wording)
    for (index, task), wording in product(enumerate(TASKS), range(3)):
        values = {lang: dict(zip(("task", "steps"), task[lang])) for lang in LANGS}
        yield draft("steps", f"steps-{index:02}-{wording}", STEPS_PROMPTS, STEPS_ANSWERS, values, wording=wording)
    for (index, thing), wording in product(enumerate(KEPT.values()), range(3)):
        values = {lang: {"x": thing[lang]} for lang in LANGS}
        yield draft("keep", f"keep-{index:02}-{wording}", KEEP_PROMPTS, KEEP_ANSWERS, values, KEEP_CHECKS, wording)
