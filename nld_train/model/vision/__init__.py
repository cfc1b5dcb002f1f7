"""The vision tower and projector of a vision-language model, and the pictures that they take."""
