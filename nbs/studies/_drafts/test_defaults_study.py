"""The study of defaults: its grid has what its comparisons need, and they find a known effect."""
import numpy as np
import pandas as pd
import pytest

from vqvae.studies import defaults as page
from vqvae.studies.defaults import CUSTOMARY, DEFAULT, LEVELS, changes, defaults, main_effects

EFFECT = {"input": {"raw": 2.0}, "rule": {"loss": 1.5}, "revival": {"none": 3.0}}


def rows() -> pd.DataFrame:
    "Rows in which every choice multiplies the distortion by a known number."
    table = pd.DataFrame(defaults.jobs())
    factors = [table[name].map(lambda level, name=name: EFFECT[name].get(level, 1.0))
               for name in EFFECT]
    noise = np.random.default_rng(0).lognormal(sigma=0.001, size=len(table))
    table["distortion"] = np.prod(factors, axis=0) * (1 + table.seed) * noise
    return table.assign(dead_share=0.0)


def test_the_corners_and_every_level_are_in_the_grid():
    grid = pd.DataFrame(defaults.grid)
    for task, part in grid.groupby("task"):
        for corner in (CUSTOMARY, DEFAULT):
            fixed = {name: level for name, level in corner.items()
                     if (name, task) != ("input", "gaussian")}
            assert (part[[*fixed]] == pd.Series(fixed)).all(axis=1).any()
        for factor in page._choices(str(task)): assert set(part[factor]) == set(LEVELS[factor])


def test_changes_and_main_effects_find_a_known_effect():
    table = rows()
    single, main = changes(table), main_effects(table)
    assert set(single.pairs) == {5} == set(main.pairs)
    for found, level, factor in ((main, "mean image", 1 / 2), (main, "growing", 1 / 1.5),
                                 (main, "default", 1 / 3), (main, "k-means", 1.0)):
        part = found[found.level == level]
        assert len(part) == (3 if level == "mean image" else 4)
        assert np.allclose(1 + part.difference / 100, factor, rtol=5e-3)
    taken = single[(single.corner == "default") & (single.level == "none")]
    assert np.allclose(1 + taken.difference / 100, 3.0, rtol=5e-3)
    scalar = single[single.level == "scalar"].set_index("corner").difference
    assert np.allclose(1 + scalar["customary"] / 100, 0.5, rtol=5e-3)
    assert (scalar["default"].abs() < 1).all()


@pytest.mark.parametrize(("make", "level"), [
    (page._learning, "EMA"), (lambda level: page._revival(level, 0), "50 steps"),
    (lambda level: page._data("digits conv", level), "unit"),
])
def test_unknown_levels_are_refused(make, level):
    with pytest.raises(ValueError, match="must be one of"): make(level)
