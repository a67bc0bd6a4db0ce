"""The `pgscatter` command's own commands, one in each file.

`bench` and `deploy` are top-level packages in a checkout only. Installed, they lie in `router/bundled`, so
that an application keeps these names for itself; `pgscatter cluster` and `pgscatter bench` look there.
"""

import os
import sys
from pathlib import Path

_BUNDLED = Path(__file__).parents[1] / "bundled"

# Before the commands are imported, and last, so that nothing of the caller's is hidden. Their child
# processes are told by the environment.
if _BUNDLED.is_dir() and str(_BUNDLED) not in sys.path:
    sys.path.append(str(_BUNDLED))
    _others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{_others}{os.pathsep}{_BUNDLED}" if _others else str(_BUNDLED)
