"""
What the plugin touches of ms-swift 4.6.0 (`ms_swift-4.6.0-py3-none-any.whl`), written anew from its source, since that
release pins TRL below 1.0 and cannot be installed beside the TRL that ours needs. It mirrors

- `trainers/trainer_factory.py`: two tables of dotted names, by method; arguments get the fields they have;
- `trainers/arguments.py`, `trainers/seq2seq_trainer.py`, `trainers/mixin.py`: what the trainer is made with, that it
  collates by its template, and how it divides the loss;
- `template/base.py`: rows that are tokenized as they are read, `channel` carried along;
- `dataset/utils.py`: `LazyLLMDataset`;
- `utils/utils.py`: `import_external_file`.
"""

import importlib
import importlib.util
import inspect
import sys
from dataclasses import asdict, dataclass
from types import ModuleType

import torch
from transformers import Seq2SeqTrainer as HfSeq2SeqTrainer
from transformers import Seq2SeqTrainingArguments as HfSeq2SeqTrainingArguments


@dataclass
class Seq2SeqTrainingArguments(HfSeq2SeqTrainingArguments):
    enable_channel_loss: bool = False
    use_logits_to_keep: bool | None = None


class Template:
    """Tokenizes a row when it is read, and collates what it made."""

    sequence_parallel_size = 1

    def __init__(self, tokenizer, padding_free=False):
        self.tokenizer, self.padding_free = tokenizer, padding_free

    def encode(self, row):
        prompt = self.tokenizer(row["messages"][0]["content"])["input_ids"]
        answer = self.tokenizer(row["messages"][1]["content"])["input_ids"]
        encoded = {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
        return encoded | ({"channel": row["channel"]} if row.get("channel") else {})

    def data_collator(self, batch):
        length = max(len(row["input_ids"]) for row in batch)
        pads = {"input_ids": self.tokenizer.pad_token_id, "labels": -100}
        made = {n: torch.tensor([row[n] + [pad] * (length - len(row[n])) for row in batch]) for n, pad in pads.items()}
        made["attention_mask"] = torch.tensor([[i < len(row["labels"]) for i in range(length)] for row in batch])
        return made | ({"channel": [row["channel"] for row in batch]} if "channel" in batch[0] else {})


class LazyLLMDataset(torch.utils.data.Dataset):
    def __init__(self, dataset, encode):
        self.dataset, self.encode = dataset, encode

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.encode(self.dataset[index % len(self.dataset)])


class Seq2SeqTrainer(HfSeq2SeqTrainer):
    def __init__(self, model, args, template, train_dataset, eval_dataset=None, **kwargs):
        self.template = template
        self.padding_free = template.padding_free
        super().__init__(
            model=model,
            args=args,
            data_collator=template.data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=template.tokenizer,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if self.args.use_logits_to_keep is not False:
            kept = inputs["labels"].shape[1] - (inputs["labels"] != -100).int().argmax(-1).min().item() + 1
            inputs["labels"], inputs["logits_to_keep"] = inputs["labels"][:, -kept:], kept
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("channel", None)
        outputs, labels = model(**inputs), inputs["labels"]
        if num_items_in_batch is not None:
            outputs.loss = outputs.loss * ((labels[:, 1:] != -100).sum() / num_items_in_batch)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class TrainerFactory:
    TRAINER_MAPPING: dict[str, str] = {}
    TRAINING_ARGS_MAPPING: dict[str, str] = {}

    @staticmethod
    def get_cls(args, mapping):
        module, name = mapping[getattr(args, "rlhf_type", None) or args.task_type].rsplit(".", 1)
        return getattr(importlib.import_module(module), name)

    @classmethod
    def get_trainer_cls(cls, args):
        return cls.get_cls(args, cls.TRAINER_MAPPING)

    @classmethod
    def get_training_args(cls, args):
        args_class = cls.get_cls(args, cls.TRAINING_ARGS_MAPPING)
        known = inspect.signature(args_class).parameters
        return args_class(**{name: value for name, value in asdict(args).items() if name in known})


@dataclass
class SftArguments:
    """ms-swift's command line, as far as these tests go."""

    output_dir: str
    external_plugins: str
    task_type: str = "causal_lm"
    max_steps: int = 2
    per_device_train_batch_size: int = 2
    learning_rate: float = 1e-3
    logging_steps: int = 1
    save_strategy: str = "no"
    report_to: str = "none"
    use_cpu: bool = True
    disable_tqdm: bool = True
    enable_channel_loss: bool = False
    use_logits_to_keep: bool | None = None

    def __post_init__(self):
        spec = importlib.util.spec_from_file_location("_swift_external", self.external_plugins)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        self.training_args = TrainerFactory.get_training_args(self)
        self.training_args.remove_unused_columns = False


@dataclass
class RLHFArguments(SftArguments):
    rlhf_type: str = "grpo"


MEMBERS = (TrainerFactory, Seq2SeqTrainer, Seq2SeqTrainingArguments)
METHODS = {"causal_lm": "Seq2SeqTrainer", "dpo": "DPOTrainer", "grpo": "GRPOTrainer"}


def install(monkeypatch) -> None:
    """Put the stub in ms-swift's place, for one test."""
    for name in ("swift", "swift.trainers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for member in MEMBERS:
        setattr(sys.modules["swift.trainers"], member.__name__, member)
    trainers = {method: f"swift.trainers.{name}" for method, name in METHODS.items()}
    monkeypatch.setattr(TrainerFactory, "TRAINER_MAPPING", trainers)
    arguments = dict.fromkeys(METHODS, "swift.trainers.Seq2SeqTrainingArguments")
    monkeypatch.setattr(TrainerFactory, "TRAINING_ARGS_MAPPING", arguments)
    for module in ("plugin", "trainer"):  # made anew, on the stub
        monkeypatch.delitem(sys.modules, f"sae_posttrain.integrations.ms_swift.{module}", raising=False)


def sft(args, model, template, rows):
    """As `SwiftSft.run` does."""
    trainer = TrainerFactory.get_trainer_cls(args)(
        model=model, args=args.training_args, template=template, train_dataset=LazyLLMDataset(rows, template.encode)
    )
    trainer.train(None)
    return trainer
