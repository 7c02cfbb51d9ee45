"""The study of initialization: what its training loop reaches, and what its grid covers."""
import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.quasirandom import SobolEngine

from vqvae.initialization.data import kmeans_init
from vqvae.quantizers.learning import EMALearning
from vqvae.quantizers.search import nearest_codes
from vqvae.quantizers.vq import VectorQuantizer
from vqvae.studies.initialization import INITIALIZERS, initialization, training
from vqvae.theory.lloyd_max import gaussian_source, lloyd_max


def held_out(k):
    "Points that cover N(0, I) evenly, so that a mean over them is nearly exact."
    u = SobolEngine(k, scramble=True, seed=99).draw(2**15, dtype=torch.float64)
    return torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9))


def distortion(codes, test):
    return (test - codes[nearest_codes(test, codes)]).square().mean().item()


def independent(k, n, test):
    "Lloyd-Max in one dimension; in several, scikit-learn's k-means on a large sample."
    if k == 1: return lloyd_max(gaussian_source(), n).distortion.item()
    samples = np.random.default_rng(0).standard_normal((40_000, k))
    fit = KMeans(n, n_init=3 if n <= 16 else 1, max_iter=50, random_state=0).fit(samples)
    return distortion(torch.from_numpy(fit.cluster_centers_), test)


@pytest.mark.parametrize(("k", "n", "steps"),
                         [(1, 8, 300), (2, 16, 400), (4, 64, 500), (8, 256, 700)])
def test_a_trained_quantizer_is_within_two_percent_of_the_best_and_above_the_limit(k, n, steps):
    generator = torch.Generator().manual_seed(0)
    draw = lambda number: torch.randn(number, k, generator=generator)
    quantizer = VectorQuantizer(k, n)
    quantizer.initialize(kmeans_init, draw(max(1024, 10 * n)), generator)
    for _ in training(quantizer, draw, steps, batch_size=1024): pass
    test = held_out(k)
    reached = distortion(quantizer.get_codebook().detach().double(), test)
    assert n ** (-2 / k) < reached < 1.02 * independent(k, n, test)


def test_training_counts_its_steps_and_moves_a_codebook_that_learns_by_averages():
    generator = torch.Generator().manual_seed(0)
    draw = lambda number: torch.randn(number, 2, generator=generator)
    quantizer = VectorQuantizer(2, 4, draw(4), learning=EMALearning(0.9))
    before = distortion(quantizer.codebook.double(), held_out(2))
    assert list(training(quantizer, draw, 30)) == list(range(31))
    assert distortion(quantizer.codebook.double(), held_out(2)) < before


def test_the_grid_holds_every_rate_that_means_a_whole_number_of_bits_up_to_fourteen():
    rows = {(row["spectrum"], row["dim"], row["codebook_size"], row["initialization"])
            for row in initialization.grid}
    for k in (2, 4, 8, 16, 32, 64, 128):
        for rate in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4):
            bits = rate * k
            if bits == int(bits) and 1 <= bits <= 14:
                assert all((s, k, 2 ** int(bits), i) in rows for s in ("equal", "unequal")
                           for i in INITIALIZERS)
    assert max(row["codebook_size"] for row in initialization.grid) == 2**14
    assert all(math.log2(row["codebook_size"]) <= 4 * row["dim"] for row in initialization.grid)
    assert len({tuple(row.items()) for row in initialization.grid}) == len(initialization.grid)
