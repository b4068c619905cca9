import os
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sae_posttrain
from sae_posttrain import FrozenSAE
from sae_posttrain.features.read import statistics
from sae_posttrain.features.read.statistics import GroupSums, collect_statistics
from sae_posttrain.features.read.texts import Text, TextBatch, batches
from sae_posttrain.saes.stored.source import SAESource

GROUPS = ["en", "ko", "zh"]
WIDTH = 32
NUM_FEATURES = 40
KINDS = {"topk": {"k": 5, "relu_after_topk": False}, "jumprelu": {"threshold": torch.full((40,), 0.7)}, "relu": {}}


def make_sae(kind: str, block: int) -> FrozenSAE:
    random = torch.Generator().manual_seed(block)
    return FrozenSAE(
        W_enc=torch.randn(WIDTH, NUM_FEATURES, generator=random) / 3,
        b_enc=torch.randn(NUM_FEATURES, generator=random) / 3,
        W_dec=torch.randn(NUM_FEATURES, WIDTH, generator=random),
        b_dec=torch.zeros(WIDTH),
        activation=kind,
        block=block,
        source=SAESource("", None, "sae", "by hand", Path("sae")),
        **KINDS[kind],
    )


def some_texts(num: int = 9) -> list[Text]:
    """Texts of unlike lengths; of each some tokens count, never the first."""
    random = torch.Generator().manual_seed(0)
    texts = []
    for i in range(num):
        length = 3 + 2 * i
        ids = torch.randint(4, 200, (length,), generator=random).tolist()
        counted = (torch.rand(length, generator=random) < 0.6).tolist()
        texts.append(Text(GROUPS[i % len(GROUPS)], tuple(ids), (False, True, *counted[2:])))
    return texts


def activate_one_token(sae: FrozenSAE, pre_F: Tensor) -> Tensor:
    if sae.activation == "topk":
        kept = sorted(range(len(pre_F)), key=lambda i: -float(pre_F[i]))[: sae.k]
        return torch.stack([pre_F[i] if i in kept else torch.zeros(()) for i in range(len(pre_F))])
    if sae.activation == "jumprelu":
        return torch.stack([x if x > t and x > 0 else torch.zeros(()) for x, t in zip(pre_F, sae.threshold)])
    return torch.stack([max(x, torch.zeros(())) for x in pre_F])


def read_by(model, sae: FrozenSAE, ids: tuple[int, ...]) -> Tensor:
    """What passes at the SAE's site; an attention's is the input of its projection."""
    block, seen = model.model.layers[sae.block], []
    module = {"resid_post": block, "mlp_out": block.mlp, "attn_z": block.self_attn.o_proj}[sae.site]
    with module.register_forward_hook(
        lambda _m, args, output: seen.append(args[0] if sae.site == "attn_z" else output)
    ):
        model(input_ids=torch.tensor([ids]))
    return seen[0][0]


@torch.no_grad()
def naive(model, texts, sae: FrozenSAE) -> dict[str, Tensor]:
    """One unpadded text at a time, one token at a time; everything is kept, and reduced in the end."""
    pre, acts, norms = ({group: [] for group in GROUPS} for _ in range(3))
    for text in texts:
        for token, residual_D in enumerate(read_by(model, sae, text.ids)):
            if text.counted[token]:
                pre_F = residual_D @ sae.W_enc + sae.b_enc
                pre[text.group].append(pre_F)
                acts[text.group].append(activate_one_token(sae, pre_F))
                norms[text.group].append(residual_D.norm())
    pre, acts = ({group: torch.stack(each).double() for group, each in part.items()} for part in (pre, acts))
    return {
        "num_tokens": torch.tensor([float(len(pre[group])) for group in GROUPS]),
        "mean_pre": torch.stack([pre[group].mean(dim=0) for group in GROUPS]),
        "std_pre": torch.stack([pre[group].std(dim=0, correction=0) for group in GROUPS]),
        "mean_activation": torch.stack([acts[group].mean(dim=0) for group in GROUPS]),
        "firing_rate": torch.stack([(acts[group] > 0).double().mean(dim=0) for group in GROUPS]),
        "norms": torch.stack([norm for group in GROUPS for norm in norms[group]]),
    }


def assert_same_statistics(sums: GroupSums, expected: dict[str, Tensor]) -> None:
    for name in ("num_tokens", "mean_pre", "std_pre", "mean_activation", "firing_rate"):
        torch.testing.assert_close(getattr(sums, name), expected[name].double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sums.norms.sort().values, expected["norms"].sort().values)
    torch.testing.assert_close(sums.norms.median(), expected["norms"].median())


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_dense_computation_per_group(make_model, kind):
    model, texts = make_model().eval(), some_texts()
    saes = [make_sae(kind, 0), make_sae(kind, 1)]
    sums = collect_statistics(model, batches(texts, GROUPS, 4), saes, len(GROUPS))
    assert list(sums) == [(0, "resid_post"), (1, "resid_post")]
    for sae in saes:
        assert_same_statistics(sums[sae.block, "resid_post"], naive(model, texts, sae))


def test_each_sae_is_read_at_its_own_site(make_model):
    model, texts = make_model().eval(), some_texts()
    saes = [replace(make_sae("relu", 1), site=site) for site in ("mlp_out", "attn_z", "resid_post")]
    sums = collect_statistics(model, batches(texts, GROUPS, 4), saes, len(GROUPS))
    assert list(sums) == [(1, "mlp_out"), (1, "attn_z"), (1, "resid_post")]
    for sae in saes:
        assert_same_statistics(sums[1, sae.site], naive(model, texts, sae))


