"""Training under conditions that no reader wants to see: several processes, signals, bad folders,
precision."""
import functools
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import CSVLogger
from platforms import IS_ROOT, posix
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import vqvae.training
from vqvae.data.base import BaseDataset, InMemoryDataset, TorchDataset
from vqvae.data.digits import DigitsDataset
from vqvae.data.gaussian import GaussianDataset
from vqvae.decoders.base import BaseDecoder
from vqvae.decoders.conv import ConvDecoder
from vqvae.decoders.linear import LearnedLinearDecoder
from vqvae.decoders.pca import PCADecoder
from vqvae.encoders.base import BaseEncoder
from vqvae.encoders.conv import ConvEncoder
from vqvae.encoders.linear import LearnedLinearEncoder
from vqvae.encoders.pca import PCAEncoder
from vqvae.evaluation.metrics import CodebookMetrics
from vqvae.evaluation.tracking import MetricsTracker
from vqvae.models.units import in_original_units
from vqvae.models.vqvae import VQVAE
from vqvae.quantizers.base import BaseQuantizer
from vqvae.quantizers.fsq import FiniteScalarQuantizer
from vqvae.quantizers.gumbel import GumbelSoftmaxQuantizer
from vqvae.quantizers.learning import EMALearning, LossLearning, Revival
from vqvae.quantizers.vq import ClassicalVectorQuantizer, VectorQuantizer
from vqvae.training import (
    Trainer,
    default_fabric,
    expand_mask,
    read_checkpoint,
    vqvae_loss,
)

DATA = GaussianDataset(d=12, k=4, n_samples=250)


def cpu(**k): return Fabric(accelerator="cpu", devices=1, **k)


def build(learning=None, revival=None, frozen=False):
    encoder, decoder = LearnedLinearEncoder(12, 4), LearnedLinearDecoder(4, 12)
    if frozen: encoder, decoder = PCAEncoder(DATA.U_k), PCADecoder(DATA.U_k)
    learning = learning or LossLearning()
    return VQVAE(encoder, VectorQuantizer(4, 16, learning=learning, revival=revival), decoder)


def schedule(optimizer): return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Several processes

KINDS = {
    "loss": lambda: build(LossLearning()),
    "loss, revival": lambda: build(LossLearning(), Revival(after=4)),
    "ema": lambda: build(EMALearning(0.9)),
    "ema, revival": lambda: build(EMALearning(0.9), Revival(after=4)),
    "ema, every 3": lambda: build(EMALearning(0.9, every=3)),
    "ema, frozen": lambda: build(EMALearning(0.9), Revival(after=4), frozen=True),
}


def sgd(parameters): return torch.optim.SGD(parameters, lr=0.3)


def train_all(fabric, folder):
    "Train every kind for two ragged epochs and write what each rank ended with."
    torch.set_num_threads(1)
    results = {}
    for kind, make in KINDS.items():
        trainer = Trainer(make().to(torch.float64), optimizer=sgd, fabric=fabric, clip_norm=1.0)
        data = InMemoryDataset(DATA.train.double(), DATA.test.double())
        trainer.fit(data, steps=9, batch_size=49, progress=False)
        rows = trainer.tracker.frame.set_index(["step", "split", "metric"])["value"].to_dict()
        results[kind] = {"state": trainer.model.state_dict(),
                         "values": {str(key): value for key, value in rows.items()}}
    torch.save(results, Path(folder) / f"rank{fabric.global_rank}.pt")


@posix
@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    # float64 throughout, so that another order of summation is all that remains: far below 1e-9
    (tmp_path / "one").mkdir()
    train_all(cpu(), tmp_path / "one")
    code = (
        "from lightning_fabric import Fabric; from test_training import train_all\n"
        "Fabric(accelerator='cpu', devices=2, strategy='ddp_fork').launch(train_all, "
        f"{str(tmp_path)!r})"
    )
    script = tmp_path / "two.py"
    script.write_text(code)
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (torch.load(tmp_path / name)
                          for name in ("one/rank0.pt", "rank0.pt", "rank1.pt"))
    for kind in KINDS:
        for name, value in one[kind]["state"].items():
            a, b = first[kind]["state"][name], second[kind]["state"][name]
            assert torch.equal(a, b), f"{kind}: {name} differs between the ranks"
            close = torch.allclose(a.double(), value.double(), rtol=1e-9, atol=1e-9)
            assert close, f"{kind}: {name} differs from one process"
        assert first[kind]["values"].keys() == one[kind]["values"].keys()
        for name, value in one[kind]["values"].items():
            a, b = first[kind]["values"][name], second[kind]["values"][name]
            assert a == b == pytest.approx(value, rel=1e-7), (kind, name)


# Interruption

SLOW = """
import sys, time, torch
sys.path.insert(0, {tests!r})
from test_training import DATA, EMALearning, Revival, build, cpu, schedule
from vqvae.training import Trainer
torch.set_num_threads(1)
class Slow(Trainer):
    def take_step(self, batch):
        counted = super().take_step(batch)
        print(self.step, flush=True)
        time.sleep(0.05)
        return counted
trainer = Slow(build(EMALearning(0.9), Revival(after=4)), schedule=schedule, folder={folder!r},
               fabric=cpu())
trainer.fit(DATA, steps=60, batch_size=32, validate_every=1, checkpoint_every=5, progress=False)
"""


