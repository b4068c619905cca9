"""
Find the parts of an answer that are not running text: code, LaTeX, markup, addresses, paths, tags.

Lengths are bounded, because otherwise each opening mark without a closing one would be searched to the answer's end.
"""

from collections.abc import Iterable, Iterator

import regex

from .clauses import Limits, is_clause, says_something

_ASCII_ENDINGS = (
    "com|org|net|edu|gov|info|biz|io|dev|app|ai|tv|me|eu|us|uk|de|fr|es|it|pt|br|nl|pl|cz|cn|tw|hk|jp|kr|ru|su|ua|by|kz"
    "|bg|rs|mk|gr|il|ir|sa|ae|eg|in|th|vn|xyz|online|site|shop"
)
_OTHER_ENDINGS = (
    "中国|中國|测试|測試|テスト|테스트|香港|台湾|台灣|澳門|新加坡|公司|网络|網絡|网址|網址|中文网|中文網|在线|網站|网站|广告|みんな|한국|닷컴|닷넷|рф|рус|дети"
    "|онлайн|сайт|москва|укр|бел|срб|мкд|бг|қаз|мон|ευ|ελ|հայ|გე|ישראל|السعودية|مصر|امارات|المغرب|الجزائر|ایران|پاکستان"
    "|भारत|ভারত|ไทย|ලංකා|இந்தியா|شبكة|موقع|कॉम|संगठन|คอม"
)
_FILE_ENDINGS = (
    "docx?|xlsx?|pptx?|od[tspg]|pdf|txt|md|rtf|csv|tsv|jsonl?|ya?ml|toml|ini|cfg|conf|log|xml|html?|css|js|ts|py|ipynb|sh"
    "|bat|exe|msi|dmg|apk|jar|java|cpp?|rs|go|zip|rar|7z|gz|tar|png|jpe?g|gif|svg|webp|bmp|ico|psd|mp[34]|wav|ogg|flac"
    "|avi|mkv|mov|ttf|otf|db|sql|bak|tmp"
)
_NO_NAME = r"""\s\\/:*?"'`<>|()\[\]{},;，。；：！？、（）「」『』《》【】“”"""  # what ends a part of a path

# Labels of a domain are written in one script (with digits): in `example.com然后` the name ends at `com`.
_LABEL = r"""(?:[a-zA-Z0-9][a-zA-Z0-9\-]{0,62}
              | (?:[^\x00-\x7F\W_]|\p{M})[[^\x00-\x7F\W]\p{M}0-9\-]{0,62})"""
_DOMAIN = rf"(?:{_LABEL}\.){{1,8}}(?:{_OTHER_ENDINGS}|{{ascii}}(?![a-zA-Z0-9\-]))"
_BARE_DOMAIN = _DOMAIN.replace("{ascii}", f"(?:{_ASCII_ENDINGS})")
_ANY_DOMAIN = _DOMAIN.replace("{ascii}", "[a-zA-Z]{2,24}")

# Other letters belong to a URL only after a separator: in `…/file然后` the text continues without a space.
_BEHIND_HOST = r"""(?: [/?\#] (?: [!\#-'+-;=?-Z\\^_a-z|~]           # ASCII without quotes, brackets and stars
                            | \([^\s()]*\)
                            | (?<=[/?\#=&\-_.~%+:]|[^\x00-\x7F]) [^\x00-\x7F\s，。；：！？、（）「」『』《》【】“”]
                          )* )?"""

_PARTS = rf"""(?:[^{_NO_NAME}]{{1,120}}+[\\/])*+
              (?:[^{_NO_NAME}]{{0,100}}\.(?:{_FILE_ENDINGS})(?![a-zA-Z0-9])|[^{_NO_NAME}]{{0,120}})"""

_ATTRIBUTES = (
    r"""(?:\s+[a-zA-Z_:@][\w:.\-]{0,40}+(?:\s*=\s*(?:"[^"<>]{0,500}"|'[^'<>]{0,500}'|[^\s"'<>=]{1,200}))?){0,20}+"""
)

