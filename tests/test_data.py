"What every dataset promises: order, split, seeds, global generators left alone, errors."
import gzip
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import unicodedata
import warnings
import zlib
from pathlib import Path
from unittest.mock import patch
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
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
from vqvae.data.base import as_samples, encode_in_chunks, split_rows
from vqvae.data.folder import find_images, read_image
from vqvae.data.gaussian import linear_gaussian_spectrum
from vqvae.data.patches import draw_patches, load_photographs

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


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    "A folder with 20 random images in two folders."
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(20):
        file = path / "xy"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(file)
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


def test_as_samples():
    x = torch.zeros(2, 3)
    assert as_samples(x) is x and as_samples([x]) is x and as_samples((x, torch.zeros(2))) is x
    for bad in ({"x": x}, [], ["x"], None):
        with pytest.raises(TypeError, match="a batch must be a tensor"): as_samples(bad)


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


# --- numbers and generators of NumPy ---

def test_numpy_integers_are_sizes(home, images):
    two, four = np.int64(2), np.int32(4)
    gaussian = GaussianDataset(four, two, n_samples=np.int16(30), n_test=two)
    assert torch.equal(gaussian.train, GaussianDataset(4, 2, n_samples=30).train)
    assert (type(gaussian.d), type(gaussian.k)) == (int, int) and len(gaussian.test) == 2
    patches = ImagePatchDataset(four, np.int64(10), two)
    assert torch.equal(patches.train, ImagePatchDataset(4, 10, 2).train)
    mnist = OpenMLImageDataset("mnist", np.int64(5), two, data_home=home)
    assert (len(mnist), len(mnist.test)) == (5, 2)


@pytest.mark.parametrize("make", [
    lambda: GaussianDataset(4.0, 2),
    lambda: GaussianDataset(4, 2.5),
    lambda: GaussianDataset(4, 2, n_samples=10.0),
    lambda: ImagePatchDataset(np.float64(8)),
    lambda: OpenMLImageDataset("mnist", 5.0),
    lambda: draw_patches(torch.zeros(1, 1, 9, 9), 4.0, 2, torch.Generator()),
])
def test_floats_are_not_sizes(make):
    with pytest.raises(TypeError, match="must be an int, got float"): make()


