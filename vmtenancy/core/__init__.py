"""Pure decisions: what exists, how much of it a tenant may use, where a request lands, and why.

No input or output, no clock, no randomness: everything is passed in, so every decision can be replayed.
"""
