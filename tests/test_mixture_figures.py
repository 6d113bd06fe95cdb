"""The phase diagram draws the boundaries that theory gives, and its caption speaks of those alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from matplotlib.contour import ContourSet

from conftest import SMALL
from precede.report import mixture_figures as figures
from precede.settings.recipe import read_recipe

TEMPERATURES = [0.4, 0.7, 1.0]


def swept(betas: list[float], **world: Any) -> Any:
    """As much of the results of a β × τ × weight sweep as the diagram reads."""
    recipe = read_recipe({**SMALL, "world": {"kind": "mixture", **world}, "sweep": []})
    keys = ("align.method", *figures.PHASE_KEYS)
    settings = [
        dict(zip(keys, ("ppo", *point), strict=True)) for point in itertools.product(betas, TEMPERATURES, [0.02, 0.1])
    ]
    common = {
        "a": "align > distill",
        "b": "distill > align",
        "metric": "target_mass",
        "mean_difference": 0.1,
        "n_seeds": 4,
    }
    return {
        "recipe": recipe.resolved,
        "own": [settings[0]],
        "comparisons": [{**common, "settings": each} for each in settings],
    }


def drawn(figure: Any) -> set[str]:
    """Line styles of the contours on all panels."""
    found = set()
    for axis in figure.canvas.axes:
        for artist in axis.get_children():
            if isinstance(artist, ContourSet):
                (style,) = artist.get_linestyle()
                found.add("solid" if style[1] is None else "dashed")
    return found


@pytest.mark.parametrize(
    ("betas", "world", "boundaries"),
    [
        ([0.05, 0.2, 1.0], {}, {"solid", "dashed"}),
        ([0.5, 0.7, 1.0], {}, {"dashed"}),  # the price is too high for distill > align
        ([2.0, 3.0, 5.0], {}, set()),  # and for either order
        ([0.001, 0.05, 1.0], {"radius": 40.0}, set()),  # too many nodes
    ],
)
def test_caption_speaks_of_the_boundaries_that_are_drawn(
    betas: list[float], world: dict[str, Any], boundaries: set[str]
) -> None:
    figure = figures.phase(swept(betas, **world))
    assert figure is not None
    assert drawn(figure) == boundaries
    for style in ("solid", "dashed"):
        assert (style in figure.caption) == (style in boundaries)
    assert ("theory" in figure.caption.lower()) == bool(boundaries)
    assert figure.caption.startswith("72 pairs of pipelines.")


def test_masses_that_cannot_be_resolved_are_not_predicted() -> None:
    far, near = (swept([0.1], radius=radius)["recipe"]["world"] for radius in (40.0, 1.0))
    assert figures.predicted_masses(far, [0.001, 1.0], TEMPERATURES) is None
    assert figures.predicted_masses(near, [0.1, 1.0], TEMPERATURES) is not None
