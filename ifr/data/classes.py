"""Classes of models and data sets, matched by name."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ifr.errors import DatasetError

_BY_ORDER = "use the data set that the model was trained for, or set DATASETS.MATCH_CLASSES order to match by order"


@dataclass(frozen=True)
class Classes:
    """The classes that a detector or a data set distinguishes, by label."""

    names: tuple[str, ...]
    category_ids: tuple[int | None, ...]
    """Their ids in the data set's files; None for a class that the data set lacks."""

    def as_dict(self) -> dict[str, Any]:
        """Return the classes in the form that checkpoints hold."""
        return {"names": list(self.names), "category_ids": list(self.category_ids)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Classes":
        """Build the classes from the result of `as_dict`."""
        return cls(tuple(content["names"]), tuple(content["category_ids"]))

    def labels_in(self, others: "Classes") -> list[int | None]:
        """Return the label of every class among others; None if no class there has its name.

        Classes that share a name are matched by name and category id.
        """
        by_name = {name: label for label, name in enumerate(others.names)}
        by_both = {pair: label for label, pair in enumerate(zip(others.names, others.category_ids, strict=True))}
        shared = _repeated(self.names) | _repeated(others.names)
        return [
            by_both.get((name, identity)) if name in shared else by_name.get(name)
            for name, identity in zip(self.names, self.category_ids, strict=True)
        ]

    def numbered_like(self, model: "Classes", source: str) -> "Classes":
        """Return the classes of a data set in a model's order.

        Args:
            model: the model's classes.
            source: the name of the data set, for errors.

        Raises:
            DatasetError: the model lacks a class of the data set.
        """
        found = self.labels_in(model)
        unknown = [name for name, other in zip(self.distinct_names(), found, strict=True) if other is None]
        if unknown:
            own, theirs = ", ".join(map(str, self.names)), ", ".join(map(str, model.names))
            raise DatasetError(
                f"{source} has the classes {own}; the model was trained on {theirs}, without {', '.join(unknown)}",
                _BY_ORDER,
            )
        ids: list[int | None] = [None] * len(model.names)
        for identity, label in zip(self.category_ids, found, strict=True):
            if label is not None:
                ids[label] = identity
        return Classes(model.names, tuple(ids))

    def distinct_names(self) -> list[str]:
        """Return a unique name for every class; equal names get their category ids, such as `fish (id 2)`."""
        distinct = list(self.names)
        while repeated := _repeated(tuple(distinct)):
            distinct = [
                f"{name} (id {identity})" if name in repeated else name
                for name, identity in zip(distinct, self.category_ids, strict=True)
            ]
        return distinct


def _repeated(names: tuple[str, ...]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}
