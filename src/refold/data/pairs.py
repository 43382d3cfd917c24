"""Any pair of transforms over any dataset: what the model is given, and what it is to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from refold.errors import InputError

Transform = Callable[[Any], Any]


@runtime_checkable
class Items(Protocol):
    """What a map-style dataset is: items by position, and how many there are."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return the item at a position."""
        ...

    def __len__(self) -> int:
        """Number of items."""
        ...


@final
class Pairs(Dataset[tuple[Any, ...]]):
    """A dataset of ``(input, target)``, both made from one item of another dataset.

    An item of ``dataset`` is ``x`` alone or a tuple ``(x, label, ...)``, as supervised datasets
    have it. ``input`` and ``target`` are functions of ``x`` (None: ``x`` as it is) that return a
    new value and leave ``x`` unchanged. Labels are ignored, or with ``keep_label`` follow as
    ``(input, target, label)``. Whatever is random in a transform is seeded by the caller, and with
    the workers of a data loader by its ``worker_init_fn`` or ``generator``.

    Raises :class:`InputError` for a dataset without length or positions, and for ``keep_label``
    where items have no label.

    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> digits = TensorDataset(torch.arange(6.0).view(3, 2), torch.tensor([7, 8, 9]))
    >>> pairs = Pairs(digits, input=lambda x: x / 10, keep_label=True)
    >>> for x, y, label in DataLoader(pairs, batch_size=3):
    ...     print(x[1], y[1], label)
    tensor([0.2000, 0.3000]) tensor([2., 3.]) tensor([7, 8, 9])
    """

    def __init__(
        self,
        dataset: Any,
        input: Transform | None = None,
        target: Transform | None = None,
        keep_label: bool = False,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Items):
            raise InputError(
                f"{type(dataset).__name__} has no items by position; give a dataset with "
                f"__getitem__ and __len__, or the list of its items"
            )
        for name, transform in (("input", input), ("target", target)):
            if transform is not None and not callable(transform):
                raise InputError(
                    f"the {name} transform is a {type(transform).__name__}; give a function of x"
                )
        self.dataset: Items = dataset
        self.input, self.target, self.keep_label = input, target, keep_label

    def __len__(self) -> int:
        """Items of the dataset."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return ``(input, target)``, or ``(input, target, label)``."""
        item = self.dataset[index]
        x = item[0] if isinstance(item, tuple | list) else item
        pair = (
            x if self.input is None else self.input(x),
            x if self.target is None else self.target(x),
        )
        if not self.keep_label:
            return pair
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise InputError(
                f"item {index} of the dataset has no label to keep; use keep_label=False"
            )
        return (*pair, item[1])


def stacked(dataset: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Go once through a dataset: its inputs ``[n, *shape]`` and targets ``[n, *shape]``.

    The items of :class:`Pairs` (or of a ``Subset`` or ``ConcatDataset`` of them) are inputs and
    targets; of any other dataset, whose items are ``x`` or ``(x, label)``, ``x`` is both, and one
    array is returned twice. Every transform is called once per item, so that what is random in it
    is drawn once and for all. Raises :class:`InputError` where the items cannot be one array.

    >>> inputs, targets = stacked(Pairs([1.0, 2.0], input=lambda x: [x, -x]))
    >>> inputs.tolist(), targets.tolist()
    ([[1.0, -1.0], [2.0, -2.0]], [1.0, 2.0])
    """
    paired = is_paired(dataset)
    items: Items = dataset if paired else Pairs(dataset)
    if len(items) == 0:
        raise InputError("the dataset has no items; give at least one")
    inputs: list[NDArray[Any]] = []
    targets: list[NDArray[Any]] = []
    for i in range(len(items)):
        one, other = items[i][:2]
        inputs.append(array_of(one, i, "input"))
        if paired:
            targets.append(array_of(other, i, "target"))
    x = joined(inputs, "input")
    return (x, joined(targets, "target")) if paired else (x, x)


def is_paired(dataset: Any) -> bool:
    """Whether items are pairs of input and target, also through torch's own wrappers."""
    match dataset:
        case Pairs():
            return True
        case Subset():
            return is_paired(dataset.dataset)
        case ConcatDataset():
            return all(map(is_paired, dataset.datasets))
        case _:
            return False


def array_of(value: Any, index: int, what: str) -> NDArray[Any]:
    """Turn a tensor, an array, a picture or a list into an array of numbers."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except ValueError as error:  # lists of differing lengths
        raise not_numbers(value, index, what) from error
    if array.dtype.kind not in "biuf":
        raise not_numbers(value, index, what)
    return array


def not_numbers(value: Any, index: int, what: str) -> InputError:
    """Build the error for an item that is no array of numbers."""
    return InputError(
        f"the {what} of item {index} is a {type(value).__name__}, which is no array of numbers; "
        f"give {what}= a function that returns a tensor or an array"
    )


def joined(arrays: Sequence[NDArray[Any]], what: str) -> NDArray[Any]:
    """Stack arrays of one shape; the first that differs is named."""
    shape = arrays[0].shape
    for i, array in enumerate(arrays):
        if array.shape != shape:
            raise InputError(
                f"the {what} of item {i} has shape {array.shape}, but that of item 0 has {shape}; "
                f"bring them to one size in the {what} transform"
            )
    return np.stack(arrays)
