"""A token's KV as one vector, and its partition into groups.

The vector is the concatenation of planes, layer by layer, K before V; a plane is [heads,
head_dim]. A sub-vector is one head of one plane. A group is a set of whole sub-vectors that
are coded together; the groups of a partition cover every element exactly once.
"""

import dataclasses

import numpy as np


class LayoutError(ValueError):
    """A partition that the geometry does not allow."""


@dataclasses.dataclass(frozen=True)
class Plane:
    layer: int
    stream: str  # "K" or "V"
    heads: int
    head_dim: int
    begin: int  # of its first element in the token's vector

    @property
    def size(self):
        return self.heads * self.head_dim


@dataclasses.dataclass(frozen=True)
class SubVector:
    plane: int
    head: int
    begin: int
    dim: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Sub-vectors coded together, in the order of the token's vector."""

    layer_begin: int
    layer_end: int
    shard: int
    sub_vectors: tuple  # of indices into Layout.sub_vectors
    index: np.ndarray   # int64: the elements of the token's vector

    @property
    def size(self):
        return len(self.index)


class Layout:
    """The planes of a model: layers is a list of (heads, head_dim) or None (shared layers)."""

    def __init__(self, layers):
        self.layers = len(layers)
        self.planes, self.sub_vectors, begin = [], [], 0
        for i, layer in enumerate(layers):
            if layer is None:
                continue
            heads, dim = layer
            for stream in "KV":
                for h in range(heads):
                    self.sub_vectors.append(
                        SubVector(len(self.planes), h, begin + h * dim, dim))
                self.planes.append(Plane(i, stream, heads, dim, begin))
                begin += heads * dim
        self.elements = begin

    def partition(self, groups, tp=1):
        """The groups of `groups` ("head", "stream", "layer", "all" or a number of layers).

        With tp > 1 every plane's heads are cut into tp equal shards, and no group crosses
        one. Groups come in the order of their first element; shards outermost.
        """
        per = {"head": 0, "stream": 0, "layer": 1, "all": self.layers}.get(groups)
        if per is None:
            if not str(groups).isdigit() or int(groups) < 1:
                raise LayoutError(f"--groups {groups!r}: expected head, stream, layer, all or a "
                                  "number of layers")
            per = int(groups)
        for p in self.planes:
            if p.heads % tp:
                raise LayoutError(f"--tp {tp}: layer {p.layer} has {p.heads} kv heads, "
                                  f"which {tp} shards do not divide")
        members = {}
        for i, s in enumerate(self.sub_vectors):
            plane = self.planes[s.plane]
            shard = s.head * tp // plane.heads
            if groups == "head":
                key = (shard, i)
            elif groups == "stream":
                key = (shard, s.plane)
            else:
                key = (shard, plane.layer // per)
            members.setdefault(key, []).append(i)
        out = []
        for key in sorted(members):
            subs = members[key]
            layers = [self.planes[self.sub_vectors[i].plane].layer for i in subs]
            index = np.concatenate([
                np.arange(self.sub_vectors[i].begin,
                          self.sub_vectors[i].begin + self.sub_vectors[i].dim) for i in subs])
            out.append(Group(min(layers), max(layers) + 1, key[0], tuple(subs),
                             index.astype(np.int64)))
        return out


def blocks(layout, partitions):
    """Index sets to keep covariances of: each holds whole groups of every partition.

    Returns a list of int64 arrays. Where partitions do not nest, overlapping groups are
    joined.
    """
    owner = np.arange(len(layout.sub_vectors))
    for groups in partitions:
        for g in groups:
            subs = list(g.sub_vectors)
            owner[np.isin(owner, owner[subs])] = owner[subs].min()
    out = []
    for first in sorted(set(owner.tolist())):
        out.append(np.concatenate([
            np.arange(s.begin, s.begin + s.dim) for s, o in zip(layout.sub_vectors, owner)
            if o == first]).astype(np.int64))
    return out
