"""Which rights a role lacks, and the statements that grant them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.postgres.rights import PROGRESS, Held, Use, missing_rights
from router.postgres.sql import mapped_columns
from tests.unit.queries import collection

COLUMNS = tuple(mapped_columns(collection()))
TABLE = str(collection().table)


def held(*rights: str, progress: tuple[str, ...] = (), **changes: Any) -> Held:
    """What a role holds that has `rights` on the whole table, and `progress` on the tables of marks."""
    base = Held(
        role='"app user"',
        owner="boss",
        owns=False,
        analyzes=False,
        table=frozenset(rights),
        columns={name: frozenset(rights) for name in COLUMNS},
        schemas={"public": True, "pgscatter": True},
        progress=dict.fromkeys(PROGRESS, frozenset(progress)),
    )
    return msgspec.structs.replace(base, **changes)


@pytest.mark.parametrize(
    ("use", "rights", "lacks"),
    [
        (Use.READ, ("SELECT",), []),
        (Use.READ, (), ["GRANT SELECT ON {table} TO {role}"]),
        (Use.WRITE, ("SELECT", "INSERT", "UPDATE", "DELETE"), []),
        (
            Use.WRITE,
            ("SELECT",),
            [
                "GRANT INSERT ON {table} TO {role}",
                "GRANT UPDATE ON {table} TO {role}",
                "GRANT DELETE ON {table} TO {role}",
            ],
        ),
        (Use.BUILD, ("SELECT", "INSERT", "UPDATE", "DELETE"), ["GRANT boss TO {role}"]),
    ],
)
def test_what_is_missing_is_said_as_what_grants_it(
    use: Use, rights: tuple[str, ...], lacks: list[str]
) -> None:
    assert missing_rights(collection(), held(*rights), use) == [
        grant.format(table=TABLE, role='"app user"') for grant in lacks
    ]


def test_a_column_that_may_not_be_read_is_named() -> None:
    columns = {name: frozenset({"SELECT"}) for name in COLUMNS} | {"price": frozenset[str]()}
    assert missing_rights(collection(), held(columns=columns), Use.READ) == [
        f'GRANT SELECT (price) ON {TABLE} TO "app user"'
    ]


def test_a_load_needs_the_tables_of_its_marks_and_nobody_else_does() -> None:
    shut = {"public": True, "pgscatter": False}
    some = held("SELECT", "INSERT", "UPDATE", "DELETE", progress=("SELECT",), schemas=shut)
    assert missing_rights(collection(), some, Use.LOAD) == [
        'GRANT USAGE ON SCHEMA pgscatter TO "app user"',
        *(f'GRANT INSERT, UPDATE, DELETE ON {name} TO "app user"' for name in PROGRESS),
    ]
    assert missing_rights(collection(), some, Use.WRITE) == []


def test_a_load_reads_nothing_but_ids() -> None:
    columns = {name: frozenset({"INSERT"}) for name in COLUMNS}
    columns[collection().id.column] |= {"SELECT"}
    some = held(progress=("SELECT", "INSERT", "UPDATE", "DELETE"), columns=columns)
    assert missing_rights(collection(), some, Use.LOAD) == []


def test_a_schema_that_may_not_be_used_comes_first() -> None:
    shut = held("SELECT", schemas={"public": False, "pgscatter": False})
    assert missing_rights(collection(), shut, Use.READ) == ['GRANT USAGE ON SCHEMA public TO "app user"']


def test_a_sequence_is_needed_by_writes_that_leave_its_column_out() -> None:
    key = collection().id.column
    every = held("SELECT", "INSERT", "UPDATE", "DELETE", progress=("SELECT", "INSERT", "UPDATE", "DELETE"))
    some = msgspec.structs.replace(every, shut={key: "public.ids", "number": "public.n", "other": "public.n"})
    assert missing_rights(collection(), some, Use.READ) == []
    for use in (Use.WRITE, Use.LOAD):
        assert missing_rights(collection(), some, use) == ['GRANT USAGE ON SEQUENCE public.n TO "app user"']


def test_an_owner_lacks_nothing() -> None:
    every = ("SELECT", "INSERT", "UPDATE", "DELETE")
    for use in Use:
        assert missing_rights(collection(), held(*every, progress=every, owns=True), use) == []
