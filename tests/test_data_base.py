"""What loaders yield and what people bring: tensors, pairs, dicts, masks, arrays, PyTorch datasets,
streams."""
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from vqvae.data.base import (
    BaseDataset,
    Batch,
    InMemoryDataset,
    TorchDataset,
    as_batch,
    as_dataset,
    encode_in_chunks,
    open_loader,
)
from vqvae.data.standardization import Standardization

X = torch.arange(24.0).reshape(4, 3, 2)
MASK = torch.tensor([[True, True, False]] * 4)


# What a loader yields

@pytest.mark.parametrize("yielded, mask", [
    (X, None), ([X], None), ((X,), None), ((X, MASK), MASK), ([X, MASK, torch.arange(4)], MASK),
    ({"x": X}, None), ({"x": X, "mask": MASK, "y": X.sum(1)}, MASK),
    ({"image": X, "label": torch.arange(4)}, None), (Batch(X, MASK), MASK)])
def test_samples_and_mask(yielded, mask, recwarn):
    batch = as_batch(yielded)
    assert batch.x is X and batch.mask is mask and not recwarn


@pytest.mark.parametrize("second", [torch.arange(4), X, [1, 2], "a", torch.tensor([True] * 4)])
def test_what_is_left_out_is_said(second):
    with pytest.warns(UserWarning, match="only its first tensor is used"):
        assert as_batch((X, second)) == Batch(X)


@pytest.mark.parametrize("yielded, error, message", [
    ([], TypeError, "got list"), (["x"], TypeError, "got list of str"),
    (None, TypeError, "got NoneType"),
    ({}, TypeError, "under 'x'"), ({"a": X, "b": X}, TypeError, r"\['a', 'b'\]"),
    (X.to(torch.uint8), TypeError, r"uint8: bytes of an image become numbers by x.float\(\) / 255"),
    ({"x": X.long()}, TypeError, "floating-point numbers, got torch.int64"),
    ({"x": X, "mask": MASK.int()}, ValueError, "bool tensor"),
    ({"x": X, "mask": MASK[:3]}, ValueError, "with B=4"),
    ({"x": X, "mask": [True]}, ValueError, "got list")])
def test_batches_that_hold_no_samples(yielded, error, message):
    with pytest.raises(error, match=message): as_batch(yielded)


# Splits and keywords

class Short(BaseDataset):
    "seed.md's example."
    def get_dataloader(self, batch_size, shuffle=True):
        return DataLoader(TensorDataset(X), batch_size, shuffle=shuffle)


class Long(BaseDataset):
    splits = ("train", "valid")
    def get_dataloader(self, batch_size, shuffle=True, *, split="train", seed=0):
        self.asked = split, seed
        return DataLoader(X, batch_size, shuffle=shuffle)


class Any(BaseDataset):
    splits = ("train", "test")
    def get_dataloader(self, batch_size, shuffle=True, **options):
        self.asked = options["split"], options["seed"]
        return DataLoader(X, batch_size, shuffle=shuffle)


def test_keywords_go_where_they_are_taken():
    assert len(list(open_loader(Short(), 2, seed=3))) == 2
    for dataset, split in ((Long(), "valid"), (Any(), "test")):
        open_loader(dataset, 2, split=split, seed=3)
        assert dataset.asked == (split, 3)
    for dataset in (Short(), Long()):
        with pytest.raises(ValueError, match="has no split 'test': its `splits` are"):
            open_loader(dataset, 2, split="test")
    with pytest.raises(TypeError, match="get_dataloader"):
        type("Nothing", (BaseDataset,), {})()


def test_a_loader_may_be_any_iterable():
    class Lists(BaseDataset):
        def get_dataloader(self, batch_size, shuffle=True): return list(X.split(batch_size))
    assert len(Lists()) == 4 and Lists().sample_shape == (3, 2)
    assert torch.equal(Lists().samples(3), X[:3])


# What people bring

def test_samples_keep_their_dtype_and_are_checked():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        dataset = InMemoryDataset(X.to(dtype))
        assert dataset.train.dtype == next(iter(dataset.get_dataloader(2))).dtype == dtype
    assert InMemoryDataset(X.numpy(), X.double().numpy()).splits == ("train", "test")
    with pytest.raises(ValueError, match=r"train holds 1e\+39, beyond the range of float32"):
        InMemoryDataset(torch.tensor([[1e39]], dtype=torch.float64))
    with pytest.raises(ValueError, match="test holds"):
        InMemoryDataset(X, torch.full((1, 3, 2), math.inf))
    with pytest.raises(TypeError, match=r"uint8: bytes of an image become numbers by x.float"):
        InMemoryDataset(np.zeros((2, 3), dtype=np.uint8))


def test_numpy_integers_are_sizes():
    dataset = InMemoryDataset(X)
    assert len(next(iter(dataset.get_dataloader(np.int64(3))))) == 3
    assert len(dataset.samples(np.int32(2))) == len(Short().samples(np.int32(2))) == 2


class Numbers(Dataset):
    def __len__(self): return 6
    def __getitem__(self, i): return torch.full((2,), float(i))


class Stream(IterableDataset):
    def __iter__(self): return iter(torch.arange(10.0).reshape(5, 2))


