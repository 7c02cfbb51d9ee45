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
