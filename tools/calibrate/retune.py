"""Chooses the presets of a profile anew from what its calibration measured.

    python3 -m tools.calibrate.retune PROFILE REPORT --out NEW [--targets .00285,.0057,.01]

REPORT is the JSON that tools.calibrate --report wrote with PROFILE. Only steps, kappa, the
step map and the tiles' limits change: transforms and tables stay.
"""

import argparse
import json
import sys

from tools.calibrate import calibrate, profile as profile_lib


def retune(p, measured, targets):
    """Changes Profile p in place. measured: {step: rows} as in the report."""
    rows = {int(i): r for i, r in measured.items()}
    floor = float(p.certificates[:, 0].sum())
    before = [(k, calibrate.at_step(rows, i, "predicted")) for k, i in zip(p.kappa, p.steps)]
    p.steps = calibrate.choose_steps(rows, targets)
    p.kappa = calibrate.fit_kappa(rows, p.steps, floor, targets)
    p.step_map = calibrate.make_step_map(rows, targets)
    for j, (kappa, predicted) in enumerate(before):
        scale = (p.kappa[j] * calibrate.at_step(rows, p.steps[j], "predicted")
                 / (kappa * predicted))
        floors = p.certificates[:, 0]
        p.certificates[:, 1 + j] = floors + (p.certificates[:, 1 + j] - floors) * scale


def main():
    a = argparse.ArgumentParser(prog="python3 -m tools.calibrate.retune",
                                description=__doc__.split("\n")[0])
    a.add_argument("profile")
    a.add_argument("report")
    a.add_argument("--out", required=True)
    a.add_argument("--targets", default=",".join(map(str, calibrate.TARGETS)))
    args = a.parse_args()
    try:
        p = profile_lib.read(args.profile)
        with open(args.report, encoding="utf-8") as f:
            report = json.load(f)
        if report.get("name") != p.metadata["name"]:
            raise profile_lib.ProfileError(f"{args.report} is the report of {report.get('name')}, "
                                           f"not of {p.metadata['name']}")
        retune(p, report["report"]["measured"], [float(t) for t in args.targets.split(",")])
    except (OSError, ValueError, KeyError) as e:
        sys.exit(f"retune: {e}")
    p.metadata["fklt.targets"] = args.targets
    profile_lib.write(args.out, p)
    print(f"{args.out}: steps {dict(zip(profile_lib.PRESETS, p.steps))}, kappa "
          f"{', '.join(f'{k:.2f}' for k in p.kappa)}")


if __name__ == "__main__":
    main()
