"""Rows made for features that a data set does not fire, on a tiny model and a byte-level tokenizer."""

import copy
import json
import random
import re
from dataclasses import replace

import pytest
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from sae_posttrain import FeatureSet
from sae_posttrain.analysis import LocalGenerator, read_activations, synthesise
from sae_posttrain.analysis.synthesis import local_generator
from sae_posttrain.analysis.synthesis.attempts import Attempts
from sae_posttrain.analysis.synthesis.near_duplicates import copied_share
from sae_posttrain.analysis.synthesis.prompts import Templates
from sae_posttrain.analysis.synthesis.targets import Snippet, Target, _word_at, missing_features
from tests.analysis.synthetic import PLACES, make_activations

pytest.importorskip("datasketch")

SEEDS = [
    {"text": f"{word} number {i} of the plain ones", "label": "good"} for i, word in enumerate("aaa bb ccc".split())
]
REFERENCE = [
    {"text": f"{word} {i} QUIZZICAL jinxed! {word[::-1]}", "label": "bad" if i % 2 else "good"}
    for i, word in enumerate("zebra xylophone vortex quartz jukebox wizard fjord sphinx".split())
]

TARGETS = [2, 3, 5, 7, 11]


class Writer:
    """Writes other rows each time, out of the words of the reference; counts what it is asked."""

    settings = {"model": "writer"}

    def __init__(self):
        self.asked: list[str] = []
        self.aims: list = []

    def __call__(self, conversations, *, seed, aim):
        self.asked += [messages[-1]["content"] for messages in conversations]
        self.aims.append(aim)
        draw = random.Random(seed)
        words = "QUIZZICAL jinxed! zebra vortex wizard 77 fjord XYZ quartz ~ sphinx{} jukebox plain".split()
        return [" ".join(draw.choices(words, k=9)) for _ in conversations]


@pytest.fixture
def make(tmp_path, make_model, tokenizer, make_sae):
    """`synthesise` on the tiny model, with short settings."""

    def run(generator=None, seeds=SEEDS, targets=TARGETS, folder="made", **settings):
        settings = {"reference": REFERENCE, "label_column": "label", "what": "note", "progress": False} | settings
        settings = {"rows_per_target": 2, "attempts_per_target": 6, "batch_size": 4, "only_missing": False} | settings
        return synthesise(
            make_model(),
            settings.pop("sae", None) or make_sae(1),
            seeds,
            targets,
            generator or Writer(),
            output_dir=tmp_path / folder,
            tokenizer=tokenizer,
            **settings,
        )

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_missing_features_fire_on_the_reference_and_on_no_seed():
    # columns: fires on a seed; on one reference text; on all; on both of one label; on one of each label
    seeds = make_activations({PLACES[0]: [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]})
    reference = make_activations({PLACES[0]: [[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 0, 1, 0, 1], [1, 0, 1, 0, 0]]})
    assert missing_features(seeds, reference).tolist() == [2, 3, 4]
    by_label = missing_features(seeds, reference, labels=["bad", "bad", "good", "good"])
    assert by_label.tolist() == [3, 2, 4]
    assert missing_features(seeds, reference, max_seed_rate=0.5).tolist() == [0, 2, 3, 4]
    with pytest.raises(ValueError, match="no targets left: each of the 4 features.*`max_seed_rate`"):
        missing_features(reference, reference)


def test_a_target_is_named_by_its_words_without_what_stands_around_them():
    assert _word_at('a "people, and', 9, ",") == "people" and _word_at("it's so", 2, "'s") == "it's"
    assert _word_at("one , two", 3, " ,") == ""
    snippets = [Snippet(f"seeds:{i}", "a few chairs", word, "", 1.0) for i, word in enumerate(["a", "Few", "few"])]
    target = Target(3, "3", 0.0, None, tuple(snippets), ("aution",))
    assert target.words == ("few", "a")
    assert replace(target, snippets=()).words == ("aution",)


