import sys
from dataclasses import replace

import pytest
import torch

from sae_posttrain.features.set.picture import draw_features


def png_size(path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])


def test_picture_of_a_set_is_written(make_features, tmp_path):
    pytest.importorskip("matplotlib")
    path = draw_features(make_features(), tmp_path / "new" / "features.png")
    assert path == tmp_path / "new" / "features.png"
    width, height = png_size(path)
    # 8 inches wide; 1.4 inches and 0.42 for each of the 4 features high; 150 dots an inch
    assert (width, height) == (1200, pytest.approx(150 * (1.4 + 4 * 0.42), abs=2))
    assert path.stat().st_size > 10_000


def test_picture_of_many_features_stays_readable(make_features, tmp_path):
    pytest.importorskip("matplotlib")
    path = draw_features(make_features(per_block=30), tmp_path / "features.png")
    assert png_size(path)[1] == pytest.approx(150 * (1.4 + 24 * 0.42), abs=2)


def test_target_without_statistics_leaves_the_other_groups_in_the_picture(make_features, tmp_path):
    pytest.importorskip("matplotlib")
    assert draw_features(make_features(targets=("zh", "ja")), tmp_path / "features.svg").is_file()


def test_set_without_statistics_cannot_be_drawn(make_features, tmp_path):
    pytest.importorskip("matplotlib")
    features = make_features()
    bare = replace(features, groups=(), mean=torch.zeros(len(features), 0), std=torch.zeros(len(features), 0))
    with pytest.raises(ValueError, match="no statistics to draw. `find_features` measures them"):
        draw_features(bare, tmp_path / "features.png")


def test_missing_matplotlib_is_answered_with_how_to_install_it(make_features, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)  # importing it now fails
    with pytest.raises(ImportError, match=r"pip install 'sae_posttrain\[plots\]'"):
        draw_features(make_features(), tmp_path / "features.png")
