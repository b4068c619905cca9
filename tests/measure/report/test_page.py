"""The page as a reader gets it: from judged answers and logs made here, without a model."""

import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from html import unescape
from html.parser import HTMLParser

import pytest

from sae_posttrain.measure.answers.summary import summarise
from sae_posttrain.measure.faults.loops import find_loop
from sae_posttrain.measure.faults.switching import find_switches, right_language
from sae_posttrain.measure.report.charts import running_mean, spread_labels
from sae_posttrain.measure.report.examples import choose_examples, cut_pieces, find_marks, locate_loop
from sae_posttrain.measure.report.page import Arm, Section, write_report
from sae_posttrain.measure.report.rendering import STYLE

KOREAN = "파일을 열고 나서 저장합니다"
SWITCHED = "파일을 打开文件 저장합니다"
LOOPING = "메뉴를 엽니다. " + "파일을 저장하고 닫습니다. " * 8


def judge(id_, answer, lang="ko", prompt="어떻게 저장합니까?", finished=True):
    """A line of `answers.jsonl`; a token is a character."""
    loop = find_loop([ord(char) for char in answer], finished=finished)
    switches = find_switches(answer, lang=lang, prompt=prompt, target_lang="zh")
    return {
        "id": id_,
        "sample": 0,
        "lang": lang,
        "prompt": prompt,
        "answer": answer,
        "num_tokens": len(answer),
        "finished": finished,
        "any": switches.any,
        "unexpected": switches.unexpected,
        "num_any": switches.num_any,
        "num_unexpected": switches.num_unexpected,
        "num_unexpected_in_think": 0,
        "num_replacement_chars": 0,
        "right_language": right_language(answer, lang=lang),
        "spans": [asdict(span) for span in switches.spans],
        "loop": {key: value for key, value in asdict(loop).items() if key not in ("loop_tail", "num_tokens")},
    }


def make_arm(name, num_bad, bad=SWITCHED, num=60, finished=True, **fields):
    """An arm that shows the fault in its first so many answers."""
    answers = [judge(i, bad if i < num_bad else KOREAN, finished=finished or i >= num_bad) for i in range(num)]
    settings = {"target_lang": "zh", "max_new_tokens": 128, "temperature": 1.0, "num_samples": 1, "seed": 3}
    evaluation = {**summarise(answers), "settings": settings, "versions": {"torch": "2.10"}}
    return Arm(name, evaluation=evaluation, answers=answers, **fields)


@pytest.fixture
def write(tmp_path):
    def write(*sections, title="Two models", **options):
        return write_report(tmp_path / "out" / "report.html", sections, title=title, **options).read_text("utf-8")

    return write


