"""Distributions that a code can be pulled to, by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from refold.errors import InputError
from refold.parts import PartSpec, Registry


class Prior(ABC):
    """A distribution of codes; the first argument is their size, all draws are torch's own."""

    def __init__(self, size: int) -> None:
        self.size = size

    @abstractmethod
    def draw(self, n: int) -> Tensor:
        """Draw ``n`` codes ``[n, D]``."""


class Labelled(Prior, ABC):
    """A distribution that falls into parts, one for each class."""

    @abstractmethod
    def check(self, classes: int) -> None:
        """Raise :class:`InputError` where it has no such number of parts."""

    @abstractmethod
    def given(self, labels: Tensor, classes: int) -> Tensor:
        """Draw a code for each of ``labels`` ``[n]``, from 0 to below ``classes``: ``[n, D]``."""


priors: Registry[Prior] = Registry("prior")
register = priors.register


def prior(text: str, size: int) -> Prior:
    """Read a prior of codes of a ``size``.

    >>> prior("mixture(components=3)", 2).draw(5).shape
    torch.Size([5, 2])
    """
    return priors.build(PartSpec.parse(text), size)


@final
@register("normal")
class Normal(Prior):
    """Independent standard normal entries.

    >>> Normal(3).draw(2).shape
    torch.Size([2, 3])
    """

    def draw(self, n: int) -> Tensor:
        """Draw from the standard normal."""
        return torch.randn(n, self.size)


@final
@register("uniform")
class Uniform(Prior):
    r"""Independent entries, each uniform between :math:`-b` and :math:`b`, the ``bound``.

    >>> bool(Uniform(3, bound=0.5).draw(100).abs().max() < 0.5)
    True
    """

    def __init__(self, size: int, *, bound: float = 1.0) -> None:
        super().__init__(size)
        if not 0 < bound < math.inf:
            raise InputError(f"the bound of the uniform prior is {bound}; it must be above 0")
        self.bound = bound

    def draw(self, n: int) -> Tensor:
        """Draw from the cube."""
        return (2.0 * torch.rand(n, self.size) - 1.0) * self.bound


@final
@register("categorical")
class Categorical(Labelled):
    """One entry is 1 and the others 0, each as often: a class. The code is then a softmax.

    >>> Categorical(3).given(torch.tensor([2]), 3)
    tensor([[0., 0., 1.]])
    """

    def draw(self, n: int) -> Tensor:
        """Draw a class for each code."""
        return self.given(torch.randint(self.size, (n,)), self.size)

    def check(self, classes: int) -> None:
        """An entry for each class."""
        if classes != self.size:
            raise InputError(
                f"a categorical prior of {self.size} entries cannot be told apart by {classes} "
                f"classes; give the code as many entries"
            )

    def given(self, labels: Tensor, classes: int) -> Tensor:
        """Return the indicators of the labels."""
        return F.one_hot(labels, self.size).float()


@final
@register("mixture")
class Mixture(Labelled):
    r"""Normals on a ring, each as likely; the i-th belongs to class i.

    .. math:: (z_1, z_2) = (\rho + \sigma_a\, \epsilon_1)\, u_i + \sigma_c\, \epsilon_2\, u_i^\perp,
              \qquad u_i = (\cos \tfrac{2 \pi i}{K}, \sin \tfrac{2 \pi i}{K})

    ``components`` :math:`K`; ``radius`` :math:`\rho`; deviations ``along`` :math:`\sigma_a` the
    direction from the middle and ``across`` :math:`\sigma_c` it. The ring lies in the plane of the
    first two entries; all others are standard normal, the same for every class. Raises
    :class:`InputError` for codes of one entry.

    Source: Makhzani et al. 2015 (arXiv:1511.05644), figure 4, there for two entries.

    >>> Mixture(3, along=0.0, across=0.0).draw(5)[:, :2].norm(dim=1).round(decimals=3)
    tensor([2., 2., 2., 2., 2.])
    """

    def __init__(
        self,
        size: int,
        *,
        components: int = 10,
        radius: float = 2.0,
        along: float = 0.5,
        across: float = 0.15,
    ) -> None:
        super().__init__(size)
        check_plane("mixture", size)
        if components < 1:
            raise InputError(f"the mixture has {components} components; it needs 1 or more")
        for name, value in (("radius", radius), ("along", along), ("across", across)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}; it must be 0 or more, and finite")
        self.components, self.radius, self.along, self.across = components, radius, along, across

    def draw(self, n: int) -> Tensor:
        """Draw a component for each code, and the code from it."""
        return self.given(torch.randint(self.components, (n,)), self.components)

    def check(self, classes: int) -> None:
        """A component for each class."""
        if classes != self.components:
            raise InputError(
                f"a mixture of {self.components} components cannot be told apart by {classes} "
                f"classes; use prior='mixture(components={classes})'"
            )

    def given(self, labels: Tensor, classes: int) -> Tensor:
        """Draw from the components that the labels say."""
        z = torch.randn(len(labels), self.size)
        angle = labels * (2.0 * math.pi / self.components)
        far, beside = self.radius + self.along * z[:, 0], self.across * z[:, 1]
        cos, sin = angle.cos(), angle.sin()
        z[:, :2] = torch.stack([far * cos - beside * sin, far * sin + beside * cos], dim=1)
        return z


@final
@register("swiss_roll")
class SwissRoll(Labelled):
    r"""A spiral from the middle outwards; its i-th segment belongs to class i.

    .. math:: (z_1, z_2) = \rho \sqrt t\, (\cos \theta, \sin \theta) + \sigma \epsilon, \qquad
              \theta = 2 \pi w \sqrt t, \quad t \sim U(0, 1)

    ``turns`` :math:`w`, ``radius`` :math:`\rho`, ``noise`` :math:`\sigma`. The root makes all of
    its length nearly as likely. Class i of K has :math:`t` in :math:`[i / K, (i + 1) / K]`. The
    roll lies in the plane of the first two entries; all others are standard normal. Raises
    :class:`InputError` for codes of one entry.

    Source: Makhzani et al. 2015 (arXiv:1511.05644), figure 4.

    >>> bool(SwissRoll(2).draw(100).norm(dim=1).max() <= 3.0)
    True
    """

    def __init__(
        self, size: int, *, turns: float = 2.0, radius: float = 3.0, noise: float = 0.0
    ) -> None:
        super().__init__(size)
        check_plane("swiss_roll", size)
        for name, value in (("turns", turns), ("radius", radius), ("noise", noise)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}; it must be 0 or more, and finite")
        self.turns, self.radius, self.noise = turns, radius, noise

    def draw(self, n: int) -> Tensor:
        """Draw from the whole roll."""
        return self.given(torch.zeros(n, dtype=torch.long), 1)

    def check(self, classes: int) -> None:
        """Any number of segments."""

    def given(self, labels: Tensor, classes: int) -> Tensor:
        """Draw from the segments that the labels say."""
        z = torch.randn(len(labels), self.size)
        root = ((labels + torch.rand(len(labels))) / classes).sqrt()
        angle = root * (2.0 * math.pi * self.turns)
        curve = torch.stack([angle.cos(), angle.sin()], dim=1) * (self.radius * root[:, None])
        z[:, :2] = curve + self.noise * z[:, :2]
        return z


def check_plane(name: str, size: int) -> None:
    """Refuse codes of one entry."""
    if size < 2:
        raise InputError(
            f"the prior '{name}' lies in a plane, and the code has {size} entry of its own; give "
            f"it 2 or more"
        )
