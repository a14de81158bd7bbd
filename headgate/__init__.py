"""The command line and the starting of the stack."""
