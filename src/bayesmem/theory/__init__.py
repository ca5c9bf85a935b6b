"""What is predicted: closed forms for what a memory recalls, held against the real filter in tests/theory.

One module a question, each to be imported by name (``from bayesmem.theory import load``):

- ``repeats``: one key written n times, the gains, errors and plateaus.
- ``collision``: two associations at a known cosine, the recall of either and its spread.
- ``load``: many random keys, the error against their number and age.
- ``steady_state``: the variance under forgetting.

Pure functions of numpy arrays, which broadcast against each other; noises are variances and
retentions plain factors in [0, 1], not logarithms. Derivations: docs/math.md section 6.
"""
