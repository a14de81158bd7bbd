"""Text on both sides of the model: chat templates, tokens, and back to text without half characters."""
