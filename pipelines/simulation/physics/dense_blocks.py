"""Dense blocks of a factor in double precision: by LAPACK on a processor core, or by PyTorch on a GPU.

On a GPU a triangular system of one right-hand side would wait for one row after the other; the inverse of a factor,
made once, takes a product instead. What that loses is lost again in the corrections of the iterations around it.
"""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from pipelines.simulation.physics.iterations import SolverError, conjugate_gradients

if TYPE_CHECKING:
    import torch

Array = Any
"""Numbers where they are worked on: NumPy's or PyTorch's arrays, of float64."""

Operation = Callable[[Any], Any]
"""From numbers to as many numbers, where they are worked on."""

_LEAST_MOVE: Final = 1e-8
"""mm; iterations of two levels cost little, so they go on until no forces are left to balance afterwards."""

_UNWATCHED: Final = 50  # iterations on a device between two looks at what is left
_BLOCKING: Final = 4  # CU_CTX_SCHED_BLOCKING_SYNC
_TURNS: Final = 12
"""Iterations on a device, which isn't waited for in between: each leaves at most 0.17 of an error."""


class Factor(Protocol):
    """A lower triangular matrix L of a positive definite one, L L'."""

    def solve(self, right: Array) -> Array:
        """L⁻¹ times numbers, [n]."""
        ...

    def solve_transposed(self, right: Array) -> Array:
        """L'⁻¹ times numbers, [n]."""
        ...

    def carry(self, coupling: sp.csr_matrix) -> Carried:
        """L⁻¹ C', [n, m], of a coupling C, [m, n]."""
        ...


class Carried(Protocol):
    """What a level of nodes hands on to the one above, L⁻¹ C', [n, m]."""

    def times(self, numbers: Array) -> Array:
        """It times numbers of the level above, [m]."""
        ...

    def times_transposed(self, numbers: Array) -> Array:
        """Its transpose times numbers of the level, [n]."""
        ...

    def taken(self) -> Array:
        """Its transpose times itself, [m, m]: what the level above loses of its stiffness. Asked for once, at first."""
        ...


class Blocks(Protocol):
    """Where dense blocks lie and are worked on."""

    bytes_a_level: float
    """For each number of a level's matrix."""
    bytes_between: float
    """For each number of a matrix between two levels."""
    bytes_meanwhile: float
    """For each number of the largest level's matrix, while it is factored."""

    def array(self, numbers: NDArray[np.float64]) -> Array:
        """Numbers brought there."""
        ...

    def dense(self, matrix: sp.csr_matrix) -> Array:
        """A sparse matrix, brought there in full."""
        ...

    def host(self, numbers: Array) -> NDArray[np.float64]:
        """Numbers brought back."""
        ...

    def joined(self, parts: list[Array]) -> Array:
        """Parts one behind the other."""
        ...

    def sparse(self, matrix: sp.csr_matrix) -> Array:
        """A sparse matrix, brought there for products."""
        ...

    def iterate(self, apply: Operation, approximate: Operation, right: Array) -> Array:
        """Conjugate gradients for a matrix that its preconditioner is at most twice: to rounding, nearly.

        On a device it isn't checked whether they converge: the iterations around these do.

        Raises:
            SolverError: If they don't converge on a processor.
        """
        ...

    def factor(self, matrix: Array) -> Factor:
        """The factor of a positive definite matrix, which may be overwritten.

        Raises:
            SolverError: If it isn't positive definite.
        """
        ...


def _not_factored(error: object) -> SolverError:
    return SolverError(f"the stiffness can't be factored ({error})")


