"""Activations of texts with a known answer: some features fire on positive texts more often."""

import numpy as np
from scipy import sparse

from sae_posttrain.analysis import TextActivations

PLACES = ((1, "resid_post"), (2, "resid_post"))


def make_activations(
    values: dict, *, groups=None, keys=None, pool: str = "max", residuals: dict | None = None
) -> TextActivations:
    """From dense tables, `(N, F)`, by place."""
    num = len(next(iter(values.values())))
    return TextActivations(
        values={place: sparse.csr_array(np.asarray(table, dtype=np.float32)) for place, table in values.items()},
        feature_ids={place: np.arange(np.shape(table)[1]) for place, table in values.items()},
        num_tokens=np.full(num, 5),
        groups=tuple(groups or [""] * num),
        keys=tuple(keys or [f"{i:032x}" for i in range(num)]),
        pool=pool,
        positions="response",
        residuals=residuals or {},
        origin={"texts": {"number": num, "sha256": "0"}},
    )


def labelled(num: int = 120, seed: int = 0, first_key: int = 0) -> tuple[TextActivations, list[str]]:
    """
    Half of the texts are `bad`. In block 2 feature 3 fires on 9 of 10 bad texts and on no other; feature 0 fires on
    all texts, the rest on half of them by chance. In block 1 feature 5 fires on 6 of 10 bad texts and 4 of 10
    good ones.
    """
    rng = np.random.default_rng(seed)
    bad = np.arange(num) % 2 == 0
    tables = {place: (rng.random((num, 8)) < 0.5) * rng.random((num, 8)) for place in PLACES}
    tables[PLACES[1]][:, 3] = bad & (np.arange(num) % 20 != 0)
    tables[PLACES[1]][:, 0] = 1.0
    tables[PLACES[0]][:, 5] = np.arange(num) % 10 < np.where(bad, 6, 4)
    residuals = {place: rng.normal(size=(num, 6)).astype(np.float32) + bad[:, None] for place in PLACES}
    keys = [f"{first_key + i:032x}" for i in range(num)]
    return make_activations(tables, keys=keys, residuals=residuals), ["bad" if each else "good" for each in bad]
