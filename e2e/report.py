#!/usr/bin/env python3
"""Prints the results of the official suite as a table: report.py RUN-DIRECTORY...

Each directory is a set of tests with the junit files of one run of ginkgo; a test that has a result in several files has the last
one. Exits with 1 when a test failed, or a run has no results.
"""

import glob
import os
import re
import sys
import xml.etree.ElementTree

FAILED = {"failed", "panicked", "timedout", "interrupted", "aborted"}


def results(directory):
    """Returns (status, seconds, message) by the test's name. Tests that the filters left out are not in it."""
    found = {}
    for file in sorted(glob.glob(directory + "/junit*.xml")):
        for case in xml.etree.ElementTree.parse(file).getroot().iter("testcase"):
            status, skipped = case.get("status"), case.find("skipped")
            name = case.get("name")
            if status in ("skipped", "pending") and (skipped is None or skipped.get("message") in (None, "", "skipped")):
                continue
            if not name.startswith("[It] ") and status not in FAILED:
                continue
            cause = case.find("failure") if case.find("failure") is not None else case.find("error")
            if cause is not None:
                message = cause.get("message") or cause.text or ""
            else:
                message = skipped.get("message") if skipped is not None else ""
            message = re.sub(r"^skipped - ", "", " ".join(message.split()))
            found[name.removeprefix("[It] ")] = (status, float(case.get("time") or 0), message[:300])
    return found


def main():
    rows, bad, total = [], False, {"passed": 0, "failed": 0, "skipped": 0}
    for directory in sys.argv[1:]:
        found = results(directory)
        count = {"passed": 0, "failed": 0, "skipped": 0}
        print(f"\n{os.path.basename(directory)}:")
        for name, (status, seconds, message) in sorted(found.items(), key=lambda test: (test[1][0], test[0])):
            kind = "failed" if status in FAILED else status
            count[kind] = count.get(kind, 0) + 1
            print(f"  {status:8} {seconds:6.1f} s  {name}" + (f"\n{'':21}{message}" if message else ""))
        if not count["passed"] or count["failed"]:
            bad = True
        rows.append((os.path.basename(directory), count))
        for kind in total:
            total[kind] += count[kind]
    rows.append(("total", total))
    print(f"\n| {'set':14} | passed | failed | skip themselves |\n|{'-' * 16}|{'-' * 8}|{'-' * 8}|{'-' * 17}|")
    for name, count in rows:
        print(f"| {name:14} | {count['passed']:6} | {count['failed']:6} | {count['skipped']:15} |")
    sys.exit(bad)


main()
