"""The live page: what an operator sees of a stack in a browser, behind a login with the admin key."""
