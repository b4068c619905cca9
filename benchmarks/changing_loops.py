"""Made-up loops in which a little changes each time, by kind, with drawn words, numbers, templates and separators."""

import datetime
import random
from collections.abc import Callable

WORDS = (
    "river stone candle window orchard market lantern pepper harbour cotton saddle thunder copper mirror "
    "needle ribbon basket meadow garden blanket pillow ladder engine compass winter bottle silver pocket "
    "carpet hammer island forest bridge castle dragon fiddle guitar helmet jacket kettle lemon magnet napkin "
    "oyster pencil quartz rabbit signal tunnel velvet walnut zipper answer battle circle doctor effort flight "
    "ground height income junior knight leader"
).split()
NAMES = (
    "Anna Boris Chen Dalia Emil Farah Goran Hana Igor Jana Karim Lena Mateo Nadia Oskar Petra Quentin Rosa "
    "Samir Tamar Ugo Vera Wanda Xenia Yusuf Zora Alejandro Beatrix Cornelius Dimitri"
).split()
SENTENCES = (
    "The system will then update the list of entries and show it again.",
    "Check the settings and restart the app.",
    "I am not sure what you mean by that, please tell me more.",
    "It is a good idea to keep a copy of the file.",
    "설정을 확인하고 앱을 다시 시작하세요.",
    "请检查设置，然后重新启动应用程序。",
    "Проверьте настройки и перезапустите приложение.",
    "Compruebe la configuración y reinicie la aplicación.",
    "設定を確認してアプリを再起動してください。",
    "Überprüfen Sie die Einstellungen und starten Sie neu.",
)
WITH_NUMBER = (
    "Order %d was shipped to the customer.",
    "The total for invoice %d is due now.",
    "User %d logged in.",
    "Заказ %d отправлен покупателю.",
    "주문 %d번이 발송되었습니다.",
    "订单 %d 已发货。",
)
WITH_NAME = (
    "%s is a friend of mine and we like to go out.",
    "%s said that the answer was not known to anybody.",
    "Then %s went home.",
    "%s 님이 오늘 회의에 참석했습니다.",
)
WITH_TWO = (
    "The %s is next to the %s and it is blue.",
    "I like the %s more than the %s, of course.",
    "If you have a %s, then you need a %s.",
    "El %s no es lo mismo que un %s.",
)


def words(draw: random.Random, num: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(num))


def repeated(make: Callable[[int], str], num: int = 400, separator: str = "\n") -> str:
    return separator.join(make(k) for k in range(1, num + 1))


def counting(draw: random.Random) -> str:
    start, step = draw.randrange(1, 900), draw.choice([1, 1, 2, 5, 10])
    return repeated(lambda k: str(start + k * step), 800, draw.choice([", ", " ", "\n", ","]))


def counting_down(draw: random.Random) -> str:
    start = draw.randrange(900, 2000)
    return repeated(lambda k: str(start - k), 800, draw.choice([", ", " ", "\n"]))


def counting_in_hex(draw: random.Random) -> str:
    start, form = draw.randrange(256, 4000), draw.choice(["0x%04x", "#%06X", "U+%04X"])
    return repeated(lambda k: form % (start + k), separator=draw.choice([", ", "\n"]))


def numbered_sentence(draw: random.Random) -> str:
    sentence, form = draw.choice(SENTENCES), draw.choice(["%d. ", "%d) ", "Step %d: ", "- [%d] "])
    return repeated(lambda k: form % k + sentence)


def table_rows(draw: random.Random) -> str:
    name, factor = words(draw, 2), draw.choice([1, 7, 10, 100])
    return "| id | name | value |\n|---|---|---|\n" + repeated(lambda k: f"| {k} | {name} {k} | {k * factor} |")


def json_rows(draw: random.Random) -> str:
    name, item = draw.choice(NAMES), draw.choice(WORDS)
    return repeated(lambda k: f'{{"id": {k}, "name": "{name}", "item": "{item}"}},')


