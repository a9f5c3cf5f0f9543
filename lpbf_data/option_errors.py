"""Errors in the options of a command line, each as one sentence."""

from __future__ import annotations

import difflib
import re
from argparse import ArgumentParser
from typing import Any, Final, Literal, get_args, get_origin

_ALL: Final = "--help lists all"
_WORDS: Final = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_EACH: Final = " each"
_LIKE: Final = 0.6
"""Least likeness, from 0 to 1, of a name that is worth proposing."""


def described_error(parser: ArgumentParser, message: str) -> str:
    """One sentence on what can't be understood, and what would be.

    Args:
        parser: Whose options they are.
        message: What argparse or jsonargparse says, on one line or several.
    """
    start, _, rest = message.partition(": ")
    if start.lower() == "unrecognized arguments":
        return _unknown(parser, rest.split())
    if start == "the following arguments are required":
        names = [_shown(f"--{name}") for name in rest.split(", ")]
        return f"{' and '.join(names)} must be given; {_ALL}"
    if missing := re.fullmatch(r"argument (--\S+): expected .*argument.*", message, re.DOTALL):
        return f"{_shown(missing[1])} needs a value; {_ALL}"
    if entry := re.fullmatch(r"Group '(\S+)' does not accept option '(\S+)'|Option '(\S+)' is not accepted", message):
        return _unknown_entry(parser, entry[3] or f"{entry[1]}.{entry[2]}")
    if key := re.match(r'Parser key "([^"]+)":\s*', message):
        return _wrong_value(parser, key[1], message[key.end() :])
    return " ".join(message.split())


def _shown(option: str) -> str:
    """An option in its short form; commands spell the long one out themselves."""
    return option.replace(".init_args.", ".")


def _unknown(parser: ArgumentParser, words: list[str]) -> str:
    for word in words:
        if word.startswith("-") and len(word) > 1:
            name = word.partition("=")[0]
            near = nearest_option(parser, name)
            proposal = f"did you mean {_shown(near)}? " if near else ""
            return f"unknown option {_shown(name)}; {proposal}{_ALL}"
    return f"{words[0]!r} belongs to no option; {_ALL}" if words else f"an argument belongs to no option; {_ALL}"


def _unknown_entry(parser: ArgumentParser, key: str) -> str:
    """As `_unknown`, for a configuration, in which no short forms are known."""
    near = nearest_option(parser, f"--{key}")
    proposal = f"did you mean {near.removeprefix('--')}? " if near else ""
    return f"unknown entry {key} in the configuration; {proposal}{_ALL}"


def nearest_option(parser: ArgumentParser, name: str) -> str | None:
    """The option whose name is most like another name; None where none is like it.

    Args:
        parser: Whose options they are.
        name: With its dashes, such as --recipe.lerning_rate.
    """
    known = [
        o
        for a in parser._actions
        for o in a.option_strings
        if o.startswith("--") and not o.endswith(("+", ".init_args"))
    ]

    def likeness(option: str) -> float:
        whole = difflib.SequenceMatcher(None, name.lstrip("-"), option.lstrip("-")).ratio()
        own, other = (text.lstrip("-").rpartition(".")[2] for text in (name, option))
        # Who leaves the group out, or names another one, means the option in it; the same group comes first.
        return max(whole, 0.9 * difflib.SequenceMatcher(None, own, other).ratio())

    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best) >= _LIKE else None


def _wrong_value(parser: ArgumentParser, key: str, problem: str) -> str:
    option = _shown(f"--{key}")
    unknown = re.search(r"(?:Key|Option) [\"']([\w.]+)[\"'] is not expected", problem)
    if unknown:
        return _unknown(parser, [f"--{key}.{unknown[1].removeprefix(f'{key}.')}"])
    given = re.search(r"(?:Got|Given) value: (.*)", problem, re.DOTALL)
    expected = next((_described(a._typehint) for a in parser._actions if a.dest == key and hasattr(a, "_typehint")), "")
    if given and expected:
        subject = f"each value of {option}" if expected.endswith(_EACH) else option
        return f"{subject} must be {expected.removesuffix(_EACH)}, not {given[1].strip()!r}"
    return f"{option}: {' '.join(problem.split())}"


def _described(annotation: Any) -> str:
    """What values a type takes, in words; empty where there are none for it."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is list:
        inner = _described(args[0]) if args else ""
        return f"{inner}{_EACH}" if inner else ""
    if origin is None or origin in (tuple, dict):
        return ""
    members = [_described(member) for member in args if member is not type(None)]
    return " or ".join(members) if all(members) else ""
