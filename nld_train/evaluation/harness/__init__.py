"""lm-evaluation-harness on a checkpoint: exact AR likelihoods, the diffusion bound, and text in every mode."""
