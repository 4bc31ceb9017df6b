"""Which positions of each planned site are samples, as far as that is certain of the model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from placement_rules import Places, Recording, Site, arguments_of, places_of

from .._errors import InsertionError
from ..gradient import VCRegConfig
from ..site import KNOWN_MASKS, Masks, Positions


def positions_of(
    model: nn.Module, recording: Recording, sites: Iterable[Site], config: VCRegConfig
) -> dict[str, Positions]:
    """Return which positions are samples at each site where not all of them are, or may be.

    **Raises:** `InsertionError` if `mask` or `skip_tokens` asks for what a site has not.
    """
    masks = _masks(model, config)
    if masks is None and not config.skip_tokens:
        return {}
    found = {}
    for site in sites:
        places = places_of(recording, site.nodes, site.layout)
        positions = Positions(site.name, site.layout, masks=masks)
        if config.skip_tokens:
            positions.skip, positions.axis = config.skip_tokens, _token_axis(site, places)
        if masks is not None:
            _follow(masks, recording, site, places, positions)
        if masks is not None or positions.axis is not None:
            found[site.name] = positions
    return found


def followed(model: nn.Module, recording: Recording, sites: Iterable[Site]) -> dict[str, list[str]]:
    """Return, by the name of each mask among the model's arguments, the sites that follow it."""
    found: dict[str, list[str]] = {}
    for name, positions in positions_of(model, recording, sites, VCRegConfig()).items():
        for mask in positions.axes:
            found.setdefault(mask, []).append(name)
    return found


def _masks(model: nn.Module, config: VCRegConfig) -> Masks | None:
    if config.mask is None:
        return None
    asked = None if config.mask == "auto" else config.mask_function or config.mask
    transformers = hasattr(getattr(model, "config", None), "model_type")
    masks = Masks(model, asked, transformers)
    if asked is None and not masks.names:
        return None
    if isinstance(asked, str) and not masks.names:
        raise InsertionError(
            f"mask={asked!r}: the model's forward has no argument {asked.removeprefix('~')}. It "
            f"has: {', '.join(masks.parameters)}."
        )
    return masks


def _follow(
    masks: Masks, recording: Recording, site: Site, places: Places, positions: Positions
) -> None:
    """Work out which axes of a site are those of each mask."""
    if site.layout.ndim == 2 and _has_examples(places):
        return  # one row an example: no positions
    for name in masks.names:
        axes = _asked_axes(site, places) if masks.asked is not None else None
        if masks.asked is None:
            axes = _known_axes(name, recording, places, masks)
            of_another = _is_of_another(name, places, masks.parameters)
            if of_another and axes is None:
                continue
            axes = None if of_another else axes  # one tensor is given as both arguments
        if axes is not None:
            positions.axes[name] = axes
        elif masks.asked is not None:
            raise InsertionError(
                f"mask={masks.asked!r}: {site.name} has shape {site.shape}; it is not certain that "
                "it has one axis of examples and one of positions beside its channels. Use a rule "
                "without it, or mask=None."
            )
        else:
            masks.uncertain.setdefault(name, []).append(site.name)


def _known_axes(
    name: str, recording: Recording, places: Places, masks: Masks
) -> tuple[int, int, bool] | None:
    """Return the axes of a site that are those of a mask, by what the mask is known to be of."""
    if name not in KNOWN_MASKS:  # what is not zero in it may be padding, or what is not
        return None
    given = [key for key in KNOWN_MASKS[name][1] if key in places.arguments]
    if not any(key in masks.parameters for key in KNOWN_MASKS[name][1]):
        others = [key for key in places.arguments if not key.endswith("mask")]
        given = others if len(others) == 1 else []
    if len(given) != 1:
        return None
    one, other = places.arguments[given[0]]
    if one is None or other is None:
        return None
    order = _order(name, given[0], recording)
    if order is False:
        one, other = other, one
    return one, other, masks.batch_first or order is not None


def _order(name: str, argument: str, recording: Recording) -> bool | None:
    """Return whether an argument's axes are in the order of its mask's, if the example shows it."""
    examples = arguments_of(recording)
    if name not in examples:
        return None
    mask, of = (tuple(examples[key].meta["val"].shape[:2]) for key in (name, argument))
    if mask[0] == mask[-1] or mask not in {of, of[::-1]}:
        return None
    return mask == of


def _is_of_another(name: str, places: Places, parameters: tuple[str, ...]) -> bool:
    """Whether a site has the positions of an argument that has a mask of its own."""
    return any(
        key != name and key in parameters and None not in places.arguments.get(argument, (None,))
        for key, (_, arguments) in KNOWN_MASKS.items()
        for argument in arguments
    )


def _has_examples(places: Places) -> bool:
    """Whether an axis of a site is the first of an argument, which holds the examples."""
    return any(first is not None for first, _ in places.arguments.values())


def _asked_axes(site: Site, places: Places) -> tuple[int, int, bool] | None:
    if site.layout.ndim != 3:
        return None
    one, other = site.layout.sample_axes
    if len(places.tokens) == 1:
        (length,) = places.tokens
        return (other, one, True) if length == one else (one, other, True)
    return one, other, False


def _token_axis(site: Site, places: Places) -> int | None:
    """Return the axis along which tokens lead; None where a site has one row an example.

    **Raises:** `InsertionError` if neither is certain.
    """
    if site.layout.ndim == 2 and _has_examples(places):
        return None
    if site.layout.ndim == 3 and len(places.tokens) == 1:
        return places.tokens[0]
    raise InsertionError(
        f"skip_tokens: {site.name} has shape {site.shape or 'unknown'}, and the recording does not "
        "show along which of its axes a parameter was put before other positions, as class and "
        "register tokens are. Use a rule without it, or mask=, a function that returns a mask of "
        "(batch, length)."
    )
