import pytest
import torch

from sae_posttrain.serving.refusals import refuse_engine
from sae_posttrain.serving.worker_mixin import read_pushes

from .conftest import make_config

REFUSED = [
    ("speculative_config", object(), "speculative decoding.*Remove"),
    ("kv_transfer_config", object(), "KV connector.*Remove `kv_transfer_config`"),
    ("parallel_config.pipeline_parallel_size", 2, "pipeline parallelism.*Use tensor parallelism"),
    ("parallel_config.prefill_context_parallel_size", 2, "context parallelism.*Set its sizes to 1"),
    ("parallel_config.decode_context_parallel_size", 2, "context parallelism.*Set its sizes to 1"),
    ("parallel_config.use_ubatching", True, "micro-batches.*Remove `enable_dbo`"),
    ("compilation_config.pass_config.enable_sp", True, "sequence-parallel.*enable_sp` to false"),
    ("cache_config.kv_sharing_fast_prefill", True, "shared KV caches.*Remove `kv_sharing_fast_prefill`"),
    ("model_config.using_transformers_backend", lambda: True, "Transformers backend.*model_impl='vllm'"),
]


def set_in(config, path, value):
    *parents, last = path.split(".")
    for parent in parents:
        config = getattr(config, parent)
    setattr(config, last, value)


def test_a_plain_engine_is_accepted():
    refuse_engine(make_config())


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_settings_that_move_or_drop_tokens_are_refused(path, value, message):
    config = make_config()
    set_in(config, path, value)
    with pytest.raises(ValueError, match=message):
        refuse_engine(config)


def test_deepseek_is_refused_in_float16_only():
    config = make_config()
    config.model_config.hf_text_config.model_type = "deepseek_v3"
    config.model_config.dtype = torch.bfloat16
    refuse_engine(config)
    config.model_config.dtype = torch.float16
    with pytest.raises(ValueError, match="DeepSeek in float16.*bfloat16"):
        refuse_engine(config)


def test_an_engine_with_a_refused_setting_loads_no_model(make_worker):
    worker = make_worker()
    worker.vllm_config.speculative_config = object()
    del worker.model_runner
    with pytest.raises(ValueError, match="speculative"):
        worker.load_model()
    assert not hasattr(worker, "model_runner")


def test_an_engine_without_features_is_refused():
    with pytest.raises(ValueError, match="names no features.*engine_arguments"):
        read_pushes(make_config())


def test_features_of_another_model_are_refused(make_worker, make_set):
    with pytest.raises(ValueError, match="for block 5, the model has blocks 0 to 1"):
        make_worker({"mine": make_set(blocks=(0, 5))})
    worker = make_worker()
    worker.vllm_config.model_config.hf_text_config.hidden_size = 16
    with pytest.raises(ValueError, match="width 8, the model's blocks write 16"):
        worker.load_model()


def test_a_fine_tuned_copy_has_to_be_allowed(make_set, tmp_path):
    from dataclasses import replace

    from sae_posttrain.serving.engine import engine_arguments

    path = replace(make_set(), base_model="org/base").save(tmp_path / "mine.safetensors")
    config = make_config(engine_arguments(path))
    config.model_config.hf_config._name_or_path = "org/tuned"
    with pytest.raises(ValueError, match="found on 'org/base', this model is 'org/tuned'"):
        read_pushes(config)
    config.additional_config = engine_arguments(path, allow_base_model="org/tuned")["additional_config"]
    assert len(read_pushes(config).pushes) == 2


def test_a_file_that_changed_since_is_refused(make_worker, make_set, tmp_path):
    worker = make_worker()
    make_set(seed=1).save(tmp_path / "mine.safetensors", overwrite=True)
    with pytest.raises(ValueError, match="has changed since the engine's arguments were made"):
        worker.load_model()
