"""The demonstration: a small model trained on exact tasks, and the scripted tour of the stack."""