def test_a_generator_of_numpy_is_refused_by_name():
    with pytest.raises(TypeError, match="generator must be a torch.Generator, got Generator"):
        draw_patches(torch.zeros(1, 1, 9, 9), 4, 2, np.random.default_rng(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_spectrum_comes_in_the_dtype_of_its_matrix(dtype):
    A = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=dtype)
    eigenvalues, vectors = linear_gaussian_spectrum(A, 0.5)
    assert eigenvalues.dtype == vectors.dtype == dtype
    assert eigenvalues.tolist() == [4.25, 1.25, 0.25]


def test_importing_the_room_imports_no_reader():
    "scikit-learn, SciPy, pandas and Pillow are imported where they are used."
    told = subprocess.run([sys.executable, "-c", "import vqvae.data, sys; print(*sys.modules)"],
                          capture_output=True, text=True, check=True).stdout.split()
    assert not {"sklearn", "scipy", "pandas", "PIL", "matplotlib"} & set(told)


# --- what people bring in a folder ---

def left_black_right_white():
    half = np.zeros((8, 16, 3), dtype=np.uint8)
    half[:, 8:] = 255
    return Image.fromarray(half)


def exif(*entries, orientation=3):
    "EXIF as a broken camera writes it; each entry is a tag, a type, a count and at most 4 bytes."
    entries = [*entries, (0x0112, 3, 1, struct.pack("<HH", orientation, 0))]
    header = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    start, body, extra = 14 + 12 * len(entries), b"", b""
    for tag, kind, count, value in sorted(entries):
        long = len(value) > 4
        place = struct.pack("<I", start + len(extra)) if long else value.ljust(4, b"\0")
        body += struct.pack("<HHI", tag, kind, count) + place
        extra += value if long else b""
    return header + body + struct.pack("<I", 0) + extra


BROKEN_NOTES = {
    "text for a resolution": exif((0x011A, 2, 4, b"abc\0")),
    "fraction for a unit": exif((0x0128, 5, 1, struct.pack("<II", 2, 1))),
    "resolution of 0/0": exif((0x011A, 5, 1, struct.pack("<II", 0, 0)),
                              (0x0128, 3, 1, struct.pack("<HH", 2, 0))),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("notes", BROKEN_NOTES.values(), ids=BROKEN_NOTES)
def test_a_broken_note_beside_the_orientation_changes_nothing(tmp_path, notes, suffix):
    file = tmp_path / f"upside_down.{suffix}"
    left_black_right_white().save(file, exif=notes)
    image = read_image(file, (8, 16))
    assert image[:, :, 0].min() > 250 and image[:, :, -1].max() < 5


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_notes_that_are_none_leave_the_picture_as_it_lies(tmp_path, suffix):
    file = tmp_path / f"nonsense.{suffix}"
    left_black_right_white().save(file, exif=b"Exif\0\0nonsense")
    image = read_image(file, (8, 16))
    assert image[:, :, 0].max() < 5 and image[:, :, -1].min() > 250


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["png", "16 bits", "tiff"])
def test_every_orientation_equals_pillows(tmp_path, orientation, form):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9), dtype=np.uint8)
    if form == "16 bits": pixels = pixels.astype(np.uint16) * 257
    file = tmp_path / ("a.tiff" if form == "tiff" else "a.png")
    notes = Image.Exif()
    notes[0x0112] = orientation
    Image.fromarray(pixels).save(file, exif=notes)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    if form == "16 bits": expected = expected // 257
    found = read_image(file, expected.shape, color=False)[0].numpy()
    assert (found == expected).all()


def test_any_exception_of_pillow_names_the_file(images, monkeypatch):
    bad = ImageFolderDataset(images, 8).files["train"][0]
    opened = Image.open
    def sometimes(file, *arguments, **options):
        if Path(file) == bad: raise RecursionError
        return opened(file, *arguments, **options)
    monkeypatch.setattr("PIL.Image.open", sometimes)
    with pytest.raises(ValueError, match=rf"1 of 20 .*{bad.name} \(RecursionError\)"):
        ImageFolderDataset(images, 8)
    with pytest.warns(UserWarning, match=bad.name):
        rest = ImageFolderDataset(images, 8, skip_unreadable=True)
    assert len(rest) + len(rest.test) == 19 and bad not in rest.files["train"] + rest.files["test"]


def png_of_size(width, height):
    "A PNG that promises this size and holds no pixels."
    def chunk(name, content):
        sum_ = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + sum_
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_the_unusual_is_left_out_by_name(tmp_path):
    for i in range(5): left_black_right_white().save(tmp_path / f"good{i}.png")
    (tmp_path / "bomb.png").write_bytes(png_of_size(100_000, 100_000))
    Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(tmp_path / "int.tiff")
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    with pytest.warns(UserWarning, match="5 of 10") as told:
        dataset = ImageFolderDataset(tmp_path, 8, skip_unreadable=True)
    for name, why in (("bomb.png", "decompression bomb"), ("int.tiff", "no known range"),
                      ("float.tiff", "no known range"), ("loop.png", ""),
                      ("pipe.png", "not a plain file")):
        assert re.search(rf"{name} \(.*{why}", str(told[0].message)), name
    assert {f.name for f in dataset.files["train"]} <= {f"good{i}.png" for i in range(5)}
    assert dataset.train.isfinite().all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_are_white(tmp_path, mode):
    image = Image.new({"RGBA": "RGBA", "LA": "LA"}.get(mode, mode), (8, 8))  # black, transparent
    if mode in ("P", "RGB", "L"):
        image.save(tmp_path / "a.png", transparency={"P": 0, "RGB": (0, 0, 0), "L": 0}[mode])
    else: image.save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 4) == 255).all()


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 4).float() - 127).abs().max() <= 1


