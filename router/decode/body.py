"""Bytes of JSON become typed bodies, or errors that say everything that is wrong with them.

The way of a good body is msgspec alone. Only a body that msgspec refuses is looked at again, at
leisure, to find all wrong fields instead of the first, and to name what strict JSON has no word for:
Python writes NaN and Infinity into JSON, and the answer to those is not "invalid character". And null in
an optional field, which clients send for what they leave out, is taken for just that.
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import msgspec

from router.query.errors import InvalidError, MalformedError, Problem, invalid

__all__ = ["Decoder", "decode_object"]

T = TypeVar("T", bound=msgspec.Struct)

# Diagnosis is many times slower than decoding; a client that sends more garbage gets the short form.
_DIAGNOSED_BYTES = 1 << 20
_MOST_CONSTANTS = 10
# No list of such objects may be longer than this by far.
_MOST_ELEMENTS = 100
_SURROGATE = "a \\u escape is half of a surrogate pair"


class Decoder(Generic[T]):
    """Decodes one type of body; `exact` makes decimals of numbers with a fraction in members of any type.

    Numbers of a filter may be for a column of decimals. One costs 0.1 µs more than a float, a vector nothing.
    """

    def __init__(self, type_: type[T], *, exact: bool = False) -> None:
        self._type = type_
        self._decoder = msgspec.json.Decoder(type_, float_hook=_decimal if exact else None)

    def decode(self, data: bytes | msgspec.Raw, path: str = "") -> T:
        """The body; `path` goes in front of the paths in errors.

        Raises:
            MalformedError: not JSON.
            InvalidError: JSON, but not of this type; with every wrong field.
        """
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as exc:
            reduced = _without_nulls(data, self._type)
            if reduced is not None:
                return self.decode(reduced, path)
            raise _invalid(bytes(data), self._type, exc, path) from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            _refuse(bytes(data), exc, path)


def decode_object(data: bytes, path: str, *, exact: bool = False) -> dict[str, object]:
    """Any JSON object; `exact` as of `Decoder`.

    Raises:
        MalformedError, InvalidError
    """
    try:
        return (_exact_objects if exact else _objects).decode(data)
    except msgspec.ValidationError as exc:
        raise _first(exc, path) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        _refuse(data, exc, path)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of more than 18 digits: beyond, or below, whatever any type holds
        return Decimal(str(float(text)).replace("inf", "1e999999999").replace("0.0", "1e-999999999"))


_NULL = msgspec.Raw(b"null")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_elements = msgspec.json.Decoder(list[msgspec.Raw])
_objects = msgspec.json.Decoder(dict[str, object])
_exact_objects = msgspec.json.Decoder(dict[str, object], float_hook=_decimal)


def _without_nulls(data: bytes | msgspec.Raw, type_: Any) -> bytes | None:
    """`data` without optional members that are null, at any depth that `type_` knows; None if it has none.

    What stays is the same byte for byte.
    """
    struct, element = _struct(type_), _element(type_)
    try:
        if struct is not None:
            members = _members.decode(data)
        elif element is not None:
            elements = _elements.decode(data)
        else:
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if struct is None:
        reduced = [_without_nulls(raw, element) for raw in elements]
        if not any(one is not None for one in reduced):
            return None
        kept = [raw if one is None else msgspec.Raw(one) for raw, one in zip(elements, reduced, strict=True)]
        return msgspec.json.encode(kept)
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    changed = False
    for name, raw in list(members.items()):
        field = fields.get(name)
        if field is None:
            continue
        if raw == _NULL:
            if not field.required:
                del members[name]
                changed = True
        elif (within := _without_nulls(raw, field.type)) is not None:
            members[name] = msgspec.Raw(within)
            changed = True
    return msgspec.json.encode(members) if changed else None


def _invalid(
    data: bytes, type_: type[msgspec.Struct], error: msgspec.ValidationError, path: str
) -> InvalidError:
    """All fields that are of the wrong type, unknown or missing.

    Raises:
        MalformedError: msgspec stopped at a wrong type, but what follows is not even JSON.
    """
    try:
        raw = msgspec.json.decode(data)
    except msgspec.ValidationError:
        return _first(error, path)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        _refuse(data, exc, path)
    problems = _problems(raw, type_, path) if isinstance(raw, dict) else []
    return invalid(problems) if problems else _first(error, path)


def _problems(value: object, type_: Any, path: str) -> list[Problem]:
    """What is wrong with `value`, at any depth that `type_` knows."""
    struct, element = _struct(type_), _element(type_)
    if struct is not None and isinstance(value, dict):
        return _member_problems(value, struct, path)
    if element is not None and isinstance(value, list):
        return [
            problem
            for i, one in enumerate(value[:_MOST_ELEMENTS])
            for problem in _problems(one, element, f"{path}[{i}]")
        ]
    try:
        msgspec.convert(value, _without_raw(type_))
    except msgspec.ValidationError as exc:
        if (choice := _choice(value, type_, path)) is not None:
            return [choice]
        problem = _problem(exc, path)
        if struct is not None:
            known = ", ".join(field.encode_name for field in msgspec.structs.fields(struct))
            problem = Problem(problem.path, f"{problem.message}; its fields are {known}")
        return [problem]
    return []


def _member_problems(value: dict[str, Any], struct: type[msgspec.Struct], path: str) -> list[Problem]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    problems = [
        Problem(_join(path, name[:80]), f"unknown field; known are {', '.join(fields)}")
        for name in value
        if name not in fields
    ]
    for name, field in fields.items():
        if name in value:
            problems += _problems(value[name], field.type, _join(path, name))
        elif field.required:
            problems.append(Problem(_join(path, name), "required, but missing"))
    return problems


def _choice(value: object, type_: Any, path: str) -> Problem | None:
    """For a field that takes one of a few strings, which these are: msgspec does not say."""
    type_ = _alone(type_)
    if get_origin(type_) is not Literal or not isinstance(value, str):
        return None
    return Problem(path, f"expected one of {', '.join(get_args(type_))}, got {value[:80]!r}")


def _alone(type_: Any) -> Any:
    """`X` of `X | UnsetType` and `X | None`, without its annotations."""
    while get_origin(type_) is Annotated:
        type_ = get_args(type_)[0]
    if get_origin(type_) not in (Union, UnionType):
        return type_
    others = [one for one in get_args(type_) if one not in (msgspec.UnsetType, NoneType)]
    return _alone(others[0]) if len(others) == 1 else type_


def _struct(type_: Any) -> type[msgspec.Struct] | None:
    type_ = _alone(type_)
    return type_ if isinstance(type_, type) and issubclass(type_, msgspec.Struct) else None


def _element(type_: Any) -> type[msgspec.Struct] | None:
    """Of a list of objects whose fields are known, what these are."""
    type_ = _alone(type_)
    return _struct(get_args(type_)[0]) if get_origin(type_) is list else None


def _without_raw(type_: Any) -> Any:
    # Members kept undecoded are checked when their turn comes; one by itself is a document's metadata.
    if type_ is msgspec.Raw:
        return dict[str, Any] | None
    if get_origin(type_) is Annotated and get_origin(get_args(type_)[0]) is dict:
        type_ = get_args(type_)[0]
    if get_origin(type_) is dict and get_args(type_)[1] is msgspec.Raw:
        return dict[str, Any]
    member = get_args(type_)[0] if get_origin(type_) is list else None
    if get_origin(member) is Annotated:
        member = get_args(member)[0]
    return list[Any] if member is msgspec.Raw else type_


def _first(error: msgspec.ValidationError, path: str) -> InvalidError:
    problem = _problem(error, path)
    return InvalidError.at(problem.path, problem.message)


def _problem(error: msgspec.ValidationError, path: str) -> Problem:
    """msgspec tells the place only at the end of its message; without one the path is merely coarser."""
    message, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`")
    return Problem((path + place).lstrip("."), message[:1].lower() + message[1:])


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refuse(data: bytes, error: Exception, path: str) -> NoReturn:
    """
    Raises:
        InvalidError: the only fault is a number that JSON has no word for.
        MalformedError: any other.
    """
    where = f"{path}: " if path else ""
    if isinstance(error, RecursionError):
        raise MalformedError(f"{where}malformed JSON: nested too deeply") from error
    if len(data) <= _DIAGNOSED_BYTES:
        constants, diagnosis = _diagnose(data)
        if constants:
            problems = [
                Problem(_join(path, p).replace(".[", "["), f"{word} is no number in JSON")
                for p, word in constants
            ]
            raise invalid(problems) from error
        raise MalformedError(f"{where}malformed JSON: {diagnosis}") from error
    raise MalformedError(f"{where}malformed JSON: {error}") from error


class _Word(str):
    """NaN, Infinity or -Infinity, where a number should be."""


def _diagnose(data: bytes) -> tuple[list[tuple[str, str]], str]:
    """Places of non-numbers if they are the only fault, or else the fault."""
    try:
        text = data.decode()
        tree = json.loads(text, parse_constant=_Word)
        json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # Apart from those words, Python's parser takes only one thing that msgspec does not.
        return [], _SURROGATE
    except UnicodeDecodeError as exc:
        return [], f"invalid UTF-8 at byte {exc.start}"
    except json.JSONDecodeError as exc:
        if not text.strip():
            return [], "the body is empty"
        return [], f"{exc.msg} at line {exc.lineno}, column {exc.colno}"
    except RecursionError:
        return [], "nested too deeply"
    except ValueError:
        return [], "a number has too many digits"
    # Without such words it was in a member that another of the same name has replaced.
    return _words(tree), _SURROGATE


def _words(tree: object) -> list[tuple[str, str]]:
    """Path and word of the first few; without recursion, since depth is the sender's choice."""
    found: list[tuple[str, str]] = []
    stack: list[tuple[str, object]] = [("", tree)]
    while stack and len(found) < _MOST_CONSTANTS:
        path, value = stack.pop()
        if isinstance(value, _Word):
            found.append((path, str(value)))
        elif isinstance(value, dict):
            stack.extend((_join(path, key[:80]), item) for key, item in reversed(value.items()))
        elif isinstance(value, list):
            stack.extend((f"{path}[{i}]", value[i]) for i in reversed(range(len(value))))
    return found
