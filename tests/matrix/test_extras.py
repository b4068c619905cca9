"""What stands beside the axes: run where the machine allows, refused in one sentence, or skipped with the reason."""

import importlib.util
import os
import socket
from types import SimpleNamespace

import case as runner
import pytest
import torch
import truth
from peft import get_peft_model
from test_matrix import PLAIN, difference
from transformers import AutoModelForCausalLM

from sae_posttrain.penalty import feature_penalty

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours


@pytest.fixture
def skip(record):
    """Skip, and keep the reason for the page."""

    def give_up(what: str, reason: str) -> None:
        record(kind="extra", what=what, state="not run", remark=reason)
        pytest.skip(reason)

    return give_up


@pytest.mark.parametrize("kind", ["context", "sequence"])
def test_sharded_sequences_are_refused(kind, folder, record, monkeypatch):
    trainer = runner.build(PLAIN, folder, folder / "run")
    parallelism = SimpleNamespace(cp_enabled=kind == "context", sp_enabled=kind == "sequence")
    monkeypatch.setattr(type(trainer.accelerator), "parallelism_config", parallelism, raising=False)
    with pytest.raises(ValueError, match="does not support context or sequence parallelism") as refusal:
        trainer._refuse_what_cannot_work(trainer.args)
    record(kind="extra", what=f"SASFT, {kind} parallel", state="refused", remark=str(refusal.value))


def test_vision_datasets_are_refused(folder, record):
    trainer = runner.build(PLAIN, folder, folder / "run")
    trainer._is_vision_dataset = True
    with pytest.raises(ValueError, match="vision datasets are not supported yet") as refusal:
        trainer._prepare_dataset(trainer.train_dataset, None, trainer.args, False, None, "train")
    record(kind="extra", what="SASFT, vision-language dataset", state="refused", remark=str(refusal.value))


def test_a_prefix_cannot_be_checkpointed(folder):
    """As `axes.EXCLUDED` says; in plain TRL too."""
    for trainer in ("SFT", "SASFT"):
        prefix = {**PLAIN, "trainer": trainer, "tuning": "prefix tuning", "checkpointing": "non-reentrant"}
        with pytest.raises((RuntimeError, ValueError), match="must match the size|gradient checkpointing"):
            runner.run(prefix, folder, folder / "run")


def test_a_penalty_that_is_off_by_a_hundredth_is_seen(folder, plain_gradient, monkeypatch):
    """The comparison itself: a wrong scale of the penalty stands far out of the tolerance."""
    summed = feature_penalty.excess_sum
    monkeypatch.setattr(feature_penalty, "excess_sum", lambda *args: 1.01 * summed(*args))
    relative, _ = difference(runner.run(PLAIN, folder, folder / "run"), plain_gradient(PLAIN))
    assert relative > 1e-4


@pytest.mark.slow
def test_4_bit_weights_with_lora_have_the_plain_gradient(folder, tokenizer, make_features, record, skip, monkeypatch):
    what = "SASFT, LoRA on 4-bit weights (QLoRA, bitsandbytes)"
    if importlib.util.find_spec("bitsandbytes") is None:
        skip(what, "bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    load = AutoModelForCausalLM.from_pretrained

    def load_quantized(path):
        return load(path, quantization_config=quantized, device_map={"": "cpu"})

    lora = {**PLAIN, "tuning": "LoRA"}
    monkeypatch.setattr(runner, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=load_quantized))
    found = runner.run(lora, folder, folder / "run")
    model = get_peft_model(load_quantized(folder / "model"), runner.peft_config("LoRA"))
    runner.settle(model)
    plain = truth.gradients(lora, model, tokenizer, make_features())
    relative, largest = difference({key: grad.float() for key, grad in found.items()}, plain)
    remark = "On the CPU. Plain gradient of the same 4-bit weights; TRL keeps the adapter in bfloat16."
    record(kind="extra", what=what, state="green", relative=relative, largest=largest, remark=remark)
    assert relative < 0.06


@pytest.mark.slow
def test_liger_kernels_have_the_plain_gradient(folder, plain_gradient, record, skip, monkeypatch):
    what = "SASFT, Liger kernels"
    if importlib.util.find_spec("liger_kernel") is None:
        skip(what, "liger-kernel is not installed")
    remark = ""
    kernels: dict[str, object] = {"use_liger_kernel": True}
    if not torch.cuda.is_available():
        if os.environ.get("TRITON_INTERPRET") != "1":
            skip(what, "Triton kernels need a GPU, or TRITON_INTERPRET=1")
        kernels["liger_kernel_config"] = {"rms_norm": False, "swiglu": False}
        remark = "In Triton's interpreter, rotary embedding only: RMSNorm and SwiGLU do not run in it."
    settings = runner.settings
    monkeypatch.setattr(runner, "settings", lambda *args: {**settings(*args), **kernels})
    relative, largest = difference(runner.run(PLAIN, folder, folder / "run"), plain_gradient(PLAIN))
    record(kind="extra", what=what, state="green", relative=relative, largest=largest, remark=remark)
    assert relative < 1e-5


@pytest.mark.slow
def test_activation_offloading_has_the_plain_gradient(folder, plain_gradient, record, skip, monkeypatch):
    what = "SASFT, activation offloading"
    if not torch.accelerator.is_available():
        skip(what, "TRL offloads from an accelerator, and fails without one")
    settings = runner.settings
    monkeypatch.setattr(
        runner, "settings", lambda *args: {**settings(*args), "activation_offloading": True, "use_cpu": False}
    )
    relative, largest = difference(runner.run(PLAIN, folder, folder / "run"), plain_gradient(PLAIN))
    record(kind="extra", what=what, state="green", relative=relative, largest=largest)
    assert relative < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_has_the_plain_gradient(stage, folder, plain_gradient, make_model, record, skip, monkeypatch):
    """One process. DeepSpeed steps inside its backward, so the gradient is told from what one step of SGD moved."""
    what = f"SASFT, DeepSpeed ZeRO-{stage}"
    if importlib.util.find_spec("deepspeed") is None:
        skip(what, "DeepSpeed is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    # On a CPU DeepSpeed compiles a faster communication in C++ first, for minutes; without it gloo does.
    communication = importlib.import_module("deepspeed.comm.torch")
    monkeypatch.setattr(communication, "build_shm_op", lambda: None)
    zero = {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    settings = runner.settings
    monkeypatch.setattr(runner, "settings", lambda *args: {**settings(*args), "deepspeed": zero})
    trainer = runner.build(PLAIN, folder, folder / "run")
    trainer.train()
    full = importlib.import_module("deepspeed.utils").safe_get_full_fp32_param
    start = dict(make_model().named_parameters())
    moved = {
        name: (start[name].detach() - full(parameter)) / trainer.args.learning_rate
        for name, parameter in trainer.model.named_parameters()
    }
    relative, largest = difference(moved, plain_gradient(PLAIN))
    remark = "One process on the CPU, over gloo; from the weights before and after."
    record(kind="extra", what=what, state="green", relative=relative, largest=largest, remark=remark)
    assert relative < 1e-4
