"""
Names of languages: one code for `zh-CN`, `zho_Hans`, `Chinese` and `ZH `, and the scripts of each language.

Tags are read as BCP 47 has them (https://www.rfc-editor.org/info/bcp47), in any case, with `-` or `_`, and with ISO
639-1, 639-2 and 639-3 codes; English names are understood too. A macrolanguage stands for its usual member (`zho` and
`cmn` are `zh`), unless that member has a code of its own here (`yue`, `nb`, `nn`). A region does not make another
language; a script does where it is not the usual one.

The table is our own, because it must say which scripts show a switch. `langcodes` would add 5 MB of names of languages
without this information.
"""

import difflib
import re
from collections.abc import Collection, Container, Iterable, Sequence
from functools import lru_cache

_LANGUAGES = """
en  | eng                     | Latin    | english, american english, british english
fr  | fra fre                 | Latin    | french
es  | spa                     | Latin    | spanish, castilian
pt  | por                     | Latin    | portuguese, brazilian portuguese, european portuguese
de  | deu ger                 | Latin    | german
vi  | vie                     | Latin    | vietnamese
it  | ita                     | Latin    | italian
nl  | nld dut                 | Latin    | dutch, flemish
ca  | cat                     | Latin    | catalan, valencian
gl  | glg                     | Latin    | galician
eu  | eus baq                 | Latin    | basque
ro  | ron rum mo mol          | Latin    | romanian, moldavian, moldovan
pl  | pol                     | Latin    | polish
cs  | ces cze                 | Latin    | czech
sk  | slk slo                 | Latin    | slovak
sl  | slv                     | Latin    | slovenian, slovene
hr  | hrv                     | Latin    | croatian
bs  | bos                     | Latin    | bosnian
sq  | sqi alb als             | Latin    | albanian, tosk albanian
hu  | hun                     | Latin    | hungarian
fi  | fin                     | Latin    | finnish
et  | est ekk                 | Latin    | estonian
lv  | lav lvs                 | Latin    | latvian, standard latvian
lt  | lit                     | Latin    | lithuanian
sv  | swe                     | Latin    | swedish
da  | dan                     | Latin    | danish
nb  | nob                     | Latin    | norwegian bokmål, norwegian bokmal, bokmål, bokmal
nn  | nno                     | Latin    | norwegian nynorsk, nynorsk
no  | nor                     | Latin    | norwegian
is  | isl ice                 | Latin    | icelandic
ga  | gle                     | Latin    | irish
cy  | cym wel                 | Latin    | welsh
mt  | mlt                     | Latin    | maltese
tr  | tur                     | Latin    | turkish
az  | aze azj                 | Latin    | azerbaijani, azeri, north azerbaijani
uz  | uzb uzn                 | Latin    | uzbek, northern uzbek
id  | ind in                  | Latin    | indonesian
ms  | msa may zsm zlm         | Latin    | malay, standard malay
jv  | jav jw                  | Latin    | javanese
tl  | tgl fil                 | Latin    | tagalog, filipino
sw  | swa swh                 | Latin    | swahili
af  | afr                     | Latin    | afrikaans
yo  | yor                     | Latin    | yoruba
ha  | hau                     | Latin    | hausa
zu  | zul                     | Latin    | zulu
eo  | epo                     | Latin    | esperanto
la  | lat                     | Latin    | latin
ru  | rus                     | Cyrillic | russian
uk  | ukr                     | Cyrillic | ukrainian
be  | bel                     | Cyrillic | belarusian
bg  | bul                     | Cyrillic | bulgarian
mk  | mkd mac                 | Cyrillic | macedonian
kk  | kaz                     | Cyrillic | kazakh
ky  | kir                     | Cyrillic | kyrgyz, kirghiz
tg  | tgk                     | Cyrillic | tajik
mn  | mon khk                 | Cyrillic | mongolian, halh mongolian
sr  | srp                     | Cyrillic Latin         | serbian
zh  | zho chi cmn             | Han      | chinese, mandarin, mandarin chinese, simplified chinese, traditional chinese
yue |                         | Han      | cantonese, yue chinese
ja  | jpn                     | Hiragana Katakana Han  | japanese
ko  | kor                     | Hangul   | korean
ar  | ara arb                 | Arabic   | arabic, modern standard arabic, standard arabic
fa  | fas per pes prs         | Arabic   | persian, farsi, dari, western persian
ur  | urd                     | Arabic   | urdu
ps  | pus pbt                 | Arabic   | pashto
ug  | uig                     | Arabic   | uyghur, uighur
he  | heb iw                  | Hebrew   | hebrew
yi  | yid ydd ji              | Hebrew   | yiddish, eastern yiddish
el  | ell gre                 | Greek    | greek, modern greek
hy  | hye arm                 | Armenian | armenian
ka  | kat geo                 | Georgian | georgian
am  | amh                     | Ethiopic | amharic
hi  | hin                     | Devanagari | hindi
mr  | mar                     | Devanagari | marathi
ne  | nep npi                 | Devanagari | nepali
sa  | san                     | Devanagari | sanskrit
bn  | ben                     | Bengali  | bengali, bangla
as  | asm                     | Bengali  | assamese
pa  | pan                     | Gurmukhi | punjabi, panjabi, eastern panjabi
gu  | guj                     | Gujarati | gujarati
or  | ori ory                 | Oriya    | odia, oriya
ta  | tam                     | Tamil    | tamil
te  | tel                     | Telugu   | telugu
kn  | kan                     | Kannada  | kannada
ml  | mal                     | Malayalam | malayalam
si  | sin                     | Sinhala  | sinhala, sinhalese
th  | tha                     | Thai     | thai
lo  | lao                     | Lao      | lao, laotian
my  | mya bur                 | Myanmar  | burmese, myanmar
km  | khm                     | Khmer    | khmer, cambodian
bo  | bod tib                 | Tibetan  | tibetan, standard tibetan
"""
"""Code | further codes | the scripts that a text may be in, the usual one first | English names."""

