"""Each published layout is recognised and read, in part as in whole (the formulas: in the test of its reader)."""

import importlib.util
from pathlib import Path

import pytest
import torch

from sae_posttrain.saes import FORMATS, load_sae
from sae_posttrain.saes.loading import list_saes
from sae_posttrain.saes.stored.files import find_files

spec = importlib.util.spec_from_file_location("layouts", Path(__file__).with_name("layouts.py"))
layouts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(layouts)


@pytest.fixture(params=layouts.LAYOUTS)
def layout(request):
    return layouts.LAYOUTS[request.param]


def test_every_format_has_an_example():
    assert {layout.format for layout in layouts.LAYOUTS.values()} == set(FORMATS)


def test_it_is_recognised_with_its_block_and_site(tmp_path, layout):
    layouts.write(layout, tmp_path)
    listed = list_saes(find_files(tmp_path))
    assert list(listed) == [layout.format]
    (found,) = listed[layout.format]
    assert (found.file, found.block) == (layout.weights, layouts.BLOCK)
    assert found.site == layout.site


def test_it_is_read_without_naming_its_format(tmp_path, layout):
    arguments = layouts.write(layout, tmp_path)
    del arguments["format"]
    sae = load_sae(tmp_path, **arguments)
    assert (sae.num_features, sae.d_model) == (24, 6)
    assert (sae.block, sae.site, sae.activation) == (layouts.BLOCK, layout.site, layout.activation)
    assert sae.source.format == layout.format


def test_chosen_features_are_those_of_the_full_sae(tmp_path, layout):
    arguments = layouts.write(layout, tmp_path)
    full = load_sae(tmp_path, **arguments)
    chosen = [17, 0, 23]
    some = load_sae(tmp_path, **arguments, features=chosen)
    torch.testing.assert_close(some.W_enc, full.W_enc[:, chosen])
    torch.testing.assert_close(some.b_enc, full.b_enc[chosen])
    torch.testing.assert_close(some.directions, full.directions[chosen])
    assert some.b_dec.equal(full.b_dec)
    for name in ("threshold", "decoder_norm", "magnitude_scale", "magnitude_shift"):
        if getattr(full, name) is not None:
            torch.testing.assert_close(getattr(some, name), getattr(full, name)[chosen])


def test_it_encodes_and_reconstructs(tmp_path, layout):
    sae = load_sae(tmp_path, **layouts.write(layout, tmp_path))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    assert sae.encode(x).any()
    assert sae.reconstruct(x).isfinite().all()