def test_each_row_fires_its_target_and_says_where_it_is_from(make, tmp_path, make_model, make_sae, tokenizer):
    made = make(check_sae=[make_sae(0)])
    rows = lines(tmp_path / "made" / "synthetic.jsonl")
    assert rows == made.rows and len(rows) == len({row["text"] for row in rows}) > 3
    read = [
        read_activations(make_model(), make_sae(1), texts, tokenizer=tokenizer) for texts in (SEEDS, REFERENCE, rows)
    ]
    seeds, reference, again = (each.at().toarray() for each in read)
    for row, activations in zip(rows, again):
        origin = row["provenance"]
        activation = pytest.approx(origin["activation"], rel=1e-4)
        assert activations[origin["feature"]] == activation and origin["activation"] > 0
        assert origin["generator"] == "writer" and origin["block"] == 1 and origin["prompt"]
        if origin["kind"] == "new":
            shown = [REFERENCE[int(each.removeprefix("reference:")) - 1] for each in origin["snippets"]]
            assert {each["label"] for each in shown} == {row["label"]} and origin["seed_row"] is None
            assert f"new {row['label']} note" in origin["prompt"]
        else:
            assert row["label"] == "good" and SEEDS[origin["seed_row"] - 1]["text"] in origin["prompt"]
    report = json.loads((tmp_path / "made" / "report.json").read_text(encoding="utf-8"))
    assert report["num_rows"] == len(rows) and sum(report["reasons"].values()) + len(rows) == report["num_attempts"]
    own, other = made.coverage
    missing = ~seeds.any(axis=0) & ((reference > 0).sum(axis=0) >= 2)
    assert own.missing == missing.sum() > 0 and own.missing_covered == (missing & again.any(axis=0)).sum()
    assert (
        own.features_after == (seeds.any(axis=0) | again.any(axis=0)).sum()
        and own.features_before < own.features_after
    )
    assert own.took_part and not other.took_part and other.place.startswith("block 0") and "took part" in str(made)


def test_missing_targets_are_features_that_no_seed_fires(make):
    made = make(targets="missing", only_missing=True)
    held = json.loads((made.folder / "targets.json").read_text(encoding="utf-8"))["targets"]
    assert held and all(each["seed_rate"] == 0 and each["reference_rate"] > 0 for each in held)
    for target in held:
        assert all(snippet["word"] in snippet["text"] and snippet["activation"] > 0 for snippet in target["snippets"])


def test_an_interrupted_run_goes_on_to_the_same_rows(make, tmp_path):
    whole = make(folder="whole")
    calls = 0

    class Dies(Writer):
        def __call__(self, conversations, **more):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise RuntimeError("power cut")
            return super().__call__(conversations, **more)

    Dies.__name__ = "Writer"  # its name is in the settings
    with pytest.raises(ValueError, match="The generator failed \\(RuntimeError: power cut\\).*the same call goes on"):
        make(Dies(), folder="cut")
    log = tmp_path / "cut" / "attempts.jsonl"
    kept = len(lines(log))
    assert kept == 8 and not (tmp_path / "cut" / "synthetic.jsonl").exists()
    with log.open("a") as file:  # a kill while a batch was being written
        file.write(json.dumps({**lines(log)[0], "batch": 2}) + '\n{"target": 1, "att')
    again = Writer()
    resumed = make(again, folder="cut")
    assert resumed.rows == whole.rows and resumed.as_dict() == whole.as_dict()
    assert len(again.asked) == len(lines(tmp_path / "whole" / "attempts.jsonl")) - kept
    idle = Writer()
    assert make(idle, folder="cut").rows == whole.rows and not idle.asked  # finished: nothing is asked again


