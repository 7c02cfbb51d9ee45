"""The study of gradients: its grid fits its functions; its identities hold beyond its page."""
import inspect

import numpy as np
import pandas as pd
import pytest
import torch

from vqvae.studies import gradients as page
from vqvae.studies.gradients import (
    ESTIMATORS,
    IMAGE_TASKS,
    best_settings,
    differences,
    gradients,
    measure,
    summarize,
    tuning_study,
)


@pytest.mark.parametrize("study", [gradients, tuning_study()], ids=lambda study: study.name)
def test_every_configuration_is_one_that_its_task_takes(study):
    for job in study.jobs():
        arguments = {name: value for name, value in job.items() if name != "task"}
        if job["task"] in page._KNOWN: inspect.signature(page._KNOWN[job["task"]]).bind(**arguments)
        else: inspect.signature(page._train).bind(task=job["task"], **arguments)
    assert len({tuple(sorted(job.items())) for job in study.jobs()}) == len(study.jobs())


def test_no_seed_of_the_tuning_is_reported_and_every_setting_was_tried():
    tuning = tuning_study()
    assert not {*tuning.seeds} & {*gradients.seeds}
    tried = {(one["task"], one["estimator"], one["learning_rate"], one["commitment"])
             for one in tuning.grid}
    reported = {(one["task"], one["estimator"], one["learning_rate"], one["commitment"])
                for one in gradients.grid if one["task"] in IMAGE_TASKS}
    assert reported <= tried and len(reported) == len(IMAGE_TASKS) * len(ESTIMATORS)


def test_the_chosen_setting_has_the_least_geometric_mean_and_ignores_the_test_split():
    tuning = pd.DataFrame([
        {"task": "t", "estimator": "e", "learning_rate": rate, "commitment": 0.0, "seed": seed,
         "validation": value, "distortion": 1 / value}
        for rate, values in {0.1: (1.0, 100.0), 0.2: (9.0, 9.0)}.items()
        for seed, value in enumerate(values)])
    best = best_settings(tuning)  # the arithmetic mean would choose 9
    assert best.learning_rate.tolist() == [0.2]
    assert best.validation.item() == pytest.approx(9)


def _trained_rows() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    factor = dict(zip(ESTIMATORS, (1.0, 1.1, 1.0, 1.5, 1.0)))
    return pd.DataFrame([
        {"task": task, "estimator": name, "codes": 256, "seed": seed, "learning_rate": 1e-3 * i,
         "commitment": 0.0,
         "distortion": factor[name] * 2.0 ** seed * generator.lognormal(sigma=0.01)}
        for task in IMAGE_TASKS for i, name in enumerate(ESTIMATORS) for seed in range(8)])


def test_differences_are_paired_and_the_common_interval_is_wider():
    table = differences(_trained_rows()).set_index(["task", "estimator"])
    assert len(table) == 16
    for task in IMAGE_TASKS:
        assert table.difference[task, "rotation"] == pytest.approx(10, abs=2)
        assert table.p[task, "rotation, tangent"] < 0.05
    assert (table["all low"] < table.low).all() and (table["all high"] > table.high).all()
    # Bonferroni: an interval at 1 - 0.05 / 16 on the logarithms
    ratio = np.log1p(table[["all low", "low", "high", "all high"]] / 100)
    wider = (ratio["all high"] - ratio["all low"]) / (ratio["high"] - ratio["low"])
    quantile = torch.distributions.StudentT(7.0).sample((400_000,)).abs()
    expected = quantile.quantile(1 - 0.05 / 16) / quantile.quantile(0.95)
    assert wider.to_numpy() == pytest.approx(expected.item(), rel=0.05)


def test_settings_of_images_do_not_break_the_pairs_of_a_summary():
    table = summarize(_trained_rows())
    assert table.difference.notna().sum() == 16 and (table.runs == 8).all()


@pytest.mark.parametrize("setting", [
    {"task": "bias", "codebook": "sample", "origin": 1.0}, {"task": "gumbel", "temperature": 1.0},
    {"task": "scale", "commitment": 0.0}, {"task": "himmelblau", "start": 0},
])
def test_unknown_estimators_are_refused(setting):
    with pytest.raises(ValueError, match="estimator must be"):
        measure(estimator="none", codes=4, seed=0, **setting)


def test_straight_through_is_exact_for_a_dithered_hexagonal_lattice():
    basis = torch.tensor([[1.0, 0.0], [0.5, 3 ** 0.5 / 2]], dtype=torch.float64)
    steps = torch.cartesian_prod(torch.arange(-4.0, 5), torch.arange(-4.0, 5)).double() @ basis
    parts = (torch.arange(60, dtype=torch.float64) + 0.5) / 60 - 0.5
    # positions of the lattice, uniform over a cell
    dither = torch.cartesian_prod(parts, parts) @ basis

    def codewords(z: torch.Tensor) -> torch.Tensor:
        return steps[torch.cdist(z - dither, steps).argmin(1)] + dither

    z, h = torch.tensor([0.3, -0.2], dtype=torch.float64), 0.25
    unit = torch.eye(2, dtype=torch.float64)
    cubic = lambda q: q[:, 0] ** 2 * q[:, 1] + q[:, 1] ** 2
    slope = torch.stack([(cubic(codewords(z + h * e)).mean() - cubic(codewords(z - h * e)).mean())
                         / (2 * h) for e in unit])
    q = codewords(z)
    said = torch.stack([2 * q[:, 0] * q[:, 1], q[:, 0] ** 2 + 2 * q[:, 1]], 1).mean(0)
    torch.testing.assert_close(slope, said, atol=2e-3, rtol=0)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_rotation_leaves_the_scale_alone_at_centroids(dim):
    generator = torch.Generator().manual_seed(dim)
    x = torch.randn(500, dim, generator=generator, dtype=torch.float64) * torch.linspace(
        0.5, 2, dim, dtype=torch.float64
    )
    codebook = page._centroids(x, 12, generator)
    index = torch.cdist(x, codebook).argmin(1)
    least = (x - codebook[index]).square().sum(1).mean().item()
    pushes = {name: page._slope(name, x, codebook[index], 1.0, 0.0) / least for name in ESTIMATORS}
    assert pushes["rotation"] == pytest.approx(0, abs=1e-9) and pushes[
        "straight-through"
    ] == pytest.approx(-2, abs=1e-9)
