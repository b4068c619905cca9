import pytest
import torch

from sae_posttrain.serving.steer_op import SITES, SteeredSite, steer_tokens

SITE = 7


@pytest.fixture
def site():
    """Two pushes of width 3, room for five tokens."""
    SITES[SITE] = SteeredSite(
        torch.zeros(5, 2), torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]), torch.zeros(2, dtype=torch.int64)
    )
    yield SITES[SITE]
    del SITES[SITE]


def test_each_token_gets_its_own_sum_of_pushes(site):
    site.coefficients[:2] = torch.tensor([[2.0, 0.0], [1.0, -1.0]])
    hidden = torch.ones(3, 3)
    pushed = steer_tokens(hidden, SITE)
    # 1 + 2 (1, 0, 2); 1 + (1, 0, 2) - (0, 3, 0); nothing
    assert pushed.tolist() == [[3.0, 1.0, 5.0], [2.0, -2.0, 3.0], [1.0, 1.0, 1.0]]
    assert hidden.tolist() == [[1.0] * 3] * 3


def test_the_op_counts_what_it_pushes(site):
    site.coefficients[:3] = torch.tensor([[2.0, 0.0], [1.0, -1.0], [0.0, 0.0]])
    steer_tokens(torch.ones(4, 3), SITE)
    assert site.counts.tolist() == [2, 1]
    steer_tokens(torch.ones(1, 3), SITE)  # a smaller step sees its own tokens only
    assert site.counts.tolist() == [3, 1]


def test_the_push_is_rounded_once(site):
    hidden = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    site.coefficients[:] = torch.tensor([0.3, 0.7])
    pushed = steer_tokens(hidden, SITE)
    assert pushed.dtype == torch.bfloat16
    assert torch.equal(pushed, hidden + torch.tensor([0.3, 2.1, 0.6]).bfloat16())
    site.coefficients.zero_()
    assert torch.equal(steer_tokens(hidden, SITE), hidden)


def test_a_step_larger_than_the_buffer_is_an_error(site):
    with pytest.raises(RuntimeError, match="size"):
        steer_tokens(torch.ones(6, 3), SITE)


def test_the_op_stays_in_a_compiled_graph_and_reads_what_changes(site):
    torch._dynamo.reset()
    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda hidden: steer_tokens(hidden * 2, SITE), fullgraph=True, backend=keep)
    hidden = torch.ones(2, 3)
    assert compiled(hidden).tolist() == [[2.0] * 3] * 2
    site.coefficients[1] = torch.tensor([1.0, 0.0])
    assert compiled(hidden).tolist() == [[2.0] * 3, [3.0, 2.0, 4.0]]
    assert len(graphs) == 1
    assert "steer_tokens" in str(graphs[0].graph)
    assert site.counts.tolist() == [1, 0]


def test_the_op_is_declared_as_it_behaves(site):
    torch.library.opcheck(steer_tokens, (torch.ones(2, 3), SITE))
