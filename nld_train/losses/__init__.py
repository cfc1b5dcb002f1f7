"""The objective: negative log-likelihoods of supervised rows, averaged over the global batch into one scalar."""