_SCRIPTS = """
Latn Latin, Cyrl Cyrillic, Hans Han, Hant Han, Hani Han, Hanb Han, Hira Hiragana, Kana Katakana, Hang Hangul,
Jamo Hangul, Arab Arabic, Aran Arabic, Hebr Hebrew, Grek Greek, Armn Armenian, Geor Georgian, Ethi Ethiopic,
Deva Devanagari, Beng Bengali, Guru Gurmukhi, Gujr Gujarati, Orya Oriya, Taml Tamil, Telu Telugu, Knda Kannada,
Mlym Malayalam, Sinh Sinhala, Thai Thai, Laoo Lao, Mymr Myanmar, Khmr Khmer, Tibt Tibetan, Bopo Bopomofo, Yiii Yi,
Syrc Syriac, Thaa Thaana, Mong Mongolian, Cher Cherokee, Cans Canadian_Aboriginal, Tfng Tifinagh, Java Javanese
"""
"""ISO 15924 code and Unicode name of each script that is distinguished."""

# Regions that use another script than the usual one, although no subtag says so (CLDR's likely subtags).
_SCRIPT_OF_REGION = {
    **dict.fromkeys(["pa-pk", "uz-af", "az-ir", "az-iq", "kk-cn", "kk-ir", "ky-cn", "tg-pk"], "Arab"),
    **dict.fromkeys(["az-ru", "ug-kz", "ug-mn"], "Cyrl"),
    "mn-cn": "Mong",
}

# Languages of their own in ISO 639-3 that are written in another script than their kin.
_SCRIPT_OF_CODE = {"pnb": ("pa", "Arab"), "azb": ("az", "Arab"), "uzs": ("uz", "Arab"), "mvf": ("mn", "Mong")}

# Codes of countries that users mistake for codes of languages, for hints only: `kr` is Kanuri, `se` Northern Sami.
_LANGUAGE_OF_COUNTRY = {
    **{"cn": "zh", "tw": "zh", "jp": "ja", "kr": "ko", "kp": "ko", "ua": "uk", "gr": "el", "cz": "cs", "dk": "da"},
    **{"us": "en", "gb": "en", "br": "pt", "mx": "es", "at": "de", "il": "he", "ir": "fa", "vn": "vi", "rs": "sr"},
}


