"""Pages of all features of an SAE: what they hold agrees with what the other commands measure on the same texts."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from sae_posttrain import FeatureSet, TextOptions, find_features
from sae_posttrain.analysis import browse_features, read_activations
from sae_posttrain.analysis.browse.browse import query_pages
from sae_posttrain.analysis.browse.folder import read_data, read_record
from sae_posttrain.analysis.browse.nearest import nearest_directions
from sae_posttrain.analysis.feature_page import TOKENS_AFTER, TOKENS_BEFORE
from sae_posttrain.analysis.logit_lens import lens_tokens, logit_lens
from sae_posttrain.analysis.token_readings import read_along_texts
from sae_posttrain.cli import main
from sae_posttrain.features.read.texts import tokenize

from ...chromium import CHROMIUM, NO_CHROMIUM, Browser

HOSTILE = '</script><img src=x onerror="alert(1)"> \u202e\u2028 "quoted" \\ 文件 \U0001f600'
ROWS = [
    {"lang": lang, "text": f"{text} {lang} {number} " * 4}
    for number in range(6)
    for lang, text in (("en", "open the file"), ("ko", "파일을 열고 저장"), ("ru", "открыть файл"))
]


@pytest.fixture
def pages(make_model, make_sae, tokenizer, tmp_path):
    def make(rows=ROWS, activation="topk", **options):
        sae = make_sae(1, activation)
        model = make_model()
        page = browse_features(model, sae, rows, tmp_path / "pages", tokenizer=tokenizer, overwrite=True, **options)
        return page.parent, model, sae

    return make


def score(index, name, of=""):
    values = {(each["name"], each["of"]): each["values"] for each in index["scores"]}
    return np.array(values[name, of], float)


@pytest.mark.parametrize("activation", ["topk", "jumprelu", "groupmax"])
def test_figures_are_those_of_read_activations(pages, tokenizer, activation):
    folder, model, sae = pages(activation=activation)
    index = read_data(folder, "index")
    read = read_activations(model, sae, ROWS, tokenizer=tokenizer).at()
    strongest = np.asarray(read.max(axis=0).todense()).ravel()
    np.testing.assert_allclose(score(index, "strongest_activation"), strongest, rtol=5e-3)
    counts = read_activations(model, sae, ROWS, tokenizer=tokenizer, pool="count")
    rate = np.asarray(counts.at().sum(axis=0)).ravel() / counts.num_tokens.sum()
    np.testing.assert_allclose(score(index, "firing_rate"), rate, rtol=5e-3)
    fires = read.todense() > 0
    own = np.array([group == "ko" for group in counts.groups])
    records = read_data(folder, "features-0")
    assert [sum(record[2][1]) for record in records] == fires[own].sum(axis=0).tolist()
    assert index["groups"] == [["en", 6], ["ko", 6], ["ru", 6]]


def test_scores_are_those_of_find_features(pages, make_model, tokenizer):
    folder, model, sae = pages()
    index = read_data(folder, "index")
    options = {"target_group": "ko", "num_features": 5, "tokenizer": tokenizer, "held_out": 1e-9}
    found = find_features(model, sae, ROWS, **options, text_options=TextOptions())
    # the search keeps one text of each group back at least: the scores agree where these read the same
    for name in ("monolinguality", "firing_rate", "firing_rate_elsewhere"):
        ours = score(index, name, "ko")[list(found.feature_ids)]
        np.testing.assert_allclose(ours, found.scores[name].numpy(), rtol=0.25, atol=0.02)
    assert np.all((score(index, "auroc", "ko") >= 0) & (score(index, "auroc", "ko") <= 1))
    assert score(index, "auroc", "ko")[found.feature_ids[0]] > 0.9


def test_snippets_are_the_strongest_texts_with_their_activations(pages, tokenizer):
    folder, model, sae = pages(num_snippets=3)
    index, segments = read_data(folder, "index"), read_data(folder, "texts-0")
    texts = tokenize(ROWS, tokenizer)
    along = read_along_texts(model, FeatureSet.from_sae(sae, range(sae.num_features)), texts, [sae]).activations
    for feature, record in enumerate(read_data(folder, "features-0")):
        tops = sorted((float(values[:, feature].max()) for values in along), reverse=True)
        num_firing = sum(top > 0 for top in tops)
        assert len(record[3]) == min(3, num_firing)
        for rank, (number, begin, length, flat) in enumerate(record[3]):
            group, text, lengths, _, _ = segments[number]
            levels = dict(zip(flat[::2], flat[1::2]))
            assert max(levels.values()) == max(1, round(99 * tops[rank] / tops[0]))
            starts = np.cumsum([0, *(int(each, 36) for each in lengths)])
            part = (
                text.encode("utf-16-le")[2 * starts[begin] : 2 * starts[begin + length]]
                .decode("utf-16-le")
                .strip("\ufffd")
            )  # half a letter
            assert length <= TOKENS_BEFORE + TOKENS_AFTER and part in ROWS[0]["text"] + "".join(
                row["text"] for row in ROWS if row["lang"] == index["groups"][group][0]
            )


def test_copies_of_a_text_are_shown_once(pages):
    folder, _, _ = pages([ROWS[0]] * 5 + [ROWS[4]])
    assert max(len(record[3]) for record in read_data(folder, "features-0")) == 2


def test_line_and_neighbours_name_features_of_the_sae(pages):
    folder, _, sae = pages()
    index = read_data(folder, "index")
    assert index["source"] == "load_sae('owner/sae', block=1)"
    cosines = torch.nn.functional.cosine_similarity(sae.directions[0], sae.directions, dim=1)
    cosines[0] = -2
    near = read_data(folder, "features-0")[0][1]
    assert near[0] == int(cosines.argmax()) and near[1] == pytest.approx(float(cosines.max()), abs=0.006)
    assert len(near) == 2 * 8
    few, _ = nearest_directions(torch.eye(3)[:2], 8)
    assert few.shape == (2, 1)


def test_lens_of_many_is_that_of_each(make_model, make_sae, tokenizer, monkeypatch):
    model, sae = make_model(), make_sae(1)
    monkeypatch.setattr("sae_posttrain.analysis.logit_lens._LOGITS_AT_ONCE", 1)
    found = lens_tokens(model, sae.directions, tokenizer, num_tokens=3)
    logits = sae.directions @ model.lm_head.weight.T
    logits[:, tokenizer.all_special_ids] = -torch.inf
    assert found.promoted_FK.tolist() == logits.topk(3).indices.tolist()
    logits[:, tokenizer.all_special_ids] = torch.inf
    assert found.suppressed_FK.tolist() == logits.topk(3, largest=False).indices.tolist()
    single = logit_lens(model, FeatureSet.from_sae(sae, [5]), tokenizer, num_tokens=3)[0]
    assert [token for token, _ in single.promoted] == [tokenizer.decode([i]) for i in found.promoted_FK[5].tolist()]


def test_scores_and_names_of_a_set_stand_beside_the_others(pages, make_sae, tmp_path):
    feature_set = FeatureSet.from_sae(make_sae(1), [3, 7], names=["loop", "other"])
    feature_set.scores["output"] = torch.tensor([0.25, 0.5])
    folder, _, _ = pages(feature_sets={"mine": feature_set})
    index = read_data(folder, "index")
    values = score(index, "output", "mine")
    assert values[3] == 0.25 and values[7] == 0.5 and np.isnan(values).sum() == 22
    assert index["names"] == {"3": "loop", "7": "other"}
    with pytest.raises(ValueError, match="has none. Give a set found in this SAE"):
        pages(feature_sets={"mine": FeatureSet.from_sae(make_sae(0), [3])})


def test_queries_rank_by_the_share_of_the_strongest_activation(pages, tokenizer, tmp_path):
    folder, model, sae = pages(queries=["open the file en 3"])
    (query,) = read_data(folder, "queries")
    strongest = np.array(read_record(folder)["strongest"])
    values = read_activations(model, sae, [{"text": query["query"]}], tokenizer=tokenizer).at().toarray()[0]
    shares = [share for _, share, _, _ in query["features"] if share is not None]
    assert shares == sorted(shares, reverse=True) and len(query["features"]) == (values > 0).sum()
    for row, share, value, _ in query["features"]:
        assert value == pytest.approx(values[row], rel=5e-3)
        assert share is None or share == pytest.approx(values[row] / strongest[row], abs=2e-3)
    read, _ = query_pages(model, sae, folder, ["another", query["query"]], tokenizer=tokenizer)
    assert [each["query"] for each in read_data(folder, "queries")] == ["another", query["query"]]
    assert "features fire, the first ones:" in read[0].table(tokenizer)
    with pytest.raises(ValueError, match="no token that can be read"):
        query_pages(model, sae, folder, ["x"], tokenizer=tokenizer)


def test_texts_without_groups_have_no_scores_of_groups(pages):
    folder, _, _ = pages([{"text": row["text"]} for row in ROWS])
    index = read_data(folder, "index")
    assert index["groups"] == [["Texts", 18]] and all(not each["of"] for each in index["scores"])


def test_folder_appears_whole_and_nothing_else_is_replaced(
    pages, make_model, make_sae, tokenizer, tmp_path, monkeypatch
):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no pages of features"):
        pages()
    shutil.rmtree(tmp_path / "pages")
    monkeypatch.setattr("sae_posttrain.analysis.browse.browse.write_record", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pages()
    assert list(tmp_path.iterdir()) == []


def test_hostile_text_stays_data(pages):
    folder, _, _ = pages([{"text": HOSTILE * 2}, {"text": "plain text of no harm"}], queries=[HOSTILE])
    for file in (folder / "data").iterdir():
        name, _, rest = file.read_text(encoding="utf-8").removeprefix("browse.put(").partition(",")
        json.loads(rest.rstrip().removesuffix(");"))  # one value and nothing behind it
        assert json.loads(name) == file.stem
    assert (
        "innerHTML" not in (folder / "browse.js").read_text()
        and "unsafe-inline'" not in ((folder / "index.html").read_text().partition("script-src")[2])
    )


@pytest.fixture
def run(make_model, make_sae, tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    sae = make_sae(1)
    (tmp_path / "sae").mkdir()
    weights = {"W_enc": sae.W_enc.T.contiguous(), "W_dec": sae.W_dec.T.contiguous(), "b_enc": sae.b_enc}
    torch.save(weights | {"b_dec": sae.b_dec}, tmp_path / "sae" / "layer1.sae.pt")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def call(*given):
        fixed = ["browse", str(tmp_path / "sae"), "--model", str(tmp_path / "tiny"), "--block", "1", "--k", "4"]
        return main([*fixed, "--out", str(tmp_path / "p"), *given])

    return call


def test_command_writes_pages_and_adds_queries_to_them(run, tmp_path, capsys):
    assert run("--query", "open") == 2 and "There are no pages of features" in capsys.readouterr().err
    assert run() == 2 and "--texts to make pages" in capsys.readouterr().err
    assert run("--texts", str(tmp_path / "t.jsonl"), "--max-texts", "4", "--num-snippets", "2") == 0
    assert "index.html" in capsys.readouterr().out
    index = read_data(tmp_path / "p", "index")
    assert f"load_sae({str(tmp_path / 'sae')!r}, block=1, k=4)" == index["source"] and "on 12 texts" in index["lead"]
    assert run("--texts", str(tmp_path / "t.jsonl")) == 2 and "exists already" in capsys.readouterr().err
    assert run("--query", "open the file") == 0 and "'open the file'" in capsys.readouterr().out
    assert run("--query", "open", "--max-texts", "3") == 2 and "leave out --max-texts" in capsys.readouterr().err
    assert [each["query"] for each in read_data(tmp_path / "p", "queries")] == ["open the file"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_browser_searches_sorts_and_shows_a_feature_from_the_disk(pages, tmp_path):
    rows = [{"lang": row["lang"], "text": row["text"] + HOSTILE} for row in ROWS]
    folder, _, _ = pages(rows, queries=["open the file"])

    def dom(script, fragment=""):
        (folder / "try.js").write_text(script)
        html = (folder / "index.html").read_text().replace("</body>", '<script src="try.js"></script></body>')
        (folder / "try.html").write_text(html)
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--virtual-time-budget=3000", "--dump-dom", f"file://{folder}/try.html{fragment}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout

    number = int(np.nanargmax(score(read_data(folder, "index"), "firing_rate")))
    page = dom("", f"#feature={number}")
    assert f"Feature {number}" in page and page.count('class="snippet"') == 8 and "<mark" in page
    assert "FeatureSet.from_sae(load_sae('owner/sae', block=1)" in page and "Nearest features" in page
    assert "null" not in page and "undefined" not in page
    found = dom('byId("where").value = "texts"; byId("query").value = "<IMG src"; search();')
    assert "% of its strongest" in found and ' asked"' in found and "<img" not in found
    assert "&lt;img src=x" in re.sub("<[^>]*>", "", found)  # a mark may stand within a word
    none = dom('byId("query").value = "no such token"; search();')
    assert "No feature has such a token" in none
    asked = dom('setTimeout(() => document.querySelector("#queries button").click(), 500);')
    assert 'aria-pressed="true"' in asked and "of its strongest" in asked


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
@pytest.mark.parametrize("clipboard", ["its own", "none"])
def test_a_button_copies_a_line_of_python_that_makes_the_set(run, tmp_path, clipboard):
    assert run("--texts", str(tmp_path / "t.jsonl")) == 0
    with Browser(tmp_path / "profile") as page:
        page.open((tmp_path / "p" / "index.html").as_uri())
        if clipboard == "none":  # as where a browser offers it to pages of a server alone
            page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined}); 0")
        for number in (3, 7):  # the first is kept
            page.run(f"location.hash = 'feature={number}'; 0")
            page.wait(f"document.querySelector('#feature h2')?.textContent === 'Feature {number}'")
            if number == 3:
                page.click("document.querySelectorAll('#feature .line button')[1]")
        page.click("document.querySelector('#feature .line button')")
        page.wait("document.querySelector('#feature .line button').textContent === 'Copied'")
        page.run("location.hash = ''; 0")
        page.wait("!byId('list').hidden")
        assert page.run("['  ', ' the', 'a\\n'].map(visible).join('|')") == "␣␣| the|a⏎"
        line = page.paste("byId('query')")
    assert line == f"features = FeatureSet.from_sae(load_sae({str(tmp_path / 'sae')!r}, block=1, k=4), [3, 7])"
    names = {}
    exec(f"from sae_posttrain import FeatureSet, load_sae\n{line}", names)
    assert names["features"].feature_ids == (3, 7) and names["features"].blocks == (1, 1)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_a_link_leads_to_the_page_of_this_feature_on_neuronpedia(make_model, make_sae, tokenizer, tmp_path):
    sae = make_sae(1)
    file = "Llama3_1-8B-Base-L1R-8x/checkpoints/final.safetensors"
    sae = replace(sae, source=replace(sae.source, repository="fnlp/Llama3_1-8B-Base-LXR-8x", file=file))
    index = browse_features(make_model(), sae, ROWS, tmp_path / "pages", tokenizer=tokenizer)
    with Browser(tmp_path / "profile") as page:
        page.open(f"{index.as_uri()}#feature=5")
        page.wait("document.querySelector('#feature a[rel=noreferrer]')")
        page.click("document.querySelector('#feature a[rel=noreferrer]')")
        page.wait("location.protocol !== 'file:'")
        assert page.address() == "https://www.neuronpedia.org/llama3.1-8b/1-llamascope-res-32k/5"
