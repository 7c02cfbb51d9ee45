"What no reader wants to see about `vqvae.evaluation`."
import math
import pickle
import subprocess
import sys
import time

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from vqvae import evaluation as ev
from vqvae.evaluation.figures import _owners


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def batch(n=1000, codes=32, dim=6, seed=0, mean=0.0, grid=()):
    g = torch.Generator().manual_seed(seed)
    z = mean + torch.randn(n, *grid, dim, generator=g, dtype=torch.float64)
    codebook = mean + torch.randn(codes, dim, generator=g, dtype=torch.float64)
    indices = torch.randint(codes, (n, *grid), generator=g)
    return indices, z, codebook[indices]


def same(a, b, rel=1e-10):
    assert a.keys() == b.keys()
    for name in a: assert a[name] == pytest.approx(b[name], rel=rel, nan_ok=True), name


# ---------------------------------------------------------------- metrics

@pytest.mark.parametrize("mean", [0.0, 1e8])
@pytest.mark.parametrize("chunk", [1, 7, 333, 999])
def test_chunks_equal_whole(mean, chunk):
    data = batch(mean=mean)
    whole = ev.CodebookMetrics(32).update(*data)
    chunked = ev.CodebookMetrics(32)
    for part in zip(*(x.split(chunk) for x in data)): chunked.update(*part)
    same(chunked.compute(), whole.compute(), rel=1e-6 if mean else 1e-10)
    assert torch.equal(chunked.counts, whole.counts) and chunked.counts.dtype == torch.int64


@pytest.mark.parametrize("mean", [0.0, 1e8])
def test_against_direct_formula(mean):
    indices, z, z_q = batch(mean=mean, grid=(3, 2))
    values = ev.CodebookMetrics(40).update(indices, z, z_q).compute()
    flat = z.reshape(-1, 6)
    relative = (z - z_q).square().sum() / (flat - flat.mean(0)).square().sum()
    assert values["relative_distortion"] == pytest.approx(relative.item(), rel=1e-10)
    assert values["distortion"] == pytest.approx((z - z_q).square().mean().item(), rel=1e-12)
    assert (values["samples"], values["dead_codes"], values["usage"]) == (6000, 8, 0.8)


def test_merge_equals_one_pass_in_any_order():
    data = batch()
    whole = ev.CodebookMetrics(32).update(*data).compute()
    parts = [ev.CodebookMetrics(32).update(*part) for part in zip(*(x.split(300) for x in data))]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        total = ev.CodebookMetrics(32)
        for i in order: total.merge(parts[i])
        same(total.compute(), whole)
    assert parts[0].compute()["samples"] == 300  # others stay as they were
    empty = ev.CodebookMetrics(32)
    before = parts[0].state_dict()
    parts[0].merge(empty)
    for name, value in parts[0].state_dict().items(): assert torch.equal(value, before[name])
    with pytest.raises(ValueError, match="codebook_size 32, got 31"):
        empty.merge(ev.CodebookMetrics(31))
    with pytest.raises(TypeError, match="got dict"): empty.merge({})


def test_merge_with_itself_doubles():
    metrics = ev.CodebookMetrics(32).update(*batch())
    once = metrics.compute()
    twice = metrics.merge(metrics).compute()
    assert twice.pop("samples") == 2 * once.pop("samples")
    same(twice, once)


