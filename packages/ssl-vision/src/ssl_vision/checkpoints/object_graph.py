"""The tree of objects in a checkpoint of TensorFlow 2, which says which tensor is whose attribute."""

from __future__ import annotations

from dataclasses import dataclass, field

from contrastive_core.errors import UserError
from ssl_vision.checkpoints.tensor_bundle import TensorBundle
from ssl_vision.checkpoints.wire import DamagedError, content, fields, number, text

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass
class Node:
    """An object: its attributes that are objects, and, for a variable, the name of its tensor in the checkpoint."""

    children: dict[str, int] = field(default_factory=dict)
    tensor: str | None = None


class ObjectGraph:
    """The objects of a checkpoint. A variable may be reached on several paths; its tensor is stored once.

    Raises:
        UserError: the checkpoint is damaged.
    """

    def __init__(self, bundle: TensorBundle) -> None:
        self.nodes: list[Node] = []
        try:
            for kind, value in fields(bundle.string(KEY)):
                if kind == 1:
                    self.nodes.append(_node(content(value)))
            if any(child >= len(self.nodes) for node in self.nodes for child in node.children.values()):
                raise DamagedError("an object has an attribute that is not there")
        except DamagedError as error:
            raise UserError(f"{bundle.prefix}: the tree of its objects is damaged: {error}. Fetch it again") from error

    def with_child(self, name: str) -> Node | None:
        """The first object with an attribute of that name."""
        return next((node for node in self.nodes if name in node.children), None)

    def child(self, node: Node, *path: str) -> Node | None:
        """The object at the end of a path of attributes."""
        for name in path:
            if name not in node.children:
                return None
            node = self.nodes[node.children[name]]
        return node

    def tensor(self, node: Node, *path: str) -> str | None:
        """Name in the checkpoint of the variable at the end of a path of attributes."""
        found = self.child(node, *path)
        return None if found is None else found.tensor


def _node(message: bytes) -> Node:
    node = Node()
    for kind, value in fields(message):
        if kind == 1:
            reference = dict(fields(content(value)))
            node.children[text(reference.get(2, b""))] = number(reference.get(1, 0))
        elif kind == 2:
            attribute = dict(fields(content(value)))
            if text(attribute.get(1, b"")) == "VARIABLE_VALUE":
                node.tensor = text(attribute.get(3, b""))
    return node
