"""Command lines from typed functions: options, help and YAML configuration come from signature and docstring.

On top of jsonargparse: list options take several values or commas (`--fields displacement temperature`), switches are
bare flags (`--archive`), and an error that the user can mend is one sentence on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from lpbf_data.console import prepare_streams, say
from lpbf_data.errors import LpbfError
from lpbf_data.extras import check_extra, script_of
from lpbf_data.option_errors import described_error

_SWITCHED: Final = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
"""Words after a switch, and what they mean."""

_SPINS: Final = "3000"  # turns of OpenMP's waiting loop before a thread sleeps


def _members(annotation: Any) -> tuple[Any, ...]:
    """The annotation itself, or the members of a union."""
    args = get_args(annotation)
    return args if args and get_origin(annotation) not in (list, tuple, dict) else (annotation,)


def _is_list(action: Any) -> bool:
    return any(get_origin(member) is list for member in _members(getattr(action, "_typehint", None)))


def _is_switch(action: Any) -> bool:
    return getattr(action, "_typehint", None) is bool


def _takes_float(action: Any) -> bool:
    hint = getattr(action, "_typehint", None) or action.type
    return float in (hint, *get_args(hint))


AddOptions = Callable[[ArgumentParser, Sequence[str]], None]
"""Adds the options of one parameter to a parser, knowing the whole command line."""


def make_parser(
    function: Callable[..., Any],
    command: str,
    positional: Sequence[str] = (),
    words: Sequence[str] = (),
    plain: Mapping[str, AddOptions] | None = None,
    configurations: Sequence[str] = (),
) -> ArgumentParser:
    """A parser for the parameters of a function.

    Args:
        function: Typed, with a Google-style docstring.
        command: How the user calls it, for the help.
        positional: Parameters that may be given first and without their names.
        words: The arguments that are going to be parsed.
        plain: Parameters whose options are added by a function, not derived from their type; the command gets their
            values as plain dictionaries.
        configurations: Names of the package's own configuration files, for the help.
    """
    # Resolved here: jsonargparse would resolve names of types by importing all that is imported for type checking.
    function.__annotations__ = get_type_hints(function)
    summary = (function.__doc__ or "").strip().partition("\n")[0]
    script = script_of(command)
    if script is not None:
        summary += f" The same as: {command}." if positional else f" Installed as {script} too."
    parser = ArgumentParser(prog=command, description=summary, exit_on_error=False, allow_abbrev=False)
    own = f", or from a configuration of this package: {', '.join(configurations)}" if configurations else ""
    parser.add_argument("--config", action="config", help=f"Read options that aren't given from a YAML file{own}.")
    parser.add_function_arguments(function, as_group=False, skip=set(plain or ()))
    for add_options in (plain or {}).values():
        add_options(parser, words)
    for action in parser._actions:
        if _is_list(action):
            action.metavar = f"{action.dest.rpartition('.')[2].upper()} ..."
            action.option_strings = [name for name in action.option_strings if not name.endswith("+")]
        elif _is_switch(action):
            action.metavar = "true|false" if action.default else ""  # what may follow it, and changes something
    if positional:
        _describe_positional(parser, script or command, positional)
    return parser


def _describe_positional(parser: ArgumentParser, command: str, positional: Sequence[str]) -> None:
    """Let usage and help show parameters that need no name first, and their options as another way to give them."""
    shown = []
    for name in positional:
        action = next(action for action in parser._actions if action.dest == name)
        shown.append(str(action.metavar or name.upper()))
        action.help = f"The {name.upper()} of the usage above, where --{name} is left out. {action.help}"
    parser.usage = f"{command} {' '.join(shown)} [options]"


Spellings = Mapping[str, Mapping[str, str]]
"""Parameter to other spellings of its values, in small letters, and what they stand for."""


def _expand(
    parser: ArgumentParser, words: Sequence[str], positional: Sequence[str] = (), spellings: Spellings | None = None
) -> list[str]:
    """The arguments as the parser takes them.

    `--list a b,c` becomes JSON, `--switch` becomes `--switch true`, `--switch no` becomes `--switch false`, `inf`
    becomes `.inf`, and arguments without a name get that of their positional parameter.
    """
    named = {name: action for action in parser._actions for name in action.option_strings}
    # The last positional parameter takes all bare words that are left where it is a list.
    most = len(words) if positional and _is_list(named[f"--{positional[-1]}"]) else len(positional)
    bare = 0
    while bare < min(len(words), most) and not words[bare].startswith("-"):
        bare += 1
    given = zip(positional, words[:bare], strict=False)
    rest = list(words[len(positional) : bare])
    words = [part for name, word in given for part in (f"--{name}", word)] + rest + list(words[bare:])
    expanded: list[str] = []
    queue = list(words)
    open_names = [name for name in positional[bare:] if not {f"--{name}"} & {word.partition("=")[0] for word in words}]
    while queue:
        word = queue.pop(0)
        expanded.append(word)
        name, equals, value = word.partition("=")
        action = named.get(name)
        if action is None:
            continue
        if _is_list(action):
            values = [value] if equals else []
            while not equals and queue and not queue[0].startswith("--"):
                values.append(queue.pop(0))
            expanded[-1] = name
            expanded.append(_as_json(values))
        elif _is_switch(action):
            said = value if equals else "true"
            is_bare = not equals and queue and not queue[0].startswith("-")
            if is_bare and (queue[0].lower() in _SWITCHED or not open_names):
                said = queue.pop(0)
            queue = _named_words(queue, open_names)  # in `--json part.stl` the word isn't the switch's
            expanded[-1:] = [name, _SWITCHED.get(said.lower(), said)]
        elif _takes_float(action) and (value if equals else "".join(queue[:1])).lower() == "inf":
            expanded[-1] = f"{name}=.inf"  # as YAML spells it, whose words these are parsed as
            del queue[: 0 if equals else 1]
        elif (known := (spellings or {}).get(action.dest)) and (equals or queue):
            given_value = value if equals else queue.pop(0)
            expanded[-1:] = [name, known.get(given_value.lower(), given_value)]
    return _configurations_first(expanded)


def _named_words(words: list[str], names: list[str]) -> list[str]:
    """Give the leading words without a name those of positional parameters; the last one takes what is left of them.

    >>> _named_words(["a.stl", "b.stl", "--json"], ["src"])
    ['--src', 'a.stl', 'b.stl', '--json']

    Args:
        words: The words, the first without a name.
        names: Positional parameters that have no value yet; those that get one are removed.
    """
    found: list[str] = []
    while names and words and not words[0].startswith("-"):
        found += [f"--{names.pop(0)}", words[0]]
        words = words[1:]
    return found + words


def _configurations_first(words: Sequence[str]) -> list[str]:
    """Put `--config` before all else: what a file says must not override an option that the user gave before it.

    >>> _configurations_first(["--steps", "6", "--config", "a.yaml", "--out", "x"])
    ['--config', 'a.yaml', '--steps', '6', '--out', 'x']
    """
    first: list[str] = []
    others: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--config":
            first += [word, *queue[:1]]
            del queue[:1]
        else:
            (first if word.startswith("--config=") else others).append(word)
    return [*first, *others]


def _as_json(values: Sequence[str]) -> str:
    if len(values) == 1 and values[0].lstrip().startswith("["):
        return values[0]
    # A comma separates values, but a path may hold one.
    parts = [part for v in values for part in ([v] if os.path.exists(v) else v.split(","))]
    return json.dumps([part for part in parts if part])


def _parse(parser: ArgumentParser, words: Sequence[str]) -> Any:
    """Parse, or end with status 2 and one sentence on what can't be understood."""
    try:
        return parser.parse_args(words)
    except argparse.ArgumentError as error:
        say(f"error: {described_error(parser, str(error))}")
        sys.exit(2)


