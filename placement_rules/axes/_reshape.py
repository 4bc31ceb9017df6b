"""Which axes survive a reshape whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def reshape_links(new: Sequence[int], old: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield ``(new axis, old axis)`` for every axis that a reshape neither splits nor merges.

    Both shapes are cut into the smallest runs of axes with equal products; an axis survives if it
    is the only one in its run, axes of size one aside.

    **Arguments:**

    - `new`, `old`: the shapes, with equal numbers of elements.
    """
    here = [(axis, size) for axis, size in enumerate(new) if size != 1]
    there = [(axis, size) for axis, size in enumerate(old) if size != 1]
    while here and there:
        run_here, run_there = [here.pop(0)], [there.pop(0)]
        product_here, product_there = run_here[0][1], run_there[0][1]
        while product_here != product_there:
            if product_here < product_there and here:
                run_here.append(here.pop(0))
                product_here *= run_here[-1][1]
            elif there:
                run_there.append(there.pop(0))
                product_there *= run_there[-1][1]
            else:
                return
        if len(run_here) == len(run_there) == 1:
            yield run_here[0][0], run_there[0][0]
