"Water-filling over random spectra, at the ends of its range, in batches."
import math

import numpy as np
import pytest
import torch

from vqvae.theory import (
    WaterFilling,
    gaussian_distortion,
    gaussian_rate,
    water_filling,
    water_filling_from_distortion,
    water_level,
    water_level_from_distortion,
)


def spectrum(seed, k, spread, zeros=0):
    values = torch.exp(spread
                       * torch.randn(k, generator=torch.Generator().manual_seed(seed),
                                     dtype=torch.float64))
    if zeros: values[torch.randperm(k, generator=torch.Generator().manual_seed(seed))[:zeros]] = 0
    return values


def oracle(variances, rate):
    "Level by trying every number of active components, in plain Python with exact sums."
    logs = sorted((math.log2(v) for v in variances.tolist() if v > 0), reverse=True)
    for m in range(len(logs), 0, -1):
        level = (math.fsum(logs[:m]) - 2 * rate) / m
        if level < logs[m - 1] or m == 1: return 2.0**level


@pytest.mark.parametrize("zeros", [0, 1, 3])
@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0, 8.0])
@pytest.mark.parametrize("k", [4, 17, 128])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_spectra(seed, k, spread, zeros):
    variances = spectrum(seed, k, spread, zeros)
    rates = torch.tensor([0.0, 1e-9, 0.3, 1.0, 8.0, 10.0 * k, 40.0 * k], dtype=torch.float64)
    w = water_filling(variances, rates)
    assert w.level.dtype == w.rates.dtype == w.distortions.dtype == torch.float64
    assert w.rates.shape == w.distortions.shape == (7, k)
    torch.testing.assert_close(w.total_rate, rates, rtol=1e-12, atol=1e-12)
    assert (w.rates >= 0).all() and (w.distortions <= variances).all()
    assert (w.rates[:, variances == 0] == 0).all()
    for rate, level in zip(rates.tolist(), w.level.tolist()):
        assert level == pytest.approx(oracle(variances, rate), rel=1e-12)
    # one rate at a time gives the same as all at once
    for i, rate in enumerate(rates.tolist()):
        assert torch.equal(water_level(variances, rate), w.level[i])
    # there and back
    back = water_filling_from_distortion(variances, w.distortion)
    torch.testing.assert_close(back.distortion, w.distortion, rtol=1e-12, atol=0)
    # rounding in a sum over unequal terms limits the level by the sum, not by itself
    torch.testing.assert_close(back.level, w.level, rtol=1e-12, atol=4e-15 * variances.sum().item())


@pytest.mark.parametrize("seed", range(5))
def test_distortion_direction(seed):
    variances = spectrum(seed, 12, 2.0, zeros=2)
    for share in (1e-9, 1e-3, 0.2, 0.7, 0.999, 1.0):
        w = water_filling_from_distortion(variances, share * variances.mean())
        assert w.distortion.item() == pytest.approx(share * variances.mean().item(), rel=1e-12)
    w = water_filling_from_distortion(variances,
                                      torch.tensor([variances.mean().item() * 1.5, math.inf]))
    assert (w.rates == 0).all() and (w.level == variances.max()).all()
    w = water_filling_from_distortion(variances, 0.0)
    assert w.level == 0 and torch.equal(w.rates, torch.where(variances > 0, math.inf, 0.0).double())


def test_no_other_share_is_better():
    variances, generator = spectrum(3, 8, 1.5), torch.Generator().manual_seed(0)
    best = water_filling(variances, 6.0)
    for _ in range(200):
        share = torch.rand(8, generator=generator, dtype=torch.float64) ** 3
        rates = 6.0 * share / share.sum()
        assert gaussian_distortion(rates, variances).sum() >= best.distortions.sum() * (1 - 1e-12)
        nearby = (best.rates + 0.01
                  * torch.randn(8, generator=generator, dtype=torch.float64)).clamp(min=0)
        assert gaussian_distortion(nearby * 6 / nearby.sum(),
                                   variances).sum() >= best.distortions.sum() * (1 - 1e-12)


