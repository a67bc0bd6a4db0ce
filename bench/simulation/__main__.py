"""python -m bench.simulation: calibrate, validate, and only then simulate what one machine cannot show.

Ends with 3 where the simulation does not reproduce the measured run; larger systems are simulated then only
with --anyway, and are marked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from bench.simulation.calibrate import calibrate
from bench.simulation.measured import Data, MeasuringError
from bench.simulation.report import Report, markdown
from bench.simulation.scale import scale
from deploy.local import ClusterError

__all__ = ["main"]

_NOT_VALID = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.simulation", description=__doc__)
    parser.add_argument("--rows", type=int, default=Data().rows)
    parser.add_argument("--dimensions", type=int, default=Data().dimensions)
    parser.add_argument("--ef-search", type=int, default=40)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--anyway", action="store_true", help="simulate although it is not validated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE")
    args = parser.parse_args()

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    try:
        calibration, validation = calibrate(
            Data(rows=args.rows, dimensions=args.dimensions),
            k=args.k,
            ef_search=args.ef_search,
            seconds=args.seconds,
            clients=args.clients,
            say=say,
        )
    except (MeasuringError, ClusterError) as exc:
        say(str(exc))
        return 1
    points = scale(calibration.costs, say=say) if validation.valid or args.anyway else []
    report = Report(calibration, validation, points)
    if args.json is not None:
        args.json.write_bytes(msgspec.json.encode(report))
    sys.stdout.write(markdown(report))
    return 0 if validation.valid else _NOT_VALID


if __name__ == "__main__":
    sys.exit(main())