def _let_threads_sleep() -> None:
    """Let waiting threads of OpenMP sleep soon; to be called before PyTorch loads OpenMP. What the user has set stays.

    By default GNU's OpenMP spins for billions of turns. On idle cores that is as fast; where another program used one
    of two cores, a forward pass of 2,000 points took 3.9 s with the default and 0.14 s with this setting.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def run(
    function: Callable[..., Any],
    command: str,
    words: Sequence[str] | None = None,
    *,
    positional: Sequence[str] = (),
    plain: Mapping[str, AddOptions] | None = None,
    configurations: Sequence[str] = (),
    spellings: Spellings | None = None,
) -> NoReturn:
    """Run a function as a command and exit.

    Status 0 is success, 1 an error, as one sentence on stderr (or what the function returns), 2 options that can't
    be understood, 130 an interrupt. Packages that the command needs and that aren't installed are an error before its
    options are looked at; its help needs none of them.

    Args:
        function: The command; it may return an exit status.
        command: How the user calls it.
        words: Arguments; those of the process by default.
        positional: Parameters that may be given first and without their names.
        plain: As for `make_parser`.
        configurations: As for `make_parser`.
        spellings: Parameter to other spellings of its values that the command line takes.
    """
    words = sys.argv[1:] if words is None else words
    prepare_streams()
    _let_threads_sleep()
    try:
        parser = make_parser(function, command, positional, words, plain, configurations)
        if not {"-h", "--help"} & set(words):
            check_extra(command)
        arguments = _parse(parser, _expand(parser, words, positional, spellings))
        dictionaries = {name: arguments.pop(name).as_dict() for name in plain or ()}
        arguments = parser.instantiate_classes(arguments)
        arguments.pop("config", None)
        status = function(**(vars(arguments) | dictionaries))
    except LpbfError as error:
        say(f"error: {error}")
        sys.exit(1)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        sys.exit(1)
    except OSError as error:
        # A full disk, a folder that can't be written: complete files stay, others lie under temporary names.
        say(f"error: {error}; mend that and run the same command again")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    sys.exit(status or 0)
