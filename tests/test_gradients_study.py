"""The study of gradients: its grid fits its functions; its identities hold beyond its page."""
import inspect

import pytest
import torch

from vqvae.studies import gradients as page
from vqvae.studies.gradients import ESTIMATORS, gradients, measure

FUNCTIONS = {"bias": page._bias, "scale": page._scale, "gumbel": page._gumbel,
             "himmelblau": page._toy}


def test_every_configuration_is_one_that_its_task_takes():
    for job in gradients.jobs():
        arguments = {name: value for name, value in job.items() if name != "task"}
        if job["task"] in FUNCTIONS: inspect.signature(FUNCTIONS[job["task"]]).bind(**arguments)
        else: inspect.signature(page._train).bind(task=job["task"], **arguments)
    assert len({tuple(sorted(job.items())) for job in gradients.jobs()}) == len(gradients.jobs())


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
