"""Token sets: preparing, checking and reading them, and the order of training samples."""
