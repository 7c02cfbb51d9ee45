"What every component shares, and files: the cases that no reader of the page wants to see."
import copy
import errno
import inspect
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from platforms import IS_ROOT
from torch import nn

from vqvae.core import (
    Component,
    atomic_path,
    changed_settings,
    check_count,
    check_finite,
    check_positive,
    import_path,
    seeded,
    step_generator,
)
from vqvae.training.step import _step_noise

# Construction


class Base(Component):
    "A base."

    def __init__(
        self,
        width: int,  # a size
        rate: float = 0.5,  # a setting
        *parts: int,  # more sizes
        start: torch.Tensor | None = None,  # a tensor
    ) -> None:
        "Make it."
        super().__init__()
        self.width, self.rate, self.parts = int(width), rate, parts
        self.weight = nn.Parameter(torch.zeros(2) if start is None else start.detach().clone())
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x): return x * self.weight.sum()


class Keywords(Base):
    def __init__(self, extra: str = "e", **kwargs) -> None:
        super().__init__(**kwargs)
        self.extra = extra


class Silent(Base): pass


def test_record_keeps_signature_and_docstring():
    assert list(inspect.signature(Base).parameters) == ["width", "rate", "parts", "start"]
    assert inspect.getdoc(Base.__init__) == "Make it." and Base.__doc__ == "A base."
    assert Silent(3, 0.1).arguments == {"width": 3, "rate": 0.1, "parts": (), "start": None}
    assert Base(3, 0.1, 7, 8).arguments["parts"] == (7, 8)


def test_outermost_call_counts_and_keywords_are_spread():
    assert Keywords(width=3, rate=0.1).arguments == {"extra": "e", "width": 3, "rate": 0.1}
    with pytest.raises(TypeError): Keywords("e", 3)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_remember(again):
    part = Base(3, start=torch.ones(2)).freeze()
    part.rate = 0.25
    twin = again(part)
    assert twin.arguments["width"] == 3 and torch.equal(twin.arguments["start"], torch.ones(2))
    assert changed_settings(twin) == {"rate": 0.25} and not twin.trainable
    assert twin.unfreeze().weight.requires_grad and not part.weight.requires_grad


def test_record_holds_no_graph_and_no_list_of_the_caller():
    weights = torch.ones(2, requires_grad=True)
    part = Base(3, start=weights * 2)
    assert not part.arguments["start"].requires_grad
    copy.deepcopy(part)

    class Listed(Component):
        def __init__(self, sizes: list[int]) -> None:
            super().__init__()
            self.sizes = sizes

    sizes = [1, 2]
    part = Listed(sizes)
    sizes.append(3)
    assert part.arguments == {"sizes": [1, 2]} and changed_settings(part) == {"sizes": [1, 2, 3]}


def test_changed_settings():
    class Own(Component):
        temperature = 1.0

        def __init__(self, decay: float = 0.9) -> None:
            super().__init__()
            self.decay, self.not_a_number = decay, float("nan")
            self.linear = nn.Linear(1, 1)

    part = Own()
    assert changed_settings(part) == {}
    part.train(), part.freeze(), part.linear.weight.data.fill_(2.0)
    assert changed_settings(part) == {}
    part.decay, part.temperature, part.note = 0.5, 0.1, "new"
    assert changed_settings(part) == {"decay": 0.5, "temperature": 0.1, "note": "new"}


class Checked:
    "An attribute that is checked when it is set, kept under another name."

    def __set_name__(self, owner, name): self.name = f"_{name}"

    def __get__(self, part, owner=None): return self if part is None else vars(part)[self.name]

    def __set__(self, part, value):
        if value == 0: raise ValueError("must not be 0")
        vars(part)[self.name] = value


class Computed(Component):
    rate, rule = Checked(), Checked()

    def __init__(self, rate: float = 1.0, rule=torch.square, half: float = 0.5, width: int = 3):
        super().__init__()
        self.rate, self.rule, self.half, self._width = rate, rule, half, width

    @property
    def half(self): return self.twice / 2

    @half.setter
    def half(self, value): self.twice = 2 * value

    @property
    def width(self): return self._width


def test_settings_behind_properties():
    part = Computed()
    assert changed_settings(part) == {}
    part.rate, part.rule, part.half = 2.0, torch.relu, 4
    assert changed_settings(part) == {"rate": 2.0, "rule": torch.relu, "half": 4, "twice": 8}
    assert repr(part) == "Computed(rate=2.0, rule=relu, half=4.0, width=3)"


def test_repr_says_what_it_is_made_of_now():
    class Whole(Component):
        def __init__(self, part: Component, name: str | None = None, rule=torch.relu,
                     start: torch.Tensor | None = None, sizes=(1, 2), parts=()) -> None:
            super().__init__()
            self.part, self.rate = part, 3

    text = repr(Whole(Base(np.int64(3)), start=torch.ones(2, 5), parts=[Base(1)]))
    assert text.splitlines()[0] == "Whole("
    assert "rule=relu, start=Tensor(2, 5), sizes=(1, 2)" in text and "name" not in text
    assert "parts=[" not in text and "(part): Base(width=3, rate=0.5, parts=())" in text
    part = Base(3)
    part.rate = 0.125
    assert repr(part) == "Base(width=3, rate=0.125, parts=())"


