"""What the specification (seed.md) shows works as it is written there, with `vqvae.` for `src.`."""
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from vqvae.data.base import BaseDataset
from vqvae.decoders.base import BaseDecoder
from vqvae.encoders.base import BaseEncoder
from vqvae.models import VQVAE
from vqvae.quantizers.base import BaseQuantizer
from vqvae.training import Trainer


def test_quick_start():
    script = Path(__file__).with_name("quickstart.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0 and "quick start: ok" in done.stdout, done.stderr


class MyQuantizer(BaseQuantizer):
    def forward(self, z):
        indices = (z > 0).long() @ (2 ** torch.arange(z.shape[-1]))
        z_q = z + (z.sign() - z).detach()
        info = {"z_q_hard": z.sign(), "distances": (z - z.sign()).square().sum(-1), "losses": {}}
        return z_q, indices, info


class MyDataset(BaseDataset):
    def get_dataloader(self, batch_size, shuffle=True):
        return DataLoader(torch.randn(100, 6, generator=torch.Generator().manual_seed(0)),
                          batch_size, shuffle=shuffle)


class MyEncoder(BaseEncoder):
    def forward(self, x):
        # x: (batch, d) -> z: (batch, k)
        return x[:, :3]


class MyDecoder(BaseDecoder):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 6)

    def forward(self, z):
        return self.linear(z)


def test_own_components_train_together():
    model = VQVAE(MyEncoder(), MyQuantizer(dim=3, codebook_size=8), MyDecoder())
    dataset = MyDataset()
    trainer = Trainer(model)
    before = model.decoder.linear.weight.clone()
    trainer.fit(dataset, steps=5, batch_size=20, progress=False)
    assert not torch.equal(before, model.decoder.linear.weight)
    out = model(next(iter(dataset.get_dataloader(4))))
    assert out["x_recon"].shape == (4, 6) and out["indices"].shape == (4,)
    assert dataset.get_initialization_batch(10, model.encoder).shape == (10, 3)
