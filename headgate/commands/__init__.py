"""The commands of `headgate`: one module each, named for it."""
