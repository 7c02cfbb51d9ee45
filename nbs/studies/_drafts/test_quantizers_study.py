"The study of quantizers: the comparison that it takes out of its rows."
import numpy as np
import pandas as pd
import pytest
import torch

from vqvae.studies.quantizers import (
    METHODS,
    coded_rate,
    distance_parts,
    measure,
    quantizers,
    summarize,
    tuned_rows,
)


@pytest.fixture
def rows():
    "A distortion of 0.13 for VQ and 0.15 for everything else."
    rows = pd.DataFrame(quantizers.jobs())
    return rows.assign(validation=0.1, distortion=np.where(rows.method == "VQ", 0.13, 0.15),
                       perplexity=200.0, nominal_bits=rows.bits.astype(float),
                       coded_bits=rows.bits - 0.1,
                       dead_share=np.where(rows.seed == 0, 0.6, 0.5))


def test_the_comparison_has_every_method_once_at_every_rate(rows):
    tuned = tuned_rows(rows)
    assert not tuned.duplicated(["task", "method", "bits", "seed"]).any()
    assert len(tuned) == 6 * len(METHODS) * len(quantizers.seeds)
    assert set(tuned.start) == {"k-means", "–"} and set(tuned.length) == {1.0}


def test_every_method_is_tuned_with_the_same_budget():
    grid = pd.DataFrame(quantizers.grid)
    tried = grid[grid.part == "tuning"].drop_duplicates()
    assert set(tried.groupby(["task", "method"]).size()) == {7}


def test_the_parts_of_a_distance_multiply(rows):
    for grid in ("equal", "product"):
        parts = distance_parts(rows, grid)
        factors = 1 + parts[["training", "allocation", "product"]] / 100
        assert np.allclose(factors.prod(axis=1), 1 + parts["FSQ over VQ"] / 100)
    assert np.allclose(parts.allocation, 0)  # the best product's allocation is the best


def test_a_collapse_is_more_than_half_of_the_codes(rows):
    assert set(summarize(rows).collapsed) == {f"1 of {len(quantizers.seeds)}"}


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="method must be one of .* got 'LFQ'"):
        measure("", "gaussian", "LFQ", 8, "", 8, 1e-2, "", 1.0, 0)
    with pytest.raises(ValueError, match="training must have the shape of counts"):
        coded_rate(torch.ones(2), torch.ones(3))