def test_state_round_trip():
    data = batch()
    metrics = ev.CodebookMetrics(32).update(*data)
    other = ev.CodebookMetrics(32)
    other.load_state_dict(metrics.state_dict())
    assert other.compute() == metrics.compute() == pickle.loads(pickle.dumps(metrics)).compute()
    other.update(*data)  # not aliased
    assert metrics.compute()["samples"] == 1000
    metrics.counts.zero_()
    metrics.state_dict()["counts"].zero_()
    assert metrics.compute()["samples"] == 1000
    with pytest.raises(ValueError, match="counts must have shape"):
        ev.CodebookMetrics(5).load_state_dict(metrics.state_dict())
    with pytest.raises(ValueError, match="state must hold"):
        other.load_state_dict({"counts": torch.zeros(32)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_accumulated_in_float64(dtype):
    indices, z, z_q = batch()
    z, z_q = z.to(dtype), z_q.to(dtype)
    same(ev.CodebookMetrics(32).update(indices, z, z_q).compute(),
         ev.CodebookMetrics(32).update(indices, z.double(), z_q.double()).compute())


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
def test_integer_dtypes(dtype):
    indices = batch()[0]
    assert torch.equal(ev.CodebookMetrics(32).update(indices.to(dtype)).counts,
                       ev.CodebookMetrics(32).update(indices).counts)


def test_autograd_and_device():
    indices, z, z_q = batch()
    z.requires_grad_()
    metrics = ev.CodebookMetrics(32).update(indices, z, z_q)
    assert not any(value.requires_grad for value in metrics.state_dict().values())
    if torch.cuda.is_available():
        moved = ev.CodebookMetrics(32).update(indices.cuda(), z.cuda(), z_q.cuda())
        same(moved.compute(), metrics.compute())
        assert moved.counts.device.type == "cpu"
        moved.merge(metrics)


BAD = [
    (lambda i, z, q: (i + 1, z, q), ValueError, "0..31, got 32"),
    (lambda i, z, q: (i - 1, z, q), ValueError, "0..31, got -1"),
    (lambda i, z, q: (i.float(), z, q), TypeError, "torch.float32"),
    (lambda i, z, q: (i > 3, z, q), TypeError, "torch.bool"),
    (lambda i, z, q: (i.tolist(), z, q), TypeError, "got list"),
    (lambda i, z, q: (i[:0], z[:0], q[:0]), ValueError, "empty"),
    (lambda i, z, q: (i, z, None), ValueError, "go together, got only z$"),
    (lambda i, z, q: (i, None, q), ValueError, "got only z_q"),
    (lambda i, z, q: (i, z, q[:, :5]), ValueError, "shape of z"),
    (lambda i, z, q: (i[:5], z, q), ValueError, "one vector per index"),
    (lambda i, z, q: (i[:, None, None], z, q), ValueError, "one vector per index"),
    (lambda i, z, q: (i, z, q, i), ValueError, "mask must be bool"),
    (lambda i, z, q: (i, z, q, (i > 3)[:5]), ValueError, "mask must be bool with the leading axes"),
    (lambda i, z, q: (i, z * math.nan, q), ValueError, "z holds"),
    (lambda i, z, q: (i, z, q / 0), ValueError, "z_q holds"),
    (
        lambda i, z, q: (i, z[:, :5], q[:, :5]),
        ValueError,
        "6 values on its last axis as before, got 5",
    ),
    (lambda i, z, q: (i, z.long(), q), TypeError, "floating-point"),
]


@pytest.mark.parametrize("change,error,message", BAD)
def test_bad_batches_leave_the_state(change, error, message):
    data = batch()
    data[0][:2] = torch.tensor([0, 31])
    metrics = ev.CodebookMetrics(32).update(*data)
    before = metrics.compute()
    with pytest.raises(error, match=message): metrics.update(*change(*data))
    assert metrics.compute() == before


def test_without_latents_and_reset():
    metrics = ev.CodebookMetrics(8)
    with pytest.raises(ValueError, match="no samples"): metrics.compute()
    values = metrics.update(torch.tensor([[1, 1], [2, 2]])).compute()
    assert (
        values["perplexity"] == 2.0
        and math.isnan(values["distortion"])
        and math.isnan(values["relative_distortion"])
    )
    # latents for some batches only
    metrics.update(torch.tensor([3]), torch.ones(1, 2), torch.zeros(1, 2))
    values = metrics.compute()
    assert (
        values["samples"] == 5
        and values["distortion"] == 1.0
        and values["relative_distortion"] == math.inf
    )
    metrics.reset()
    with pytest.raises(ValueError, match="no samples"): metrics.compute()
    # another dim after reset is fine
    metrics.update(torch.tensor([0]), torch.ones(1, 3), torch.ones(1, 3))
    assert metrics.compute()["distortion"] == 0.0 and math.isnan(
        metrics.compute()["relative_distortion"]
    )


def test_codebooks_of_billions_count_only_what_occurs():
    size, indices = 8**12, torch.tensor([[5, 8**12 - 1], [5, 7]])
    metrics = ev.CodebookMetrics(size).update(indices)
    values = metrics.compute()
    assert (values["dead_codes"], values["samples"]) == (size - 3, 4)
    assert values["entropy_bits"] == 1.5
    other = ev.CodebookMetrics(size)
    other.load_state_dict(pickle.loads(pickle.dumps(metrics.state_dict())))
    other.merge(metrics)
    assert other.compute()["samples"] == 8 and other.compute()["entropy_bits"] == 1.5
    assert metrics.counts.is_sparse and metrics.counts.sum() == 4
    assert "3 of 68719476736 codes" in title(drawn(ev.plot_code_usage(metrics)))


def test_sparse_counts_equal_dense_counts(monkeypatch):
    data = batch()
    dense = [ev.CodebookMetrics(32).update(*part) for part in zip(*(x.split(300) for x in data))]
    monkeypatch.setattr("vqvae.evaluation.metrics._DENSE", 31)
    sparse = [ev.CodebookMetrics(32).update(*part) for part in zip(*(x.split(300) for x in data))]
    for parts in (dense, sparse):
        for part in parts[1:]: parts[0].merge(part)
    assert sparse[0].counts.is_sparse and not dense[0].counts.is_sparse
    assert torch.equal(sparse[0].counts.to_dense(), dense[0].counts)
    same(sparse[0].compute(), dense[0].compute())


def test_several_codes_per_position():
    indices, z, z_q = batch(grid=(3,))
    pairs = torch.stack([indices, (indices + 1) % 32], dim=-1)
    values = ev.CodebookMetrics(32).update(pairs, z, z_q).compute()
    once = ev.CodebookMetrics(32).update(indices, z, z_q).compute()
    assert values["samples"] == 2 * once["samples"] == 6000
    assert values["distortion"] == once["distortion"]
    assert values["relative_distortion"] == once["relative_distortion"]


@pytest.mark.parametrize("several", [False, True])
def test_padding_counts_for_nothing(several):
    indices, z, z_q = batch(grid=(3,))
    if several: indices = torch.stack([indices, indices], dim=-1)
    mask = torch.rand(1000, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    padded = ev.CodebookMetrics(32).update(indices, z, z_q, mask)
    alone = ev.CodebookMetrics(32).update(indices[mask], z[mask], z_q[mask])
    assert padded.compute() == alone.compute()
    indices[~mask], z[~mask], z_q[~mask] = 31, math.nan, math.inf
    assert ev.CodebookMetrics(32).update(indices, z, z_q, mask).compute() == padded.compute()


def test_devices_without_float64_are_measured_on_the_cpu(monkeypatch):
    "A stand-in for Apple's GPUs: a device of another type, where `double` is refused."
    from vqvae.evaluation.metrics import _double
    seen = []
    class Elsewhere:
        device = torch.device("mps")
        def detach(self): return self
        def cpu(self): return seen.append("cpu") or torch.ones(2)
        def double(self): raise TypeError("no float64 here")
    assert _double(Elsewhere()).dtype == torch.float64 and seen == ["cpu"]


@pytest.mark.parametrize("room", ["evaluation", "training"])
def test_imports_nothing_heavy(room):
    heavy = ["pandas", "matplotlib", "sklearn", "scipy", "lightning_fabric", "IPython"]
    code = (f"import sys, vqvae.{room}\n"
            f"print([name for name in {heavy} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("size,error", [(0, ValueError), (-1, ValueError), (2.0, TypeError),
                                        (True, TypeError), ("8", TypeError)])
def test_bad_codebook_size(size, error):
    with pytest.raises(error, match="codebook_size"): ev.CodebookMetrics(size)


def test_entropy():
    for n in (1, 2, 64, 1024, 65536): assert ev.perplexity(torch.full((n,), 3)) == n
    assert math.copysign(1, ev.entropy_bits([4])) == 1  # no minus zero in a table
    assert (
        ev.entropy_bits(torch.tensor([0.5, 0.25, 0.25]))
        == ev.entropy_bits(torch.tensor([[2, 1], [1, 0]]))
        == 1.5
    )
    for bad in ([], [0], [-1, 2], [math.nan, 1.0], [math.inf]):
        with pytest.raises(ValueError): ev.entropy_bits(bad)


def test_mse_psnr():
    a = torch.zeros(3, dtype=torch.bfloat16)
    assert ev.mse(a, a + 0.5) == 0.25 and ev.psnr(a, a) == math.inf and ev.psnr(a, a + 1) == 0.0
    with pytest.raises(ValueError, match="data_range"): ev.psnr(a, a, data_range=0)
    with pytest.raises(ValueError, match="x holds"): ev.mse(a / 0, a)
    with pytest.raises(ValueError, match="empty"): ev.mse(a[:0], a[:0])
    with pytest.raises(TypeError, match="x_recon"): ev.mse(a, [0.0] * 3)


# ---------------------------------------------------------------- tracking

def test_round_trip_is_lossless(tmp_path):
    tracker, rng = ev.MetricsTracker(), np.random.default_rng(0)
    special = [math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2,
               1e22]
    for step, value in enumerate([*special, *rng.standard_normal(200),
                                  *rng.standard_normal(50).astype("float32")]):
        tracker.log(step, "train", loss=value)
    tracker.log(10**15, 'a "quoted", split\nwith lines\r\n', **{"NA": 1, "nan": 2, "ä/β": 3, "": 4})
    tracker.log(0, "null", loss=torch.tensor(1.5), count=np.int64(3), flag=torch.tensor([2]))
    tracker.save(tmp_path / "new" / "metrics.csv")
    again = ev.MetricsTracker.load(tmp_path / "new" / "metrics.csv")
    pd.testing.assert_frame_equal(again.frame, tracker.frame, check_exact=True)
    assert again.frame["value"].to_numpy().tobytes() == tracker.frame["value"].to_numpy().tobytes()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["metrics.csv"]
    pd.read_csv(tmp_path / "new" / "metrics.csv")  # anyone can read it


def test_empty_tracker(tmp_path):
    tracker = ev.MetricsTracker()
    assert list(tracker.frame.columns) == ["step", "split", "metric", "value"] and len(tracker) == 0
    assert tracker.frame["step"].dtype == "int64" and tracker.frame["value"].dtype == "float64"
    tracker.save(tmp_path / "e.csv")
    assert len(ev.MetricsTracker.load(tmp_path / "e.csv")) == 0
    with pytest.raises(ValueError, match="history is empty"): ev.plot_training(tracker)


def test_logging_again_replaces():
    tracker = ev.MetricsTracker()
    tracker.log(1, "train", loss=2.0)
    tracker.log(2, "train", loss=1.0)
    tracker.log(1, "train", loss=3.0)
    assert tracker.frame["value"].tolist() == [3.0, 1.0]


@pytest.mark.parametrize("value", ["1", None, [1.0], {}, 1j, torch.ones(2), torch.zeros(0),
                                   np.ones((2, 1)), torch.tensor(1j)])
def test_values_that_are_not_numbers(value):
    tracker = ev.MetricsTracker()
    with pytest.raises(TypeError, match="bad must be one real number"):
        tracker.log(0, "train", good=1.0, bad=value)
    assert len(tracker) == 0


@pytest.mark.parametrize("step,split,error", [(-1, "a", ValueError), (0.5, "a", TypeError),
                                              ("1", "a", TypeError), (0, "", TypeError),
                                              (0, 3, TypeError)])
def test_bad_step_or_split(step, split, error):
    with pytest.raises(error): ev.MetricsTracker().log(step, split, loss=1.0)


@pytest.mark.parametrize("text,message", [
    ("", "No columns"), ("step,split,value,metric\n", "must have the columns"),
    ("step,split,metric,value,extra\n", "must have the columns"),
    ("step,split,metric,value\n0,train,loss\n", "could not convert"),
    ("step,split,metric,value\n0,train,loss,1,5\n", "does not match length of data"),
    ("step,split,metric,value\n0,train,loss,1\n0.5,train,loss,1\n", "'0.5'"),
    ("step,split,metric,value\n0,train,loss,high\n", "'high'"),
    ("step,split,metric,value\n0,train,loss,1\n0,train,loss,2\n",
     "loss of train at step 0 stands twice")])
def test_bad_files(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError, match=message): ev.MetricsTracker.load(tmp_path / "m.csv")


# ---------------------------------------------------------------- figures

def title(ax): return ax.get_title("left") + ax.get_title()  # where it stands depends on the style


def drawn(artist):
    "Render; a figure that cannot be drawn, or warns, is no figure."
    figure = artist if isinstance(artist, matplotlib.figure.Figure) else artist.figure
    figure.canvas.draw()
    return artist


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1.0, 0.0, -2.0, math.nan, math.inf])
def test_training_with_one_point(value):
    tracker = ev.MetricsTracker()
    tracker.log(5, "train", loss=value)
    ax = drawn(ev.plot_training(tracker))
    assert ax.lines[0].get_marker() == "o"


