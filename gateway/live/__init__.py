"""The live view of the stack: what everybody tells while somebody looks, merged into frames for all viewers."""
