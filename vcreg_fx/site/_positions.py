"""Which positions of a site's tensor are no samples: padding, and class and register tokens.

A mask comes with the arguments of the model, and sites are passed somewhere inside. So the forward
of the model that VCReg was inserted into notes the masks of each of its calls, and a site asks for
those of the call that it is passed in.
"""

from __future__ import annotations

import inspect
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from placement_rules import Layout, leaves
from placement_rules._torch import graph_task, in_backward

from ._calling import outside_torch

MASKS = "vcreg_masks"  # the attribute of a model that lists what its calls note
# Masks whose meaning is fixed: whether what is not zero is padding, and what they are masks of.
KNOWN_MASKS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "attention_mask": (False, ("input_ids", "inputs_embeds", "input_values", "input_features")),
    "decoder_attention_mask": (False, ("decoder_input_ids", "decoder_inputs_embeds")),
    "src_key_padding_mask": (True, ("src",)),
    "tgt_key_padding_mask": (True, ("tgt",)),
}
_HINTS = ("padding_mask", "pad_mask")  # what other names of masks of padding end in
_calls = threading.local()  # those that are running in this thread


@dataclass(eq=False)
class Call:
    """The masks of one call of a model: name → the mask as it was given."""

    masks: Masks
    given: dict[str, Tensor]
    absent: dict[Any, Tensor | None] = field(default_factory=dict)
    task: int = -1  # the backward pass that has come to what the call returned