@posix
@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_interrupted_run_continues_bit_for_bit(tmp_path, how):
    script = SLOW.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 12: break
    process.send_signal(getattr(signal, how))
    error = process.communicate(timeout=20)[1]
    if how == "SIGINT": assert process.returncode != 0 and "stopped after step" in error
    else: assert process.returncode == -getattr(signal, how)
    resumed = Trainer(build(EMALearning(0.9), Revival(after=4)), schedule=schedule,
                      folder=tmp_path / "run", fabric=cpu())
    resumed.load_checkpoint()
    assert resumed.step == 10 if how == "SIGKILL" else 12 <= resumed.step < 60
    plain = Trainer(build(EMALearning(0.9), Revival(after=4)), schedule=schedule, fabric=cpu())
    for trainer in (resumed, plain):
        trainer.fit(DATA, steps=60, batch_size=32, validate_every=1, progress=False)
    assert same(resumed.model, plain.model)
    assert resumed.tracker.frame.equals(plain.tracker.frame)
    assert MetricsTracker.load(tmp_path / "run/metrics.csv").frame.equals(plain.tracker.frame)


class Signalling(LearnedLinearEncoder):
    "Sends a signal to its own process at chosen forward calls."
    how = signal.SIGINT
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + self.training
        for _ in range(self.at.count(self.calls)): signal.raise_signal(self.how)
        return super().forward(x)


def signalling(at, **k):
    encoder = Signalling(12, 4)
    encoder.at = at
    return Trainer(VQVAE(encoder, VectorQuantizer(4, 16), LearnedLinearDecoder(4, 12)),
                   fabric=cpu(), **k)


def test_interrupt_without_folder_stops_at_the_boundary_and_goes_on():
    trainer, before = signalling([4]), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4"):
        trainer.fit(DATA, steps=9, progress=False)
    assert trainer.step == 4 and signal.getsignal(signal.SIGINT) is before
    trainer.fit(DATA, steps=9, progress=False)
    plain = signalling([])
    plain.fit(DATA, steps=9, progress=False)
    assert same(trainer.model, plain.model)


@pytest.mark.parametrize("call, message", [(4, "stopped after step 4"), (9, "after step 9")])
def test_terminated_run_is_saved_and_the_signal_passed_on(tmp_path, call, message):
    trainer, told = signalling([call], folder=tmp_path), []
    trainer.model.encoder.how = signal.SIGTERM
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(sorted(os.listdir(tmp_path))))
    try:
        with pytest.raises(KeyboardInterrupt, match=message):
            trainer.fit(DATA, steps=9, progress=False)
        assert signal.getsignal(signal.SIGTERM)(None, None) is None  # the handler of before
    finally: signal.signal(signal.SIGTERM, before)
    assert len(told) == 2 and "checkpoint.pt" in told[0]
    assert read_checkpoint(tmp_path / "checkpoint.pt").step == call


def test_second_interrupt_is_immediate():
    trainer = signalling([4, 4])
    with pytest.raises(KeyboardInterrupt): trainer.fit(DATA, steps=9, progress=False)
    assert trainer.step == 3 and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_fit_works_outside_the_main_thread():
    trainer = Trainer(build(), fabric=cpu())
    thread = threading.Thread(target=lambda: trainer.fit(DATA, steps=3, progress=False))
    thread.start()
    thread.join(20)
    assert trainer.step == 3


# Resuming

class OnlyShuffle(BaseDataset):
    "Nothing but seed.md's method, with augmentation that draws from the global generator."
    def get_dataloader(self, batch_size, shuffle=True):
        augment = lambda rows: torch.stack(rows) + 0.1 * torch.randn(len(rows), 12)
        return DataLoader(DATA.train, batch_size, shuffle=shuffle, collate_fn=augment)


class Augmented(Dataset):
    "Draws from NumPy's and Python's global generators for every sample."
    def __len__(self): return len(DATA)
    def __getitem__(self, i):
        noise = np.random.randn(12).astype("float32") * random.random()
        return DATA.train[i] + 0.1 * torch.from_numpy(noise)


class Dropout(LearnedLinearEncoder):
    def forward(self, x): return nn.functional.dropout(super().forward(x), 0.3, self.training)


@pytest.mark.parametrize("data", [DATA, OnlyShuffle(), Augmented()],
                         ids=["seeded", "plain", "numpy"])
@pytest.mark.parametrize("stop", [4, 8, 11])  # an epoch has 8 steps
@pytest.mark.parametrize("quantizer", [
    lambda: VectorQuantizer(4, 16, learning=LossLearning(), revival=Revival(after=3)),
    lambda: VectorQuantizer(4, 16, learning=EMALearning(every=3), revival=Revival(after=3)),
    lambda: GumbelSoftmaxQuantizer(4, 16)], ids=["loss", "ema", "gumbel"])
