"""What a profile has to show, and whether it did: PASS or MISS.

Quality by the prefix protocol; the ratio that a model and partition should reach within
that quality, as the first prototype of this codec did; and the certificate, which must say
about what is measured.
"""

import dataclasses

KLD, DPPL, TOP1 = 0.0105, 1.0, 95.0   # nats a token; %, less its interval; %
NEAR_LOSSLESS_KLD = 0.003
CERTIFICATE_MEAN = 1.5                # predicted against measured, either way, at the
CERTIFICATE_EACH = 2.5                # calibrated length; for each kind, and at other lengths

# Least ratio within KLD: {model: {groups: ratio}}, and within NEAR_LOSSLESS_KLD.
RATIOS = {
    "SmolLM2-135M-Instruct": {"layer": 12, "4": 19},
    "Qwen2.5-Coder-0.5B-Instruct": {"layer": 14, "4": 19},
    "Qwen2.5-Coder-1.5B-Instruct": {"layer": 15, "4": 23},
    "Gemma-3-270m": {"layer": 7, "4": 9},
}
NEAR_LOSSLESS_RATIOS = {
    "SmolLM2-135M-Instruct": {"8": 11},
    "Qwen2.5-Coder-0.5B-Instruct": {"8": 11},
    "Qwen2.5-Coder-1.5B-Instruct": {"8": 11},
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    passed: bool
    text: str  # what was found, against what

    def __str__(self):
        return f"{'PASS' if self.passed else 'MISS'} ({self.text})"


def apart(measured, predicted):
    """How many times one is the other, either way: 1 or more."""
    low, high = sorted((max(measured, 1e-9), max(predicted, 1e-9)))
    return high / low


def quality(r):
    """r: a result of tools.calibrate.evaluate (a preset of a profile)."""
    dppl = abs(r["dppl_percent"]) - r["dppl_ci"]
    return Verdict(r["kld"] <= KLD and dppl <= DPPL and r["top1"] >= TOP1,
                   f"KLD {r['kld']:.4f}, |dPPL| less its interval {max(dppl, 0):.2f} %, top-1 "
                   f"{r['top1']:.1f} %")


def ratio(model, r):
    """The ratio that this model, partition and preset should reach, with the quality; None
    where none is asked."""
    if r["setting"] == "compact":
        want, kld = RATIOS.get(model, {}).get(r["groups"]), KLD
    elif r["setting"] == "near_lossless":
        want, kld = NEAR_LOSSLESS_RATIOS.get(model, {}).get(r["groups"]), NEAR_LOSSLESS_KLD
    else:
        want = None
    if want is None:
        return None
    return Verdict(r["framed_ratio"] >= want and r["kld"] <= kld and quality(r).passed,
                   f"{r['framed_ratio']:.1f}x of {want}x, KLD {r['kld']:.4f} of {kld:g}")


def certificate(r, calibrated_length):
    """Whether predictions hold: on the mean over kinds, and for each kind.

    calibrated_length: whether the passages are as long as the calibration's; at another
    length the mean may be off by as much as a kind.
    """
    kinds = r["kld_by_kind"]
    mean = lambda d: sum(d.values()) / len(d)
    off = apart(mean(kinds), mean(r["predicted_by_kind"]))
    limit = CERTIFICATE_MEAN if calibrated_length else CERTIFICATE_EACH
    each = {k: apart(v, r["predicted_by_kind"][k]) for k, v in kinds.items()}
    worst = max(each, key=each.get)
    return Verdict(off <= limit and each[worst] <= CERTIFICATE_EACH,
                   f"mean off by {off:.2f} of {limit:g}, {worst} by {each[worst]:.2f} of "
                   f"{CERTIFICATE_EACH:g}")
