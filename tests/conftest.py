import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from browser import chromium  # noqa: E402, F401 (one browser for all test files)


@pytest.fixture(autouse=True, scope="session")
def few_threads(): torch.set_num_threads(1)
