"""
What a step of SASFT does beyond one of plain SFT, in counts: they are the same on every machine, as times are not.

Each number is a bound that a change may lower. One that raises it makes every step of every user slower: it needs a
reason, and the figures of `benchmarks/bench_penalties.py`.
"""

from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from trl import SFTConfig, SFTTrainer

from sae_posttrain import SASFTConfig, SASFTTrainer
from sae_posttrain.hooks.record import SiteRecorder
from sae_posttrain.penalty import loss

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique")  # operators for which the host waits
MAX_OF_A_STEP, MAX_OF_A_BLOCK = 30, 30
FREE = ("view", "t", "transpose", "slice", "select", "unsqueeze", "expand", "alias", "split", "detach", "_unsafe_view")


@dataclass
class Step:
    """What ran during a training step, forward and backward."""

    calls: Counter = field(default_factory=Counter)
    to_float32: list[torch.Size] = field(default_factory=list)  # shapes of copies
    forwards: int = 0

    @property
    def computing(self) -> int:
        """Operators that compute or copy something; views do not."""
        return sum(number for name, number in self.calls.items() if name not in FREE)

    @property
    def waiting(self) -> int:
        return sum(self.calls[name] for name in WAITING)


class Counting(TorchDispatchMode):
    """Counts the operators into a step."""

    def __init__(self, step: Step):
        super().__init__()
        self.step = step

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.step.calls[name] += 1
        if name == "_to_copy" and result.dtype == torch.float32 and args[0].dtype == torch.bfloat16:
            self.step.to_float32.append(result.shape)
        return result


@pytest.fixture
def measure(make_model, make_features, tokenizer, tmp_path):
    """A training step on so many rows, after one that warms up, with the operators counted."""

    def run(trainer_class=SASFTTrainer, *, rows=8, features=None, dtype=torch.float32, blocks=2, **kwargs) -> Step:
        row = {"prompt": "Save a page", "completion": "press the key 按下"}
        data = [row | {"lang": lang} for lang in ("en", "ko", "en", "zh")]
        settings = {
            "per_device_train_batch_size": rows, "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
            "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        }  # fmt: skip
        plain = trainer_class is SFTTrainer
        extra = {} if plain or features == "none" else {"feature_set": features or make_features()}
        trainer = trainer_class(
            make_model(num_blocks=blocks).to(dtype),
            (SFTConfig if plain else SASFTConfig)(str(tmp_path / "run"), **{**settings, **kwargs}),
            train_dataset=Dataset.from_list(data * (rows // 4)),
            processing_class=tokenizer,
            **extra,
        )
        model, batch = trainer.model, next(iter(trainer.get_train_dataloader()))
        model.train()
        num_items = (batch["labels"] != -100).sum()
        trainer.compute_loss(model, dict(batch), num_items_in_batch=num_items).backward()  # tables are moved here
        model.zero_grad()
        step = Step()
        model.register_forward_pre_hook(lambda *_: setattr(step, "forwards", step.forwards + 1))
        with Counting(step):
            trainer.compute_loss(model, dict(batch), num_items_in_batch=num_items).backward()
        return step

    return run


def test_no_forward_pass_is_added(measure):
    assert measure().forwards == measure(SFTTrainer).forwards == 1


def test_each_site_is_read_once_a_step(measure, monkeypatch):
    stored = Counter()

    def counted(recorder, place, store=SiteRecorder._store):
        keep = store(recorder, place)
        return lambda value: (stored.update([place]), keep(value))[1]

    monkeypatch.setattr(SiteRecorder, "_store", counted)
    measure()
    assert stored == {(0, "resid_post"): 2, (1, "resid_post"): 2}  # the step that warms up is the other


def test_operators_added_are_few_whatever_the_rows_and_the_features(measure, make_features):
    def added(rows, blocks, per_block):
        features = make_features(blocks=blocks, per_block=per_block)
        return measure(rows=rows, features=features).computing - measure(SFTTrainer, rows=rows).computing

    one_block = added(8, (1,), 2)
    assert 0 < one_block <= MAX_OF_A_STEP + MAX_OF_A_BLOCK
    assert added(32, (1,), 2) == added(8, (1,), 64) == one_block
    assert 0 < added(8, (0, 1), 2) - one_block <= MAX_OF_A_BLOCK


def test_the_host_waits_for_nothing_that_plain_sft_does_not_wait_for(measure):
    assert measure().waiting == measure(SFTTrainer).waiting


def test_the_residual_is_never_copied_to_float32_as_a_whole(measure, monkeypatch):
    monkeypatch.setattr(loss, "_TOKENS_PER_TILE", 16)
    plain, held = (Counter(measure(each, dtype=torch.bfloat16).to_float32) for each in (SFTTrainer, SASFTTrainer))
    added = held - plain
    assert added and all(shape.numel() <= 16 * 32 for shape in added)