class _HostFactor:
    def __init__(self, lower: NDArray[np.float64]) -> None:
        self._lower = lower

    def solve(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(solve_triangular(self._lower, right, lower=True, check_finite=False))

    def solve_transposed(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(solve_triangular(self._lower, right, lower=True, trans=1, check_finite=False))

    def carry(self, coupling: sp.csr_matrix) -> Carried:
        whole = coupling.toarray().T
        return _HostCarried(solve_triangular(self._lower, whole, lower=True, overwrite_b=True, check_finite=False))


class _HostCarried:
    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self._matrix = matrix

    def times(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._matrix @ numbers

    def times_transposed(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._matrix.T @ numbers

    def taken(self) -> NDArray[np.float64]:
        return self._matrix.T @ self._matrix


class _HostBlocks:
    """Blocks in this machine's memory."""

    bytes_a_level, bytes_between, bytes_meanwhile = 8.0, 8.0, 0.0

    def array(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        return numbers

    def dense(self, matrix: sp.csr_matrix) -> NDArray[np.float64]:
        return np.asarray(matrix.toarray())

    def host(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        return numbers

    def joined(self, parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.concatenate(parts)

    def sparse(self, matrix: sp.csr_matrix) -> sp.csr_matrix:
        return matrix

    def iterate(self, apply: Operation, approximate: Operation, right: NDArray[np.float64]) -> NDArray[np.float64]:
        return conjugate_gradients(apply, approximate, right, 0.0, _LEAST_MOVE)

    def factor(self, matrix: NDArray[np.float64]) -> Factor:
        try:
            return _HostFactor(cholesky(matrix, lower=True, overwrite_a=True, check_finite=False))
        except LinAlgError as error:
            raise _not_factored(error) from error


class _TorchFactor:
    def __init__(self, lower: torch.Tensor) -> None:
        import torch

        unit = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        self._inverse = torch.linalg.solve_triangular(lower, unit, upper=False)

    def solve(self, right: torch.Tensor) -> Array:
        return self._inverse @ right

    def solve_transposed(self, right: torch.Tensor) -> Array:
        return self._inverse.T @ right

    def carry(self, coupling: sp.csr_matrix) -> Carried:
        return _TorchCarried(self._inverse, coupling)


class _TorchCarried:
    """Kept as its two factors: the inverse is there anyway, and the coupling is sparse."""

    def __init__(self, inverse: torch.Tensor, coupling: sp.csr_matrix) -> None:
        self._inverse = inverse
        self._up, self._down = (sparse_tensor(one, inverse.device) for one in (coupling, coupling.T.tocsr()))

    def times(self, numbers: torch.Tensor) -> Array:
        return self._inverse @ (self._down @ numbers)

    def times_transposed(self, numbers: torch.Tensor) -> Array:
        return self._up @ (self._inverse.T @ numbers)

    def taken(self) -> Array:
        whole = self._up @ self._inverse.T
        return whole @ whole.T


class _TorchBlocks:
    """Blocks on a device of PyTorch.

    Args:
        device: Its name, such as `cuda`.
    """

    bytes_a_level, bytes_between, bytes_meanwhile = 8.0, 0.0, 40.0

    def __init__(self, device: str) -> None:
        import torch

        self._device = torch.device(device)
        if self._device.type == "cuda":
            if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                _wait_without_spinning(self._device.index or 0)
            torch.cuda.empty_cache()  # what the build before kept goes to the other processes

    def array(self, numbers: NDArray[np.float64]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self._device)

    def dense(self, matrix: sp.csr_matrix) -> Array:
        return _dense_tensor(matrix, self._device)

    def host(self, numbers: torch.Tensor) -> NDArray[np.float64]:
        return np.asarray(numbers.cpu().numpy())

    def joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        import torch

        return torch.cat(parts)

    def sparse(self, matrix: sp.csr_matrix) -> torch.Tensor:
        return sparse_tensor(matrix, self._device)

    def iterate(self, apply: Operation, approximate: Operation, right: torch.Tensor) -> torch.Tensor:
        return iterate_on_device(apply, approximate, right, _TURNS)

    def factor(self, matrix: torch.Tensor) -> Factor:
        import torch

        lower, failed = torch.linalg.cholesky_ex(matrix)
        if row := int(failed):
            raise _not_factored(f"row {row} of {len(matrix)} leaves nothing positive")
        return _TorchFactor(lower)


def _wait_without_spinning(number: int) -> None:
    """Let a process that waits for its GPU leave the core to others; only before the GPU is used.

    Source: CUDA's driver API, cuDevicePrimaryCtxSetFlags with CU_CTX_SCHED_BLOCKING_SYNC. Without it all is as before.
    """
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuInit(0)
        driver.cuDevicePrimaryCtxSetFlags_v2(number, _BLOCKING)


def _dense_tensor(matrix: sp.csr_matrix, device: torch.device) -> torch.Tensor:
    """A sparse matrix in full; its numbers travel, not its zeros."""
    import torch

    entries = matrix.tocoo()
    whole = torch.zeros(matrix.shape, dtype=torch.float64, device=device)
    places = torch.from_numpy(entries.row.astype(np.int64) * matrix.shape[1] + entries.col).to(device)
    whole.view(-1).index_add_(0, places, torch.from_numpy(entries.data).to(device))
    return whole


def iterate_on_device(
    apply: Operation, approximate: Operation, right: torch.Tensor, turns: int, goal: torch.Tensor | None = None
) -> torch.Tensor:
    """Preconditioned conjugate gradients from zero, on a device that is seldom waited for.

    Args:
        apply: The product with the matrix.
        approximate: The preconditioner.
        right: Right-hand side, [n].
        turns: Iterations, at most.
        goal: Square of the norm of what may be left, looked at now and then; all iterations are made without one.
    """
    import torch

    moved, rest, direction = torch.zeros_like(right), right, torch.zeros_like(right)
    size = torch.ones((), dtype=right.dtype, device=right.device)
    for turn in range(turns):
        if goal is not None and turn % _UNWATCHED == 0 and not bool(rest @ rest > goal):
            break
        guess = approximate(rest)
        size, before = rest @ guess, size
        direction = guess + torch.nan_to_num(size / before, posinf=0.0) * direction
        pushed = apply(direction)
        step = torch.nan_to_num(size / (direction @ pushed), posinf=0.0)  # 0 / 0 where nothing is left
        moved, rest = moved + step * direction, rest - step * pushed
    return moved


def sparse_tensor(matrix: sp.csr_matrix, device: torch.device) -> torch.Tensor:
    """A sparse matrix on a device.

    Args:
        matrix: The matrix.
        device: The device.
    """
    import torch

    rows, columns, values = (torch.from_numpy(one).to(device) for one in (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():  # PyTorch calls its sparse matrices a beta version
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(rows, columns, values, size=matrix.shape)


HOST: Final[Blocks] = _HostBlocks()


def blocks_on(device: str) -> Blocks:
    """Where dense blocks are worked on.

    Args:
        device: `cpu` for this processor, else a device of PyTorch, such as `cuda`.
    """
    return HOST if device == "cpu" else _TorchBlocks(device)