def test_resumed_equals_undisturbed(tmp_path, data, stop, quantizer):
    def trainer(folder=None):
        model = VQVAE(Dropout(12, 4), quantizer(), LearnedLinearDecoder(4, 12))
        return Trainer(model, schedule=schedule, folder=folder, fabric=cpu(), clip_norm=0.5)
    state, others = torch.get_rng_state(), (random.getstate(), np.random.get_state()[1].tolist())
    plain = trainer()
    plain.fit(data, epochs=2, batch_size=32, progress=False)
    trainer(tmp_path).fit(data, steps=stop, batch_size=32, progress=False)
    resumed = trainer(tmp_path)
    resumed.fit(data, epochs=2, batch_size=32, progress=False)
    assert same(resumed.model, plain.model) and resumed.step == plain.step == 16
    for a, b in zip(resumed.optimizer.state.values(), plain.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert resumed.schedule.get_last_lr() == plain.schedule.get_last_lr()
    assert torch.equal(torch.get_rng_state(), state)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == others


def test_numpy_noise_does_not_depend_on_the_global_state():
    ends = []
    for seed in (1, 2):
        np.random.seed(seed)
        random.seed(seed)
        ends.append(Trainer(build(), fabric=cpu()))
        ends[-1].fit(Augmented(), steps=5, progress=False)
    assert same(ends[0].model, ends[1].model)


@pytest.mark.slow
def test_noise_of_workers_is_continued(tmp_path):
    data = TorchDataset(Augmented(), workers=2)
    plain = Trainer(build(), fabric=cpu())
    plain.fit(data, steps=6, progress=False)
    Trainer(build(), folder=tmp_path, fabric=cpu()).fit(data, steps=3, progress=False)
    resumed = Trainer(build(), folder=tmp_path, fabric=cpu())
    resumed.fit(data, steps=6, progress=False)
    assert same(resumed.model, plain.model)


@pytest.mark.parametrize("change, message", [
    (dict(batch_size=16), "batch_size=32, this run has batch_size=16"),
    (dict(dataset=GaussianDataset(d=12, k=4, n_samples=99)), "samples=250"),
    (dict(seed=3), "seed=0"),
    (dict(model=lambda: VQVAE(LearnedLinearEncoder(12, 4), VectorQuantizer(4, 8),
                              LearnedLinearDecoder(4, 12))),
     "quantizer.codebook is (16, 4) there, (8, 4) here"),
    (dict(optimizer=lambda p: torch.optim.SGD(p, lr=0.1)), "another optimizer"),
    (dict(schedule=None), "another schedule"),
    (dict(optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3)), "Adam there, AdamW here"),
    (dict(schedule=lambda o: torch.optim.lr_scheduler.StepLR(o, 5)), "another schedule"),
    (dict(model=lambda: build(frozen=True).freeze()), "another model"),
])
def test_checkpoint_that_does_not_fit_changes_nothing(tmp_path, change, message):
    Trainer(build(), schedule=schedule, folder=tmp_path, fabric=cpu()).fit(
        DATA, steps=3, batch_size=32, progress=False
    )
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    model = change.get("model", build)()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(model, optimizer=change.get("optimizer"),
                      schedule=change.get("schedule", schedule), folder=tmp_path,
                      seed=change.get("seed", 0), fabric=cpu())
    with pytest.raises(ValueError) as error:
        trainer.fit(change.get("dataset", DATA), steps=6, batch_size=change.get("batch_size", 32),
                    progress=False)
    assert message in str(error.value)
    assert trainer.step == 0 and len(trainer.tracker) == 0
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert files == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_broken_and_missing_checkpoints(tmp_path):
    trainer = Trainer(build(), folder=tmp_path, fabric=cpu())
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"): trainer.load_checkpoint()
    trainer.save_checkpoint()
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    for content in (whole[:1000], b"", b"nonsense"):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ValueError, match="not a readable checkpoint"): trainer.load_checkpoint()
    torch.save({"model": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="not a checkpoint of a Trainer"): trainer.load_checkpoint()
    with pytest.raises(ValueError, match="give a path"):
        Trainer(build(), fabric=cpu()).save_checkpoint()


def test_finished_run_is_left_alone_and_extended(tmp_path):
    first = Trainer(build(), folder=tmp_path, fabric=cpu())
    first.fit(DATA, epochs=2, progress=False)
    again = Trainer(build(), folder=tmp_path, fabric=cpu())
    again.fit(DATA, epochs=2, progress=False)
    assert same(first.model, again.model) and again.tracker.frame.equals(first.tracker.frame)
    assert same(VQVAE.load(tmp_path / "model.safetensors"),
                first.model) and not first.model.training
    anew = Trainer(build(), folder=tmp_path, fabric=cpu())
    anew.fit(DATA, epochs=1, resume=False, progress=False)
    assert anew.epoch == 1


@pytest.mark.parametrize("more", [dict(epochs=4), dict(steps=32)])
def test_finished_run_is_given_more(tmp_path, more):
    Trainer(build(), folder=tmp_path, fabric=cpu()).fit(DATA, epochs=2, batch_size=32,
                                                        progress=False)
    longer = Trainer(build(), folder=tmp_path, fabric=cpu())
    longer.fit(DATA, batch_size=32, progress=False, **more)
    plain = Trainer(build(), fabric=cpu())
    plain.fit(DATA, epochs=4, batch_size=32, progress=False)
    assert same(longer.model, plain.model) and longer.step == 32
    assert same(VQVAE.load(tmp_path / "model.safetensors"), plain.model)


OTHER = {
    "weights": (dict(weights={"codebook": 2.0}), "weights {} -> {'codebook': 2.0}"),
    "clip_norm": (dict(clip_norm=0.5), "clip_norm 1.0 -> 0.5"),
    "lr": (dict(optimizer=lambda p: torch.optim.Adam(p, lr=1e-2)),
           r"optimizer lr 0.003 -> 0.01 \(not taken: its state goes on\)"),
    "schedule": (dict(schedule=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)),
                 r"schedule gamma 0.97 -> 0.5 \(not taken"),
    "loss": (dict(loss=lambda *a: vqvae_loss(*a)), "loss vqvae.training.loss.vqvae_loss -> test_"),
    "precision": (dict(fabric=cpu(precision="bf16-mixed")), "precision 32-true -> bf16-mixed"),
}


