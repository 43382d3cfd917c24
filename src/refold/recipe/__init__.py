"""Named compositions of parts, by family: a recipe names parts and its reference, and no more."""

# The order is that in which people are shown them.
# isort: off
from refold.recipe.base import RECIPES, Recipe, get, recipe, recipes
from refold.recipe import basic as basic
from refold.recipe import blocks as blocks
from refold.recipe import restoring as restoring
from refold.recipe import sparse as sparse
from refold.recipe import dictionary as dictionary
from refold.recipe import smooth as smooth
from refold.recipe import discrete as discrete
from refold.recipe import variational as variational
from refold.recipe import adversarial as adversarial
from refold.recipe import ladder as ladder
from refold.recipe import masked as masked
from refold.recipe import sequential as sequential
from refold.recipe import filling as filling
from refold.recipe import detecting as detecting

__all__ = ["RECIPES", "Recipe", "get", "recipe", "recipes"]
