"""What several tests of the refiner build it with: the widths of the context that the default regressor gives, and a small autoencoder."""

from gmodiff.model.autoencoder import AutoencoderShape

CONTEXT = (64, 128, 192)
SMALL = AutoencoderShape(16, 24, 8)
