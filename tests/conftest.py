import signal
import sys
from pathlib import Path

import pytest
import torch

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
