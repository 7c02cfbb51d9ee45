"What every dataset promises: order, split, seeds, global generators left alone, errors."
import gzip
import hashlib
import json
import warnings
from pathlib import Path
from unittest.mock import patch
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vqvae.data import (
    BaseDataset,
    DigitsDataset,
    GaussianDataset,
    ImageFolderDataset,
    ImagePatchDataset,
    InMemoryDataset,
    OpenMLImageDataset,
)
from vqvae.data.base import encode_in_chunks, split_rows

# --- what the tests need on disk ---

def fill_cache(home, number, name, rows):
    "Lay down what `fetch_openml` would have cached for this data set, with this table."
    columns = [f"p{i}" for i in range(rows.shape[1])]
    table = "\n".join([f"@RELATION {name}", *(f"@ATTRIBUTE {c} INTEGER" for c in columns),
                       "@ATTRIBUTE class {0,1}", "@DATA",
                       *(",".join(map(str, [*row, i % 2]))
                         for i, row in enumerate(rows.tolist()))]) + "\n"
    feature = dict(data_type="numeric", is_ignore="false", is_row_identifier="false",
                   is_target="false", number_of_missing_values="0")
    features = [dict(feature, index=str(i), name=c) for i, c in enumerate(columns)]
    features.append(dict(feature, index=str(len(columns)), name="class", data_type="nominal",
                         is_target="true", nominal_value=["0", "1"]))
    about = dict(id=str(number), name=name, version="1", status="active", format="ARFF",
                 description="made by a test", file_id=str(number),
                 url=f"https://www.openml.org/data/v1/download/{number}",
                 md5_checksum=hashlib.md5(table.encode()).hexdigest())
    listing = f"api/v1/json/data/list/data_name/{name.lower()}/limit/2/data_version/1"
    answers = {
        listing: json.dumps({"data": {"dataset": [dict(about, did=number)]}}),
        f"api/v1/json/data/{number}": json.dumps({"data_set_description": about}),
        f"api/v1/json/data/features/{number}": json.dumps({"data_features": {"feature": features}}),
        f"api/v1/json/data/qualities/{number}": json.dumps({"data_qualities": {"quality": []}}),
        f"data/v1/download/{number}": table,
    }
    for path, content in answers.items():
        file = Path(home, "openml", "openml.org", path + ".gz")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(content.encode()))


SHAPES = {"mnist": (554, "mnist_784", (1, 28, 28)),
          "fashion-mnist": (40996, "Fashion-MNIST", (1, 28, 28)),
          "cifar10": (40927, "CIFAR_10", (3, 32, 32))}


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    "A cache folder that holds 42 random images of each collection."
    path = tmp_path_factory.mktemp("openml")
    for number, name, shape in SHAPES.values():
        fill_cache(path, number, name,
                   np.random.default_rng(number).integers(0, 256, (42, int(np.prod(shape)))))
    return path


@pytest.fixture(autouse=True)
def no_network():
    with (patch("sklearn.datasets._openml.urlopen", side_effect=URLError("no network in tests")),
          patch("sklearn.datasets._openml.time.sleep")): yield


# name -> (make(home, images, seed), training samples, test samples, shape of a sample)
DATASETS = {
    "gaussian": (lambda h, f, s: GaussianDataset(6, 3, n_samples=50, seed=s), 50, 10, (6,)),
    "digits": (lambda h, f, s: DigitsDataset(seed=s), 1438, 359, (1, 8, 8)),
    "patches": (lambda h, f, s: ImagePatchDataset(6, 60, 20, seed=s), 60, 20, (1, 6, 6)),
    "patches-color": (
        lambda h, f, s: ImagePatchDataset(6, 60, 20, color=True, seed=s),
        60,
        20,
        (3, 6, 6),
    ),
    "mnist": (
        lambda h, f, s: OpenMLImageDataset("mnist", 30, data_home=h, seed=s),
        30,
        6,
        (1, 28, 28),
    ),
    "cifar10": (
        lambda h, f, s: OpenMLImageDataset("cifar10", 30, data_home=h, seed=s),
        30,
        7,
        (3, 32, 32),
    ),
    "folder": (lambda h, f, s: ImageFolderDataset(f, 12, seed=s), 16, 4, (3, 12, 12)),
    "folder-gray": (
        lambda h, f, s: ImageFolderDataset(f, 12, color=False, seed=s),
        16,
        4,
        (1, 12, 12),
    ),
}


@pytest.fixture(params=DATASETS)
def case(request, home, images):
    make, *expected = DATASETS[request.param]
    return (lambda seed=0: make(home, images, seed)), *expected


def rows(x): return {tuple(row) for row in x.flatten(1).tolist()}


# --- the contract ---

