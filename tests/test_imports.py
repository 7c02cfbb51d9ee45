"What an import brings: nothing heavy beside PyTorch, for quantizers and models."
import subprocess
import sys

import pytest

HEAVY = ["sklearn", "pandas", "scipy.stats", "matplotlib", "lightning_fabric", "lightning", "PIL"]


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import vqvae.core", "import vqvae.encoders, vqvae.decoders",
                                       "import vqvae.quantizers, vqvae.models"])
def test_import_is_light(statement):
    modules, before = loaded_by(statement), loaded_by("import torch")
    assert [name for name in HEAVY if name in modules - before] == []