@pytest.mark.filterwarnings("error")
def test_training_many():
    tracker = ev.MetricsTracker()
    for step in (20, 10, 0):
        tracker.log(step, "train", loss=10.0 ** -step, psnr=step)
        tracker.log(step, "test", loss=2 * 10.0 ** -step)
    ax = drawn(ev.plot_training(tracker.frame, "loss"))
    assert ax.get_yscale() == "log" and list(ax.lines[0].get_xdata()) == [0, 10, 20]
    ax = drawn(ev.plot_training(tracker, ["loss", "psnr"]))
    assert ax.get_yscale() == "linear" and len(ax.lines) == 3
    fig, own = plt.subplots()
    assert ev.plot_training(tracker, ax=own) is own and len(plt.get_fignums()) == 3
    with pytest.raises(TypeError): ev.plot_training([1, 2])
    with pytest.raises(ValueError, match="missing"): ev.plot_training(pd.DataFrame({"step": [1]}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("counts", [[7], [0, 3], [1] * 5000, list(range(5000))])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_code_usage(counts, scale):
    fig, ax = plt.subplots()
    ax.set_yscale(scale)
    start = time.perf_counter()
    drawn(ev.plot_code_usage(torch.tensor(counts), ax=ax))
    assert time.perf_counter() - start < 10
    assert f"of {len(counts)} codes" in title(ax)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n,dim", [(1, 2), (2, 2), (5000, 2), (1, 5), (2, 3), (5000, 16)])
def test_codebook(n, dim):
    g = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    ax = drawn(ev.plot_codebook(torch.randn(n, dim, generator=g), torch.randn(50, dim, generator=g),
                                torch.zeros(n)))
    assert time.perf_counter() - start < 20
    assert ("principal plane" in title(ax)) == (dim > 2)
    drawn(ev.plot_codebook(torch.randn(n, dim, generator=g)))


@pytest.mark.filterwarnings("error")
def test_codebook_degenerate():
    drawn(ev.plot_codebook(torch.ones(6, 2)))
    drawn(ev.plot_codebook(torch.ones(6, 4)))
    drawn(ev.plot_codebook(torch.ones(6, 4), torch.ones(3, 3, 4), torch.arange(6)))
    drawn(ev.plot_codebook(torch.tensor([[0.0, 0], [0, 0], [1, 1]], dtype=torch.bfloat16,
                                        requires_grad=True)))
    with pytest.raises(ValueError, match="codebook holds 1 NaN"):
        ev.plot_codebook(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(ValueError, match="counts must have shape"):
        ev.plot_codebook(torch.ones(6, 2), counts=torch.ones(5))


def test_cut_cells_are_nearest_codes_in_full_space():
    g = torch.Generator().manual_seed(1)
    codes = torch.randn(40, 7, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(7, 7, generator=g, dtype=torch.float64)).Q[:, :2]
    flat = codes @ basis
    height = (codes.square().sum(1) - flat.square().sum(1)).sqrt()
    owner, edge = _owners(flat.numpy(), height.numpy(), (-3, 3, -3, 3), 60)
    x = -3 + (np.arange(60) + 0.5) / 10
    points = torch.tensor(np.stack(np.meshgrid(x, x), -1)).reshape(-1, 2) @ basis.T
    assert np.array_equal(owner.ravel(), torch.cdist(points, codes).argmin(1).numpy())
    assert (edge >= 0).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 3, 5, 9), (20, 1, 8, 8)])
