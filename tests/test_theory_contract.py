"What every function of the theory promises; one that is left out of `CASES` fails."
import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from vqvae import theory
from vqvae.theory import Lattice, gaussian_source, integer_lattice

GAUSS = gaussian_source()
SPECTRUM = torch.tensor([4.0, 1.0, 0.5])
EYE = torch.eye(2)

# name -> arguments that make sense
CASES = {
    "as_float64": dict(value=SPECTRUM, name="x"),
    "best_codebook_variance": dict(codebook_size=4, dim=2),
    "best_product_quantizer": dict(variances=SPECTRUM, codebook_size=6),
    "bennett_distortion": dict(source=theory.uniform_source(), levels=8,
                               point_density=lambda x: torch.full_like(x, 0.5 / math.sqrt(3))),
    "blahut_arimoto": dict(probabilities=torch.tensor([0.5, 0.5]), distortions=1 - EYE, slope=2.0,
                           max_iterations=100),
    "check_nonnegative": dict(value=SPECTRUM, name="x"),
    "check_spectrum": dict(variances=SPECTRUM),
    "checkerboard_lattice": dict(dim=3),
    "codebook_variance_fit": dict(codebook_size=4, dim=2),
    "density_norm": dict(source=GAUSS, dim=2),
    "differential_entropy": dict(density=torch.ones_like, low=0, high=1),
    "e8_lattice": dict(),
    "entropy_coded_lattice": dict(lattice=integer_lattice(1), scale=1.0, seed=3),
    "entropy_constrained": dict(source=GAUSS, slope=2.0, max_iterations=20_000),
    "gaussian_distortion": dict(rate=SPECTRUM, variance=SPECTRUM),
    "gaussian_entropy": dict(variance=SPECTRUM),
    "gaussian_rate": dict(distortion=SPECTRUM / 2, variance=SPECTRUM),
    "gaussian_source": dict(variance=2.0),
    "grid_source": dict(density=torch.ones_like, low=0.0, high=1.0, points=5),
    "hexagonal_lattice": dict(),
    "integer_lattice": dict(dim=3),
    "laplace_entropy": dict(variance=SPECTRUM),
    "laplace_source": dict(variance=2.0),
    "linear_gaussian_eigenvalues": dict(A=EYE, sigma_noise=0.5),
    "lloyd_max": dict(source=GAUSS, levels=3),
    "measure_second_moment": dict(lattice=integer_lattice(1), samples=100, seed=3),
    "mismatched_gaussian_distortion": dict(variances=SPECTRUM, codebook_variances=SPECTRUM,
                                           rate=torch.tensor(2.0)),
    "mismatched_gaussian_rate": dict(distortion=SPECTRUM / 2, variance=SPECTRUM,
                                     codebook_variance=SPECTRUM),
    "nearest_checkerboard": dict(x=SPECTRUM),
    "nearest_e8": dict(x=torch.ones(8)),
    "nearest_hexagonal": dict(x=torch.ones(2)),
    "nearest_integers": dict(x=SPECTRUM),
    "noiseless_source": dict(A=EYE, sigma_noise=0.5),
    "panter_dite": dict(source=GAUSS, levels=torch.tensor([4, 8])),
    "pca_source": dict(eigenvalues=SPECTRUM, n_components=2),
    "product_quantizer": dict(variances=SPECTRUM, levels=[3, 2]),
    "random_coding_distortion": dict(codebook_size=4, variances=SPECTRUM, samples=16, seed=3,
                                     codebook_variances=SPECTRUM),
    "remote_source": dict(observation=EYE, cross=EYE / 2, target=EYE),
    "scalar_source": dict(density=torch.ones_like, low=0, high=1),
    "shannon_distortion": dict(rate=SPECTRUM, entropy=torch.tensor(1.0), dim=2),
    "shannon_rate": dict(distortion=SPECTRUM, entropy=torch.tensor(1.0), dim=2),
    "sphere_bound": dict(dim=3),
    "squared_error": dict(x=SPECTRUM, y=SPECTRUM),
    "step_from_distortion": dict(source=GAUSS, distortion=0.1),
    "step_from_rate": dict(source=GAUSS, rate=2.0),
    "transform_coding": dict(variances=SPECTRUM, step=1.0),
    "transform_coding_from_rate": dict(variances=SPECTRUM, rate=4.0),
    "uniform_entropy": dict(variance=SPECTRUM),
    "uniform_source": dict(variance=2.0),
    "uniform_threshold": dict(source=GAUSS, step=0.5),
    "water_filling": dict(variances=SPECTRUM, rate=torch.tensor(2.0)),
    "water_filling_from_distortion": dict(variances=SPECTRUM, distortion=torch.tensor(0.5)),
    "water_level": dict(variances=SPECTRUM, rate=torch.tensor(2.0)),
    "water_level_from_distortion": dict(variances=SPECTRUM, distortion=torch.tensor(0.5)),
    "zador_bound": dict(dim=3),
    "zador_distortion": dict(codebook_size=torch.tensor([4, 8]), variances=SPECTRUM),
}
# these keep the dtype and the device of the points
OWN_DTYPE = {"nearest_integers", "nearest_checkerboard", "nearest_hexagonal", "nearest_e8"}


def call(name, **changed): return getattr(theory, name)(**{**CASES[name], **changed})