def test_torch_datasets_and_streams():
    dataset = TorchDataset(Numbers(), Stream())
    assert dataset.splits == ("train", "test") and len(dataset) == 6
    first, again, other = (torch.cat(list(dataset.get_dataloader(4, seed=seed)))
                           for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.cat(list(dataset.get_dataloader(2, split="test"))), X.flatten()[
        :10].reshape(5, 2))
    stream = as_dataset(Stream())
    assert stream.samples(3).shape == (3, 2) and stream.sample_shape == (2,)
    with pytest.raises(TypeError, match="has no length"): len(stream)
    with pytest.raises(TypeError, match="train must be a torch Dataset, got list"):
        TorchDataset([1])
    with pytest.raises(ValueError, match="workers must be at least 0"):
        TorchDataset(Numbers(), workers=-1)


def test_as_dataset():
    own = Short()
    assert as_dataset(own) is own and isinstance(as_dataset(Numbers()), TorchDataset)
    assert len(as_dataset(X)) == len(as_dataset(X.numpy())) == 4
    for bad, message in ((DataLoader(X), "give TorchDataset"), ([X], "derive a class"),
                         (None, "got NoneType")):
        with pytest.raises(TypeError, match=message): as_dataset(bad)


def test_latents_of_padding_are_left_out():
    class Masked(Short):
        def get_dataloader(self, batch_size, shuffle=True):
            return [(X[:3], MASK[:3]), (X[3:], MASK[3:])]
    encoder = nn.Linear(2, 5).double()
    latents = Masked().get_initialization_batch(4, encoder)
    assert torch.equal(latents, encode_in_chunks(encoder, X)[MASK.flatten()])
    assert latents.dtype == torch.float64 and len(latents) == 8
    assert torch.equal(Masked().get_initialization_batch(2), X[:2][MASK[:2]])


# Standardized samples and a validation split

def test_standardized_by_training_samples_alone():
    train, test = 3 + 2 * torch.randn(50, 4, 5), torch.randn(9, 4, 5)
    train[:, 0, 0] = test[:, 0, 0] = 7.0  # an element that never changes
    original = InMemoryDataset(train, test)
    original.data_range = 12.0
    data = original.standardized()
    mean = train.double().mean(0)
    scale = (train - mean).square().mean().sqrt().item()
    assert data.standardization.scale == pytest.approx(scale, rel=1e-6)
    for x, z in ((train, data.train), (test, data.test)):
        assert torch.allclose(z, ((x - mean) / scale).float(), atol=1e-5)
        assert torch.allclose(data.standardization.restore(z), x, atol=1e-5)
    assert data.train[:, 0, 0].abs().max() == 0 and data.data_range == 12.0
    assert type(data) is InMemoryDataset and original.standardization is None
    assert data.splits == original.splits and torch.equal(original.train, train)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_standardized_in_every_dtype(dtype):
    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    data = InMemoryDataset(x).standardized()
    assert data.train.dtype == dtype
    assert data.train.double().square().mean().item() == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="5 samples that are all equal"):
        InMemoryDataset(torch.full((5, 3), 0.3, dtype=dtype)).standardized()


def test_what_cannot_be_standardized():
    x = torch.rand(30, 3)
    with pytest.raises(ValueError, match="standardized already"):
        InMemoryDataset(x).standardized().standardized()
    for data in (TorchDataset(TensorDataset(x)), Short()):
        assert data.standardization is None
        with pytest.raises(TypeError, match="InMemoryDataset"): data.standardized()
    with pytest.raises(ValueError, match="scale"): Standardization(torch.zeros(3), 0.0)
    with pytest.raises(ValueError, match=r"\(B, 3\), got \(30, 2\)"):
        InMemoryDataset(x).standardized().standardization(x[:, :2])


def test_validation_is_taken_from_training():
    rows = torch.arange(50.0)[:, None]
    data = InMemoryDataset(rows, rows[:5] + 100)
    split, other = data.with_validation(0.3, seed=1), data.with_validation(0.3, seed=2)
    both = torch.cat([split.train, split.validation])
    assert split.splits == ("train", "validation", "test") and len(split.validation) == 15
    assert torch.equal(both.sort(0).values, rows) and torch.equal(split.test, data.test)
    assert torch.equal(split.validation, data.with_validation(0.3, seed=1).validation)
    assert not torch.equal(split.validation, other.validation)
    loader = split.get_dataloader(4, shuffle=False, split="validation")
    assert torch.equal(torch.cat(list(loader)), split.validation)
    standardized = split.standardized()
    assert standardized.splits == split.splits
    assert standardized.standardization.mean.item() == pytest.approx(split.train.mean().item())
    assert InMemoryDataset(rows).with_validation().splits == ("train", "validation")
    with pytest.raises(ValueError, match="already"): split.with_validation()
    with pytest.raises(ValueError, match="split first"): data.standardized().with_validation()
    for bad in (0.0, 1.0, 1e-9):
        with pytest.raises(ValueError, match="fraction"): data.with_validation(bad)
    with pytest.raises(ValueError, match="validation samples must have the shape"):
        InMemoryDataset(rows, None, torch.zeros(4, 2))