def test_reconstructions(shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    figure = drawn(ev.plot_reconstructions(x, 2 * x - 0.3))
    assert isinstance(figure, matplotlib.figure.Figure)
    fig, ax = plt.subplots()
    assert ev.plot_reconstructions(x.bfloat16().requires_grad_(), x.bfloat16(), n=2, ax=ax) is fig


@pytest.mark.parametrize("a,b", [((2, 1, 4, 4), (3, 1, 4, 4)), ((2, 2, 4, 4), (2, 2, 4, 4)),
                                 ((4, 4), (4, 4))])
def test_reconstructions_refused(a, b):
    with pytest.raises(ValueError): ev.plot_reconstructions(torch.zeros(a), torch.zeros(b))
    assert not plt.get_fignums()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("interval", [False, True])
def test_rate_distortion_with_one_point(interval):
    points = pd.DataFrame({"method": ["VQ"], "rate": [1.0], "distortion": [0.4]})
    if interval:
        # an interval may reach below zero or be unknown
        points = points.assign(low=-0.1, high=math.nan)
    assert title(drawn(ev.plot_rate_distortion(points))) == "Distortion over rate"
    limits = {f"limit {i}": (torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1 / 16]))
              for i in range(6)}
    ax = drawn(ev.plot_rate_distortion(points, limits))
    assert title(ax) == "Closest to limit 0: VQ, 1.60 times its distortion"
    lines = [line for line in ax.lines if line.get_label().startswith("limit")]
    assert len(lines) == 6 and all(line.get_color() == ev.LIMIT and line.is_dashed()
                                   for line in lines)


