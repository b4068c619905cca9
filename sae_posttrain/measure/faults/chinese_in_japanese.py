"""
Find Chinese in Japanese text: by characters that only Chinese has, and by sentences without kana in Chinese grammar.

Both languages use Han. A run of Han is Chinese if it holds a form that Japanese does not have (cp932 cannot encode it)
and this form is a simplified form or a common word of Chinese. A rare character of a name, as 圳 in 深圳, is neither.
If both languages have the forms, grammar decides, as in 我們明天早上八點出發. Japanese without kana is a noun, an
address or a note such as 送料無料; it has no pronouns, no 這 and no 了 at its end.
"""

import regex

from .han_forms import SIMPLIFIED_FORMS
from .scripts import has_chinese_only_form

_WORDS = frozenset(
    "你您她它每晚卡查另吧步咖啡桌拖糕份哪躺烤污垃圾跑吵沉扔涉呢嗯懂偷碰搞啊摔扭爸躲踢啦揭渴挖值拼爱谁啥咱"
)
"""Common Chinese words that Japanese does not have and that are not simplified forms of another character."""

_SENTENCE = regex.compile(r"[^\n。．！？!?]+[。．！？!?]*")
_CLAUSE = regex.compile(r"[^、，,；;：:「」『』（）()“”\"…\s]+")
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}ー]")
_HAN = regex.compile(r"\p{Han}")

# Words that make a sentence Chinese. If a Japanese compound may hold a word, its context is part of the pattern.
_SAYS = regex.compile(
    r"""(?<![自無彼忘])我(?![孫慢流儘国國社輩家執欲田]) | 他(?=[是在不也要想的有去到和又再已])
      | 那[個裡些時邊] | 哪 | 什么 | 怎[樣么] | 沒有 | 就是 | [還也都]是 | [還也都只]有 | 有一[個點] | 是一[個点]
      | 但是 | 因[為爲] | 如果 | 雖然 | 然[後后] | 而且 | 或者 | 不過 | 已[經经] | 可以
      | 應該 | 不[會是想用好太錯](?![率人事足])
      | 明天 | 昨天 | 今天 | 早上 | 晚上 | 上午 | 每[天次年] | 謝謝 | 對不起 | 知道 | 覺得 | 喜歡 | 的時候
      | (?<![完終修満滿魅校読讀未投議])了(?=[\p{P}\s]|\Z) | 了[一二三四五六七八九十兩两] | [點点]了
      | (?<![申要招下普起])請(?![求負願託]) | 非常[好大小高多] | (?<![先優])[給对對把讓跟](?=[我他人])
      | [太最]好的 | 的[是人話] | 一[個间間些]""",
    regex.VERBOSE,
)
_ALONE = regex.compile("[們这這妳嗎麼麽很]")  # Japanese never uses these, not even in a name
_HINTS = regex.compile(
    r"""(?<![目私公知性法])的(?=\p{Han}) | 的(?=[。！？]) | 是(?![非正認]|\Z) | 也
      | (?<![成去])就(?![職任業寝労学航役床])
      | (?<![現存滞所健駐不実潜自散偏介点混併内外常伏])在(?![庫住籍宅学来留日任位職校米欧中])
      | [從與來會說對點發沒於裏] | 房間 | 服務 | 酒店 | 早餐 | 工作 | 朋友 | 孩子 | 公司 | 老[師板] | [小大]姐 | 醫生
      | 時間 | 東西 | 地方 | 之[後前] | [上下]面 | 離開""",
    regex.VERBOSE,
)
# Old forms that names of people, schools and companies still use.
_OF_NAMES = frozenset("國學會澤邊廣齋櫻龍圓濱惠來榮壽眞應瀧鐵藏莊萬與淺條德禮神福祥靜豐龜彌")
_MIN_HAN = 4


def has_chinese_character(run: str) -> bool:
    """Whether a run of Han holds a character that Chinese uses and Japanese does not have."""
    return has_chinese_only_form("".join(c for c in run if c in SIMPLIFIED_FORMS or c in _WORDS))


def chinese_stretches(text: str) -> list[tuple[int, int]]:
    """
    (start, end) of the Chinese sentences in a Japanese text that use only characters of both languages.

    If a sentence has kana, its clauses and the text after the last kana of a clause are checked instead.
    """
    found = []
    for sentence in _SENTENCE.finditer(text):
        if not _HAN.search(sentence.group()):
            continue
        if not _KANA.search(sentence.group()):
            if _is_chinese(sentence.group()):
                found.append(sentence.span())
            continue
        for clause in _CLAUSE.finditer(text, *sentence.span()):
            start = _behind_kana(clause.group()) + clause.start()
            if _is_chinese(text[start : clause.end()]):
                found.append((start, clause.end()))
    return found


def _is_rare_in_japanese(character: str) -> bool:
    """Whether it stands in the second level of JIS X 0208, beyond the 2,965 common characters: old and rare forms."""
    code = character.encode("shift_jis", "ignore")
    return len(code) == 2 and code >= b"\x98\x9f" and character not in _OF_NAMES


def _behind_kana(clause: str) -> int:
    return max((found.end() for found in _KANA.finditer(clause)), default=0)


def _is_chinese(text: str) -> bool:
    num_han = sum(1 for _ in _HAN.finditer(text))
    if num_han < _MIN_HAN:
        return False
    if _ALONE.search(text):
        return True
    says = sum(1 for _ in _SAYS.finditer(text))
    rare = sum(_is_rare_in_japanese(character) for character in set(text))
    hints = len(set(_HINTS.findall(text)))
    return says + hints + rare >= 2 if says else hints >= 1 and hints + rare >= 3
