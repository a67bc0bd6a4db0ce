"""The `pgscatter` command's own commands, one in each file.

`bench` and `deploy` are top-level packages in a checkout only. Installed, they lie in `router/bundled`, so
that an application keeps these names for itself; `pgscatter cluster` and `pgscatter bench` look there.
"""

import os
import sys
from pathlib import Path

_BUNDLED = Path(__file__).parents[1] / "bundled"

# Before any command is imported. At the end of the path, so that an application's own `bench` or `deploy` is
# not hidden; in the environment as well, for child processes of the commands.
if _BUNDLED.is_dir() and str(_BUNDLED) not in sys.path:
    sys.path.append(str(_BUNDLED))
    _others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{_others}{os.pathsep}{_BUNDLED}" if _others else str(_BUNDLED)
