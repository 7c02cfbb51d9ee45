"""Run notebooks as nbdev_test does, and say so when each of them ends.

`python tools/test_notebooks.py [--workers N] [notebook or folder …]`: all of nbs/ when none is
named. The last line is "Success.", or the failed notebooks are listed, one a line.
"""
import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb

ROOT = Path(__file__).resolve().parent.parent


def notebooks(names: list[str]) -> list[Path]:
    "The notebooks that are named, or that lie in a folder that is named."
    found = [path for name in names or ["nbs"] for path in nbglob(name, as_path=True)]
    return sorted({Path(path).absolute() for path in found})


def results(paths: list[Path], workers: int) -> Iterator[tuple[Path, bool, float]]:
    """Each notebook as it ends: whether it passed, and its seconds.

    A worker that dies takes the others along: what it left unfinished runs again, each alone.
    """
    flags, unfinished = get_config().tst_flags.split(), []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tasks: dict[Future, Path] = {
            pool.submit(test_nb, path, skip_flags=flags, basepath=ROOT): path for path in paths}
        for task in as_completed(tasks):
            died = isinstance(task.exception(), BrokenProcessPool)
            if died and len(paths) > 1: unfinished.append(tasks[task])
            else: yield tasks[task], *((False, 0.0) if task.exception() else task.result())
    for path in unfinished: yield from results([path], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("notebooks", nargs="*")
    arguments = parser.parse_args()
    paths, failed, start = notebooks(arguments.notebooks), [], time.monotonic()
    if not paths: raise SystemExit("no notebook was found")
    for done, (path, passed, seconds) in enumerate(results(paths, arguments.workers), 1):
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
        print(f"{'ok' if passed else 'FAILED':<6} {done:>3}/{len(paths)} {seconds:5.1f} s  {name}",
              flush=True)
        if not passed: failed.append(name)
    print(f"{len(paths)} notebooks in {time.monotonic() - start:.0f} s")
    if failed:
        print("\nFailed notebooks:", *(f"\t{name}" for name in sorted(failed)), sep="\n",
              file=sys.stderr)
        raise SystemExit(1)
    print("Success.")


if __name__ == "__main__": main()
