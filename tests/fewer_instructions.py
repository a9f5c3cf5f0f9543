"""Runs a command as on a processor with fewer instructions: `python -m tests.fewer_instructions avx2 command …`.

The first word is avx2 (no AVX-512) or default (no AVX at all). With `--if-fewer` before it, the command is run only on
a processor that has more instructions than these.

Every library chooses its instructions by itself, so each gets a variable of its own: PyTorch's operators, MKL for
PyTorch's matrix products, oneDNN, OpenBLAS below NumPy and SciPy, and NumPy. Which features NumPy can leave out
differs from version to version and machine to machine: it refuses those that it was compiled for, and warns of those
that it doesn't know. So NumPy is asked first, in a process of its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

# Begins of the names of NumPy's features: NumPy 2.4 has groups named after levels of x86-64, earlier ones features.
WIDE = {"avx2": ("AVX512", "X86_V4"), "default": ("AVX", "FMA", "F16C", "X86_V3", "X86_V4")}
LIBRARIES = {
    "avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
    "default": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem"},
}
ASK = "import numpy._core._multiarray_umath as m; print(*(f for f in m.__cpu_dispatch__ if m.__cpu_features__.get(f)))"


def narrowed(capability: str) -> dict[str, str]:
    """Variables that limit all libraries to AVX2 (avx2), or to instructions without AVX (default)."""
    asked = {name: value for name, value in os.environ.items() if name != "NPY_DISABLE_CPU_FEATURES"}
    known = subprocess.run([sys.executable, "-c", ASK], env=asked, check=True, capture_output=True, text=True).stdout
    wide = [feature for feature in known.split() if feature.startswith(WIDE[capability])]
    variables = {"ATEN_CPU_CAPABILITY": capability}
    if platform.machine().lower() in {"x86_64", "amd64"}:
        variables |= LIBRARIES[capability]
    return variables | ({"NPY_DISABLE_CPU_FEATURES": " ".join(wide)} if wide else {})


def has_more(capability: str) -> bool:
    """Whether PyTorch, and so the other libraries, would use more instructions than these on this machine."""
    asked = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    ask = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    found = subprocess.run([sys.executable, "-c", ask], env=asked, check=True, capture_output=True, text=True).stdout
    return found.strip().upper() not in {"DEFAULT", "NO AVX", *(["AVX2"] if capability == "avx2" else [])}


def main() -> int:
    """Run the command, with --if-fewer only if this machine has more instructions; its exit status."""
    words = sys.argv[1:]
    if only_if_fewer := words[:1] == ["--if-fewer"]:
        del words[0]
    if words[:1] not in [[name] for name in WIDE]:
        sys.exit(f"the first word must be one of {', '.join(WIDE)}")
    if only_if_fewer and not has_more(words[0]):
        print(f"this processor has no more instructions than {words[0]}: the command would only do the same again")
        return 0
    chosen = narrowed(words[0])
    print(*(f"{name}={value!r}" for name, value in chosen.items()), flush=True)
    return subprocess.run(words[1:], env=os.environ | chosen, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
