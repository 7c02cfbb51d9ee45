"Scalar quantizers, high resolution and entropy coding: other computations, ends, errors."
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import erfc, ndtri

from vqvae.theory.entropy_coded import (
    _curve,
    _support,
    entropy_constrained,
    step_from_distortion,
    step_from_rate,
    transform_coding,
    transform_coding_from_rate,
    uniform_threshold,
)
from vqvae.theory.high_resolution import (
    LATTICE_CONSTANTS,
    bennett_distortion,
    density_norm,
    panter_dite,
    sphere_bound,
    zador_bound,
    zador_distortion,
)
from vqvae.theory.lloyd_max import (
    gaussian_source,
    laplace_source,
    lloyd_max,
    scalar_source,
    uniform_source,
)
from vqvae.theory.product_quantizers import (
    _share,
    best_product_quantizer,
    product_quantizer,
)
from vqvae.theory.rate_distortion import gaussian_rate, water_filling


def mixture(seed, parts=3):
    "A random Gaussian mixture: density and breaks."
    g = torch.Generator().manual_seed(seed)
    mean, log_s, w = torch.randn(3, parts, generator=g, dtype=torch.float64)
    s, w = (0.7 * log_s - 0.5).exp(), torch.softmax(w, 0)
    density = lambda x: sum(p * torch.exp(-((x - m) / d) ** 2 / 2) / (d * math.sqrt(2 * math.pi))
                            for m, d, p in zip(mean.tolist(), s.tolist(), w.tolist()))
    return density, sorted(mean.tolist())


def masses(t, tail):
    """Probabilities of cells from the tail beyond |t|: differences on one side of 0, so that no
    digits are lost."""
    e, side = np.r_[0.0, tail, 0.0], np.r_[-1.0, np.sign(t), 1.0]
    return np.where(side[1:] * side[:-1] >= 0, np.abs(np.diff(e)), 1 - e[1:] - e[:-1])


def gaussian_cells(t):
    phi = np.r_[0.0, np.exp(-t**2 / 2) / math.sqrt(2 * math.pi), 0.0]
    return masses(t, 0.5 * erfc(np.abs(t) / math.sqrt(2))), -np.diff(phi)


def laplace_cells(t):
    "Probabilities and first moments for variance 1."
    r = math.sqrt(2)
    e = np.exp(-r * np.abs(t)) / 2
    return masses(t, e), np.diff(np.r_[0.0, -e * (np.abs(t) + 1 / r), 0.0])


def uniform_cells(t):
    a = math.sqrt(3)
    e = np.r_[-a, np.clip(t, -a, a), a]
    return np.diff(e) / (2 * a), np.diff(e**2) / (4 * a)


# cells, and quantiles of the density proportional to the cube root: where an optimizer may start
SOURCES = {"gauss": (gaussian_source, gaussian_cells, lambda u: math.sqrt(3) * ndtri(u)),
           "laplace": (laplace_source, laplace_cells,
                       lambda u: -np.sign(u - 0.5) * 3 / math.sqrt(2)
                       * np.log1p(-2 * abs(u - 0.5))),
           "uniform": (uniform_source, uniform_cells, lambda u: math.sqrt(3) * (2 * u - 1))}


def oracle(name, levels):
    "The least distortion at variance 1 from closed forms and SciPy's BFGS."
    _, cells, quantile = SOURCES[name]
    def distortion(c):
        if not (np.diff(c) > 0).all(): return math.inf, np.zeros_like(c)
        mass, first = cells((c[1:] + c[:-1]) / 2)
        return 1 - 2 * c @ first + c**2 @ mass, 2 * (c * mass - first)
    return minimize(distortion, quantile((np.arange(levels) + 0.5) / levels), jac=True,
                    method="BFGS", options={"gtol": 1e-11, "maxiter": 3000}).fun


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("levels", [2, 3, 4, 5, 7, 8, 11, 16, 23, 32, 47, 64, 97, 128])
def test_lloyd_max_against_a_minimizer(name, levels):
    make, cells, _ = SOURCES[name]
    q = lloyd_max(make(), levels)
    assert q.distortion.item() == pytest.approx(oracle(name, levels), rel=1e-6)
    mass, first = cells(q.thresholds.numpy())
    assert q.levels.shape == (levels,) and q.thresholds.shape == (levels - 1,)
    # the closed forms lose digits in the tails
    assert np.abs(q.levels.numpy() - first / mass).max() < 1e-10
    np.testing.assert_allclose(q.probabilities, mass, rtol=1e-9)
    assert q.distortion.item() == pytest.approx(1
                                                - (q.levels.square()
                                                   * q.probabilities).sum().item(), abs=1e-12)


