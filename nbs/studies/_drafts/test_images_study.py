"The study of real images: what its page does not show."
import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vqvae.studies.images import (
    RATES,
    RULE,
    TRIED,
    autoencoder,
    compared,
    images,
    jpeg_file,
    kmeans_code,
    measure,
    pca_code,
    scan_bytes,
    summarize,
    table_bits,
)

PICTURES = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_scan_bytes_finds_the_scan_whatever_the_tables_hold():
    "Quantization tables may hold the bytes of a start-of-scan marker, FF DA, themselves."
    table = [0xFF, 0xDA] * 32
    for options in ({}, {"optimize": True}):
        _, file = jpeg_file(PICTURES, 8, qtables=[table], **options)
        assert file.index(b"\xff\xda") < file.rindex(b"\xff\xda")  # the first is not the marker
        header = 2 + 8  # the marker, and what it says about one component
        assert scan_bytes(file) == len(file) - file.rindex(b"\xff\xda") - header - len(b"\xff\xd9")


def test_jpeg_blocks_come_back_in_their_order():
    decoded, file = jpeg_file(PICTURES, 16, quality=95)
    assert decoded.shape == PICTURES.shape and (decoded - PICTURES).abs().mean() < 0.02
    assert Image.open(io.BytesIO(file)).size == (16 * 8, 4 * 8)


def test_unseen_symbols_cost_a_finite_number_of_bits():
    bits = table_bits(torch.zeros(9, 1, dtype=torch.int64), torch.full((1, 1), 3), [4])
    assert bits == pytest.approx(-math.log2(0.25 / 10))


def test_a_finer_step_costs_more_and_errs_less():
    coded = [pca_code(PICTURES, PICTURES, step) for step in (1.0, 0.3, 0.1)]
    errors = [(c.x_recon - PICTURES).square().mean().item() for c in coded]
    assert errors == sorted(errors, reverse=True) and [c.rate for c in coded] == sorted(
        c.rate for c in coded
    )
    assert all(0 <= c.x_recon.min() and c.x_recon.max() <= 1 for c in coded)


def test_kmeans_with_one_code():
    "One code: every block becomes the mean block, and nothing has to be sent."
    coded = kmeans_code(PICTURES, PICTURES, 4, 1, seed=0)
    mean = PICTURES.unfold(2, 4, 4).unfold(3, 4, 4).mean((0, 1, 2, 3))
    assert torch.allclose(coded.x_recon[0, 0, 4:, :4], mean, atol=1e-5) and coded.rate == 0


@pytest.mark.parametrize("method", ["linear", "conv", "transformer"])
@pytest.mark.parametrize("tokens", sorted({tokens for tokens, _ in RATES}))
def test_shapes_of_every_autoencoder(method, tokens):
    encoder, decoder = autoencoder(method, PICTURES, tokens, seed=0)
    z = encoder(PICTURES[:3])
    assert z.reshape(3, -1, encoder.dim).shape[1] == tokens and decoder(z).shape == (3, 1, 8, 8)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="dataset must be digits or photographs, got 'faces'"):
        measure("faces", "PCA", 0, 1.0, 0, 0.0, "–", 0)
    with pytest.raises(ValueError, match="rule must be default or '0.95, 50', got 'loss'"):
        measure("digits", "linear", 1, 16, 160, 0.01, "loss", 0)
    with pytest.raises(ValueError, match="method must be linear, conv or transformer, got 'GIF'"):
        measure("digits", "GIF", 1, 16, 160, 0.01, RULE, 0)


def test_summary_leaves_out_what_cannot_be_compared():
    "A rate below all files of JPEG has no gain over JPEG."
    row = {"dataset": "digits", "seed": 0, "steps": 0, "rate_nominal": math.nan, "tokens": 0,
           "setting": 1.0, "learning_rate": 0.0, "rule": "–"}
    rows = pd.DataFrame([{**row, "method": name, "rate": rate, "distortion": error}
                         for name, first in (("PCA", 0.2), ("JPEG", 0.4), ("JPEG, flat", 0.4))
                         for rate, error in ((first, 1e-2), (0.6, 1e-3))])
    chosen = {"learning_rate": TRIED["digits"]["linear"][1], "rule": RULE}
    learned = pd.DataFrame([{**row, **chosen, "method": "linear", "tokens": 1, "rate": 0.3,
                             "distortion": 1e-2}])
    table = summarize(pd.concat([rows, learned], ignore_index=True))
    assert (
        len(table) == 1
        and np.isnan(table["over JPEG"][0])
        and table["over PCA"][0] == pytest.approx(-2.5)
    )


def test_every_configuration_is_measured_once():
    assert len({tuple(c.values())
                for c in images.grid}) == len(images.grid) and len(images.seeds) >= 5


def test_the_comparison_has_one_learning_rate_and_one_rule():
    rows = pd.DataFrame(images.grid)
    kept = compared(rows)
    learned = kept[kept.rule != "–"]
    assert set(learned.rule) == {RULE} and (kept.rule == "–").sum() == (rows.rule == "–").sum()
    assert not learned.duplicated(["dataset", "method", "tokens", "setting", "steps"]).any()
    assert len(learned) == 2 * 3 * len(RATES) + 2
