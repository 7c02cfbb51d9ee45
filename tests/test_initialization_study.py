"""The study of initialization: what its training loop reaches, and what its grid covers."""
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.cluster import KMeans
from torch.quasirandom import SobolEngine

from vqvae.initialization.data import kmeans_init
from vqvae.quantizers.learning import EMALearning
from vqvae.quantizers.search import nearest_codes
from vqvae.quantizers.vq import ClassicalVectorQuantizer, VectorQuantizer
from vqvae.studies.initialization import (
    INITIALIZERS,
    best_rates,
    initialization,
    measure,
    training,
)
from vqvae.studies.trained_start import excess_kurtosis, warm_up
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
    quantizer = ClassicalVectorQuantizer(k, n)
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


def test_the_grid_holds_every_rate_that_means_a_whole_number_of_bits_up_to_eight():
    rows = {(row["spectrum"], row["dim"], row["codebook_size"], row["initialization"])
            for row in initialization.grid}
    for k in (2, 4, 8, 16, 32, 64, 128):
        for rate in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4):
            bits = rate * k
            if bits == int(bits) and bits in (1, 2, 4, 8):
                assert all((s, k, 2 ** int(bits), i) in rows for s in ("equal", "unequal")
                           for i in INITIALIZERS)
    assert all(math.log2(row["codebook_size"]) <= 5 * row["dim"] for row in initialization.grid)
    assert len({tuple(row.items()) for row in initialization.grid}) == len(initialization.grid)


def test_every_start_that_is_trained_by_loss_has_a_grid_of_rates_of_the_same_size():
    cells = {}
    for row in initialization.grid:
        if row["learning"] == "loss" and row["steps"] == 200:
            key = tuple(row[name] for name in ("spectrum", "dim", "codebook_size",
                                               "initialization", "samples"))
            cells.setdefault(key, set()).add(row["learning_rate"])
    grown = [key for key, rates in cells.items() if len(rates) == 6]
    assert all(len(rates) == 5 for key, rates in cells.items() if key not in grown)
    # it grew where a best rate lay at its edge: for five starts of one cell, and for one start
    whole = {key for key in grown if key[:3] == ("equal", 8, 16) and key[4] == 1024}
    assert len(whole) == 5
    assert {key[2:] for key in {*grown} - whole} == {(1024, "k-means", 16384)}


@pytest.mark.parametrize("learning", ["loss", "default", "ema 0.99"])
def test_a_start_is_judged_on_latents_that_depend_on_the_seed_only(learning):
    setting = {"spectrum": "unequal", "dim": 4, "codebook_size": 16, "initialization": "uniform",
               "scale": 1.0, "learning": learning, "learning_rate": 0.03, "steps": 3}
    few, many = (measure(samples=samples, seed=0, **setting) for samples in (1024, 2048))
    assert few == many  # the uniform start uses no samples
    assert few != measure(samples=1024, seed=1, **setting)
    assert few["validation"] != few["trained"] < few["start"]


def test_the_best_rate_is_the_one_of_the_lowest_mean_on_the_validation_set():
    common = {"spectrum": "equal", "dim": 2, "codebook_size": 4, "initialization": "sample",
              "samples": 1024, "scale": 1.0, "learning": "loss", "steps": 200}
    rows = pd.DataFrame([{**common, "learning_rate": rate, "seed": seed,
                          "validation": value, "trained": -value}
                         for rate, values in {0.1: (3.0, 1.0), 0.3: (1.5, 1.0)}.items()
                         for seed, value in enumerate(values)])
    best = best_rates(rows)
    assert set(best.learning_rate) == {0.3} and list(best.trained) == [-1.5, -1.0]
    assert set(best.method) == {"sample"} and set(best.rule) == {"loss, 200"}


def test_warm_up_trains_the_autoencoder_alone_and_no_step_changes_nothing():
    from vqvae.studies.protocol import autoencoder, task_data
    samples = task_data("digits conv").train[:64]
    losses = []
    for steps in (0, 30):
        encoder, decoder = autoencoder("digits conv", 8, seed=0)
        before = [p.clone() for p in encoder.parameters()]
        warm_up(encoder, decoder, "digits conv", steps, 3e-3, seed=0)
        assert all(torch.equal(*pair) for pair in zip(before, encoder.parameters())) == (not steps)
        losses.append((decoder(encoder(samples)) - samples).square().mean().item())
    assert losses[1] < 0.8 * losses[0]


def test_excess_kurtosis_of_a_uniform_variable():
    z = torch.linspace(-1, 1, 10_001, dtype=torch.float64).unsqueeze(1)
    assert excess_kurtosis(z) == pytest.approx(-1.2, abs=1e-3)
