"""What the documentation promises, and nothing that it forgets."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from router.decode.bodies import SearchBody
from router.http.errors import Refusal
from router.http.keys_file import parse
from router.http.metrics import Metrics
from router.http.problems import _KINDS
from router.query import filter as filters
from router.settings import Settings
from router.settings_docs import rewritten

DOCS = Path(__file__).parents[2] / "docs"
HTTP = (DOCS / "http.md").read_text()
SETTINGS = (DOCS / "settings.md").read_text()


def test_the_settings_are_documented_as_they_are() -> None:
    assert rewritten(SETTINGS) == SETTINGS, "run: make docs"
    assert re.findall(r"^\| `(\w+)` ", SETTINGS, re.MULTILINE) == list(Settings.__struct_fields__)


def test_the_row_of_a_new_setting_is_put_behind_that_of_the_one_before_it() -> None:
    without = re.sub(r"^\| `max_batch` .*\n", "", SETTINGS, flags=re.MULTILINE)
    assert without != SETTINGS and rewritten(without) == SETTINGS
    gone = SETTINGS.replace("| `max_batch` ", "| `max_gone` | 1 | a number | of no use |\n| `max_batch` ")
    assert gone != SETTINGS and rewritten(gone) == SETTINGS


async def test_every_route_is_documented_with_its_scope(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    routes = {
        (f"{method.upper()} {path}", operation.get("x-scope", "open"))
        for path, methods in paths.items()
        for method, operation in methods.items()
    }
    assert (
        set(re.findall(r"^\| `((?:GET|PUT|POST|PATCH|DELETE) [^`]+)` \| (\w+) \|", HTTP, re.MULTILINE))
        == routes
    )


def test_every_metric_is_documented_with_its_labels() -> None:
    documented: dict[str, list[str]] = {}
    for line in re.findall(r"^\| (`(?:pgscatter|process)_[^|]+)\| ([^|]*)\|", HTTP, re.MULTILINE):
        names, labels = line
        for name in re.findall(r"`(\w+)`", names):
            documented[name] = [label.strip() for label in labels.split(",") if label.strip()]
    metrics = {
        metric._name + ("_total" if metric._type == "counter" else ""): list(metric._labelnames)
        for metric in Metrics().registry._collector_to_names
        if hasattr(metric, "_labelnames")
    }
    # A quotient of two others, made when it is read.
    metrics["pgscatter_recall_at_k"] = ["collection"]
    assert documented == metrics


@pytest.mark.parametrize("name", SearchBody.__struct_fields__)
def test_every_field_of_a_search_is_documented(name: str) -> None:
    assert f"\n| `{name}` | " in HTTP


def test_every_operator_of_a_filter_is_documented() -> None:
    known = set(re.findall(r'"(\$\w+)"', Path(filters.__file__).read_text()))
    assert known and all(f"`{operator}`" in HTTP for operator in known)


def test_every_kind_of_problem_is_documented() -> None:
    kinds = [*_KINDS.values(), *(kind for name, kind in vars(Refusal).items() if name.isupper())]
    documented = set(re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", HTTP, re.MULTILINE))
    assert documented == {(str(kind.status), kind.slug) for kind in kinds}


def test_the_example_of_a_key_file_is_one() -> None:
    example = HTTP.split("```yaml\n")[1].split("```")[0]
    assert len(parse(example, {"APP_KEY": "a", "OPERATOR_KEY": "b"}, "example")) == 3