def test_one_forward_pass_per_batch_serves_all_blocks(make_model):
    model, passes = make_model().eval(), []
    saes = [make_sae("topk", 0), make_sae("relu", 1)]
    with model.register_forward_pre_hook(lambda *_: passes.append(1)):
        sums = collect_statistics(model, batches(some_texts(), GROUPS, 4), saes, len(GROUPS))
    assert len(passes) == 3  # 9 texts, 4 to a batch
    first, second = sums.values()
    assert first.num_tokens.equal(second.num_tokens)


def test_what_stands_at_padding_and_uncounted_positions_does_not_matter():
    residual = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    counted = torch.tensor([[False, True, True], [False, True, False]])

    class Writer(torch.nn.Module):
        """A stand-in for a model: its one block writes the given residual."""

        def __init__(self, residual):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Identity()])
            self.weight = torch.nn.Parameter(residual)

        def get_decoder(self):
            return self

        def forward(self, **_inputs):
            return self.layers[0](self.weight)

    batch = TextBatch(torch.zeros(2, 3, dtype=torch.long), counted.long(), counted, torch.tensor([1, 0]))
    spoiled = torch.where(counted[..., None], residual, 1e6)
    sae, place = make_sae("relu", 0), (0, "resid_post")
    clean, other = (collect_statistics(Writer(r), [batch], [sae], 2)[place] for r in (residual, spoiled))
    assert clean.num_tokens.tolist() == [1, 2]
    for each in fields(GroupSums):
        assert getattr(clean, each.name).equal(getattr(other, each.name)), each.name


@pytest.mark.parametrize("tokens_per_tile", [0.5, 1, 7])
def test_tile_size_does_not_change_the_sums(make_model, monkeypatch, tokens_per_tile):
    model, sae = make_model().eval(), make_sae("topk", 1)

    def collect() -> GroupSums:
        sums = collect_statistics(model, batches(some_texts(), GROUPS, 4), [sae], len(GROUPS))
        return sums[1, "resid_post"]

    whole = collect()
    monkeypatch.setattr(statistics, "_TILE_ELEMENTS", int(tokens_per_tile * NUM_FEATURES))
    tiled = collect()
    for each in fields(GroupSums):
        torch.testing.assert_close(getattr(tiled, each.name), getattr(whole, each.name), rtol=1e-5, atol=1e-4)
    assert tiled.fired.equal(whole.fired)


def test_norms_for_the_median_stop_at_a_limit_but_the_sums_do_not(monkeypatch):
    monkeypatch.setattr(statistics, "_NORMS_KEPT", 4)
    sums = GroupSums.zeros(1, NUM_FEATURES, torch.device("cpu"))
    residual = torch.zeros(3, WIDTH)
    residual[:, 0] = torch.tensor([1.0, 2.0, 9.0])
    for _ in range(2):
        sums.add(residual, torch.zeros(3, dtype=torch.long), make_sae("relu", 0))
    assert sums.norms.tolist() == [1, 2, 9, 1]
    assert sums.num_tokens.tolist() == [6]


def test_deviation_of_a_constant_is_zero_and_not_nan():
    sums = GroupSums.zeros(1, NUM_FEATURES, torch.device("cpu"))
    sums.add(torch.ones(50, WIDTH), torch.zeros(50, dtype=torch.long), make_sae("relu", 0))
    assert (sums.std_pre >= 0).all() and sums.std_pre.max() < 1e-2


SUMS_OF_ONE_PROCESS = """
import sys
import torch
from accelerate import PartialState
from sae_posttrain.features.read.statistics import collect_statistics
torch.set_num_threads(1)
state = PartialState(cpu=True)
inputs = torch.load(sys.argv[1] + "/inputs.pt", weights_only=False)
batches = inputs["batches"][state.process_index :: state.num_processes]
sums = collect_statistics(inputs["model"], batches, inputs["saes"], 3)
torch.save({block: vars(each) for block, each in sums.items()}, f"{sys.argv[1]}/sums{state.process_index}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_add_up_to_the_sums_of_one(make_model, tmp_path):
    model, saes = make_model().eval(), [make_sae("topk", 0), make_sae("relu", 1)]
    all_batches = list(batches(some_texts(), GROUPS, 2))  # 5 batches: 3 for one process, 2 for the other
    alone = collect_statistics(model, all_batches, saes, len(GROUPS))
    torch.save({"model": model, "saes": saes, "batches": all_batches}, tmp_path / "inputs.pt")
    run_in_two_processes(SUMS_OF_ONE_PROCESS, tmp_path)
    first, second = (torch.load(tmp_path / f"sums{rank}.pt", weights_only=True) for rank in (0, 1))
    for block, sums in alone.items():
        for name, value in vars(sums).items():
            assert first[block][name].equal(second[block][name]), name  # the processes agree to the bit
            if name != "norms":
                torch.testing.assert_close(first[block][name], value, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(first[block]["norms"].sort().values, sums.norms.sort().values)


def run_in_two_processes(script: str, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = str(Path(sae_posttrain.__file__).parents[1])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": root}
    shared |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "LOCAL_WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder)],
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)