def test_shapes_and_values(case):
    make, n_train, n_test, shape = case
    dataset = make()
    assert isinstance(dataset,
                      BaseDataset) and len(dataset) == n_train and dataset.sample_shape == shape
    assert dataset.train.shape == (n_train, *shape) and dataset.test.shape == (n_test, *shape)
    assert dataset.train.dtype == dataset.test.dtype == torch.float32
    if len(shape) == 3:
        for x in (dataset.train, dataset.test): assert x.min() >= 0 and 0.5 < x.max() <= 1
    for split, n in (("train", n_train), ("test", n_test)):
        batches = list(dataset.get_dataloader(7, split=split))
        assert [len(b) for b in batches] == [7] * (n // 7) + ([n % 7] if n % 7 else [])
        assert all(isinstance(b, torch.Tensor) and b.shape[1:] == shape and b.dtype == torch.float32
                   for b in batches)
        assert all(len(b) == 7
                   for b in dataset.get_dataloader(7, split=split, drop_last=True)) or n < 7


def test_same_seed_same_numbers_other_seed_other_numbers(case):
    make = case[0]
    a, b, c = make(1), make(1), make(2)
    assert torch.equal(a.train, b.train) and torch.equal(a.test, b.test)
    assert not torch.equal(a.train, c.train)
    assert torch.equal(a.get_initialization_batch(5, seed=3), b.get_initialization_batch(5, seed=3))
    assert not torch.equal(a.get_initialization_batch(5, seed=3),
                           a.get_initialization_batch(5, seed=4))


def test_split_is_disjoint(case):
    dataset = case[0]()
    assert not rows(dataset.train) & rows(dataset.test)
    assert dataset.train.untyped_storage().data_ptr() != dataset.test.untyped_storage().data_ptr()


def test_order_depends_on_the_seed_alone(case):
    dataset = case[0]()
    def passes(seed):
        loader = dataset.get_dataloader(4, seed=seed)
        return [torch.cat(list(loader)) for _ in range(2)]
    first = passes(0)
    torch.rand(3)  # whatever happened to the global generator
    dataset.get_initialization_batch(2)
    again = passes(0)
    assert all(torch.equal(x, y) for x, y in zip(first, again))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], passes(1)[0])
    assert rows(first[0]) == rows(first[1]) == rows(dataset.train)
    assert torch.equal(torch.cat(list(dataset.get_dataloader(4, shuffle=False))), dataset.train)


def test_global_generators_are_left_alone(case):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    dataset = case[0](5)
    for shuffle in (True, False): list(dataset.get_dataloader(8, shuffle))
    dataset.samples(3)
    dataset.get_initialization_batch(3, encoder=lambda x: x.flatten(1))
    assert torch.equal(torch.get_rng_state(),
                       torch_state) and (np.random.get_state()[1] == numpy_state).all()


def test_initialization_batch(case):
    make, n_train, _, shape = case
    dataset = make()
    samples = dataset.samples(n_train)
    assert rows(samples) == rows(dataset.train)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 6),
                            nn.Unflatten(1, (2, 3)))
    latents = dataset.get_initialization_batch(n_train, encoder)
    assert latents.shape == (2 * n_train, 3) and not latents.requires_grad
    torch.testing.assert_close(latents, encoder(samples).reshape(-1, 3))
    for bad, error in ((n_train + 1, ValueError), (0, ValueError), (-1, ValueError),
                       (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="n"): dataset.get_initialization_batch(bad)


def test_bad_loader_arguments(case):
    dataset = case[0]()
    for bad, error in ((0, ValueError), (-3, ValueError), (2.5, TypeError), ("4", TypeError)):
        with pytest.raises(error, match="batch_size"): dataset.get_dataloader(bad)
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'test'\], got 'val'"):
        dataset.get_dataloader(4, split="val")


# --- a dataset of one's own ---

class MyDataset(BaseDataset):
    "seed.md's example: only `get_dataloader`."
    def get_dataloader(self, batch_size, shuffle=True):
        x = torch.arange(60.0).reshape(20, 3)
        return DataLoader(TensorDataset(x), batch_size=batch_size, shuffle=shuffle)


def test_my_dataset_with_one_method():
    dataset = MyDataset()
    assert len(dataset) == 20 and dataset.sample_shape == (3,)
    state = torch.get_rng_state()
    batch = dataset.get_initialization_batch(20)
    assert batch.shape == (20, 3) and len(rows(batch)) == 20
    assert torch.equal(dataset.get_initialization_batch(9, seed=1),
                       dataset.get_initialization_batch(9, seed=1))
    assert dataset.get_initialization_batch(4, encoder=nn.Linear(3, 2)).shape == (4, 2)
    # nn.Linear above is the test's own use of the generator,
    assert not torch.equal(state, torch.get_rng_state())
    state = torch.get_rng_state()
    dataset.get_initialization_batch(4)
    assert torch.equal(state, torch.get_rng_state())      # the dataset's methods do not use it
    with pytest.raises(ValueError,
                       match="n=21 samples were asked for, but the training split gives only 20"):
        dataset.get_initialization_batch(21)