# Freezing

def trainable(module): return {name: p.requires_grad for name, p in module.named_parameters()}


class Pair(Component):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Base(1), Base(2)


def test_parameters_held_one_by_one_stay_so_after_unfreeze():
    pair = Pair()
    pair.a.weight.requires_grad_(False)
    assert pair.freeze().unfreeze() is pair
    assert trainable(pair) == {"a.weight": False, "b.weight": True}
    pair.a.weight.requires_grad_(True)
    assert trainable(pair.freeze().unfreeze()) == {"a.weight": True, "b.weight": True}


@pytest.mark.parametrize("part_first", [True, False])
def test_a_part_frozen_by_itself_stays_frozen(part_first):
    pair = Pair()
    for component in (pair.a, pair) if part_first else (pair, pair.a): component.freeze()
    pair.unfreeze().train()
    assert trainable(pair) == {"a.weight": False, "b.weight": True}
    assert not pair.a.training and pair.b.training and not pair.a.trainable
    assert trainable(pair.a.unfreeze()) == {"weight": True} and pair.a.training


def test_requires_grad_warns_of_buffers_that_still_move():
    with pytest.warns(UserWarning, match=r"a.count, b.count of Pair .* use freeze\(\)"):
        pair = Pair().requires_grad_(False)
    assert not any(trainable(pair).values())


@pytest.mark.filterwarnings("error")
def test_requires_grad_is_silent_where_nothing_moves():
    class Plain(Component):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 1)
            self.register_buffer("constant", torch.ones(1), persistent=False)

    Plain().requires_grad_(False), Base(1).requires_grad_(True), Base(1).freeze()
    Base(1).freeze().requires_grad_(False)


# Checks

def test_check_finite_where_values_cannot_be_looked_at():
    bad = torch.tensor([1.0, torch.nan])
    check_finite(torch.empty(3, device="meta"), "x")
    assert torch.func.vmap(lambda x: check_finite(x, "x") * 2)(torch.ones(3, 2)).shape == (3, 2)
    gradient = torch.func.vmap(torch.func.grad(lambda x: check_finite(x, "x").sum()))
    assert torch.equal(gradient(torch.ones(3, 2)), torch.ones(3, 2))
    compiled = torch.compile(lambda x: check_finite(x, "x") + 1, fullgraph=True, backend="eager")
    assert torch.isnan(compiled(bad)[1])
    with pytest.raises(ValueError, match="x is empty"):
        check_finite(torch.empty(0, device="meta"), "x")
    for call in (check_finite, torch.func.grad(lambda x, name: check_finite(x, name).sum())):
        with pytest.raises(ValueError, match="x holds 1 NaN or infinite values among 2"):
            call(bad, "x")


def test_integers_say_what_to_do():
    with pytest.raises(TypeError, match=r"got torch.uint8: scale pixels .* x.float\(\) / 255"):
        check_finite(torch.zeros(2, dtype=torch.uint8), "x")
    with pytest.raises(TypeError, match="got torch.int64$"):
        check_finite(torch.zeros(2, dtype=torch.int64), "x")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.prod([3, 1])])
def test_integers_of_numpy_are_integers(value):
    assert type(check_count(value, "n")) is int and type(check_positive(value, "n")) is int


@pytest.mark.parametrize("value", [3.0, np.float64(3), True, np.bool_(True), "3", None])
def test_everything_else_is_no_count(value):
    with pytest.raises(TypeError, match="n must be an int, got"): check_count(value, "n")


def test_seeded_restores_the_generator_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(3):
        torch.rand(5)
        raise RuntimeError
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def lent(monkeypatch):
    "What is done to the global generator of an Apple GPU, which is not there."
    calls = []
    fake = type("fake", (), {"get_rng_state": lambda: "state", "manual_seed": calls.append,
                             "set_rng_state": calls.append})
    monkeypatch.setattr(torch, "mps", fake)
    return calls


def test_seeded_lends_the_generator_of_the_default_device(monkeypatch, lent):
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("mps"))
    with seeded(3): assert lent == [3]
    assert lent == [3, "state"]


def test_seeded_lends_the_generator_of_a_device_that_is_named(lent):
    with seeded(3, "mps"): assert lent == [3]
    assert lent == [3, "state"]


def test_noise_of_a_step_lends_the_generator_of_the_fabric_device(lent):
    fabric = SimpleNamespace(device=torch.device("mps"), global_rank=0)
    number = step_generator(5, 2).initial_seed()
    with _step_noise(5, 2, fabric): assert lent == [number]
    assert lent == [number, "state"]


