"""Names of files for parts, whatever the parts are called: a name may come from someone else's manifest."""

from __future__ import annotations

import re


class FileNames:
    """Names for the files of one folder, no two alike, also where capitals don't count."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def name(self, part: str) -> str:
        """A name that stays in its folder: letters, digits, `_`, `.` and `-`, without a dot in front.

        >>> names = FileNames()
        >>> [names.name(part) for part in ("bracket", "bracket", "../../x", ".hidden", "")]
        ['bracket', 'bracket-2', '_.._x', '_hidden', 'part']

        Args:
            part: Name of a part; the same one twice gets a number the second time.
        """
        plain = re.sub(r"^\.+/?|[^\w.-]", "_", part) or "part"
        number, name = 1, plain
        while name.casefold() in self._taken:
            number += 1
            name = f"{plain}-{number}"
        self._taken.add(name.casefold())
        return name
