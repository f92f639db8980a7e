"""Forwards as Python lets people write them: what each asks, keeps, draws, switches or hands on.

One file for each kind.  A `Case` is a forward and what must come of it; `tests/test_truth.py` compiles every one
of them with and without an example and compares it with the module itself, call by call.
"""
