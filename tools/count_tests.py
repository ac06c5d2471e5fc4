"""Counts test cases in what `bazel test --build_event_json_file` wrote.

    count_tests.py EVENTS BAZEL_STATUS LINT_STATUS

Prints what failed, then "N passed, N failed" as the last line. A target without a report of
its cases (it crashed, timed out, or is no GoogleTest) counts as one. Targets that could not be
built count as failed; tools/lint counts as one case. Ends with 0 only when nothing failed.
"""

import json
import sys
import urllib.parse
import xml.etree.ElementTree


def path_of(uri):
    return urllib.parse.unquote(urllib.parse.urlparse(uri).path)


def cases(xml_path):
    """(passed, [names of failed]) of one report; skipped cases are neither."""
    passed, failed = 0, []
    for case in xml.etree.ElementTree.parse(xml_path).iter("testcase"):
        name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif case.get("status") == "notrun" or case.get("result") == "skipped" \
                or case.find("skipped") is not None:
            continue
        else:
            passed += 1
    return passed, failed


def main():
    status = int(sys.argv[2])
    passed, failed, tested, targets = 0, [], set(), set()
    with open(sys.argv[1]) as f:
        events = [json.loads(line) for line in f if line.strip()]
    for event in events:
        identity = event.get("id", {})
        if "targetCompleted" in identity and not event.get("completed", {}).get("success"):
            label = identity["targetCompleted"]["label"]
            targets.add(label)
        if "testResult" not in identity or "testResult" not in event:
            continue
        label = identity["testResult"]["label"]
        result = event["testResult"]
        tested.add(label)
        ok, bad = 0, []
        for output in result.get("testActionOutput", []):
            if output["name"] == "test.xml":
                try:
                    ok, bad = cases(path_of(output["uri"]))
                except (OSError, xml.etree.ElementTree.ParseError):
                    pass
        if result["status"] != "PASSED" and not bad:
            bad = [result["status"].lower()]
        if result["status"] == "PASSED" and not ok and not bad:
            ok = 1
        passed += ok
        failed += [f"{label} {name}" for name in bad]
    failed += [f"{label} was not built" for label in sorted(targets - tested)]
    if status != 0 and not failed:
        failed.append(f"bazel ended with {status}")
    if sys.argv[3] == "0":
        passed += 1
    else:
        failed.append("tools/lint (above)")
    for name in failed:
        print(f"FAILED: {name}")
    print(f"{passed} passed, {len(failed)} failed")
    sys.exit(0 if status == 0 and not failed else 1)


main()
