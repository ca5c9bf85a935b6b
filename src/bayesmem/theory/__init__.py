"""What is predicted: closed forms for what a memory recalls, held against the real filter in tests/theory.

One module a question, each to be imported by name (``from bayesmem.theory import load``):

- ``repeats``: one key written n times, the gains, errors and plateaus.
- ``collision``: two associations at a known cosine, the recall of either and its spread.
- ``load``: many random keys, the error against their number and age.
- ``steady_state``: the variance under forgetting.
- ``horizon``: what forgetting and other writes leave of an association after n tokens.
- ``capacity``: how many associations are held at a target error.
- ``calibration``: the reported variance against the squared error, when assumptions are right and wrong;
  ``beliefs``: the same by exact recursion, for any keys, gains and world.
- ``drift``: a value that changes; where the static memory loses to the delta rule.

Pure functions of numpy arrays, which broadcast against each other; noises are variances and
retentions plain factors in [0, 1], not logarithms. Derivations: docs/math.md section 6.
"""