def _rows() -> list[tuple[str, list[str], tuple[str, ...], list[str]]]:
    rows = []
    for line in _LANGUAGES.strip().splitlines():
        code, codes, scripts, names = (cell.strip() for cell in line.split("|"))
        rows.append((code, codes.split(), tuple(scripts.split()), [name.strip() for name in names.split(",")]))
    return rows


OWN_SCRIPTS: dict[str, tuple[str, ...]] = {code: scripts for code, _, scripts, _ in _rows()}
"""
Scripts each language may be written in, by its code: ISO 639-1, or 639-3 where there is none. Latin is allowed beside
them in every language.
"""

ENGLISH_NAMES: dict[str, str] = {code: names[0].title() for code, _, _, names in _rows()}
_CODE: dict[str, str] = {each: code for code, codes, _, _ in _rows() for each in (code, *codes)}
_NAME: dict[str, str] = {name.replace(" ", "-"): code for code, _, _, names in _rows() for name in names}
_SCRIPT: dict[str, str] = dict(pair.split() for pair in _SCRIPTS.replace("\n", " ").strip().split(","))

_SUBTAG_OF_SCRIPT: dict[str, str] = {
    **{code.lower(): code for code in _SCRIPT},
    **{name.lower(): code for code, name in reversed(_SCRIPT.items())},
    **{"simplified": "Hans", "traditional": "Hant", "jpan": "Jpan", "hrkt": "Hrkt", "kore": "Kore"},
}
_MIXED = {"Jpan": ("Hiragana", "Katakana", "Han"), "Hrkt": ("Hiragana", "Katakana"), "Kore": ("Hangul",)}

# ISO 3166, and what people write besides. Listed, since `en-zh` is a pair of languages and no English of a country.
_REGIONS = frozenset(
    """
    ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bl bm bn bo bq br bs bt bv bw by bz ca
    cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg eh er es et fi fj fk fm fo fr ga
    gb gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp
    ke kg kh ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mf mg mh mk ml mm mn mo mp mq mr ms
    mt mu mv mw mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs
    ru rw sa sb sc sd se sg sh si sj sk sl sm sn so sr ss st sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw
    tz ua ug um us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw eu uk un xk
    """.split()
)
_NUMBER_OF_REGION = re.compile(r"\d{3}")
_SPELLINGS = frozenset(["1901", "1996", "valencia"])


def canonical_language(name: str) -> str:
    """
    The code that is used for a language here.

    `zh` for `zh-CN`, `zh_Hant`, `zho_Hans`, `cmn`, `ZH ` and `Chinese`; `ko` for `kor_Hang` and `Korean`. A script
    that the language is usually not written in is kept: `uz-Cyrl`, `ru-Latn`, `pa-Arab` (also for `pa-PK`).

    Args:
        name: A language tag, a code of ISO 639, or an English name.

    Returns the code of the language, one of [`OWN_SCRIPTS`], followed by the subtag of an unusual script.
    """
    code, subtag = _parse(name)
    return f"{code}-{subtag}" if subtag else code


def scripts_of(name: str) -> tuple[str, ...]:
    """
    Unicode's names of the scripts that a text in a language may be in, the usual one first; for a tag with an unusual
    script, that script alone.
    """
    code, subtag = _parse(name)
    return _scripts_of_subtag(subtag) if subtag else OWN_SCRIPTS[code]


@lru_cache(maxsize=4096)
def language_key(name: str) -> str:
    """
    Key by which names of groups are compared: the canonical language. If a group is not a language (`"loop"`,
    `"register"`), the key is its name in lower case, without surrounding spaces.
    """
    try:
        return canonical_language(name)
    except ValueError:
        return name.strip().casefold()


def named_group(name: str, groups: Iterable[str], *, alike: Container[str] = ()) -> str | None:
    """
    The group that a name such as `"zh-CN"` means: the group with exactly this name, otherwise the group of the same
    language; `None` if none is meant. If several have the language, any of them is returned if they are `alike`.
    """
    groups = tuple(groups)
    if name in groups:
        return name
    key = language_key(name)
    meant = [group for group in groups if language_key(group) == key]
    if len(meant) > 1 and not all(group in alike for group in meant):
        raise ValueError(
            f"{name!r} may be any of the groups {', '.join(map(repr, meant))}. Call it exactly as one of them."
        )
    return meant[0] if meant else None