@pytest.mark.parametrize("name", SOURCES)
def test_lloyd_max_every_size(name):
    source, previous = SOURCES[name][0](), math.inf
    for levels in range(1, 129):
        q = lloyd_max(source, levels)
        assert (q.levels - source.cells(q.thresholds)[1]).abs().max() < 1e-12
        assert (q.levels + q.levels.flip(0)).abs().max() < 2e-6 and q.distortion < previous
        assert (
            q.probabilities.sum().item() == pytest.approx(1, abs=1e-12)
            and q.entropy <= math.log2(levels) + 1e-12
        )
        previous = q.distortion.item()


@pytest.mark.parametrize("variance", [1e-20, 1e-6, 3.0, 1e12])
@pytest.mark.parametrize("name", SOURCES)
def test_lloyd_max_scales(name, variance):
    one, other = (lloyd_max(SOURCES[name][0](v), 6) for v in (1.0, variance))
    torch.testing.assert_close(other.levels, one.levels * math.sqrt(variance), rtol=1e-6, atol=0)
    assert other.distortion.item() == pytest.approx(variance * one.distortion.item(), rel=1e-11)


def test_lloyd_max_shifted():
    source = scalar_source(lambda x: gaussian_source(1e-4).density(x - 1000), breaks=[1000.0])
    q, centred = lloyd_max(source, 9), lloyd_max(gaussian_source(1e-4), 9)
    assert source.mean == pytest.approx(1000, abs=1e-10) and source.variance == pytest.approx(
        1e-4, rel=1e-9
    )
    torch.testing.assert_close(q.levels - 1000, centred.levels, rtol=0, atol=1e-10)
    assert q.distortion.item() == pytest.approx(centred.distortion.item(), rel=1e-9)


def best_on_grid(density, low, high, levels, points=700):
    "The globally best quantizer of a gridded density, by dynamic programming over where cells end."
    low, high = float(low), float(high)
    edges = torch.linspace(low, high, points + 1, dtype=torch.float64)
    x = (edges[1:] + edges[:-1]) / 2
    p = density(x).numpy()
    p, x = p / p.sum(), x.numpy()
    s0, s1, s2 = (np.r_[0.0, np.cumsum(p * x**i)] for i in range(3))
    m0, m1, m2 = (s[None] - s[:, None] for s in (s0, s1, s2))  # cost[i, j]: one cell from i to j
    cost = np.where(m0 > 1e-13, m2 - m1**2 / np.maximum(m0, 1e-13), 0.0)
    cost[~np.triu(np.ones_like(cost, dtype=bool), 1)] = math.inf
    best = cost[0]
    for _ in range(levels - 1): best = (best[:, None] + cost).min(0)
    return best[-1] + (high - low) ** 2 / points**2 / 12  # the spread inside the grid's cells


@pytest.mark.parametrize("levels", [2, 3, 6])
@pytest.mark.parametrize("seed", range(8))
def test_random_mixtures(seed, levels):
    density, breaks = mixture(seed)
    source = scalar_source(density, breaks=breaks)
    q = lloyd_max(source, levels)
    mass, mean, spread = source.cells(q.thresholds)
    assert (q.levels - mean).abs().max() < 1e-11 * max(1, source.variance)
    assert q.distortion.item() == pytest.approx(spread.sum().item())
    wide = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    wide = wide[density(wide) > 1e-8]
    best = best_on_grid(density, wide[0], wide[-1], levels)
    assert q.distortion.item() >= best * (1 - 1e-3)  # nothing is better than the best
    if source.log_concave: assert q.distortion.item() <= best * (1 + 1e-3)
    g = torch.Generator().manual_seed(seed)
    for _ in range(10):  # a minimum, not only a stationary point
        moved = q.levels + 1e-3 * math.sqrt(source.variance) * torch.randn(
            levels, generator=g, dtype=torch.float64
        )
        mass, mean, spread = source.cells((moved[1:] + moved[:-1]) / 2)
        assert (spread + mass * (moved - mean).square()).sum() >= q.distortion - 1e-13


