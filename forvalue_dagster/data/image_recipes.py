"""Noise recipes for the images of a row (for responses, see `recipes.py`).

An image recipe is a pure function of a row's images, the images of another row (the donor) and
a random generator. To add one, write it here under the `image_recipe` decorator.
"""

from collections.abc import Callable

import numpy as np

from forvalue_dagster.data.recipes import InapplicableRecipeError

Images = list[bytes | None]
ImageRecipe = Callable[[Images, Images, np.random.Generator], Images]

IMAGE_RECIPES: dict[str, ImageRecipe] = {}
"""The registered recipes by name."""


def image_recipe(name: str) -> Callable[[ImageRecipe], ImageRecipe]:
    """Make a decorator that registers a recipe under a name."""

    def register(recipe: ImageRecipe) -> ImageRecipe:
        if name in IMAGE_RECIPES:
            raise ValueError(f"image recipe {name!r} is already registered")
        IMAGE_RECIPES[name] = recipe
        return recipe

    return register


@image_recipe("image_swap")
def image_swap(images: Images, donor: Images, rng: np.random.Generator) -> Images:
    """Replace the images by the donor's, as when files are mixed up.

    Args:
        images: images of the row.
        donor: as many images of another row.
        rng: Not used.

    Returns:
        The donor.

    Raises:
        InapplicableRecipeError: If the donor has no images, or the same ones.
    """
    if not donor or donor == images:
        raise InapplicableRecipeError("image_swap needs a donor with other images")
    return donor
