"Shannon's bound, mismatched codebooks, Blahut-Arimoto, the linear Gaussian model."
import math

import pytest
import torch

from vqvae.theory.blahut_arimoto import blahut_arimoto, grid_source, squared_error
from vqvae.theory.linear_gaussian import (
    RemoteSource,
    linear_gaussian_eigenvalues,
    noiseless_source,
    pca_source,
    remote_source,
)
from vqvae.theory.rate_distortion import gaussian_rate, water_filling
from vqvae.theory.shannon_bound import (
    differential_entropy,
    gaussian_entropy,
    laplace_entropy,
    mismatched_gaussian_distortion,
    mismatched_gaussian_rate,
    shannon_distortion,
    shannon_rate,
    uniform_entropy,
)


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("variance", [1e-6, 0.3, 1.0, 2e4])
def test_entropies_by_quadrature(variance):
    b, s, half = math.sqrt(variance / 2), math.sqrt(variance), math.sqrt(3 * variance)
    gauss = lambda x: torch.exp(-x**2 / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    for closed, density, low, high, breaks in [
        (gaussian_entropy, gauss, -12 * s, 12 * s, [0.0]),
        (laplace_entropy, lambda x: torch.exp(-x.abs() / b) / (2 * b), -60 * b, 60 * b, [0.0]),
        (uniform_entropy, lambda x: torch.ones_like(x) / (2 * half), -half, half, [])]:
        assert differential_entropy(density, low, high, breaks).item() == pytest.approx(
            closed(variance).item(), abs=1e-8
        )
    assert differential_entropy(lambda x: x.exp() * 0 + 1, 0, 1).item() == 0


def test_shannon_bound_ends_and_shapes():
    assert shannon_rate(torch.ones(3, 1), torch.zeros(4)).shape == (3, 4)
    assert shannon_distortion(math.inf, 3.0).item() == 0 and shannon_rate(math.inf, 3.0).item() == 0
    for k in (1, 5, 64):
        variances = numbers(k, k).exp()
        h = gaussian_entropy(variances).sum()
        for rate in (0.5, 3.0, 40.0, 500.0):
            w, bound = water_filling(variances, rate), shannon_distortion(rate, h, k)
            assert bound <= w.distortion * (1 + 1e-12)
            if w.level <= variances.min():
                assert bound.item() == pytest.approx(w.distortion.item(), rel=1e-11)
            assert shannon_rate(bound, h, k).item() == pytest.approx(rate, rel=1e-11)


@pytest.mark.parametrize("seed", range(8))
def test_mismatched_rate_is_the_supremum(seed):
    D, variance, v = (numbers(seed, 3) * 1.5).exp().tolist()
    s = torch.logspace(-8, 8, 400_001, dtype=torch.float64)
    dual = -s * D + 0.5 * torch.log1p(2 * s * v) + s * variance / (1 + 2 * s * v)
    exact = mismatched_gaussian_rate(D, variance, v).item()
    assert exact == pytest.approx(max(dual.max().item(), 0) / math.log(2), abs=1e-7)
    assert exact >= gaussian_rate(D, variance).item() - 1e-12
    if exact > 0:
        assert mismatched_gaussian_distortion([variance], [v], exact).item() == pytest.approx(
            D, rel=1e-8
        )


def test_mismatched_rate_scales_and_ends():
    D, v = torch.tensor([0.01, 0.3, 1.2]), torch.tensor([[0.2], [1.0], [4.0]])
    for scale in (1e-6, 7.0, 1e8):
        torch.testing.assert_close(mismatched_gaussian_rate(scale * D.double(), scale,
                                                            scale * v.double()),
                                   mismatched_gaussian_rate(D.double(), 1.0, v.double()), rtol=1e-9,
                                   atol=1e-12)
    rate = mismatched_gaussian_rate([0.0, 0.0, 0.5, 2.0, 2.1, math.inf],
                                    [1.0, 0.0, 0.0, 1.0, 1.0, 1.0], 1.0)
    # codes spread for nothing
    assert (
        rate[:2].tolist() == [math.inf, math.inf] and rate[2] > 0 and rate[3:].tolist() == [0, 0, 0]
    )
    # nothing to describe, and nothing spread
    assert mismatched_gaussian_rate(0.0, 0.0, 0.0).item() == 0


@pytest.mark.parametrize("seed", range(4))
def test_no_codebook_beats_the_water_filled_one(seed):
    variances = (2 * numbers(seed, 7)).exp()
    rate = torch.tensor([0.3, 4.0, 20.0, 200.0], dtype=torch.float64)
    w = water_filling(variances, rate)
    best = mismatched_gaussian_distortion(variances, variances - w.distortions, rate)
    torch.testing.assert_close(best, w.distortion, rtol=1e-9, atol=0)
    for trial in range(20):
        other = (variances - w.distortions) * (0.5 * numbers(100 * seed + trial, 7)).exp()
        assert (mismatched_gaussian_distortion(variances, other, rate) >= w.distortion
                * (1 - 1e-9)).all()
    # (7,) codebooks of one variance each
    one = mismatched_gaussian_distortion(variances, variances[:, None], 4.0)
    for i in range(7):
        assert one[i].item() == pytest.approx(
            mismatched_gaussian_distortion(variances, variances[i], 4.0).item(), rel=1e-12
        )


def test_mismatched_codebooks_far_from_the_source():
    wide = torch.tensor([1e10, 1e100, 1e200, 1e307], dtype=torch.float64)
    rate = mismatched_gaussian_rate(0.1, 1.0, wide)
    limit = 0.5 * (wide / 0.1).log2() - 0.5 / math.log(2)
    torch.testing.assert_close(rate, limit, rtol=1e-9, atol=0)
    assert mismatched_gaussian_rate(1e150, 1e200, 1e200).isfinite()
    rates = torch.tensor([400.0, 900.0, 1000.0, 1e5], dtype=torch.float64)
    found = mismatched_gaussian_distortion([1.0], [1.0], rates)
    assert (found[2:] == 0).all() and 0 < found[0]
    at = mismatched_gaussian_rate(found[0], 1.0, 1.0)
    assert at.item() == pytest.approx(400, rel=1e-9)


def test_mismatched_distortion_ends():
    assert mismatched_gaussian_distortion([2.0, 1.0], [1.0, 3.0],
                                          0.0).item() == pytest.approx((2 + 1 + 1 + 3) / 2)
    assert mismatched_gaussian_distortion([2.0, 1.0], [1.0, 3.0], math.inf).item() == 0
    assert mismatched_gaussian_distortion([2.0, 1.0], [1.0, 0.0], math.inf).item() == 0.5
    assert mismatched_gaussian_distortion([2.0, 1.0], [0.0, 0.0],
                                          torch.tensor([0.0, 5.0, math.inf])).tolist() == [1.5] * 3
    rate = torch.tensor([100.0, 2000.0, 1e5])
    D = mismatched_gaussian_distortion(torch.ones(128), [1.0], rate)
    assert D.isfinite().all() and (D.diff() <= 0).all()
    assert D[1].item() == pytest.approx(2 ** (-2 * 2000 / 128), rel=1e-3)


@pytest.mark.parametrize("pi", [0.5, 0.3, 0.02])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_blahut_arimoto_coin(pi, share):
    h = lambda t: -(t * math.log2(t) + (1 - t) * math.log2(1 - t))
    D = share * pi
    found = blahut_arimoto([pi, 1 - pi], 1 - torch.eye(2), math.log2((1 - D) / D), tolerance=1e-10)
    D = found.distortion.item()
    exact = h(pi) - h(D) if D < pi else 0.0
    assert (
        found.rate.item() - found.gap.item() - 1e-12 <= exact <= found.rate.item() + 1e-12
        and found.gap <= 1e-10
    )


@pytest.mark.parametrize("m", [2, 5, 12])
def test_blahut_arimoto_uniform_hamming(m):
    "R(D) = log m - H(D) - D log(m - 1): Cover and Thomas, problem 10.5."
    found = blahut_arimoto(torch.full((m,), 1 / m), 1 - torch.eye(m), 4.0, tolerance=1e-10)
    D = found.distortion.item()
    exact = math.log2(m) + D * math.log2(D) + (1 - D) * math.log2(1 - D) - D * math.log2(m - 1)
    assert found.rate.item() == pytest.approx(exact, abs=1e-9)


def test_blahut_arimoto_bounds_hold_before_convergence():
    x, p = grid_source(lambda x: torch.exp(-x**2 / 2) / math.sqrt(2 * math.pi), -8, 8, 201)
    costs = squared_error(x, x)
    for target in (0.6, 0.2, 0.05):
        for tolerance in (0.5, 0.05, 0.005, 5e-4):
            found = blahut_arimoto(p, costs, 1 / (2 * math.log(2) * target), tolerance=tolerance)
            exact = gaussian_rate(found.distortion).item()
            assert found.gap <= tolerance
            assert found.rate.item() - found.gap.item() - 1e-7 <= exact <= found.rate.item() + 1e-7


def test_blahut_arimoto_at_degenerate_sources_and_costs():
    costs = numbers(0, 4, 3)
    p = torch.tensor([0.5, 0.0, 0.25, 0.25])
    with_dead = blahut_arimoto(p, costs, 2.0, tolerance=1e-8)
    without = blahut_arimoto(p[p > 0], costs[p > 0], 2.0, tolerance=1e-8)
    assert with_dead.rate.item() == pytest.approx(without.rate.item(),
                                                  abs=1e-7) and with_dead.channel.shape == (4, 3)
    # a constant moves the distortion only
    shifted = blahut_arimoto(p, costs + 100, 2.0, tolerance=1e-8)
    assert shifted.rate.item() == pytest.approx(with_dead.rate.item(), abs=1e-7)
    assert shifted.distortion.item() == pytest.approx(with_dead.distortion.item() + 100, abs=1e-6)
    sure = blahut_arimoto([1.0], [[3.0, 1.0]], 50.0)
    assert sure.rate.item() == pytest.approx(
        0, abs=1e-3
    ) and sure.distortion.item() == pytest.approx(1.0, abs=1e-3)
    steep = blahut_arimoto([0.25] * 4, 1 - torch.eye(4), 1e6)  # lossless
    assert steep.rate.item() == pytest.approx(2.0) and steep.distortion.item() == 0
    vectors = squared_error(numbers(1, 20, 3), numbers(2, 9, 3))
    assert vectors.shape == (20, 9) and blahut_arimoto(torch.full((20,), 0.05), vectors,
                                                       3.0).gap <= 1e-3
    again = blahut_arimoto(torch.full((20,), 0.05), vectors, 3.0)
    assert torch.equal(again.channel, blahut_arimoto(torch.full((20,), 0.05), vectors, 3.0).channel)


@pytest.mark.parametrize("seed", range(6))
def test_remote_source_by_brute_force(seed):
    """Random linear Gaussian encoders of the observation: none does better than D at its own
    information."""
    mix = numbers(seed, 7, 7)
    joint = mix @ mix.T
    Z, cross, T = joint[:4, :4], joint[4:, :4], joint[4:, 4:]
    source = remote_source(Z, cross, T)
    assert source.distortion(0.0).item() == pytest.approx(T.trace().item() / 3)
    for trial in range(100):
        G = numbers(1000 * seed + trial, 3, 4)  # code = G z + noise of variance 1
        code = G @ Z @ G.T + torch.eye(3, dtype=torch.float64)
        bits = 0.5 * torch.linalg.slogdet(code).logabsdet.item() / math.log(2)  # I(Z; code)
        gain = cross @ G.T
        error = (T - gain @ torch.linalg.solve(code, gain.T)).trace().item() / 3
        assert error >= source.distortion(bits).item() - 1e-9


def test_linear_gaussian_ends():
    A = numbers(0, 12, 3)
    values = linear_gaussian_eigenvalues(A, 0.5)
    assert values.shape == (12,) and (values.diff()
                                      <= 1e-12).all() and values[3:].tolist() == [0.25] * 9
    assert linear_gaussian_eigenvalues(A.T, 0.5).shape == (3,)  # more signals than coordinates
    whole = pca_source(values)
    torch.testing.assert_close(whole.distortion([0.0, 2.0, 90.0]),
                               water_filling(values, torch.tensor([0.0, 2.0, 90.0])).distortion)
    clean = noiseless_source(A, 0.5)
    assert isinstance(clean, RemoteSource) and clean.dim == 12 and clean.variances.shape == (3,)
    assert clean.distortion(0.0).item() == pytest.approx(A.square().sum().item() / 12)
    assert (
        clean.distortion(math.inf).item()
        == clean.floor.item()
        == pytest.approx(
            (A @ A.T - A @ A.T @ torch.linalg.inv(A @ A.T + 0.25 * torch.eye(12)) @ A @ A.T)
            .trace()
            .item()
            / 12
        )
    )
    dark = noiseless_source(torch.zeros(4, 2), 0.0)
    assert dark.floor == 0 and (dark.variances
                                == 0).all() and dark.distortion(3.0) == 0 and dark.rate(0.0) == 0
    for source in (whole, clean, pca_source(values, 2)):
        D = source.distortion(torch.tensor([0.5, 4.0, 17.0]))
        torch.testing.assert_close(source.rate(D),
                                   torch.tensor([0.5, 4.0, 17.0], dtype=torch.float64), rtol=1e-9,
                                   atol=1e-9)
    blind = remote_source(torch.zeros(2, 2), torch.zeros(3, 2), torch.eye(3))
    assert (
        blind.distortion(math.inf).item() == 1.0
        and blind.rate(1.0).item() == 0
        and blind.rate(0.9).item() == math.inf
    )


@pytest.mark.parametrize("call, message", [
    (lambda: differential_entropy(lambda x: x * math.nan, 0, 1),
     "density must not be negative or NaN"),
    (lambda: differential_entropy(lambda x: x * 0 + 0.5, 0, 1),
     "density must integrate to 1, got 0.5"),
    (lambda: shannon_rate(1.0, 1.0, dim=0), "dim must be positive"),
    (lambda: shannon_rate(1.0, math.inf), "entropy must not be NaN or inf"),
    (lambda: shannon_distortion(-1.0, 1.0), "rate must not be negative"),
    (lambda: mismatched_gaussian_rate(0.1, math.inf, 1.0), "variance holds 1 NaN"),
    (lambda: mismatched_gaussian_rate(math.nan, 1.0, 1.0), "distortion holds 1 NaN"),
    (lambda: mismatched_gaussian_distortion([1.0, -1.0], [1.0], 1.0),
     "variances must not be negative"),
    (lambda: mismatched_gaussian_distortion([1.0], [1.0], -1.0), "rate must not be negative"),
    (lambda: mismatched_gaussian_distortion([1.0, 1.0, 1.0], [1.0, 2.0], 1.0),
     "codebook_variances must have 3 values on its last axis"),
    (lambda: blahut_arimoto([], torch.zeros(0, 2), 1.0), "probabilities is empty"),
    (lambda: blahut_arimoto([[0.5, 0.5]], torch.zeros(1, 2), 1.0), "probabilities must have shape"),
    (lambda: blahut_arimoto([0.5, math.nan], torch.zeros(2, 2), 1.0), "probabilities holds 1 NaN"),
    (lambda: blahut_arimoto([1.0], [[math.inf]], 1.0), "distortions holds 1 NaN or infinite"),
    (lambda: blahut_arimoto([0.5, 0.5], [1.0, 2.0], 1.0), r"distortions must have shape \(2, n\)"),
    (lambda: blahut_arimoto([1.0], [[1.0]], math.inf), "slope must be positive"),
    (lambda: blahut_arimoto([1.0], [[1.0]], 1.0, tolerance=0.0), "tolerance must be positive"),
    (lambda: grid_source(lambda x: x, 1.0, 0.0), "low and high must be finite and in order"),
    (lambda: grid_source(lambda x: -torch.ones_like(x), 0, 1), "density must not be negative"),
    (lambda: squared_error(torch.ones(3, 2), torch.ones(3)), "points must have shapes"),
    (lambda: remote_source(torch.eye(2), torch.ones(2), torch.eye(1)), "cross must have shape"),
    (lambda: remote_source(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.zeros(1, 2), torch.eye(1)),
     "observation must be symmetric"),
    (lambda: remote_source(torch.eye(2), torch.zeros(1, 2), -torch.eye(1)),
     "no variables have these covariances"),
    (lambda: remote_source(torch.eye(2), torch.full((1, 2), math.nan), torch.eye(1)),
     "cross holds 2 NaN"),
    (lambda: pca_source([1.0, 2.0], 0), "n_components must be between 1 and 2, got 0"),
    (lambda: pca_source(torch.ones(2, 2)), "eigenvalues must have shape"),
    (lambda: noiseless_source(torch.ones(3, 2), math.nan), "sigma_noise holds 1 NaN"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_blahut_arimoto_that_does_not_converge_is_an_error():
    x, p = grid_source(lambda x: torch.exp(-x.abs()) / 2, -15, 15, 401)
    with pytest.raises(RuntimeError,
                       match="the duality gap is still .* after 5 steps, above tolerance 1e-09"):
        blahut_arimoto(p, squared_error(x, x), 2.0, tolerance=1e-9, max_iterations=5)
