"""Whether the weights are getting better, in all the ways to read them."""