def test_missing_method_is_refused():
    class Nothing(BaseDataset): pass
    with pytest.raises(TypeError, match="get_dataloader"): Nothing()


def test_encoder_mode_is_restored_even_after_an_error():
    class Fails(nn.Module):
        def forward(self, x):
            assert not self.training
            raise RuntimeError("encoder broke")
    encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout().eval(), Fails())
    with pytest.raises(RuntimeError, match="encoder broke"):
        encode_in_chunks(encoder, torch.zeros(4, 3))
    assert [m.training for m in encoder] == [True, False, True]
    assert encoder[0].num_batches_tracked == 0


def test_chunks_do_not_change_latents():
    encoder = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    x = torch.randn(600, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encode_in_chunks(encoder, x, 7), encode_in_chunks(encoder, x, 600))


def test_in_memory_dataset_refuses_bad_tensors():
    for bad in (torch.zeros(0, 3), torch.full((2, 2), float("nan"))):
        with pytest.raises(ValueError, match="train"): InMemoryDataset(bad)
    with pytest.raises(TypeError, match="train must be a floating-point tensor"):
        InMemoryDataset(torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\['train'\], got 'test'"):
        InMemoryDataset(torch.zeros(3, 2)).get_dataloader(1, split="test")


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_bad_fractions(fraction):
    with pytest.raises(ValueError, match="test_fraction"): split_rows(10, fraction)


# --- each of them ---

@pytest.mark.parametrize("arguments, match", [
    (dict(d=4, k=5), "k must be at most d=4, got k=5"), (dict(d=4, k=0), "k must be positive"),
    (dict(d=0, k=0), "must be positive"), (dict(d=4, k=2, sigma_noise=-1e-9), "sigma_noise"),
    (dict(d=4, k=2, sigma_noise=float("nan")), "sigma_noise"),
    (dict(d=4, k=2, n_samples=0), "n_samples"), (dict(d=4, k=2, n_test=0), "n_test")])
def test_gaussian_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match): GaussianDataset(**arguments)


@pytest.mark.parametrize("d, k, sigma", [(1, 1, 0.1), (5, 5, 0.3), (40, 3, 0.0), (17, 16, 1.0)])
def test_gaussian_spectrum(d, k, sigma):
    dataset = GaussianDataset(d, k, sigma, n_samples=10)
    oracle = torch.linalg.eigvalsh(dataset.covariance.double()).flip(0).float()
    torch.testing.assert_close(dataset.eigenvalues, oracle, atol=1e-6, rtol=1e-5)
    U = dataset.U_k
    torch.testing.assert_close(U.T @ dataset.covariance @ U, dataset.latent_eigenvalues.diag(),
                               atol=1e-5, rtol=1e-5)
    assert dataset.A.shape == U.shape == (d, k) and (dataset.eigenvalues.diff() <= 0).all()
    assert dataset.get_initialization_batch(10).shape == (10, k)


def test_gaussian_test_set_does_not_move_the_training_set():
    assert torch.equal(GaussianDataset(5, 2, n_samples=30, n_test=3).train,
                       GaussianDataset(5, 2, n_samples=30, n_test=9).train)


@pytest.mark.parametrize("color", [False, True])
def test_patches_lie_where_they_say_and_share_no_pixel(color):
    from vqvae.data.patches import load_photographs
    dataset = ImagePatchDataset(13, 400, 300, color=color, seed=2)
    photographs = load_photographs(color)
    for split in ("train", "test"):
        for patch_, (i, r, c) in zip(getattr(dataset, split), dataset.positions[split].tolist()):
            assert torch.equal(patch_, photographs[i, :, r:r + 13, c:c + 13])
    assert dataset.positions["train"][:, 2].max() + 13 <= dataset.positions["test"][:, 2].min()


@pytest.mark.parametrize("arguments, match", [
    (dict(patch_size=0), "patch_size"), (dict(patch_size=129), "at most 128"),
    (dict(n_train=-1), "n_train"), (dict(patch_size=128, n_train=20, n_test=601),
                                    "601 patches were asked for, but there are 600")])
def test_patches_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match): ImagePatchDataset(**arguments)


@pytest.mark.parametrize("name", SHAPES)
def test_openml_reads_the_table(name, home):
    number, _, shape = SHAPES[name]
    table = np.random.default_rng(number).integers(0, 256, (42, int(np.prod(shape))))
    dataset = OpenMLImageDataset(name, data_home=home)
    n_test = 42 // (6 if name == "cifar10" else 7)
    assert (len(dataset), len(dataset.test)) == (42 - n_test, n_test)
    both = torch.cat([dataset.train, dataset.test])
    np.testing.assert_allclose(both.numpy() * 255, table.reshape(-1, *shape), atol=1e-4)


