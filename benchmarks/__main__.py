"""`make perf`: every benchmark, one after the other."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from benchmarks import apgd, attacks, carso_samples, training

sys.argv = sys.argv[:1]
carso_samples.main()
training.main()
apgd.main()
if find_spec("torchattacks") and find_spec("foolbox"):
    attacks.main()
else:
    print(f"benchmarks.attacks is left out: {attacks.EXTRA}")
