"""Stage kinds: what one stage trains, on which streams, with which step."""
