"""Reads and writes a profile (codec/profile/FORMAT.md, codec/fklt/FORMAT.md)."""

import dataclasses
import json
import os

import numpy as np
import safetensors
import safetensors.numpy
import torch

from tools.calibrate import fit, layout as layout_lib, tables

PRESETS = ("near_lossless", "balanced", "compact")
VERSION = 0


class ProfileError(ValueError):
    """A file that is no profile of this version, or a result that the format cannot hold."""


@dataclasses.dataclass
class Profile:
    """Everything in the file. Lists `groups`, `transforms`, `coefficients` run in step."""

    layout: layout_lib.Layout
    groups: list
    transforms: list       # fit.Transform
    coefficients: list     # float32 [1 + 2m], sensitivity
    tables: list           # tables.TableSet, 1 to 4
    steps: list            # step exponents of PRESETS
    kappa: list            # of PRESETS
    certificates: np.ndarray  # float32 [groups, 4]
    preset_table_set: list
    step_map: np.ndarray   # float32 [n, 3]
    l_scale_log2: int
    metadata: dict         # str -> str
    rounding: float = 0.5

    def to(self, device):
        for t in self.transforms:
            t.mu, t.L, t.U, t.sigma16 = (v.to(device) for v in (t.mu, t.L, t.U, t.sigma16))
        self.coefficients = [c.to(device) for c in self.coefficients]
        return self


def geometry_json(config):
    """The geometry of tools.models' config, as codec/profile/FORMAT.md writes it."""
    return json.dumps(config.geometry(), separators=(",", ":"))


def tensors_of(p):
    """The file's tensors, name -> numpy array."""
    i32 = lambda *v: np.asarray(v, np.int32)
    out = {
        "fklt.version": i32(VERSION),
        "fklt.groups": i32(len(p.groups)),
        "fklt.steps": i32(*p.steps),
        "fklt.kappa": np.asarray(p.kappa, np.float32),
        "fklt.active_threshold": i32(-21),
        "fklt.sinks": i32(fit.SINKS),
        "fklt.rounding": np.asarray([p.rounding], np.float32),
        "fklt.l_scale_log2": i32(p.l_scale_log2),
        "fklt.table_sets": i32(len(p.tables)),
        "fklt.preset_table_set": i32(*p.preset_table_set),
        "fklt.step_map": np.asarray(p.step_map, np.float32).reshape(-1, 3),
    }
    for s, t in enumerate(p.tables):
        out[f"fklt.tables.{s}.shape"] = t.shape.astype(np.int16)
        out[f"fklt.tables.{s}.freq"] = np.concatenate(t.freq).astype(np.int16)
        out[f"fklt.tables.{s}.centroids"] = t.centroids.astype(np.float32)
    stream = {"K": 1, "V": 2}
    for n, (g, t, c) in enumerate(zip(p.groups, p.transforms, p.coefficients)):
        subs = [p.layout.sub_vectors[i] for i in g.sub_vectors]
        planes = [p.layout.planes[s.plane] for s in subs]
        out[f"group.{n}.members"] = np.asarray(
            [(q.layer, stream[q.stream], s.head) for q, s in zip(planes, subs)], np.int32)
        out[f"group.{n}.mu"] = t.mu.cpu().numpy().astype(np.float32)
        rows, columns = np.tril_indices(t.L.shape[1])
        low = (t.L.cpu().double().numpy() * 2.0 ** -p.l_scale_log2)[:, rows, columns]
        out[f"group.{n}.L"] = low.astype(np.float16).reshape(-1)
        out[f"group.{n}.U"] = t.U.cpu().numpy()
        out[f"group.{n}.sigma"] = t.sigma16.cpu().numpy().astype(np.int16)
        out[f"group.{n}.sensitivity"] = c.cpu().numpy().astype(np.float32)
        out[f"group.{n}.certificate"] = np.asarray(p.certificates[n], np.float32)
    for name, array in out.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ProfileError(f"{name} has a number that is not finite")
    return {name: np.ascontiguousarray(a) for name, a in out.items()}


def write(path, p):
    """Writes the profile; the file appears whole or not at all."""
    partial = f"{path}.partial"
    safetensors.numpy.save_file(
        tensors_of(p), partial,
        {"kvcask.profile": "1", "codec": "fklt", **{k: str(v) for k, v in p.metadata.items()}})
    os.replace(partial, path)


def read(path):
    """Reads what write() wrote. ProfileError says what is missing."""
    with safetensors.safe_open(str(path), framework="np") as f:
        metadata = dict(f.metadata() or {})
        get = f.get_tensor
        names = set(f.keys())
        if metadata.get("codec") != "fklt" or "fklt.version" not in names:
            raise ProfileError(f"{path}: not an fklt profile")
        if int(get("fklt.version")[0]) != VERSION:
            raise ProfileError(f"{path}: version {int(get('fklt.version')[0])}, expected {VERSION}")
        layers = []
        for layer in json.loads(metadata["geometry"])["layers"]:
            streams = layer.get("streams")
            shape = (streams[0]["heads"], streams[0]["head_dim"]) if streams else None
            layers += [shape] * layer.get("repeat", 1)
        layout = layout_lib.Layout(layers)
        number = {(layout.planes[s.plane].layer, layout.planes[s.plane].stream, s.head): i
                  for i, s in enumerate(layout.sub_vectors)}
        scale = int(get("fklt.l_scale_log2")[0])
        groups, transforms, coefficients, certificates = [], [], [], []
        for n in range(int(get("fklt.groups")[0])):
            members = get(f"group.{n}.members")
            subs = tuple(number[int(a), "?KV"[b], int(h)] for a, b, h in members)
            index = np.concatenate([
                np.arange(layout.sub_vectors[i].begin,
                          layout.sub_vectors[i].begin + layout.sub_vectors[i].dim)
                for i in subs])
            groups.append(layout_lib.Group(int(members[:, 0].min()), int(members[:, 0].max()) + 1,
                                           0, subs, index))
            d = layout.sub_vectors[subs[0]].dim
            low = np.zeros((len(subs), d, d), np.float32)
            rows, columns = np.tril_indices(d)
            low[:, rows, columns] = (get(f"group.{n}.L").astype(np.float32)
                                     .reshape(len(subs), -1) * np.float32(2.0 ** scale))
            transforms.append(fit.Transform(
                torch.from_numpy(get(f"group.{n}.mu").astype(np.float32)), torch.from_numpy(low),
                torch.from_numpy(get(f"group.{n}.U").copy()),
                torch.from_numpy(get(f"group.{n}.sigma").copy())))
            coefficients.append(torch.from_numpy(get(f"group.{n}.sensitivity").copy()))
            certificates.append(get(f"group.{n}.certificate"))
        sets = []
        for s in range(int(get("fklt.table_sets")[0])):
            shape, flat = get(f"fklt.tables.{s}.shape"), get(f"fklt.tables.{s}.freq")
            ends = np.cumsum(shape[:, 1].astype(np.int64) + 1)
            sets.append(tables.TableSet(shape, np.split(flat.astype(np.int64), ends[:-1]),
                                        get(f"fklt.tables.{s}.centroids")))
        return Profile(layout, groups, transforms, coefficients, sets,
                       get("fklt.steps").tolist(), get("fklt.kappa").tolist(),
                       np.asarray(certificates), get("fklt.preset_table_set").tolist(),
                       get("fklt.step_map"), scale, metadata,
                       float(get("fklt.rounding")[0]))
