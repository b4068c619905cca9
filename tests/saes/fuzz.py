"""
Hostile and damaged SAE files and feature sets, and what must hold when one is loaded.

Case `n` is always the same: an SAE of some layout or a feature set, one mutation of its files, and a load of all or of
two features. It must end with the right numbers or with an error of ours, within `MAX_SECONDS` and `MAX_BYTES` above
what the files hold; nothing in them runs and nothing is written.
"""

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

import sae_posttrain
from sae_posttrain import FeatureSet, load_sae
from sae_posttrain.features.set.source import FeatureSource


def _sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layouts, fuzz_files, fuzz_containers = _sibling("layouts"), _sibling("fuzz_files"), _sibling("fuzz_containers")
fuzz_pickles, fuzz_configs, watch = _sibling("fuzz_pickles"), _sibling("fuzz_configs"), _sibling("fuzz_watch")

MAX_SECONDS = 1.0
MAX_BYTES = 64 << 20
MAX_MESSAGE_CHARACTERS = 4_000

EXPECTED = {
    "accepted": "loads, with the numbers of the file before the mutation",
    "read": "loads, with finite numbers",
    "refused": "an error",
    "unchanged": "an error, or the numbers of the file before the mutation",
    "anything": "an error, or finite numbers of the right shapes",
}
SOME_FEATURES = (3, 17)
HUGE_EVERY = 100
"""One case in so many is of those too large for the quick test, which has no more than `NUM_QUICK`."""
NUM_QUICK = 300

QUICK = fuzz_files.MUTATIONS | fuzz_containers.MUTATIONS | fuzz_pickles.MUTATIONS | fuzz_configs.MUTATIONS
HUGE = fuzz_containers.HUGE | fuzz_pickles.HUGE | fuzz_configs.HUGE


# What is mutated


