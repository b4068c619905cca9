from contextlib import nullcontext

import pytest
import torch

from sae_posttrain import SteeredGRPOConfig
from sae_posttrain.hooks.row_sampling import SAME_AS_CALL, RowSampling
from sae_posttrain.rl.kinds import RolloutKinds

STEERED, COLD = RowSampling(2.0), RowSampling(0.4)


@pytest.fixture
def make_kinds(tmp_path):
    def make(process_index=0, **settings):
        given = {"num_generations": 4, "per_device_train_batch_size": 8, "use_cpu": True, "bf16": False, **settings}
        return RolloutKinds(SteeredGRPOConfig(str(tmp_path), **given), 4, process_index, STEERED, COLD)

    return make


def test_steered_rows_come_last_and_cold_ones_before_them_also_where_a_prompt_begins_on_another_process(make_kinds):
    steered, cold = make_kinds(process_index=1, num_steered=1, num_cold=1, cold_temperature=0.4).rows(6)
    assert steered.tolist() == [False, True, False, False, False, True]
    assert cold.tolist() == [True, False, False, False, True, False]


def test_each_row_is_sampled_as_its_kind(make_kinds):
    kinds = make_kinds(num_steered=1, num_cold=1, cold_temperature=0.4)
    assert kinds.sampling_of(*kinds.rows(4)) == [SAME_AS_CALL, SAME_AS_CALL, COLD, STEERED]
    none = torch.zeros(4, dtype=torch.bool)
    assert isinstance(kinds.sampling(None, none, none), nullcontext)  # plain rollouts: the call is left alone
