"""Whatever lies in a file of weights or in its configuration: the right SAE, or an error of ours, soon and small."""

import importlib.util
import threading
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

NUM_SLOW = 10_000


def faults_of(numbers: range) -> tuple[list[str], list]:
    outcomes = [fuzz.run_case(number) for number in numbers]
    faults = [f"case {o.number} ({o.mutation}, {o.target}): {fault}" for o in outcomes for fault in o.faults]
    return faults, outcomes


@pytest.mark.parametrize("start", range(0, fuzz.NUM_QUICK, 50))
def test_damaged_and_hostile_files_end_in_the_right_sae_or_in_our_error(start):
    faults, _ = faults_of(range(start, start + 50))
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_ten_thousand_damaged_and_hostile_files(capsys):
    faults, outcomes = faults_of(range(NUM_SLOW))
    with capsys.disabled():
        print("\n" + fuzz.summary(outcomes))
    assert not faults, "\n".join(faults)


def test_a_case_is_the_same_in_every_run():
    for number in range(0, fuzz.NUM_QUICK, 7):
        assert fuzz.make_case(number).files == fuzz.make_case(number).files


def test_every_mutation_and_every_layout_is_among_the_quick_cases():
    cases = [fuzz.make_case(number) for number in range(fuzz.NUM_QUICK)]
    assert {case.mutation for case in cases} == set(fuzz.QUICK)
    assert {case.target.name for case in cases} == {target.name for target in fuzz.targets()}


def test_the_watch_sees_what_a_file_could_make_a_process_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with fuzz.watch.watched() as seen:
        open("written", "w").close()
        exec("1")
        with pytest.raises(ModuleNotFoundError):
            __import__("fuzz_canary")
    assert [event.split()[0] for event in seen] == ["open", "exec", "import"]
    with pytest.raises(fuzz.watch.Hang), fuzz.watch.broken_off(0.05):
        threading.Event().wait()


def test_the_watch_measures_what_a_load_takes():
    held = fuzz.watch.start_of_memory()
    if held is None:
        pytest.skip("the system does not tell a process its highest memory")
    taken = bytearray(b"x" * (80 << 20))
    assert fuzz.watch.memory("VmHWM") - held > len(taken)