def test_openml_without_network_names_data_folder_and_cause(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing but the error
        with pytest.raises(ConnectionError) as caught:
            OpenMLImageDataset("fashion-mnist", data_home=tmp_path)
    for part in ("'fashion-mnist'", str(tmp_path), "no network in tests"):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, URLError)
    busy = HTTPError("https://www.openml.org", 503, "Service Unavailable", {}, None)
    with (patch("sklearn.datasets._openml.urlopen", side_effect=busy),
          pytest.raises(ConnectionError, match="503")):
        OpenMLImageDataset("cifar10", data_home=tmp_path)


def test_openml_half_a_cache_is_an_error(tmp_path):
    fill_cache(tmp_path, 554, "mnist_784", np.zeros((7, 784), dtype=int))
    Path(tmp_path, "openml/openml.org/data/v1/download/554.gz").unlink()
    with pytest.raises(ConnectionError, match="'mnist' is not complete"):
        OpenMLImageDataset("mnist", data_home=tmp_path)


def test_openml_takes_numbers_of_numpy(home):
    dataset = OpenMLImageDataset("mnist", np.int64(5), np.int32(2), data_home=home)
    assert (len(dataset), len(dataset.test)) == (5, 2)


def test_openml_bad_arguments(home, tmp_path):
    with pytest.raises(ValueError, match="name must be one of"): OpenMLImageDataset("svhn")
    with pytest.raises(ValueError, match="n_train must be at most 36, got 37"):
        OpenMLImageDataset("mnist", 37, data_home=home)
    with pytest.raises(ValueError, match="n_test must be positive"):
        OpenMLImageDataset("mnist", n_test=0, data_home=home)
    fill_cache(tmp_path, 554, "mnist_784", np.zeros((14, 100), dtype=int))
    with pytest.raises(ValueError, match=r"784 pixels, got a table of shape \(12, 100\)"):
        OpenMLImageDataset("mnist", data_home=tmp_path)


def test_folder_without_images(tmp_path):
    with pytest.raises(ValueError, match="there is no image file"): ImageFolderDataset(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="there is no image file"): ImageFolderDataset(tmp_path)
    with pytest.raises(ValueError, match="existing folder"): ImageFolderDataset(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="existing folder"): ImageFolderDataset(tmp_path / "none")


def test_folder_names_every_unreadable_file(tmp_path):
    rng = np.random.default_rng(1)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            tmp_path / f"good{i}.png"
        )
    (tmp_path / "cut.png").write_bytes((tmp_path / "good0.png").read_bytes()[:200])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.webp").write_text("not an image")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.fromarray(rng.random((9, 9), dtype=np.float32)).save(tmp_path / "float.tiff")
    bad = ("cut.png", "empty.jpg", "text.webp", "gone.png", "float.tiff")
    with pytest.raises(ValueError, match="5 of 11 image files cannot be read") as caught:
        ImageFolderDataset(tmp_path, 8)
    assert all(name in str(caught.value) for name in bad)
    with pytest.warns(UserWarning, match="5 of 11") as told:
        dataset = ImageFolderDataset(tmp_path, 8, skip_unreadable=True)
    assert all(name in str(told[0].message) for name in bad)
    assert sorted(f.name for part in dataset.files.values() for f in part) == [
        f"good{i}.png" for i in range(6)
    ]


def test_folder_with_nothing_readable(tmp_path):
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(ValueError, match="1 of 1 image files cannot be read"):
        ImageFolderDataset(tmp_path, skip_unreadable=True)


def test_folder_modes_orientation_and_files(tmp_path):
    half = np.zeros((8, 16, 3), dtype=np.uint8)
    half[:, 8:] = 255                                                    # right half white
    for name, mode in (("rgb", "RGB"), ("rgba", "RGBA"), ("grey", "L"), ("palette", "P"),
                       ("cmyk", "CMYK")):
        Image.fromarray(half).convert(mode).save(tmp_path / f"{name}.tif" if mode == "CMYK"
                                                 else tmp_path / f"{name}.png")
    exif = Image.Exif()
    # stored upside down: turned by 180 degrees
    exif[0x0112] = 3
    Image.fromarray(half).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(half[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    dataset = ImageFolderDataset(tmp_path, 4)
    for split in ("train", "test"):
        for file, image in zip(dataset.files[split], getattr(dataset, split)):
            left, right = image[:, :, 0].mean(), image[:, :, -1].mean()
            if file.name == "turned.png": left, right = right, left
            assert left < 0.1 and right > 0.9, file.name
