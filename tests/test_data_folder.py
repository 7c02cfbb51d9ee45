"""Folders as people bring them: broken notes, odd pixels, odd names; and what the datasets' own
arguments may be."""
import os
import re
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vqvae.data import GaussianDataset, ImageFolderDataset, ImagePatchDataset, OpenMLImageDataset
from vqvae.data.folder import find_images, read_image
from vqvae.data.gaussian import linear_gaussian_spectrum
from vqvae.data.patches import draw_patches

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


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are made otherwise there")
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
    if sys.platform == "linux": names.append(b"\xff\xfe.png")  # no text in any encoding of today
    for name in names: left_black_right_white().save(tmp_path / os.fsdecode(name))
    dataset = ImageFolderDataset(tmp_path, 8)
    assert len(dataset) + len(dataset.test) == len(names)
    if sys.platform != "linux": return  # elsewhere a name is text
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no `resource`")
def test_reading_needs_little_more_memory_than_the_images(tmp_path):
    for i in range(100): Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"{i}.png")
    told = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True,
                          check=True)
    assert float(told.stdout) < 2.8  # 2.4 here, a third of which is the check for NaN


# --- numbers and generators of NumPy ---

def test_numpy_integers_are_sizes():
    two, four = np.int64(2), np.int32(4)
    gaussian = GaussianDataset(four, two, n_samples=np.int16(30), n_test=two)
    assert torch.equal(gaussian.train, GaussianDataset(4, 2, n_samples=30).train)
    assert (type(gaussian.d), type(gaussian.k)) == (int, int) and len(gaussian.test) == 2
    patches = ImagePatchDataset(four, np.int64(10), two)
    assert torch.equal(patches.train, ImagePatchDataset(4, 10, 2).train)


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
