"""A fuzzer that writes Python: random modules as source text, compiled and compared with themselves.

`tests/fuzz.py` makes graphs; this makes the code around them.  `expressions`, `statements` and `definitions` are the
grammar, `program` puts a file together, `writing` draws one, `running` compares, `shrinking` makes a find small.
"""