class Page(HTMLParser):
    """Tags with their attributes, and the text that is read."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.inside = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "style":
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag == "style":
            self.inside.pop()
        self.text += " " if tag in ("th", "td") else ""

    def handle_data(self, data):
        if not self.inside:
            self.text += data


def words(html):
    return re.sub(r"\s+", " ", Page(html).text.replace("\u00a0", " "))


def test_page_needs_no_network_and_no_script(write):
    arms = [make_arm("before", 20), make_arm("after", 5)]
    html = write(Section("Switching", arms, "switching"))
    page = Page(html)
    assert html.lstrip().startswith("<!doctype html>")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "form"})
    for _, attributes in page.tags:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
    assert "@import" not in html
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", html))
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for _, a in page.tags if "href" in a} <= set(ids)


def test_clear_improvement_is_said_in_words(write):
    text = words(write(Section("S", [make_arm("SFT", 20), make_arm("SASFT", 5)], "switching")))
    assert "Two models answered the same 60 prompts in Korean. How often do they slip into Chinese?" in text
    assert "SASFT slips into Chinese less often than SFT: 75 % fewer." in text
    assert "8.3 % of the answers against 33.3 %: 25.0 points lower (95 % interval " in text


def test_undecided_and_bad_results_are_said_as_plainly(write):
    undecided = words(write(Section("S", [make_arm("SFT", 5), make_arm("SASFT", 4)], "switching")))
    assert "No clear difference between SASFT and SFT. 6.7 % of the answers against 8.3 %" in undecided
    assert "points, includes 0." in undecided
    assert "fewer" not in undecided.split("How to read this")[0]

    worse = words(write(Section("S", [make_arm("SFT", 4), make_arm("SASFT", 24)], "switching")))
    assert "SASFT slips into Chinese more often than SFT: 500 % more." in worse

    never = words(write(Section("S", [make_arm("SFT", 0), make_arm("SASFT", 0)], "switching")))
    assert "Neither SASFT nor SFT ever slips into Chinese. None of 60 answers of each; the true rate may" in never


def test_side_effects_stand_beside_the_result(write):
    good = make_arm("SFT", 20, capability=(45, 50))
    wrong_language = [judge(i, "Please open the file") for i in range(60)]
    evaluation = {**good.evaluation, **summarise(wrong_language)}
    bad = Arm("SASFT", evaluation=evaluation, answers=wrong_language, capability=(20, 50))
    text = words(write(Section("S", [good, bad], "switching")))
    assert "less often than SFT: 100 % fewer." in text
    assert "But fewer of its answers are in the right language: −100.0 points" in text
    assert "Also, fewer checked questions are answered right: 40.0 % against 90.0 %, −50.0 points" in text


def test_what_cannot_be_paired_is_not_called_a_difference(write):
    first, other = make_arm("SFT", 20), make_arm("SASFT", 2, num=50)
    text = words(write(Section("S", [first, other], "switching")))
    assert "SASFT and SFT were not compared answer by answer." in text
    assert "they did not answer the same prompts" in text
    assert "not all the same ones" in text
    text = words(write(Section("S", [first, replace(make_arm("SASFT", 2), answers=())], "switching")))
    assert "there are no single answers to compare" in text


def test_settings_that_differ_are_named(write):
    other = make_arm("SASFT", 2)
    other.evaluation["settings"].update(temperature=0.2, seed=4)
    html = write(Section("S", [make_arm("SFT", 20), other], "switching"), settings={"sft": {"steps": 60}}, seed=7)
    text = words(html)
    assert "Not measured alike: temperature, seed." in text
    assert "evaluation: temperature SFT: 1.0; SASFT: 0.2" in text
    assert "sft: steps 60" in text
    assert "seed 7" in text
    assert "torch 2.10" in text


def test_many_models_are_counted(write):
    arms = [make_arm("start", 20), *(make_arm(f"arm {num}", num) for num in (2, 19, 21, 50))]
    text = words(write(Section("S", arms, "switching")))
    assert "Of 4 models against start: 1 less often, 1 more often and 2 without a clear difference." in text
    assert [answer.title for answer in choose_examples(Section("S", arms, "switching"))[1][0].answers] == [
        "start",
        "arm 50",
    ]


def test_baseline_can_be_any_arm_and_the_last_one_comes_first(write):
    arms = [make_arm("before", 2), make_arm("SFT", 20), make_arm("SASFT", 2)]
    text = words(write(Section("S", arms, "switching", baseline="SFT")))
    assert text.index("SASFT slips into Chinese less often than SFT") < text.index("before slips into Chinese less")
    assert "SASFT minus SFT −30.0" in text


def test_a_single_model_is_described_without_a_comparison(write):
    text = words(write(Section("S", [make_arm("SFT", 20)], "switching")))
    assert "One model gave 60 answers in Korean. How often does it slip into Chinese?" in text
    assert "SFT: 33.3 % of the answers. 20 of 60, 95 % interval 22.7 to 45.9 %." in text
    assert "Difference to" not in text


def test_hostile_text_stays_text(write):
    evil = "<script>alert(1)</script>"
    answers = [judge(i, f"{KOREAN} {evil} 打开 </p>", prompt=f"?{evil}") for i in range(4)]
    evaluation = {
        **summarise(answers),
        "settings": {"target_lang": "zh", evil: {"a": evil}},
        "versions": {evil: evil},
    }
    log = [{"step": step, "loss": 1.0, f"sae/pre_activation/{evil}": 2.0} for step in (1, 2)]
    arm = Arm("a", f"{evil}$x^2$", evaluation, answers, log, {evil: {evil: (1.0, 2.0)}})
    section = Section(evil, [arm, replace(arm, name='"><b onclick=x>', label="")], "switching", text=evil)
    html = write(section, title=evil, settings={evil: evil, "nested": {evil: evil}})
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "b" not in {tag for tag, _ in page.tags}
    assert "<script" not in html
    assert evil in unescape(html)
    assert "$x^2$" in page.text


def test_a_picture_takes_its_colours_from_the_page_and_says_what_it_shows(write):
    log = [{"step": step, "loss": 3 - step / 50, "sae/penalty": 1 / (step + 1)} for step in range(30)]
    arms = [make_arm("SFT", 20, log=log), make_arm("SASFT", 5, log=log[:1])]
    html = write(Section("S", arms, "switching"))
    pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(pictures) == 3
    for picture in pictures:
        assert 'role="img"' in picture
        assert "var(--arm-0)" in picture
        assert not re.search(r"#[0-9a-f]{6}\b(?!\))", re.sub(r'(id|href|clip-path)="[^"]*"', "", picture))
        assert "DejaVu" not in picture
    titles = [unescape(title) for title in re.findall(r"<title id=[^>]*>(.*?)</title>", html)]
    assert "SFT: 33.3\u00a0% (22.7\u00a0% to 45.9\u00a0%)" in titles[0]
    assert titles[1] == "Training loss over steps. SFT: from 3 to 2.42; SASFT: from 3 to 3"
    assert titles[2].startswith("Penalty over steps.")


def test_steered_training_shows_hit_rates_strength_and_calibration(write):
    steered = [
        {"step": s, "steer/hit_rate": 0.8, "steer/hit_rate_plain": 0.1, "steer/strength": 1.5, "reward": -0.2}
        for s in range(8)
    ]
    plain = [{"step": s, "steer/hit_rate_plain": 0.1, "reward": float("nan")} for s in range(8)]
    sweep = {
        "strength": 1.5,
        "target": 0.8,
        "rows": [
            {"strength": s, "hit_rate": s / 2, "low": s / 3, "high": min(1, s / 1.5)} for s in (0.0, 0.5, 1.0, 1.5)
        ],
    }
    arms = [Arm("plain", log=plain), Arm("steered", log=steered)]
    html = write(Section("Training", arms, calibrations={"loop feature": sweep}))
    titles = [unescape(title) for title in re.findall(r"<title id=[^>]*>(.*?)</title>", html)]
    assert [title.split(". ")[0] for title in titles] == [
        "Reward over steps",
        "Hit rate over steps",
        "Faulty rollouts over steps",
        "Steering strength over steps",
        "Calibration of loop feature",
    ]
    assert titles[1] == "Hit rate over steps. steered: from 80 % to 80 %"
    assert titles[2] == "Faulty rollouts over steps. plain: from 10 % to 10 %; steered: from 10 % to 10 %"
    assert "plain" not in titles[0]
    assert "first reached at strength 1.5" in words(html)


def test_readings_are_shown_for_each_feature_by_language(write):
    readings = {f"3.{feature}": {"zh": (4.0, 1.0), "ko": (-1.0, 0.5)} for feature in (7, 12)}
    arms = [make_arm("before", 20, readings=readings), make_arm("after", 2, readings={"3.7": {"ko": (-2.0, 0.5)}})]
    html = write(Section("S", arms, "switching"))
    titles = [unescape(title) for title in re.findall(r"<title id=[^>]*>(.*?)</title>", html)]
    assert titles[1:] == [
        "Mean pre-activation of feature 3.7. before: zh 4.00, ko -1.00; after: ko -2.00",
        "Mean pre-activation of feature 3.12. before: zh 4.00, ko -1.00",
    ]


def test_same_input_gives_the_same_bytes(tmp_path):
    sections = [Section("S", [make_arm("a", 3, log=[{"step": 1, "loss": 2.0}]), make_arm("b", 2)], "switching")]
    first, second = (write_report(tmp_path / name, sections, title="T").read_bytes() for name in ("1.html", "2.html"))
    assert first == second


def test_examples_begin_with_what_only_one_arm_does_and_languages_take_turns():
    def arm(name, bad):
        answers = [judge(i, SWITCHED if (i, lang) in bad else KOREAN, lang) for lang in ("en", "ko") for i in range(9)]
        return Arm(name, evaluation={**summarise(answers), "settings": {}}, answers=answers)

    first = arm("SFT", {(i, lang) for lang in ("en", "ko") for i in range(3)})
    last = arm("SASFT", {(0, "ko"), (8, "en")})
    counts, examples = choose_examples(Section("S", [first, last], "switching"))
    assert "5 show the fault only with SFT, 1 only with SASFT, 1 with both and 11 with neither" in counts
    shown = [(each.lang, *(answer.faulty for answer in each.answers)) for each in examples]
    assert shown == [
        ("en", True, False),
        ("ko", True, False),
        ("en", True, False),
        ("ko", True, False),
        ("en", False, True),
        ("ko", True, True),
    ]


def test_examples_without_any_fault_say_so():
    counts, examples = choose_examples(Section("S", [make_arm("a", 0), make_arm("b", 0)], "switching"))
    assert counts.startswith("None of 60 answers to the same prompts shows the fault")
    assert len(examples) == 2


def test_switched_characters_and_rounds_of_a_loop_are_marked(write):
    arms = [make_arm("SFT", 3), make_arm("SASFT", 3, bad=LOOPING, finished=False)]
    html = write(Section("S", arms, "loops"))
    assert 'class="switch" title="Han script">打开文件</mark>' in html
    assert html.count('title="loop, round 3"') == 3
    assert '<p class="text" lang="ko" dir="auto">' in html
    assert "tokens in a loop of 15" in words(html)
    assert "SASFT" in words(html)


def test_a_loop_of_empty_lines_is_marked():
    row = judge(0, "열기" + "\n" * 90, finished=False)
    assert [(mark.kind, mark.start, mark.end) for mark in find_marks(row)] == [("loop", 2, 92)]


def test_pieces_are_the_answer():
    row = judge(0, "열기 (打开) 打开 " + "문서를 저장 文件 닫기. " * 9, finished=False)
    marks = find_marks(row)
    assert {mark.kind for mark in marks} == {"switch", "excused", "loop"}
    pieces = cut_pieces(row["answer"], marks, 0, len(row["answer"]))
    assert "".join(piece.text for piece in pieces) == row["answer"]
    assert any({"switch", "loop"} <= set(piece.kinds) for piece in pieces)
    assert next(piece for piece in pieces if "excused" in piece.kinds).meaning == "Han script, excused: bracket"


@pytest.mark.parametrize(
    ("text", "cycle", "start"),
    [
        ("Once upon a time, " + "the end and " * 10, "the end and ", 18),
        ("a" * 200, "a", 0),
        ("Then!!!! " + "go on!!!! " * 9, "go on!!!! ", 4),
        ("x" * 30 + "一二三四 " * 20 + "\ufffd", "一二三四 ", 30),
        ("loop it now, " * 9 + "and then it went on and ended in a new way.", "loop it now, ", 0),
    ],
)
def test_a_loop_of_tokens_is_found_in_the_text(text, cycle, start):
    length = len(text) // 3  # as if a token were three characters
    span = text.count(cycle) * len(cycle) // 3
    found = locate_loop(text, {"span": span, "period": max(1, len(cycle) // 3)}, length)
    assert found is not None
    assert found[2] == len(cycle)
    assert found[0] <= start


def test_a_loop_that_is_not_in_the_text_is_not_marked():
    assert locate_loop("nothing here says anything twice, does it", {"span": 90, "period": 9}, 100) is None
    assert locate_loop("", {"span": 64, "period": 1}, 64) is None
    assert locate_loop("words", {"span": 0, "period": None}, 3) is None


def test_long_answer_is_cut_around_what_is_marked():
    late = judge(0, "가나다라마바사아자차 " * 200 + SWITCHED + " 가나다" * 50)
    section = Section("S", [Arm("a", evaluation={**summarise([late]), "settings": {}}, answers=[late])], "switching")
    shown = choose_examples(section)[1][0].answers[0]
    text = "".join(piece.text for piece in shown.pieces)
    assert "打开文件" in text
    assert len(text) == 700
    assert shown.cut_before + len(text) + shown.cut_after == len(late["answer"])


def test_report_without_matplotlib_says_what_to_install_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'sae_posttrain\[plots\]'"):
        write_report(tmp_path / "report.html", [Section("S", [make_arm("a", 2)], "switching")], title="T")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_report_is_light():
    code = (
        "import sae_posttrain.measure.report.page, sae_posttrain.measure.report.runs, sys; "
        "print(sorted({'torch', 'matplotlib', 'transformers', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda arm: Section("S", [], "switching"), "has no arms"),
        (lambda arm: Section("S", [arm, arm], "switching"), "need names of their own, 'S' has a, a"),
        (lambda arm: Section("S", [arm], "speed"), "Unknown measure 'speed'; known: switching, loops"),
        (lambda arm: Section("S", [arm]), "say which `measure` to show, switching or loops"),
        (lambda arm: Section("S", [arm], "loops", baseline="b"), "'b' is no evaluated arm of 'S'; there are: a"),
        (lambda arm: Section("S", [Arm("b")]), "'b' has nothing to show"),
        (lambda arm: Section("S", [Arm("b", log=[{"step": 1}])], "loops"), "No arm of 'S' has an `evaluation`"),
        (lambda arm: Arm("b", capability=(3, 0)), "got (3, 0)"),
    ],
)
def test_unusable_sections_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(make_arm("a", 2))


def test_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one section"):
        write_report(tmp_path / "report.html", [], title="T")


def test_labels_keep_their_distance_and_lines_are_smoothed():
    places = spread_labels([1.0, 1.0, 5.0], 0.5, 0.0, 5.0)
    assert places == [1.0, 1.5, 5.0]
    assert spread_labels([5.0, 5.0, 4.9], 0.5, 0.0, 5.0) == [4.5, 5.0, 4.0]
    assert running_mean([0.0, 0.0, 5.0, 0.0, 0.0]) == [5 / 3, 1.25, 1.0, 1.25, 5 / 3]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "there is no chromium, chromium-browser or google-chrome to open the report with"

FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><title>-</title>
<style>body {{ margin: 0 }} iframe {{ border: 0; display: block; width: {width}px; height: {height}px }}</style>
<script>addEventListener("message", event => {{ document.title = event.data }})</script>
<iframe src="{name}"></iframe>"""
"""A window of Chromium is at least 500 wide, a frame in it is as wide as a phone."""