# The leftmost opening wins, so a `$` inside code is code. A fence may be left open if the answer was cut. For speed,
# patterns that begin with a sign are tried only at that sign, and those that begin with a word only at words that
# contain a sign; most text is neither.
_AREA = regex.compile(
    rf"""
      (?P<code> ^[ \t>]*+(?P<fence>`{{3,}}|~{{3,}}) .*? (?:^[ \t>]*(?P=fence)[`~]*(?=\s)|\Z) )
    | (?=[`$\\<]) (?:
        (?P<code> (?<!`)(?P<ticks>`+)(?!`) [^\n]{{1,2000}}? (?<!`)(?P=ticks)(?!`) )
      | (?P<latex> \$\$ .{{1,2000}}? \$\$
                | \\\[ .{{1,2000}}? \\\]
                | \\\( [^\n]{{1,2000}}? \\\)
                | \\begin\{{(?P<name>[a-zA-Z]+\*?)\}} .{{0,4000}}? \\end\{{(?P=name)\}}
                | (?<![\\$\w]) \$(?![\s\d$]) [^$\n]+ (?<![\s\\])\$(?![\d$])
                | (?<![\\$\w]) \$(?=\d[^$\n]*[\\^_=+{{]) [^$\n]+ (?<![\s\\])\$(?![\d$]) )
      | (?P<markup> <ruby\b[^<>]{{0,100}}> .{{0,1000}}? </ruby>
                | <(?P<element>[a-zA-Z][\w\-]{{0,20}})(?=[^<>]{{0,300}}?\slang\s*=){_ATTRIBUTES}\s*>
                  .{{0,1000}}? </(?P=element)>
                | </?[a-zA-Z][\w:\-]{{0,40}}+{_ATTRIBUTES}\s*/?>
                | <!-- .{{0,1000}}? --> ) )
    | (?P<markup> \{{\p{{Han}}{{1,20}}[|｜][^{{}}\n]{{1,60}}\}}
                | (?<!\p{{Han}})\p{{Han}}{{1,12}}+《[\p{{Hiragana}}\p{{Katakana}}ー]{{1,24}}》 )
    | (?P<tag> [\#＃@＠] (?<![\w&/\#@＃＠].) [\p{{L}}\p{{M}}\p{{N}}_・·]{{1,60}} )
    | (?P<path> (?=[~./\\]) (?<![\w/\\]) (?:\\\\|~[\\/]|\.{{1,2}}[\\/]|/(?=[^{_NO_NAME}]{{1,80}}/)) {_PARTS} )
    | (?P<url> (?=[hfw]) (?<![a-zA-Z0-9])
               (?: (?:https?|ftp|file)://(?:{_ANY_DOMAIN}(?::\d+)?|[a-zA-Z0-9.\-:@%_]*) | www\.[a-zA-Z0-9.\-]+ )
               {_BEHIND_HOST} )
    | (?<![\w.%+\-@/\\]) (?=[\w%+\-]++[.@:/\\][^\s]) (?:
        (?P<address> [\p{{L}}\p{{M}}\p{{N}}._%+\-]{{1,64}}+ @ {_ANY_DOMAIN} )
      | (?P<url> {_BARE_DOMAIN} {_BEHIND_HOST} )
      | (?P<path> [a-zA-Z]:[\\/] {_PARTS}
                | (?:[\w.\-]{{1,80}}+\\)+ [\w.\-]{{1,80}}
                | (?:[\w.\-]{{1,80}}+/)*+ [\w\-][\w.\-]{{0,80}}? \.(?:{_FILE_ENDINGS})(?![a-zA-Z0-9]) ) )
    """,
    regex.VERBOSE | regex.DOTALL | regex.MULTILINE | regex.VERSION1,
)

_KINDS = ("code", "latex", "markup", "address", "url", "path", "tag")

_LAST_PART = regex.compile(r"[^/?#=&\\]*\Z")
_HAS_PATH = regex.compile(r"(?:[a-z]+://)?[^/?#]*[/?#]")
_FIRST_OTHER = regex.compile(r"[^\x00-\x7F]")

# A host label, a folder or a value that names a language not written in Latin: `zh.`, `/ja/`, `=ko&`.
_NAMES_LANGUAGE = regex.compile(
    r"(?<![a-zA-Z0-9])(?:zh|yue|ja|ko|ru|uk|be|bg|sr|mk|kk|el|he|ar|fa|ur|hi|bn|ta|te|th|ka|hy|am|km|lo|my|cn|tw|hk|jp|kr"
    r"|ua|gr|il|ir|sa|eg|by|kz)(?:[_\-][a-zA-Z]{2,4})?(?![a-zA-Z0-9])"
)

_IN_URL = Limits(short=(0, 0), long=(7, 24))
_IN_PATH = Limits(short=(0, 0), long=(12, 30))


def areas_of(answer: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    """
    (start, end, kind) of each part that is not running text, in order.

    A kind is `"code"`, `"latex"`, `"markup"` (a tag with its attributes, an element that names its language, ruby),
    `"address"` (e-mail), `"url"` (also a domain), `"path"` (also a file name) or `"tag"` (a hashtag or a mention).
    If a clause follows a URL, a path or a tag without a space, the part ends before the clause.
    """
    for found in _AREA.finditer(answer, start, end):
        kind = next(name for name in _KINDS if found[name] is not None)
        yield found.start(), _end_without_clause(found.group(), kind) + found.start(), kind


def plain_areas(answer: str, start: int, end: int) -> Iterable[tuple[int, int]]:
    """(start, end) of the running text between the parts that [`areas_of`] finds."""
    for area_start, area_end, _ in areas_of(answer, start, end):
        yield start, area_start
        start = area_end
    yield start, end


def _end_without_clause(area: str, kind: str) -> int:
    """Length of the area without a clause at its end, which is running text that follows without a space."""
    if kind not in ("url", "path", "tag") or area.isascii():
        return len(area)
    if kind == "url" and not _HAS_PATH.match(area):
        return len(area)
    last = _LAST_PART.search(area)
    other = _FIRST_OTHER.search(area, last.start()) if last else None
    if other is None:
        return len(area)
    text = area[other.start() :]
    if kind == "url" and not _names_language(area[: other.start()]):
        glued = is_clause(text, _IN_URL)
    elif kind == "url":
        glued = says_something(text)
    else:
        glued = is_clause(text, _IN_PATH)
    return other.start() if glued else len(area)


def _names_language(url: str) -> bool:
    return not url.isascii() or _NAMES_LANGUAGE.search(url) is not None