def test_infinite_one_sided_and_discontinuous_densities():
    beta = scalar_source(lambda x: 30 * x.square() * (1 - x).square(), 0, 1)
    assert beta.mean == pytest.approx(0.5, abs=1e-14) and beta.variance == pytest.approx(
        1 / 28, rel=1e-12
    )
    # infinite at an end
    arcsine = scalar_source(lambda x: 1 / (math.pi * (x * (1 - x)).sqrt()), 0, 1)
    assert arcsine.cells([0.5])[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-7)
    exponential = scalar_source(lambda x: torch.exp(-x), 0)
    assert exponential.log_concave and exponential.variance == pytest.approx(1, rel=1e-12)
    two = lloyd_max(exponential, 2)  # t = c1 + c2 over 2, c2 = t + 1
    t = two.thresholds.item()
    assert two.levels[1].item() == pytest.approx(t + 1, abs=1e-12)
    # a jump
    steps = scalar_source(lambda x: torch.where(x < 0.3, 2.0, 0.4 / 0.7), 0, 1, breaks=[0.3])
    for levels in (2, 3, 8, 33):
        for source in (beta, arcsine, exponential, steps):
            q = lloyd_max(source, levels)
            assert (q.levels - source.cells(q.thresholds)[1]).abs().max() < 1e-12
    gap = scalar_source(lambda x: torch.where((x < 1) | (x > 9), 0.5, 0.0), 0, 10,
                        breaks=[1.0, 9.0])
    assert lloyd_max(gap, 4).distortion.item() == pytest.approx(1 / 48,
                                                                rel=1e-12) and not gap.log_concave


def test_integral_and_cells():
    source = laplace_source(2.0)
    assert source.integral(lambda x, p: p * x**4).item() == pytest.approx(24, rel=1e-12)
    mass, mean, spread = source.cells([-1.0, -1.0, 2.0])  # an empty cell
    assert mass[1] == 0 and mean[1].isnan() and mass.sum().item() == pytest.approx(1, abs=1e-14)
    wide = source.cells([-1e9, 1e9])[0]
    assert wide.tolist() == [0.0, pytest.approx(1.0), 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_panter_dite_is_the_limit_and_the_least(seed):
    density, breaks = mixture(seed)
    source = scalar_source(density, breaks=breaks)
    law = panter_dite(source, torch.tensor([50, 400]))
    assert law[0].item() == pytest.approx(64 * law[1].item(), rel=1e-12)
    near, far = (abs(lloyd_max(source, n).distortion.item() / d.item() - 1)
                 for n, d in zip((50, 400), law))
    assert far < 0.01 and far < near
    total = source.integral(lambda x, p: p ** 0.4).item()
    for other in (lambda x: source.density(x) ** 0.4 / total,
                  lambda x: torch.exp(-x.abs() / 2) / 4):
        if abs(source.integral(lambda x, p: other(x)).item() - 1) < 1e-6:
            assert bennett_distortion(source, other, 400) > law[1]


def test_zador_ends_and_shapes():
    g = torch.Generator().manual_seed(1)
    for k in (1, 3, 17, 200):
        variances = torch.randn(5, k, generator=g, dtype=torch.float64).exp()
        low, high = (zador_distortion(2.0**k, variances, bound(k))
                     for bound in (sphere_bound, zador_bound))
        assert (
            low.shape == (5,)
            and (low < high).all()
            and torch.equal(low, zador_distortion(2.0**k, variances))
        )
        geometric = variances.log().mean(-1).exp()
        assert (low > geometric / 4).all()  # never below Shannon's bound
        torch.testing.assert_close(zador_distortion(2.0**k, 9 * variances), 9 * low, rtol=1e-12,
                                   atol=0)
    assert sphere_bound(1) == pytest.approx(1 / 12) and zador_bound(1) == pytest.approx(0.5)
    assert sphere_bound(2) == pytest.approx(1 / (4 * math.pi))
    for k, (_, constant) in LATTICE_CONSTANTS.items():
        assert sphere_bound(k) <= constant * (1 + 1e-12) < zador_bound(k)
    for k in (1, 2, 7):
        assert density_norm(uniform_source(1 / 12), k).item() == pytest.approx(1, rel=1e-12)
    assert (zador_distortion(torch.logspace(0, 30, 31), [1.0, 2.0]).diff() < 0).all()


def test_leech_lattice_constant():
    """Squared distance to the nearest point of the Leech lattice, over 2 x 4096 copies of 4 D24 in
    the scale of norm 32."""
    golay = torch.tensor([1, 0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1] + [0] * 11, dtype=torch.float64)
    rows = torch.stack([golay.roll(i) for i in range(12)])
    words = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 12) @ rows % 2
    words = torch.cat([words, words.sum(1, keepdim=True) % 2], 1)
    assert sorted(words.sum(1).unique().tolist()) == [0, 8, 12, 16, 24]
    generator, best = torch.Generator().manual_seed(0), []
    for x in 8 * torch.rand(800, 24, generator=generator, dtype=torch.float64):
        least = math.inf
        for offset, parity in ((0.0, 0.0), (1.0, 1.0)):  # coordinates all even, or all odd
            # bit 0 and bit 1
            y = (x - offset - 2 * torch.arange(2.0, dtype=torch.float64)[:, None]) / 4
            rounded = y.round()
            error = 4 * (y - rounded).abs()
            pick = lambda table: words @ (table[1] - table[0]) + table[0].sum()
            cost, odd = pick(error.square()), pick(rounded) % 2 != parity
            other = (4 - error).square() - error.square()  # of rounding to the second nearest
            flip = torch.where(words == 1, other[1], other[0]).min(1).values
            least = min(least, (cost + torch.where(odd, flip, 0.0)).min().item())
        best.append(least)
    G = torch.tensor(best) / (24 * 8)  # the volume is 8^12 in this scale
    assert abs(G.mean().item()
               - LATTICE_CONSTANTS[24][1]) < 3.3 * G.std().item() / math.sqrt(len(G))
    assert G.std().item() / math.sqrt(len(G)) < 0.004 * LATTICE_CONSTANTS[24][1]


