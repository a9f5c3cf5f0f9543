"""A property that is computed once, without a lock.

Before Python 3.12, functools.cached_property takes one lock for all instances of a class. A worker that is forked while
another thread holds that lock, such as one that reads ahead, would wait for it for ever.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from functools import cached_property
else:
    from collections.abc import Callable
    from typing import Any

    class cached_property:  # noqa: N801 (the name that it has in functools)
        """As functools.cached_property; two threads at once may both compute the value, and either is kept."""

        def __init__(self, function: Callable[[Any], Any]) -> None:
            self.function = function
            self.__doc__ = function.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            value = self.function(instance)
            instance.__dict__[self.name] = value
            return value


__all__ = ["cached_property"]