MEASURING = """<script>addEventListener("load", () => parent.postMessage(
[innerWidth, document.documentElement.scrollWidth, matchMedia("(prefers-color-scheme: dark)").matches].join(" "), "*"))
</script>"""


@pytest.fixture
def browser(tmp_path):
    """Opens the report in a frame of that size; returns what the page measured of itself, and its picture."""
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    from PIL import Image

    def browse(report, width, height, dark):
        html = report.read_text("utf-8")
        policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', html)[0]
        (tmp_path / "copy.html").write_text(html.replace(policy, MEASURING), encoding="utf-8")
        (tmp_path / "frame.html").write_text(FRAME.format(width=width, height=height, name="copy.html"))
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},{height}"]
        command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        page = (tmp_path / "frame.html").as_uri()
        dumped = subprocess.run(
            [*command, "--dump-dom", "--virtual-time-budget=2000", page], capture_output=True, text=True, timeout=120
        )
        measured = re.search(r"<title>(\d+) (\d+) (true|false)</title>", dumped.stdout)
        assert measured, dumped.stderr[-2000:]
        picture = tmp_path / f"{width}-{dark}.png"
        subprocess.run([*command, f"--screenshot={picture}", page], capture_output=True, timeout=120)
        with Image.open(picture) as image:
            return measured.groups(), image.convert("RGB").crop((0, 0, width, height))

    return browse


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(360, 6000), (390, 844), (1280, 4000)])
def test_browser_draws_the_report_light_and_dark_on_phone_and_desk(tmp_path, browser, width, height, dark):
    log = [{"step": step, "loss": 3 - step / 50, "sae/penalty": 1 / (step + 1)} for step in range(30)]
    readings = {"3.7": {"zh": (4.0, 1.0), "ko": (-1.0, 0.5)}}
    arms = [
        make_arm("before", 3, LOOPING, finished=False, log=log, readings=readings, label="a label much too long " * 3),
        make_arm("SFT", 20, log=log, readings=readings, capability=(40, 50)),
        make_arm("SASFT", 5, "w" * 400 + SWITCHED, log=log, readings=readings, capability=(41, 50)),
    ]
    sections = [
        Section("Chinese_within_" * 8, arms, "switching", baseline="SFT"),
        Section("Loops", arms, "loops"),
    ]
    report = write_report(tmp_path / "report.html", sections, title="What came out", settings={"path": "x" * 300})
    (inner_width, scroll_width, is_dark), image = browser(report, width, height, dark)
    assert int(inner_width) == width
    assert int(scroll_width) == width, "the page scrolls sideways"
    assert is_dark == str(dark).lower()

    colors = {color: count for count, color in image.getcolors(image.width * image.height)}
    page = (0x15, 0x17, 0x1B) if dark else (0xFB, 0xFA, 0xF7)
    ink = (0xE9, 0xE6, 0xDF) if dark else (0x1D, 0x21, 0x28)
    assert max(colors, key=colors.get) == page
    assert ink in colors
    if height > 2000:  # down to the pictures and the examples
        drawn = {
            "switched characters": (0x6B, 0x24, 0x15) if dark else (0xFF, 0xD8, 0xCC),
            "loop": (0x54, 0x44, 0x0C) if dark else (0xFF, 0xEE, 0xB0),
            "arm 1": (0x7F, 0xB5, 0xF5) if dark else (0x1F, 0x5F, 0xA8),
            "arm 2": (0xF2, 0x8D, 0x80) if dark else (0xB0, 0x3A, 0x2E),
        }
        for what, color in drawn.items():
            assert colors.get(color, 0) > 20, f"{what} is not drawn"


def test_colours_of_text_have_enough_contrast():
    """WCAG 2.2 AA: 4.5 to 1 for text on what lies behind it, in every scheme."""
    css = STYLE.read_text("utf-8")
    schemes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colors = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", scheme))
        arms = [name for name in colors if name.startswith("arm-")]
        assert len(arms) == 6
        pairs = [(name, back) for name in ("ink", "muted", "accent", "excused-ink") for back in ("page", "card")]
        pairs += [(name, "page") for name in arms] + [("switch-ink", "switch"), ("loop-ink", "loop")]
        for front, back in pairs:
            assert contrast(colors[front], colors[back]) >= 4.5, f"{front} on {back}"


def contrast(front, back):
    """Contrast ratio (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio)."""
    low, high = sorted(map(luminance, (front, back)))
    return (high + 0.05) / (low + 0.05)


def luminance(color):
    parts = [int(color[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
