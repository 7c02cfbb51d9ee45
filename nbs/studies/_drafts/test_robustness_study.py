"""The study of robustness: its sentences have their rows, and verdicts follow the intervals."""
import numpy as np
import pandas as pd
import pytest

from vqvae.studies import robustness as page
from vqvae.studies.robustness import CHANGES, SENTENCES, compare, measure, robustness, summarize


def rows() -> pd.DataFrame:
    "Rows in which FSQ is 10 % higher than the rest, and as good with twice the learning rate."
    table = pd.DataFrame(robustness.jobs())
    worse = (table.method == "FSQ") & (table.change != "learning rate × 2")
    noise = np.random.default_rng(0).lognormal(sigma=0.01, size=len(table))
    table["distortion"] = (1 + table.seed) * noise * np.where(worse, 1.1, 1.0)
    return table


def test_every_sentence_is_compared_under_every_change():
    table = compare(rows())
    assert not table.isna().any().any()
    tasks = table.groupby("sentence").task.nunique()
    assert tasks.to_dict() == {"three lines more": 3, "averages and revival": 4, "standardizing": 2,
                               "FSQ": 4, "rotation": 3, "k-means start": 3}
    assert len(table) == tasks.sum() * (len(CHANGES) - 1) and {*tasks.index} == {*SENTENCES}


def test_a_sentence_that_flips_is_shown():
    table = summarize(rows())
    fsq = table[table.sentence == "FSQ"]
    assert fsq.usual.str.endswith("higher").all()
    assert (fsq["learning rate × ½"] == "✓").all() and (fsq["learning rate × 2"] != "✓").all()


def test_a_change_reaches_what_it_names():
    assert page._factor("length × ½", "length") == 0.5 and page._factor("none", "length") == 1
    assert page._factor("length × 2", "memory") == 1
    twice, half, usual = map(page._learning, ("memory × 2", "memory × ½", "length × 2"))
    assert twice is not None and twice.memory == 20 and half is not None and half.decay == 0.8
    assert usual is None


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="method must be one of"):
        measure("gaussian", "VQ", "none", 0)
    with pytest.raises(ValueError, match="change must be one of"):
        measure("gaussian", "FSQ", "seed", 0)
