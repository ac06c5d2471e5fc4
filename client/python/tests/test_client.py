"""The Python client against the real daemon.

Environment: KVCASKD is the daemon's binary. Run by Bazel as //client/python:client_test.
"""

import os
import signal
import subprocess
import tempfile
import unittest

import numpy as np

import kvcask
from kvcask import arrays, client as client_module


class Daemon:
    """kvcaskd on a unix socket of its own."""

    def __init__(self, *flags):
        self.folder = tempfile.TemporaryDirectory(dir="/tmp", prefix="kvcask-")
        self.address = f"unix:{self.folder.name}/s"
        self.process = subprocess.Popen(
            [os.environ["KVCASKD"], "--listen", self.address, "--metrics", "off",
             "--log-level", "error", *flags], stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if line.startswith("listening"):
                return
        raise RuntimeError(f"kvcaskd ended with {self.process.wait()}")

    def kill(self):
        self.stop(signal.SIGKILL)

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()
        self.process.stdout.close()
        self.folder.cleanup()


def random_cache(tokens, seed, layers=3, heads=2, dim=16, dtype="bf16"):
    rng = np.random.default_rng(seed)
    make = lambda: arrays.from_float32(rng.standard_normal((heads, tokens, dim)), dtype)
    return kvcask.Cache.from_arrays([make() for _ in range(layers)],
                                    [make() for _ in range(layers)],
                                    token_ids=rng.integers(0, 50000, tokens), rope_theta=1e5)


class ClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--memory-budget", "64MiB")
        cls.client = kvcask.connect(cls.daemon.address)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.daemon.stop()

    def assert_same(self, a, b):
        for x, y in zip(a.keys + a.values, b.keys + b.values):
            np.testing.assert_array_equal(x, y)

    def test_raw_gives_back_every_bit_in_every_dtype(self):
        for dtype in ("bf16", "f16", "f32"):
            for layer_by_layer in (False, True):
                cache = random_cache(300, 1, dtype=dtype)
                session = f"raw-{dtype}-{layer_by_layer}"
                r = self.client.put(session, cache, model_id="m", codec="raw",
                                    layer_by_layer=layer_by_layer)
                self.assertEqual(r.visible_tokens, 300)
                self.assertEqual(r.raw_bytes, 300 * 3 * 2 * 2 * 16 * 2)
                back = self.client.get(session)
                self.assertEqual(back.dtype, dtype)
                self.assert_same(back, cache)
                np.testing.assert_array_equal(back.token_ids, cache.token_ids)

    def test_ranges_of_tokens_and_layers(self):
        cache = random_cache(300, 2)
        self.client.put("ranges", cache, model_id="m", codec="raw")
        back = self.client.get("ranges", tokens=(100, 290), layers=(1, 2))
        self.assertIsNone(back.keys[0])
        np.testing.assert_array_equal(back.keys[1], cache.keys[1][:, 100:290])
        np.testing.assert_array_equal(back.values[1], cache.values[1][:, 100:290])
        np.testing.assert_array_equal(back.token_ids, cache.token_ids[100:290])

    def test_appends_to_an_open_session(self):
        cache = random_cache(300, 3)
        for begin, end in ((0, 100), (100, 101), (101, 300)):
            part = kvcask.Cache([k[:, begin:end] for k in cache.keys],
                                [v[:, begin:end] for v in cache.values], cache.geometry,
                                cache.dtype, cache.token_ids[begin:end], begin)
            self.client.put("append", part, model_id="m", codec="raw", seal=False)
        self.assert_same(self.client.get("append"), cache)

    def test_int8_is_within_half_a_step(self):
        cache = random_cache(256, 4)
        r = self.client.put("int8", cache, model_id="m", codec="int8")
        self.assertGreater(r.ratio, 1.5)
        back = self.client.get("int8", dtype="f32")
        for x, y in zip(cache.float32("keys"), back.keys):
            scale = np.abs(x).max(axis=-1, keepdims=True) / 127
            self.assertLessEqual((np.abs(x - y) / scale).max(), .51)

    def test_lookup_and_prefix(self):
        cache = random_cache(300, 5)
        self.client.put("prefix", cache, model_id="m2", codec="raw")
        ids = np.concatenate([cache.token_ids[:270], [1, 2, 3]])
        found = self.client.lookup(ids, model_id="m2")
        self.assertEqual(found.tokens, 256)
        held = found.held[0]
        self.assertEqual((held.codec, held.quality, held.tokens), ("raw", "", 256))
        self.assertEqual((held.raw_bytes, held.disk_bytes), (256 * 3 * 2 * 2 * 16 * 2, 0))
        self.assertEqual(found.lease_id, "")
        self.assertEqual(self.client.lookup(ids, model_id="another").tokens, 0)
        back = self.client.get_prefix(ids, model_id="m2")
        np.testing.assert_array_equal(back.values[2], cache.values[2][:, :256])
        with self.assertRaises(kvcask.NotFoundError):
            self.client.get_prefix(ids[::-1].copy(), model_id="m2")

    def test_sessions_are_listed_and_deleted(self):
        cache = random_cache(10, 6)
        for i in range(3):
            self.client.put(f"s{i}", cache, model_id="m", codec="raw", namespace="list",
                            labels={"n": str(i)})
        listed = list(self.client.sessions(namespace="list"))
        self.assertEqual([s.session_id for s in listed], ["s0", "s1", "s2"])
        self.assertEqual(listed[1].labels, {"n": "1"})
        self.assertEqual(self.client.stat("s0", namespace="list").tokens, 10)
        self.assertTrue(self.client.delete("s0", namespace="list"))
        self.assertFalse(self.client.delete("s0", namespace="list", missing_ok=True))
        with self.assertRaises(kvcask.NotFoundError):
            self.client.stat("s0", namespace="list")

    def test_a_fork_shares_and_goes_its_own_way(self):
        cache = random_cache(300, 11)
        self.client.put("trunk", cache, model_id="m", codec="raw")
        fork = self.client.fork("trunk", "branch", tokens=200, labels={"of": "trunk"}, ttl=60)
        self.assertEqual((fork.session_id, fork.tokens, fork.sealed), ("branch", 200, False))
        self.assertEqual((fork.labels, fork.ttl), ({"of": "trunk"}, 60))
        with self.assertRaises(kvcask.AlreadyExistsError):
            self.client.fork("trunk", "branch")
        with self.assertRaises(kvcask.OutOfRangeError):
            self.client.fork("trunk", "another", tokens=301)
        self.assertTrue(self.client.delete("trunk"))
        back = self.client.get("branch")
        for x, y in zip(back.keys + back.values, cache.keys + cache.values):
            np.testing.assert_array_equal(x, y[:, :200])

    def test_a_rewind_forgets_and_checks_the_version(self):
        self.client.put("rewound", random_cache(300, 12), model_id="m", codec="raw")
        version = self.client.stat("rewound").version
        with self.assertRaises(kvcask.AbortedError):
            self.client.rewind("rewound", 100, expected_version=version + 1)
        self.assertEqual(self.client.stat("rewound").tokens, 300)
        cut = self.client.rewind("rewound", 100, expected_version=version)
        self.assertEqual((cut.tokens, cut.sealed), (100, False))
        self.assertGreater(cut.version, version)

    def test_pins_and_labels_are_changed_one_by_one(self):
        self.client.put("kept", random_cache(10, 13), model_id="m", codec="raw",
                        labels={"a": "1"}, ttl=60)
        self.assertTrue(self.client.update("kept", pinned=True).pinned)
        changed = self.client.update("kept", labels={"b": "2"}, ttl=0)
        self.assertEqual((changed.pinned, changed.labels, changed.ttl), (True, {"b": "2"}, 0))
        self.assertEqual(self.client.update("kept", pinned=False).labels, {"b": "2"})

    def test_a_lease_outlives_its_session_until_it_is_released(self):
        cache = random_cache(300, 14)
        self.client.put("leased", cache, model_id="m3", codec="raw")
        ids = cache.token_ids
        found = self.client.lookup(ids, model_id="m3", lease=60)
        self.client.delete("leased")
        self.assertEqual(self.client.lookup(ids, model_id="m3").tokens, 256)
        renewed = self.client.renew_lease(found.lease_id, 120)
        self.assertEqual((renewed.lease_id, renewed.tokens), (found.lease_id, 256))
        self.assertTrue(self.client.release_lease(found.lease_id))
        self.assertFalse(self.client.release_lease(found.lease_id))
        self.assertEqual(self.client.lookup(ids, model_id="m3").tokens, 0)
        with self.assertRaises(kvcask.NotFoundError):
            self.client.renew_lease(found.lease_id, 120)

    def test_a_session_can_be_leased_for_as_long_as_the_daemon_allows(self):
        self.client.put("session", random_cache(300, 15), model_id="m", codec="raw")
        lease = self.client.lease("session", 60)
        self.assertEqual(lease.tokens, 300)
        self.assertGreater(lease.expires, 0)
        with self.assertRaises(kvcask.InvalidArgumentError):
            self.client.lease("session", 10**9)
        with self.assertRaises(kvcask.NotFoundError):
            self.client.lease("no-such-session", 60)
        self.assertTrue(self.client.release_lease(lease.lease_id))

    def test_a_durable_put_survives_a_kill(self):
        cache = random_cache(300, 16)
        with self.assertRaises(kvcask.UnimplementedError):
            self.client.put("nowhere", cache, model_id="m", codec="raw", durable=True)
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="kvcask-") as disk:
            daemon = Daemon("--memory-budget", "64MiB", "--disk-path", disk)
            with kvcask.connect(daemon.address) as client:
                client.put("s", cache, model_id="m", codec="raw", durable=True)
                self.assertTrue(client.stat("s").durable)
            daemon.kill()
            daemon = Daemon("--memory-budget", "64MiB", "--disk-path", disk)
            with kvcask.connect(daemon.address) as client:
                self.assert_same(client.get("s"), cache)
                self.assertEqual(client.stat("s").lost, ())
            daemon.stop()

    def test_a_put_id_is_harmless_to_repeat(self):
        cache = random_cache(10, 7)
        first = self.client.put("again", cache, model_id="m", codec="raw", put_id="x")
        second = self.client.put("again", cache, model_id="m", codec="raw", put_id="x")
        self.assertFalse(first.replayed)
        self.assertTrue(second.replayed)

    def test_errors_carry_code_reason_and_retry(self):
        cache = random_cache(10, 8)
        with self.assertRaises(kvcask.UnimplementedError) as e:
            self.client.put("e", cache, model_id="m", codec="zip")
        self.assertEqual(e.exception.reason, "UNKNOWN_CODEC")
        self.assertIn("zip", e.exception.message)
        with self.assertRaises(kvcask.InvalidArgumentError):
            self.client.put("a b", cache, model_id="m")
        with self.assertRaises(kvcask.NotFoundError) as e:
            self.client.put("e", cache, model_id="m", codec="int8", profile="00" * 32)
        self.assertEqual(e.exception.reason, "UNKNOWN_PROFILE")
        big = random_cache(20000, 9, layers=8, heads=8, dim=32)
        with self.assertRaises(kvcask.ResourceExhaustedError) as e:
            self.client.put("e", big, model_id="m", codec="raw")
        self.assertEqual(e.exception.reason, "OVER_BUDGET")
        with self.assertRaises(kvcask.NotFoundError):
            self.client.stat("e")
        with self.assertRaises(kvcask.UnavailableError):
            kvcask.connect("unix:/tmp/kvcask-nobody-listens-here", timeout=5)

    def test_wrong_arrays_are_refused_before_anything_is_sent(self):
        with self.assertRaisesRegex(TypeError, "int64"):
            kvcask.Cache.from_arrays([np.zeros((1, 2, 3), np.int64)], [np.zeros((1, 2, 3))])
        with self.assertRaisesRegex(ValueError, r"values\[0\]"):
            kvcask.Cache.from_arrays([np.zeros((1, 2, 3), np.float32)],
                                     [np.zeros((1, 3, 3), np.float32)])

    def test_torch_tensors_where_torch_is(self):
        try:
            import torch
        except ImportError:
            self.skipTest("torch is not installed")
        k = torch.randn(2, 50, 16).to(torch.bfloat16)
        cache = kvcask.Cache.from_transformers([(k[None], k[None])])
        self.client.put("torch", cache, model_id="m", codec="raw")
        back = self.client.get("torch").to_torch()
        self.assertTrue(torch.equal(back[0][0][0], k))


class FramingTest(unittest.TestCase):
    def test_any_valid_encoding_of_a_rectangle_is_read(self):
        message = client_module.cache_pb2.GetResponse()
        message.data.rectangle.layer_count = 3
        message.data.crc32c = 77
        message.data.payload = b"payload"
        head, payload = client_module._split(message.SerializeToString())
        self.assertEqual((head.data.crc32c, bytes(payload)), (77, b"payload"))
        inner = b"\x7a\x03abc" + client_module.cache_pb2.KvData(crc32c=5).SerializeToString()
        head, payload = client_module._split(b"\x7a" + bytes([len(inner)]) + inner)
        self.assertEqual((head.data.crc32c, bytes(payload)), (5, b"abc"))

    def test_bf16_rounds_to_nearest_even(self):
        x = np.array([1.0, 1.00390625, 1.01171875, -2.5, np.inf, np.nan], np.float32)
        bits = arrays.from_float32(x, "bf16")
        self.assertEqual(list(bits[:5]), [0x3F80, 0x3F80, 0x3F82, 0xC020, 0x7F80])
        self.assertTrue(np.isnan(arrays.to_float32(bits, "bf16")[5]))


if __name__ == "__main__":
    unittest.main(verbosity=2)
