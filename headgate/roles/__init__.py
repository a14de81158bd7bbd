"""How each role's process is put together: one module a role, named for it."""
