"What tests ask of the machine; on every platform they can be collected, and say what they need."
import os

import pytest
import torch

POSIX = os.name == "posix"
IS_ROOT = getattr(os, "geteuid", lambda: 1)() == 0
posix = pytest.mark.skipif(not POSIX, reason="Windows ends processes and makes links otherwise")

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
# 2.8 refuses `next(parameters, default)` in a compiled model, and compiled running averages differ
# from eager ones by a rounding (6e-8); versions between were not tried
recent_compiler = pytest.mark.skipif(TORCH < (2, 13), reason="torch.compile is tried from 2.13 on")