def test_a_folder_is_not_continued_with_other_settings_or_seeds(make, tmp_path):
    make()
    before = (tmp_path / "made" / "attempts.jsonl").read_bytes()
    with pytest.raises(ValueError, match="other settings or other seeds: rows_per_target was 2, is 3.*output_dir"):
        make(rows_per_target=3)
    with pytest.raises(ValueError, match="other seeds: seeds was .*'number': 3.*, is .*'number': 2"):
        make(seeds=SEEDS[:2])
    other = Writer()
    other.settings = {"model": "another"}
    with pytest.raises(ValueError, match="generator was .*writer.*another"):
        make(other)
    assert (tmp_path / "made" / "attempts.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match="The SAE has no feature 99"):  # a mistake does not claim the folder for good
        make(targets=[99], folder="late")
    assert make(folder="late").rows
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty, and holds no synthesis"):
        make(folder="mine")


def test_budgets_end_a_run_after_the_batch_that_reaches_them(make, tmp_path):
    made = make(max_rows=3)
    assert len(made.rows) == 3 and made.stopped == "3 rows are made."
    spent = make(max_tokens=1500, folder="tokens")
    attempts = lines(tmp_path / "tokens" / "attempts.jsonl")
    assert sum(each["num_tokens"] for each in attempts) == spent.num_tokens >= 1500
    assert sum(each["num_tokens"] for each in attempts[:-4]) < 1500 and "1,500 tokens" in spent.stopped
    per_target = make(attempts_per_target=2, folder="few")
    assert max(each.attempts for each in per_target.targets) == 2


def test_copies_are_not_accepted(make):
    def of_seed(conversations, *, seed, aim):
        return [f"{SEEDS[0]['text']}s" for _ in conversations]

    def of_passage(conversations, *, seed, aim):
        said = [messages[-1]["content"].split("- ") for messages in conversations]
        return [parts[1].split("\n")[0] if len(parts) > 1 else "nothing" for parts in said]

    with pytest.raises(ValueError, match="No row was accepted of .*near-duplicate .*attempts.jsonl"):
        make(of_seed)
    with pytest.raises(ValueError, match="No row was accepted of .*copies its prompt"):
        make(of_passage, rewrite_share=0.0, folder="passage")
    assert copied_share("of a tall house", ["the door of a tall house"]) == 1.0
    assert copied_share("something else entirely", ["the door of a tall house"]) == 0.0


def test_a_generator_that_repeats_itself_ends_the_run_and_keeps_what_was_made(make):
    once = Writer()

    def repeats(conversations, *, seed, aim):
        return once(conversations, seed=0, aim=aim)

    made = make(repeats, attempts_per_target=60, rows_per_target=50)
    assert 0 < len(made.rows) <= 4 and "the generator repeats itself" in made.stopped and "temperature" in made.stopped
    assert sum(each.attempts for each in made.targets) < 120


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda number: ["one"], "given 4 conversations and returned 1 answers"),
        (lambda number: "text", "returned no list"),
        (lambda number: [1] * number, "must return texts, or `None`"),
        (lambda number: [None] * number, "No row was accepted of .* attempts \\(no answer \\d+;"),
        (lambda number: ["ab"] * number, "No row was accepted of .* attempts \\(too short \\d+;"),
    ],
)
def test_a_generator_that_fails_is_told_what_is_wrong(make, answers, message):
    with pytest.raises(ValueError, match=message):
        make(lambda conversations, *, seed, aim: answers(len(conversations)))


def test_conversations_are_asked_for_in_two_steps_and_trl_trains_on_them(make, tmp_path, make_model, tokenizer):
    def chat(row):
        return {
            "prompt": [{"role": "user", "content": f"Tell me of {row['text'][:5]}"}],
            "completion": [{"role": "assistant", "content": row["text"]}],
        }

    generator = Writer()
    settings = {"reference": list(map(chat, REFERENCE)), "label_column": None}
    made = make(generator, seeds=list(map(chat, SEEDS)), **settings)
    asked = set(generator.asked)
    for row in made.rows:
        assert list(row) == ["prompt", "completion", "provenance"]
        assert row["prompt"][0]["content"] in asked  # the question that was made was put to the generator
    assert generator.aims[0] is None and generator.aims[1].rows is not None  # only answers are steered
    dataset = load_dataset("json", data_files=str(tmp_path / "made" / "synthetic.jsonl"), split="train")
    args = SFTConfig(
        output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True
    )
    trainer = SFTTrainer(make_model(), args, train_dataset=dataset, processing_class=tokenizer)
    assert trainer.train().global_step == 1
    as_messages = [{"messages": [*row["prompt"], *row["completion"]]} for row in map(chat, SEEDS)]
    with pytest.raises(ValueError, match="another form than the seeds"):
        make(generator, seeds=as_messages, folder="mixed", **settings)
    with pytest.raises(ValueError, match="different forms: conversation, text"):
        make(generator, seeds=[SEEDS[0], chat(SEEDS[1])], folder="mixed", label_column=None)
    assert not (tmp_path / "mixed").exists()