@pytest.mark.parametrize("change, message", OTHER.values(), ids=OTHER)
def test_other_options_are_said_at_resume(tmp_path, change, message):
    options = dict(schedule=schedule, folder=tmp_path, fabric=cpu())
    Trainer(build(), **options).fit(DATA, steps=3, progress=False)
    with pytest.warns(UserWarning, match=message):
        Trainer(build(), **{**options, **change}).fit(DATA, steps=6, progress=False)


def test_other_validations_are_said_and_same_options_are_not(tmp_path, recwarn):
    options = dict(schedule=schedule, folder=tmp_path, fabric=cpu(), weights={"commitment": 0.5})
    Trainer(build(), **options).fit(DATA, steps=3, progress=False)
    Trainer(build(), **options).fit(DATA, steps=6, progress=False)
    assert not recwarn
    with pytest.warns(UserWarning, match="validate_every None -> 1"):
        Trainer(build(), **options).fit(DATA, steps=9, validate_every=1, progress=False)


# First write, then measure

class Unmeasurable(InMemoryDataset):
    "A test split that cannot be read."
    def __init__(self, error):
        super().__init__(DATA.train, DATA.test)
        self.error = error
    def get_dataloader(self, batch_size, shuffle=True, *, split="train", seed=0):
        if split == "test": raise self.error
        return super().get_dataloader(batch_size, shuffle, split=split, seed=seed)


@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("validate_every", [None, 2])
def test_what_was_trained_is_on_disk_before_it_is_measured(tmp_path, error, validate_every):
    trainer = Trainer(build(), folder=tmp_path, fabric=cpu())
    with pytest.raises(type(error)):
        trainer.fit(Unmeasurable(error), epochs=3, batch_size=32, validate_every=validate_every,
                    progress=False)
    assert read_checkpoint(tmp_path / "checkpoint.pt").step == (16 if validate_every else 24)
    if validate_every is None:
        assert same(VQVAE.load(tmp_path / "model.safetensors"), trainer.model)
    resumed, plain = (Trainer(build(), folder=folder, fabric=cpu()) for folder in (tmp_path, None))
    for run in (resumed, plain):
        run.fit(DATA, epochs=3, batch_size=32, validate_every=validate_every, progress=False)
    assert same(resumed.model, plain.model) and resumed.tracker.frame.equals(plain.tracker.frame)


def test_checkpoints_are_written_by_time_without_asking(tmp_path):
    class Often(Trainer):
        checkpoint_seconds = 0.0
    trainer = Often(VQVAE(LearnedLinearEncoder(12, 4), VectorQuantizer(4, 16), Spoiled(4, 12)),
                    folder=tmp_path, fabric=cpu())
    with pytest.raises(FloatingPointError, match="training step 6"):
        trainer.fit(DATA, steps=9, progress=False)
    assert read_checkpoint(tmp_path / "checkpoint.pt").step == 5
    rare = Trainer(build(), folder=tmp_path / "rare", fabric=cpu())
    rare.save_checkpoint = lambda: pytest.fail("too early")
    with pytest.raises(KeyboardInterrupt):
        rare._train_epoch = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        rare.fit(DATA, steps=3, progress=False)


@pytest.mark.slow
def test_two_runs_in_one_folder_are_told(tmp_path):
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from test_training import *; from vqvae.training.checkpoint import locked\n"
            f"with locked(Path({str(tmp_path)!r})): print('locked', flush=True); input()")
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "locked\n"
    with pytest.warns(UserWarning, match="another process trains in"):
        Trainer(build(), folder=tmp_path, fabric=cpu()).fit(DATA, steps=2, progress=False)
    other.kill()  # the lock goes with the process
    other.communicate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(build(), folder=tmp_path, fabric=cpu()).fit(DATA, steps=4, progress=False)
    assert not (tmp_path / ".training").exists()


# What may go wrong

def test_unwritable_folder_is_noticed_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    trainer = Trainer(build(), folder=tmp_path / "file" / "run", fabric=cpu())
    with pytest.raises(OSError, match="cannot write into folder"):
        trainer.fit(DATA, steps=2, progress=False)
    assert trainer.step == 0


