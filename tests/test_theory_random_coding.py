"Random codebooks of finite size: against closed forms and simulation, ends, scale, errors."
import math

import pytest
import torch
from scipy.stats import ncx2

from vqvae.theory.random_coding import (
    _Ball,
    _distance_to_nearest,
    _interpolated,
    _probabilities,
    best_codebook_variance,
    codebook_variance_fit,
    random_coding_distortion,
)
from vqvae.theory.shannon_bound import mismatched_gaussian_distortion


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 3, 16, 100])
def test_ball_is_noncentral_chi2(k):
    for v, square in [(1e-3, 1.0), (0.5, 0.01 * k), (2.0, 3.0 * k)]:
        t = v * torch.from_numpy(ncx2.ppf([1e-30, 1e-9, 0.01, 0.4, 0.7, 0.99, 1 - 1e-9], k,
                                          square / v))
        ball = _Ball(*(torch.tensor(a, dtype=torch.float64) for a in ([[square]], [v], [k])))
        inside, outside = _probabilities(t[None], ball)
        reference = torch.from_numpy(ncx2.cdf(t.numpy() / v, k, square / v))
        torch.testing.assert_close(inside[0][1:], reference[1:], rtol=1e-8, atol=0)
        torch.testing.assert_close(outside[0],
                                   torch.from_numpy(ncx2.sf(t.numpy() / v, k, square / v)),
                                   rtol=1e-7, atol=1e-12)


def test_unequal_ball_by_simulation():
    v, z, n = (
        torch.tensor([0.3, 1.0, 4.0]).double(),
        torch.tensor([1.0, -2.0, 0.5]).double(),
        400_000,
    )
    distance = (numbers(0, n, 3) * v.sqrt() - z).square().sum(1)
    t = torch.quantile(distance[:100_000], torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999]).double())
    inside, _ = _probabilities(t[None], _Ball(z.square()[None], v, torch.ones(3).double()))
    counted = (distance[:, None] < t).double().mean(0)
    assert ((counted - inside[0]).abs() < 4 * (inside[0] * (1 - inside[0]) / n).sqrt()).all()


@pytest.mark.parametrize("seed", range(6))
def test_one_code_costs_both_variances(seed):  # for each z: the integral of 1 - F is the mean of T
    groups = 1 + seed
    v, q, count = (
        numbers(seed, groups).exp(),
        numbers(seed + 50, 20, groups).square(),
        torch.arange(1.0, groups + 1).double(),
    )
    exact = (q + v * count).sum(1)
    # unequal groups: upper tail, no path is good for all of them
    tolerance = 1e-8 if groups == 1 else 1e-3
    found = _distance_to_nearest(0.0, _Ball(q, v, count))
    torch.testing.assert_close(found, exact, rtol=tolerance, atol=0)


def test_groups_and_order_do_not_matter():
    one = random_coding_distortion(64, [1.0] * 6, 0.6).distortion
    assert random_coding_distortion(64, [1.0] * 6, [0.6] * 6).distortion.item() == one.item()
    ball = lambda v, q, m: _Ball(*(torch.tensor(a, dtype=torch.float64) for a in (q, v, m)))
    together, apart = ball([0.6], [[5.0]], [6]), ball([0.6, 0.6], [[2.0, 3.0]], [2, 4])
    torch.testing.assert_close(_distance_to_nearest(math.log(64), together),
                               _distance_to_nearest(math.log(64), apart),
                               rtol=1e-8, atol=0)
    split = random_coding_distortion(64, [4.0, 1.0], [3.0, 0.7], samples=128)
    swapped = random_coding_distortion(64, [1.0, 4.0], [0.7, 3.0], samples=128)
    assert split.distortion.item() == pytest.approx(swapped.distortion.item(), rel=1e-12)


def test_many_unequal_components():
    lam = 1 / torch.arange(1.0, 61).double()
    ball = _Ball(lam * numbers(1, 16, 60).square(), 1.3 * lam, torch.ones(60).double())
    for n in (53, 2**10, 2**60):
        few = _interpolated(math.log(n), ball)
        assert len(few.variance) < 40
        torch.testing.assert_close(_distance_to_nearest(math.log(n), few),
                                   _distance_to_nearest(math.log(n), ball), rtol=1e-8, atol=0)
    assert _interpolated(math.log(52), ball) is ball