def test_bits_frames_and_suffixes(tmp_path):
    white = Image.new("1", (8, 8), 1)
    white.save(tmp_path / "bit.tiff")
    white.convert("L").save(tmp_path / "PNG.PNG")
    white.convert("L").save(tmp_path / "wrong.jpg", "PNG")
    Image.new("P", (8, 8), 0).save(tmp_path / "first.gif", save_all=True,
                                   append_images=[white.convert("P")])
    wide = np.full((8, 8), 65535, dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "deep.tiff")
    (tmp_path / "deep.pgm").write_bytes(b"P5 8 8 65535\n" + wide.tobytes())
    for name in ("bit.tiff", "PNG.PNG", "wrong.jpg", "deep.tiff", "deep.pgm"):
        assert (read_image(tmp_path / name, 4) == 255).all(), name
    assert (read_image(tmp_path / "first.gif", 4) == 0).all()


def test_names_of_any_letters_and_of_none(tmp_path):
    names = [os.fsencode(name) for name in ("ä.png", "日本.png", "a b.png", "ö.png")]
    names.append(b"\xff\xfe.png")  # no text in any encoding of today
    for name in names: left_black_right_white().save(tmp_path / os.fsdecode(name))
    dataset = ImageFolderDataset(tmp_path, 8)
    assert len(dataset) + len(dataset.test) == 5
    (tmp_path / os.fsdecode(b"\xff.png")).write_text("no image")
    with pytest.raises(ValueError, match="cannot be read") as caught: ImageFolderDataset(tmp_path)
    str(caught.value).encode()  # the message can be printed


def test_hidden_files_and_folders_are_left_out(tmp_path):
    for name in (".ipynb_checkpoints/copy.png", "._mac.png", "a/real.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        left_black_right_white().save(file)
    assert find_images(tmp_path) == [tmp_path / "a" / "real.png"]


def test_order_does_not_depend_on_the_spelling_of_accents(tmp_path):
    composed, decomposed = ["e.png", "é.png", "f.png"], ["e.png", "é.png", "f.png"]
    for folder, names in (("one", composed), ("two", decomposed)):
        (tmp_path / folder).mkdir()
        for name in names: (tmp_path / folder / name).touch()
    found = [[unicodedata.normalize("NFC", file.name) for file in find_images(tmp_path / folder)]
             for folder in ("one", "two")]
    assert found[0] == found[1] == ["e.png", "f.png", "é.png"]


def test_a_folder_that_cannot_be_listed_is_an_error(images, monkeypatch):
    listed = os.scandir
    def refusing(path):
        if Path(path).name == "y": raise PermissionError(13, "Permission denied", str(path))
        return listed(path)
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="y"): find_images(images)


def test_image_size_is_one_number_or_two(images):
    for size in (12, np.int64(12), (12, 12), [np.int32(12), 12]):
        assert ImageFolderDataset(images, size).sample_shape == (3, 12, 12)
    assert ImageFolderDataset(images, (6, 10)).sample_shape == (3, 6, 10)
    for bad, error in (((4, 5, 6), ValueError), ((4, 0), ValueError), (4.0, TypeError),
                       (True, TypeError), ("4", TypeError), ((4, 2.5), TypeError)):
        with pytest.raises(error, match="image_size"): ImageFolderDataset(images, bad)


MEMORY = """
import resource, sys
from vqvae.data.folder import ImageFolderDataset
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ImageFolderDataset(sys.argv[1], 8)
before = peak()
data = ImageFolderDataset(sys.argv[1], 400)
held = 4 * (data.train.numel() + data.test.numel()) / (1 if sys.platform == "darwin" else 1024)
print((peak() - before) / held)
"""


def test_reading_needs_little_more_memory_than_the_images(tmp_path):
    for i in range(100): Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"{i}.png")
    told = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True,
                          check=True)
    assert float(told.stdout) < 2.8  # 2.4 here, a third of which is the check for NaN
