"""What `make lock` puts into requirements.lock."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Gigabytes, which neither the demo nor the tests need.
UNLOCKED = {"models-torch"}


def test_every_other_extra_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    locked = re.search(r"^LOCKED := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert locked is not None and set(locked[1].split()) == extras - UNLOCKED
    lock = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert "torch" not in lock
    for extra in extras - UNLOCKED:
        for requirement in project["optional-dependencies"][extra]:
            name = re.match(r"[\w.-]+", requirement)
            assert name is not None and re.sub(r"[_.]", "-", name[0]).lower() in lock, requirement