def numbers(result):
    "The tensors and numbers of a result, in order."
    if isinstance(result, Lattice): return numbers([result.generator, result.second_moment])
    if isinstance(result, (tuple, list)): return [n for part in result for n in numbers(part)]
    return [] if callable(result) else [result]


def assert_same(found, expected):
    for a, b in zip(numbers(found), numbers(expected), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-12, atol=1e-12)


def integers(name):
    "Arguments that are annotated as integers alone."
    parameters = inspect.signature(getattr(theory, name)).parameters
    return [p for p in parameters if parameters[p].annotation in (int, int | None)]


def test_every_function_has_a_case():
    functions = {name for name in theory.__all__ if inspect.isfunction(getattr(theory, name))}
    assert functions == CASES.keys()
    for name in functions: assert set(integers(name)) <= CASES[name].keys(), name


@pytest.mark.parametrize("name, argument", [(n, p) for n in CASES for p in integers(n)])
def test_integers_of_numpy_are_taken_and_floats_refused(name, argument):
    value = CASES[name][argument]
    assert_same(call(name, **{argument: np.int64(value)}), call(name))
    for wrong in (float(value), True, str(value)):
        with pytest.raises(TypeError, match=f"{argument} must be an int"):
            call(name, **{argument: wrong})


def real(value):
    "Whether an argument is a number, a tensor or a list of numbers."
    return isinstance(value, (int, float, Tensor, list)) and not isinstance(value, bool)


@pytest.mark.parametrize("name, argument", [(n, a) for n in CASES for a in CASES[n]
                                            if real(CASES[n][a])])
def test_complex_numbers_are_refused(name, argument):
    value = CASES[name][argument]
    wrong = [torch.as_tensor(value) + 0j] if isinstance(value, Tensor) or name in OWN_DTYPE else (
        [[v + 0j for v in value]] if isinstance(value, list) else [value + 0j, np.complex64(value)])
    if isinstance(value, Tensor) and name not in OWN_DTYPE:
        wrong += [wrong[0].numpy(), wrong[0].tolist()]
    for number in wrong:
        with pytest.raises(TypeError): call(name, **{argument: number})


@pytest.mark.parametrize("name", [n for n in CASES if n not in OWN_DTYPE])
def test_results_are_float64_on_the_cpu(name):
    for result in numbers(call(name)):
        if isinstance(result, Tensor):
            assert result.dtype == torch.float64 and result.device.type == "cpu"


class OnApple(Tensor):
    "A tensor as on Apple's GPUs: no float64 as long as it is not on the CPU."
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass(): return args[0].as_subclass(Tensor)
        result = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


@pytest.fixture
def apple(monkeypatch):
    as_tensor = torch.as_tensor
    def refusing(data, dtype=None, device=None):
        if isinstance(data, OnApple) and dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return as_tensor(data, dtype=dtype, device=device)
    monkeypatch.setattr(torch, "as_tensor", refusing)


def test_the_stand_in_refuses_float64(apple):
    x = torch.ones(2).as_subclass(OnApple)
    for refused in (lambda: x.double(), lambda: x.to(torch.float64), lambda: x.double().cpu(),
                    lambda: torch.as_tensor(x, dtype=torch.float64)):
        with pytest.raises(TypeError, match="MPS"): refused()
    assert x.cpu().double().dtype == torch.float64


@pytest.mark.parametrize("name", [n for n in CASES if n not in OWN_DTYPE and any(
    isinstance(value, Tensor) for value in CASES[n].values())])
def test_tensors_may_lie_where_there_is_no_float64(name, apple):
    elsewhere = {argument: value.as_subclass(OnApple) for argument, value in CASES[name].items()
                 if isinstance(value, Tensor)}
    assert_same(call(name, **elsewhere), call(name))


def test_methods_take_tensors_where_there_is_no_float64(apple):
    lattice, points = theory.hexagonal_lattice(), torch.tensor([[0.6, 0.9]])
    nearest = lattice.nearest(points.as_subclass(OnApple))
    assert torch.equal(nearest, lattice.nearest(points))
    whole = torch.tensor([[1.0, 0.0]])
    assert lattice.coordinates(whole.as_subclass(OnApple)).tolist() == [[1, 0]]
    assert_same(GAUSS.cells(torch.tensor([0.5]).as_subclass(OnApple)), GAUSS.cells([0.5]))
    source = theory.pca_source(SPECTRUM)
    assert_same(source.rate(torch.tensor(0.5).as_subclass(OnApple)), source.rate(0.5))


@pytest.mark.parametrize("wrong", ["four", None, [1.0, [2.0]], {"a": 1}], ids=str)
def test_what_is_no_number_is_refused_by_name(wrong):
    with pytest.raises((TypeError, ValueError), match="variances must be numbers, got"):
        theory.water_level(wrong, 1.0)


def test_a_generator_of_numpy_is_refused_by_name():
    with pytest.raises(TypeError, match="generator must be a torch.Generator, got Generator"):
        integer_lattice(2).sample_cell(3, np.random.default_rng(0))


def test_importing_the_room_imports_neither_scipy_nor_figures():
    told = subprocess.run([sys.executable, "-c", "import vqvae.theory, sys; print(*sys.modules)"],
                          capture_output=True, text=True, check=True).stdout.split()
    assert not {"scipy", "pandas", "sklearn", "matplotlib"} & set(told)
