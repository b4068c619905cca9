"""
Decide whether foreign text is a term (a quoted name or word) or a clause (running text).

A clause is recognised by words that no name has (*then*, *click*, *please*) or by its length. Length limits are in
characters and depend on the script: 12 characters of Han and kana are about six words, 18 of an alphabet two or three.
"""

from dataclasses import dataclass

import regex

SHORT_DENSE, LONG_DENSE = 6, 12
SHORT_SPACED, LONG_SPACED = 10, 18
"""A quoted text up to the short length is a term. Above the long length it is a clause. Between, its words decide."""

_LETTER = regex.compile(r"[\p{L}\p{M}\p{N}]")
_DENSE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_CAPITAL = regex.compile(r"\P{L}*\p{Lu}")
_MAX_TITLE_WORDS = 4

# Words that join or open a clause, or tell the reader what to do. No name of a thing, page or file has them.
_SAYS = regex.compile(
    r"""然[后後] | 之[后後] | 接[着著] | 随后 | 隨後 | [请請](?![求假愿願柬教]) | [点點单單双雙][击擊] | 按下
      | 如果 | 因[为為] | 所以 | 但是 | [并並]且 | 而且 | 或者 | 即可 | 就可以 | 就能 | [我他她][们們] | [你您]
      | ください | 下さい | ましょう | します | しました | して(?:から|、) | クリックし | 押して
      | それから | その後 | 次に
      | \b(?: затем | потом | нажмите | щ[её]лкните | выберите | откройте | сохраните | пожалуйста | чтобы | если
            | потім | натисніть | виберіть | щоб | якщо )\b
      | 그런\ ?다음 | 그리고 | 클릭 | 하세요 | 하십시오 | 합니다 | 눌러 | 누르
      | \b(?: ثم | انقر | اضغط | بعد\ ذلك | يرجى | إذا | سپس | کلیک | لطفا )\b
      | फिर | क्लिक | कृपया | करें | अगर | จากนั้น | คลิก | กรุณา | แล้ว | ถ้า | \b(?: לאחר\ מכן | לחץ | אנא )\b """,
    regex.VERBOSE | regex.IGNORECASE,
)
# Chinese and Japanese grammar that may occur once in a title, but rarely twice.
_GRAMMAR = regex.compile(
    r"[的了是在把被将將会會我你他她它这這那吗嗎吧呢就也都很]|可以|需要|[をにでがは](?=[^\p{Hiragana}])"
)
# Words of running text. They show that a text with a capital at the beginning is a sentence and not a title.
_SENTENCE = regex.compile(
    r"""\b(?: не | был[аои]? | будет | будут | это | этот | очень | можно | нужно | есть | нет | я | мы | вы | он[аио]?
            | мне | нам | нас | вам | вас | вс[её] | уже | ещ[её] | только | также | котор\w+ | так | там | здесь | но
            | що | це | був | була | були | дуже | ви | ми | δεν | είναι | ήταν | και\ να )\b""",
    regex.VERBOSE | regex.IGNORECASE,
)


@dataclass(frozen=True)
class Limits:
    """
    How long a term may be, in characters, for Han and kana, and for other scripts: up to `short` a text is always a
    term, above `long` never.
    """

    short: tuple[int, int] = (SHORT_DENSE, SHORT_SPACED)
    long: tuple[int, int] = (LONG_DENSE, LONG_SPACED)


def says_something(text: str) -> bool:
    """Whether the text holds a word that only a clause has."""
    return _SAYS.search(text) is not None


def is_clause(text: str, limits: Limits, *, title: bool = False) -> bool:
    """
    Whether foreign text, without the neighbouring words of the answer's own language, is more than a term. In a title,
    as between 《 and 》, only its words count.
    """
    dense = _DENSE.search(text) is not None
    length = sum(1 for _ in _LETTER.finditer(text)) if dense else len(text.strip())
    side = 0 if dense else 1
    if length <= limits.short[side]:
        return False
    if says_something(text):
        return True
    if title:
        return False
    if length > limits.long[side]:
        is_title = _CAPITAL.match(text) and len(text.split()) <= _MAX_TITLE_WORDS and not _SENTENCE.search(text)
        return dense or not is_title
    return dense and sum(1 for _ in _GRAMMAR.finditer(text)) > 1