@dataclass(frozen=True)
class Target:
    """A valid SAE or feature set: its files, what is in them, and how to write and load them again."""

    name: str
    weights: str
    files: dict[str, bytes]
    tensors: dict[str, Tensor]
    content: dict[str, Any]
    settings: dict[str, Any] | None
    pack: Callable[[dict[str, Any]], bytes]
    configured: Callable[[bytes], dict[str, bytes]]
    load: Callable[[Path, bool, bool], Any]

    @property
    def kind(self) -> str:
        return {".safetensors": "safetensors", ".npz": "npz"}.get(Path(self.weights).suffix, "pt")

    def is_of(self, kind: str) -> bool:
        """Whether a mutation for this kind of target applies."""
        zipped = kind == "zip" and self.kind in ("pt", "npz")
        return (
            kind in ("all", self.kind)
            or zipped
            or (kind == "config" and self.settings is not None)
            or (kind == "sae" and self.name != "feature set")
        )

    def saved(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Its files with other tensors."""
        return {**self.files, self.weights: self.pack(tensors)}

    zipped = staticmethod(fuzz_containers.zipped)


def _sae_target(name: str) -> Target:
    layout = layouts.LAYOUTS[name]
    with tempfile.TemporaryDirectory() as folder:
        arguments = layouts.write(layout, Path(folder))
        files = {file: (Path(folder) / file).read_bytes() for file in (layout.weights, layout.config) if file}
    content = layouts.make_tensors(layout, 24, 6)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in content.items() if name not in tensors}

    def pack(changed: dict[str, Any]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(layout.weights).name
            layouts.save(path, layout.wrap({**changed, **others}))
            return path.read_bytes()

    def load(folder: Path, some: bool, named: bool) -> Any:
        format = {"format": arguments["format"]} if named else {"format": None}
        return load_sae(folder, **{**arguments, **format}, features=SOME_FEATURES if some else None)

    return Target(
        name=name,
        weights=layout.weights,
        files=files,
        tensors=tensors,
        content=layout.wrap(content),
        settings=json.loads(files[layout.config]) if layout.config else None,
        pack=pack,
        configured=lambda text: {**files, layout.config: text},
        load=load,
    )


HEADER = "sae_posttrain"


def _feature_target() -> Target:
    random = torch.Generator().manual_seed(0)
    matrix, vector = torch.randn(2, 6, generator=random), torch.rand(2, generator=random)
    source = FeatureSource("owner/sae", "layer0.sae.pt", "qwen_scope", "a" * 40, "b" * 64)
    features = FeatureSet(
        encoder_rows=matrix,
        encoder_bias=vector,
        directions=-matrix,
        blocks=(0, 3),
        feature_ids=(3, 17),
        names=("0.3", "3.17"),
        sites=("resid_post", "resid_post"),
        thresholds=vector,
        groups=("zh", "ko", "en"),
        mean=matrix[:, :3],
        std=matrix[:, :3].abs(),
        scores={"monolinguality": vector},
        residual_norms=vector,
        sources=(source, source),
        base_model="Qwen/Qwen3-1.7B-Base",
        target_groups=("zh",),
        notes={"num_texts": 12, "check": {"passed": [True, 1.5]}},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = features.save(folder)
        name, files = path.name, {path.name: path.read_bytes()}
    tensors = dict(sorted(safetensors.torch.load(files[name]).items()))  # it returns them in any order
    size = int.from_bytes(files[name][:8], "little")
    header = json.loads(files[name][8 : 8 + size])
    text = header["__metadata__"][HEADER]

    def configured(changed: bytes) -> dict[str, bytes]:
        header["__metadata__"] = {HEADER: changed.decode(errors="surrogateescape")}
        return {name: fuzz_containers.with_header(json.dumps(header).encode(), files[name][8 + size :])}

    return Target(
        name="feature set",
        weights=name,
        files=files,
        tensors=tensors,
        content=dict(tensors),
        settings=json.loads(text),
        pack=lambda changed: safetensors.torch.save(changed, {HEADER: text}),
        configured=configured,
        load=lambda folder, some, named: FeatureSet.load(folder / name if named else folder),
    )


@cache
def targets() -> tuple[Target, ...]:
    """An SAE of each layout, and a feature set for every eighth of them."""
    saes = [_sae_target(name) for name in layouts.LAYOUTS]
    return (*saes, *[_feature_target()] * (1 + len(saes) // 8))


# Cases


class Case(NamedTuple):
    """One load: of `files`, of all or two features, with the format named or found out."""

    number: int
    mutation: str
    target: Target
    files: dict[str, Any]
    expected: str
    some: bool
    named: bool


class Outcome(NamedTuple):
    """What came of a case. `busy_seconds` are of the processor; `faults` says what should not have been."""

    number: int
    mutation: str
    target: str
    accepted: bool
    message: str
    seconds: float
    busy_seconds: float
    file_bytes: int
    peak_bytes: int | None
    faults: list[str]


def make_case(number: int) -> Case:
    """Case `number`, always the same."""
    random = Random(number)
    table = HUGE if number >= NUM_QUICK and number % HUGE_EVERY == 0 else QUICK
    mutation = list(table)[(number // HUGE_EVERY if table is HUGE else number) % len(table)]
    change, expected, kind = table[mutation]
    target = random.choice([target for target in targets() if target.is_of(kind)])
    files = change(random, target)
    return Case(number, mutation, target, files, expected, random.random() < 0.5, random.random() < 0.5)


class Load(NamedTuple):
    """A load under watch: what it returned or raised, what it took, and what it did that no reading needs."""

    result: Any
    error: BaseException | None
    seconds: float
    busy_seconds: float
    peak_bytes: int | None
    seen: list[str]


def run_case(number: int) -> Outcome:
    """Load case `number` under watch."""
    case = make_case(number)
    expected = baseline(case.target, case.some)
    with tempfile.TemporaryDirectory() as outside, chdir(outside):
        folder = Path(outside) / "folder"  # a link to ".." leads to no foreign file
        folder.mkdir()
        num_bytes = fuzz_files.write(folder, case.files)
        before = watch.contents(outside)
        load = load_watched(case, folder)
        allowed = max(num_bytes, sum(tensor.nbytes for tensor in tensors_of(load.result).values())) + MAX_BYTES
        if (load.peak_bytes or 0) > allowed:  # or the system took back pages of a library that it had dropped
            load = load_watched(case, folder)
        faults = [f"did {event}" for event in load.seen]
        if watch.contents(outside) != before:
            faults.append("changed the folder")
    if load.busy_seconds > MAX_SECONDS:  # a busy machine is no fault; a load that waits is broken off
        faults.append(f"took {load.busy_seconds:.2f} s")
    if (load.peak_bytes or 0) > allowed:
        faults.append(f"took {load.peak_bytes} bytes for files of {num_bytes}")
    error = load.error
    faults += judge_error(error, case) if error is not None else judge_result(load.result, expected, case)
    return Outcome(
        number=number,
        mutation=case.mutation,
        target=case.target.name,
        accepted=error is None,
        message="" if error is None else f"{type(error).__name__}: {error}",
        seconds=load.seconds,
        busy_seconds=load.busy_seconds,
        file_bytes=num_bytes,
        peak_bytes=load.peak_bytes,
        faults=faults,
    )


def load_watched(case: Case, folder: Path) -> Load:
    result, error = None, None
    held = watch.start_of_memory()
    with watch.watched() as seen, watch.broken_off():
        start, started = time.perf_counter(), time.thread_time()
        try:
            result = case.target.load(folder, case.some, case.named)
        except BaseException as raised:  # whatever it is: judged later
            error = raised
        seconds, busy_seconds = time.perf_counter() - start, time.thread_time() - started
    peak = None if held is None else watch.memory("VmHWM") - held
    return Load(result, error, seconds, busy_seconds, peak, seen)


def judge_error(error: BaseException, case: Case) -> list[str]:
    """What is wrong with a refusal: it should not be one, is not ours, or says nothing."""
    message = str(error)
    if type(error) not in (ValueError, FileNotFoundError):
        return [f"raised {type(error).__name__}: {message[:200]} in {place_of(error)}"]
    faults = []
    if not place_of(error).startswith("sae_posttrain/") or message.startswith(PYTHONS_OWN):
        faults.append(f"is not our error: {message[:200]} in {place_of(error)}")
    if not message or len(message) > MAX_MESSAGE_CHARACTERS or not message.isprintable():
        faults.append(f"is no paragraph: {len(message)} characters, {message[:200]!a}")
    if case.expected in ("accepted", "read"):
        faults.append(f"refused what is right: {message[:300]}")
    return faults


PYTHONS_OWN = ("Exceeds the limit", "invalid literal for", "could not convert", "not enough values", "too many values")
PYTHONS_OWN += ("embedded null", "cannot convert float", "math domain", "must be real number", "has no attribute")


def place_of(error: BaseException) -> str:
    """File and line that raised it; relative to the package's folder if it lies in there."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "nowhere"
    above = Path(sae_posttrain.__file__).parent.parent
    file = Path(trace.tb_frame.f_code.co_filename)
    return f"{file.relative_to(above) if file.is_relative_to(above) else file}:{trace.tb_lineno}"


MAY_BE_NAN = ("thresholds", "residual_norms", "scores.monolinguality")


def judge_result(result: Any, expected: Any, case: Case) -> list[str]:
    """What is wrong with an SAE or feature set that was accepted."""
    found, right = tensors_of(result), tensors_of(expected)
    faults = []
    for name, tensor in found.items():
        of_feature_set = isinstance(result, FeatureSet) and name in MAY_BE_NAN
        if not (tensor.isfinite() | (tensor.isnan() & of_feature_set)).all():
            faults.append(f"accepted {name} that is not finite")
        if name in right and tensor.shape != right[name].shape:
            faults.append(f"accepted {name} of shape {tuple(tensor.shape)}")
    same = found.keys() == right.keys() and all(same_values(found[name], right[name]) for name in found)
    same = same and all(getattr(result, name, None) == getattr(expected, name, None) for name in MEANING)
    if case.expected == "refused" or (case.expected in ("accepted", "unchanged") and not same):
        faults.append(f"accepted, expected is: {EXPECTED[case.expected]}")
    return faults


MEANING = (
    "activation",
    "block",
    "site",
    "input_norm",
    "features",
    "blocks",
    "sites",
    "feature_ids",
    "names",
    "groups",
)
"""What a `FrozenSAE` or a `FeatureSet` says of its tensors."""


def same_values(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())


def tensors_of(result: Any) -> dict[str, Tensor]:
    """The tensors of a `FrozenSAE` or `FeatureSet` by name."""
    if result is None:
        return {}
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    values |= {f"scores.{name}": score for name, score in values.pop("scores", {}).items()}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@cache
def _baselines() -> dict[tuple[str, bool], Any]:
    """What each target holds, before any mutation; imports whatever a load imports."""
    results = {}
    for target in targets():
        with tempfile.TemporaryDirectory() as folder:
            fuzz_files.write(Path(folder), dict(target.files))
            for some in (True, False):
                results[target.name, some] = target.load(Path(folder), some, True)
    return results


def baseline(target: Target, some: bool) -> Any:
    return _baselines()[target.name, some]


def summary(outcomes: list[Outcome]) -> str:
    """Counts, and the slowest and largest cases, as lines of text."""
    accepted = sum(outcome.accepted for outcome in outcomes)
    lines = [f"{len(outcomes)} cases: {len(outcomes) - accepted} refused, {accepted} accepted"]
    slowest = sorted(outcomes, key=lambda outcome: -outcome.busy_seconds)[:5]
    lines += [f"{o.busy_seconds:.3f} s: case {o.number}, {o.mutation}, {o.target}" for o in slowest]
    largest = sorted(outcomes, key=lambda outcome: -above_files(outcome))[:5]
    lines += [f"{above_files(o) / 1e6:.1f} MB: case {o.number}, {o.mutation}, {o.target}" for o in largest]
    return "\n".join(lines)


def above_files(outcome: Outcome) -> int:
    """Most memory that a case took above the size of its files."""
    return (outcome.peak_bytes or 0) - outcome.file_bytes
