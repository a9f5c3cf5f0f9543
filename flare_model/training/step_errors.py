"""Errors in a step of training or validation, with messages that name step, cases and model."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

from flare_model.data.batches import Batch
from lpbf_data.errors import LpbfError

_MAX_NAMED_CASES: Final = 4
"""Most cases of a step that a message names."""

IN_TRAINING: Final = (
    "lower --recipe.batch_size or --recipe.max_points, thin parts with --thin_to, leave large parts out of the data "
    "set, or train with --recipe.activation_checkpointing true and --recipe.step_graphs false"
)
"""Advice where a step of training doesn't fit into memory."""

_CONNECTION_LOST: Final = ("closed by peer", "connection reset by peer", "timed out waiting")
"""Words in gloo's errors about a process that ended or doesn't answer."""

_OWN_PATHS: Final = (str(Path(__file__).parent.parent), str(Path(torch.__file__).parent))


class StepFailedError(LpbfError):
    """A model raised an error in training or validation, or there was too little memory for it."""


class OtherProcessError(StepFailedError):
    """Another process of the run ended, so that this one can't continue."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, of a GPU or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def errors_with_cases(what: str, group: Sequence[Batch], model: str, advice: str = IN_TRAINING) -> Iterator[None]:
    """Raise errors of a model, and lack of memory, with the cases of the step; errors of this package stay as they are.

    Args:
        what: The work, such as "step 12 of the training".
        group: The batches of the step.
        model: Class path of the model.
        advice: Advice where there is too little memory.

    Raises:
        StepFailedError: In place of the error.
    """
    try:
        yield
    except LpbfError:
        raise
    except Exception as error:
        case_ids = [case_id for batch in group for case_id in batch.case_ids]
        points = sum(len(batch.points) for batch in group)
        raise step_error(error, what, case_ids, points, model, advice) from error


def step_error(
    error: BaseException, what: str, case_ids: Sequence[str], points: int, model: str, advice: str = IN_TRAINING
) -> StepFailedError:
    """The error to raise in place of one that isn't of this package.

    Args:
        error: The error.
        what: The work, such as "step 12 of the training".
        case_ids: The cases that it was done with.
        points: Their points together.
        model: Class path of the model.
        advice: Advice where there is too little memory.
    """
    named = ", ".join(case_ids[:_MAX_NAMED_CASES]) + (
        f" and {len(case_ids) - _MAX_NAMED_CASES} more" if len(case_ids) > _MAX_NAMED_CASES else ""
    )
    which = f"{'case' if len(case_ids) == 1 else 'cases'} {named} ({points:,} points)"
    if is_out_of_memory(error):
        return StepFailedError(f"{what} doesn't fit into memory, with {which}: {advice}")
    first_line = str(error).strip().partition("\n")[0]
    if is_of_another_process(error):
        return other_process_error(error, f"at {what}")
    raised = f"{type(error).__name__}{f': {first_line}' if first_line else ''}{_line_of_model(error)}"
    return StepFailedError(
        f"the model {model} raised {raised} in {what}, with {which}; mend the model, or leave the case out of the "
        "data set"
    )


def other_process_error(error: BaseException, when: str) -> OtherProcessError:
    """The error to raise in place of one that another process caused.

    Args:
        error: The error.
        when: The work of this process at that time, such as "at step 12 of the training".
    """
    first_line = str(error).strip().partition("\n")[0]
    return OtherProcessError(
        f"another process of the run ended, {when} of this one ({first_line}); it says why, unless it was killed"
    )


def is_of_another_process(error: BaseException) -> bool:
    """Whether an error comes from the end of another process; gloo and NCCL raise different types for it."""
    if torch.distributed.is_available() and isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _CONNECTION_LOST)


def _line_of_model(error: BaseException) -> str:
    """The innermost line of the traceback outside of this package and PyTorch."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith((*_OWN_PATHS, "<"))]
    return f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