def random_number(draw: random.Random) -> str:
    sentence, largest = draw.choice(WITH_NUMBER), draw.choice([10**4, 10**5, 10**7])
    return repeated(lambda k: sentence % draw.randrange(largest // 10, largest), separator=draw.choice(["\n", " "]))


def one_name(draw: random.Random) -> str:
    sentence = draw.choice(WITH_NAME)
    return repeated(lambda k: sentence % draw.choice(NAMES), separator=draw.choice(["\n", " "]))


def two_words(draw: random.Random) -> str:
    sentence = draw.choice(WITH_TWO)
    return repeated(lambda k: sentence % (draw.choice(WORDS), draw.choice(WORDS)), separator=draw.choice(["\n", " "]))


def growing_lines(draw: random.Random) -> str:
    line, subject, state = words(draw, 40).split(), draw.choice(WORDS), draw.choice(WORDS)
    return draw.choice(
        [
            repeated(lambda k: " ".join(line[:k]), 40),
            repeated(lambda k: f"The {subject} is {'very ' * k}{state}.", 80, " "),
            repeated(lambda k: " ".join(str(j) for j in range(1, k + 1)), 60),
        ]
    )


def chained_assignments(draw: random.Random) -> str:
    name, operation = draw.choice("xyabn"), draw.choice(["+ 1", "* 2", "- 3"])
    form = draw.choice(["%s%d = %s%d %s", "%s_%d = %s_%d %s", "let %s%d = %s%d %s;"])
    return repeated(lambda k: form % (name, k + 1, name, k, operation), separator=draw.choice(["\n", ", "]))


def code_lines(draw: random.Random) -> str:
    name, form = draw.choice(WORDS), draw.choice(['    if (%s == %d) return "%d";', "int %s%d = %d;", "%s[%d] = %d"])
    return repeated(lambda k: form % (name, k, k))


def multiplication(draw: random.Random) -> str:
    factor = draw.randrange(3, 99)
    return repeated(lambda k: f"{factor} x {k} = {factor * k}", separator=draw.choice(["\n", ", "]))


def dates(draw: random.Random) -> str:
    start = datetime.date(draw.randrange(1990, 2030), draw.randrange(1, 13), 1)
    word, form = draw.choice(WORDS), draw.choice(["%Y-%m-%d", "%d.%m.%Y", "%B %d, %Y"])
    return repeated(lambda k: f"{(start + datetime.timedelta(k)).strftime(form)}: {word}")


def chapters(draw: random.Random) -> str:
    first, second, third = (words(draw, draw.randrange(4, 9)) for _ in range(3))
    return repeated(lambda k: f"## Chapter {k}\n{first}.\n- {second}\n- {third}\n")


def opening_varies(draw: random.Random) -> str:
    openings = ["I think that", "I believe that", "It seems that", "Maybe", "In my opinion"]
    rest = words(draw, 9)
    return repeated(lambda k: f"{draw.choice(openings)} the {rest}.", separator=" ")


def questions_and_answers(draw: random.Random) -> str:
    question, answer = words(draw, 7), words(draw, 6)
    return repeated(lambda k: f"Q{k}: {question}?\nA{k}: {answer}.")


def after_an_exact_run(draw: random.Random) -> str:
    run = draw.choice(["- ", "= ", "0, ", "* ", "_ ", "~"]) * draw.randrange(65, 160)
    kinds = [numbered_sentence, json_rows, table_rows, two_words, random_number, counting]
    return f"{run}\n{draw.choice(kinds)(draw)}"


def long_passage(draw: random.Random) -> str:
    """One copy; the benchmark repeats its tokens more than three times, and cuts before the fourth copy is over."""
    return words(draw, draw.randrange(80, 170)) + ".\n\n"


def long_passage_with_a_number(draw: random.Random) -> str:
    passage = words(draw, draw.randrange(25, 60))
    return repeated(lambda k: f"Part {k}. {passage}.", 60, "\n\n")


KINDS: dict[str, Callable[[random.Random], str]] = {
    make.__name__: make
    for make in (
        counting,
        counting_down,
        counting_in_hex,
        numbered_sentence,
        table_rows,
        json_rows,
        random_number,
        one_name,
        two_words,
        growing_lines,
        chained_assignments,
        code_lines,
        multiplication,
        dates,
        chapters,
        opening_varies,
        questions_and_answers,
        after_an_exact_run,
        long_passage,
        long_passage_with_a_number,
    )
}
