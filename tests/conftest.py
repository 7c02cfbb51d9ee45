import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from browser import chromium  # noqa: E402, F401 (one browser for all test files)


@pytest.fixture(autouse=True, scope="session")
def few_threads(): torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """Ctrl-C works in the tests and in what they start, also when a shell in the background started
    them with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    "A folder with 20 random images in two folders."
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(20):
        file = path / "xy"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(file)
    return path
