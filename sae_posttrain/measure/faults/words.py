"""
Count the words of an answer by script, so that a long product name counts no more than a short word.

A word is a run of letters of one script. Scripts written without spaces have no such runs. In these, two characters of
Han or kana count as a word (the usual length of a Chinese or Japanese word), or four letters of Thai, Lao, Khmer,
Burmese or Tibetan. Latin in a text of another script is often a name, which says nothing about the language, so names
are counted separately.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import regex

from .scripts import SCRIPTS, ScannedText

CHARACTERS_A_WORD: dict[str, int] = {
    **dict.fromkeys(["Han", "Hiragana", "Katakana", "Bopomofo", "Yi"], 2),
    **dict.fromkeys(["Thai", "Lao", "Khmer", "Myanmar", "Tibetan"], 4),
}
"""Number of characters that count as a word, for scripts that are written without spaces."""

_NOT_LATIN = frozenset({*SCRIPTS, "Other"} - {"Latin"})

_LATIN_TOKEN = regex.compile(r"[\p{Latin}\d](?:[\p{Latin}\p{M}\d._/@&+#'’:\-]*[\p{Latin}\p{M}\d+#])?")
_LATIN_WORD = regex.compile(r"[\p{Latin}\p{M}]+(?:['’][\p{Latin}\p{M}]+)*")
# A digit, an underscore, a joining sign or a capital after a small letter: `Qwen3`, `from_pretrained`, `com.sun`.
_IS_NAME = regex.compile(r"[\d_@+#]|\p{Ll}\p{M}*\p{Lu}|\p{L}[./&:]\p{L}")
_TEXT_GOES_ON = regex.compile(r"[ \t]+\p{Ll}[\p{Latin}\p{M}'’]*(?![\p{Latin}\d._@/])")

FUNCTION_WORDS: dict[str, frozenset[str]] = {
    lang: frozenset(words.split())
    for lang, words in {
        "en": (
            "the a an and or of to in on at is are was be it its this that these you your he she they we "
            "with for from by as if not then when which what how can will do does please yes no"
        ),
        "es": (
            "el la los las un una y o de del en es son se que con para por como si no lo su sus al este "
            "esta más cuando pero sí"
        ),
        "fr": (
            "le la les un une et ou de du des en est sont se que qui avec pour par comme si ne pas son sa "
            "ses au aux ce cette dans sur vous il elle oui non"
        ),
        "de": (
            "der die das den dem des ein eine einen und oder von zu zum zur in im ist sind sich dass mit "
            "für auf als wenn nicht sie es wie bei nach ja nein"
        ),
        "it": (
            "il lo la i gli le un una e o di del della dei in è sono si che con per come se non su al "
            "alla questo questa dal nel sì"
        ),
        "pt": (
            "o a os as um uma e ou de do da dos das em no na é são se que com para por como não ao à este "
            "esta seu sua sim"
        ),
        "nl": (
            "de het een en of van naar in op is zijn u je dat die met voor door als niet er bij wordt "
            "deze dit aan ja nee"
        ),
        "ca": ("el la els les un una i o de del dels en és són es que amb per com si no al als aquest aquesta seu"),
        "gl": ("o a os as un unha e ou de do da dos das en no na é son se que con para por como non ao á este esta"),
        "pl": "i w z na do nie się jest to że o jak po za od przez dla lub oraz czy ten ta tak",
        "cs": "a v z na do ne se je to že o jak po za od pro nebo když ten ta ano",
        "ro": "și în de la cu pe un o este sunt că nu se din pentru sau dacă acest această da",
        "sv": "och i att det som en ett är på av för med den till inte om eller när ja nej",
        "da": "og i at det som en et er på af for med den til ikke om eller når ja nej",
        "vi": "và của là có trong cho một các những để không được với này khi hoặc",
        "id": "dan di yang untuk dengan ini itu dari ke pada tidak adalah atau jika anda ya",
        "tr": "ve bir bu için ile de da olarak veya ne ise gibi evet hayır",
        "ru": "и в на с не что по к из за для это как или от при если его но вы то",
        "uk": "і в на з не що по до із за для це як або від при якщо його але ви та",
        "bg": "и в на с не че по към от за да се това как или при ако но са е",
    }.items()
}
"""Small words of running text, by language. Product names do not consist of them."""

_SMALL_WORDS = frozenset[str]().union(*FUNCTION_WORDS.values())


@dataclass
class WordCount:
    """
    Number of words of a text by script (a fraction where words are counted by characters), without Latin names; of
    capitalised Latin words that may be names, which count if a text has no word of its own language; and of all Latin
    words but certain names.
    """

    by_script: Counter[str] = field(default_factory=Counter)
    names: int = 0
    latin: int = 0


def count_words(texts: Iterable[str]) -> WordCount:
    """
    Count the words of running text. Remove code, addresses and the like first.

    Two kinds of Latin names are not counted as words. A word with a digit, an inner capital or a joining sign
    (`Qwen3`, `iPhone`, `from_pretrained`) is a certain name and is dropped. A word that begins with a capital is a
    possible name, unless it is a small word of some language or the next word is in small letters, as in a sentence.
    """
    count = WordCount()
    scripts: Counter[str] = Counter()
    for text in texts:
        for _, _, script, num_chars in ScannedText(text).runs(_NOT_LATIN):
            scripts[script] += num_chars if script in CHARACTERS_A_WORD else 1
        _count_latin(text, count)
    for script, number in scripts.items():
        count.by_script[script] = number / CHARACTERS_A_WORD.get(script, 1)  # type: ignore[assignment]
    return count


def _count_latin(text: str, count: WordCount) -> None:
    for token in _LATIN_TOKEN.finditer(text):
        if _IS_NAME.search(token.group()) or token.group().isdigit():
            continue
        for word in _LATIN_WORD.finditer(token.group()):
            count.latin += 1
            if not word.group()[0].isupper() or word.group().casefold() in _SMALL_WORDS:
                count.by_script["Latin"] += 1
            elif word.end() == len(token.group()) and _TEXT_GOES_ON.match(text, token.end()):
                count.by_script["Latin"] += 1
            else:
                count.names += 1


def own_share(count: WordCount, own: Iterable[str]) -> float | None:
    """Share of a text's words in its language's own scripts; `None` if there are no words to judge."""
    own = frozenset(own)
    if "Latin" in own:
        num_own = count.latin + sum(number for script, number in count.by_script.items() if script in own - {"Latin"})
        num_other = sum(number for script, number in count.by_script.items() if script not in own)
    else:
        num_own = sum(number for script, number in count.by_script.items() if script in own)
        num_other = sum(number for script, number in count.by_script.items() if script not in own)
        num_other += 0 if num_own else count.names
    return num_own / (num_own + num_other) if num_own + num_other else None