def test_scale():
    for c in (1e-6, 1e6):
        assert random_coding_distortion(
            100, [c] * 5, 0.4 * c
        ).distortion.item() / c == pytest.approx(
            random_coding_distortion(100, [1.0] * 5, 0.4).distortion.item(), rel=1e-9
        )


def test_ends():
    assert random_coding_distortion(4096, [2.0, 1.0], [0.0, 0.0]).distortion.item() == 1.5
    tiny = [random_coding_distortion(256, [1.0] * 4, v).distortion.item()
            for v in (1e-4, 1e-6, 1e-8)]
    assert tiny == sorted(tiny) and 0 < 1 - tiny[-1] < 1e-3
    # the first axis is never described
    half = random_coding_distortion(16, [3.0, 1.0], [0.0, 1.0]).distortion.item()
    assert half == pytest.approx((3 + random_coding_distortion(16, [1.0], 1.0).distortion.item())
                                 / 2, rel=1e-12)
    # nearest of 1000 to the origin, one dimension
    nothing = random_coding_distortion(1000, [0.0], 1.0).distortion.item()
    assert nothing == pytest.approx(math.pi / 1000**2, rel=0.01)
    assert (
        random_coding_distortion(7, [1.0], 1.0).error.item()
        == 0
        < random_coding_distortion(7, [1.0, 2.0], 1.0, samples=64).error.item()
    )


def test_never_below_the_mismatched_limit():  # of infinite blocks, at the best v and at others
    for k, n in [(2, 16), (8, 64), (16, 4096)]:
        for v in (0.2, 0.7, 1.5):
            bound = mismatched_gaussian_distortion([1.0] * k, [v] * k, math.log2(n)).item()
            assert random_coding_distortion(n, [1.0] * k,
                                            v).distortion.item() > 2 ** (-2 * math.log2(n) / k)
            if k == 16: assert random_coding_distortion(n, [1.0] * k, v).distortion.item() > bound


def test_monotone_in_codes():
    values = [random_coding_distortion(n, [1.0] * 3, 0.8).distortion.item()
              for n in (1, 2, 3, 10, 53, 54, 90, 91, 1000, 10**6)]
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)


def test_intervals_cover():
    source, codes = [4.0, 1.0, 0.2], [3.0, 1.0, 0.1]
    fine = random_coding_distortion(32, source, codes, samples=2048, seed=999)
    inside = sum(abs(r.distortion - fine.distortion) < r.error + fine.error
                 for r in (random_coding_distortion(32, source, codes, samples=64, seed=8 * i)
                           for i in range(12)))
    assert inside >= 11
    again = random_coding_distortion(32, source, codes, samples=64, seed=3)
    assert again.distortion.item() == random_coding_distortion(32, source, codes, samples=64,
                                                               seed=3).distortion.item()


def test_best_variance_is_a_minimum():
    for n, k in [(2, 3), (100, 5), (5000, 20)]:
        best = best_codebook_variance(n, k)
        for factor in (0.8, 0.95, 1.05, 1.25):
            assert random_coding_distortion(n, [1.0] * k,
                                            factor
                                            * best.variance).distortion.item() > best.distortion
        assert (
            random_coding_distortion(n, [1.0] * k, codebook_variance_fit(n, k)).distortion.item()
            < 1.003 * best.distortion
        )


def test_fit_limits():
    assert codebook_variance_fit(1, 9) == 0 and best_codebook_variance(1, 9) == (0.0, 1.0)
    assert codebook_variance_fit(2**60, 2) == pytest.approx(2, rel=1e-6)
    assert codebook_variance_fit(2**500, 1000) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("call, message", [
    (lambda: random_coding_distortion(0, [1.0], 1.0), "codebook_size must be positive, got 0"),
    (lambda: random_coding_distortion(4, [1.0], -1.0), "codebook_variances must not be negative"),
    (lambda: random_coding_distortion(4, [[1.0]], 1.0), r"variances must have shape \(k,\)"),
    (lambda: random_coding_distortion(4, [math.nan], 1.0), "variances holds"),
    (lambda: random_coding_distortion(2**200, [1.0], 1.0), "at most 2\\^126 per component"),
    (lambda: random_coding_distortion(2**1001, [1.0] * 100, 1.0), "at most 2\\^1000"),
    (lambda: random_coding_distortion(4, [1.0, 2.0], 1.0, samples=100),
     "samples must be a power of 2"),
    (lambda: best_codebook_variance(4, 0), "dim must be positive, got 0"),
    (lambda: codebook_variance_fit(0, 2), "codebook_size must be positive, got 0")])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message): call()
