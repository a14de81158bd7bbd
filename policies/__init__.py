"""Every decision Headgate makes: what to admit, order, batch, preempt and place.

Pure functions and state machines. No I/O, no clock, no asyncio, no torch: time comes in as an argument, in seconds.
"""
