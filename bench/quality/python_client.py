"""The daemon behind the seam, through the Python client package `kvcask`."""

import dataclasses
import uuid

from bench.quality import inprocess
from bench.quality.roundtrip import Decoded, RoundtripError, daemon_name, raw_bytes


def available():
    """True where the package kvcask is installed and its generated code loads."""
    try:
        import kvcask  # pylint: disable=unused-import
    except (ImportError, TypeError):  # protobuf raises TypeError for code too old for it
        return False
    return True


def served(server):
    """{codec name: CodecInfo} of GetServerInfo."""
    import kvcask
    with kvcask.connect(server, timeout=60) as client:
        return {c.name: c for c in client.info(timeout=60).codecs}


class ClientDaemon:
    """As roundtrip.Daemon, in this process: put, stat, get, delete over one channel.

    in-forward: a codec that needs no profile is sent each layer as a cache of one layer."""

    def __init__(self, server, codec, quality="", profile="", lossless=None, label=""):
        import kvcask
        self.name = daemon_name(codec, quality, label or profile)
        self.lossless = codec == "raw" if lossless is None else lossless
        self.layer_local = not profile
        self._file = profile
        self._codec, self._quality = codec, quality
        self._client = kvcask.connect(server, timeout=60)
        self._fingerprint = self._client.add_profile(profile) if profile else None

    def __call__(self, config, layers, token_ids):
        import kvcask
        session = f"kvcask-eval-{uuid.uuid4().hex}"
        cache = kvcask.Cache.from_arrays([k for k, _ in layers], [v for _, v in layers],
                                         geometry=geometry(config), token_ids=token_ids)
        try:
            # a salt of its own: equal prefixes of other runs must not be shared
            self._client.put(session, cache, model_id=config.name, extra_key=session,
                             codec=self._codec, quality=self._quality,
                             profile=self._fingerprint, timeout=600)
            try:
                stat = self._client.stat(session)
                back = self._client.get(session, timeout=600).to_torch()
            finally:
                self._client.delete(session, missing_ok=True)
        except kvcask.KvcaskError as e:
            raise RoundtripError(f"{self.name}: {e}") from e
        raw = raw_bytes(layers)
        if stat.raw_bytes != raw:
            raise RoundtripError(f"{session}: the daemon counts {stat.raw_bytes} raw bytes, "
                                 f"expected {raw}")
        return Decoded([(k[0], v[0]) for k, v in back], raw, stat.stored_bytes)

    def groups(self, config):
        """Those of the profile."""
        return inprocess.file_groups(self._file) if self._file else []

    def one_layer(self, config, layer, k, v, token_ids):
        one = dataclasses.replace(config, layers=(config.layers[layer],))
        done = self(one, [(k.cpu(), v.cpu())], token_ids)
        done.layers = [tuple(x.to(k.device) for x in done.layers[0])]
        return done


def geometry(config):
    """A kvcask.Geometry of a ModelConfig."""
    import kvcask
    made = kvcask.Geometry.uniform(
        len(config.layers), config.kv_heads, config.head_dim,
        rope_dim=config.layers[0].rope.dims,
        windows={i: layer.window for i, layer in enumerate(config.layers) if layer.window})
    for layer, message in zip(config.layers, made.proto.layers):
        message.rope.inverse_frequencies[:] = layer.rope.inv_freq()
    return made
