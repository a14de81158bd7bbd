"""Small workloads in whole steps, on the real scheduler: schedules that can be checked by hand, and drawn."""
