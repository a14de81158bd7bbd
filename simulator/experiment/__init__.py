"""Grids of simulations: run in parallel, resumed where they stopped, and summed up."""
