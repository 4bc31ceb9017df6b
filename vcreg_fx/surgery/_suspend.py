"""Set VCReg aside for a moment: every module gets its own class back, and then the new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..site import is_rewritten
from ._class import is_covered, original_class
from ._install import EDITS


@contextmanager
def suspended(model: nn.Module) -> Iterator[None]:
    """Let the model be as it was before `insert`, as far as nothing of its output depends on it.

    Modules whose activations are demeaned in eval mode too stay as they are, and so do those whose
    class was changed again since.
    """
    changed = []
    for module in model.modules():
        demeans = any(edit.demeans for edit in module.__dict__.get(EDITS, ()))
        if is_rewritten(module) and not is_covered(module) and not demeans:
            changed.append((module, type(module)))
    try:
        for module, _ in changed:
            object.__setattr__(module, "__class__", original_class(module))
        yield
    finally:
        for module, rewritten in changed:
            object.__setattr__(module, "__class__", rewritten)