class Masks:
    """The masks that the calls of one model may be given, and the calls that are under way.

    **Attributes:**

    - `names`: the arguments that are masks → whether what is not zero is padding.
    - `asked`: what was asked for, where it was: a name or a function; None for ``"auto"``.
    - `batch_first`: whether the first axis of what is masked is certain to be the batch.
    """

    def __init__(
        self, model: nn.Module, asked: str | Callable[..., Any] | None, batch_first: bool
    ) -> None:
        self.parameters = tuple(inspect.signature(model.forward).parameters)
        self.asked = asked
        self.batch_first = batch_first
        self.names = _names(asked, self.parameters)
        self.uncertain: dict[str, list[str]] = {}
        self._start()

    def _start(self) -> None:
        self._told: set[str] = set()
        self._under_way: weakref.WeakSet[Call] = weakref.WeakSet()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to calls under way."""
        return {k: v for k, v in self.__dict__.items() if k not in {"_told", "_under_way", "_lock"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or loaded object."""
        self.__dict__.update(state)
        self._start()

    # The model's forward ---------------------------------------------------------------------

    def note(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Return a call with the masks among its arguments."""
        arguments = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        if callable(self.asked):
            mask = self.asked(arguments)
            given = {} if mask is None else {"mask": mask}
        else:
            given = {name: arguments[name] for name in self.names if _is_given(arguments, name)}
        for name, mask in given.items():
            self._check(name, mask)
        return Call(self, given)

    def keep(self, call: Call, output: Any) -> None:
        """Keep a call while its graph lives, which may run forward again, as checkpointing does."""
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            for _, leaf in leaves(output):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    self.look_back(call, leaf)

    def look_back(self, call: Call, tensor: Tensor) -> None:
        """Note which backward pass comes to a tensor that a call has computed."""

        def came_back(grad: Tensor) -> None:  # noqa: ARG001 (a hook's argument)
            call.task = graph_task()

        tensor.register_hook(came_back)
        with self._lock:
            self._under_way.add(call)

    def lacking(self, name: str, mask: Any) -> str | None:
        """Return why a mask cannot be one of samples; None where it can."""
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            what = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
            return (
                f"{name} is {what}; a mask of samples has one entry for each position of each "
                "example, (batch, length)"
            )
        known_to_multiply = self.asked is not None or self.batch_first or self.names[name]
        if mask.is_floating_point() and not known_to_multiply:
            return (
                f"{name} is {mask.dtype}, and may be added to the attention's scores, with zero at "
                "what is to be read, or be zero at padding"
            )
        return None

    def _check(self, name: str, mask: Any) -> None:
        if (reason := self.lacking(name, mask)) is not None:
            self.tell(name, reason)
        elif name in self.uncertain and not _all_kept(mask, self.names.get(name, False)):
            sites = self.uncertain[name]
            self.tell(
                name,
                f"{name} was given, and it is not certain which of its positions are which of "
                f"those of {', '.join(sites[:3])}{', …' if sites[3:] else ''} ({len(sites)} sites)",
            )

    def tell(self, key: str, reason: str) -> None:
        """Say that a mask cannot be followed: an error where it was asked for, else a warning."""
        if self.asked is not None:
            raise RuntimeError(
                f"VCReg was inserted with mask={self.asked!r}, but {reason}. Use a rule without "
                "such sites, or mask=None, with which every position counts as a sample."
            )
        if key not in self._told and not torch.compiler.is_compiling():
            self._told.add(key)
            warnings.warn(
                f"VCReg: {reason}. There, padded positions count as samples. To leave them out, "
                "insert with mask=, the name of the argument or a function that returns a mask of "
                "(batch, length); mask=None says that every position is to count.",
                stacklevel=outside_torch(),
            )

    # The sites ---------------------------------------------------------------------------------

    def call(self, name: str) -> Call | None:
        """Return the call that a site is passed in."""
        for call in reversed(getattr(_calls, "stack", ())):
            if call.masks is self:
                return call  # type: ignore[no-any-return]
        if in_backward():
            return self._recomputed(name)
        self.tell(
            "past",
            f"{name} was passed in train mode without a call of the model that VCReg was inserted "
            "into, whose arguments tell which positions are padding",
        )
        return None

    def _recomputed(self, name: str) -> Call | None:
        """Return the call whose backward pass runs forward again, as checkpointing does."""
        with self._lock:
            alive = list(self._under_way)
        found = [call for call in alive if call.task == graph_task()] or alive
        if not found:
            self.tell("past", f"{name} is computed again for a call that has left nothing behind")
            return None
        if not all(_same_masks(call, found[0]) for call in found):
            raise RuntimeError(
                f"{name} lies under activation checkpointing, and one backward pass runs through "
                f"{len(found)} forward passes with different masks, which cannot be told apart "
                "where they are computed again. Pass the examples in one batch, call backward for "
                "each, switch checkpointing off, or insert with mask=None."
            )
        return found[0]


def _same_masks(one: Call, other: Call) -> bool:
    return one is other or (
        one.given.keys() == other.given.keys()
        and all(torch.equal(mask, other.given[name]) for name, mask in one.given.items())
    )


@dataclass(eq=False)
class Positions:
    """Which positions of one site's tensor are samples.

    **Attributes:**

    - `name`, `layout`: of the site.
    - `skip`: how many leading positions are none, and `axis`, along which axis.
    - `masks`: the masks of the model; None where none is to be followed.
    - `axes`: name of a mask → the axes of the site's tensor that its two axes are, in this order,
      and whether the order is certain.
    """

    name: str
    layout: Layout
    skip: int = 0
    axis: int | None = None
    masks: Masks | None = None
    axes: dict[str, tuple[int, int, bool]] = field(default_factory=dict)

    def absent(self, h: Tensor) -> Tensor | None:
        """Return true where a position is no sample, of the shape of `h` without its channels."""
        call = self.masks.call(self.name) if self.masks is not None and self.axes else None
        given = [] if call is None else [name for name in self.axes if name in call.given]
        if call is None or not given:
            return self._skipped(h)
        if torch.compiler.is_compiling():
            return self._found(h, call, given)
        key = (*self.axes.items(), self.skip, self.axis, h.shape, h.device)
        if key not in call.absent:
            call.absent[key] = self._found(h, call, given)
        return call.absent[key]

    def _found(self, h: Tensor, call: Call, given: list[str]) -> Tensor | None:
        found = self._skipped(h)
        for name in given:
            if (masked := self._masked(h, name, call.given[name])) is not None:
                found = masked if found is None else found | masked
        return found

    def look_back(self, penalty: Tensor) -> None:
        """Note which backward pass comes to a penalty, before it comes to the model's output."""
        if self.masks is not None and self.axes and not in_backward():
            call = self.masks.call(self.name)
            if call is not None:
                self.masks.look_back(call, penalty)

    def _skipped(self, h: Tensor) -> Tensor | None:
        if not self.skip or self.axis is None:
            return None
        sizes = [h.shape[axis] for axis in self.layout.sample_axes]
        place = self.layout.sample_axes.index(self.axis)
        first = torch.arange(sizes[place], device=h.device) < self.skip
        return first.view([-1 if axis == place else 1 for axis in range(len(sizes))]).expand(sizes)

    def _masked(self, h: Tensor, name: str, mask: Tensor) -> Tensor | None:
        assert self.masks is not None
        if self.masks.lacking(name, mask) is not None:
            return None
        absent = mask != 0 if self.masks.names.get(name, False) else mask == 0
        one, other, certain = self.axes[name]
        batch, length = mask.shape
        fits = [
            order
            for order in ((one, other), (other, one))
            if h.shape[order[0]] == batch
            and (h.shape[order[1]] == length or h.shape[order[1]] == length + self._front(order[1]))
        ]
        if certain:
            fits = [order for order in fits if order == (one, other)]
        if len(fits) != 1:
            why = "as many examples as positions" if fits else "other sizes"
            self.masks.tell(
                f"{name} at {self.name}",
                f"{name} has shape {tuple(mask.shape)} and {self.name} {tuple(h.shape)}, {why}, so "
                "that it is not certain which axis of the site is which of the mask",
            )
            return None
        first, second = fits[0]
        lacking = h.shape[second] - length
        if lacking:  # tokens before those that are masked, which are skipped themselves
            absent = torch.cat([absent.new_ones(batch, lacking), absent], dim=1)
        return absent.to(h.device) if first < second else absent.to(h.device).T

    def _front(self, axis: int) -> int:
        return self.skip if axis == self.axis else 0


def run_noted(
    model: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a model's forward, in which sites find the masks among its arguments."""
    if any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values())):
        return forward(model, *args, **kwargs)  # it is traced
    stack = getattr(_calls, "stack", None)
    if stack is None:
        _calls.stack = stack = []
    calls = [masks.note(args, kwargs) for masks in model.__dict__[MASKS]]
    stack.extend(calls)
    try:
        output = forward(model, *args, **kwargs)
    finally:
        for _ in calls:
            stack.pop()
    for call in calls:
        call.masks.keep(call, output)
    return output


def _names(asked: Any, parameters: tuple[str, ...]) -> dict[str, bool]:
    """Return the arguments that are masks, and whether what is not zero in them is padding."""
    if callable(asked):
        return {"mask": False}
    if isinstance(asked, str):
        name = asked.removeprefix("~")
        return {name: asked != name} if name in parameters else {}
    return {
        name: KNOWN_MASKS[name][0] if name in KNOWN_MASKS else True
        for name in parameters
        if name in KNOWN_MASKS or name.endswith(_HINTS)
    }


def _is_given(arguments: Mapping[str, Any], name: str) -> bool:
    return arguments.get(name) is not None


def _all_kept(mask: Tensor, nonzero_is_padding: bool) -> bool:
    """Whether a mask masks nothing, where that can be seen without waiting for a device."""
    if torch.compiler.is_compiling() or mask.device.type != "cpu":
        return False
    return not bool((mask != 0).any()) if nonzero_is_padding else bool((mask != 0).all())
