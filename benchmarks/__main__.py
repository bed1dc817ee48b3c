"""`make perf`: every benchmark, one after the other."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from benchmarks import apgd, attacks, carso_samples, layout, parts, training

sys.argv = sys.argv[:1]
carso_samples.main()
parts.main()
layout.main()
training.main()
apgd.main()
if find_spec("torchattacks") and find_spec("foolbox"):
    attacks.main()
else:
    print(
        "benchmarks.attacks needs the extra 'compare': .venv/bin/uv pip install torchattacks==3.5.1 foolbox==3.3.4, then robustbench again"
    )
