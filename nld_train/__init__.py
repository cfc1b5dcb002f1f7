"""Train language models that decode both autoregressively and by block diffusion, with one set of weights."""
