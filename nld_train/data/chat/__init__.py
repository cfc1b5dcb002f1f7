"""Conversations: rows of chat data, chat templates, and which tokens are answers."""