def test_rate_distortion_errors():
    with pytest.raises(ValueError, match="missing"):
        ev.plot_rate_distortion(pd.DataFrame({"rate": [1.0]}))
    with pytest.raises(ValueError, match="high"):
        ev.plot_rate_distortion(pd.DataFrame({"method": "a", "rate": [1.0], "distortion": 1.0,
                                              "low": 0.5}))
    with pytest.raises(ValueError, match="empty"):
        ev.plot_rate_distortion(pd.DataFrame(columns=["method", "rate", "distortion"]))
    assert not plt.get_fignums()


# ---------------------------------------------------------------- style

def test_table():
    frame = pd.DataFrame({"n": pd.array([1, None], dtype="Int64"), "d": [0.123456, math.nan],
                          "s": ["a|b", None], "m": [np.float32(0.1), "x"], "f": [True, False]})
    assert repr(ev.show_table(frame, 3)).splitlines() == ["| n | d | s | m | f |",
                                                          "| --: | --: | :-- | :-- | :-- |",
                                                          "| 1 | 0.123 | a\\|b | 0.1 | True |",
                                                          "|  |  |  | x | False |"]


def test_style_starts_no_shell():
    code = (
        "import sys; from vqvae.evaluation.style import use_style; use_style(); a = 'IPython' in "
        "sys.modules; "
        "import IPython; use_style(); print(a, IPython.get_ipython())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout.strip() == "False None"
