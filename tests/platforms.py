"What tests ask of the machine; on every platform they can be collected, and say what they need."
import os

import pytest

POSIX = os.name == "posix"
IS_ROOT = getattr(os, "geteuid", lambda: 1)() == 0
posix = pytest.mark.skipif(not POSIX, reason="Windows ends processes and makes links otherwise")
