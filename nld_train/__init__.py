"""Train language models that read both ways: autoregressive and block-diffusion in one set of weights."""
