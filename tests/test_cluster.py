"""A study on a dask cluster: a scheduler and two workers, processes that know only this package."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
from platforms import posix

from vqvae.studies import version
from vqvae.studies.run import _dumps, _pack, _unpack, run_study
from vqvae.studies.store import stored_rows
from vqvae.studies.study import Study, find_study

distributed = pytest.importorskip("distributed",
                                  reason="needs distributed: pip install 'vqvae[cluster]'")

OWN = {
    "own_helpers": """
        import abc, enum
        from dataclasses import dataclass, field
        from typing import NamedTuple, Protocol
        import numpy as np
        TABLE, LOG = {"start": np.arange(3), 1: [("a", 2.0)]}, set()
        class Halt(BaseException): pass
        class Kind(enum.Enum): ONE = 1; TWO = 2
        class Pair(NamedTuple): left: int; right: int = 2
        class Has(Protocol):
            def value(self) -> int: ...
        @dataclass(frozen=True, slots=True)
        class Base(abc.ABC):
            n: int
            more: list = field(default_factory=list)
            @abc.abstractmethod
            def value(self): pass
        class Real(Base):
            @property
            def twice(self): return 2 * self.n
            @staticmethod
            def one(): return Kind.ONE.value
            def value(self): return self.twice + self.one() + Pair(1).right
    """,
    "own_study": """
        import os, time
        from functools import cache
        from pathlib import Path
        import own_helpers
        from own_helpers import Real
        from vqvae.evaluation.intervals import summarize_rows
        from vqvae.studies.study import Study
        from vqvae.theory.rate_distortion import gaussian_distortion
        @cache
        def data(n): return own_helpers.TABLE["start"].sum() + n
        def measure(n, folder, seed):
            if n == 2: raise ValueError("two is refused")
            if n == 5: raise own_helpers.Halt("all stop")
            print(n, os.getpid(), file=open(Path(folder) / "calls", "a"), flush=True)
            while n == 4 and (Path(folder) / "hold").exists(): time.sleep(0.02)
            hits = data.cache_info().hits
            value = Real(n).value() + float(data(n)) + float(gaussian_distortion(1.0)) * seed
            return {"value": value,
                    "time_process": os.getpid(), "time_hit": data.cache_info().hits - hits}
        def summarize(rows): return summarize_rows(rows, ["n"], ["value"])
        folder = os.environ["OWN_FOLDER"]
        study = Study("own", "?", measure, [{"n": n, "folder": folder} for n in range(4)],
                      seeds=range(6), summarize=summarize)
    """,
}


def read(path):
    return [line.split() for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def wait_until(condition):
    for _ in range(15_000):
        if condition(): return
        time.sleep(0.02)
    raise TimeoutError("five minutes")


@pytest.fixture
def own(tmp_path, monkeypatch):
    "The study of a file that no worker can import."
    for name, source in OWN.items(): (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.setenv("OWN_FOLDER", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield find_study(str(tmp_path / "own_study.py"))
    for name in OWN: sys.modules.pop(name, None)


class Start:
    "Starts programs of dask in a folder."
    def __init__(self, folder, **environment):
        self.folder, self.processes, self.environment = folder, [], environment

    def __call__(self, command, *arguments):
        line = [sys.executable, "-m", f"distributed.cli.{command}", *arguments, "--host",
                "127.0.0.1", "--no-dashboard"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]),
                       "OMP_NUM_THREADS": "1", **self.environment}
        with open(self.folder / f"{command}.log", "a") as log:
            self.processes.append(subprocess.Popen(line, cwd=self.folder, stdout=log, stderr=log,
                                                   env=environment))

    def stop(self):
        for process in reversed(self.processes): process.terminate()  # workers' nannies end them
        for process in self.processes:
            try: process.wait(timeout=20)
            except subprocess.TimeoutExpired: process.kill()


@pytest.fixture
def start(tmp_path_factory):
    "A function that starts a scheduler or a worker in a folder of its own."
    starts = Start(tmp_path_factory.mktemp("deadly"),
                   # the first death of a worker is enough to give a row up
                   DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    yield starts
    starts.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of a scheduler with two workers of one thread; a function that lists the workers'
    processes."""
    start = Start(tmp_path_factory.mktemp("cluster"))
    try:
        start("dask_scheduler", "--port", "0", "--scheduler-file", "scheduler.json")
        for _ in range(2):
            start("dask_worker", "--scheduler-file", "scheduler.json", "--nthreads", "1",
                  "--no-nanny")
        with distributed.Client(scheduler_file=str(start.folder / "scheduler.json"), timeout=120,
                                set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)
            yield client.scheduler.address, lambda: client.run(os.getpid).values()
    finally: start.stop()


def test_function_travels_with_all_it_reaches_and_unchanged(own):
    packed = _pack(own.measure, everything=True)
    modules = {name: sys.modules.pop(name) for name in OWN}
    try: function = _unpack(packed)
    finally: sys.modules |= modules
    assert (
        function is not own.measure
        and function.__globals__["data"] is not modules["own_study"].data
    )
    frame = sys._getframe()
    def closes(seed): return frame
    with pytest.raises(TypeError, match="cannot be sent to another process"): _dumps(closes, ())


