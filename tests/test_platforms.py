"Other platforms, as far as they can be seen from here."
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vqvae.studies.run import _wait_for_end

# what Windows lacks; the libraries are imported before, as they know it
WINDOWS = """
import os, signal, sys
import distributed, joblib.externals.loky, lightning_fabric, matplotlib.pyplot, pandas, PIL.Image
import pytest, sklearn, torch

for name in ("fork", "getuid", "geteuid", "getgid", "mkfifo", "statvfs", "sync", "uname"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1"): delattr(signal, name)
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"))
for name in sys.argv[1:]:
    __import__(name)
    print(name)
"""
HERE = Path(__file__).parent
# they need a browser, a laboratory or the site, which only Linux builds
ELSEWHERE = {"test_lab", "test_site", "test_explorers", "test_live", "test_extras"}
NAMES = sorted(path.stem for path in HERE.glob("test_*.py") if path.stem not in ELSEWHERE)


@pytest.mark.slow
def test_tests_can_be_collected_without_what_windows_lacks():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WINDOWS, *NAMES], cwd=HERE,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == NAMES


def test_a_worker_on_windows_waits_for_the_end_of_its_parent(monkeypatch):
    calls = []
    fake = SimpleNamespace(SYNCHRONIZE=0x100000, INFINITE=0xFFFFFFFF,
                           OpenProcess=lambda *call: calls.append(call) or "handle",
                           WaitForSingleObject=lambda *call: calls.append(call))
    monkeypatch.setitem(sys.modules, "_winapi", fake)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("os.getppid", lambda: 7)  # as ever
    _wait_for_end(7)
    assert calls == [(0x100000, False, 7), ("handle", 0xFFFFFFFF)]
