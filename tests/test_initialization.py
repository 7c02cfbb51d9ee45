"""What every initializer keeps: shape, dtype, determinism, the global generator, errors; and
k-means on hard data."""
import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from vqvae import initialization as room
from vqvae.core import import_path, resolve
from vqvae.initialization import base as initialization_base
from vqvae.initialization import (
    codebook_covariance,
    kmeans_init,
    normal_init,
    rd_gaussian_init,
    sample_init,
)
from vqvae.theory import water_filling

NO_INITIALIZERS = {"Initializer", "codebook_covariance"}  # what else the room exports
ALL = [getattr(room, name) for name in room.__all__ if name not in NO_INITIALIZERS]
WITHOUT_DATA = [f for f in ALL if f not in (sample_init, kmeans_init)]
every = pytest.mark.parametrize("initializer", ALL, ids=lambda f: f.__name__)


def latents(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def used(codebook, data):
    distance = torch.cdist(data.double().reshape(-1, codebook.shape[1]), codebook.double(),
                           compute_mode="donot_use_mm_for_euclid_dist")
    return distance.argmin(1).unique().numel()


@every
@pytest.mark.parametrize("shape", [(200, 3), (8, 5, 5, 3), (10, 20, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype(initializer, shape, dtype):
    data = latents(*shape).to(dtype).requires_grad_()
    codebook = initializer(16, 3, data)
    assert codebook.shape == (16,
                              3) and codebook.dtype == torch.float32 and codebook.is_contiguous()
    assert not codebook.requires_grad and torch.isfinite(codebook).all()
    # the grid does not matter
    assert torch.equal(codebook, initializer(16, 3, data.detach().reshape(-1, 3)))


@every
def test_deterministic_and_global_generators_untouched(initializer):
    data, ours = latents(300, 4), torch.get_rng_state()
    theirs = np.random.get_state()[1].copy()
    generator = lambda seed: torch.Generator().manual_seed(seed)
    first = initializer(32, 4, data, generator=generator(5))
    assert torch.equal(first, initializer(32, 4, data, generator=generator(5)))
    assert not torch.equal(first, initializer(32, 4, data, generator=generator(6)))
    assert torch.equal(initializer(32, 4, data), initializer(32, 4, data, generator=generator(0)))
    moving = generator(5)
    assert not torch.equal(initializer(32, 4, data, generator=moving),
                           initializer(32, 4, data, generator=moving))
    assert torch.equal(torch.get_rng_state(), ours) and (np.random.get_state()[1] == theirs).all()
    assert torch.equal(data, latents(300, 4))  # the data are as they were


@every
def test_numpy_integers(initializer):
    found = initializer(np.int64(8), np.int64(3), latents(50, 3))
    assert torch.equal(found, initializer(8, 3, latents(50, 3)))


@every
def test_computes_on_the_cpu_for_a_device_without_float64(initializer, monkeypatch):
    """The generator's device stands in for Apple's GPU: nothing is drawn or computed there but the
    seed of a generator that has float64."""
    monkeypatch.setattr(initialization_base, "has_float64", lambda device: False)
    generator = torch.Generator().manual_seed(3)
    found = initializer(8, 3, latents(50, 3), generator=generator)
    drawn = torch.randint(2**31 - 1, (), generator=torch.Generator().manual_seed(3))
    monkeypatch.undo()
    expected = initializer(8, 3, latents(50, 3),
                           generator=torch.Generator().manual_seed(int(drawn)))
    assert torch.equal(found, expected)


def test_kmeans_max_iter_is_an_integer():
    with pytest.raises(TypeError, match="max_iter must be an int, got float"):
        kmeans_init(4, 3, latents(50, 3), max_iter=2.5)
    assert kmeans_init(4, 3, latents(50, 3), max_iter=np.int64(3)).shape == (4, 3)


def test_importing_starts_without_heavy_libraries():
    code = ("import sys, torch; before = set(sys.modules)\n"
            "import vqvae.initialization, vqvae.quantizers\n"
            "heavy = ('sklearn', 'threadpoolctl', 'pandas', 'matplotlib', 'torch._dynamo')\n"
            "print([name for name in heavy if name in set(sys.modules) - before])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@every
def test_signature_and_import_path(initializer):
    parameters = inspect.signature(initializer).parameters
    assert list(parameters)[:4] == ["codebook_size", "dim", "data", "generator"]
    assert parameters["data"].default is None and parameters["generator"].default is None
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[3:])
    assert resolve(import_path(initializer)) is initializer


@every
@pytest.mark.parametrize("arguments, error, message", [
    (dict(codebook_size=0), ValueError, "codebook_size must be positive, got 0"),
    (dict(dim=-1), ValueError, "dim must be positive, got -1"),
    (dict(codebook_size=2.5), TypeError, "codebook_size must be an int, got float"),
    (dict(codebook_size=True), TypeError, "codebook_size must be an int, got bool"),
    (dict(dim=4), ValueError, r"data must have 4 values on its last axis, got shape \(50, 3\)"),
    (dict(data=torch.zeros(0, 3)), ValueError, "data is empty"),
    (dict(data=torch.full((50, 3), math.nan)), ValueError, "data holds 150 NaN"),
    (dict(data=torch.full((50, 3), math.inf)), ValueError, "data holds 150 NaN or inf"),
    (dict(data=torch.full((50, 3), 1e300, dtype=torch.float64)), ValueError,
     "data holds 150 NaN or inf"),
    (dict(data=torch.zeros(50, 3, dtype=torch.int64)), TypeError,
     "data must be a floating-point tensor"),
    (dict(data=np.zeros((50, 3))), TypeError, "data must be a torch.Tensor, got ndarray"),
    (dict(generator=3), TypeError, "generator must be a torch.Generator, got int"),
])
def test_errors(initializer, arguments, error, message):
    with pytest.raises(error, match=message):
        initializer(**{"codebook_size": 4, "dim": 3, "data": latents(50, 3), **arguments})


@pytest.mark.parametrize("initializer", [sample_init, kmeans_init])
def test_enough_different_samples(initializer):
    with pytest.raises(ValueError, match="needs data"): initializer(4, 3)
    with pytest.raises(ValueError, match="at least 51 samples in data, got 50"):
        initializer(51, 3, latents(50, 3))
    repeated = latents(10, 3).repeat(9, 1)
    with pytest.raises(ValueError, match="at least 11 different samples in data, got 10 among 90"):
        initializer(11, 3, repeated)
    by_row = lambda x: sorted(map(tuple, x.tolist()))
    assert by_row(initializer(10, 3, repeated)) == by_row(latents(10, 3))
    signs = torch.tensor([[0.0], [-0.0], [1.0]])  # 0 and −0 are one point
    with pytest.raises(ValueError, match="different samples in data, got 2 among 3"):
        initializer(3, 1, signs)
    close = torch.tensor([[1.0], [1.0 + 1e-12], [2.0]], dtype=torch.float64)  # one point in float32
    with pytest.raises(ValueError, match="different samples in data, got 2 among 3"):
        initializer(3, 1, close)


@pytest.mark.parametrize("initializer", WITHOUT_DATA)
def test_no_data_needed(initializer):
    assert initializer(1, 1).shape == (1, 1)
    assert initializer(512, 6).shape == (512, 6)


@pytest.mark.parametrize("initializer", [normal_init, rd_gaussian_init])
def test_two_samples_are_the_least(initializer):
    with pytest.raises(ValueError, match="at least 2 samples in data, got 1"):
        initializer(4, 3, latents(1, 3))
    assert torch.isfinite(initializer(4, 3, latents(2, 3))).all()
    # constant data: a constant codebook
    assert torch.equal(initializer(4, 3, torch.ones(9, 3)), torch.ones(4, 3))


@pytest.mark.parametrize("seed", range(6))
def test_kmeans_leaves_no_empty_cluster(seed):
    generator = torch.Generator().manual_seed(seed)
    heap = torch.cat([torch.full((500, 2), 1e3),
                      1e3 + 1e-2 * torch.randn(60, 2, generator=generator)])
    grid = torch.randint(0, 7, (400, 2), generator=generator).float()  # at most 49 different points
    wide = torch.randn(200, 2, generator=generator) * torch.tensor([1e6, 1e-6])
    for data in (heap, grid, wide):
        different = len(data.unique(dim=0))
        for n in (different, different - 1, different // 2):
            codebook = kmeans_init(n, 2, data, generator=generator)
            assert used(codebook, data) == n
    assert used(kmeans_init(64, 2, wide, generator=generator, max_iter=1), wide) == 64


def test_kmeans_finds_separated_clusters():
    centres = 100 * latents(12, 5, seed=1)
    data = (centres[:, None] + 0.1 * latents(12, 50, 5, seed=2)).reshape(-1, 5)
    codebook = kmeans_init(12, 5, data)
    found = torch.cdist(centres, codebook).min(1)
    assert found.indices.unique().numel() == 12 and found.values.max() < 0.2
    with pytest.raises(ValueError, match="max_iter must be positive"):
        kmeans_init(12, 5, data, max_iter=0)


def test_sample_init_takes_every_sample_equally_often():
    data, counts = torch.arange(10.0)[:, None], torch.zeros(10)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000): counts[sample_init(3, 1, data, generator=generator).flatten().long()] += 1
    assert (counts - 600).abs().max() < 4.5 * math.sqrt(2000 * 0.3 * 0.7)


@pytest.mark.parametrize("n", [1, 2, 16, 1024])
@pytest.mark.parametrize("seed", range(3))
def test_codebook_covariance_is_water_filled(seed, n):
    generator = torch.Generator().manual_seed(seed)
    variances = torch.exp(2 * torch.randn(9, generator=generator, dtype=torch.float64))
    variances[:2] = 0
    basis = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q
    asked = (basis
             * (variances - water_filling(variances, math.log2(n)).level).clamp(min=0)) @ basis.T
    found = codebook_covariance((basis * variances) @ basis.T, n)
    torch.testing.assert_close(found, asked, rtol=0, atol=1e-11 * variances.max().item())
    isotropic = codebook_covariance((basis * variances) @ basis.T, n, isotropic=True)
    torch.testing.assert_close(isotropic,
                               variances.mean() * (1 - n ** (-2 / 9)) * torch.eye(9).double(),
                               rtol=0, atol=1e-11)


@pytest.mark.parametrize("covariance, message", [
    (torch.zeros(2, 3), r"covariance must have shape \(dim, dim\), got \(2, 3\)"),
    (torch.zeros(4), r"covariance must have shape \(dim, dim\), got \(4,\)"),
    (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "covariance must be symmetric"),
    (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "no negative eigenvalue, got -1"),
    (torch.full((2, 2), math.nan), "covariance holds 4 NaN"),
])
def test_covariance_errors(covariance, message):
    with pytest.raises(ValueError, match=message): codebook_covariance(covariance, 16)


def test_drawn_codes_follow_mean_and_covariance():
    data = (
        3
        + latents(4000, 5)
        @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.3, 0.0]))
        @ torch.linalg.qr(latents(5, 5, seed=1)).Q
    )
    generator = torch.Generator().manual_seed(0)
    codes = torch.cat([rd_gaussian_init(64, 5, data, generator=generator)
                       for _ in range(100)]).double()
    asked = codebook_covariance(data.double().T.cov(), 64)
    # standard error of a covariance
    error = ((asked**2 + asked.diag()[:, None] * asked.diag()) / len(codes)).sqrt()
    assert ((codes.T.cov() - asked).abs() < 4.5 * error + 1e-9).all()
    assert ((codes.mean(0) - data.double().mean(0)).abs() < 4.5 * (asked.diag() / len(codes)).sqrt()
            + 1e-6).all()
    assert torch.linalg.matrix_rank(codes - codes.mean(0),
                                    rtol=1e-4) == (torch.linalg.eigvalsh(asked) > 1e-9).sum()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_devices(initializer, where):
    generator = torch.Generator(device=where).manual_seed(0)
    assert initializer(8, 3, latents(90, 3).cuda(), generator=generator).device.type == "cuda"
    assert initializer(8, 3, latents(90, 3), generator=generator).device.type == "cpu"
    if initializer in WITHOUT_DATA:
        assert initializer(8, 3, generator=generator).device.type == where
