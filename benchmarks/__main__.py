"""`make perf`: every benchmark, one after the other."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from benchmarks import apgd, attacks, carso_samples, training

benchmarks = [carso_samples, training, apgd]
if find_spec("torchattacks") and find_spec("foolbox"):
    benchmarks.append(attacks)
else:
    print(f"benchmarks.attacks is left out: {attacks.EXTRA}")
sys.exit(max(benchmark.main([]) for benchmark in benchmarks))
