"""What benchmarks/gpu_check.sh left in a folder, as tables: measured against planned, and against open_clip.

python benchmarks/gpu_summary.py OUT
"""

import json
import sys
from pathlib import Path


def lines_of(path: Path) -> list[dict]:
    """The lines of JSON in a file; a stage that failed may have left none."""
    found = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in found if line.startswith("{")]


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def main(folder: Path):
    print("| model | batch | images/s | ms | at best, planned ms | share of it | peak GiB | planned |"
          " MFU | times open_clip's speed |\n|" + " --- |" * 10)  # fmt: skip
    for path in sorted(folder.glob("train_*.txt")):
        name = path.stem.removeprefix("train_")
        plans = folder / f"plan_{name}.json"
        plan = json.loads(plans.read_text())[0] if plans.exists() else {}
        speed = plan.get("speed") or {}
        best_ms = 1e3 * speed["step_s"] if speed else None
        for row in lines_of(path):
            ms = 1e3 * row["seconds"]
            cells = (
                name,
                f"{row['batch']:,}",
                number(row["images_per_second"], 0),
                number(ms),
                number(best_ms),
                number(best_ms and 100 * best_ms / ms) + " %",
                number(row.get("peak_gib"), 2),
                number(plan["memory"]["peak"] if plan else None, 2),
                number(row["mfu"] * 100 if "mfu" in row else None) + " %",
                number(row.get("times_the_peers_speed"), 2),
            )
            print(f"| {' | '.join(cells)} |")
        if plan:
            print(f"\n{name}: the plan is {plan['source']}\n")
    for name in ("attention", "loss"):
        for row in lines_of(folder / f"{name}.txt"):
            print(f"{name}: {json.dumps(row)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
