"""What every dataset promises, over everything that `vqvae.data` exports: one that is left out
fails."""
import inspect

import pytest
import torch
from test_data import home, no_network  # noqa: F401 (fixtures)
from torch.utils.data import TensorDataset

import vqvae.data
from vqvae.data.base import BaseDataset, InMemoryDataset, as_batch, open_loader

CLASSES = {name: kind for name in vqvae.data.__all__
           if inspect.isclass(kind := getattr(vqvae.data, name)) and issubclass(kind, BaseDataset)
           and not inspect.isabstract(kind)}

# class -> how a test makes one: (cache of OpenML, folder of images) -> arguments
EXAMPLES = {
    "DigitsDataset": lambda cache, folder: {},
    "GaussianDataset": lambda cache, folder: {"d": 6, "k": 3, "n_samples": 40},
    "ImageFolderDataset": lambda cache, folder: {"folder": folder, "image_size": 8},
    "ImagePatchDataset": lambda cache, folder: {"patch_size": 6, "n_train": 60, "n_test": 20},
    "InMemoryDataset": lambda cache, folder: {"train": torch.rand(30, 3), "test": torch.rand(9, 3)},
    "OpenMLImageDataset": lambda cache, folder: {"name": "mnist", "data_home": cache},
    "TorchDataset": lambda cache, folder: {"train": TensorDataset(torch.rand(30, 3)),
                                          "test": TensorDataset(torch.rand(9, 3))},
}


def test_every_exported_dataset_has_an_example_and_every_name_exists():
    assert set(CLASSES) == set(EXAMPLES)
    for name in vqvae.data.__all__: assert hasattr(vqvae.data, name)


@pytest.fixture(params=sorted(CLASSES))
def dataset(request, home, images):  # noqa: F811
    return CLASSES[request.param](**EXAMPLES[request.param](home, images))


def everything(dataset, **options):
    return torch.cat([as_batch(batch).x for batch in open_loader(dataset, 7, **options)])


def test_contract_of_splits_orders_and_shapes(dataset):
    assert isinstance(dataset.splits, tuple) and "train" in dataset.splits
    for split in dataset.splits:
        plain = everything(dataset, shuffle=False, split=split)
        assert plain.is_floating_point() and plain.shape[1:] == dataset.sample_shape
        mixed, again, other = (everything(dataset, split=split, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(mixed, again) and not torch.equal(mixed, other)
        assert sorted(mixed.flatten(1).tolist()) == sorted(plain.flatten(1).tolist())
    assert len(dataset) == len(everything(dataset))
    with pytest.raises(ValueError, match="has no split 'elsewhere'"):
        open_loader(dataset, 4, split="elsewhere")


def test_contract_of_samples_and_global_generators(dataset):
    state = torch.get_rng_state()
    few = dataset.samples(5, seed=1)
    assert few.shape == (5, *dataset.sample_shape) and torch.equal(few, dataset.samples(5, seed=1))
    assert dataset.get_initialization_batch(5, lambda x: x.flatten(1), seed=1).shape[0] == 5
    everything(dataset, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    for bad, error in ((0, ValueError), (10**6, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="n"): dataset.samples(bad)


def test_contract_of_batch_sizes(dataset):
    for bad, error in ((0, ValueError), (-3, ValueError), (2.5, TypeError), ("4", TypeError)):
        with pytest.raises(error, match="batch_size"): dataset.get_dataloader(bad)


def test_contract_of_standardization(dataset):
    if not isinstance(dataset, InMemoryDataset):
        with pytest.raises(TypeError, match="InMemoryDataset"): dataset.standardized()
        return
    data = dataset.standardized()
    assert data.splits == dataset.splits and data.sample_shape == dataset.sample_shape
    x = everything(data)
    assert abs(x.square().mean().item() - 1) < 1e-3 and x.mean(0).abs().max() < 1e-4
    for split in data.splits:
        original = everything(dataset, shuffle=False, split=split)
        restored = data.standardization.restore(everything(data, shuffle=False, split=split))
        assert torch.allclose(restored, original, atol=1e-5)