@pytest.mark.parametrize("one", [np.int64(1), np.uint8(1), -1])
def test_seeds_are_integers(one):
    def drawn(value): return torch.rand(2, generator=step_generator(value, 3)).tolist()
    assert drawn(one) == drawn(int(one))
    with seeded(one): a = torch.rand(2).tolist()
    with seeded(int(one)): assert torch.rand(2).tolist() == a


@pytest.mark.parametrize("name", ["seed", "step", "rank"])
@pytest.mark.parametrize("value", [1.0, 1.5, "1", True, torch.tensor(1)])
def test_what_is_no_integer_seeds_nothing(name, value):
    with pytest.raises(TypeError, match=f"{name} must be an int"):
        step_generator(**{"seed": 0, "step": 0, name: value})
    with pytest.raises(TypeError, match="seed must be an int"), seeded(value): pass


def test_import_path_refuses_what_resolve_would_not_find():
    with pytest.raises(ValueError, match="top level"): import_path(lambda: 0)
    with pytest.raises(ValueError, match="top level"): import_path(Base(1).forward)


# Files

def names(folder): return sorted(p.name for p in folder.iterdir())


def test_flushes_through_a_handle_that_may_write(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    modes, flush = [], os.fsync

    def note(descriptor):
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        flush(descriptor)

    monkeypatch.setattr("os.fsync", note)
    with atomic_path(tmp_path / "file") as path: path.write_text("x", encoding="utf-8")
    assert modes and set(modes) <= {os.O_RDWR, os.O_WRONLY}


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_mode_is_that_of_a_new_file_or_of_the_old_one(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_path(tmp_path / "new") as path:
            path.touch(0o600)
            path.write_bytes(b"1")
    finally: os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~mask
    (tmp_path / "new").chmod(0o640)
    with atomic_path(tmp_path / "new") as path: path.write_bytes(b"2")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "new").read_bytes() == b"2"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, there):
    (tmp_path / "runs").mkdir()
    if there: (tmp_path / "runs" / "3.bin").write_bytes(b"old")
    try: (tmp_path / "best.bin").symlink_to("runs/3.bin")
    except OSError: pytest.skip("no links here")
    with atomic_path(tmp_path / "best.bin") as path: path.write_bytes(b"new")
    assert (tmp_path / "best.bin").is_symlink()
    assert (tmp_path / "runs" / "3.bin").read_bytes() == b"new"
    assert names(tmp_path) == ["best.bin", "runs"] and names(tmp_path / "runs") == ["3.bin"]


@pytest.mark.parametrize("name", ["n" * 255, "n" * 250 + ".pt", "a." + "b" * 250, ".hidden"])
def test_long_and_odd_names(tmp_path, name):
    with atomic_path(tmp_path / name) as path: path.write_bytes(b"x")
    assert names(tmp_path) == [name]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with atomic_path(tmp_path / "file") as first, atomic_path(tmp_path / "file") as second:
        assert first != second
        first.write_bytes(b"first"), second.write_bytes(b"second")
    assert (tmp_path / "file").read_bytes() == b"first" and names(tmp_path) == ["file"]


def test_suffix_is_kept_for_writers_that_look_at_it(tmp_path):
    (tmp_path / "target.bin").touch()
    with atomic_path(tmp_path / "figure.png") as path:
        assert path.suffix == ".png"
        path.touch()


FULL = [OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 282944 vs 282832"),
        Exception("Error while serializing: IoError(Os { No space left on device (os error 28) })")]


@pytest.mark.parametrize("error", FULL, ids=["python", "torch", "safetensors"])
def test_a_full_disk_is_called_by_its_name(tmp_path, error):
    (tmp_path / "file").write_bytes(b"good")
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "file") as path:
        path.write_bytes(b"ha")
        raise error
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"good" and names(tmp_path) == ["file"]


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (PermissionError(errno.EACCES, "no"), RuntimeError("odd"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, atomic_path(tmp_path / "file"): raise error
        assert caught.value is error and names(tmp_path) == []


FILL = """
import sys, torch
from pathlib import Path
from vqvae.core import atomic_path
from vqvae.encoders import LearnedLinearEncoder
from vqvae.models import save_component
folder, big = Path(sys.argv[1]), LearnedLinearEncoder(400, 400)
def state(path):
    with atomic_path(path) as p: torch.save(big.state_dict(), p)
def text(path):
    with atomic_path(path) as p: p.write_text("x" * 10**6, encoding="utf-8")
for write in (state, text, lambda path: save_component(big, path)):
    try: write(folder / "file")
    except OSError as error: print(error.errno, error.filename, [p.name for p in folder.iterdir()])
"""


@pytest.mark.skipif(sys.platform != "linux" or not IS_ROOT, reason="mounts a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path],
                             capture_output=True)
    if mounted.returncode: pytest.skip("may not mount")
    try:
        done = subprocess.run([sys.executable, "-c", FILL, tmp_path], capture_output=True,
                              text=True)
    finally: subprocess.run(["umount", tmp_path], check=True)
    assert done.stdout.splitlines() == [f"{errno.ENOSPC} {tmp_path / 'file'} []"] * 3, done
