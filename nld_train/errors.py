"""What a user can cause."""


class UserError(ValueError):
    """A mistake in what was asked for or provided, not in this program.

    The message is one line that names the key, file or tensor and says what would be right. The commands print it
    without a traceback and exit with a non-zero status.
    """
