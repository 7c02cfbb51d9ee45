"Lattices: decoders against full searches, far away, ties, shapes, errors."
import itertools
import math

import pytest
import torch

from vqvae.theory.lattices import (
    checkerboard_lattice,
    e8_lattice,
    entropy_coded_lattice,
    hexagonal_lattice,
    integer_lattice,
    measure_second_moment,
    nearest_checkerboard,
    nearest_integers,
)

ALL = [integer_lattice(1), integer_lattice(3), hexagonal_lattice(),
       *(checkerboard_lattice(k) for k in (2, 3, 4, 7)), e8_lattice()]
NAMES = [lattice.name for lattice in ALL]


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("lattice", ALL[:-2], ids=NAMES[:-2])
def test_nearest_by_full_search(lattice):
    k = lattice.dim
    x = 2 * numbers(0, 300, k)
    around = (x @ torch.linalg.inv(lattice.generator)).round()
    reach = 4 if k <= 3 else 3
    steps = torch.tensor(list(itertools.product(range(-reach, reach + 1), repeat=k))).double()
    for point, base in zip(x, around):
        best = ((base + steps) @ lattice.generator - point).square().sum(1).min()
        assert (lattice.nearest(point) - point).square().sum().item() == pytest.approx(
            best.item(), abs=1e-12
        )


@pytest.mark.parametrize("lattice", ALL, ids=NAMES)
def test_lattice_properties(lattice):
    k = lattice.dim
    x = 3 * numbers(1, 5, 40, k)
    q = lattice.nearest(x)
    assert q.shape == x.shape and q.dtype == torch.float64
    integers = lattice.coordinates(q)
    torch.testing.assert_close(integers.double() @ lattice.generator, q)
    torch.testing.assert_close(lattice.nearest(q), q)
    torch.testing.assert_close(lattice.nearest(-x), -q)  # no ties among random points
    for size in (10, 10**6):
        shift = (
            torch.randint(
                -size, size + 1, (k,), generator=torch.Generator().manual_seed(2)
            ).double()
            @ lattice.generator
        )
        torch.testing.assert_close(lattice.nearest(x + shift), q + shift, rtol=1e-12, atol=1e-8)
    assert lattice.nearest(torch.zeros(k)).abs().max() == 0
    assert lattice.volume == pytest.approx(
        {"A2": math.sqrt(0.75), "E8": 1}.get(lattice.name, 2 if lattice.name[0] == "D" else 1)
    )


@pytest.mark.parametrize("lattice", ALL, ids=NAMES)
def test_second_moment_inside_its_interval(lattice):
    value, half = measure_second_moment(lattice, 40_000, seed=5)
    assert 0 < half < 0.002 and abs(value - lattice.second_moment) < half


def test_second_moment_intervals_cover():
    lattice = checkerboard_lattice(4)
    runs = [measure_second_moment(lattice, 2000, seed) for seed in range(100)]
    assert sum(abs(value - lattice.second_moment) < half for value, half in runs) >= 95


def test_samples_of_the_cell_lie_in_it():
    for lattice in ALL:
        points = lattice.sample_cell(500, torch.Generator().manual_seed(3))
        assert lattice.nearest(points).abs().max() < 1e-9
        assert points.mean(0).abs().max() < 0.15


def test_ties():
    assert nearest_integers(torch.tensor([-1.5, -0.5, 0.5, 1.5])).tolist() == [-1, 0, 1, 2]
    deep = torch.full((4,), 0.5)  # a deep hole of D4
    assert (
        nearest_checkerboard(deep).tolist() == nearest_checkerboard(deep).tolist() == [1, 1, 1, 1]
    )
    assert (nearest_checkerboard(torch.tensor([1.0, 0.0, 0.0]))
            - torch.tensor([1.0, 0.0, 0.0])).abs().sum() == 1
    # of E8: its 16 nearest points are at distance 1
    hole = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
    assert (e8_lattice().nearest(hole) - hole).square().sum() == 1


def test_minimal_vectors_of_e8():
    roots = 240
    # just past the middle between 0 and a vector: decoded away from 0
    x = 0.51 * e8_lattice().generator
    assert (e8_lattice().nearest(x).abs().amax(1) > 0).all()
    k = torch.cartesian_prod(*[torch.arange(-1.0, 2.0)] * 8).double()
    half = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 8).double()
    short = torch.cat([k, half])
    short = short[(short.square().sum(1) == 2) & (short.sum(1).remainder(2) == 0)]
    assert len(short) == roots and torch.equal(e8_lattice().nearest(short), short)
    assert (e8_lattice().nearest(0.49 * short) == 0).all()


def test_entropy_coded_ends():
    for lattice in (integer_lattice(1), hexagonal_lattice(), e8_lattice()):
        coarse = entropy_coded_lattice(lattice, 7.0)
        assert abs(coarse.rate) < 0.01 + coarse.gap_error and coarse.distortion == pytest.approx(
            1, abs=0.05
        )
        fine = entropy_coded_lattice(lattice, 0.1)
        assert fine.distortion == pytest.approx(
            lattice.second_moment * (0.1**lattice.dim * lattice.volume) ** (2 / lattice.dim),
            rel=0.05,
        )
        assert fine.gap > 0 and fine == entropy_coded_lattice(lattice, 0.1)


@pytest.mark.parametrize("make, scale", [(e8_lattice, s) for s in (4.0, 5.0, 10.0, 15.0, 20.0)]
                         + [(checkerboard_lattice, s) for s in (4.0, 6.0, 20.0)])
def test_large_cells_against_counts(make, scale):
    lattice, n = make(), 300_000
    x = torch.randn(n, lattice.dim, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    cells = lattice.nearest(x / scale)
    count = lattice.coordinates(cells).unique(dim=0, return_counts=True)[1]
    rate = torch.special.entr(count / n).sum().item() / math.log(2) / lattice.dim
    q = scale * cells
    D = (x - q * (x * q).mean() / q.square().mean().clamp(min=1e-300)).square().mean().item()
    found = entropy_coded_lattice(lattice, scale, seed=1)
    assert abs(found.gap - (rate + 0.5 * math.log2(D))) < found.gap_error + 1e-3 < 0.02
    assert abs(found.rate - rate) < 0.015


def test_cells_that_can_neither_be_sampled_nor_counted():
    with pytest.raises(ValueError, match="scale must give cells with enough points"):
        entropy_coded_lattice(checkerboard_lattice(24), 3.5)


@pytest.mark.parametrize("call, message", [
    (lambda: integer_lattice(0), "dim must be positive, got 0"),
    (lambda: checkerboard_lattice(1), "dim must be at least 2, got 1"),
    (lambda: e8_lattice().nearest(torch.zeros(4)), "x must have 8 values on its last axis"),
    (lambda: integer_lattice(2).nearest(torch.tensor([math.nan, 0.0])), "x holds 1 NaN"),
    (lambda: hexagonal_lattice().coordinates(torch.tensor([0.5, 0.0])),
     "points must lie in the lattice A2"),
    (lambda: entropy_coded_lattice(integer_lattice(1), 0.0), "scale must be positive, got 0")])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message): call()
