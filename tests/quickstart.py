"""The quick start of the specification, verbatim with `vqvae.` for `src.`; then what a reader would
check."""
import torch

from vqvae.data import GaussianDataset
from vqvae.decoders import PCADecoder
from vqvae.encoders import PCAEncoder
from vqvae.initialization import rd_gaussian_init
from vqvae.models import VQVAE
from vqvae.quantizers import VectorQuantizer

# 1. Create dataset
dataset = GaussianDataset(d=64, k=8, n_samples=10000)

# 2. Create encoder & decoder
encoder = PCAEncoder(dataset.U_k, trainable=False)
decoder = PCADecoder(dataset.U_k, trainable=False)

# 3. Initialize codebook
init_data = dataset.get_initialization_batch(1000)
codebook = rd_gaussian_init(codebook_size=256, dim=8, data=init_data)

# 4. Create quantizer
quantizer = VectorQuantizer(dim=8, codebook_size=256, init_codebook=codebook)

# 5. Compose model
model = VQVAE(encoder, quantizer, decoder)

# 6. Use model
x = torch.randn(32, 64)  # batch of data
outputs = model(x)
# outputs: {'x_recon', 'z', 'z_q', 'indices', ...}

assert outputs["x_recon"].shape == (32, 64) and outputs["indices"].shape == (32,)
assert torch.equal(outputs["z_q"], codebook[outputs["indices"]])
assert torch.equal(model.detokenize(model.tokenize(x)), model.eval()(x)["x_recon"])
print("quick start: ok,", ", ".join(outputs))
