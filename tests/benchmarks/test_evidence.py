"""The rules of the evidence runner: how settings are merged, what is chosen, what is not run twice."""

import json
import random
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(FOLDER / "evidence"), str(FOLDER / "help")]

import run as runner  # noqa: E402
from choose import chosen_configs  # noqa: E402
from settings import Experiment, merged  # noqa: E402
from tables import claims_table  # noqa: E402
from write_report import PAGE, with_tables  # noqa: E402

EXPERIMENTS = sorted((FOLDER / "evidence").glob("*.yaml"))


def dev_run(arm: str, config: str, switching: float, loss: float) -> dict:
    langs = ("en", "es", "ko", "ru")
    return {
        "arm": arm,
        "config": config,
        "split": "dev",
        "switch_probability": {lang: [switching, switching] for lang in langs},
        "loss": dict.fromkeys((*langs, "zh"), loss),
    }


def experiment(**arms) -> Experiment:
    return Experiment(
        name="code_switching",
        module="code_switching",
        held=("en", "es", "ko", "ru"),
        common={"training": {"max_steps": 60, "penalty_weight": 0.0}},
        arms={"plain": {}, **arms},
        tune={"seed": 100, "loss_budget": 0.01},
        test={"seeds": [0, 1]},
    )


def test_settings_of_a_configuration_lie_over_those_of_its_arm_and_of_the_experiment():
    arms = {"held": {"training": {"margin": 2.0}, "configs": {"w3": {"training": {"penalty_weight": 3.0}}}}}
    settings = experiment(**arms).settings("held", "w3")
    assert settings == {"training": {"max_steps": 60, "penalty_weight": 3.0, "margin": 2.0}}
    assert merged({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": None}, "d": None}) == {"a": {"c": 2}}


def test_an_experiment_may_change_another_one(tmp_path):
    (tmp_path / "other.yaml").write_text(
        "module: m\nheld: [en]\ncommon: {a: 1, b: 2}\narms: {plain: {}}\ntune: {}\ntest: {}\n"
    )
    (tmp_path / "mine.yaml").write_text("extends: other\ncommon: {b: 3}\n")
    read = Experiment.read(tmp_path / "mine.yaml")
    assert (read.name, read.module, read.common) == ("mine", "m", {"a": 1, "b": 3})


def test_an_arm_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(ValueError, match="no arm 'sast'; it has plain"):
        experiment().settings("sast", "only")


def test_the_configuration_chosen_has_the_fewest_faults_within_the_loss_budget():
    held = {"configs": {"soft": {}, "firm": {}, "hard": {}}}
    results = [
        dev_run("plain", "only", 0.18, 3.00),
        dev_run("held", "soft", 0.12, 3.01),
        dev_run("held", "firm", 0.08, 3.02),  # 0.7 % higher loss
        dev_run("held", "hard", 0.01, 3.06),  # 2 %
    ]
    assert chosen_configs(experiment(held=held), results, ["plain", "held"]) == {"plain": "only", "held": "firm"}


def test_where_nothing_is_within_the_budget_the_smallest_loss_is_chosen():
    results = [dev_run("plain", "only", 0.18, 3.0), dev_run("held", "a", 0.1, 3.3), dev_run("held", "b", 0.05, 3.4)]
    assert chosen_configs(experiment(held={"configs": {"a": {}, "b": {}}}), results, ["held"]) == {"held": "a"}


def test_nothing_is_chosen_before_every_configuration_was_run():
    results = [dev_run("plain", "only", 0.18, 3.0), dev_run("held", "a", 0.1, 3.0)]
    with pytest.raises(ValueError, match="held: b not run on the dev pages yet"):
        chosen_configs(experiment(held={"configs": {"a": {}, "b": {}}}), results, ["held"])


def test_every_seed_runs_every_arm_before_the_next():
    jobs = experiment(held={"configs": {"w3": {}}}).test_jobs(["plain", "held"], {"plain": "only", "held": "w3"})
    assert [job.key for job in jobs] == ["test-plain-only-0", "test-held-w3-0", "test-plain-only-1", "test-held-w3-1"]


def test_a_finished_run_is_not_repeated_and_another_of_the_same_name_is_refused(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(runner, "run", lambda _, job, settings, __: made.append(job) or result(job, settings))
    arguments = type("Arguments", (), {"share": "1/1"})()
    file = tmp_path / "code_switching.jsonl"
    jobs = experiment().tuning_jobs(["plain"])
    runner.run_jobs(experiment(), jobs, file, arguments)
    runner.run_jobs(experiment(), jobs, file, arguments)
    assert len(made) == 1 and len(runner.read_results(file)) == 1
    other = json.loads(file.read_text()) | {"settings": {}}
    file.write_text(json.dumps(other) + "\n")
    with pytest.raises(ValueError, match="holds dev-plain-only-100 with other settings"):
        runner.run_jobs(experiment(), jobs, file, arguments)


def result(job, settings) -> dict:
    return {"key": job.key, "settings": settings}


def test_tables_replace_what_stands_between_the_marks():
    page = "before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n"
    assert with_tables(page, "x", "| new |") == "before\n<!-- x: begin -->\n\n| new |\n\n<!-- x: end -->\nafter\n"
    with pytest.raises(ValueError, match="no marks <!-- y: begin -->"):
        with_tables(page, "y", "")


def test_the_page_has_the_marks_of_every_experiment_with_tables_between_them():
    page = PAGE.read_text(encoding="utf-8")
    for name in (*(file.stem for file in EXPERIMENTS), "capability"):
        tables = page.split(f"<!-- {name}: begin -->\n\n")[1].split(f"\n\n<!-- {name}: end -->")[0]
        assert tables.startswith("| ")
        assert with_tables(page, name, tables) == page


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_can_be_read_and_tunes_each_arm_over_six_configurations_at_most(file):
    read = Experiment.read(file)
    for arm in read.arms:
        for config in read.configs(arm):
            assert read.settings(arm, config)


def same_script_result(drawn, experiment, arm, config, seed, split) -> dict:
    def answers(rate):
        foreign = ["".join(drawn.choices("10-", [rate, 0.9 - rate, 0.1], k=20)) for _ in range(2)]
        return {"foreign": foreign, "finished": ["0" * 20] * 2, "empty": ["0" * 20] * 2, "mean_tokens": 60.0}

    return {
        "arm": arm, "config": config, "seed": seed, "split": split, "settings": experiment.settings(arm, config),
        "loss": {lang: 3.0 + 0.01 * drawn.random() for lang in ("en", "es", "ko", "ru", "zh")}, "copying": 0.4,
        "sampled": {"asked": answers(0.2 if arm == "plain" else 0.05), "target": answers(0.1)},
    }  # fmt: skip


def test_the_report_of_one_script_stands_on_raw_results_alone(tmp_path):
    read, drawn = Experiment.read(FOLDER / "evidence" / "same_script_es.yaml"), random.Random(0)
    arms = ("plain", "sasft", "difference_of_means", "token_penalty")
    few = ("few_texts_features", "few_texts_tokens")
    results = [
        same_script_result(drawn, read, arm, config, 100, "dev")
        for arm in (*arms, *few)
        for config in read.configs(arm)
    ]
    chosen = chosen_configs(read, results, list(arms))
    results += [same_script_result(drawn, read, arm, chosen[arm], seed, "test") for arm in arms for seed in (0, 1)]
    tables = read.part("report").write(read, results, tmp_path)
    assert "Spanish in English answers: SASFT < plain SFT" in tables and "| SASFT | 25 |" in tables
    assert "logistic probe" not in tables  # which was not run
    assert {file.name for file in tmp_path.iterdir()} == {"same_script_es.png", "same_script_es_tuning.png"}


def test_every_declared_pair_counts_for_holm_and_is_tested_on_the_seeds_of_both():
    arms = {
        arm: [{"arm": arm, "seed": seed, "value": value} for seed in seeds]
        for arm, seeds, value in (("a", (0, 1), 0.1), ("b", (0, 1, 2), 0.5), ("c", (1,), 0.1))
    }

    def rows(runs):
        return [(str(page), run["seed"], run["value"] + 0.001 * page) for run in runs for page in range(50)]

    claims = {"fault": [["a", "b"], ["b", "a"], ["a", "c"], ["a", "not run"]]}
    lines = claims_table(claims, arms, {"a": "A", "b": "B", "c": "C"}, {"fault": rows}).splitlines()[2:]
    below, above, same = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert below[0] == "fault: A < B" and below[2:] == ["2 of 2", "0.0002", "0.0006", "yes"]
    assert above[2] == "0 of 2" and above[-1] == "**no, the reverse**"
    assert same[2] == "0 of 1" and same[-1] == "not shown"


def test_the_table_of_capability_pairs_documents_with_those_of_plain_sft():
    import capability

    right = dict.fromkeys(capability.LANGUAGES, "1" * 60 + "0" * 40)
    plain = {"arm": "plain", "seed": 0, "right": right}
    worse = {"arm": "sasft", "seed": 0, "right": right | {"zh": "1" * 30 + "0" * 70}}
    first, second = capability.table([worse, plain]).splitlines()[2:]
    assert first == "| plain SFT | 60.0 % | 60.0 % |"
    assert "60.0 %; +0.0" in second and "non-inferior | 30.0 %; -30.0" in second and second.endswith("inferior |")
