"""What of TRL's and transformers' inside SASFTTrainer rests on. A release that moves one of these fails here first."""

import inspect

from transformers import Trainer
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_dataset_preparation_takes_what_we_pass_on():
    names = ["dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"]
    assert parameters(SFTTrainer._prepare_dataset) == ["self", *names]
    assert parameters(pack_dataset)[:4] == ["dataset", "seq_length", "strategy", "map_kwargs"]


def test_dataset_preparation_packs_after_it_selects_two_columns():
    source = inspect.getsource(SFTTrainer._prepare_dataset)
    assert 'select_columns(["input_ids", "labels"])' in source
    assert source.count("dataset.shuffle(seed=args.seed)") == 2  # before packing, and at the end


def test_columns_of_the_batch_are_kept_in_one_list():
    assert parameters(SFTTrainer._set_signature_columns_if_needed) == ["self"]
    assert "_signature_columns" in inspect.getsource(SFTTrainer._set_signature_columns_if_needed)


def test_loss_is_divided_as_ours_is():
    assert parameters(SFTTrainer.compute_loss) == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    source = inspect.getsource(SFTTrainer.compute_loss)
    assert "per_token_loss.sum() / torch.as_tensor(num_tokens).clamp(min=1)" in source
    assert "loss = loss * (self.accelerator.num_processes // self.get_tp_size())" in source
    assert parameters(Trainer.get_tp_size) == ["self"]


def test_metrics_are_lists_by_mode_that_log_averages():
    assert 'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}' in inspect.getsource(SFTTrainer)
    assert parameters(SFTTrainer.log) == ["self", "logs", "start_time"]


def test_attributes_of_the_trainer_and_its_config():
    source = inspect.getsource(SFTTrainer.__init__)
    assert "self._is_vision_dataset =" in source
    assert "self.completion_only_loss =" in source
    assert source.index("self.completion_only_loss =") < source.index("self._prepare_dataset(")
    assert isinstance(SFTConfig._VALID_DICT_FIELDS, list)