def test_ends_are_exact():
    variances = torch.tensor([0.3, 7.1, 7.1, 0.0])
    w = water_filling(variances, 0.0)
    assert (
        w.level == variances.max().double()
        and (w.rates == 0).all()
        and torch.equal(w.distortions, variances.double())
    )
    w = water_filling(variances, math.inf)
    assert (
        w.level == 0
        and (w.distortions == 0).all()
        and w.rates.tolist() == [math.inf, math.inf, math.inf, 0.0]
    )
    for rate in (0.0, 5.0, math.inf):
        w = water_filling(torch.zeros(3), rate)
        assert w.level == 0 and (w.rates == 0).all() and (w.distortions == 0).all()
    assert water_filling([2.0], 3.0).level.item() == 2.0 * 2**-6
    tiny = water_filling([1e-300, 1e-305, 1e300], 40.0)
    assert tiny.total_rate.item() == pytest.approx(40, abs=1e-9) and (tiny.rates[:2] == 0).all()


def test_isotropic_closed_form():
    rates = torch.linspace(0, 64, 65, dtype=torch.float64)
    w = water_filling(torch.full((16,), 2.5, dtype=torch.float64), rates)
    torch.testing.assert_close(w.distortion, 2.5 * torch.exp2(-2 * rates / 16), rtol=1e-12, atol=0)
    torch.testing.assert_close(w.rates, (rates / 16)[:, None].expand(-1, 16), rtol=1e-12,
                               atol=1e-12)


def test_batches_broadcast():
    batch = torch.stack([spectrum(s, 5, 2.0, zeros=s % 2) for s in range(6)]).reshape(2, 3, 5)
    rate = torch.tensor([1.0, 4.0, 9.0])
    for solve, amount in ((water_filling, rate), (water_filling_from_distortion, rate / 30)):
        w = solve(batch, amount)
        assert (
            isinstance(w, WaterFilling) and w.level.shape == (2, 3) and w.rates.shape == (2, 3, 5)
        )
        for i in range(2):
            for j in range(3):
                for a, b in zip(w, solve(batch[i, j], amount[j])):
                    torch.testing.assert_close(a[i, j], b, rtol=1e-14, atol=0)
        assert solve(batch[0, 0], amount[:, None].expand(3, 4)).level.shape == (3, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(water_filling(batch[..., order], rate).rates,
                       water_filling(batch, rate).rates[..., order])


def test_scalar_functions():
    assert gaussian_rate([0.0, 0.0, 1.0], [1.0, 0.0, 0.0]).tolist() == [math.inf, 0.0, 0.0]
    assert gaussian_distortion([0.0, math.inf], 3.0).tolist() == [3.0, 0.0]
    assert gaussian_rate(np.float64(0.25)).item() == 1.0


@pytest.mark.parametrize("call, message", [
    (lambda: water_level([1.0, -1.0], 1.0), "variances must not be negative"),
    (lambda: water_level([1.0, math.inf], 1.0), "variances holds 1 NaN or infinite"),
    (lambda: water_level([1.0, math.nan], 1.0), "variances holds 1 NaN"),
    (lambda: water_level([], 1.0), "variances is empty"),
    (lambda: water_level(2.0, 1.0), "variances must have shape"),
    (lambda: water_level([1.0], -1e-3), "rate must not be negative"),
    (lambda: water_level([1.0], math.nan), "rate holds 1 NaN"),
    (lambda: water_level([1.0], -math.inf), "rate must not be negative"),
    (lambda: water_level_from_distortion([1.0], -1.0), "distortion must not be negative"),
    (lambda: water_level_from_distortion([1.0], math.nan), "distortion holds 1 NaN"),
    (lambda: gaussian_rate(1.0, -1.0), "variance must not be negative"),
    (lambda: gaussian_distortion(math.nan), "rate holds 1 NaN"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message): call()
