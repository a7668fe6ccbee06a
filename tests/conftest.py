import os

from hypothesis import settings

# Torch reads this when it is imported. Threads wait for each other after every operation: on cores that others use as well, two
# take several times as long as one. What sets the number of threads by itself, as a trial does, still does so.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run: what passes here passes everywhere. `pytest --hypothesis-profile=search` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=1000, deadline=None)
settings.load_profile("repeatable")
