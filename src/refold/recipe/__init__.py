"""Named compositions of parts, by family: a recipe names parts and its reference, and no more."""

from refold.recipe import basic as basic
from refold.recipe import filling as filling
from refold.recipe import restoring as restoring
from refold.recipe import sparse as sparse
from refold.recipe import variational as variational
from refold.recipe.base import RECIPES, Recipe, get, recipe, recipes

__all__ = ["RECIPES", "Recipe", "get", "recipe", "recipes"]
