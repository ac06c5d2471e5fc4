import unittest

import torch

from tools.models import forward, random_model

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")


def slow_attention(q, k, v, scale, window):
    """attend() one query at a time, in float64."""
    batch, heads, count, _ = q.shape
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            kv = h * k.shape[1] // heads
            for t in range(count):
                at = k.shape[2] - count + t
                low = max(0, at - window + 1) if window else 0
                s = k[b, kv, low:at + 1].double() @ q[b, h, t].double() * scale
                out[b, h, t] = torch.softmax(s, 0) @ v[b, kv, low:at + 1].double()
    return out


class AttendTest(unittest.TestCase):
    def test_equals_the_slow_form(self):
        g = torch.Generator().manual_seed(3)
        for window in (0, 1, 5, 100):
            for past in (0, 7):
                q = torch.randn(2, 6, 13, 8, generator=g)
                k = torch.randn(2, 3, 13 + past, 8, generator=g)
                v = torch.randn(2, 3, 13 + past, 8, generator=g)
                fast = forward.attend(q, k, v, 0.3, window, block=4)
                slow = slow_attention(q, k, v, 0.3, window)
                self.assertLess(float((fast - slow).abs().max()), 1e-5, (window, past))

    def test_rotation_is_undone(self):
        x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(4))
        angle = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.3, 0.01, 0.001])
        turned = forward.rotate(x, angle.cos(), angle.sin())
        self.assertGreater(float((turned - x).abs().max()), 0.1)
        self.assertTrue(torch.equal(turned[..., 8:], x[..., 8:]))  # past dims: left alone
        back = forward.unrotate(turned, angle.cos(), angle.sin())
        self.assertLess(float((back - x).abs().max()), 1e-5)


class ForwardTest(unittest.TestCase):
    def test_a_prefix_from_outside_gives_the_logits_of_the_whole(self):
        for arch in ARCHITECTURES:
            for kv_dtype in (torch.bfloat16, None):
                model = random_model.model(arch, kv_dtype=kv_dtype)
                ids = random_model.tokens(2, 30)
                whole = model.forward(ids)
                past = model.run(ids[:, :19], keep_cache=True).cache
                rest = model.forward(ids[:, 19:], past=past)
                # a sum in another order may round a K or V the other way
                bound = 1e-4 if kv_dtype is None else 5e-2
                self.assertLess(float((rest - whole[:, 19:]).abs().max()), bound, arch)

    def test_a_sliding_layer_needs_only_its_window(self):
        model = random_model.model("gemma3")
        ids = random_model.tokens(1, 30)
        past = model.run(ids[:, :19], keep_cache=True).cache
        cut = [(k[:, :, -8:], v[:, :, -8:]) if layer.window else (k, v)
               for layer, (k, v) in zip(model.config.layers, past)]
        a, b = model.forward(ids[:, 19:], past=past), model.forward(ids[:, 19:], past=cut)
        self.assertLess(float((a - b).abs().max()), 1e-5)

    def test_rows_of_a_batch_do_not_meet(self):
        model = random_model.model("qwen2")
        ids = random_model.tokens(3, 12)
        whole = model.forward(ids)
        for i in range(3):
            self.assertLess(float((model.forward(ids[i:i + 1])[0] - whole[i]).abs().max()), 1e-4)

    def test_the_hook_sees_every_stream_of_every_layer_in_shape(self):
        model = random_model.model("qwen3")
        seen, seen_x = {}, {}

        def hook(layer, stream, x, positions):
            if stream == "kv":
                k, v = x
                self.assertEqual((k.shape, v.shape), (seen_x[layer, "k"], seen_x[layer, "v"]))
                return
            seen_x[layer, stream] = x.shape
            seen[layer, stream] = tuple(x.shape), positions.tolist()

        model.forward(random_model.tokens(2, 5), kv_hook=hook, first_position=3)
        streams = {"q_pre": 4, "q": 4, "k_pre": 2, "k": 2, "v": 2}
        self.assertEqual(seen, {(i, s): ((2, h, 5, 16), [3, 4, 5, 6, 7])
                                for i in range(3) for s, h in streams.items()})

    def test_replacing_k_and_v_by_themselves_changes_nothing(self):
        for arch in ARCHITECTURES:
            model = random_model.model(arch)
            ids = random_model.tokens(1, 20)
            run = model.run(ids, keep_cache=True)

            def hook(layer, stream, x, positions, cache=run.cache):
                return cache[layer]["kv".index(stream)] if stream in ("k", "v") else None

            again = model.run(ids, kv_hook=hook)
            self.assertTrue(torch.equal(again.hidden, run.hidden), arch)

    def test_replacing_k_before_rope_is_replacing_it_after(self):
        model = random_model.model("llama", kv_dtype=None)
        ids = random_model.tokens(1, 9)
        zero = {"k_pre": lambda i, s, x, p: x * 0 if s == "k_pre" else None,
                "k": lambda i, s, x, p: x * 0 if s == "k" else None}
        a, b = (model.forward(ids, kv_hook=hook) for hook in zero.values())
        self.assertTrue(torch.equal(a, b))
        self.assertGreater(float((a - model.forward(ids)).abs().max()), 1e-3)

    def test_gradients_reach_k_and_v_and_agree_with_differences(self):
        model = random_model.model("qwen2", kv_dtype=None)
        ids = random_model.tokens(1, 8)

        def loss(bump):
            def hook(layer, stream, x, positions):
                return x + bump[stream] if layer == 1 and stream in bump else None
            logits = model.forward(ids, kv_hook=hook)
            return torch.log_softmax(logits.double(), -1)[0, 6, 11]

        for stream in ("k_pre", "v"):
            zero = torch.zeros(1, 2, 8, 16, requires_grad=True)
            loss({stream: zero}).backward()
            step = torch.zeros(1, 2, 8, 16)
            step[0, 1, 2, 5] = 1e-2
            with torch.no_grad():
                difference = (loss({stream: step}) - loss({stream: -step})) / 2e-2
            self.assertAlmostEqual(float(zero.grad[0, 1, 2, 5]), float(difference), places=3)
            self.assertGreater(float(zero.grad.abs().max()), 1e-4)

    def test_gradients_pass_the_rounding_of_the_cache(self):
        model = random_model.model("llama")
        zero = torch.zeros(1, 2, 8, 16, requires_grad=True)
        hook = lambda i, s, x, p: x + zero if (i, s) == (0, "k_pre") else None
        model.forward(random_model.tokens(1, 8), kv_hook=hook)[0, -1, 3].backward()
        self.assertGreater(float(zero.grad.abs().max()), 0)

    def test_generation_follows_the_argmax(self):
        model = random_model.model("qwen3")
        ids = random_model.tokens(1, 10)
        out = model.generate(ids, 5)
        for token in out:
            self.assertEqual(token, int(model.forward(ids)[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
        self.assertEqual(len(out), 5)
        stopped = model.generate(random_model.tokens(1, 10), 5, stop=(out[-1],))
        self.assertEqual(stopped, out[:out.index(out[-1])])

    def test_tokens_of_a_wrong_shape_are_refused(self):
        with self.assertRaisesRegex(ValueError, r"\[batch, tokens\], found \(4,\)"):
            random_model.model("llama").forward(torch.zeros(4, dtype=torch.long))


if __name__ == "__main__":
    unittest.main()
