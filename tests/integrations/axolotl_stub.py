"""
What the plugin touches of axolotl 0.19.0 (`axolotl-0.19.0-py3-none-any.whl`), written anew from its source, since that
release pins TRL 1.9.0 and cannot be installed beside the TRL that ours needs. It mirrors

- `integrations/base.py`: `BasePlugin`, and the order in which `PluginManager` calls it;
- `integrations/config.py`: `merge_input_args`, `merge_training_args`: classes put together from dotted names;
- `core/trainers/base.py`: `AxolotlTrainer.__init__`, its two collators, packs as lists of examples;
- `core/trainers/grpo/trainer.py`, `core/trainers/grpo/__init__.py`: `AxolotlGRPOTrainer`, `GRPOStrategy`;
- `core/builders/causal.py`, `core/builders/rl.py`: what a plugin's trainer is called with;
- `utils/collators/batching.py`: padding, and packs that become one row.
"""

import importlib
import sys
from dataclasses import dataclass
from types import ModuleType

import torch
from pydantic import BaseModel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from trl import GRPOConfig, GRPOTrainer


class Config(dict):
    """Answers `None` for what is not set, as `DictDefault` does."""

    __getattr__ = dict.get


class BasePlugin:
    def __init__(self): ...

    def register(self, cfg): ...

    def post_model_load(self, cfg, model): ...

    def post_trainer_create(self, cfg, trainer): ...

    def get_collator_cls_and_kwargs(self, cfg, is_eval=False): ...

    def add_callbacks_pre_trainer(self, cfg, model):
        return []


@dataclass
class AxolotlTrainingMixinsBase:
    sample_packing: bool = False
    max_seq_length: int = 2048
    include_tkps: bool = True


class AxolotlInputConfigBase(BaseModel):
    model_config = {"extra": "allow"}


class PadCollator:
    def __init__(self, tokenizer, pad_to_multiple_of=64):
        self.tokenizer, self.multiple = tokenizer, pad_to_multiple_of

    def __call__(self, features):
        rows = [self._join(feature) if isinstance(feature, list) else feature for feature in features]
        length = max(len(row["input_ids"]) for row in rows)
        length = -(-length // self.multiple) * self.multiple
        pads = {"input_ids": self.tokenizer.pad_token_id, "labels": -100, "attention_mask": 0, "position_ids": 0}
        assert set(rows[0]) <= set(pads), rows[0].keys()  # a column it does not know cannot be padded
        return {
            name: torch.tensor([[*row[name], *[pads[name]] * (length - len(row[name]))] for row in rows])
            for name in rows[0]
        }

    def _join(self, pack):
        return {name: [each for row in pack for each in row[name]] for name in pack[0] if name != "attention_mask"}


class AxolotlTrainer(Trainer):
    def __init__(self, *args, bench_data_collator=None, eval_data_collator=None, dataset_tags=None, **kwargs):
        self.eval_data_collator = eval_data_collator
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # no `num_items_in_batch` among the parameters of the model's forward
        self.train_data_collator = self.data_collator

    def get_train_dataloader(self):
        dataset, size = self.train_dataset, self.args.per_device_train_batch_size
        if not self.args.sample_packing:
            dataset = self._remove_unused_columns(dataset, description="training")
            return DataLoader(dataset, batch_size=size, collate_fn=self.data_collator)
        packs = [[dataset[i], dataset[i + 1]] for i in range(0, len(dataset), 2)]
        return DataLoader(packs, batch_size=1, collate_fn=self.data_collator)

    def get_eval_dataloader(self, eval_dataset=None):
        dataset = self._remove_unused_columns(self.eval_dataset, description="evaluation")
        return DataLoader(dataset, batch_size=2, collate_fn=self.eval_data_collator)


class AxolotlGRPOTrainer(GRPOTrainer):
    def __init__(self, *args, **kwargs):
        kwargs.pop("optimizer_cls_and_kwargs", None)
        super().__init__(*args, **kwargs)


class GRPOStrategy:
    @classmethod
    def set_trainer_args(cls, cfg):
        names = [name.rsplit(".", 1) for name in cfg["trl"]["reward_funcs"]]
        return [[getattr(importlib.import_module(module), function) for module, function in names]]

    @classmethod
    def set_trainer_kwargs(cls, cfg):
        return {}


MODULES = {
    "axolotl.integrations.base": {"BasePlugin": BasePlugin},
    "axolotl.core.trainers.base": {"AxolotlTrainer": AxolotlTrainer},
    "axolotl.core.trainers.grpo": {"GRPOStrategy": GRPOStrategy},
    "axolotl.core.trainers.grpo.trainer": {"AxolotlGRPOTrainer": AxolotlGRPOTrainer},
}


def install(monkeypatch) -> None:
    """Put the stub in axolotl's place, for one test."""
    for name, members in MODULES.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            module = ".".join(parts[:depth])
            if module not in sys.modules:
                monkeypatch.setitem(sys.modules, module, ModuleType(module))
        for member, value in members.items():
            monkeypatch.setattr(sys.modules[name], member, value, raising=False)
    for module in ("plugin", "trainer"):  # made anew, on the stub
        monkeypatch.delitem(sys.modules, f"sae_posttrain.integrations.axolotl.{module}", raising=False)


def _named(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def validate(settings) -> tuple[Config, BasePlugin]:
    """Plugins are registered first; then the configuration is checked by a class that holds theirs."""
    plugin = _named(settings["plugins"][0])()
    plugin.register(settings)
    checked = type("AxolotlInputConfig", (AxolotlInputConfigBase, _named(plugin.get_input_args())), {})
    return Config(checked(**settings).model_dump(exclude_none=True)), plugin


def build(cfg, plugin, model, tokenizer, train_dataset, eval_dataset=None, **arguments):
    """As the builders for causal models and for RL do: arguments, trainer, and the plugin's last look at it."""
    plugin.post_model_load(cfg, model)
    mixins = type("AxolotlTrainingMixins", (AxolotlTrainingMixinsBase, _named(plugin.get_training_args_mixin())), {})
    parent = GRPOConfig if cfg.rl else TrainingArguments
    args_class = dataclass(type("AxolotlArguments", (mixins, parent), {"__annotations__": {}}))
    args = args_class(
        average_tokens_across_devices=False,
        remove_unused_columns=not cfg.rl,
        **arguments,
        **plugin.get_training_args(cfg),
    )
    own = {"model": model, "data_collator": PadCollator(tokenizer), "eval_data_collator": PadCollator(tokenizer)}
    own |= {"bench_data_collator": None, "dataset_tags": []}
    trainer = plugin.get_trainer_cls(cfg)(
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        callbacks=plugin.add_callbacks_pre_trainer(cfg, model),
        processing_class=tokenizer,
        **({} if cfg.rl else own),
    )
    plugin.post_trainer_create(cfg, trainer)
    return trainer
