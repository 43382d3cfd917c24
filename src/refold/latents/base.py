"""What every latent is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from refold.errors import InputError
from refold.parts import Registry
from refold.types import Code
from refold.warmup import ramp


class Latent(nn.Module, ABC):
    """The bottleneck: turns a hidden state ``h`` ``[*, width]`` into a code ``z`` ``[*, size]``.

    The first argument is the size of the code, the keyword-only ones are its hyperparameters. The
    encoder ends in a linear map to :attr:`width` numbers, so a latent needs no layer of its own.
    """

    generative: ClassVar[bool] = False
    """Whether codes follow a known prior, so that :meth:`sample` can draw new ones. A row of which
    nothing is known is given a hidden state of zeros, which is a standard normal; where it is
    drawn, it is drawn from the prior itself."""
    rowwise: ClassVar[bool] = False
    """Whether a row's code follows from its own hidden state alone in training too. Of any other
    latent, processes that share a batch each make the codes of all its rows."""
    ordered: ClassVar[bool] = False
    """Whether any prefix of the code is a code of a smaller model."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Penalties that it does not learn without, which are added where nobody names them."""
    relaxed: bool = False
    """Whether evaluation relaxes the constraint of training. The loop then judges held-out rows
    with the constraint in place: the decoder was trained for no other codes."""
    progress: float = 1.0
    """Share of the training run that has passed; costs with a warm-up read it while training."""
    references: int = 0
    """How many learnt inputs the model shall encode beside every batch, for :meth:`meet`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"the latent size is {size}; it must be 1 or more")
        self.size = size

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers per code the encoder must give."""

    @abstractmethod
    def forward(self, h: Tensor) -> Code:
        """Code of a hidden state; random only in training."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Draw ``n`` codes ``[n, size]`` from the prior; an error where there is none."""

    def begin(self, h: Tensor, rows: int) -> None:
        """Start from the hidden states ``[n, width]`` of a sample of the ``rows`` of training.

        The base has nothing to start.
        """

    def meet(self, h: Tensor) -> None:
        """Take note of the hidden states ``[references, width]`` of the model's learnt inputs."""
        raise AssertionError

    def no_prior(self) -> InputError:
        """Build the error of a latent that cannot sample: it names those that can."""
        able = ", ".join(name for name in latents if latents[name].generative)
        return InputError(
            f"a model with the latent '{latents.spec(self).name}' cannot sample: its codes follow "
            f"no known distribution; fit with one of these latents: {able} (--recipe vae)"
        )


class Variational(Latent, ABC):
    """A latent whose code is drawn from a posterior :math:`q(z | h)` and has a prior :math:`p(z)`.

    In training the code is drawn, in evaluation it is :meth:`centre`. Held-out rows are judged by
    the bound of training, their codes drawn too, with one fixed seed.
    """

    generative: ClassVar[bool] = True
    relaxed: bool = True

    @abstractmethod
    def centre(self, h: Tensor) -> Tensor:
        """Code ``[B, D]`` that stands for the posterior: its mean."""

    @abstractmethod
    def draw(self, h: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Draw ``n`` codes a row, ``[n, B, D]``, and their log-densities ``[n, B]``, in nats."""

    @abstractmethod
    def log_prior(self, z: Tensor) -> Tensor:
        """Log-density of codes ``[*, D]`` under the prior, ``[*]``, in nats."""

    def grown(self, warmup: float) -> float:
        """Share of a cost that counts: in training it grows in, in evaluation it is 1."""
        return ramp(self.progress, warmup) if self.training else 1.0

    def check_beta(self, beta: float) -> float:
        """Return the factor of a divergence; raise :class:`InputError` for one below 0."""
        if not 0 <= beta < float("inf"):
            raise InputError(f"beta is {beta}; it must be 0 or more")
        return beta


@runtime_checkable
class Discrete(Protocol):
    """A latent whose code is made of entries of books, so that whole numbers say it.

    Its codes carry them in ``stats["indices"]`` ``[B, G + 1]``, with the size of the book last.
    """

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes ``[B, D]`` of whole numbers ``[B, G]``."""
        ...


latents: Registry[Latent] = Registry("latent")
register = latents.register