def test_rows_of_a_cluster_are_those_of_one_process(cluster, own, tmp_path):
    from vqvae.cli import main
    address, processes = cluster
    workers = {*processes()}
    assert main(["study", "run", str(tmp_path / "own_study.py"), "--scheduler", address, "--output",
                 str(tmp_path / "there")]) == 1
    there, here = (
        stored_rows(own, tmp_path / "there"),
        # afresh: the command has run the file once more
        run_study(find_study(str(tmp_path / "own_study.py")), tmp_path / "here", progress=False),
    )
    assert len(workers) == 2 and {*there.time_process.dropna()} == workers  # both did rows
    assert there.time_hit.sum() > 0  # functools.cache lasts from row to row
    assert there.error.notna().tolist() == [False, False, True, False] * 6 and there.error[
        2
    ].endswith("ValueError: two is refused\n")
    of_the_machine = ["seconds", "error", "time_process", "time_hit"]
    pd.testing.assert_frame_equal(there.drop(columns=of_the_machine),
                                  here.drop(columns=of_the_machine))
    before = len(read(tmp_path / "calls"))
    # nothing but the rows that failed
    run_study(own, tmp_path / "there", progress=False, scheduler=address)
    assert len(read(tmp_path / "calls")) == before


@posix
def test_rows_of_a_worker_that_is_killed_go_to_the_other(cluster, own, tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    address, processes = cluster
    study = Study("killed", "?", own.measure,
                  [{"n": n, "folder": str(tmp_path)} for n in (0, 1, 3, 4)], seeds=range(4))
    (tmp_path / "hold").touch()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_study, study, tmp_path, progress=False, scheduler=address)
        wait_until(lambda: running.done()
                   or sum(n == "4" for n, _ in read(tmp_path / "calls")) == 2)
        held = [int(process) for n, process in read(tmp_path / "calls") if n == "4"]
        assert {*held} == {*processes()}  # each worker is in a row that waits
        os.kill(held[0], signal.SIGKILL)
        (tmp_path / "hold").unlink()
        rows = running.result(timeout=120)
    assert len(rows) == 16 and rows.error.isna().all()
    assert {*processes()} == {held[1]}
    pd.testing.assert_series_equal(rows.value,
                                   run_study(study, tmp_path / "here", progress=False).value)
    study = Study("halt", "?", own.measure, [{"n": n, "folder": str(tmp_path)} for n in (5, 1)],
                  seeds=(0,))
    # also what is no Exception is the error of a row
    rows = run_study(study, tmp_path, progress=False, scheduler=address)
    assert rows.error[0].endswith("Halt: all stop\n") and rows.error[1:].isna().all()


def test_other_code_of_this_package_is_noticed(own, tmp_path, monkeypatch):
    packed, find_source = _pack(own.measure, everything=True), version.find_source
    assert "vqvae.theory.rate_distortion" in packed.modules
    (tmp_path / "other.py").write_text("def gaussian_distortion(rate): return 0.0")
    monkeypatch.setattr(version, "find_source", lambda module, *rest:
                        tmp_path / "other.py" if module.endswith(".rate_distortion")
                        else find_source(module, *rest))
    with pytest.raises(RuntimeError, match="has another vqvae"): _unpack(packed)


DEADLY = """
import os
from vqvae.studies.study import Study

def measure(n, seed):
    if n == 1: os.kill(os.getpid(), 9)
    return {"value": n + seed}

study = Study("deadly", "?", measure, [{"n": n} for n in range(4)], seeds=(0, 1))
"""


def test_row_that_kills_its_workers_has_failed_and_the_others_are_measured(start, tmp_path,
                                                                           monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "deadly.py").write_text(DEADLY)
    start("dask_scheduler", "--port", "0", "--scheduler-file", "scheduler.json")
    # with nannies, which start a worker again
    for _ in range(2): start("dask_worker", "--scheduler-file", "scheduler.json", "--nthreads", "1")
    wait_until((start.folder / "scheduler.json").exists)
    address = json.loads((start.folder / "scheduler.json").read_text())["address"]
    rows = run_study(find_study(str(tmp_path / "deadly.py")), tmp_path, progress=False,
                     scheduler=address)
    sys.modules.pop("deadly")
    assert rows.error.notna().tolist() == [False, True, False, False] * 2
    assert rows.error.dropna().str.startswith("KilledWorker").all()


def test_scheduler_that_is_not_there_is_one_line_within_seconds(own, tmp_path, capsys):
    from vqvae.cli import main
    for address, message in (("tcp://127.0.0.1:1",
                              "trying to connect to tcp://127.0.0.1:1 after 5 s"),
                             ("nowhere", "nowhere")):
        assert main(["study", "run", str(tmp_path / "own_study.py"), "--scheduler", address,
                     "--output", str(tmp_path)]) == 1
        errors = [line for line in capsys.readouterr().err.splitlines() if line.strip()
                  and "/24" not in line]
        assert len(errors) == 1 and message in errors[0], errors
