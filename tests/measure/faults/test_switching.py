import pytest

from sae_posttrain.measure.faults.scripts import can_measure
from sae_posttrain.measure.faults.switching import find_switches, right_language

# (lang, answer, prompt, [(text, script, reason)]): what stands in the answer, in order, and why it is excused.
CASES = {
    # A switch in the middle of an answer, in every direction that the scripts show.
    "zh word in ko": ("ko", "설정을 저장하려면 保存 버튼을 누르세요.", "", [("保存", "Han", None)]),
    "zh sentence in ko": (
        "ko",
        "먼저 파일을 엽니다. 然后点击保存。 끝.",
        "",
        [("然后点击保存", "Han", None)],
    ),
    "zh in ru": ("ru", "Нажмите кнопку 确定, чтобы сохранить.", "", [("确定", "Han", None)]),
    "zh in en": ("en", "Click the button, 然后 restart the program.", "", [("然后", "Han", None)]),
    "zh in es": ("es", "Abra el menú y 选择 la opción.", "", [("选择", "Han", None)]),
    "zh inside a word in ru": ("ru", "Это очень важ重но.", "", [("重", "Han", None)]),
    "ko in zh": ("zh", "请点击그리고保存。", "", [("그리고", "Hangul", None)]),
    "ru in zh": ("zh", "请点击 кнопку 保存。", "", [("кнопку", "Cyrillic", None)]),
    "ru in ko": ("ko", "버튼을 нажмите 하세요.", "", [("нажмите", "Cyrillic", None)]),
    "kana in zh": ("zh", "这是の问题", "", [("の", "Hiragana", None)]),
    "katakana with its long mark in zh": ("zh", "打开コンピューター", "", [("コンピューター", "Katakana", None)]),
    "thai in en": ("en", "Say สวัสดี to them.", "", [("สวัสดี", "Thai", None)]),
    "arabic in en": ("en", "He answered نعم and left.", "", [("نعم", "Arabic", None)]),
    "script without a name of its own": ("en", "The rune ᚠ here.", "", [("ᚠ", "Other", None)]),
    "two scripts without a gap": ("en", "see 漢かな now", "", [("漢", "Han", None), ("かな", "Hiragana", None)]),
    # Han in Japanese: only forms that Japanese does not have.
    "simplified name in ja": ("ja", "習近平は习近平とも書く。", "", [("习近平", "Han", None)]),
    "japanese": ("ja", "図書館で本を読みます。時々、東京へ行く。〇〇さん", "", []),
    "kanji that cp932 lacks": ("ja", "剝がす、頰、𠮟る、塡補、森鷗外、𠮷野家、噓", "", []),
    "chinese in ja": ("ja", "次に保存します。你应该点击按钮。", "", [("你应该点击按钮", "Han", None)]),
    "traditional chinese in ja is missed": ("ja", "習近平と圖書館", "", []),
    "hangul in ja": ("ja", "次に 그리고 保存します。", "", [("그리고", "Hangul", None)]),
    # Hanja in Korean: foreign, excused as a gloss.
    "hanja gloss": ("ko", "우리의 조국(祖國)을 사랑한다.", "", [("祖國", "Han", "bracket")]),
    "hanja gloss in full-width brackets": ("ko", "조국（祖國）", "", [("祖國", "Han", "bracket")]),
    "hanja without brackets": ("ko", "우리의 祖國을 사랑한다.", "", [("祖國", "Han", None)]),
    # Characters that belong to no script, or to one that is allowed.
    "company sign": ("ko", "㈜한국과 ㈱일본", "", []),
    "company sign in en": ("en", "Signed by ㈜ Samsung", "", [("㈜", "Hangul", None)]),
    "signs": ("ru", "5 µm, № 7, 10 м², 20 ℃, ①, ½, €", "", []),
    "emoji": ("en", "Great 🎉👍🏽 ㊗️ 🇨🇳 👩‍💻 done", "", []),
    "full-width punctuation": ("en", "Yes，no。（really）！？：；「ok」・～", "", []),
    "full-width latin": ("zh", "打开ＡＢＣ１２３", "", []),
    "latin names": ("ko", "Microsoft Excel을 엽니다.", "", []),
    "iteration mark in en": ("en", "The mark 々 repeats.", "", [("々", "Han", None)]),
    "replacement character": ("ko", "설정을 \ufffd\ufffd 저장", "", []),
    "accents": ("es", "El niño comió piñón; naïve, Ⅳ, 1º", "", []),
    "greek symbol": (
        "en",
        "Let α and Ω be angles, Δx small.",
        "",
        [("α", "Greek", "symbol"), ("Ω", "Greek", "symbol"), ("Δ", "Greek", "symbol")],
    ),
    "greek word": ("en", "Let λόγος be.", "", [("λόγος", "Greek", None)]),
    # Code, URLs, LaTeX.
    "comment in fenced code": (
        "ko",
        "다음 코드:\n```python\n# 打开文件\nopen(x)\n```\n이것은 保存 입니다.",
        "",
        [("打开文件", "Han", "code"), ("保存", "Han", None)],
    ),
    "code cut at the length limit": ("en", "Run:\n```sh\n# 保存\necho", "", [("保存", "Han", "code")]),
    "tilde fence": ("en", "Run:\n~~~\n保存\n~~~\n重启", "", [("保存", "Han", "code"), ("重启", "Han", None)]),
    "inline code": (
        "ru",
        "Введите `print('你好')` и ``a`好`` всё",
        "",
        [("你好", "Han", "code"), ("好", "Han", "code")],
    ),
    "url": (
        "en",
        "See https://zh.wikipedia.org/wiki/中文，然后 restart",
        "",
        [("中文", "Han", "url"), ("然后", "Han", None)],
    ),
    "text right behind a url": ("en", "See https://a.com/b然后, ok", "", [("然后", "Han", None)]),
    "text behind a link": ("en", "See [it](https://a.com/b)然后, ok", "", [("然后", "Han", None)]),
    "brackets in a url": ("en", "See https://a.com/w/中_(文) ok", "", [("中", "Han", "url"), ("文", "Han", "url")]),
    "text behind a closing fence": ("en", "Run\n```\nx\n``` 然后", "", [("然后", "Han", None)]),
    "text right behind a host": ("en", "See https://example.com然后 restart", "", [("然后", "Han", None)]),
    "latex": (
        "en",
        r"So $x_{最大} = 5$ and \[ y = \text{个} \] and $$z = \text{米}$$ 米",
        "",
        [("最大", "Han", "latex"), ("个", "Han", "latex"), ("米", "Han", "latex"), ("米", "Han", None)],
    ),
    "prices are not latex": ("en", "It costs $5 或者 $6 now", "", [("或者", "Han", None)]),
    # Copied from the prompt.
    "prompt copy": (
        "en",
        "保存 means to save, 关闭 to close.",
        "What does 保存 mean?",
        [("保存", "Han", "prompt"), ("关闭", "Han", None)],
    ),
    "more than the prompt copy": ("en", "保存文件 means to save", "What does 保存 mean?", [("保存文件", "Han", None)]),
    "prompt in decomposed form": (
        "en",
        "The word 한국 is",
        "What is \u1112\u1161\u11ab\u1100\u116e\u11a8?",
        [("한국", "Hangul", "prompt")],
    ),
    # Quotation marks and brackets.
    "corner brackets": ("ko", "중국어로 「你好」라고 합니다.", "", [("你好", "Han", "quote")]),
    "quotation marks": (
        "en",
        "The button “保存” or \"关闭\" or '确定' works.",
        "",
        [("保存", "Han", "quote"), ("关闭", "Han", "quote"), ("确定", "Han", "quote")],
    ),
    "guillemets": ("ru", "Кнопка «确定» закрывает окно.", "", [("确定", "Han", "quote")]),
    "between two quotations": ("en", 'Use "a" 然后 "b".', "", [("然后", "Han", None)]),
    "apostrophes are not quotation marks": ("en", "don't 然后 it's", "", [("然后", "Han", None)]),
    "gloss": ("en", "Confucius (孔子) taught.", "", [("孔子", "Han", "bracket")]),
    "gloss behind bold text": ("en", "**Confucius** (孔子) taught.", "", [("孔子", "Han", "bracket")]),
    "bracket behind foreign text is no gloss": (
        "ko",
        "그리고 请保存（然后关闭）",
        "",
        [("请保存", "Han", None), ("然后关闭", "Han", None)],
    ),
    "bracket behind nothing is no gloss": ("en", "Done.\n(请保存)", "", [("请保存", "Han", None)]),
    "quotation that is the whole line": (
        "en",
        "「你好，我是助手」",
        "",
        [("你好", "Han", None), ("我是助手", "Han", None)],
    ),
    "quotation of a paragraph": ("en", f"He said “{'你' * 31}” then.", "", [("你" * 31, "Han", None)]),
    "link text": ("en", "See [文档](https://example.com/文档).", "", [("文档", "Han", None), ("文档", "Han", "url")]),
    # Wider set of languages.
    "uk": ("uk", "Збережіть файл ґ і їжак", "", []),
    "el": ("el", "Αποθηκεύστε το αρχείο Word", "", []),
    "he": ("he", "שמור את הקובץ", "", []),
    "hi": ("hi", "फ़ाइल सहेजें और 保存 करें", "", [("保存", "Han", None)]),
    "fa": ("fa", "فایل را ذخیره کنید。", "", []),
    "tr": ("tr", "Dosyayı kaydedin, ığşçö", "", []),
    "th": ("th", "บันทึกไฟล์ใน Word", "", []),
    "empty": ("ko", "", "", []),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_spans_and_their_reasons(case):
    lang, answer, prompt, expected = case
    switches = find_switches(answer, lang=lang, prompt=prompt)
    assert [(span.text, span.script, span.excused) for span in switches.spans] == expected
    assert all(answer[span.start : span.end] == span.text for span in switches.spans)
    assert switches.any == bool(expected)
    assert switches.unexpected == any(reason is None for _, _, reason in expected)


def test_published_rule_excuses_nothing():
    switches = find_switches("Type `保存` (保存).", lang="en", prompt="保存?")
    assert switches.any
    assert not switches.unexpected
    assert (switches.num_any, switches.num_unexpected) == (4, 0)


def test_thresholds_count_the_characters_of_the_whole_answer():
    switches = find_switches("하나 保存 둘 关 셋 闭 `文件` 넷", lang="ko")
    # 保存 + 关 + 闭 = 4 unexpected characters, 文件 is code: 6 in all
    assert [switches.any_at_least(k) for k in (1, 2, 5, 6, 7)] == [True, True, True, True, False]
    assert [switches.unexpected_at_least(k) for k in (1, 2, 4, 5)] == [True, True, True, False]


def test_characters_are_counted_per_script_and_without_marks():
    switches = find_switches("ab 한국 保存 コーヒー 12, 가 é", lang="ko")
    # ー belongs to both kana and is not counted
    assert switches.script_counts == {"Latin": 3, "Hangul": 3, "Han": 2, "Katakana": 2}


def test_decomposed_text_counts_like_composed_text():
    decomposed = "Write \u1112\u1161\u11ab\u1100\u116e\u11a8 and и\u0306 cafe\u0301"  # 한국, й, café
    switches = find_switches(decomposed, lang="en")
    # W r i t e, a n d, c a f é
    assert switches.script_counts == {"Latin": 12, "Hangul": 2, "Cyrillic": 1}
    assert [decomposed[span.start : span.end] for span in switches.spans] == [decomposed[6:12], decomposed[17:19]]
    assert switches.num_any == 3


def test_replacement_characters_are_counted_apart():
    switches = find_switches("설정을 \ufffd\ufffd 저장 \ufffd", lang="ko")
    assert switches.num_replacement_chars == 3
    assert not switches.any


@pytest.mark.parametrize(
    ("answer", "segments"),
    [
        ("<think>用户想要</think>답은 保存", ["think", "answer"]),
        ("用户想要</think>답은 保存", ["think", "answer"]),  # the chat template had opened it
        ("<think>用户想要", ["think"]),  # cut at the length limit
        ("앞 保存 <think>用户\n```\n代码</think>답", ["answer", "think", "think"]),
    ],
)
def test_thinking_is_a_segment_of_its_own(answer, segments):
    switches = find_switches(answer, lang="ko")
    assert [span.segment for span in switches.spans] == segments
    assert switches.any
    assert switches.unexpected == ("answer" in segments)
    assert switches.num_unexpected_in_think == (4 if "用户想要" in answer else 2)


def test_reference_decides_what_is_legitimate():
    spans = find_switches("Er heißt 习近平, 然后", lang="de", reference="Der Name ist 习近平.").spans
    assert [(span.text, span.excused) for span in spans] == [("习近平", "reference"), ("然后", None)]


def test_target_language_restricts_what_counts():
    answer = "설정 保存 кнопка かな"
    assert [span.text for span in find_switches(answer, lang="ko", target_lang="zh").spans] == ["保存"]
    assert [span.text for span in find_switches(answer, lang="ko", target_lang="ru").spans] == ["кнопка"]
    assert [span.text for span in find_switches(answer, lang="ko", target_lang="ja").spans] == ["かな"]
    assert [span.text for span in find_switches(answer, lang="ko", target_scripts=["Han", "Cyrillic"]).spans] == [
        "保存",
        "кнопка",
    ]
    # the counts are of the whole answer all the same
    assert find_switches(answer, lang="ko", target_lang="ru").script_counts["Han"] == 2


def test_chinese_in_japanese_can_be_the_target():
    assert [span.text for span in find_switches("次に选择します", lang="ja", target_lang="zh").spans] == ["选择"]


def test_allowed_scripts_replace_those_of_the_language():
    assert not find_switches("ᠮᠣᠩᠭᠣᠯ", lang="mn-Mong", allowed_scripts=["Mongolian"]).any
    assert find_switches("保存 file", lang="zh", allowed_scripts=["Han"]).spans[0].text == "file"
    assert find_switches("保存 file", lang="zh", allowed_scripts=["Han"], target_lang="en").num_any == 4
    assert not find_switches("abc", lang="tlh", allowed_scripts="Latin").any


def test_region_of_a_language_is_ignored():
    assert not find_switches("圖書館", lang="zh-TW").any
    assert not find_switches("圖書館", lang="zh_Hant").any
    assert right_language("Olá", lang="pt-BR")


def test_unknown_language_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown language 'xx'. Known: .*ko.*zh.*allowed_scripts="):
        find_switches("abc", lang="xx")
    with pytest.raises(ValueError, match="Unknown language 'xx'"):
        find_switches("abc", lang="ko", target_lang="xx")
    with pytest.raises(ValueError, match="Unknown language None"):
        right_language("abc", lang=None)


def test_unknown_script_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`target_scripts` names no known script: \['Chinese'\]. Known: .*Han"):
        find_switches("abc", lang="ko", target_scripts=["Chinese"])


@pytest.mark.parametrize(("lang", "target"), [("ko", "en"), ("uk", "ru"), ("zh", "zh"), ("yue", "zh"), ("fr", "es")])
def test_target_that_the_script_cannot_show_is_refused(lang, target):
    assert not can_measure(lang, target)
    with pytest.raises(ValueError, match="cannot be seen by script"):
        find_switches("abc", lang=lang, target_lang=target)


def test_target_language_and_scripts_exclude_each_other():
    with pytest.raises(ValueError, match="not both"):
        find_switches("abc", lang="ko", target_lang="zh", target_scripts=["Han"])


@pytest.mark.parametrize(
    ("lang", "answer", "expected"),
    [
        ("zh", "请点击保存按钮。", True),
        ("zh", "点击 OK", True),
        ("zh", "Click the 保存 button", False),
        ("zh", "次に保存ボタンをクリックします。", False),  # Japanese: 2 Han of 14
        ("zh", "运行 `print('hello world, this is long code')`", True),
        ("zh", "<think>The user wants me to save the file.</think>请保存", True),
        ("ko", "파일을 저장하세요", True),
        ("ko", "Save the file", False),
        ("ru", "Сохраните файл", True),
        ("ja", "保存ボタンをクリックします", True),
        ("ja", "東京", True),
        ("ja", "请点击保存按钮然后关闭", False),  # Chinese: no kana
        ("ja", "东京", False),
        ("en", "Save the file", True),
        ("en", "Guarda el archivo", True),  # same script: not told apart
        ("es", "请点击保存按钮", False),
        ("en", "", None),
        ("en", "1 + 1 = 2 🎉", None),
        ("zh", "```\ncode\n```", None),
    ],
)
def test_right_language_goes_by_the_majority_of_words(lang, answer, expected):
    assert right_language(answer, lang=lang) is expected
