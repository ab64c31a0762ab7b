"""Which figures of two results differ by more than their noise.

    python -m bench.harness.compare BEFORE.json AFTER.json

Compared are speed-ups over eager, taken within one round, so that two runs on one machine need not be equally quiet.
A difference counts where the intervals from the 20th to the 80th percentile do not touch.
"""

import argparse
import json
from pathlib import Path

from bench.harness.report import KEY, table


def differences(before: dict, after: dict) -> list[tuple[tuple[str, ...], str, dict, dict]]:
    """(case, "ours over other", before, after) of every speed-up that both have and that moved, the largest first."""
    known = {tuple(r[k] for k in KEY): r for r in before["records"]}
    found = []
    for record in after["records"]:
        key = tuple(record[k] for k in KEY)
        for ours, others in record["speedups"].items():
            for other, new in others.items():
                old = known.get(key, {}).get("speedups", {}).get(ours, {}).get(other)
                if old and (old["p80"] < new["p20"] or new["p80"] < old["p20"]):
                    found.append((key, f"{ours} over {other}", old, new))
    return sorted(found, key=lambda d: -abs(d[3]["median"] / d[2]["median"] - 1))


def describe(before: dict, after: dict) -> str:
    moved = differences(before, after)
    notes = [
        f"{name}: {before['machine'].get(name)} before, {value} after"
        for name, value in after["machine"].items()
        if name != "date" and before["machine"].get(name) != value
    ]
    if not moved:
        return "\n".join([*notes, "no speed-up moved by more than its noise"])
    rows = [
        [*key, what, f"{old['median']:.2f}", f"{new['median']:.2f}", f"{new['median'] / old['median'] - 1:+.0%}"]
        for key, what, old, new in moved
    ]
    return "\n".join([*notes, table([*KEY, "speed-up", "before", "after", "change"], rows)])


def load(path: Path) -> dict:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return {"machine": result["machine"], "records": result["records"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: is not a result of pytest bench/ ({error})") from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args()
    print(describe(load(given.before), load(given.after)))
