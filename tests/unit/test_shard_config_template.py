"""Templates of what is embedded of a document."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_config.template import TemplateField, parts


def test_a_template_is_texts_and_fields_in_their_order() -> None:
    assert parts('{title}\n{{x}} {content}{metadata.a."b.c"}.') == (
        TemplateField("title"),
        "\n{x} ",
        TemplateField("content"),
        TemplateField("metadata", ("a", "b.c")),
        ".",
    )


@given(st.lists(st.sampled_from(["{a}", "{metadata.b}", "{{", "}}", "x", "\n"]), max_size=12))
def test_what_is_no_field_is_kept_to_the_letter(pieces: list[str]) -> None:
    template = "{a}" + "".join(pieces)
    spelled = [
        part if isinstance(part, str) else f"<{'.'.join((part.name, *part.path))}>"
        for part in parts(template)
    ]
    plain = {"{{": "{", "}}": "}", "{a}": "<a>", "{metadata.b}": "<metadata.b>"}
    assert "".join(spelled) == "<a>" + "".join(plain.get(piece, piece) for piece in pieces)


@pytest.mark.parametrize("template", ["", "{", "}", "{a", "a}", "{a}}", "{{a}", "{a{b}}", "none"])
def test_a_brace_that_stands_alone_and_a_template_without_fields_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"brace|fields"):
        parts(template)
