"""Pictures in conversations: read, decoded within limits, stored beside a token set, and processed for the model."""