def test_local_generator_steers_each_answer_along_its_own_feature(make, make_model, tokenizer):
    model = make_model()
    pushed = []

    class Watched(LocalGenerator):
        def _text(self, text, finished):
            return text  # the tiny model writes no sentences

        def __call__(self, conversations, *, seed, aim=None):
            plain = super().__call__(conversations, seed=seed)
            steered = super().__call__(conversations, seed=seed, aim=aim)
            pushed.append((plain, steered, aim))
            return steered

    generator = Watched(model, tokenizer, max_new_tokens=24, strength=2.0, unfinished="trim")
    with pytest.raises(ValueError, match="No row was accepted|repeats itself"):
        make(generator, max_tokens=1500, min_tokens=1000, templates=Templates(new="{words}", rewrite="{words}"))
    plain, steered, aim = pushed[0]
    assert plain != steered and len(aim.rows) == len(steered)
    assert (aim.features.residual_norms > 0).all()
    same = LocalGenerator(model, tokenizer, max_new_tokens=24)
    question = [[{"role": "user", "content": "hi"}]]
    assert same(question, seed=3) == same(question, seed=3)
    other = replace(aim, features=replace(aim.features, base_model="somebody/else", fingerprint={"hidden_size": 99}))
    with pytest.raises(ValueError, match="somebody/else"):
        generator(question, seed=0, aim=replace(other, rows=(0,)))


def test_unfinished_answers_are_trimmed_to_whole_sentences_or_dropped(make_model, tokenizer):
    trims, drops = (LocalGenerator(make_model(), tokenizer, unfinished=how) for how in ("trim", "drop"))
    assert trims._text('It was "fine." I thought 3.5 st', False) == 'It was "fine."'
    assert trims._text("no end", False) is None and drops._text("One. tw", False) is None
    assert drops._text(" One. tw ", True) == "One. tw"


def test_a_base_model_goes_on_with_a_list_of_examples(make, make_model, tokenizer):
    writer = Writer()
    writer.completions = True
    assert make(writer, rewrite_share=0.0).rows
    *passages, last = writer.asked[0].splitlines()
    begin = r'A (good|bad) note with the word "\w+":'
    assert passages and all(re.match(begin + " .", line) for line in passages) and re.fullmatch(begin, last)
    chats = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]
    with pytest.raises(ValueError, match="The seeds ask something, and a base model .* answers nothing"):
        make(writer, seeds=chats, reference=chats, folder="chats", label_column=None)

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    given = []
    base = LocalGenerator(make_model(), tokenizer, max_new_tokens=8, completions=True)
    asked = [[{"role": "user", "content": "A note:"}]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            local_generator, "generate_answers", lambda _, __, prompts, **___: given.append(prompts) or ([[]], [True])
        )
        base(asked, seed=0)
    assert given == [[list(tokenizer("A note:")["input_ids"])]]
    assert base._text(" one. two\nA note: three", False) == "one. two"
    assert base._text(" one. two", False) == "one."
    with pytest.raises(ValueError, match="no chat template. If it is a base model, set `completions`"):
        LocalGenerator(make_model(), tokenizer)(asked, seed=0)
    with pytest.raises(ValueError, match="`chat_template_kwargs` have no effect"):
        LocalGenerator(make_model(), tokenizer, completions=True, chat_template_kwargs={"a": 1})


