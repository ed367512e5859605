"""Programs that run on the node itself, sent as text to any Python there: standard library only, Python 3.8 and up.

They are read as files and never imported on the user's side (tests excepted). Each takes one order and prints one
answer, a JSON object, in its last line.
"""