@posix
@pytest.mark.skipif(IS_ROOT, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(OSError, match="cannot write into folder"):
        Trainer(build(), folder=tmp_path / "run", fabric=cpu()).fit(DATA, steps=2, progress=False)


def test_model_that_cannot_be_saved_is_noticed_before_training(tmp_path):
    model = build()
    model.quantizer = VectorQuantizer(4, 16, estimator=lambda z, q: q)
    model._arguments["quantizer"] = model.quantizer
    trainer = Trainer(model, folder=tmp_path, fabric=cpu())
    with pytest.raises(ValueError, match="no import path"):
        trainer.fit(DATA, steps=2, progress=False)
    assert trainer.step == 0


class Spoiled(LearnedLinearDecoder):
    "Gives infinity at chosen forward calls."
    def forward(self, z):
        self.calls = getattr(self, "calls", 0) + self.training
        return super().forward(z) * (torch.inf if self.calls == 6 else 1.0)


def test_non_finite_loss_stops_before_the_step(tmp_path):
    model = VQVAE(LearnedLinearEncoder(12, 4), ClassicalVectorQuantizer(4, 16), Spoiled(4, 12))
    trainer = Trainer(model, folder=tmp_path, fabric=cpu())
    with pytest.raises(FloatingPointError,
                       match="training step 6: the loss is not finite: .*reconstruction"):
        trainer.fit(DATA, steps=9, checkpoint_every=5, progress=False)
    assert trainer.step == 5
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 5
    assert all(torch.equal(value, model.state_dict()[name])
               for name, value in saved["model"].items())
    trainer.fit(DATA, steps=9, progress=False)  # and it can go on
    assert trainer.step == 9


def test_non_finite_gradient_stops_before_the_step():
    def explode(parameters):
        parameters[0].register_hook(lambda grad: grad * torch.nan)
        return torch.optim.SGD(parameters, lr=0.1)
    trainer = Trainer(build(), optimizer=explode, fabric=cpu())
    with pytest.raises(FloatingPointError,
                       match="training step 1: the norm of the gradient is nan"):
        trainer.fit(DATA, steps=2, progress=False)
    assert same(trainer.model, build())


def test_bad_latents_and_bad_data_name_the_step():
    class Nan(LearnedLinearEncoder):
        def forward(self, x): return super().forward(x) * (torch.nan if self.training else 1.0)
    trainer = Trainer(VQVAE(Nan(12, 4), VectorQuantizer(4, 16), LearnedLinearDecoder(4, 12)),
                      fabric=cpu())
    with pytest.raises(ValueError, match="training step 1: z holds"):
        trainer.fit(DATA, steps=2, progress=False)
    class Empty(BaseDataset):
        def get_dataloader(self, batch_size, shuffle=True): return DataLoader([], batch_size)
    with pytest.raises(ValueError, match="Empty gave no batch"):
        Trainer(build(), fabric=cpu()).fit(Empty(), steps=2, progress=False)


@pytest.mark.parametrize("arguments, message", [
    (dict(), "either epochs or steps"), (dict(epochs=1, steps=1), "either epochs or steps"),
    (dict(steps=0), "steps must be positive"),
    (dict(steps=1, batch_size=0), "batch_size must be positive"),
    (dict(steps=1, checkpoint_every=1), "needs a Trainer with a folder"),
    (dict(epochs=1, validate_every=-1), "validate_every must be positive"),
])
def test_arguments_of_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        Trainer(build(), fabric=cpu()).fit(DATA, progress=False, **arguments)


# Losses, steps, models

def test_loss_is_an_argument():
    def reconstruction_only(outputs, x, weights):
        terms = {"reconstruction": (outputs["x_recon"] - x).square().mean()}
        return terms["reconstruction"], terms
    trainer = Trainer(build(), loss=reconstruction_only, fabric=cpu())
    before = trainer.model.quantizer.codebook.clone()
    rows = trainer.fit(DATA, steps=5, progress=False).frame
    assert torch.equal(trainer.model.quantizer.codebook, before)  # no term moves it
    assert "commitment" not in set(rows["metric"])
    assert set(trainer.evaluate(DATA)) >= {"loss", "reconstruction", "mse"}
    with pytest.raises(TypeError, match="loss must be a function"): Trainer(build(), loss="mse")


def test_overridden_step():
    class Accumulating(Trainer):
        def training_step(self, x, mask=None):
            for part in x.chunk(4): self.backward(self.compute_loss(part) * len(part) / len(x))
            self.update()
    plain, pieces = (kind(build(), fabric=cpu(), clip_norm=1.0) for kind in (Trainer, Accumulating))
    for trainer in (plain, pieces): trainer.fit(DATA, epochs=2, progress=False)
    for a, b in zip(plain.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    ours, theirs = (trainer.tracker.frame["value"] for trainer in (plain, pieces))
    assert ours.to_numpy() == pytest.approx(theirs.to_numpy(), rel=1e-2)

    class Lazy(Trainer):
        def training_step(self, x, mask=None): pass
    assert len(Lazy(build(), fabric=cpu()).fit(DATA, steps=3).frame.query("split == 'train'")) == 0


@pytest.mark.slow
def test_compiled_model():
    plain, compiled = Trainer(build(), fabric=cpu()), Trainer(
        torch.compile(build(), backend="eager"), fabric=cpu())
    for trainer in (plain, compiled): trainer.fit(DATA, steps=4, progress=False)
    assert same(plain.model, compiled.model) and isinstance(compiled.model, VQVAE)
    with pytest.raises(TypeError, match="must be a VQVAE, got Linear"):
        Trainer(torch.compile(nn.Linear(2, 2)))


def test_loggers_are_told_every_row(tmp_path):
    logger = CSVLogger(tmp_path, name="log")
    trainer = Trainer(build(), fabric=cpu(loggers=logger))
    frame = trainer.fit(DATA, epochs=2, validate_every=1, progress=False).frame
    written = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
    last = written[written["step"] == trainer.step].ffill().iloc[-1]
    for split, metric, value in frame[frame["step"] == trainer.step].iloc[:, 1:].itertuples(False):
        assert last[f"{split}/{metric}"] == pytest.approx(value), (split, metric)


def test_one_process_in_a_slurm_job_of_many_tasks(monkeypatch):
    for name, value in {"JOB_ID": 7, "JOB_NAME": "train", "NTASKS": 4, "PROCID": 0, "LOCALID": 0,
                        "NODEID": 0, "JOB_NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    trainer = Trainer(build())
    trainer.fit(DATA, steps=2, progress=False)
    assert trainer.fabric.world_size == 1 and trainer.step == 2
    assert default_fabric("bf16-mixed").strategy.precision.precision == "bf16-mixed"


class TwoLevels(BaseQuantizer):
    "Two codes per position, the second for what the first leaves."
    def __init__(self):
        super().__init__(4, 16)
        self.first, self.second = VectorQuantizer(4, 16), VectorQuantizer(4, 16, seed=1)
    def forward(self, z, mask=None):
        q, i, info = self.first(z, mask)
        rest, j, other = self.second(z - q.detach(), mask)
        losses = {name: info["losses"][name] + other["losses"][name] for name in info["losses"]}
        hard = info["z_q_hard"] + other["z_q_hard"]
        info = {"z_q_hard": hard, "distances": other["distances"], "losses": losses}
        return q + rest, torch.stack([i, j], dim=-1), info


def test_several_codes_per_position_are_trained_and_measured():
    model = VQVAE(LearnedLinearEncoder(12, 4), TwoLevels(), LearnedLinearDecoder(4, 12))
    trainer = Trainer(model, fabric=cpu())
    trainer.fit(DATA, epochs=1, progress=False)
    assert trainer.evaluate(DATA)["samples"] == 2 * len(DATA.test)


def test_billions_of_codes_are_counted_where_they_occur(tmp_path):
    def trainer():
        model = VQVAE(LearnedLinearEncoder(12, 12), FiniteScalarQuantizer([8] * 12),
                      LearnedLinearDecoder(12, 12))
        return Trainer(model, fabric=cpu(), folder=tmp_path)
    trainer().fit(DATA, steps=3, progress=False)
    resumed = trainer()
    resumed.fit(DATA, steps=6, progress=False)
    assert resumed.evaluate(DATA)["dead_codes"] >= 8**12 - len(DATA.test)


# Data as people have them

class Stream(IterableDataset):
    def __iter__(self): return iter(DATA.train)


@pytest.mark.parametrize("data", [Stream(), TensorDataset(DATA.train), DATA.train,
                                  DATA.train.double().numpy()],
                         ids=["stream", "torch", "tensor", "numpy"])
def test_data_without_a_class(tmp_path, data):
    plain, resumed = (Trainer(build(), folder=folder, fabric=cpu()) for folder in (None, tmp_path))
    plain.fit(data, epochs=2, progress=False)
    resumed.fit(data, steps=3, progress=False)
    resumed = Trainer(build(), folder=tmp_path, fabric=cpu())
    resumed.fit(data, epochs=2, progress=False)
    assert same(plain.model, resumed.model) and plain.step == 8
    assert set(plain.evaluate(data, "train")) >= {"mse", "perplexity"}
    with pytest.raises(ValueError, match="has no split 'test'"):
        plain.evaluate(data)


def test_data_that_cannot_be_taken_say_what_to_write():
    with pytest.raises(TypeError, match="give TorchDataset"):
        Trainer(build(), fabric=cpu()).fit(DataLoader(DATA.train), steps=1)
    with pytest.raises(TypeError, match="derive a class from BaseDataset"):
        Trainer(build(), fabric=cpu()).fit([1, 2], steps=1)


def test_lengths_are_not_taken_for_a_mask_without_a_word():
    with pytest.warns(UserWarning, match="only its first tensor is used"):
        Trainer(build(), fabric=cpu()).fit(TensorDataset(DATA.train, torch.arange(250)), steps=9,
                                           progress=False)


class PerVector(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3, bias=False)
    def forward(self, x): return self.linear(x)


class PerCode(BaseDecoder):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 6, bias=False)
    def forward(self, z): return self.linear(z)


class Padded(BaseDataset):
    "Sequences of unlike lengths, and anything where they are padded."
    splits = ("train", "test")
    def __init__(self, padding, kind=tuple): self.padding, self.kind = padding, kind
    def get_dataloader(self, batch_size, shuffle=True, *, split="train", seed=0):
        x = torch.randn(20, 5, 6, generator=torch.Generator().manual_seed(0))
        mask = torch.arange(5) < torch.arange(20)[:, None] % 4 + 1
        x[~mask] = self.padding
        pairs = zip(x.split(batch_size), mask.split(batch_size), strict=True)
        return [{"x": x, "mask": m} if self.kind is dict else (x, m) for x, m in pairs]


@pytest.mark.parametrize("kind", [tuple, dict])
@pytest.mark.parametrize("quantizer", [lambda: VectorQuantizer(3, 8),
                                       lambda: VectorQuantizer(3, 8, learning=EMALearning(0.9)),
                                       lambda: FiniteScalarQuantizer([3, 3, 3])])
def test_padding_changes_nothing(kind, quantizer):
    ends = []
    for padding in (0.0, 1e4):
        torch.manual_seed(0)
        ends.append(Trainer(VQVAE(PerVector(), quantizer(), PerCode()), fabric=cpu()))
        ends[-1].fit(Padded(padding, kind), steps=8, batch_size=7, progress=False)
    assert same(ends[0].model, ends[1].model)
    assert ends[0].tracker.frame.equals(ends[1].tracker.frame)
    assert ends[0].evaluate(Padded(0.0))["samples"] == sum(i % 4 + 1 for i in range(20))
    for name, value in ends[0].evaluate(Padded(0.0), batch_size=3).items():
        assert value == pytest.approx(ends[0].evaluate(Padded(0.0))[name], rel=1e-6), name


def test_padding_is_not_initialized_from():
    latents = Padded(1e4).get_initialization_batch(20, PerVector())
    assert latents.shape == (sum(i % 4 + 1 for i in range(20)), 3) and latents.abs().max() < 1e3


def test_masks_of_images_and_masks_that_do_not_fit():
    mask = torch.tensor([[[True, False], [True, True]]])
    x = torch.zeros(1, 3, 4, 4)
    x[..., :2, 2:] = 100.0
    outputs = {"x_recon": torch.ones(1, 3, 4, 4), "losses": {}, "mask": mask}
    assert vqvae_loss(outputs, x)[1]["reconstruction"] == 1.0
    for shape in ((1, 3, 5, 4), (2, 3, 4, 4), (1, 16)):
        with pytest.raises(ValueError, match="mask .* fits samples"):
            expand_mask(mask, torch.zeros(shape))
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        class Unmasked(VQVAE):
            def forward(self, x): return super().forward(x)
        model = Unmasked(PerVector(), VectorQuantizer(3, 8), PerCode())
        Trainer(model, fabric=cpu()).fit(DATA.train.reshape(-1, 2, 6), steps=1, progress=False)
        Trainer(model, fabric=cpu()).fit(Padded(0.0), steps=1, progress=False)


def test_arguments_of_the_trainer():
    with pytest.raises(TypeError, match="must be a VQVAE, got Linear"): Trainer(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="clip_norm must be positive"):
        Trainer(build(), clip_norm=-1.0)
    with pytest.raises(ValueError, match="finite and not negative"):
        Trainer(build(), weights={"codebook": -1.0})
    with pytest.raises(ValueError, match="weights names 'comit'"):
        Trainer(build(), weights={"comit": 1.0}, fabric=cpu()).fit(DATA, steps=1, progress=False)


# Precision, frozen parts

@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision(precision):
    trainer = Trainer(build(EMALearning(0.9)), fabric=cpu(precision=precision))
    rows = trainer.fit(DATA, epochs=4, validate_every=1, progress=False).frame
    values = rows.query("split == 'test' and metric == 'mse'")["value"]
    assert values.iloc[-1] < values.iloc[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_moving_averages_alone(precision, tmp_path):
    def trainer(folder=None):
        return Trainer(build(EMALearning(0.8), frozen=True), fabric=cpu(precision=precision),
                       schedule=schedule, folder=folder)
    plain = trainer()
    before = plain.evaluate(DATA)["distortion"]
    plain.fit(DATA, epochs=5, progress=False)
    assert plain.optimizer is None and plain.evaluate(DATA)["distortion"] < before
    trainer(tmp_path).fit(DATA, steps=7, progress=False)
    resumed = trainer(tmp_path)
    resumed.fit(DATA, epochs=5, progress=False)
    assert same(resumed.model, plain.model)


def test_frozen_parts_do_not_move():
    for frozen in ("encoder", "quantizer", "decoder", None):
        model = build(EMALearning(0.8), Revival(after=2))
        part = getattr(model, frozen) if frozen else model
        before = {name: value.clone() for name, value in part.freeze().state_dict().items()}
        Trainer(model, fabric=cpu()).fit(DATA, epochs=2, progress=False)
        assert all(torch.equal(value, part.state_dict()[name]) for name, value in before.items())


def test_unfrozen_too_late():
    model = build()
    model.encoder.freeze()
    trainer = Trainer(model, fabric=cpu())
    model.encoder.unfreeze()
    with pytest.raises(ValueError, match="encoder.* became trainable"):
        trainer.fit(DATA, steps=1, progress=False)


def test_progress_bar_and_no_output(capfd):
    trainer = Trainer(build(), fabric=cpu())
    trainer.fit(DATA, epochs=1, progress=False)
    assert capfd.readouterr() == ("", "")
    trainer.fit(DATA, epochs=2)
    text = capfd.readouterr().err
    assert "perplexity=" in text and text.count("step/s") + text.count("it/s") <= 3


def test_a_bar_in_a_file_is_a_line_a_minute(capfd, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # other tests import it
    class Slow(Trainer):
        def take_step(self, batch):
            time.sleep(0.03)
            return super().take_step(batch)
    Slow(build(), fabric=cpu()).fit(DATA, steps=40)
    assert capfd.readouterr().err.count("\r") <= 3


def test_every_name_of_the_room_can_be_had():
    for name in vqvae.training.__all__: assert getattr(vqvae.training, name) is not None


# Standardized data

def far_data(validation=False):
    "Samples far from zero, of a scale that is far from one."
    generator = torch.Generator().manual_seed(0)
    shift = 5 + torch.randn(12, generator=generator)
    x = 0.01 * torch.randn(400, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    data = InMemoryDataset(x[:300] + shift, x[300:] + shift)
    return data.with_validation() if validation else data


def test_standardized_data_are_measured_in_original_units(tmp_path):
    data = far_data().standardized()
    raw = far_data()
    trainer = Trainer(build(), folder=tmp_path, fabric=cpu())
    rows = trainer.fit(data, steps=30, progress=False).frame
    scores = trainer.evaluate(data)
    x_recon = data.standardization.restore(trainer.model(data.test)["x_recon"])
    error = (x_recon - raw.test).square().mean().item()
    assert scores["mse"] == pytest.approx(error, rel=1e-3)
    span = (raw.test.max() - raw.test.min()).item()
    assert scores["psnr"] == pytest.approx(10 * math.log10(span**2 / error), abs=0.01)
    assert scores["reconstruction"] == pytest.approx(
        scores["mse"] / data.standardization.scale**2, rel=1e-6)
    assert rows[(rows.split == "test") & (rows.metric == "mse")].value.item() == scores["mse"]
    # what is saved takes samples as they are
    whole = VQVAE.load(tmp_path / "model.safetensors")
    assert torch.equal(whole.tokenize(raw.test), trainer.model.tokenize(data.test))
    assert torch.equal(whole.detokenize(whole.tokenize(raw.test)), x_recon)
    again = Trainer(whole, fabric=cpu()).evaluate(raw)
    for name in ("mse", "psnr"): assert again[name] == pytest.approx(scores[name], rel=1e-3)
    assert again["perplexity"] == scores["perplexity"]
    data.data_range = 2.0
    expected = 10 * math.log10(4 / scores["mse"])
    assert trainer.evaluate(data)["psnr"] == pytest.approx(expected, rel=1e-6)


def test_standardized_run_continues_bit_for_bit_and_no_other_does(tmp_path):
    data, plain = far_data().standardized(), Trainer(build(), fabric=cpu())
    plain.fit(data, steps=20, progress=False)
    Trainer(build(), folder=tmp_path, fabric=cpu()).fit(data, steps=8, progress=False)
    with pytest.raises(ValueError, match="standardized=True, this run has standardized=False"):
        Trainer(build(), folder=tmp_path, fabric=cpu()).fit(far_data(), steps=20, progress=False)
    resumed = Trainer(build(), folder=tmp_path, fabric=cpu())
    resumed.fit(data, steps=20, progress=False)
    assert same(resumed.model, plain.model)


def test_validation_split_goes_before_test():
    trainer = Trainer(build(), fabric=cpu())
    data = far_data(validation=True).standardized()
    rows = trainer.fit(data, epochs=2, validate_every=1, progress=False).frame
    assert set(rows.split) == {"train", "validation"}
    last = rows[(rows.split == "validation") & (rows.metric == "mse")].value.iloc[-1]
    assert last == trainer.evaluate(data, "validation")["mse"] != trainer.evaluate(data)["mse"]


def test_data_variance_is_the_scale_of_standardized_data():
    data = far_data().standardized()
    grads = []
    for raw in (False, True):
        model = build().double()
        x = data.train[:64].double()
        loss = vqvae_loss
        if raw:
            x = data.standardization.restore(x)
            model = in_original_units(model, data.standardization)
            loss = functools.partial(vqvae_loss, data_variance=data.standardization.scale**2)
        total, terms = loss(model(x), x)
        total.backward()
        grads.append([total.detach(), *terms.values(), *(p.grad for p in model.parameters())])
    assert len(grads[0]) == len(grads[1]) > 5
    for a, b in zip(*grads, strict=True): assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="data_variance"):
            vqvae_loss({"x_recon": x, "losses": {}}, x, data_variance=wrong)


# Dead codes

def fit_and_listen(quantizer, data, steps=150, fits=1, **options):
    "Train on digits and give back what was warned."
    model = VQVAE(ConvEncoder(1, 4, hidden=16), quantizer, ConvDecoder(1, 4, hidden=16))
    trainer = Trainer(model, fabric=cpu(), **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for i in range(fits): trainer.fit(data, steps=steps + i, progress=False)
    return [str(warning.message) for warning in told], trainer


def test_a_collapsed_codebook_is_said_once():
    told, trainer = fit_and_listen(ClassicalVectorQuantizer(4, 128), DigitsDataset(), fits=3)
    assert len(told) == 1 and re.match(r"\d+ of 128 codes are dead", told[0]), told
    for remedy in ("dataset.standardized()", "VectorQuantizer(dim, codebook_size)", "fewer codes"):
        assert remedy in told[0]
    counts = CodebookMetrics(128).update(trainer.model.tokenize(DigitsDataset().train)).counts
    assert (counts == 0).sum() >= 0.25 * 128


def test_a_healthy_codebook_and_a_short_try_are_not_spoken_of():
    data = DigitsDataset().standardized()
    assert fit_and_listen(VectorQuantizer(4, 64), data)[0] == []
    assert fit_and_listen(ClassicalVectorQuantizer(4, 64), data, steps=99)[0] == []
    assert fit_and_listen(FiniteScalarQuantizer([16, 16, 16, 16]), data)[0] == []