def test_targets_can_be_numbers_or_a_feature_set(make, make_sae, make_features, tmp_path):
    named = make(targets=[3, 5, 3], only_missing=False)
    assert [each.feature for each in named.targets] == [3, 5]
    sae = make_sae(1)
    chosen = FeatureSet.from_sae(sae, [5, 3])
    of_set = make(targets=chosen, only_missing=False, folder="set")
    assert [each.feature for each in of_set.targets] == [5, 3]
    with pytest.raises(ValueError, match="features of another SAE of the same block"):
        make(targets=FeatureSet.from_sae(replace(sae, W_enc=-sae.W_enc), [5]), folder="other")
    with pytest.raises(ValueError, match="The targets are of .*block 0.*, the SAE reads .*block 1"):
        make(targets=FeatureSet.from_sae(make_sae(0), [5]), folder="other")
    with pytest.raises(ValueError, match="There are no targets. Give numbers"):
        make(targets=[], folder="none")
    fired = read_all(make, sae)
    with pytest.raises(ValueError, match="no targets left: all 2 fire on the seeds already.*`only_missing`"):
        make(targets=fired[:2], only_missing=True, folder="covered")


def read_all(make, sae):
    """Features that fire on the seeds."""
    made = make(targets=list(range(24)), only_missing=False, folder="all", max_rows=1)
    held = json.loads((made.folder / "targets.json").read_text(encoding="utf-8"))["targets"]
    return [each["feature"] for each in held if each["seed_rate"] > 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": []}, "There are no seeds"),
        ({"targets": [99]}, "The SAE has no feature 99: it has 24"),
        ({"targets": "missing", "reference": None}, "`targets='missing'` needs `reference`"),
        ({"rows_per_target": 0}, "`rows_per_target` must be 1 or more"),
        ({"rewrite_share": 2.0}, "`rewrite_share` must be from 0 to 1"),
        ({"duplicate_threshold": 0.0}, "`duplicate_threshold` must be above 0"),
        ({"positions": "prompt"}, "The seeds are texts, which have no prompt"),
        ({"label_column": "mood"}, "no group column `mood`"),
        ({"reference": [{"text": ""}]}, "`text` is an empty text|no group column"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(make, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
    assert not (tmp_path / "made" / "attempts.jsonl").exists()


def test_an_sae_of_another_model_is_refused(make, make_sae):
    sae = make_sae(1)
    rows = {
        name: getattr(sae, name).repeat(*times)
        for name, times in (("W_enc", (2, 1)), ("W_dec", (1, 2)), ("b_dec", (2,)))
    }
    wide = replace(sae, **rows)
    with pytest.raises(ValueError, match="was it trained on this model"):
        make(sae=wide)
    with pytest.raises(ValueError, match="The SAE reads block 7"):
        make(sae=make_sae(7), folder="deep")


def test_templates_are_checked():
    with pytest.raises(ValueError, match="`new`.*\\{what\\}"):
        Templates(new="Write a {mood} text")
    with pytest.raises(ValueError, match="no template 'old'. Known: new"):
        Templates.from_dict({"old": "x"})


def test_attempts_of_a_batch_are_whole_or_not_there(tmp_path):
    log = Attempts(tmp_path / "attempts.jsonl")
    record = {"target": 0, "reason": None, "num_tokens": 3}
    log.add([record, {**record, "reason": "loop", "target": 1}])
    log.add([record])
    whole = log._path.read_bytes()
    for cut in range(len(whole)):
        log._path.write_bytes(whole[:cut])
        again = Attempts(log._path)
        first = len(whole.splitlines(keepends=True)[0]) + len(whole.splitlines(keepends=True)[1])
        assert len(again.records) == (2 if cut >= first else 0) and len(log._path.read_bytes()) == (
            first if cut >= first else 0
        )
    assert log.reasons() == {"loop": 1} and log.num_accepted(0) == 2 and log.num_tokens == 9