@pytest.mark.parametrize("step", [0.02, 0.3, 1.0, 4.0, 15.0])
@pytest.mark.parametrize("name", SOURCES)
def test_uniform_threshold_against_closed_forms(name, step):
    make, cells, _ = SOURCES[name]
    q = uniform_threshold(make(), step)
    t = step * (np.arange(-2000, 2000) + 0.5)
    mass, first = cells(t)
    used = mass > 1e-30
    assert q.entropy.item() == pytest.approx(-(mass[used] * np.log2(mass[used])).sum(), abs=1e-9)
    assert q.distortion.item() == pytest.approx(1 - (first[used] ** 2 / mass[used]).sum(), abs=1e-9)
    assert q.probabilities.sum().item() == pytest.approx(1, abs=1e-12)
    assert (
        len(q.levels) == len(q.thresholds) + 1
        and (q.levels.diff() > 0).all()
        and (q.thresholds.diff() > 0).all()
    )
    assert (q.levels[1:] >= q.thresholds).all() and (q.levels[:-1] <= q.thresholds).all()


@pytest.mark.parametrize("seed", range(3))
def test_entropy_coding_of_random_mixtures(seed):
    density, breaks = mixture(seed)
    source = scalar_source(density, breaks=breaks)
    for rate in (0.2, 1.5):
        q = uniform_threshold(source, step_from_rate(source, rate))
        assert q.entropy.item() == pytest.approx(rate, rel=1e-9)
        d = q.distortion.item()
        again = uniform_threshold(source, step_from_distortion(source, d))
        assert again.distortion.item() == pytest.approx(d, rel=1e-9)
        slope = 1 / (2 * math.log(2) * d)
        best = entropy_constrained(source, slope)
        start = uniform_threshold(source, math.sqrt(6 / (math.log(2) * slope)))
        cost = lambda q: (q.distortion + q.entropy / slope).item()
        assert cost(best) <= cost(start) * (1 + 1e-12)
        mass, mean, _ = source.cells(best.thresholds)
        torch.testing.assert_close(best.levels, mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variance", [1e-8, 5.0])
def test_entropy_coding_scales(variance):
    one, other = gaussian_source(), gaussian_source(variance)
    a, b = uniform_threshold(one, 0.7), uniform_threshold(other, 0.7 * math.sqrt(variance))
    assert b.entropy.item() == pytest.approx(a.entropy.item(), rel=1e-10)
    assert b.distortion.item() == pytest.approx(variance * a.distortion.item(), rel=1e-10)
    assert step_from_rate(other,
                          2.0) == pytest.approx(step_from_rate(one, 2.0) * math.sqrt(variance),
                                                rel=1e-9)
    c, d = entropy_constrained(one, 3.0), entropy_constrained(other, 3.0 / variance)
    assert d.entropy.item() == pytest.approx(c.entropy.item(), rel=1e-6)


def test_never_below_the_limit():
    source = gaussian_source()
    for step in np.geomspace(0.01, 12, 25):
        q = uniform_threshold(source, float(step))
        above = q.entropy.item() - gaussian_rate(q.distortion).item()
        assert -1e-9 <= above < 0.5 * math.log2(math.pi * math.e / 6) + 1e-9
    g = torch.Generator().manual_seed(0)
    variances = torch.cat([torch.randn(6, generator=g, dtype=torch.float64).exp(),
                           torch.zeros(2, dtype=torch.float64)])
    for rate in (0.5, 6.0, 30.0):
        code = transform_coding_from_rate(variances, rate)
        assert code.total_rate.item() == pytest.approx(rate, rel=1e-9)
        assert code.distortion > water_filling(variances, rate).distortion
        assert (code.rates[6:] == 0).all() and (code.distortions[6:] == 0).all()
        assert (code.distortions <= variances + 1e-15).all()
    order = torch.randperm(8, generator=g)
    assert torch.equal(transform_coding(variances[order], 0.5).rates,
                       transform_coding(variances, 0.5).rates[order])


@pytest.mark.parametrize("name", SOURCES)
def test_law_of_small_cells(name):
    source = SOURCES[name][0]()
    low, high = _support(source)
    for cells in (1e5, 4e5):
        step = (high - low) / cells
        q = uniform_threshold(source, step)
        tolerance = 1e-5 if name == "uniform" else 1e-9  # cells cut by the ends
        H, D = _curve(source)(step)
        assert H == pytest.approx(q.entropy.item(), abs=tolerance)
        assert D == pytest.approx(q.distortion.item(), rel=tolerance)
    for rate in (15, 100.0):
        assert _curve(source)(step_from_rate(source, rate))[0] == pytest.approx(rate, rel=1e-10)


def test_transform_coding_of_many_components_and_decades():
    variances = torch.logspace(0, -30, 300, dtype=torch.float64)
    code = transform_coding_from_rate(variances, 1000)
    assert code.total_rate.item() == pytest.approx(1000, rel=1e-9)
    assert 1 < code.distortion / water_filling(variances, 1000).distortion < 1.43


def test_numbers_of_codes_beyond_float64():
    assert zador_distortion(2**2048, [1.0] * 1024).item() == pytest.approx(
        zador_distortion(2**1000, [1.0] * 500).item(), rel=0.01)
    both = zador_distortion([2**2000, 2**40], [1.0] * 20)
    assert both[0] < 1e-60 and both[1].item() == zador_distortion(2**40, [1.0] * 20).item()
    assert panter_dite(gaussian_source(), 2**2000).item() == 0
    assert panter_dite(gaussian_source(), np.int64(8)) == panter_dite(gaussian_source(), 8)


def by_hand(spectrum, left):
    "Least cost of a product with at most `left` codes, all tried."
    if not spectrum: return 0.0
    return min(spectrum[0] * _share(n) + by_hand(spectrum[1:], left // n)
               for n in range(1, left + 1))


@pytest.mark.parametrize("seed", range(8))
def test_best_product_against_all(seed):
    g = torch.Generator().manual_seed(seed)
    variances = (seed / 3 * torch.randn(4, generator=g, dtype=torch.float64)).exp()
    for n in torch.randint(1, 60, (5,), generator=g).tolist():
        best = best_product_quantizer(variances, n)
        assert best.codebook_size <= n
        assert best.distortions.sum().item() == pytest.approx(by_hand(variances.tolist(), n),
                                                              rel=1e-12)
        again = product_quantizer(variances, best.levels)
        assert torch.equal(again.distortions, best.distortions)


def test_best_product_ends():
    variances = torch.randn(1000, generator=torch.Generator().manual_seed(0)).exp()
    previous = best_product_quantizer(variances, 1).distortion
    assert previous.item() == pytest.approx(variances.double().mean().item())
    for bits in (4, 16, 64):
        best = best_product_quantizer(variances, 2**bits)
        assert water_filling(variances, bits).distortion < best.distortion < previous
        assert 2 ** (bits - 0.5) < best.codebook_size <= 2**bits
        previous = best.distortion
    assert best_product_quantizer([0.0, 0.0], 8).levels == (1, 1)
    assert best_product_quantizer([2.0], 100).levels == (100,)


@pytest.mark.parametrize("call, error, message", [
    (lambda: best_product_quantizer([1.0], 0), ValueError, "codebook_size must be positive, got 0"),
    (lambda: best_product_quantizer([1.0], 2**65), ValueError, "at most 2\\^64, got 2\\^65"),
    (lambda: best_product_quantizer([1.0, 1e-9], 2**12), ValueError, "fewer than 1024 levels"),
    (lambda: best_product_quantizer([[1.0]], 2), ValueError, r"variances must have shape \(k,\)"),
    (lambda: product_quantizer([1.0], [2, 2]), ValueError, "levels must be at most 1 numbers"),
    (lambda: product_quantizer([1.0], [2.0]), TypeError, "levels must be an int, got float"),
    (lambda: lloyd_max(gaussian_source(), 2**40), ValueError, "use vqvae.theory.panter_dite"),
    (lambda: gaussian_source(0.0), ValueError, "variance must be positive, got 0"),
    (lambda: laplace_source(-2.0), ValueError, "variance must be positive, got -2"),
    (lambda: uniform_source(math.nan), ValueError, "variance must be positive, got nan"),
    (lambda: lloyd_max(gaussian_source(), -3), ValueError, "levels must be positive, got -3"),
    (lambda: lloyd_max(gaussian_source(), 3.0), TypeError, "levels must be an int, got float"),
    (lambda: lloyd_max(gaussian_source(), True), TypeError, "levels must be"),
    (lambda: scalar_source(lambda x: x * math.nan, 0, 1), ValueError,
     "density must be finite and not .*, got nan"),
    (lambda: scalar_source(lambda x: x - 0.5, 0, 1), ValueError,
     "density must be finite and not negative, got -"),
    (lambda: scalar_source(lambda x: x, 0, 1), ValueError, "density must integrate to 1, got 0.5"),
    (lambda: scalar_source(lambda x: x, 1, 0), ValueError, "low must be below high"),
    (lambda: scalar_source(lambda x: x, math.nan, 0), ValueError, "low must be below high"),
    (lambda: scalar_source(lambda x: x * 2, 0, 1, breaks=[2.0]), ValueError,
     "breaks must lie between low and high"),
    (lambda: scalar_source(lambda x: 1.0, 0, 1), ValueError, "density must return shape"),
    (lambda: scalar_source(lambda x: 1 / (math.pi * (1 + x**2))), ValueError,
     "density must have a finite variance"),
    (lambda: uniform_threshold(gaussian_source(), -1.0), ValueError,
     "step must be positive, got -1"),
    (lambda: uniform_threshold(gaussian_source(), 1e-7), ValueError,
     "step must give at most a million cells"),
    (lambda: step_from_rate(gaussian_source(), -1.0), ValueError, "rate must be positive, got -1"),
    (lambda: step_from_distortion(gaussian_source(), 1.0), ValueError,
     "distortion must be below the variance 1"),
    (lambda: entropy_constrained(gaussian_source(), math.nan), ValueError,
     "slope must be positive, got nan"),
    (lambda: entropy_constrained(gaussian_source(), 9.0, max_iterations=1), RuntimeError,
     "raise either of the two"),
    (lambda: transform_coding([[1.0]], 1.0), ValueError, "variances must have shape"),
    (lambda: transform_coding([1.0, -1.0], 1.0), ValueError, "variances must not be negative"),
    (lambda: transform_coding_from_rate([0.0], 1.0), ValueError, "variances must not all be 0"),
    (lambda: panter_dite(gaussian_source(), 0.5), ValueError, "levels must be at least 1, got 0.5"),
    (lambda: panter_dite(gaussian_source(), math.nan), ValueError, "levels holds 1 NaN"),
    (lambda: zador_distortion(-4, [1.0]), ValueError, "codebook_size must not be negative"),
    (lambda: zador_distortion(4, 1.0), ValueError, "variances must have shape"),
    (lambda: zador_distortion(4, [1.0, -1.0]), ValueError, "variances must not be negative"),
    (lambda: zador_distortion(4, [1.0], math.nan), ValueError, "constant must be positive"),
    (lambda: sphere_bound(0), ValueError, "dim must be positive"),
    (lambda: zador_bound(-1), ValueError, "dim must be positive"),
    (lambda: gaussian_source().cells([1.0, 0.0]), ValueError,
     "thresholds must be numbers in ascending order"),
    (lambda: gaussian_source().cells([math.nan]), ValueError,
     "thresholds must be numbers in ascending order"),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=message): call()
