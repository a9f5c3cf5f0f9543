"""Triton's interpreter without what it repeats in every call of a function by a kernel.

A launch replaces the functions of `triton.language` by those of the interpreter, and puts the compiler's back at its
end. Each call of another `triton.jit` function in between replaces them again, which takes a third of the time of our
kernels in the tests, and changes nothing: the wrappers that are there are no builtins, which alone are replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def _is_patched(function: Callable[..., Any]) -> bool:
    """Whether all that a function of kernels uses of the language has been replaced since the launch began."""
    seen = [language for language in (tl, tl.core) if any(v is language for v in function.__globals__.values())]
    # A launch patches the methods of tensors too, and puts them back; `tl.core` stays as the first call left it.
    looked_at = [tl.tensor.__add__, *(language.load for language in seen)]
    return bool(seen) and not any(tl.core.is_builtin(one) for one in looked_at)


def patch_the_language_once() -> None:
    """Let Triton's interpreter replace the language once a launch, and find NumPy's types faster."""
    patch, scope = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope is None:  # Another version of Triton: it runs as it is.
        return
    interpreter._patch_lang = lambda function: scope() if _is_patched(function) else patch(function)