def names_of_targets(groups: Collection[str], targets: Sequence[str]) -> dict[str, str]:
    """
    Map each group of a data set that means a target's language by another name to that target: `zh-CN` to `zh`.

    If the data distinguish several regions and the target is one of them (`zh-TW` beside `zh-CN`), the other regions
    stay separate groups.
    """
    renamed: dict[str, str] = {}
    for target in targets:
        if target not in groups or target == language_key(target):
            alike = [group for group in groups if language_key(group) == language_key(target)]
            renamed |= {group: target for group in alike if group not in targets}
    return renamed


def language_hint(name: object) -> str:
    """A hint for the user about an unknown language: the known codes, and the most similar of them."""
    near = nearest_language(name) if isinstance(name, str) else None
    return f"Known: {', '.join(sorted(OWN_SCRIPTS))}.{f' Did you mean {near!r}?' if near else ''}"


def nearest_language(name: str, *, cutoff: float = 0.6) -> str | None:
    """
    The code of the language that an unknown name probably means: `zh` for `cn` and `chinesse`; `None` if none is
    similar.
    """
    first = (_parts(name) or [""])[0]
    if first in _LANGUAGE_OF_COUNTRY:
        return _LANGUAGE_OF_COUNTRY[first]
    if first in _CODE:
        return _CODE[first]
    known = {**_CODE, **_NAME}
    for written in ("-".join(_parts(name)), first):
        for near in difflib.get_close_matches(written, known, n=1, cutoff=cutoff):
            return known[near]
    return None


def _parse(name: str) -> tuple[str, str | None]:
    if not isinstance(name, str):
        raise ValueError(_unknown(name))
    return _parse_text(name)


@lru_cache(maxsize=4096)
def _parse_text(name: str) -> tuple[str, str | None]:
    """Code of the language, and subtag of a script that is not the usual one."""
    code, subtag, rest = _language_of(_parts(name))
    if code is None:
        raise ValueError(_unknown(name))
    if len(rest) and code == "zh" and rest[0] in ("yue", "cmn"):  # zh-yue, a language with its macrolanguage before it
        code, rest = _CODE[rest[0]], rest[1:]
    given = False
    for part in rest:
        if part in _SUBTAG_OF_SCRIPT and not given:
            subtag, given = _SUBTAG_OF_SCRIPT[part], True
        elif part in _REGIONS:
            subtag = subtag or _SCRIPT_OF_REGION.get(f"{code}-{part}")
        elif part not in _SPELLINGS and not _NUMBER_OF_REGION.fullmatch(part):
            raise ValueError(_unknown(name, part))
    if subtag is None or _is_usual(code, _scripts_of_subtag(subtag)):
        return code, None
    return code, subtag


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"[\s_\-(),/]+", name.lower()) if part]


def _language_of(parts: list[str]) -> tuple[str | None, str | None, list[str]]:
    """Code of the language, the script that this code implies, and the remaining parts."""
    if not parts:
        return None, None, []
    if parts[0] in _SCRIPT_OF_CODE:
        return *_SCRIPT_OF_CODE[parts[0]], parts[1:]
    if parts[0] in _CODE:
        return _CODE[parts[0]], None, parts[1:]
    for length in range(len(parts), 0, -1):
        named = _NAME.get("-".join(parts[:length]))
        if named is not None:
            return named, None, parts[length:]
    return None, None, []


def _scripts_of_subtag(subtag: str) -> tuple[str, ...]:
    return _MIXED.get(subtag) or (_SCRIPT[subtag],)


def _is_usual(code: str, scripts: tuple[str, ...]) -> bool:
    return scripts == OWN_SCRIPTS[code] or scripts == OWN_SCRIPTS[code][:1] != ("Hiragana",)


def _unknown(name: object, part: str | None = None) -> str:
    why = f": {part!r} is neither a script nor a region" if part else ""
    return f"Unknown language {name!r}{why}. {language_hint(name)}"
