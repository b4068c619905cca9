"""Lines in another language of the same script; real ones of the model, and answers given to an evaluation."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("py3langid", reason="languages of lines need py3langid: pip install 'sae_posttrain[lid]'")

from sae_posttrain import LanguageConsistencyReward
from sae_posttrain.measure.answers.summary import format_evaluation
from sae_posttrain.measure.faults.line_language import (
    MIN_PROBABILITY,
    MIN_WORDS,
    check_suspects,
    line_languages,
    line_pass,
    suspects_of,
)
from sae_posttrain.measure.report.data import Section
from sae_posttrain.measure.report.runs import read_run
from sae_posttrain.measure.report.tables import summary_table
from sae_posttrain.measure.statistics.intervals import wilson

ENGLISH = "Click the button to save the current document."
SPANISH = "Haga clic en el botón para guardar el documento actual."
RUSSIAN = "Нажмите кнопку, чтобы сохранить текущий документ на диске."
UKRAINIAN = "Натисніть кнопку, щоб зберегти поточний документ на диску."


def found(answer, lang="en", suspects=("es",), **settings):
    """Language and text of each judged line."""
    return [(line.language, line.text) for line in line_languages(answer, lang=lang, suspects=suspects, **settings)]


def test_a_line_of_another_language_is_found_where_it_stands():
    answer = f"{ENGLISH}\n\n  {SPANISH}\n{ENGLISH}"
    lines = line_languages(answer, lang="en", suspects=["es"])
    assert [line.language for line in lines] == ["en", "es", "en"]
    assert [line.is_foreign("en") for line in lines] == [False, True, False]
    assert all(answer[line.start : line.end] == line.text for line in lines)
    assert lines[1].text == SPANISH and lines[1].probability > MIN_PROBABILITY
    assert line_pass(answer, lang="en", suspects=["es"]) is False
    assert line_pass(f"{ENGLISH}\n{ENGLISH}", lang="en", suspects=["es"]) is True


def test_sentences_of_a_line_are_told_apart_and_short_ones_go_with_the_one_before():
    assert found(f"{ENGLISH} {SPANISH} {ENGLISH}") == [("en", ENGLISH), ("es", SPANISH), ("en", ENGLISH)]
    assert found(f"{ENGLISH} Then close it. {SPANISH}") == [("en", f"{ENGLISH} Then close it."), ("es", SPANISH)]
    assert found(f"Now. {SPANISH}") == [("es", f"Now. {SPANISH}")]


def test_cyrillic_neighbours_are_told_apart_too():
    assert found(f"{RUSSIAN}\n{UKRAINIAN}", lang="ru", suspects=["uk"]) == [("ru", RUSSIAN), ("uk", UKRAINIAN)]


@pytest.mark.parametrize(
    "line",
    [
        "Guardar el documento",  # too few words
        "```\nel documento se guarda en la carpeta\n```",
        "<think>el documento se guarda en la carpeta actual</think>",
        "It says «el documento se guarda aquí».",
        "Barra de Herramientas Estándar (el documento se guarda aquí)",
        "https://example.org/el/documento/se/guarda/en/la/carpeta",
        "Microsoft Office Tres Cuatro Cinco Seis Siete",
        "Guardar el_documento com.sun.star fileName A4 de la UNO",
        "打开文件然后点击保存按钮再关闭",  # of a script that belongs to neither: the other measure's
    ],
)
def test_what_is_no_running_text_is_not_judged(line):
    assert found(line) == []
    assert line_pass(line, lang="en", suspects=["es"]) is None


LISTS = {
    "bullets": ("es", "- Open the menu\n- Choose a font\n- Press the key\n- Close it", False),
    "numbered": ("es", "1. Open the menu\n2. Choose a font\n3. Press the key", False),
    "own bullets": ("es", "- Abra el menú\n- Elija una fuente\n- Pulse la tecla\n- Ciérrelo ya", True),
    "bullets of another in the middle of the own": (
        "es",
        "\n".join(
            ["- Abra el menú\n- Elija una fuente\n- Pulse la tecla\n- Cierre la ventana"]
            + ["- Open the menu\n- Choose the font\n- Press the key\n- Close the window"] * 2
        ),
        False,
    ),
    "short lines between long ones": ("es", f"{SPANISH}\nOpen the menu\n{SPANISH}\nChoose the font", False),
    "title": ("es", f"# How To Save The Document\n{SPANISH}", False),
    "titles": ("es", f"## Opening The File\n{SPANISH}\n## Closing The Window\n{SPANISH}", False),
    "own titles": ("en", f"## Opening The File\n{ENGLISH}\n## Closing The Window\n{ENGLISH}", True),
    "capitals": ("es", f"{SPANISH}\nPLEASE WAIT UNTIL THE COPY IS DONE", False),
    "short capitals": ("es", f"{SPANISH}\nPRESS THE KEY\n{SPANISH}\nCLOSE THE WINDOW", False),
    "own capitals": ("es", f"{SPANISH}\nESPERE HASTA QUE LA COPIA ESTÉ LISTA", True),
    "spanish in english": ("en", "- Abra el menú\n- Elija una fuente\n- Pulse la tecla", False),
    "ukrainian in russian": ("ru", "- Відкрийте меню та\n- Виберіть шрифт і\n- Натисніть цю клавішу", False),
    "english in chinese": ("zh", "- Open the menu\n- Choose a font\n- Press the key", False),
    "names": ("es", f"{SPANISH}\n- Microsoft Word\n- Google Docs\n- Mozilla Firefox\n- Adobe Reader\n- Skype", True),
    "acronyms": ("es", f"{SPANISH}\n- HTML\n- JSON UTF ASCII\n- PDF XML\n- CSS PHP SQL", True),
    "too little": ("es", "- Open\n- Save it", None),
}


@pytest.mark.parametrize("case", LISTS.values(), ids=LISTS.keys())
def test_short_lines_titles_and_capitals_are_judged_together(case):
    lang, answer, expected = case
    suspect = {"en": "es", "ru": "uk"}.get(lang, "en")
    assert line_pass(answer, lang=lang, suspects=[suspect]) is expected
    lines = line_languages(answer, lang=lang, suspects=[suspect])
    assert all(answer[line.start : line.end] == line.text and "\n" not in line.text for line in lines)
    assert [line.start for line in lines] == sorted({line.start for line in lines})


@pytest.mark.parametrize(
    "line",
    [
        "Aparece el mensaje «This file is open in another window and cannot be changed» al guardar el archivo.",
        'Si ve "The server did not answer in time, please try again later", espere un momento y repita.',
        "El error 'No space is left on the device you are writing to' dice que el disco está lleno.",
        "El programa dice: “You do not have the rights to open this folder” y se cierra después.",
    ],
)
def test_message_that_a_line_quotes_is_no_foreign_line(line):
    assert line_pass(line, lang="es", suspects=["en"]) is True


def test_line_that_is_nothing_but_a_quotation_is_judged():
    assert (
        line_pass("«This file is open in another window and cannot be changed»", lang="es", suspects=["en"]) is False
    )


def test_thinking_that_the_template_opened_is_not_judged():
    assert found(SPANISH, think_opened=True) == []
    assert found(f"{SPANISH}</think>{ENGLISH}", think_opened=True) == [("en", ENGLISH)]


def test_lines_copied_from_the_prompt_or_the_reference_are_not_judged():
    assert found(f"{ENGLISH}\n{SPANISH}", prompt=f"Translate: {SPANISH}") == [("en", ENGLISH)]
    assert found(f"{ENGLISH}\n{SPANISH}", reference=SPANISH) == [("en", ENGLISH)]


def test_unknown_language_is_no_fault():
    answer = "Vista normal o general de texto digital"  # words of both languages
    assert found(answer, min_probability=1.0) == [(None, answer)]
    assert line_pass(answer, lang="en", suspects=["es"], min_probability=1.0) is True


def test_only_the_suspects_are_ever_found():
    german = "Klicken sie auf die schaltfläche, um das aktuelle dokument zu speichern."
    assert found(german, suspects=["es", "de"]) == [("de", german)]
    assert found(german, suspects=["es"])[0][0] != "de"


def test_words_of_scripts_without_spaces_are_counted_by_their_characters():
    chinese = "打开文件然后点击保存按钮"  # 12 characters, about 6 words
    assert found(f"{chinese}\n{ENGLISH}", lang="zh", suspects=["en"]) == [("zh", chinese), ("en", ENGLISH)]


def test_suspects_are_those_that_the_script_does_not_show():
    assert suspects_of("en", ["en", "es", "ru"]) == ["es"]
    assert suspects_of("ru", ["en", "ru", "uk"]) == ["en", "uk"]  # Latin is allowed in every language
    assert suspects_of("en-GB", ["en"]) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suspects": []}, "`suspects` must name a language other than 'en'"),
        ({"suspects": ["en-US"]}, "`suspects` must name a language other than 'en'"),
        ({"suspects": "es"}, r"got 'es': pass \['es'\]"),
        ({"suspects": ["xx"]}, "Unknown language 'xx'"),
        ({"suspects": ["yi"]}, "py3langid cannot identify yi. It knows: .*uk"),
        ({"suspects": ["es"], "min_words": 0}, "`min_words` must be 1 or more"),
        ({"suspects": ["es"], "min_probability": 90}, "`min_probability` must be between 0 and 1"),
    ],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        line_languages(ENGLISH, lang="en", **settings)


def test_evaluation_without_anything_to_tell_apart_is_refused():
    with pytest.raises(ValueError, match=r"\['ru'\] names no language that answers in en, ko could switch into"):
        check_suspects(["ko", "en", "en"], ["ru"])
    with pytest.raises(ValueError, match=r"`lid_languages` is a list of languages, got 'es': pass \['es'\]"):
        check_suspects(["en"], "es")


def test_without_the_extra_the_error_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['py3langid'] = sys.modules['py3langid.langid'] = None\n"
        "from sae_posttrain import evaluate\n"
        f"evaluate('no-such/model', [{{'lang': 'es', 'prompt': 'x'}}], output_dir={str(tmp_path / 'out')!r},"
        " target_lang=None, lid_languages=['en'])"
    )
    error = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert "ImportError" in error and "pip install 'sae_posttrain[lid]'" in error
    assert not (tmp_path / "out").exists()


ROWS = [
    {"id": 0, "lang": "en", "prompt": "a"},
    {"id": 1, "lang": "en", "prompt": "b"},
    {"id": 2, "lang": "es", "prompt": "c"},
    {"id": 3, "lang": "ru", "prompt": "d"},
]
ANSWERS = {"a": f"{ENGLISH}\n{SPANISH}\n{ENGLISH}", "b": "OK", "c": f"{SPANISH} {SPANISH}", "d": RUSSIAN}


def test_evaluation_counts_answers_and_lines(run, answer_with, read_answers):
    answer_with(ANSWERS)
    result = run(data=ROWS, lid_languages=["es", "en"])
    overall, groups = result["overall"], result["groups"]
    # one answer has no line to judge; of the 3 + 2 + 1 other lines one is foreign
    low, high = wilson(2, 3)
    assert overall["line_pass_rate"] == {"count": 2, "n": 3, "rate": 2 / 3, "low": low, "high": high}
    assert (overall["foreign_line_rate"]["count"], overall["foreign_line_rate"]["n"]) == (1, 6)
    assert (groups["en"]["line_pass_rate"]["count"], groups["en"]["line_pass_rate"]["n"]) == (0, 1)
    assert groups["es"]["foreign_line_rate"]["rate"] == overall["unknown_line_rate"]["rate"] == 0
    assert overall["any"]["1"]["count"] == 0  # the script says nothing
    assert result["settings"]["lid"]["languages"] == ["es", "en"]
    assert result["settings"]["lid"].keys() == {"languages", "min_words", "min_probability", "py3langid"}

    (answer,) = [answer for answer in read_answers() if answer["prompt"] == "a"]
    (line,) = answer["lines"]["foreign"]
    assert (line["language"], line["text"]) == ("es", SPANISH)
    assert answer["answer"][line["start"] :].startswith(SPANISH)
    table = format_evaluation(result)
    assert "line pass %" in table and "66.67 [" in table and f"lines of {MIN_WORDS} words or more" in table


def test_language_without_a_suspect_has_no_line_rate(run, answer_with):
    answer_with(ANSWERS)
    groups = run(data=ROWS, lid_languages=["uk", "ru"])["groups"]
    assert groups["ru"]["line_pass_rate"]["rate"] == 1
    assert groups["en"]["line_pass_rate"] is groups["en"]["foreign_line_rate"] is None


def test_comparison_pairs_lines_and_reads_evaluations_without_them(run, answer_with, tmp_path):
    answer_with(ANSWERS)
    run(folder="plain", data=ROWS)
    run(folder="before", data=ROWS, lid_languages=["en", "es"])
    answer_with({**ANSWERS, "a": ENGLISH, "c": ENGLISH})
    settings = {"data": ROWS, "lid_languages": ["en", "es"], "seed": 1}
    result = run(folder="after", compare=tmp_path / "before", **settings)
    paired = result["comparison"]["groups"]["en"]["line_pass_rate"]
    assert (paired["difference"], paired["n"]) == (1, 1)
    assert result["comparison"]["overall"]["line_pass_rate"]["difference"] == 0  # one healed, one fell ill
    assert "line pass rate" in format_evaluation(result)

    without = run(folder="after", compare=tmp_path / "plain", **settings)["comparison"]
    assert without["overall"]["line_pass_rate"] is None and without["overall"]["any"] is not None
    assert "lid" in without["different_settings"]
    with pytest.raises(ValueError, match="identified the language of lines by .*'languages': \\['en', 'es'\\]"):
        run(folder="other", data=ROWS, lid_languages=["en"], compare=tmp_path / "before")


def test_evaluation_without_lines_is_as_it_was(run, read_answers, tmp_path):
    result = run(data=ROWS)
    assert result["settings"]["lid"] is None
    assert not any(name.endswith("line_rate") or name.startswith("line_") for name in result["overall"])
    assert all("lines" not in answer for answer in read_answers())
    assert "line pass" not in format_evaluation(result)

    path = tmp_path / "run" / "settings.json"  # of a version that did not know lines
    settings = json.loads(path.read_text(encoding="utf-8"))
    del settings["lid"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert run(data=ROWS) == result
    with pytest.raises(ValueError, match="lid was None, is {'languages'"):
        run(data=ROWS, lid_languages=["en", "es"])


def test_report_shows_the_share_of_answers_without_foreign_lines(run, answer_with, tmp_path):
    answer_with(ANSWERS)
    run(data=ROWS, lid_languages=["en", "es"])
    run(folder="plain", data=ROWS)
    arms = [read_run(tmp_path / folder) for folder in ("run", "plain")]
    head, rows = summary_table(Section("Lines", arms, "switching"))
    assert [row[head.index("No foreign line")].text for row in rows] == ["66.7\u00a0%", "–"]
    assert "No foreign line" not in summary_table(Section("Lines", arms[1:], "switching"))[0]

    path = tmp_path / "run" / "answers.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"line_pass": true', '"line_pass": 7'), encoding="utf-8")
    with pytest.raises(ValueError, match="its lines: 'line_pass' is a int"):
        read_run(tmp_path / "run")


def test_language_reward_sees_foreign_lines_of_the_same_script():
    reward = LanguageConsistencyReward(lid_languages=["en", "es"])
    answers = [ENGLISH, SPANISH, f"{SPANISH}\n{ENGLISH}", "Sí", "파일을 엽니다"]
    langs = ["en", "en", "es", "es", "ko"]
    assert reward(prompts=["?"] * 5, completions=answers, lang=langs) == [1, 0, 0, 1, 1]
    assert LanguageConsistencyReward()(prompts=["?"], completions=[SPANISH], lang=["en"]) == [1]
    neighbours = LanguageConsistencyReward(target_lang="ru", lid_languages=["ru", "uk"])
    answers = [UKRAINIAN, RUSSIAN, "Так"]
    assert neighbours(prompts=["?"] * 3, completions=answers, lang=["uk"] * 3) == [1, 0, None]
    with pytest.raises(ValueError, match="names no language"):
        LanguageConsistencyReward(lid_languages=["en"])
